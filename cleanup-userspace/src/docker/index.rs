//! The containers of this host that run, kept current from Docker's events, so
//! that a dead run's pod is known without a question.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Candidate, ContainerInfo, candidate};
use crate::mesos::ContainerId;

/// How long Docker may take to notice that a container's first process has ended. After
/// hundreds at once it is some seconds.
const LATE: Duration = Duration::from_secs(30);
/// How long a container whose inspect hangs is not asked for again.
const HUNG: Duration = Duration::from_secs(60);

/// Cheap to clone: all clones are one index.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Facts that never change, by id, of every container that may run.
    known: HashMap<String, Arc<ContainerInfo>>,
    /// Ids of the known ones, by the runs that they may be joined to.
    by_run: HashMap<ContainerId, HashSet<String>>,
    /// Those that may be joined to any.
    by_any_run: HashSet<String>,
    /// Those that run, with the change that told.
    running: HashMap<String, u64>,
    changes: u64,
    hung: HashMap<String, Instant>,
    /// Those that Docker says run, and that were found to have nothing that could.
    hollow: HashSet<String>,
    /// First processes of the known ones, as far as Docker has told.
    processes: HashMap<String, u32>,
    /// Those whose first process was seen to end, and when that or Docker's word for it
    /// came: it may list them for a while.
    dead: HashMap<String, Dead>,
}

#[derive(Debug, Clone, Copy)]
struct Dead {
    since: Instant,
    /// Docker has told of it.
    is_told: bool,
}

/// A moment in the index's life.
#[derive(Debug, Clone, Copy)]
pub struct Mark(u64);

impl Index {
    pub fn insert(&self, info: Arc<ContainerInfo>, running: bool) {
        let mut inner = self.lock();
        inner.changes += 1;
        let change = inner.changes;
        if running {
            inner.running.insert(info.id.clone(), change);
            inner.hollow.remove(&info.id);
            inner.dead.remove(&info.id);
        }
        inner.hung.remove(&info.id);
        inner.forget(&info.id.clone());
        inner.learn(info);
    }

    pub fn get(&self, id: &str) -> Option<Arc<ContainerInfo>> {
        self.lock().known.get(id).cloned()
    }

    pub fn runs(&self, id: &str) -> bool {
        self.lock().running.contains_key(id)
    }

    /// It ended; its facts are kept until it is removed or forgotten.
    pub fn ended(&self, id: &str) {
        self.lock().running.remove(id);
    }

    /// Docker tells of its end. If that is no news, a list that was asked for before may
    /// still come, with the container in it.
    pub fn died(&self, id: &str) {
        let mut inner = self.lock();
        inner.running.remove(id);
        inner.processes.remove(id);
        if let Some(dead) = inner.dead.get_mut(id) {
            *dead = Dead {
                since: Instant::now(),
                is_told: true,
            };
        }
    }

    pub fn removed(&self, id: &str) {
        let mut inner = self.lock();
        inner.running.remove(id);
        inner.dead.remove(id);
        inner.forget(id);
        inner.hung.remove(id);
        inner.hollow.remove(id);
    }

    /// Docker says that it runs, and nothing of it does. It counts as ended, whatever
    /// Docker lists, until it is told to have started or has a process again.
    pub fn is_found_hollow(&self, id: &str) {
        let mut inner = self.lock();
        inner.running.remove(id);
        inner.hollow.insert(id.to_owned());
    }

    pub fn is_hollow(&self, id: &str) -> bool {
        self.lock().hollow.contains(id)
    }

    /// What Docker says of its first process.
    pub fn has_process(&self, id: &str, pid: Option<u32>) {
        let mut inner = self.lock();
        match pid {
            Some(pid) if inner.known.contains_key(id) => {
                inner.processes.insert(id.to_owned(), pid);
            }
            _ => {
                inner.processes.remove(id);
            }
        }
    }

    pub fn first_process(&self, id: &str) -> Option<u32> {
        self.lock().processes.get(id).copied()
    }

    /// Its first process was seen to end, and with it all others: the kernel sees to
    /// that. It counts as ended, whatever Docker lists for a while, until it is told to
    /// have started.
    pub fn process_ended(&self, id: &str) {
        let mut inner = self.lock();
        inner.running.remove(id);
        inner.processes.remove(id);
        let dead = Dead {
            since: Instant::now(),
            is_told: false,
        };
        inner.dead.insert(id.to_owned(), dead);
    }

