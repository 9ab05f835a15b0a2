//! What is known of libmesos' binary interface: the order of `mesos::Hook`'s
//! virtual functions, the sizes of what they return, and how nothing is
//! returned. Read from the headers of 1.0.0 to 1.11.0 (include/mesos/hook.hpp,
//! stout's option.hpp, try.hpp, result.hpp, libprocess' future.hpp) and compared
//! with what the releases' own code writes (tests/suites/hook.rs).
//!
//! x86_64, Itanium C++ ABI: whoever calls a function that returns a class with a
//! destructor passes the address for it as the first argument, before `this`,
//! and gets it back.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::Once;

/// Of a function, an object or a datum.
pub(crate) type Address = *const c_void;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// Releases only: of a pre-release nothing is known. What follows a `+` does
    /// not count, as in Mesos.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let release = text.split('+').next()?;
        let mut numbers = release.split('.').map(|number| number.parse().ok());
        let version = Self(
            numbers.next()??,
            numbers.next()??,
            numbers.next().unwrap_or(Some(0))?,
        );
        numbers.next().is_none().then_some(version)
    }
}

/// A virtual function of `mesos::Hook`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    MasterLaunchTaskLabel,
    MasterLaunchTaskResource,
    SlaveRunTaskLabel,
    MasterSlaveLost,
    SlaveExecutorEnvironment,
    /// 1.0 and 1.1: returns a `Future<Option<Environment>>`.
    SlavePreLaunchDockerEnvironment,
    /// 1.0 and 1.1.
    SlavePreLaunchDockerHook,
    /// Since 1.2: returns a `Future<Option<DockerTaskExecutorPrepareInfo>>`.
    SlavePreLaunchDockerTaskExecutor,
    SlavePostFetch,
    SlaveRemoveExecutor,
    SlaveTaskStatus,
    SlaveResources,
    SlaveAttributes,
}

/// All of 1.0 and 1.1.
const ORDER_1_0: &[Slot] = &[
    Slot::MasterLaunchTaskLabel,
    Slot::SlaveRunTaskLabel,
    Slot::MasterSlaveLost,
    Slot::SlaveExecutorEnvironment,
    Slot::SlavePreLaunchDockerEnvironment,
    Slot::SlavePreLaunchDockerHook,
    Slot::SlavePostFetch,
    Slot::SlaveRemoveExecutor,
    Slot::SlaveTaskStatus,
    Slot::SlaveResources,
    Slot::SlaveAttributes,
];

/// 1.2 to 1.7.
const ORDER_1_2: &[Slot] = &[
    Slot::MasterLaunchTaskLabel,
    Slot::SlaveRunTaskLabel,
    Slot::MasterSlaveLost,
    Slot::SlaveExecutorEnvironment,
    Slot::SlavePreLaunchDockerTaskExecutor,
    Slot::SlavePostFetch,
    Slot::SlaveRemoveExecutor,
    Slot::SlaveTaskStatus,
    Slot::SlaveResources,
    Slot::SlaveAttributes,
];

/// 1.8 to 1.11.
const ORDER_1_8: &[Slot] = &[
    Slot::MasterLaunchTaskLabel,
    Slot::MasterLaunchTaskResource,
    Slot::SlaveRunTaskLabel,
    Slot::MasterSlaveLost,
    Slot::SlaveExecutorEnvironment,
    Slot::SlavePreLaunchDockerTaskExecutor,
    Slot::SlavePostFetch,
    Slot::SlaveRemoveExecutor,
    Slot::SlaveTaskStatus,
    Slot::SlaveResources,
    Slot::SlaveAttributes,
];

/// The functions of a release in the order of its vtable; none: not known.
pub(crate) fn order(version: Version) -> Option<&'static [Slot]> {
    match version {
        Version(1, 0..=1, _) => Some(ORDER_1_0),
        Version(1, 2..=7, _) => Some(ORDER_1_2),
        Version(1, 8..=11, _) => Some(ORDER_1_8),
        _ => None,
    }
}

/// `sizeof` of what the functions return, as compiled into libmesos.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) labels: usize,
    pub(crate) environment: usize,
    pub(crate) task_status: usize,
    pub(crate) prepare_info: usize,
    /// These two are no messages: a running libmesos cannot be asked for them.
    pub(crate) resources: usize,
    pub(crate) attributes: usize,
}

