//! Hand-offs from the Mesos hook module: small files in a directory of root's.
//!
//! docs/hook.md specifies them. A request names a framework and an executor, never
//! a run, and proves nothing: it is a reason to look. Whoever may write into the
//! inbox may make the daemon look at something, and no more.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat,
};
use tokio::sync::mpsc;

use crate::mesos::Identity;
use crate::metrics::{Metrics, RequestOutcome};
use crate::run_dir::open_private;

/// The first line of a request.
const FORMAT: &str = "compose-cleanup-request 1";
const SUFFIX: &str = ".request";
const UNFINISHED: &str = ".tmp-";
/// Before the name of a request that was seen and may not be acted upon yet.
const HELD: &str = ".held-";
/// Where what is refused is put, for an operator to look at.
const REFUSED: &str = "refused";
const LONGEST_FILE: u64 = 20_000;
const LONGEST_ID: usize = 4096;
/// After that an unfinished file belongs to a writer that died.
const ABANDONED: Duration = Duration::from_secs(60);
/// Looked at again without an event: a directory may be replaced.
const RESCAN: Duration = Duration::from_secs(30);

/// "Mesos removed this executor."
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    pub framework_id: OsString,
    pub executor_id: OsString,
}

impl Request {
    /// Whether it is about the executor that a run was one of.
    pub fn names(&self, run: &Identity) -> bool {
        self.framework_id == run.framework_id && self.executor_id == run.executor_id
    }
}

/// A request in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Of the file, in the inbox.
    pub name: String,
    pub request: Request,
}

impl Letter {
    /// Seen by an earlier run that was not to act.
    pub fn is_held(&self) -> bool {
        self.name.starts_with(HELD)
    }
}

/// The name that the hook gave a file.
fn written_as(name: &str) -> &str {
    name.strip_prefix(HELD).unwrap_or(name)
}

/// Why a file was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it is not owned by this daemon's user, or others may write to it")]
    NotOurs,
    #[error("it is larger than a request can be")]
    TooLarge,
    #[error("it is not a request of a version that is known")]
    UnknownFormat,
    #[error("it is cut short, or not what a request looks like")]
    Malformed,
}

/// The directory, opened once: a link put in its place changes nothing.
#[derive(Debug)]
pub struct Inbox {
    path: PathBuf,
    dir: OwnedFd,
    refused: AtomicU64,
}

impl Inbox {
    /// Makes the directory if there is none, for root alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            dir: open_private(path)?,
            refused: AtomicU64::new(0),
        })
    }

    /// Takes every request that lies there, oldest first. Each is given out once.
    pub fn take(&self) -> io::Result<Vec<Request>> {
        let letters = self.read_all()?;
        Ok(letters
            .into_iter()
            .map(|letter| {
                self.remove(&letter.name);
                letter.request
            })
            .collect())
    }

    /// Reads every request that lies there, oldest first, and leaves it there:
    /// [`Self::remove`] what is done. What is no request is put aside.
    pub fn read_all(&self) -> io::Result<Vec<Letter>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.sort_by(|a, b| written_as(a).cmp(written_as(b)));
        let mut letters = Vec::new();
        for name in names {
            if name.starts_with(UNFINISHED) {
                self.remove_abandoned(&name);
            } else if name.ends_with(SUFFIX) && !written_as(&name).starts_with('.') {
                match self.read(&name) {
                    Ok(Ok(request)) => letters.push(Letter { name, request }),
                    Ok(Err(refusal)) => self.put_aside(&name, refusal),
                    // Taken by somebody else meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(letters)
    }

    /// Keeps a request for a later run that may act, under a hidden name: what
    /// waits for new requests to come does not see it.
    pub fn hold(&self, name: &str) {
        if name.starts_with(HELD) {
            return;
        }
        let held = format!("{HELD}{name}");
        if let Err(error) = renameat(&self.dir, name, &self.dir, held.as_str()) {
            tracing::warn!(file = %self.path.join(name).display(), %error, "a request cannot be kept under another name; it stays as it is");
        }
    }

    /// What happens in the very directory that is open, whatever its name leads
    /// to by now.
    fn events(&self) -> io::Result<EventStream<Vec<u8>>> {
        let inotify = Inotify::init()?;
        let own = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.dir.as_fd())
        );
        inotify.watches().add(
            own,
            WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE | WatchMask::DELETE_SELF,
        )?;
        inotify.into_event_stream(vec![0; 4096])
    }

    fn read(&self, name: &str) -> io::Result<Result<Request, Refusal>> {
        // NONBLOCK: a fifo must not hold anybody up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
                return Ok(Err(Refusal::NotAFile));
            }
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Err(Refusal::NotAFile));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            return Ok(Err(Refusal::NotOurs));
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(LONGEST_FILE + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST_FILE {
            return Ok(Err(Refusal::TooLarge));
        }
        Ok(parse(&bytes))
    }

    /// A request is done with.
    pub fn remove(&self, name: &str) {
        if let Err(error) = unlinkat(&self.dir, name, AtFlags::empty()) {
            tracing::debug!(name, %error, "a request that was taken cannot be removed");
        }
    }

    fn remove_abandoned(&self, name: &str) {
        let age = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| crate::process::unix_seconds() - stat.st_mtime as f64);
        if age.is_ok_and(|age| age > ABANDONED.as_secs_f64()) {
            self.remove(name);
        }
    }

    fn put_aside(&self, name: &str, refusal: Refusal) {
        tracing::warn!(
            file = %self.path.join(name).display(),
            aside = %self.path.join(REFUSED).display(),
            "a request in the inbox is refused: {refusal}"
        );
        self.refused.fetch_add(1, Ordering::Relaxed);
        let _ = mkdirat(&self.dir, REFUSED, Mode::RWXU);
        let aside = format!("{REFUSED}/{}", written_as(name));
        if renameat(&self.dir, name, &self.dir, aside.as_str()).is_err() {
            self.remove(name);
        }
    }
}

