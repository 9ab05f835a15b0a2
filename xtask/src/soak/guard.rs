//! Watches over those that must not be touched, all the time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::pod::Pod;

const LOOK: Duration = Duration::from_millis(200);

/// A thread that notes whatever of the living vanishes.
#[derive(Debug)]
pub(super) struct Guard {
    finish: Arc<AtomicBool>,
    missing: Arc<Mutex<BTreeSet<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    pub(super) fn over(pods: Vec<Pod>) -> Self {
        let finish = Arc::<AtomicBool>::default();
        let missing = Arc::<Mutex<BTreeSet<String>>>::default();
        let thread = thread::spawn({
            let (finish, missing) = (Arc::clone(&finish), Arc::clone(&missing));
            move || {
                while !finish.load(Ordering::Relaxed) {
                    let found = pods.iter().flat_map(Pod::missing);
                    missing
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(found);
                    thread::sleep(LOOK);
                }
            }
        });
        Self {
            finish,
            missing,
            thread: Some(thread),
        }
    }

    /// Everything that was missing at any time, once each.
    pub(super) fn missing(&self) -> BTreeSet<String> {
        let missing = self.missing.lock();
        missing.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the guard panicked");
        }
    }
}
