//! A real Mesos master and agent in this process (`mesos::internal::local`).
//!
//! `mesos-cluster LIB_DIR [MODULES_DIR HOOKS]`; all other settings are the
//! environment's `MESOS_*`, as of `mesos-master` and `mesos-agent`. The working
//! directory of both is `$TMPDIR/mesos/work`, whatever the settings say.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use cleanup_tests::mesos::libmesos::{Address, CxxString, Libmesos, Object, STRING};

const LOAD_MODULES: &str = "_ZN5mesos7modules13ModuleManager4loadERK";
const INITIALIZE_HOOKS: &str = "_ZN5mesos8internal11HookManager10initializeERK";
const NEW_FLAGS: &str = "_ZN5mesos8internal5local5FlagsC1Ev";
const LAUNCH: &str = "_ZN5mesos8internal5local6launchERKNS1_5FlagsEPNS_9allocator9AllocatorE";

/// Where the message of a failed `Try<Nothing>` lies.
const TRY_NOTHING_ERROR: usize = 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (lib_dir, hooks) = match arguments.as_slice() {
        [lib_dir] => (lib_dir, None),
        [lib_dir, modules_dir, hooks] => (lib_dir, Some((modules_dir, hooks))),
        _ => bail!("usage: mesos-cluster LIB_DIR [MODULES_DIR HOOKS]"),
    };
    let mesos = Libmesos::load(Path::new(lib_dir))?;
    if let Some((modules_dir, hooks)) = hooks {
        // As mesos-agent does for --modules_dir and --hooks.
        try_with_string(&mesos, LOAD_MODULES, modules_dir).context("Error loading modules")?;
        try_with_string(&mesos, INITIALIZE_HOOKS, hooks).context("Error installing hooks")?;
    }
    launch(&mesos)?;
    loop {
        thread::park();
    }
}

/// Calls a `Try<Nothing> f(const std::string&)`.
fn try_with_string(mesos: &Libmesos, function: &str, argument: &str) -> Result<()> {
    type Function = unsafe extern "C" fn(Address, Address) -> Address;
    let argument = CxxString::new(argument)?;
    let mut result = Object::new();
    // SAFETY: the type is that of the functions that this is called with.
    let function: Function = unsafe { mesos.function(&format!("{function}{STRING}"))? };
    // SAFETY: memory for the result, and a string that outlives the call.
    unsafe { function(result.address(), argument.address()) };
    // SAFETY: the function wrote its Try<Nothing> there.
    unsafe { result.check_try(TRY_NOTHING_ERROR) }
}

/// `local::launch(local::Flags(), nullptr)`: returns when both run, in threads.
fn launch(mesos: &Libmesos) -> Result<()> {
    type NewFlags = unsafe extern "C" fn(Address);
    type Launch = unsafe extern "C" fn(Address, Address, Address) -> Address;
    let (mut flags, mut master) = (Object::new(), Object::new());
    // SAFETY: the type is that of a constructor without arguments.
    let new_flags: NewFlags = unsafe { mesos.function(NEW_FLAGS)? };
    // SAFETY: memory, large enough for the flags.
    unsafe { new_flags(flags.address()) };
    // SAFETY: returns a PID<Master>; takes const Flags& and Allocator*.
    let launch: Launch = unsafe { mesos.function(LAUNCH)? };
    // SAFETY: memory for the result and constructed flags; null stands for the
    // default allocator.
    unsafe { launch(master.address(), flags.address(), std::ptr::null_mut()) };
    Ok(())
}
