//! A **fault-injecting proxy** in front of a real dockerd: whoever connects to its
//! socket talks to that dockerd, except where a test wants a fault.
//!
//! A real dockerd cannot be made to answer 500 to the third stop, or to break a
//! connection half-way through one answer. Everything else is its own: requests
//! and answers pass unchanged, over connections that stay open.

mod http;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::docker::Dockerd;
use crate::scratch::Scratch;
use crate::wait;
use http::{Answer, Request};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Ping,
    /// `GET /containers/json`
    List,
    Inspect,
    Stop,
    Kill,
    Remove,
    Events,
    Other,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is passed on after some time.
    Delay(Duration),
    /// It is answered with this status, and never gets to dockerd.
    Refuse(u16),
    /// The connection ends before dockerd gets it.
    CutBefore,
    /// dockerd does what it is asked; the connection ends instead of an answer.
    CutAfter,
    /// dockerd does what it is asked; the connection ends in the middle of its
    /// answer.
    CutWithin,
    /// Nothing happens until the rule is [withdrawn](DockerProxy::heal); then it
    /// is passed on.
    Hang,
}

/// Which requests have a fault. The first rule that fits a request counts.
#[derive(Debug, Clone)]
pub struct Rule {
    kind: Kind,
    container: Option<String>,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Every request of a kind, from now on.
    pub fn every(kind: Kind, fault: Fault) -> Self {
        Self {
            kind,
            container: None,
            times: usize::MAX,
            fault,
        }
    }

    /// The next `times` requests of a kind.
    pub fn next(times: usize, kind: Kind, fault: Fault) -> Self {
        Self {
            times,
            ..Self::every(kind, fault)
        }
    }

    /// Only requests about the container with this full id.
    pub fn about(self, id: &str) -> Self {
        Self {
            container: Some(id.to_owned()),
            ..self
        }
    }
}

/// A request that came, in the order of coming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    /// As the path names it: the full id, when the daemon under test asks.
    pub container: Option<String>,
    pub fault: Option<Fault>,
    /// The status that the client was sent, once it was.
    pub answered: Option<u16>,
    /// How many requests had come by then.
    pub came_before_the_answer: usize,
}

/// One per scratch. Dropped before its dockerd, and after its clients or before:
/// it ends their connections.
#[derive(Debug)]
pub struct DockerProxy {
    socket: PathBuf,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: PathBuf,
    state: Mutex<State>,
    /// Rules were withdrawn, or the proxy ends.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Both ends of every connection, to end them.
    connections: HashMap<usize, Connection>,
    next: usize,
    /// Containers that dockerd seems to be stuck with.
    stuck: BTreeSet<String>,
    /// How often rules were withdrawn.
    healed: usize,
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    client: UnixStream,
    upstream: Option<UnixStream>,
    /// What it is busy with.
    kind: Option<Kind>,
}