impl Sizes {
    pub(crate) fn of(version: Version) -> Self {
        Self {
            labels: 48,
            environment: 48,
            task_status: match version {
                Version(1, 0, _) => 112,
                Version(1, 1, _) => 120,
                Version(1, 2..=4, _) => 128,
                _ => 136,
            },
            prepare_info: 40,
            resources: if version < Version(1, 10, 0) { 24 } else { 264 },
            attributes: 24,
        }
    }
}

/// A function of ours for a slot: it returns that there is nothing to say.
pub(crate) fn own(slot: Slot, sizes: &Sizes) -> Option<Address> {
    match slot {
        Slot::MasterLaunchTaskLabel | Slot::SlaveRunTaskLabel => none_of(sizes.labels),
        Slot::MasterLaunchTaskResource | Slot::SlaveResources => none_of(sizes.resources),
        Slot::SlaveExecutorEnvironment => none_of(sizes.environment),
        Slot::SlaveTaskStatus => none_of(sizes.task_status),
        Slot::SlaveAttributes => none_of(sizes.attributes),
        Slot::MasterSlaveLost
        | Slot::SlavePreLaunchDockerHook
        | Slot::SlavePostFetch
        | Slot::SlaveRemoveExecutor => Some(return_nothing as Address),
        Slot::SlavePreLaunchDockerEnvironment => Some(ready_future(sizes.environment)),
        Slot::SlavePreLaunchDockerTaskExecutor => Some(ready_future(sizes.prepare_info)),
    }
}

/// A vtable, of which an object's first word is [`ADDRESS_POINT`] words in.
pub(crate) fn vtable(destructor: Address, functions: &[Address]) -> Box<[Address]> {
    // Offset to the top of the object; no type information: nobody casts a Hook
    // dynamically. Both destructors: the second would free the object.
    let head = [std::ptr::null(), std::ptr::null(), destructor, destructor];
    head.iter().chain(functions).copied().collect()
}

pub(crate) const ADDRESS_POINT: usize = 2;

// Option<T> is { u32: 0 some, 1 none; T }, Try<T> is { Option<T> data;
// Option<Error> error }, Result<T> is { Try<Option<T>> }. What is `none` has
// nothing behind it.
const SOME: u32 = 0;
const NONE: u32 = 1;

/// # Safety
///
/// `offset` bytes behind `object` there must be four that may be written,
/// aligned to four.
unsafe fn put(object: *mut u8, offset: usize, value: u32) {
    let at = object.wrapping_add(offset).cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe { at.write(value) };
}

/// `Try<Nothing>`, a success. Independent of std::string's layout.
///
/// # Safety
///
/// `result` must be the address of memory for a `Try<Nothing>`.
pub(crate) unsafe fn write_nothing(result: *mut u8) {
    // SAFETY: the first of two options, the second one 8 bytes behind it.
    unsafe { put(result, 0, SOME) };
    // SAFETY: see above.
    unsafe { put(result, 8, NONE) };
}

/// `Result<T>`, none.
///
/// # Safety
///
/// `result` must be the address of memory for a `Result<T>` with a T of this
/// size, aligned to 8.
unsafe fn write_none(result: *mut u8, size: usize) {
    // SAFETY: Try's data, …
    unsafe { put(result, 0, SOME) };
    // SAFETY: … in it the Option<T>, …
    unsafe { put(result, 8, NONE) };
    // SAFETY: … and behind that the Option<Error>.
    unsafe { put(result, 16 + size, NONE) };
}

// The functions below ignore what else they are called with, as this calling
// convention allows: arguments are removed by the caller.

extern "C" fn return_nothing(result: *mut u8, _this: Address) -> *mut u8 {
    // SAFETY: only in slots that return a Try<Nothing>.
    unsafe { write_nothing(result) };
    result
}

extern "C" fn return_none<const SIZE: usize>(result: *mut u8, _this: Address) -> *mut u8 {
    // SAFETY: only in slots that return a Result<T>, T of this size (`own`).
    unsafe { write_none(result, SIZE) };
    result
}

fn none_of(size: usize) -> Option<Address> {
    Some(match size {
        24 => return_none::<24> as Address,
        48 => return_none::<48> as Address,
        112 => return_none::<112> as Address,
        120 => return_none::<120> as Address,
        128 => return_none::<128> as Address,
        136 => return_none::<136> as Address,
        264 => return_none::<264> as Address,
        _ => return None,
    })
}

