//! A Mesos hook module that tells the clean-up daemon of dead executors.
//!
//! One file for Mesos 1.0 to 1.11, built without Mesos' headers: what differs
//! between the releases is in [`abi`] and is checked against the running one, in
//! [`host`], before anything is installed. `docs/hook.md` is for its users.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
compile_error!(
    "x86_64 Linux with glibc only: on other processors C++ returns objects in another way \
     (aarch64: through x8), and no Mesos release for them could be tested with"
);
#[cfg(not(panic = "unwind"))]
compile_error!("a panic must not end the Mesos agent: build this with panic = \"unwind\"");

mod abi;
#[cfg(not(test))]
mod glibc;
mod guard;
mod handoff;
mod host;
mod proto;
mod request;
mod settings;
#[cfg(feature = "test-switches")]
mod switches;

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use abi::Address;
use guard::{caught, say};
use handoff::Handoff;
use host::Host;
use settings::Settings;

/// `mesos::modules::Module<Hook>`: include/mesos/module.hpp, module/hook.hpp.
#[repr(C)]
#[derive(Debug)]
pub struct Module {
    module_api_version: Text,
    /// Mesos refuses the module unless this is its own version.
    mesos_version: AtomicPtr<c_char>,
    kind: Text,
    author_name: Text,
    author_email: Text,
    description: Text,
    compatible: extern "C" fn() -> bool,
    create: extern "C" fn(Address) -> *mut Hook,
}

const _: () = assert!(size_of::<Module>() == 64);

/// A `const char*` to a literal.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
struct Text(*const c_char);

// SAFETY: what it refers to is constant.
unsafe impl Sync for Text {}

impl Text {
    const fn new(text: &'static CStr) -> Self {
        Self(text.as_ptr())
    }
}

/// A version that no Mesos has: refused, with a message.
const UNKNOWN_VERSION: &CStr = c"0.0.0";

const NO_VERSION: &str = "the version of the program that opened this module cannot be told (no \
                          Mesos, one linked statically, or one built with libc++)";

/// What Mesos finds by the module's name.
#[unsafe(no_mangle)]
pub static org_apache_mesos_ComposePodCleanupHook: Module = Module {
    module_api_version: Text::new(c"2"),
    mesos_version: AtomicPtr::new(UNKNOWN_VERSION.as_ptr().cast_mut()),
    kind: Text::new(c"Hook"),
    author_name: Text::new(c"compose-cleanup"),
    author_email: Text::new(c"none"),
    description: Text::new(c"Hands dead executors to the compose-cleanup daemon"),
    compatible,
    create,
};

/// Runs while Mesos opens the library, before it looks at the descriptor.
#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    caught((), || {
        guard::report_panics();
        match host::running_version().and_then(|text| CString::new(text).ok()) {
            Some(version) => {
                // Mesos reads it for as long as the process lives.
                let version = version.into_raw();
                let module = &org_apache_mesos_ComposePodCleanupHook;
                module.mesos_version.store(version, Ordering::Release);
            }
            None => refuse(NO_VERSION),
        }
    });
}

/// Mesos asks this once the versions agree, before it has parameters for us.
extern "C" fn compatible() -> bool {
    caught(false, || match probe() {
        Ok(_) => true,
        Err(why) => {
            refuse(&why);
            false
        }
    })
}

fn probe() -> Result<(String, Host), String> {
    #[cfg(feature = "test-switches")]
    switches::be_late();
    let version = host::running_version().ok_or(NO_VERSION)?;
    let host = Host::probe(&version).map_err(|why| format!("Mesos {version}: {why}"))?;
    Ok((version, host))
}

/// Why Mesos will not start with this module, and the way out.
fn refuse(why: &str) {
    say(format_args!(
        "refused: {why}. Mesos does not start with a module that refuses: take \
         org_apache_mesos_ComposePodCleanupHook out of --hooks and --modules (the daemon works \
         without it), or see docs/hook.md"
    ));
}

