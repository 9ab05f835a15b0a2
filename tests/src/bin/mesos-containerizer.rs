//! `mesos-containerizer launch`, the helper that an agent starts executors with:
//! the real `MesosContainerizerLaunch` out of libmesos.
//!
//! Only this program's `main` was not in libmesos. The agent passes its own
//! environment on, and with it the place of libmesos.

use std::env;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::mesos::agent::LIB_DIR_VARIABLE;
use cleanup_tests::mesos::libmesos::{Address, CxxString, Libmesos, Object};

const CLASS: &str = "_ZN5mesos8internal5slave24MesosContainerizerLaunch";
const VTABLE: &str = "_ZTVN5mesos8internal5slave24MesosContainerizerLaunchE";
const FLAGS_VTABLE: &str = "_ZTVN5mesos8internal5slave24MesosContainerizerLaunch5FlagsE";
const LOAD_FLAGS: &str = "_ZN5flags9FlagsBase4loadERK6OptionINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEEiPKPKcbb";

const WORD: usize = size_of::<u64>();
/// From the start of a vtable to what a vptr points at.
const VTABLE_HEAD: u64 = 16;
/// Where the message of a failed `Try<Warnings>` lies.
const TRY_WARNINGS_ERROR: usize = 40;

fn main() -> Result<ExitCode> {
    let arguments: Vec<CString> = env::args_os()
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()?;
    if arguments
        .get(1)
        .is_none_or(|command| command.as_bytes() != b"launch")
    {
        bail!("usage: mesos-containerizer launch …");
    }
    let lib_dir = env::var_os(LIB_DIR_VARIABLE).context(LIB_DIR_VARIABLE)?;
    let mesos = Libmesos::load(Path::new(&lib_dir))?;

    let mut launch = construct(&mesos)?;
    load_flags(&mesos, &mut launch, &arguments[1..])?;
    let status = execute(&mesos, &mut launch)?;
    // As returning it from main would.
    Ok(ExitCode::from(status as u8))
}

/// Makes a `MesosContainerizerLaunch`; its own constructor is inline, so no
/// symbol. Members: vptr, `std::string name_`, `Flags flags`.
fn construct(mesos: &Libmesos) -> Result<Object> {
    type NewFlags = unsafe extern "C" fn(Address);
    let flags = flags_offset(mesos)?;
    let mut launch = Object::new();
    launch.set_word(
        0,
        mesos.symbol(VTABLE)?.expose_provenance() as u64 + VTABLE_HEAD,
    );
    // An empty name: the address of its bytes, which are in the object itself.
    let name = launch.at(3 * WORD).expose_provenance() as u64;
    launch.set_word(WORD, name);
    // SAFETY: the type is that of a constructor without arguments.
    let new_flags: NewFlags = unsafe { mesos.function(&format!("{CLASS}5FlagsC1Ev"))? };
    // SAFETY: the place of the member, with more than enough memory after it.
    unsafe { new_flags(launch.at(flags)) };
    Ok(launch)
}

/// Where the member `flags` lies.
///
/// `getFlags()` returns the address of its virtual base `FlagsBase`. For the
/// base's place within `Flags`, some compilers put in a constant, others read it
/// from the vtable of `Flags`: two tries with made-up vtables tell which.
fn flags_offset(mesos: &Libmesos) -> Result<usize> {
    let (first, second) = (base_offset(mesos, 0)?, base_offset(mesos, 1 << 20)?);
    let offset = if first == second {
        let vtable = mesos.symbol(FLAGS_VTABLE)?.cast::<usize>();
        // SAFETY: the symbol is a vtable, and the offset of a virtual base is
        // the first word of such.
        first.wrapping_sub(unsafe { vtable.read() })
    } else {
        first
    };
    ensure!(
        (1..Object::SIZE).contains(&offset),
        "this libmesos has another layout"
    );
    Ok(offset)
}

/// What `getFlags()` adds to `this`, with `base` wherever it looks in a vtable.
fn base_offset(mesos: &Libmesos, base: usize) -> Result<usize> {
    const MIDDLE: usize = 32;
    let vtable = [base; 2 * MIDDLE];
    let mut object = Object::new();
    object.fill(std::ptr::from_ref(&vtable[MIDDLE]).expose_provenance() as u64);
    let flags = get_flags(mesos, &mut object)?;
    Ok(flags.addr().wrapping_sub(object.address().addr()))
}

/// `FlagsBase* getFlags()`
fn get_flags(mesos: &Libmesos, launch: &mut Object) -> Result<Address> {
    type GetFlags = unsafe extern "C" fn(Address) -> Address;
    // SAFETY: the type is that of the method.
    let get_flags: GetFlags = unsafe { mesos.function(&format!("{CLASS}8getFlagsEv"))? };
    // SAFETY: the method adds an offset to `this`, and to find it reads no more
    // than vptrs: real ones, or those of `base_offset`.
    Ok(unsafe { get_flags(launch.address()) })
}

/// Reads the flags as the original `main` does: from the environment's
/// `MESOS_CONTAINERIZER_*` and the arguments.
fn load_flags(mesos: &Libmesos, launch: &mut Object, arguments: &[CString]) -> Result<()> {
    type Load = unsafe extern "C" fn(
        Address,
        Address,
        Address,
        c_int,
        *const *const c_char,
        bool,
        bool,
    ) -> Address;
    // Option<std::string>: a state, 0 if there is a value, and the value.
    let prefix = CxxString::new("MESOS_CONTAINERIZER_")?;
    let mut some_prefix = Object::new();
    for (index, word) in prefix.words().into_iter().enumerate() {
        some_prefix.set_word((1 + index) * WORD, word);
    }
    let argv: Vec<*const c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let argc = c_int::try_from(arguments.len())?;
    let flags = get_flags(mesos, launch)?;
    let mut result = Object::new();
    // SAFETY: returns a Try<Warnings>; the method takes the prefix, argc, argv,
    // unknowns and duplicates.
    let load: Load = unsafe { mesos.function(LOAD_FLAGS)? };
    // SAFETY: constructed flags, a prefix and arguments that outlive the call.
    unsafe {
        load(
            result.address(),
            flags,
            some_prefix.address(),
            argc,
            argv.as_ptr(),
            false,
            false,
        )
    };
    // SAFETY: the method wrote its Try<Warnings> there.
    unsafe { result.check_try(TRY_WARNINGS_ERROR) }.context("mesos-containerizer: flags")
}

/// `int execute()`: returns when the executor has ended.
fn execute(mesos: &Libmesos, launch: &mut Object) -> Result<c_int> {
    type Execute = unsafe extern "C" fn(Address) -> c_int;
    // SAFETY: the type is that of the method.
    let execute: Execute = unsafe { mesos.function(&format!("{CLASS}7executeEv"))? };
    // SAFETY: an object that is complete as far as the method looks at it.
    Ok(unsafe { execute(launch.address()) })
}
