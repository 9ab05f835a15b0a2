//! The libmesos that has loaded this module: who it is, and its functions.

use std::ffi::{CString, c_char, c_int, c_void};

use crate::abi::{self, Address, Sizes, Slot, Version};

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const HOOK_MANAGER: &str = "_ZN5mesos8internal11HookManager";
const KIND_TO_VERSION: &str = "_ZN5mesos7modules13ModuleManager13kindToVersion";
/// Of one message; protobuf takes no larger one from the network by default.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Looks in the program and the libraries that it was linked with: mesos-agent
/// is linked with libmesos. `RTLD_DEFAULT` is null.
fn symbol(name: &str) -> Option<Address> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with a zero.
    let address = unsafe { dlsym(std::ptr::null_mut(), name.as_ptr()) };
    (!address.is_null()).then_some(address.cast_const())
}

/// # Safety
///
/// `F` must be an `extern "C"` function type that fits the function.
unsafe fn function<F: Copy>(name: &str) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<Address>()) };
    let address = symbol(name)?;
    // SAFETY: both have the size of a pointer, and the caller vouches for F.
    Some(unsafe { std::mem::transmute_copy::<Address, F>(&address) })
}

/// libstdc++ has two layouts of std::string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strings {
    /// Since GCC 5.
    New,
    /// `_GLIBCXX_USE_CXX11_ABI=0`: older compilers, and those of Red Hat 7.
    Old,
}

impl Strings {
    /// From the name of a function that takes one. None: neither (libc++, hidden
    /// symbols, no Mesos at all), so nothing may be read.
    ///
    /// The name of `kindToVersion` does not tell: a libc++ build has it under the
    /// same name as one with old strings.
    fn of_host() -> Option<Self> {
        let initialize = |string| symbol(&format!("{HOOK_MANAGER}10initializeERK{string}"));
        let new = initialize("NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE");
        let old = initialize("Ss");
        match (new, old) {
            (Some(_), None) => Some(Self::New),
            (None, Some(_)) => Some(Self::Old),
            _ => None,
        }
    }

    /// In words of 8 bytes.
    fn size(self) -> usize {
        match self {
            Self::New => 4,
            Self::Old => 1,
        }
    }

    /// The text of a std::string, if it is a short one.
    ///
    /// # Safety
    ///
    /// There must be a std::string of this layout at the address.
    unsafe fn read(self, string: *const usize) -> Option<String> {
        const LONGEST: usize = 255;
        // SAFETY: in both layouts the address of the bytes comes first.
        let data = unsafe { string.read() };
        if data == 0 {
            return None;
        }
        let data = std::ptr::with_exposed_provenance::<u8>(data);
        let length = match self {
            Self::New => string.wrapping_add(1),
            // { length, capacity, references } before the bytes
            Self::Old => data.cast::<usize>().wrapping_sub(3),
        };
        // SAFETY: see above.
        let length = unsafe { length.read() };
        if length > LONGEST {
            return None;
        }
        // SAFETY: so many bytes are there.
        let bytes = unsafe { std::slice::from_raw_parts(data, length) };
        String::from_utf8(bytes.to_vec()).ok()
    }
}

/// Mesos' own version: `ModuleManager::kindToVersion["Hook"]`, a
/// `std::unordered_map<string, string>`, which Mesos fills just before it opens
/// libraries, on the same thread.
pub(crate) fn running_version() -> Option<String> {
    #[cfg(feature = "test-switches")]
    if let Some(version) = crate::switches::version() {
        return Some(version);
    }
    let strings = Strings::of_host()?;
    // A datum whose type holds a new string has a tag in its name.
    let tag = match strings {
        Strings::New => "B5cxx11",
        Strings::Old => "",
    };
    let map = symbol(&format!("{KIND_TO_VERSION}{tag}E"))?;
    // SAFETY: the symbol is the map's, and both strings' layout is known.
    unsafe { find(map.cast(), "Hook", strings) }
}