/// A `mesos::Hook`. Mesos never deletes it.
#[repr(C)]
pub struct Hook {
    vptr: *const Address,
    host: Host,
    mesos: String,
    settings: Settings,
    handoff: Handoff,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

/// `Hook* create(const Parameters&)`; null: Mesos does not start.
extern "C" fn create(parameters: Address) -> *mut Hook {
    caught(null_mut(), || {
        // SAFETY: Mesos calls this with its Parameters.
        match unsafe { new_hook(parameters) } {
            Ok(hook) => Box::into_raw(hook),
            Err(why) => {
                refuse(&why);
                null_mut()
            }
        }
    })
}

/// # Safety
///
/// There must be a `mesos::Parameters` at the address.
unsafe fn new_hook(parameters: Address) -> Result<Box<Hook>, String> {
    let (mesos, host) = probe()?;
    // SAFETY: the caller's promise.
    let bytes = unsafe { host.parameters.bytes(parameters)? };
    let parameters = proto::parameters(&bytes).map_err(|error| format!("parameters: {error}"))?;
    let settings = Settings::of(parameters)?;
    if let Some(why) = host.untested()
        && !settings.accepts_untested
    {
        return Err(format!(
            "Mesos {mesos}: {why}, and no release like it was ever tested with; the module \
             parameter untested_abi=accept takes the risk"
        ));
    }
    let (functions, from_host) = host.functions(slave_remove_executor_hook as Address)?;
    let vtable = Box::leak(abi::vtable(destructor as Address, &functions));
    let does = if settings.hands_off {
        format!("requests go to {}", settings.inbox_dir.display())
    } else {
        "switched off (mode=off)".to_owned()
    };
    say(format_args!(
        "serves Mesos {mesos} ({from_host} of {} functions are the host's own): {does}",
        functions.len()
    ));
    Ok(Box::new(Hook {
        vptr: &raw const vtable[abi::ADDRESS_POINT],
        host,
        mesos,
        settings,
        handoff: Handoff::new(),
    }))
}

/// The object stays if Mesos should delete it after all.
extern "C" fn destructor(_this: *mut Hook) {}

/// `Try<Nothing> slaveRemoveExecutorHook(const FrameworkInfo&, const ExecutorInfo&)`
///
/// Mesos calls it on the agent's main actor, from 1.10 on under a lock of all
/// hooks: the agent does nothing else until this returns.
extern "C" fn slave_remove_executor_hook(
    result: *mut u8,
    this: *const Hook,
    framework: Address,
    executor: Address,
) -> *mut u8 {
    caught((), || {
        #[cfg(feature = "test-switches")]
        switches::panic_if_told();
        // SAFETY: `create` gave this object to Mesos, and nobody ever frees it.
        let hook = unsafe { &*this };
        // SAFETY: Mesos calls this with such messages.
        unsafe { hook.executor_removed(framework, executor) };
    });
    // SAFETY: Mesos passes memory for a Try<Nothing>.
    unsafe { abi::write_nothing(result) };
    result
}

impl Hook {
    /// # Safety
    ///
    /// There must be a `FrameworkInfo` and an `ExecutorInfo` at the addresses.
    unsafe fn executor_removed(&self, framework: Address, executor: Address) {
        let Self {
            vptr: _,
            host,
            mesos,
            settings,
            handoff,
        } = self;
        if !settings.hands_off {
            return;
        }
        // SAFETY: the caller's promise.
        let framework = unsafe { host.framework_info.bytes(framework) };
        // SAFETY: the caller's promise.
        let executor = unsafe { host.executor_info.bytes(executor) };
        let ids = framework.and_then(|framework| {
            proto::ids(&framework, &executor?).map_err(|error| error.to_string())
        });
        match ids {
            Ok(ids) => handoff.hand_off(&settings.inbox_dir, mesos, &ids),
            Err(why) => handoff.tell_of_bad_request(format_args!("{why}")),
        }
    }
}
