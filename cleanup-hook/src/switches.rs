//! What only tests use: faults on demand, and a comparison of our functions with
//! the host's. Not in a build without the feature `test-switches`.

use std::env;
use std::ptr::null;
use std::sync::OnceLock;

use crate::abi::{self, Address, Slot};
use crate::host::{self, Host};

/// Pretend to run in this version, from the start.
const VERSION: &str = "CLEANUP_HOOK_TEST_VERSION";
/// Pretend it after Mesos has looked at the descriptor.
const LATE_VERSION: &str = "CLEANUP_HOOK_TEST_LATE_VERSION";
/// Use none of the host's functions.
const OWN: &str = "CLEANUP_HOOK_TEST_OWN";
const PANIC: &str = "CLEANUP_HOOK_TEST_PANIC";

static LATE: OnceLock<Option<String>> = OnceLock::new();

pub(crate) fn version() -> Option<String> {
    let late = LATE.get().cloned().flatten();
    late.or_else(|| env::var(VERSION).ok())
}

pub(crate) fn be_late() {
    LATE.get_or_init(|| env::var(LATE_VERSION).ok());
}

pub(crate) fn own_only() -> bool {
    env::var_os(OWN).is_some()
}

pub(crate) fn panic_if_told() {
    assert!(env::var_os(PANIC).is_none(), "as told by {PANIC}");
}

type Memory = [u64; 128];
type Function = unsafe extern "C" fn(
    *mut Memory,
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
    Address,
) -> *mut Memory;

/// Calls the host's default and our own function for each slot that has both,
/// on memory of the same content. Returns how many were compared, or a negative
/// number: how many differed.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_hook_test_compare() -> i32 {
    crate::guard::caught(-1000, || {
        let version = host::running_version().expect("a version");
        let host = Host::probe(&version).expect("a known host");
        let (order, sizes) = host.layout();
        let (mut compared, mut differing) = (0, 0);
        for &slot in order {
            let Some(theirs) = host::default(slot) else {
                continue;
            };
            let own = abi::own(slot, sizes).expect("a function");
            compared += 1;
            let is_equal = if slot == Slot::SlavePreLaunchDockerTaskExecutor {
                is_equal_future(call(theirs), call(own), sizes.prepare_info)
            } else {
                call(theirs) == call(own)
            };
            if !is_equal {
                crate::guard::say(format_args!("{slot:?} differs"));
                differing += 1;
            }
        }
        if differing > 0 { -differing } else { compared }
    })
}

/// The defaults look at none of their arguments.
fn call(function: Address) -> Memory {
    let mut memory = [0xa5a5_a5a5_a5a5_a5a5; 128];
    // SAFETY: all functions of Hook take an address for the result, `this` and at
    // most six more.
    let function = unsafe { std::mem::transmute::<Address, Function>(function) };
    let n = null();
    // SAFETY: 1 KB is more than any of the results needs.
    let result = unsafe { function(&raw mut memory, n, n, n, n, n, n, n) };
    assert_eq!(result, &raw mut memory);
    memory
}

/// Compares what they refer to, up to where the callbacks are.
fn is_equal_future(theirs: Memory, own: Memory, size: usize) -> bool {
    let [theirs_data, own_data] = [theirs, own].map(|future| {
        let data = std::ptr::with_exposed_provenance::<u32>(future[0] as usize);
        // state and booleans, and what of the result is set
        [4, 16, 24, 32, 40 + size].map(|offset| {
            // SAFETY: offsets within a Future<…>::Data.
            unsafe { data.wrapping_byte_add(offset).read() }
        })
    });
    let [theirs_flags, own_flags] = [theirs, own].map(|future| {
        let data = std::ptr::with_exposed_provenance::<[u8; 2]>(future[0] as usize);
        // SAFETY: discard and associated, at 8.
        unsafe { data.wrapping_byte_add(8).read() }
    });
    theirs_data == own_data && theirs_flags == own_flags && theirs[2..] == own[2..]
}