/// The value of a key in a `std::unordered_map<string, string>`:
/// { buckets, number of buckets, first node, number of nodes, … }, a node being
/// { next, key, value, hash }.
///
/// # Safety
///
/// There must be such a map at the address, which nobody changes meanwhile.
unsafe fn find(map: *const usize, key: &str, strings: Strings) -> Option<String> {
    const MOST: usize = 64;
    // SAFETY: the map's third word.
    let mut node = unsafe { map.wrapping_add(2).read() };
    // SAFETY: the map's fourth word.
    let count = unsafe { map.wrapping_add(3).read() };
    for _ in 0..count.min(MOST) {
        if node == 0 {
            break;
        }
        let words = std::ptr::with_exposed_provenance::<usize>(node);
        let key_of_node = words.wrapping_add(1);
        // SAFETY: the map's nodes hold a string there, …
        if unsafe { strings.read(key_of_node) }.as_deref() == Some(key) {
            let value = key_of_node.wrapping_add(strings.size());
            // SAFETY: … and another one behind it.
            return unsafe { strings.read(value) };
        }
        // SAFETY: a node's first word.
        node = unsafe { words.read() };
    }
    None
}

/// `size_t ByteSizeLong() const`; in protobuf 2, which Mesos had before 1.4,
/// `int ByteSize() const`. Virtual, but exported for each class.
#[derive(Debug, Clone, Copy)]
enum ByteSize {
    Long(unsafe extern "C" fn(Address) -> usize),
    Int(unsafe extern "C" fn(Address) -> c_int),
}

impl ByteSize {
    fn of(class: &str) -> Result<Self, String> {
        // SAFETY: the type is the function's.
        if let Some(long) = unsafe { function(&format!("_ZNK5mesos{class}12ByteSizeLongEv")) } {
            return Ok(Self::Long(long));
        }
        // SAFETY: the type is the function's.
        let int = unsafe { function(&format!("_ZNK5mesos{class}8ByteSizeEv")) };
        int.map(Self::Int)
            .ok_or_else(|| format!("it exports no size of {}", plain(class)))
    }
}

/// `bool MessageLite::SerializePartialToArray(void*, int) const`: not virtual,
/// no std::string in it, no check of required fields.
type Serialize = unsafe extern "C" fn(Address, *mut u8, c_int) -> bool;

/// For messages: without the length that mangling puts before it.
fn plain(class: &str) -> &str {
    class.trim_start_matches(|c: char| c.is_ascii_digit())
}

/// A class of messages that this module reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    name: &'static str,
    byte_size: ByteSize,
    serialize: Serialize,
}

impl Class {
    fn of(name: &'static str, serialize: Serialize) -> Result<Self, String> {
        Ok(Self {
            name,
            byte_size: ByteSize::of(name)?,
            serialize,
        })
    }

    /// A message's wire format; Err: why not.
    ///
    /// # Safety
    ///
    /// There must be a message of this class at the address.
    pub(crate) unsafe fn bytes(&self, message: Address) -> Result<Vec<u8>, String> {
        let Self {
            name,
            byte_size,
            serialize,
        } = self;
        let name = plain(name);
        let size = match byte_size {
            // SAFETY: the class' own function, the message is the caller's promise.
            ByteSize::Long(size) => unsafe { size(message) },
            ByteSize::Int(size) => {
                // SAFETY: see above.
                let size = unsafe { size(message) };
                usize::try_from(size).map_err(|_| format!("{name} has a size of {size}"))?
            }
        };
        if size > LARGEST_MESSAGE {
            return Err(format!("{name} of {size} bytes is too large"));
        }
        let mut bytes = Vec::new();
        // Plain allocation would end the agent when there is no memory.
        bytes
            .try_reserve_exact(size)
            .map_err(|error| format!("{name} of {size} bytes: {error}"))?;
        bytes.resize(size, 0);
        let length = c_int::try_from(size).map_err(|error| error.to_string())?;
        // SAFETY: as above, and there are so many bytes.
        let is_done = unsafe { serialize(message, bytes.as_mut_ptr(), length) };
        is_done
            .then_some(bytes)
            .ok_or_else(|| format!("{name} of {size} bytes cannot be serialised"))
    }
}

