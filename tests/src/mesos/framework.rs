//! A Mesos framework: launches executors and collects what becomes of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::api::{self, Closer, SCHEDULER, Subscription};
use super::spec::ExecutorSpec;
use crate::wait;

const SUBSCRIBE: Duration = Duration::from_secs(30);
const OFFER: Duration = Duration::from_secs(90);
/// The master sends a heartbeat every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(200);
const END: Duration = Duration::from_secs(10);

/// A status update of a task.
#[derive(Debug, Clone)]
pub struct Update {
    pub task_id: String,
    pub state: String,
    pub reason: Option<String>,
    pub message: Option<String>,
    /// When it arrived here.
    pub received: Instant,
}

impl Update {
    pub fn is_terminal(&self) -> bool {
        const GOING_ON: [&str; 6] = [
            "TASK_STAGING",
            "TASK_STARTING",
            "TASK_RUNNING",
            "TASK_KILLING",
            "TASK_UNREACHABLE",
            "TASK_UNKNOWN",
        ];
        !GOING_ON.contains(&self.state.as_str())
    }
}

/// A subscribed framework with a thread of its own, which acknowledges updates
/// and subscribes again when the master comes back. Dropping it tears the
/// framework down.
#[derive(Debug)]
pub struct Framework {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    endpoint: String,
    checkpoint: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    framework_id: Option<String>,
    /// While it lasts.
    connection: Option<Connection>,
    offers: Vec<Value>,
    /// The last that was given back.
    declined: Option<Value>,
    updates: Vec<Update>,
    /// The latest failure to subscribe, or error from the master.
    error: Option<String>,
    leaving: bool,
}

#[derive(Debug)]
struct Connection {
    stream: String,
    closer: Closer,
}

