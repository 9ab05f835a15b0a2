//! The executor's side of the agent's v1 executor API.

use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cleanup_tests::mesos::api::{self, EXECUTOR, Subscription};
use cleanup_tests::wait;
use serde_json::{Value, json};

use crate::variable;

const ACKNOWLEDGED: Duration = Duration::from_secs(10);
/// For how long an agent may be away, as dce-go has it.
const RECOVERY: Duration = Duration::from_secs(15 * 60);

/// Stays subscribed at the agent, also at the agent's next start if it
/// checkpoints.
pub struct Driver {
    shared: Arc<Shared>,
    events: Receiver<Value>,
}

struct Shared {
    endpoint: String,
    framework_id: String,
    executor_id: String,
    checkpoint: bool,
    state: Mutex<State>,
}

/// What an agent that comes back has to be told again.
#[derive(Default)]
struct State {
    tasks: Vec<Value>,
    /// Unacknowledged, by uuid.
    updates: BTreeMap<String, Value>,
}

impl Driver {
    /// Subscribes; for all else the executor waits for events.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared {
            endpoint: variable("MESOS_AGENT_ENDPOINT")?,
            framework_id: variable("MESOS_FRAMEWORK_ID")?,
            executor_id: variable("MESOS_EXECUTOR_ID")?,
            checkpoint: variable("MESOS_CHECKPOINT")? == "1",
            state: Mutex::default(),
        });
        let (sender, events) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || of_thread.run(&sender));
        Ok(Self { shared, events })
    }

    pub fn events(&self) -> &Receiver<Value> {
        &self.events
    }

    /// Remembers a task until its first update is acknowledged.
    pub fn task(&self, task: &Value) {
        self.shared.lock().tasks.push(task.clone());
    }

    pub fn update(&self, task_id: &str, state: &str) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let uuid = uuid()?;
        let update = json!({
            "status": {
                "task_id": { "value": task_id },
                "executor_id": { "value": self.shared.executor_id },
                "state": state,
                "source": "SOURCE_EXECUTOR",
                "timestamp": now.as_secs_f64(),
                "uuid": uuid,
            },
        });
        self.shared.lock().updates.insert(uuid, update.clone());
        let sent = self.shared.call("UPDATE", "update", &update);
        match sent {
            // It goes out with the next subscription.
            Err(error) if self.shared.checkpoint => eprintln!("pod-executor: {error:#}"),
            sent => sent?,
        }
        Ok(())
    }

    /// The agent has all updates.
    pub fn wait_acknowledged(&self) -> Result<()> {
        wait::until(ACKNOWLEDGED, "acknowledgements", || {
            self.shared.lock().updates.is_empty().then_some(())
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: hands events on until the agent is gone.
    fn run(&self, sender: &Sender<Value>) {
        let mut subscription = self.subscribe();
        loop {
            match subscription {
                Ok(events) => {
                    for event in events {
                        self.note_acknowledgement(&event);
                        if sender.send(event).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => eprintln!("pod-executor: {error:#}"),
            }
            if !self.checkpoint {
                return;
            }
            subscription =
                wait::until(RECOVERY, "the agent to come back", || self.subscribe().ok());
            if subscription.is_err() {
                return;
            }
        }
    }

    fn subscribe(&self) -> Result<Subscription> {
        let body = {
            let state = self.lock();
            json!({
                "unacknowledged_tasks": state.tasks,
                "unacknowledged_updates": state.updates.values().collect::<Vec<_>>(),
            })
        };
        let body = self.body("SUBSCRIBE", "subscribe", &body);
        // Older agents send no heartbeats to executors.
        Subscription::open(&self.endpoint, EXECUTOR, &body, None)
    }

    fn note_acknowledgement(&self, event: &Value) {
        if event["type"] != "ACKNOWLEDGED" {
            return;
        }
        let mut state = self.lock();
        let acknowledged = &event["acknowledged"];
        if let Some(uuid) = acknowledged["uuid"].as_str() {
            state.updates.remove(uuid);
        }
        state
            .tasks
            .retain(|task| task["task_id"] != acknowledged["task_id"]);
    }

    fn call(&self, kind: &str, field: &str, body: &Value) -> Result<()> {
        api::call(
            &self.endpoint,
            EXECUTOR,
            None,
            &self.body(kind, field, body),
        )
    }

    fn body(&self, kind: &str, field: &str, body: &Value) -> Value {
        json!({
            "type": kind,
            "framework_id": { "value": self.framework_id },
            "executor_id": { "value": self.executor_id },
            field: body,
        })
    }
}

/// 16 bytes, in base64.
fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a new uuid")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let bytes = u128::from_str_radix(&digits, 16)?;
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // 128 bits are 21 digits of 6 bits, and 2 bits.
    let mut base64: String = (0..21)
        .map(|index| ALPHABET[(bytes >> (122 - 6 * index)) as usize & 63] as char)
        .collect();
    base64.push(ALPHABET[(bytes << 4) as usize & 63] as char);
    base64.push_str("==");
    Ok(base64)
}
