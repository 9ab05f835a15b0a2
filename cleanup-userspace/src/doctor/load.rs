//! The module's own guards, run without an agent: a child process loads that
//! libmesos and has its real ModuleManager and HookManager load and install the
//! module, as the agent does for `--modules_dir` and `--hooks`.
//!
//! In a child, since loading libmesos runs its initialisers, and one that does
//! not fit may end the process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::module::NAME;
use super::{Check, Verdict};

const WHAT: &str = "module load";
/// Loading a release takes 0.1 s.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Starts each line of the module.
const SAYS: &str = "compose-cleanup hook: ";

/// The child's exit statuses.
const REFUSED: u8 = 3;
const FAILED: u8 = 1;

/// Has a child process load the module into this libmesos. `child`: the command
/// line of that, to which the paths are added; `release`: what it should be.
pub fn check(
    child: Command,
    libmesos: &Path,
    module: &Path,
    release: Option<&str>,
    accepts_untested: bool,
) -> Check {
    let check = match run(child, libmesos, module, accepts_untested) {
        Ok(check) => check,
        Err(error) => Check::warning(
            WHAT,
            format!("could not be tried: {error:#}"),
            "the other checks hold without it",
        ),
    };
    match release {
        Some(release)
            if check.verdict == Verdict::Ok
                && !check.detail.contains(&format!("serves Mesos {release} ")) =>
        {
            Check::warning(
                WHAT,
                format!("{}, not {release}", check.detail),
                "is it the right libmesos?",
            )
        }
        _ => check,
    }
}

fn run(
    mut child: Command,
    libmesos: &Path,
    module: &Path,
    accepts_untested: bool,
) -> anyhow::Result<Check> {
    let dir = tempfile::tempdir().context("a directory for the module's description")?;
    let modules = dir.path().join("modules");
    fs::create_dir(&modules).context("a directory for the module's description")?;
    // Switched off: it is loaded, and would write nothing.
    let untested = if accepts_untested { "accept" } else { "refuse" };
    let description = serde_json::json!({ "libraries": [{ "file": module, "modules": [{
        "name": NAME,
        "parameters": [{ "key": "mode", "value": "off" }, { "key": "untested_abi", "value": untested }],
    }] }] });
    fs::write(modules.join("hook.json"), description.to_string())
        .context("the module's description")?;
    let log = dir.path().join("log");
    let output = File::create(&log).context("the child's output")?;
    let mut child = child
        .arg(libmesos)
        .arg(&modules)
        // Mesos listens; nobody is to reach it.
        .env("LIBPROCESS_IP", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("the child's output")?)
        .stderr(output)
        .spawn()
        .context("cannot start the child process")?;
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for the child process")? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the child process did not end within {LIMIT:?}");
        }
        std::thread::sleep(PAUSE);
    };
    let output = fs::read(&log).context("the child's output")?;
    let output = String::from_utf8_lossy(&output);
    let said = output.lines().find_map(|line| line.strip_prefix(SAYS));
    let last = || {
        output
            .lines()
            .last()
            .unwrap_or("nothing was said")
            .to_owned()
    };
    let way_out = "take org_apache_mesos_ComposePodCleanupHook out of --hooks and --modules before \
                   the agent starts (the watcher works without it); docs/hook.md";
    Ok(match (status.code(), status.signal()) {
        (Some(0), _) => Check::ok(
            WHAT,
            said.map_or_else(last, |said| {
                said.trim_end_matches(": switched off (mode=off)")
                    .to_owned()
            }),
        ),
        (Some(code), _) if code == i32::from(REFUSED) => {
            Check::refused(WHAT, said.map_or_else(last, str::to_owned), way_out)
        }
        (None, Some(signal)) => Check::refused(
            WHAT,
            format!(
                "the process that loaded it ended by signal {signal}: {}",
                last()
            ),
            way_out,
        ),
        _ => bail!("{}", last()),
    })
}

/// The child: never returns to whatever the libraries left behind.
pub fn child(libmesos: &Path, modules: &Path) -> ExitCode {
    let outcome = load(libmesos).and_then(|()| install(modules));
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(refusal)) => {
            println!("{refusal}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// For everybody: the module looks for Mesos in the global scope.
fn load(libmesos: &Path) -> anyhow::Result<()> {
    let path = CString::new(libmesos.as_os_str().as_bytes()).context("a path without zeros")?;
    // SAFETY: the path ends with a zero; what its initialisers do is why this is
    // a process of its own.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !library.is_null() {
        return Ok(());
    }
    // SAFETY: takes nothing; null or a string that is valid until the next call.
    let message = unsafe { libc::dlerror() };
    ensure!(!message.is_null(), "cannot load {}", libmesos.display());
    // SAFETY: not null, and it ends with a zero.
    let message = unsafe { CStr::from_ptr(message) };
    bail!(
        "cannot load libmesos: {} (LD_LIBRARY_PATH, as the agent has it?)",
        message.to_string_lossy()
    );
}

/// `const std::string` since GCC 5, to be passed by reference and only read.
#[repr(C)]
struct CxxString {
    data: *const c_char,
    length: usize,
    capacity: [usize; 2],
}

impl CxxString {
    fn new(text: &CStr) -> Self {
        let length = text.count_bytes();
        Self {
            data: text.as_ptr(),
            length,
            capacity: [length, 0],
        }
    }
}

/// Memory for a `Try<Nothing>`: { u32: 0 data, 1 none; …; Option<Error> at 8, whose
/// std::string is at 16 }.
type TryNothing = [u64; 64];

/// `Try<Nothing> f(const std::string&)`: the result's address comes first.
type Function = unsafe extern "C" fn(*mut TryNothing, *const CxxString) -> *mut c_void;

const LOAD: &CStr =
    c"_ZN5mesos7modules13ModuleManager4loadERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
const INITIALIZE: &CStr = c"_ZN5mesos8internal11HookManager10initializeERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";

/// `Ok(Some(…))`: Mesos refused, with this message.
fn install(modules: &Path) -> anyhow::Result<Option<String>> {
    let modules = CString::new(modules.as_os_str().as_bytes())?;
    let name = CString::new(NAME)?;
    for (function, argument) in [(LOAD, &modules), (INITIALIZE, &name)] {
        if let Some(refusal) = call(function, argument)? {
            return Ok(Some(refusal));
        }
    }
    Ok(None)
}

fn call(symbol: &CStr, argument: &CStr) -> anyhow::Result<Option<String>> {
    // SAFETY: the name ends with a zero; null means all libraries of the process.
    let address = unsafe { libc::dlsym(std::ptr::null_mut(), symbol.as_ptr()) };
    ensure!(
        !address.is_null(),
        "this libmesos cannot be asked: it has no {}",
        symbol.to_string_lossy()
    );
    // SAFETY: the symbol is that of such a function, with strings since GCC 5 by
    // its very name.
    let function = unsafe { std::mem::transmute::<*mut c_void, Function>(address) };
    let mut result: TryNothing = [0; 64];
    let argument = CxxString::new(argument);
    // SAFETY: room for the result, and a string that outlives the call.
    unsafe { function(&raw mut result, &raw const argument) };
    // The first word's lower half is data's discriminant.
    if result[0] as c_int == 0 {
        return Ok(None);
    }
    let (data, length) = (result[2], usize::try_from(result[3])?);
    let data = std::ptr::with_exposed_provenance::<u8>(usize::try_from(data)?);
    // SAFETY: the function wrote an Error there: the address of its bytes, then
    // how many.
    let message = unsafe { std::slice::from_raw_parts(data, length) };
    Ok(Some(String::from_utf8_lossy(message).into_owned()))
}