    /// What was seen of an earlier life of it does not hold any more.
    pub fn starts(&self, id: &str) {
        let mut inner = self.lock();
        inner.dead.remove(id);
        inner.processes.remove(id);
    }

    /// Whether its first process was seen to end, and Docker may not have noticed yet.
    pub fn is_dead(&self, id: &str) -> bool {
        self.lock().is_dead(id)
    }

    /// How many ends Docker has yet to notice.
    pub fn untold(&self) -> usize {
        let inner = self.lock();
        let dead = inner.dead.values();
        dead.filter(|dead| dead.is_fresh() && !dead.is_told).count()
    }

    /// What they did meanwhile was not heard.
    pub fn forget_the_dead(&self) {
        self.lock().dead.clear();
    }

    /// Whether it has ended in spite of what Docker lists.
    pub fn counts_as_ended(&self, id: &str) -> bool {
        let inner = self.lock();
        inner.hollow.contains(id) || inner.is_dead(id)
    }

    /// Now, for [`replace_running`](Self::replace_running).
    pub fn mark(&self) -> Mark {
        Mark(self.lock().changes)
    }

    /// Takes over what Docker listed when it was asked at `mark`, and forgets
    /// what does not run (any more). What came after the question stays.
    pub fn replace_running(&self, ids: &[String], mark: Mark) {
        let listed: HashSet<&String> = ids.iter().collect();
        let mut inner = self.lock();
        inner
            .running
            .retain(|id, change| *change > mark.0 || listed.contains(id));
        inner.hollow.retain(|id| listed.contains(id));
        inner.dead.retain(|_, dead| dead.is_fresh());
        for id in ids {
            if !inner.hollow.contains(id) && !inner.is_dead(id) {
                inner.running.entry(id.clone()).or_insert(mark.0);
            }
        }
        let over: Vec<String> = inner
            .known
            .keys()
            .filter(|id| !inner.running.contains_key(*id))
            .cloned()
            .collect();
        for id in over {
            inner.forget(&id);
        }
        let Inner { running, hung, .. } = &mut *inner;
        hung.retain(|id, _| running.contains_key(id));
    }

    pub fn running(&self) -> Vec<Arc<ContainerInfo>> {
        let inner = self.lock();
        inner
            .running
            .keys()
            .filter_map(|id| inner.known.get(id).cloned())
            .collect()
    }

    /// Those that run and that a run-exact key may join to this run.
    pub fn running_that_may_be_of(&self, run: ContainerId) -> Vec<Arc<ContainerInfo>> {
        let inner = self.lock();
        let named = inner.by_run.get(&run).into_iter().flatten();
        named
            .chain(&inner.by_any_run)
            .filter(|id| inner.running.contains_key(*id))
            .filter_map(|id| inner.known.get(id).cloned())
            .collect()
    }

    /// Its inspect did not come back. Returns whether that is news.
    pub fn hangs(&self, id: &str) -> bool {
        self.lock()
            .hung
            .insert(id.to_owned(), Instant::now())
            .is_none()
    }

    /// Whether it is too early to inspect this container again.
    pub fn is_hung(&self, id: &str) -> bool {
        self.lock()
            .hung
            .get(id)
            .is_some_and(|since| since.elapsed() < HUNG)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one step: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dead {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < LATE
    }
}

impl Inner {
    fn is_dead(&self, id: &str) -> bool {
        self.dead.get(id).is_some_and(Dead::is_fresh)
    }

    fn learn(&mut self, info: Arc<ContainerInfo>) {
        match candidate(&info) {
            Candidate::Of(runs) => {
                for run in runs {
                    self.by_run.entry(run).or_default().insert(info.id.clone());
                }
            }
            Candidate::OfAny => {
                self.by_any_run.insert(info.id.clone());
            }
        }
        self.known.insert(info.id.clone(), info);
    }