impl Connection {
    fn end(&self) {
        for stream in [Some(&self.client), self.upstream.as_ref()]
            .into_iter()
            .flatten()
        {
            // The other side was faster.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl DockerProxy {
    pub fn start(scratch: &Scratch, docker: &Dockerd) -> Result<Self> {
        let socket = scratch.path().join("proxy.sock");
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("at {}", socket.display()))?;
        let shared = Arc::new(Shared {
            upstream: docker.socket(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let listening = thread::spawn(move || listen(&listener, &serving));
        Ok(Self {
            socket,
            shared,
            listening: Some(listening),
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn add(&self, rule: Rule) {
        self.shared.lock().rules.push(rule);
    }

    /// From now on dockerd seems to be stuck with a container, as a real one is at
    /// times after a kill -9 in the middle of a restart (Docker 20.10): it says that
    /// the container restarts, has no process for it, and refuses to stop it. What
    /// is asked is done all the same. Until [`Self::heal`].
    pub fn stick(&self, id: &str) {
        self.shared.lock().stuck.insert(id.to_owned());
    }

    /// Withdraws all rules: what hangs goes on.
    pub fn heal(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.stuck.clear();
        state.healed += 1;
        self.shared.changed.notify_all();
    }

    /// Ends the connections that a request of this kind is under way on.
    pub fn cut(&self, kind: Kind) {
        let state = self.shared.lock();
        let busy = state
            .connections
            .values()
            .filter(|connection| connection.kind == Some(kind));
        busy.for_each(Connection::end);
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Those of a kind.
    pub fn seen_of(&self, kind: Kind) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.kind == kind);
        seen
    }

    /// How many requests had a fault.
    pub fn faults(&self) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.fault.is_some())
            .count()
    }

    /// Waits until `wanted` is true of what came.
    pub fn wait(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&[Seen]) -> bool,
    ) -> Result<()> {
        wait::until(limit, what, || wanted(&self.seen()).then_some(()))
            .with_context(|| format!("{:?}", self.seen()))
    }
}

impl Drop for DockerProxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.ended = true;
            state.connections.values().for_each(Connection::end);
            self.shared.changed.notify_all();
        }
        // Wakes the thread that accepts, which then sees that this is the end.
        let _ = UnixStream::connect(&self.socket);
        if let Some(listening) = self.listening.take()
            && listening.join().is_err()
        {
            eprintln!("the proxy panicked");
        }
        let _ = fs::remove_file(&self.socket);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request and says what becomes of it.
    fn judge(&self, connection: usize, request: &Request) -> (usize, Option<Fault>, usize) {
        let (kind, container) = request.target();
        let mut state = self.lock();
        let rule = state.rules.iter_mut().find(|rule| {
            rule.times > 0
                && rule.kind == kind
                && (rule.container.is_none() || rule.container == container)
        });
        let fault = rule.map(|rule| {
            rule.times -= usize::from(rule.times < usize::MAX);
            rule.fault
        });
        state.seen.push(Seen {
            kind,
            container,
            fault,
            answered: None,
            came_before_the_answer: 0,
        });
        if let Some(connection) = state.connections.get_mut(&connection) {
            connection.kind = Some(kind);
        }
        (state.seen.len() - 1, fault, state.healed)
    }

    /// What dockerd answers when it is stuck with a container; `None`: this answer
    /// is not about one.
    fn stuck(
        &self,
        request: &Request,
        answer: &Answer,
        docker: &mut impl BufRead,
    ) -> io::Result<Option<Vec<u8>>> {
        let stuck = self.lock().stuck.clone();
        let (kind, container) = request.target();
        let is_stuck = container.is_some_and(|id| stuck.contains(&id));
        if request.asks_for_running() && !stuck.is_empty() {
            let changed = answer.changed(docker, |listed| {
                if let Some(listed) = listed.as_array_mut() {
                    listed.retain(|one| !one["Id"].as_str().is_some_and(|id| stuck.contains(id)));
                    listed.extend(stuck.iter().map(|id| json!({ "Id": id })));
                }
            });
            return changed.map(Some);
        }
        match kind {
            Kind::Stop if is_stuck => {
                // What it says itself is read, so that the next answer can be.
                answer.pass_body(docker, &mut io::sink())?;
                let message = "tried to kill container, but did not receive an exit event";
                Ok(Some(http::refusal(500, message).into_bytes()))
            }
            Kind::Inspect if is_stuck => answer
                .changed(docker, |inspected| {
                    let state = &mut inspected["State"];
                    state["Status"] = json!("restarting");
                    state["Running"] = json!(true);
                    state["Restarting"] = json!(true);
                    state["Pid"] = json!(0);
                })
                .map(Some),
            _ => Ok(None),
        }
    }

    fn answered(&self, connection: usize, request: usize, status: u16) {
        let mut state = self.lock();
        let came = state.seen.len();
        if let Some(seen) = state.seen.get_mut(request) {
            seen.answered = Some(status);
            seen.came_before_the_answer = came;
        }
        if let Some(connection) = state.connections.get_mut(&connection) {
            connection.kind = None;
        }
    }

    /// Waits until the rules that were there at `healed` are withdrawn, or for no
    /// longer than `limit`.
    fn pause(&self, healed: usize, limit: Option<Duration>) {
        let start = Instant::now();
        let mut state = self.lock();
        while !state.ended && (limit.is_some() || state.healed == healed) {
            state = match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
                Some(Duration::ZERO) => return,
                Some(left) => {
                    let woken = self.changed.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let woken = self.changed.wait(state);
                    woken.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }
}

fn listen(listener: &UnixListener, shared: &Arc<Shared>) {
    let mut serving = Vec::new();
    for client in listener.incoming() {
        if shared.lock().ended {
            break;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        serving.push(thread::spawn(move || {
            let Ok(end) = client.try_clone() else { return };
            let number = {
                let mut state = shared.lock();
                state.next += 1;
                let number = state.next;
                let connection = Connection {
                    client: end,
                    upstream: None,
                    kind: None,
                };
                if state.ended {
                    connection.end();
                }
                state.connections.insert(number, connection);
                number
            };
            // Broken connections are what this is for.
            let _ = serve(client, number, &shared);
            if let Some(connection) = shared.lock().connections.remove(&number) {
                connection.end();
            }
        }));
    }
    for thread in serving {
        let _ = thread.join();
    }
}

/// Requests of one client, until one side ends the connection.
fn serve(client: UnixStream, number: usize, shared: &Shared) -> io::Result<()> {
    let mut answers = client.try_clone()?;
    let mut requests = BufReader::new(client);
    let mut upstream: Option<BufReader<UnixStream>> = None;
    while let Some(request) = Request::read(&mut requests)? {
        let (seen, fault, healed) = shared.judge(number, &request);
        match fault {
            Some(Fault::Delay(time)) => shared.pause(healed, Some(time)),
            Some(Fault::Hang) => shared.pause(healed, None),
            Some(Fault::CutBefore) => return Ok(()),
            Some(Fault::Refuse(status)) => {
                let refusal = http::refusal(status, "refused by the test's proxy");
                answers.write_all(refusal.as_bytes())?;
                shared.answered(number, seen, status);
                continue;
            }
            Some(Fault::CutAfter | Fault::CutWithin) | None => {}
        }
        let docker = match &mut upstream {
            Some(docker) => docker,
            None => {
                let docker = UnixStream::connect(&shared.upstream)?;
                let mut state = shared.lock();
                if state.ended {
                    return Ok(());
                }
                if let Some(connection) = state.connections.get_mut(&number) {
                    connection.upstream = Some(docker.try_clone()?);
                }
                drop(state);
                upstream.insert(BufReader::new(docker))
            }
        };
        docker.get_mut().write_all(request.bytes())?;
        let answer = Answer::read(docker)?;
        match fault {
            Some(Fault::CutAfter) => {
                // It has been done when it is answered.
                return Ok(());
            }
            Some(Fault::CutWithin) => {
                answers.write_all(&answer.head()[..answer.head().len() / 2])?;
                return Ok(());
            }
            _ => {}
        }
        if let Some(changed) = shared.stuck(&request, &answer, docker)? {
            answers.write_all(&changed)?;
        } else {
            answers.write_all(answer.head())?;
            answer.pass_body(docker, &mut answers)?;
        }
        shared.answered(number, seen, answer.status());
    }
    Ok(())
}