impl Framework {
    /// Subscribes at a master. With `checkpoint`, executors outlive the agent,
    /// and the framework may be away for an hour.
    pub fn connect(endpoint: &str, checkpoint: bool) -> Result<Self> {
        let shared = Arc::new(Shared {
            endpoint: endpoint.to_owned(),
            checkpoint,
            state: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        let framework = Self {
            shared,
            thread: Some(thread::spawn(move || of_thread.run())),
        };
        wait::until(SUBSCRIBE, "the framework to be subscribed", || {
            framework.id()
        })
        .with_context(|| format!("last error: {:?}", framework.shared.lock().error))?;
        Ok(framework)
    }

    pub fn id(&self) -> Option<String> {
        self.shared.lock().framework_id.clone()
    }

    /// Launches a task on an executor of its own, as soon as there is an offer.
    /// Returns the task's id.
    pub fn launch(&self, spec: &ExecutorSpec) -> Result<String> {
        let mut tasks = self.launch_all(std::slice::from_ref(spec))?;
        tasks.pop().context("one executor, one task")
    }

    /// [`Self::launch`] of all these at once, on one offer. The ids of the tasks, in
    /// the same order.
    pub fn launch_all(&self, specs: &[ExecutorSpec]) -> Result<Vec<String>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let names: Vec<_> = specs.iter().map(|spec| &spec.executor_id).collect();
        let offer = wait::until(OFFER, format_args!("an offer for {names:?}"), || {
            let offer = self.shared.lock().take_offer(specs);
            if offer.is_none() {
                // What ended executors gave back comes in pieces, each too small:
                // the allocator puts together what is declined.
                let _ = self.decline(0.0);
            }
            offer
        })
        .with_context(|| {
            let state = self.shared.lock();
            let too_little = state.declined.as_ref().map(|offer| &offer["resources"]);
            format!(
                "last error: {:?}; last offer, too little: {}",
                state.error,
                too_little.unwrap_or(&Value::Null)
            )
        })?;
        let framework_id = self.id().context("a framework with offers has an id")?;
        let mut ids = Vec::new();
        let mut tasks = Vec::new();
        for spec in specs {
            // An id has no more than 255 bytes, and the executor's may have as many.
            let start: String = spec.executor_id.chars().take(40).collect();
            let id = format!("{start}-task-{}", COUNT.fetch_add(1, Ordering::Relaxed));
            tasks.push(spec.task(&framework_id, &id, &offer["agent_id"]));
            ids.push(id);
        }
        self.shared.call(json!({
            "type": "ACCEPT",
            "accept": {
                "offer_ids": [offer["id"]],
                "operations": [{ "type": "LAUNCH", "launch": { "task_infos": tasks } }],
                "filters": { "refuse_seconds": 0.0 },
            },
        }))?;
        Ok(ids)
    }

    /// Gives back the offers it holds, for long enough that another framework gets
    /// them.
    pub fn release_offers(&self) -> Result<()> {
        self.decline(600.0)
    }

    fn decline(&self, refuse_seconds: f64) -> Result<()> {
        let offers = std::mem::take(&mut self.shared.lock().offers);
        if offers.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = offers.iter().map(|offer| &offer["id"]).collect();
        self.shared.call(json!({
            "type": "DECLINE",
            "decline": { "offer_ids": ids, "filters": { "refuse_seconds": refuse_seconds } },
        }))?;
        self.shared.lock().declined = offers.into_iter().next_back();
        Ok(())
    }

    /// Asks the executor to kill a task.
    pub fn kill(&self, task_id: &str) -> Result<()> {
        self.shared
            .call(json!({ "type": "KILL", "kill": { "task_id": { "value": task_id } } }))
    }

    /// All updates so far, in the order of arrival.
    pub fn updates(&self) -> Vec<Update> {
        self.shared.lock().updates.clone()
    }

    pub fn wait_terminal(&self, task_id: &str, timeout: Duration) -> Result<Update> {
        self.wait_update(task_id, "a terminal state", timeout, Update::is_terminal)
    }

    /// Waits for the executor to say that its pod is up.
    pub fn wait_running(&self, task_id: &str, timeout: Duration) -> Result<Update> {
        let update = self.wait_update(task_id, "TASK_RUNNING", timeout, |update| {
            update.state == "TASK_RUNNING" || update.is_terminal()
        })?;
        ensure!(!update.is_terminal(), "the task ended: {update:?}");
        Ok(update)
    }

    /// Goes away without a word, as a crashed scheduler does: nothing is
    /// acknowledged any more, and the master keeps the framework for as long as
    /// it allowed for its failover.
    pub fn abandon(mut self) {
        self.leave();
    }

    fn wait_update(
        &self,
        task_id: &str,
        state: &str,
        timeout: Duration,
        fits: impl Fn(&Update) -> bool,
    ) -> Result<Update> {
        wait::until(timeout, format_args!("{state} of {task_id}"), || {
            let state = self.shared.lock();
            state
                .updates
                .iter()
                .find(|update| update.task_id == task_id && fits(update))
                .cloned()
        })
        .with_context(|| format!("updates: {:?}", self.updates()))
    }

    /// Ends the thread; true if it was still there.
    fn leave(&mut self) -> bool {
        let Some(thread) = self.thread.take() else {
            return false;
        };
        {
            let mut state = self.shared.lock();
            state.leaving = true;
            if let Some(connection) = &state.connection {
                connection.closer.close();
            }
        }
        // A master that hangs may keep it in a call; that ends by itself.
        let ended = wait::shielded(|| {
            wait::until(END, "the framework's thread", || {
                thread.is_finished().then_some(())
            })
        });
        if ended.is_ok() && thread.join().is_err() {
            eprintln!("the framework's thread panicked");
        }
        true
    }
}

impl Drop for Framework {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // The master may be gone, and the framework with it.
            let _ = self.shared.call(json!({ "type": "TEARDOWN" }));
            self.leave();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: subscribes until told to leave.
    fn run(&self) {
        while !self.lock().leaving {
            if let Err(error) = self.subscribe() {
                self.lock().error = Some(format!("{error:#}"));
            }
            let _ = wait::until(RETRY, "leaving", || self.lock().leaving.then_some(()));
        }
    }