    fn forget(&mut self, id: &str) {
        self.processes.remove(id);
        let Some(info) = self.known.remove(id) else {
            return;
        };
        let Candidate::Of(runs) = candidate(&info) else {
            self.by_any_run.remove(id);
            return;
        };
        for run in runs {
            if let Some(ids) = self.by_run.get_mut(&run) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_run.remove(&run);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> Arc<ContainerInfo> {
        Arc::new(ContainerInfo {
            id: id.to_owned(),
            ..ContainerInfo::default()
        })
    }

    fn ids(index: &Index) -> Vec<String> {
        let mut ids: Vec<_> = index.running().iter().map(|info| info.id.clone()).collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_process_that_ended_is_no_container_that_runs() {
        let index = Index::default();
        index.insert(container("a"), true);
        index.has_process("a", Some(7));
        index.has_process("b", Some(8));
        assert_eq!(index.first_process("a"), Some(7));
        assert_eq!(index.first_process("b"), None, "nobody told of it");
        index.process_ended("a");
        let list = || index.replace_running(&["a".to_owned()], index.mark());
        list();
        assert!(!index.runs("a") && index.is_dead("a") && index.counts_as_ended("a"));
        assert_eq!(index.untold(), 1);
        assert_eq!(index.first_process("a"), None);
        // Looked at once more before Docker has noticed.
        index.insert(container("a"), false);
        assert!(index.is_dead("a"));
        // Docker has, but not when it was asked for the list that comes now.
        index.died("a");
        list();
        assert!(!index.runs("a") && index.is_dead("a"));
        assert_eq!(index.untold(), 0);
        // Started again.
        index.starts("a");
        assert!(!index.is_dead("a"));
        index.process_ended("a");
        index.insert(container("a"), true);
        assert!(index.runs("a") && !index.is_dead("a"));
        index.process_ended("a");
        index.forget_the_dead();
        list();
        assert!(index.runs("a"));
    }

    #[test]
    fn an_old_list_does_not_undo_what_came_after_the_question() {
        let index = Index::default();
        index.insert(container("old"), true);
        index.insert(container("gone"), true);
        let mark = index.mark();
        index.insert(container("new"), true);
        index.replace_running(&["old".to_owned()], mark);
        assert_eq!(ids(&index), ["new", "old"]);
        index.replace_running(&["old".to_owned()], index.mark());
        assert_eq!(ids(&index), ["old"]);
        assert!(index.get("new").is_none());
        index.ended("old");
        assert_eq!(ids(&index), Vec::<String>::new());
        assert!(index.get("old").is_some());
    }

    #[test]
    fn a_run_is_compared_with_what_may_be_its_own() {
        const RUN: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";
        let index = Index::default();
        let parented = |id: &str, parent: &str| {
            Arc::new(ContainerInfo {
                cgroup_parent: parent.to_owned(),
                ..(*container(id)).clone()
            })
        };
        let placed = |id: &str| {
            let dir = (
                "com.docker.compose.project.working_dir".to_owned(),
                "/d".to_owned(),
            );
            Arc::new(ContainerInfo {
                labels: [dir].into(),
                ..(*container(id)).clone()
            })
        };
        let of_run = || {
            let found = index.running_that_may_be_of(RUN.parse().unwrap());
            let mut ids: Vec<_> = found.iter().map(|info| info.id.clone()).collect();
            ids.sort();
            ids
        };
        index.insert(parented("own", &format!("/mesos/{RUN}")), true);
        index.insert(
            parented("other", "/mesos/11111111-2222-3333-4444-555555555555"),
            true,
        );
        index.insert(container("plain"), true);
        index.insert(placed("anywhere"), true);
        index.insert(parented("created", &format!("/mesos/{RUN}")), false);
        assert_eq!(of_run(), ["anywhere", "own"]);
        index.ended("own");
        assert_eq!(of_run(), ["anywhere"]);
        index.insert(parented("own", &format!("/mesos/{RUN}")), true);
        index.removed("anywhere");
        assert_eq!(of_run(), ["own"]);
        index.replace_running(&[], index.mark());
        assert_eq!(of_run(), Vec::<String>::new());
        // Nothing is kept of what is forgotten.
        let inner = index.lock();
        assert!(inner.by_run.is_empty() && inner.by_any_run.is_empty() && inner.known.is_empty());
    }

    #[test]
    fn a_hollow_container_has_ended_until_it_starts_or_is_no_more_listed() {
        let index = Index::default();
        let listed = ["a".to_owned(), "b".to_owned()];
        let list = |ids: &[String]| index.replace_running(ids, index.mark());
        index.insert(container("a"), true);
        index.is_found_hollow("a");
        assert!(!index.runs("a"));
        list(&listed);
        assert!(index.is_hollow("a") && !index.runs("a") && index.runs("b"));
        // Looked at again, and found as it was.
        index.insert(container("a"), false);
        assert!(index.is_hollow("a") && !index.runs("a"));
        index.insert(container("a"), true);
        assert!(!index.is_hollow("a") && index.runs("a"));
        list(&listed);
        assert!(index.runs("a"));
        index.is_found_hollow("a");
        list(&listed[1..]);
        assert!(!index.is_hollow("a"));
        list(&listed);
        assert!(index.runs("a"));
    }
}