/// Hands over every request until the receiver is gone.
pub async fn follow_inbox(
    path: PathBuf,
    requests: mpsc::UnboundedSender<Request>,
    metrics: Metrics,
) {
    let mut complained = false;
    while !requests.is_closed() {
        match follow(&path, &requests, &metrics).await {
            Ok(()) => complained = false,
            Err(error) if !complained => {
                complained = true;
                tracing::warn!(inbox = %path.display(), %error, "hook requests cannot be taken; trying on (the kernel's events do not need them)");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(RESCAN) => {}
            () = requests.closed() => {}
        }
    }
}

/// Waits until a request lies in the inbox that is not held.
pub async fn wait_for_request(path: &Path) -> io::Result<()> {
    loop {
        let inbox = Inbox::open(path)?;
        let mut events = inbox.events()?;
        if !inbox.read_all()?.iter().all(Letter::is_held) {
            return Ok(());
        }
        // Nothing for a while: is it still the directory of that name?
        if let Ok(Some(event)) = tokio::time::timeout(RESCAN, events.next()).await {
            event?;
        }
    }
}

/// Until the directory has to be opened anew.
async fn follow(
    path: &Path,
    requests: &mpsc::UnboundedSender<Request>,
    metrics: &Metrics,
) -> io::Result<()> {
    let inbox = Inbox::open(path)?;
    let mut events = inbox.events()?;
    loop {
        let taken = inbox.take();
        for _ in 0..inbox.refused.swap(0, Ordering::Relaxed) {
            metrics.requested(RequestOutcome::Refused);
        }
        for request in taken? {
            let _ = requests.send(request);
        }
        tokio::select! {
            event = events.next() => match event {
                Some(event) => drop(event?),
                None => return Ok(()),
            },
            // Nothing for a while: is it still the directory of that name?
            () = tokio::time::sleep(RESCAN) => return Ok(()),
            () = requests.closed() => return Ok(()),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed)?;
    let mut lines = text
        .strip_suffix("end\n")
        .ok_or(Refusal::Malformed)?
        .lines();
    match lines.next() {
        Some(FORMAT) => {}
        Some(other) if other.starts_with("compose-cleanup-request ") => {
            return Err(Refusal::UnknownFormat);
        }
        _ => return Err(Refusal::Malformed),
    }
    let mut value = |name: &str| {
        let line = lines.next()?;
        line.strip_prefix(name)?.strip_prefix('=')
    };
    let request = Request {
        framework_id: value("framework_id")
            .and_then(unhex)
            .ok_or(Refusal::Malformed)?,
        executor_id: value("executor_id")
            .and_then(unhex)
            .ok_or(Refusal::Malformed)?,
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !value("time_ns").is_some_and(number)
        || !value("agent_pid").is_some_and(number)
        || value("mesos").is_none()
    {
        return Err(Refusal::Malformed);
    }
    if lines.next().is_some() {
        return Err(Refusal::Malformed);
    }
    Ok(request)
}

fn unhex(text: &str) -> Option<OsString> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(2) || bytes.len() > 2 * LONGEST_ID {
        return None;
    }
    let decoded: Option<Vec<u8>> = bytes
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect();
    decoded.map(OsString::from_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn text(framework: &[u8], executor: &[u8]) -> String {
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        format!(
            "{FORMAT}\nframework_id={}\nexecutor_id={}\ntime_ns=1\nagent_pid=2\nmesos=1.11.0\nend\n",
            hex(framework),
            hex(executor)
        )
    }

    fn inbox() -> (tempfile::TempDir, Inbox) {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::open(&dir.path().join("a/inbox")).unwrap();
        (dir, inbox)
    }

    #[test]
    fn takes_what_is_right_and_puts_the_rest_aside() {
        let (_dir, inbox) = inbox();
        let path = |name: &str| inbox.path.join(name);
        fs::write(path("2-1-0.request"), text(b"F", b"second")).unwrap();
        fs::write(path("1-1-0.request"), text(b"F", b"first\n\xff/")).unwrap();
        fs::write(path("3-1-0.request"), &text(b"F", b"cut")[..60]).unwrap();
        fs::write(
            path("4-1-0.request"),
            text(b"F", b"x").replace("request 1", "request 2"),
        )
        .unwrap();
        fs::write(path("5-1-0.request"), vec![b'x'; 30_000]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("6-1-0.request")).unwrap();
        fs::write(path("7-1-0.request"), text(b"F", b"others")).unwrap();
        fs::set_permissions(path("7-1-0.request"), fs::Permissions::from_mode(0o666)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("8-1-0.request"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        fs::write(path(".tmp-9"), "half").unwrap();
        fs::write(path("notes.txt"), "mine").unwrap();

        let taken = inbox.take().unwrap();
        let ids: Vec<_> = taken
            .iter()
            .map(|request| request.executor_id.clone().into_vec())
            .collect();
        assert_eq!(ids, [b"first\n\xff/".to_vec(), b"second".to_vec()]);
        assert_eq!(inbox.take().unwrap(), []);
        assert_eq!(fs::read_dir(path(REFUSED)).unwrap().count(), 6);
        assert!(path(".tmp-9").exists() && path("notes.txt").exists());
        assert!(fs::read_to_string("/etc/passwd").unwrap().contains("root"));
    }

    #[test]
    fn what_is_read_stays_and_what_is_held_is_hidden_but_not_lost() {
        let (_dir, inbox) = inbox();
        let path = |name: &str| inbox.path.join(name);
        fs::write(path("1-1-0.request"), text(b"F", b"first")).unwrap();
        fs::write(path("2-1-0.request"), text(b"F", b"second")).unwrap();
        fs::write(path(".held-3-1-0.request"), "garbage").unwrap();
        let names = || {
            let letters = inbox.read_all().unwrap();
            letters
                .into_iter()
                .map(|letter| letter.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(), ["1-1-0.request", "2-1-0.request"]);
        assert!(path(REFUSED).join("3-1-0.request").exists());
        inbox.hold("1-1-0.request");
        // Still the oldest.
        assert_eq!(names(), [".held-1-1-0.request", "2-1-0.request"]);
        inbox.hold(".held-1-1-0.request");
        inbox.remove("2-1-0.request");
        assert_eq!(names(), [".held-1-1-0.request"]);
        assert_eq!(inbox.take().unwrap()[0].executor_id, "first");
        assert_eq!(inbox.read_all().unwrap(), []);
    }

    #[tokio::test]
    async fn a_held_request_is_not_waited_for_and_a_new_one_is() {
        let (_dir, inbox) = inbox();
        let path = inbox.path.clone();
        fs::write(path.join("1-1-0.request"), text(b"F", b"E")).unwrap();
        inbox.hold("1-1-0.request");
        let waits = tokio::spawn({
            let path = path.clone();
            async move { wait_for_request(&path).await }
        });
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!waits.is_finished());
        fs::write(path.join(".tmp-2"), text(b"F", b"E")).unwrap();
        fs::rename(path.join(".tmp-2"), path.join("2-1-0.request")).unwrap();
        waits.await.unwrap().unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_no_inbox() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Inbox::open(dir.path()).is_err());
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(Inbox::open(&link).is_err());
    }

    #[tokio::test]
    async fn a_request_is_handed_over_when_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox");
        let (sender, mut requests) = mpsc::unbounded_channel();
        let metrics = Metrics::default();
        let follow = tokio::spawn(follow_inbox(path.clone(), sender, metrics.clone()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        fs::write(path.join("0-1-1.request"), "garbage").unwrap();
        fs::write(path.join(".tmp-1"), text(b"F", b"E")).unwrap();
        fs::rename(path.join(".tmp-1"), path.join("1-1-1.request")).unwrap();
        let request = requests.recv().await.unwrap();
        assert_eq!(
            (request.framework_id, request.executor_id),
            ("F".into(), "E".into())
        );
        let counted = "compose_cleanup_inbox_requests_total{outcome=\"refused\"} 1\n";
        let text = metrics.encode().unwrap();
        assert!(text.contains(counted), "{text}");
        drop(requests);
        follow.await.unwrap();
    }

    proptest! {
        #[test]
        fn ids_of_any_bytes_arrive(
            framework in proptest::collection::vec(any::<u8>(), 1..40),
            executor in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let request = parse(text(&framework, &executor).as_bytes()).unwrap();
            prop_assert_eq!(request.framework_id.into_vec(), framework);
            prop_assert_eq!(request.executor_id.into_vec(), executor);
        }

        #[test]
        fn garbage_is_refused_not_believed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn a_truncated_request_is_refused(at in 0usize..100) {
            let whole = text(b"framework", b"executor");
            let cut = at.min(whole.len() - 1);
            prop_assert!(parse(&whole.as_bytes()[..cut]).is_err());
        }
    }
}
