//! Runs with glibc 2.17 (2012), whichever one it is built with.
//!
//! The standard library needs nothing newer, but a linker binds each symbol to the
//! newest version that the build machine has: with glibc 2.34 or later, `dlsym`
//! and what was in libpthread then say that they need 2.34. So the few symbols of
//! which there are several versions are defined here, for this library alone, and
//! jump to the oldest one. tests/suites/hook.rs reads what the built file needs;
//! a standard library that wants another symbol fails that test.
//!
//! In such a glibc they lie in libdl and libpthread. Those are not named as needed
//! here: whoever can load this module has them, since libmesos needs both.
//!
//! Functions that a 2.17 does not have: `gettid` and `statx` are made of
//! `syscall` (weak, as std refers to them: link-time optimisation makes one unit of
//! both), and `__cxa_thread_atexit_impl` (weak; hidden, hence null here) is
//! what std does without.
//!
//! The alternative, `cargo zigbuild` with a target of `….2.17`, does the same with
//! 100 MB of another toolchain, and a plain `cargo build` would still give a file
//! that works nowhere else.

use std::arch::global_asm;

global_asm!(
    ".macro forward name, version",
    ".symver oldest_\\name, \\name@\\version",
    ".hidden \\name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    "jmp oldest_\\name@PLT",
    ".size \\name, . - \\name",
    ".endm",
    "",
    ".section .text.compose_cleanup_glibc, \"ax\", @progbits",
    // A jump, not a call: dlsym looks at its return address to see who calls.
    "forward dlsym, GLIBC_2.2.5",
    "forward pthread_key_create, GLIBC_2.2.5",
    "forward pthread_key_delete, GLIBC_2.2.5",
    "forward pthread_getspecific, GLIBC_2.2.5",
    "forward pthread_setspecific, GLIBC_2.2.5",
    "",
    // Before 2.33 an inline function that passes the structure's version.
    ".symver oldest___xstat64, __xstat64@GLIBC_2.2.5",
    ".hidden stat64",
    ".globl stat64",
    ".type stat64, @function",
    "stat64:",
    "mov rdx, rsi",
    "mov rsi, rdi",
    "mov edi, 1",
    "jmp oldest___xstat64@PLT",
    ".size stat64, . - stat64",
    "",
    ".symver oldest___fxstat64, __fxstat64@GLIBC_2.2.5",
    ".hidden fstat64",
    ".globl fstat64",
    ".type fstat64, @function",
    "fstat64:",
    "mov rdx, rsi",
    "mov esi, edi",
    "mov edi, 1",
    "jmp oldest___fxstat64@PLT",
    ".size fstat64, . - fstat64",
    "",
    // pid_t gettid(void)
    ".hidden gettid",
    ".weak gettid",
    ".type gettid, @function",
    "gettid:",
    "mov edi, 186",
    "xor eax, eax",
    "jmp syscall@PLT",
    ".size gettid, . - gettid",
    "",
    // int statx(int, const char *, int, unsigned, struct statx *)
    ".hidden statx",
    ".weak statx",
    ".type statx, @function",
    "statx:",
    "mov r9, r8",
    "mov r8d, ecx",
    "mov ecx, edx",
    "mov rdx, rsi",
    "mov esi, edi",
    "mov edi, 332",
    "xor eax, eax",
    "jmp syscall@PLT",
    ".size statx, . - statx",
    "",
    ".weak __cxa_thread_atexit_impl",
    ".hidden __cxa_thread_atexit_impl",
    ".text",
);
