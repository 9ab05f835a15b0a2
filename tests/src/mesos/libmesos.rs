//! Calling libmesos without its headers.
//!
//! x86_64, the libstdc++ string ABI since GCC 5. A C++ object is a block of
//! memory that its own constructor fills; a `const std::string&` is a pointer to
//! (bytes, length, …); an object that is returned by value is written to an
//! address that the caller passes as the first argument.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// A function's or a datum's address, an object, `this`.
pub type Address = *mut c_void;

/// `std::string` in mangled names.
pub const STRING: &str = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";

const RTLD_LAZY: c_int = 1;
const RTLD_NOW: c_int = 2;
const RTLD_GLOBAL: c_int = 0x100;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> Address;
    fn dlsym(library: Address, name: *const c_char) -> Address;
    fn dlerror() -> *const c_char;
}

/// libmesos, loaded into this process for good.
#[derive(Debug)]
pub struct Libmesos(());

impl Libmesos {
    /// Loads the library of a [`super::runtime::Runtime`].
    pub fn load(lib_dir: &Path) -> Result<Self> {
        let entries = fs::read_dir(lib_dir).with_context(|| lib_dir.display().to_string())?;
        let mut stubs = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        stubs.retain(|path| !path.ends_with("libmesos.so"));
        // Its dependencies first, and by path: then they are found by name.
        for stub in &stubs {
            open(stub, RTLD_LAZY)?;
        }
        open(&lib_dir.join("libmesos.so"), RTLD_NOW)?;
        Ok(Self(()))
    }

    /// The address of a symbol, by its mangled name.
    pub fn symbol(&self, name: &str) -> Result<Address> {
        let c_name = CString::new(name)?;
        // SAFETY: the name ends with a zero; a null library means all of them.
        let address = unsafe { dlsym(std::ptr::null_mut(), c_name.as_ptr()) };
        ensure!(!address.is_null(), "this libmesos has no {name}");
        Ok(address)
    }

    /// A function, by its mangled name.
    ///
    /// # Safety
    ///
    /// `F` must be an `extern "C"` function type that fits the function.
    pub unsafe fn function<F: Copy>(&self, name: &str) -> Result<F> {
        const { assert!(size_of::<F>() == size_of::<Address>()) };
        let address = self.symbol(name)?;
        // SAFETY: both have the size of a pointer, and the caller vouches for F.
        Ok(unsafe { std::mem::transmute_copy::<Address, F>(&address) })
    }
}

/// Zeroed memory, large enough for any of the objects here.
#[derive(Debug)]
pub struct Object(Box<[u64; Self::WORDS]>);

impl Object {
    const WORDS: usize = 1024;
    pub const SIZE: usize = Self::WORDS * size_of::<u64>();

    pub fn new() -> Self {
        Self(Box::new([0; Self::WORDS]))
    }

    pub fn address(&mut self) -> Address {
        self.0.as_mut_ptr().cast()
    }

    /// The address of a member.
    pub fn at(&mut self, offset: usize) -> Address {
        assert!(offset < Self::SIZE);
        self.address().wrapping_byte_add(offset)
    }

    /// Writes a pointer-sized member.
    pub fn set_word(&mut self, offset: usize, value: u64) {
        self.0[offset / size_of::<u64>()] = value;
    }

    pub fn fill(&mut self, value: u64) {
        self.0.fill(value);
    }

    /// The discriminant of `Option`, `Try` and their like: 0 is a value.
    fn is_some(&self, offset: usize) -> bool {
        self.0[offset / size_of::<u64>()] as u32 == 0
    }

    /// The message of a failed `Try<T>` whose error lies at `error`.
    ///
    /// # Safety
    ///
    /// The object must be such a `Try<T>`, written by libmesos.
    pub unsafe fn check_try(&self, error: usize) -> Result<()> {
        if self.is_some(0) {
            return Ok(());
        }
        let string = error / size_of::<u64>();
        let bytes = std::ptr::with_exposed_provenance::<u8>(self.0[string] as usize);
        // SAFETY: the caller vouches for a std::string at this place: the address
        // of its bytes, then their number.
        let text = unsafe { std::slice::from_raw_parts(bytes, self.0[string + 1] as usize) };
        bail!("{}", String::from_utf8_lossy(text));
    }
}

impl Default for Object {
    fn default() -> Self {
        Self::new()
    }
}

/// A `const std::string`, to be passed by reference and only read.
#[derive(Debug)]
#[repr(C)]
pub struct CxxString {
    data: *const c_char,
    length: usize,
    capacity: [usize; 2],
    _text: CString,
}

impl CxxString {
    /// Of the C++ object, the part before `_text`.
    pub const SIZE: usize = std::mem::offset_of!(Self, _text);

    pub fn new(text: &str) -> Result<Self> {
        let text = CString::new(text)?;
        let length = text.count_bytes();
        Ok(Self {
            data: text.as_ptr(),
            length,
            capacity: [length, 0],
            _text: text,
        })
    }

    pub fn address(&self) -> Address {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// The four words of the object, for an `Option<std::string>`. They refer to
    /// this string, which has to outlive their use.
    pub fn words(&self) -> [u64; 4] {
        let data = self.data.expose_provenance() as u64;
        let [first, second] = self.capacity.map(|word| word as u64);
        [data, self.length as u64, first, second]
    }
}

fn open(path: &Path, flags: c_int) -> Result<()> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero. The constructors of these libraries
    // assume nothing of the process that they are loaded into.
    let library = unsafe { dlopen(c_path.as_ptr(), flags | RTLD_GLOBAL) };
    if !library.is_null() {
        return Ok(());
    }
    // SAFETY: takes nothing; null or a string that is valid until the next call.
    let message = unsafe { dlerror() };
    ensure!(!message.is_null(), "loading {}", path.display());
    // SAFETY: not null, see above.
    let message = unsafe { CStr::from_ptr(message) };
    bail!("{}", message.to_string_lossy());
}
