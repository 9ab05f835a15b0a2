//! Containers appearing in and vanishing from an agent's runtime directory.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, Inotify, WatchMask};
use tokio::sync::mpsc;

use super::{ContainerId, RuntimeDir};

/// How long to wait for a runtime directory that cannot be watched (any more).
const RETRY: Duration = Duration::from_millis(500);

/// A container directory came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeChange {
    /// The agent made it: a container is about to start, or was there before us.
    Appeared(ContainerId),
    /// The agent is done with the container.
    Vanished(ContainerId),
}

/// Reports every change until the receiver is gone. A directory that is missing,
/// unreadable or replaced is waited for and read afresh; nothing is lost by it,
/// since what is there is always compared with what was reported.
pub async fn watch_runtime_dir(dir: RuntimeDir, changes: mpsc::UnboundedSender<RuntimeChange>) {
    let mut known = HashSet::new();
    let mut complained = false;
    while !changes.is_closed() {
        match follow(&dir, &mut known, &changes).await {
            Ok(()) => complained = false,
            // An agent makes it for its first container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tokio::select! {
                    () = until_made(dir.containers()) => {}
                    () = changes.closed() => {}
                }
                continue;
            }
            Err(error) if !complained => {
                tracing::warn!(dir = %dir.containers().display(), %error, "cannot watch the runtime directory; trying on");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = changes.closed() => {}
        }
    }
}

/// Until a directory may have been made: that is tried again after a while anyway.
async fn until_made(dir: &Path) {
    let told = async {
        if told_when_made(dir).await.is_none() {
            std::future::pending::<()>().await;
        }
    };
    let _ = tokio::time::timeout(RETRY, told).await;
}

/// When its parent says that a directory is there. `None`: that cannot be watched.
async fn told_when_made(dir: &Path) -> Option<()> {
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
    inotify.watches().add(dir.parent()?, mask).ok()?;
    let mut events = inotify.into_event_stream(vec![0; 4096]).ok()?;
    // Watch first, look second.
    while !dir.try_exists().ok()? {
        events.next().await?.ok()?;
    }
    Some(())
}

/// Watches until the directory itself goes away or events were lost.
async fn follow(
    dir: &RuntimeDir,
    known: &mut HashSet<ContainerId>,
    changes: &mpsc::UnboundedSender<RuntimeChange>,
) -> io::Result<()> {
    let inotify = Inotify::init()?;
    inotify.watches().add(
        dir.containers(),
        WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR,
    )?;
    // Watch first, look second: what happens in between is seen twice, not never.
    let present: HashSet<ContainerId> = dir.list()?.into_iter().collect();
    for gone in known.difference(&present) {
        let _ = changes.send(RuntimeChange::Vanished(*gone));
    }
    for new in present.difference(known) {
        let _ = changes.send(RuntimeChange::Appeared(*new));
    }
    *known = present;

    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    loop {
        let event = tokio::select! {
            event = events.next() => match event {
                Some(event) => event?,
                None => return Ok(()),
            },
            () = changes.closed() => return Ok(()),
        };
        if event.mask.intersects(
            EventMask::Q_OVERFLOW
                | EventMask::DELETE_SELF
                | EventMask::MOVE_SELF
                | EventMask::IGNORED,
        ) {
            return Ok(());
        }
        let Some(container) = event
            .name
            .as_deref()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        let appeared = event
            .mask
            .intersects(EventMask::CREATE | EventMask::MOVED_TO);
        let change = if appeared {
            known.insert(container)
        } else {
            known.remove(&container)
        };
        if change {
            let _ = changes.send(if appeared {
                RuntimeChange::Appeared(container)
            } else {
                RuntimeChange::Vanished(container)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn the_directory_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("containers");
        let told = tokio::spawn({
            let dir = dir.clone();
            async move { told_when_made(&dir).await }
        });
        fs::write(temp.path().join("something else"), "").unwrap();
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        fs::create_dir(&dir).unwrap();
        assert_eq!(told.await.unwrap(), Some(()));
        // It is there already, or there is nothing to watch.
        assert_eq!(told_when_made(&dir).await, Some(()));
        let nowhere = temp.path().join("nowhere/containers");
        assert_eq!(told_when_made(&nowhere).await, None);
        until_made(&nowhere).await;
    }

    #[tokio::test]
    async fn reports_what_was_there_what_comes_and_what_goes() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::new(temp.path());
        let [a, b]: [ContainerId; 2] = [
            "11111111-2222-3333-4444-555555555555",
            "aaaaaaaa-2222-3333-4444-555555555555",
        ]
        .map(|id| id.parse().unwrap());
        fs::create_dir_all(dir.container(a)).unwrap();
        let (sender, mut changes) = mpsc::unbounded_channel();
        let watch = tokio::spawn(watch_runtime_dir(dir.clone(), sender));
        assert_eq!(changes.recv().await, Some(RuntimeChange::Appeared(a)));
        fs::create_dir(dir.container(b)).unwrap();
        assert_eq!(changes.recv().await, Some(RuntimeChange::Appeared(b)));
        fs::create_dir(dir.containers().join("garbage")).unwrap();
        fs::remove_dir(dir.container(a)).unwrap();
        assert_eq!(changes.recv().await, Some(RuntimeChange::Vanished(a)));
        // The whole directory is replaced.
        fs::remove_dir_all(dir.containers()).unwrap();
        assert_eq!(changes.recv().await, Some(RuntimeChange::Vanished(b)));
        fs::create_dir_all(dir.container(a)).unwrap();
        assert_eq!(changes.recv().await, Some(RuntimeChange::Appeared(a)));
        drop(changes);
        watch.await.unwrap();
    }
}
