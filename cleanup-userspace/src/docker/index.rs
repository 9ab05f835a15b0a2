//! The containers of this host that run, kept current from Docker's events, so
//! that a dead run's pod is known without a question.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ContainerInfo, JoinKey, RunScope, exact_key};

/// Cheap to clone: all clones are one index.
#[derive(Debug, Clone, Default)]
pub struct Index(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Containers that may run, by id. Immutable facts: never stale.
    known: HashMap<String, Arc<ContainerInfo>>,
    running: HashSet<String>,
}

impl Index {
    pub fn insert(&self, info: ContainerInfo, running: bool) {
        let mut inner = self.lock();
        if running {
            inner.running.insert(info.id.clone());
        }
        inner.known.insert(info.id.clone(), Arc::new(info));
    }

    pub fn get(&self, id: &str) -> Option<Arc<ContainerInfo>> {
        self.lock().known.get(id).cloned()
    }

    /// It ended; its facts are kept until it is removed or forgotten.
    pub fn ended(&self, id: &str) {
        self.lock().running.remove(id);
    }

    pub fn removed(&self, id: &str) {
        let mut inner = self.lock();
        inner.running.remove(id);
        inner.known.remove(id);
    }

    /// Takes over what Docker listed, and forgets what does not run (any more).
    pub fn replace_running(&self, ids: &[String]) {
        let mut inner = self.lock();
        inner.running = ids.iter().cloned().collect();
        let Inner { known, running } = &mut *inner;
        known.retain(|id, _| running.contains(id));
    }

    /// The running containers that a run-exact key joins to a run.
    pub fn pod_of(&self, run: &RunScope<'_>) -> Vec<(String, JoinKey)> {
        let inner = self.lock();
        inner
            .running
            .iter()
            .filter_map(|id| Some((id.clone(), exact_key(inner.known.get(id)?, run)?)))
            .collect()
    }

    pub fn running(&self) -> Vec<Arc<ContainerInfo>> {
        let inner = self.lock();
        inner
            .running
            .iter()
            .filter_map(|id| inner.known.get(id).cloned())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one step: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
