//! Loads from kernel memory, at offsets that the loader writes into the instructions, and from
//! globals.

use core::{cell::UnsafeCell, num::NonZeroU64, ptr};

pub(crate) use cleanup_common::offset;

/// Reads a global that the loader wrote: the compiler must not believe its initial value.
#[inline(always)]
pub fn frozen(global: &u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(global) }
}

/// A word that user space writes while the program runs: one aligned load.
///
/// An atomic would say it better, but LLVM has no relaxed atomics for the instruction set that all
/// our kernels know.
#[repr(transparent)]
pub struct SharedWord(UnsafeCell<u64>);

// SAFETY: it is only ever read as a whole, with one instruction.
unsafe impl Sync for SharedWord {}

impl SharedWord {
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: valid for reads, and an aligned word never tears.
        unsafe { ptr::read_volatile(self.0.get()) }
    }
}

/// A structure of the kernel, known to the verifier by its type.
///
/// Made from the tracepoint's argument or from a member of another object, and from nothing else.
/// That is what makes its loads sound: the verifier accepts them only within the structure that its
/// BTF describes, and a load that faults all the same reads as zero.
#[derive(Clone, Copy)]
pub struct Object(NonZeroU64);

impl Object {
    /// The object that an argument of the tracepoint points to.
    #[inline(always)]
    pub fn from_argument(argument: u64) -> Option<Self> {
        NonZeroU64::new(argument).map(Self)
    }

    /// For comparisons only.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0.get()
    }

    /// The object that a member points to. The verifier wants every step of a walk compared to
    /// NULL where BTF marks the pointer as guarded by RCU.
    #[inline(always)]
    pub fn follow(self, offset: u32) -> Option<Self> {
        NonZeroU64::new(self.load_u64(offset)).map(Self)
    }

    #[inline(always)]
    pub fn load_u32(self, offset: u32) -> u32 {
        // SAFETY: the verifier proves the load, see the type.
        unsafe { read(self.address(), offset) }
    }

    #[inline(always)]
    pub fn load_u64(self, offset: u32) -> u64 {
        // SAFETY: the verifier proves the load, see the type.
        unsafe { read(self.address(), offset) }
    }
}

/// One load instruction, neither merged with another nor moved.
///
/// # Safety
///
/// The verifier must know `base + offset` as readable.
#[inline(always)]
pub unsafe fn read<T>(base: u64, offset: u32) -> T {
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: demanded of the caller.
    unsafe { ptr::read_volatile(address) }
}