/// A Mesos whose hooks are known.
#[derive(Debug)]
pub(crate) struct Host {
    version: Version,
    order: &'static [Slot],
    sizes: Sizes,
    pub(crate) framework_info: Class,
    pub(crate) executor_info: Class,
    pub(crate) parameters: Class,
}

impl Host {
    /// Err: why it is not supported.
    pub(crate) fn probe(version: &str) -> Result<Self, String> {
        let version = Version::parse(version)
            .ok_or("its version is none of a release (1.0.0 to 1.11.x are known)")?;
        let order = abi::order(version).ok_or("only Mesos 1.0 to 1.11 is known")?;
        check_interface(order)?;
        let sizes = Sizes::of(version);
        check_sizes(order, &sizes)?;
        let serialize = "_ZNK6google8protobuf11MessageLite23SerializePartialToArrayEPvi";
        // SAFETY: the type is the function's.
        let serialize: Serialize = unsafe { function(serialize) }
            .ok_or("it exports no MessageLite::SerializePartialToArray")?;
        Ok(Self {
            version,
            order,
            sizes,
            framework_info: Class::of("13FrameworkInfo", serialize)?,
            executor_info: Class::of("12ExecutorInfo", serialize)?,
            parameters: Class::of("10Parameters", serialize)?,
        })
    }

    /// Why no release like this one was ever run with this module.
    pub(crate) fn untested(&self) -> Option<&'static str> {
        if Strings::of_host() != Some(Strings::New) {
            Some("it was built with the old std::string (_GLIBCXX_USE_CXX11_ABI=0)")
        } else if self.version < Version(1, 4, 0) {
            Some("it is older than 1.4")
        } else {
            None
        }
    }

    /// The vtable's functions, and how many of them are the host's own.
    pub(crate) fn functions(
        &self,
        remove_executor: Address,
    ) -> Result<(Vec<Address>, usize), String> {
        let mut from_host = 0;
        let mut functions = Vec::with_capacity(self.order.len());
        for &slot in self.order {
            let own = abi::own(slot, &self.sizes)
                .ok_or_else(|| format!("{slot:?} returns something of unknown size"))?;
            functions.push(match default(slot) {
                _ if slot == Slot::SlaveRemoveExecutor => remove_executor,
                Some(theirs) if uses_host() => {
                    from_host += 1;
                    theirs
                }
                _ => own,
            });
        }
        Ok((functions, from_host))
    }

    #[cfg(feature = "test-switches")]
    pub(crate) fn layout(&self) -> (&'static [Slot], &Sizes) {
        (self.order, &self.sizes)
    }
}

/// True, but for tests of our own functions.
fn uses_host() -> bool {
    #[cfg(feature = "test-switches")]
    if crate::switches::own_only() {
        return false;
    }
    true
}

/// The interface is that of the version: what differs between the groups left a
/// mark outside of the vtable, too.
fn check_interface(order: &[Slot]) -> Result<(), String> {
    let manager = |method: &str| symbol(&format!("{HOOK_MANAGER}{method}")).is_some();
    // HookManager has a method for each of Hook's.
    let has_resource =
        manager("33masterLaunchTaskResourceDecoratorERKNS_8TaskInfoERKNS_9ResourcesE");
    // The message came with the function that returns it.
    let has_prepare =
        symbol("_ZN5mesos29DockerTaskExecutorPrepareInfo16default_instanceEv").is_some();
    if has_resource != order.contains(&Slot::MasterLaunchTaskResource)
        || has_prepare != order.contains(&Slot::SlavePreLaunchDockerTaskExecutor)
    {
        return Err("its hooks are not those of its version".to_owned());
    }
    if !manager("23slaveRemoveExecutorHookERKNS_13FrameworkInfoERKNS_12ExecutorInfoE") {
        return Err("it exports no HookManager::slaveRemoveExecutorHook".to_owned());
    }
    Ok(())
}

