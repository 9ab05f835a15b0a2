//! What a framework launches.

use serde_json::{Value, json};

/// Of the task, and again of the executor.
const CPUS: f64 = 0.1;

/// A custom executor, which gets one task.
#[derive(Debug, Clone)]
pub struct ExecutorSpec {
    pub executor_id: String,
    /// For `sh -c`.
    pub command: String,
    pub labels: Vec<(String, String)>,
    pub env: Vec<(String, String)>,
    /// The Docker image to run it in, by the agent's Docker containerizer.
    pub image: Option<String>,
    /// The memory limit, of executor and pod together.
    pub mem_mb: u32,
}

impl Default for ExecutorSpec {
    fn default() -> Self {
        Self {
            executor_id: String::new(),
            command: String::new(),
            labels: Vec::new(),
            env: Vec::new(),
            image: None,
            // docker-compose alone takes some 50.
            mem_mb: 256,
        }
    }
}

impl ExecutorSpec {
    /// Is there enough of everything in an offer for all of these?
    pub(super) fn fit(specs: &[Self], offer: &Value) -> bool {
        let cpus = 2.0 * CPUS * specs.len() as f64;
        let mem: u32 = specs.iter().map(|spec| spec.mem_mb).sum();
        // Sums of tenths are seldom exact.
        scalar(offer, "cpus") >= cpus - 0.01 && scalar(offer, "mem") >= f64::from(mem)
    }

    /// The description of a task on an executor of its own.
    pub(super) fn task(&self, framework_id: &str, task_id: &str, agent_id: &Value) -> Value {
        let resource = |name: &str, value: f64| {
            json!({
                "name": name,
                "type": "SCALAR",
                "scalar": { "value": value },
                "allocation_info": { "role": "*" },
            })
        };
        let labels: Vec<_> = pairs(&self.labels, "key").collect();
        let variables: Vec<_> = pairs(&self.env, "name").collect();
        let mut task = json!({
            "name": task_id,
            "task_id": { "value": task_id },
            "agent_id": agent_id,
            "resources": [resource("cpus", CPUS)],
            "executor": {
                "type": "CUSTOM",
                "executor_id": { "value": self.executor_id },
                "framework_id": { "value": framework_id },
                "command": {
                    "shell": true,
                    "value": self.command,
                    "environment": { "variables": variables },
                },
                // The container's limits are the sum of both.
                "resources": [resource("cpus", CPUS), resource("mem", f64::from(self.mem_mb))],
                "labels": { "labels": labels },
            },
        });
        if let Some(image) = &self.image {
            task["executor"]["container"] = json!({
                "type": "DOCKER",
                // No other is there.
                "docker": { "image": image, "network": "HOST" },
            });
        }
        task
    }
}

fn pairs(pairs: &[(String, String)], name: &str) -> impl Iterator<Item = Value> {
    pairs
        .iter()
        .map(move |(key, value)| json!({ name: key, "value": value }))
}

fn scalar(offer: &Value, name: &str) -> f64 {
    let resources = offer["resources"].as_array().into_iter().flatten();
    resources
        .filter(|resource| resource["name"] == name)
        .filter_map(|resource| resource["scalar"]["value"].as_f64())
        .sum()
}
