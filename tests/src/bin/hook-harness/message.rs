//! libmesos' functions, called with addresses only, and its messages.

use anyhow::{Result, ensure};
use cleanup_tests::mesos::libmesos::{Address, Libmesos, Object};

/// Of all functions that are called here: every argument is an address, what is
/// missing is not looked at, and a result is a word at most.
type Function =
    unsafe extern "C" fn(Address, Address, Address, Address, Address, Address, Address) -> usize;

pub(crate) const MOST_ARGUMENTS: usize = 7;

/// # Safety
///
/// The function must be one that takes these objects, each at its address.
pub(crate) unsafe fn call(mesos: &Libmesos, name: &str, arguments: &[Address]) -> Result<usize> {
    ensure!(arguments.len() <= MOST_ARGUMENTS);
    let mut all = [std::ptr::null_mut(); MOST_ARGUMENTS];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f, g] = all;
    // SAFETY: see the type; what is more is ignored in this calling convention.
    let function: Function = unsafe { mesos.function(name)? };
    // SAFETY: the caller's promise.
    Ok(unsafe { function(a, b, c, d, e, f, g) })
}

/// A `mesos::CLASS`.
pub(crate) struct Message<'a> {
    mesos: &'a Libmesos,
    class: &'static str,
    object: Object,
}

impl<'a> Message<'a> {
    /// Required fields may be missing.
    pub(crate) fn new(mesos: &'a Libmesos, class: &'static str, wire: &[u8]) -> Result<Self> {
        type Parse = unsafe extern "C" fn(Address, *const u8, i32) -> bool;
        let mut object = garbage();
        // SAFETY: a constructor without arguments, and memory.
        unsafe { call(mesos, &format!("_ZN5mesos{class}C1Ev"), &[object.address()])? };
        let parse = "_ZN6google8protobuf11MessageLite21ParsePartialFromArrayEPKvi";
        // SAFETY: the type is the function's.
        let parse: Parse = unsafe { mesos.function(parse)? };
        let length = i32::try_from(wire.len())?;
        // SAFETY: a constructed message, and so many bytes.
        let is_valid = unsafe { parse(object.address(), wire.as_ptr(), length) };
        ensure!(is_valid, "{class} cannot be parsed");
        Ok(Self {
            mesos,
            class,
            object,
        })
    }

    /// What libmesos has put into `object`.
    ///
    /// # Safety
    ///
    /// It must be such a message, which is destroyed with this.
    pub(crate) unsafe fn adopt(mesos: &'a Libmesos, class: &'static str, object: Object) -> Self {
        Self {
            mesos,
            class,
            object,
        }
    }

    pub(crate) fn address(&mut self) -> Address {
        self.object.address()
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>> {
        // SAFETY: it is one.
        unsafe { serialize(self.mesos, self.class, self.object.address()) }
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        let destructor = format!("_ZN5mesos{}D1Ev", self.class);
        // SAFETY: a constructed message.
        let destroyed = unsafe { call(self.mesos, &destructor, &[self.object.address()]) };
        if let Err(error) = destroyed {
            eprintln!("{error:#}");
        }
    }
}

/// Memory in which nothing is as it should be.
pub(crate) fn garbage() -> Object {
    let mut object = Object::new();
    object.fill(0xa5a5_a5a5_a5a5_a5a5);
    object
}

/// # Safety
///
/// There must be such a message at the address.
pub(crate) unsafe fn serialize(mesos: &Libmesos, class: &str, message: Address) -> Result<Vec<u8>> {
    type Serialize = unsafe extern "C" fn(Address, *mut u8, i32) -> bool;
    let byte_size = format!("_ZNK5mesos{class}12ByteSizeLongEv");
    // SAFETY: the caller's promise.
    let size = unsafe { call(mesos, &byte_size, &[message])? };
    let mut bytes = vec![0; size];
    let serialize = "_ZNK6google8protobuf11MessageLite23SerializePartialToArrayEPvi";
    // SAFETY: the type is the function's.
    let serialize: Serialize = unsafe { mesos.function(serialize)? };
    let length = i32::try_from(size)?;
    // SAFETY: a message, and so many bytes.
    let is_done = unsafe { serialize(message, bytes.as_mut_ptr(), length) };
    ensure!(is_done, "{class} cannot be serialised");
    Ok(bytes)
}

/// The elements of a `RepeatedPtrField<CLASS>`: { arena, i32 size, i32 total, rep },
/// rep being { i64, addresses… }.
///
/// # Safety
///
/// There must be such a field in `object`.
pub(crate) unsafe fn repeated(
    mesos: &Libmesos,
    class: &str,
    object: &mut Object,
) -> Result<Vec<Vec<u8>>> {
    let count = object.at(8).cast::<i32>();
    // SAFETY: see above.
    let count = usize::try_from(unsafe { count.read() })?;
    let rep = object.at(16).cast::<*mut Address>();
    // SAFETY: see above.
    let rep = unsafe { rep.read() };
    (0..count)
        .map(|index| {
            // SAFETY: one of `count` elements.
            let element = unsafe { rep.wrapping_add(1 + index).read() };
            // SAFETY: each of them is such a message.
            unsafe { serialize(mesos, class, element) }
        })
        .collect()
}