    fn subscribe(&self) -> Result<()> {
        let body = self.with_framework_id(json!({
            "type": "SUBSCRIBE",
            "subscribe": { "framework_info": self.framework_info() },
        }));
        let events = Subscription::open(&self.endpoint, SCHEDULER, &body, Some(SILENCE))?;
        self.lock().connection = Some(Connection {
            stream: events
                .stream_id()
                .context("a stream without id")?
                .to_owned(),
            closer: events.closer()?,
        });
        let ended = self.follow(events);
        let mut state = self.lock();
        state.connection = None;
        state.offers.clear();
        ended
    }

    fn follow(&self, events: Subscription) -> Result<()> {
        for event in events {
            match event["type"].as_str() {
                Some("SUBSCRIBED") => {
                    let id = value_of(&event["subscribed"]["framework_id"]);
                    self.lock().framework_id = id;
                }
                Some("OFFERS") => {
                    let offers = event["offers"]["offers"].as_array().cloned();
                    self.lock().offers.extend(offers.unwrap_or_default());
                }
                Some("RESCIND") => {
                    let id = &event["rescind"]["offer_id"];
                    self.lock().offers.retain(|offer| &offer["id"] != id);
                }
                Some("UPDATE") => self.take_update(&event["update"]["status"])?,
                Some("ERROR") => self.lock().error = Some(event.to_string()),
                _ => {}
            }
            if self.lock().leaving {
                break;
            }
        }
        Ok(())
    }

    fn take_update(&self, status: &Value) -> Result<()> {
        let text = |name: &str| status[name].as_str().map(str::to_owned);
        self.lock().updates.push(Update {
            task_id: value_of(&status["task_id"]).unwrap_or_default(),
            state: text("state").unwrap_or_default(),
            reason: text("reason"),
            message: text("message"),
            received: Instant::now(),
        });
        // Those that the master makes up want no acknowledgement.
        let Some(uuid) = status.get("uuid") else {
            return Ok(());
        };
        self.call(json!({
            "type": "ACKNOWLEDGE",
            "acknowledge": {
                "agent_id": status["agent_id"],
                "task_id": status["task_id"],
                "uuid": uuid,
            },
        }))
    }

    fn call(&self, body: Value) -> Result<()> {
        let stream = match &self.lock().connection {
            Some(connection) => connection.stream.clone(),
            None => bail!("the framework is not subscribed"),
        };
        api::call(
            &self.endpoint,
            SCHEDULER,
            Some(&stream),
            &self.with_framework_id(body),
        )
    }

    fn with_framework_id(&self, mut body: Value) -> Value {
        if let Some(id) = &self.lock().framework_id {
            body["framework_id"] = json!({ "value": id });
            if body["type"] == "SUBSCRIBE" {
                body["subscribe"]["framework_info"]["id"] = json!({ "value": id });
            }
        }
        body
    }

    fn framework_info(&self) -> Value {
        json!({
            "user": "root",
            "name": "cleanup-tests",
            "roles": ["*"],
            "capabilities": [{ "type": "MULTI_ROLE" }],
            "checkpoint": self.checkpoint,
            "failover_timeout": if self.checkpoint { 3600.0 } else { 0.0 },
        })
    }
}

impl State {
    fn take_offer(&mut self, specs: &[ExecutorSpec]) -> Option<Value> {
        let fits = |offer| ExecutorSpec::fit(specs, offer);
        let index = self.offers.iter().position(fits)?;
        Some(self.offers.swap_remove(index))
    }
}

/// The text in `{ "value": … }`.
fn value_of(id: &Value) -> Option<String> {
    id["value"].as_str().map(str::to_owned)
}