/// Of the messages; of Resources and Attributes there is no such way.
fn check_sizes(order: &[Slot], sizes: &Sizes) -> Result<(), String> {
    let prepare_info = order
        .contains(&Slot::SlavePreLaunchDockerTaskExecutor)
        .then_some(("29DockerTaskExecutorPrepareInfo", sizes.prepare_info));
    let messages = [
        ("6Labels", sizes.labels),
        ("11Environment", sizes.environment),
        ("10TaskStatus", sizes.task_status),
    ];
    for (class, expected) in messages.into_iter().chain(prepare_info) {
        let size = size_of_class(class);
        let class = plain(class);
        match size {
            Some(size) if size == expected => {}
            Some(size) => return Err(format!("its {class} has {size} bytes, not {expected}")),
            None => return Err(format!("it does not tell the size of {class}")),
        }
    }
    Ok(())
}

/// `sizeof`, asked from protobuf: what an empty message uses is just that.
fn size_of_class(class: &str) -> Option<usize> {
    type Instance = unsafe extern "C" fn() -> Address;
    type SpaceUsedLong = unsafe extern "C" fn(Address) -> usize;
    type SpaceUsed = unsafe extern "C" fn(Address) -> c_int;
    // SAFETY: the type is the function's.
    let instance: Instance = unsafe { function(&format!("_ZN5mesos{class}16default_instanceEv"))? };
    // SAFETY: takes nothing and returns a reference to a message.
    let instance = unsafe { instance() };
    let long = "_ZNK6google8protobuf7Message13SpaceUsedLongEv";
    // SAFETY: the type is the function's.
    if let Some(space_used) = unsafe { function::<SpaceUsedLong>(long) } {
        // SAFETY: called with a message.
        return Some(unsafe { space_used(instance) });
    }
    // SAFETY: the type is the function's (protobuf 2).
    let space_used: SpaceUsed = unsafe { function("_ZNK6google8protobuf7Message9SpaceUsedEv")? };
    // SAFETY: called with a message.
    usize::try_from(unsafe { space_used(instance) }).ok()
}

/// `Hook`'s own function, if libmesos exports it: compilers may, since all of
/// them are inline. It does what is right without knowing any layout.
pub(crate) fn default(slot: Slot) -> Option<Address> {
    let name = match slot {
        // Not known how they would be called.
        Slot::SlavePreLaunchDockerEnvironment | Slot::SlavePreLaunchDockerHook => return None,
        Slot::MasterLaunchTaskLabel => {
            "30masterLaunchTaskLabelDecoratorERKNS_8TaskInfoERKNS_13FrameworkInfoERKNS_9SlaveInfoE"
        }
        Slot::MasterLaunchTaskResource => {
            "33masterLaunchTaskResourceDecoratorERKNS_8TaskInfoERKNS_9ResourcesE"
        }
        Slot::SlaveRunTaskLabel => {
            "26slaveRunTaskLabelDecoratorERKNS_8TaskInfoERKNS_12ExecutorInfoERKNS_13FrameworkInfoERKNS_9SlaveInfoE"
        }
        Slot::MasterSlaveLost => "19masterSlaveLostHookERKNS_9SlaveInfoE",
        Slot::SlaveExecutorEnvironment => {
            "33slaveExecutorEnvironmentDecoratorERKNS_12ExecutorInfoE"
        }
        Slot::SlavePreLaunchDockerTaskExecutor => {
            "41slavePreLaunchDockerTaskExecutorDecoratorERK6OptionINS_8TaskInfoEERKNS_12ExecutorInfoERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEESG_SG_RKS1_ISt3mapISE_SE_St4lessISE_ESaISt4pairISF_SE_EEEE"
        }
        Slot::SlavePostFetch => {
            "18slavePostFetchHookERKNS_11ContainerIDERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
        }
        Slot::SlaveRemoveExecutor => {
            "23slaveRemoveExecutorHookERKNS_13FrameworkInfoERKNS_12ExecutorInfoE"
        }
        Slot::SlaveTaskStatus => "24slaveTaskStatusDecoratorERKNS_11FrameworkIDERKNS_10TaskStatusE",
        Slot::SlaveResources => "23slaveResourcesDecoratorERKNS_9SlaveInfoE",
        Slot::SlaveAttributes => "24slaveAttributesDecoratorERKNS_9SlaveInfoE",
    };
    symbol(&format!("_ZN5mesos4Hook{name}"))
}