/// `Future<Option<T>>::Data` in state READY that holds none; at most 264 bytes of
/// it are libmesos' own. Libmesos locks it, hence writable memory; it is never
/// freed, since the shared_ptr that refers to it has no control block.
#[repr(C, align(16))]
#[derive(Debug)]
struct FutureData(UnsafeCell<[u8; Self::SIZE]>);

impl FutureData {
    const SIZE: usize = 512;
}

// SAFETY: written here once, before its address is given away (`ready_future`).
// Afterwards only libmesos writes, to its spin lock in there.
unsafe impl Sync for FutureData {}

static READY_NONE: FutureData = FutureData(UnsafeCell::new([0; FutureData::SIZE]));

fn ready_future(size: usize) -> Address {
    /// { lock at 0; u32 state at 4: 0 pending, 1 ready; booleans; result at 16 }
    const STATE: usize = 4;
    const READY: u32 = 1;
    const RESULT: usize = 16;
    static FILLED: Once = Once::new();
    FILLED.call_once(|| {
        let data = READY_NONE.0.get().cast::<u8>();
        // SAFETY: within the 512 bytes, as all of these.
        unsafe { put(data, STATE, READY) };
        // SAFETY: the result is a Result<Option<T>>: Try's data, …
        unsafe { put(data, RESULT, SOME) };
        // SAFETY: … in it the Option<Option<T>>, …
        unsafe { put(data, RESULT + 8, SOME) };
        // SAFETY: … in it the Option<T>, …
        unsafe { put(data, RESULT + 16, NONE) };
        // SAFETY: … and behind all that the Option<Error>.
        unsafe { put(data, RESULT + 24 + size, NONE) };
    });
    return_ready as Address
}

/// A shared_ptr { object, control block }.
extern "C" fn return_ready(result: *mut [Address; 2], _this: Address) -> *mut [Address; 2] {
    let data: Address = READY_NONE.0.get().cast();
    // SAFETY: only in slots that return a Future, which is one shared_ptr.
    unsafe { result.write([data, std::ptr::null()]) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(Version::parse("1.11.0"), Some(Version(1, 11, 0)));
        assert_eq!(Version::parse("1.8"), Some(Version(1, 8, 0)));
        assert_eq!(Version::parse("1.11.0+vendor.3"), Some(Version(1, 11, 0)));
        for text in [
            "",
            "1",
            "garbage",
            "1.11.0-rc1",
            "1.11.0.1",
            "1..0",
            "-1.2.3",
            "1.11.99999999999",
            "1.11.0+a\nb",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn each_release_has_its_place_for_the_function_that_counts() {
        let index = |minor| {
            let order = order(Version(1, minor, 0))?;
            // Behind the two destructors.
            let index = order
                .iter()
                .position(|&slot| slot == Slot::SlaveRemoveExecutor)?;
            Some(index + 2)
        };
        for minor in 0..=11 {
            let expected = if (2..=7).contains(&minor) { 8 } else { 9 };
            assert_eq!(index(minor), Some(expected), "1.{minor}");
        }
        for version in [Version(0, 28, 3), Version(1, 12, 0), Version(2, 0, 0)] {
            assert_eq!(order(version), None);
        }
    }

    #[test]
    fn every_slot_of_every_release_has_a_function() {
        for minor in 0..=11 {
            let version = Version(1, minor, 0);
            let sizes = Sizes::of(version);
            for &slot in order(version).expect("known") {
                assert!(own(slot, &sizes).is_some(), "1.{minor} {slot:?}");
            }
        }
    }

    #[test]
    fn nothing_else_is_written() {
        let mut memory = [u64::MAX; 64];
        let result = memory.as_mut_ptr().cast::<u8>();
        assert_eq!(return_none::<136>(result, std::ptr::null()), result);
        let half = |value: u64| value | 0xffff_ffff_0000_0000;
        let mut expected = [u64::MAX; 64];
        expected[0] = half(0);
        expected[1] = half(1);
        expected[(16 + 136) / 8] = half(1);
        assert_eq!(memory, expected);

        let mut memory = [u64::MAX; 64];
        let result = memory.as_mut_ptr().cast::<u8>();
        assert_eq!(return_nothing(result, std::ptr::null()), result);
        assert_eq!(memory[..3], [half(0), half(1), u64::MAX]);
    }
}
