//! Drives a real libmesos' ModuleManager and HookManager with the hook module.
//!
//! `hook-harness lib=DIR module=FILE [NAME=VALUE]…`
//!
//! | | |
//! |---|---|
//! | `modules_dir=DIR` | load what the JSON files there name, not `module` |
//! | `parameter=KEY=VALUE` | for the module, any number of times; loading by manifest only |
//! | `size=empty`, `typical`, `large` | of the messages; large: each of 1 MB |
//! | `rounds=N` | how often all functions are called |
//! | `only=remove` | … or only slaveRemoveExecutorHook |
//! | `framework=HEX`, `executor=HEX` | ids |
//! | `compare=yes` | own functions with the host's, by a module with test switches |
//! | `times=yes` | how long slaveRemoveExecutorHook takes, and a call that does nothing |
//!
//! Exit status 3: loading was refused, 4: installing was refused.

mod hooks;
mod message;
mod wire;

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::hook::{COMPARE, INSTALL_REFUSED, LOAD_REFUSED, NAME};
use cleanup_tests::mesos::libmesos::{CxxString, Libmesos, STRING};

use hooks::{HOOK_MANAGER, Hooks, Inputs, Size};
use message::{Message, call, garbage};
use wire::bytes;

/// Where the message of a failed `Try<Nothing>` lies.
const TRY_NOTHING_ERROR: usize = 16;

#[derive(Debug)]
struct Options {
    lib: String,
    module: String,
    modules_dir: Option<String>,
    parameters: Vec<(String, String)>,
    size: Size,
    rounds: usize,
    only_remove: bool,
    framework: Vec<u8>,
    executor: Vec<u8>,
    compare: bool,
    times: bool,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            lib: String::new(),
            module: String::new(),
            modules_dir: None,
            parameters: Vec::new(),
            size: Size::Typical,
            rounds: 1,
            only_remove: false,
            framework: b"fw-1".into(),
            executor: "executor one/é".into(),
            compare: false,
            times: false,
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').context("NAME=VALUE")?;
            match (name, value) {
                ("lib", _) => options.lib = value.to_owned(),
                ("module", _) => options.module = value.to_owned(),
                ("modules_dir", _) => options.modules_dir = Some(value.to_owned()),
                ("parameter", _) => {
                    let (key, value) = value.split_once('=').context("parameter=KEY=VALUE")?;
                    options.parameters.push((key.to_owned(), value.to_owned()));
                }
                ("size", "empty") => options.size = Size::Empty,
                ("size", "typical") => options.size = Size::Typical,
                ("size", "large") => options.size = Size::Large,
                ("rounds", _) => options.rounds = value.parse()?,
                ("only", "remove") => options.only_remove = true,
                ("framework", _) => options.framework = unhex(value)?,
                ("executor", _) => options.executor = unhex(value)?,
                ("compare", "yes") => options.compare = true,
                ("times", "yes") => options.times = true,
                _ => bail!("{argument}?"),
            }
        }
        Ok(options)
    }
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|digits| Ok(u8::from_str_radix(std::str::from_utf8(digits)?, 16)?))
        .collect()
}

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    let mesos = Libmesos::load(Path::new(&options.lib))?;
    if let Err(refusal) = load(&mesos, &options)? {
        println!("load refused: {refusal:#}");
        return Ok(ExitCode::from(LOAD_REFUSED as u8));
    }
    if options.compare {
        println!("compared={}", compare(&options.module)?);
    }
    if let Err(refusal) = install(&mesos)? {
        println!("install refused: {refusal:#}");
        return Ok(ExitCode::from(INSTALL_REFUSED as u8));
    }
    let inputs = Inputs {
        size: options.size,
        framework: options.framework,
        executor: options.executor,
    };
    let mut hooks = Hooks::new(&mesos, &inputs)?;
    if options.times {
        hooks.measure(options.rounds)?;
    } else if options.only_remove {
        for _ in 0..options.rounds {
            hooks.remove_executor()?;
        }
    } else {
        for _ in 0..options.rounds {
            hooks.all()?;
        }
    }
    println!("rounds={}", options.rounds);
    Ok(ExitCode::SUCCESS)
}

/// As mesos-agent does for `--modules` or `--modules_dir`. The inner result is
/// ModuleManager's.
fn load(mesos: &Libmesos, options: &Options) -> Result<Result<()>> {
    const MANAGER: &str = "_ZN5mesos7modules13ModuleManager";
    let mut result = garbage();
    if let Some(dir) = &options.modules_dir {
        let dir = CxxString::new(dir)?;
        let load = format!("{MANAGER}4loadERK{STRING}");
        // SAFETY: Try<Nothing> load(const std::string&)
        unsafe { call(mesos, &load, &[result.address(), dir.address()])? };
    } else {
        let parameter =
            |(key, value): &(String, String)| bytes(2, [bytes(1, key), bytes(2, value)].concat());
        let mut module = bytes(1, NAME);
        module.extend(options.parameters.iter().flat_map(parameter));
        let library = [bytes(1, &options.module), bytes(3, module)].concat();
        let mut modules = Message::new(mesos, "7Modules", &bytes(1, library))?;
        let load = format!("{MANAGER}12loadManifestERKNS_7ModulesE");
        // SAFETY: Try<Nothing> loadManifest(const Modules&)
        unsafe { call(mesos, &load, &[result.address(), modules.address()])? };
    }
    // SAFETY: the function wrote its Try<Nothing> there.
    Ok(unsafe { result.check_try(TRY_NOTHING_ERROR) })
}

/// As mesos-agent does for `--hooks`. The inner result is HookManager's.
fn install(mesos: &Libmesos) -> Result<Result<()>> {
    let mut result = garbage();
    let name = CxxString::new(NAME)?;
    let initialize = format!("{HOOK_MANAGER}10initializeERK{STRING}");
    // SAFETY: Try<Nothing> initialize(const std::string&)
    unsafe { call(mesos, &initialize, &[result.address(), name.address()])? };
    // SAFETY: the function wrote its Try<Nothing> there.
    Ok(unsafe { result.check_try(TRY_NOTHING_ERROR) })
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Calls a module's own comparison; modules are no part of the global scope.
fn compare(module: &str) -> Result<c_int> {
    const RTLD_LAZY: c_int = 1;
    let (module, name) = (CString::new(module)?, CString::new(COMPARE)?);
    // SAFETY: the path ends with a zero; the library is loaded already.
    let library = unsafe { dlopen(module.as_ptr(), RTLD_LAZY) };
    ensure!(!library.is_null(), "the module cannot be opened again");
    // SAFETY: a library, and a name that ends with a zero.
    let function = unsafe { dlsym(library, name.as_ptr()) };
    ensure!(!function.is_null(), "a module without test switches");
    // SAFETY: so it is defined in cleanup-hook.
    let function =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(function) };
    Ok(function())
}
