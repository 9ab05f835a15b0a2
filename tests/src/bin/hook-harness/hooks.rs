//! Every method of HookManager, with what each must give if no hook objects.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cleanup_tests::mesos::libmesos::{Address, CxxString, Libmesos, Object, STRING};
use cleanup_tests::wait;

use crate::message::{Message, call, garbage, repeated, serialize};
use crate::wire::{bytes, double, int};

pub(crate) const HOOK_MANAGER: &str = "_ZN5mesos8internal11HookManager";

const FUTURE: Duration = Duration::from_secs(10);
const MEGABYTE: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Empty,
    Typical,
    /// A megabyte in each message.
    Large,
}

pub(crate) struct Inputs {
    pub(crate) size: Size,
    pub(crate) framework: Vec<u8>,
    pub(crate) executor: Vec<u8>,
}

impl Inputs {
    /// What a message consists of, unless it is to be empty.
    fn message(&self, parts: &[Vec<u8>], large_field: u64) -> Vec<u8> {
        match self.size {
            Size::Empty => Vec::new(),
            Size::Typical => parts.concat(),
            Size::Large => {
                let mut all = parts.concat();
                all.extend(bytes(large_field, vec![b'x'; MEGABYTE]));
                all
            }
        }
    }
}

pub(crate) struct Hooks<'a> {
    mesos: &'a Libmesos,
    framework: Message<'a>,
    executor: Message<'a>,
    slave: Message<'a>,
    task: Message<'a>,
    framework_id: Message<'a>,
    container_id: Message<'a>,
    status: Message<'a>,
    sandbox: CxxString,
    /// `Option<T>`, none, of any T.
    none: Object,
    labels: Vec<u8>,
    environment: Vec<u8>,
    attributes: Vec<Vec<u8>>,
    resources: usize,
    has_resource_decorator: bool,
}

impl<'a> Hooks<'a> {
    pub(crate) fn new(mesos: &'a Libmesos, inputs: &Inputs) -> Result<Self> {
        let is_empty = inputs.size == Size::Empty;
        let unless_empty = |wire: Vec<u8>| if is_empty { Vec::new() } else { wire };
        let pair = |key: &str, value: &str| [bytes(1, key), bytes(2, value)].concat();
        let labels = unless_empty(
            [
                bytes(1, pair("a", "1")),
                bytes(1, pair("a key that is too long for a short string", "2")),
            ]
            .concat(),
        );
        let environment = unless_empty(bytes(1, [pair("PATH", "/bin"), int(3, 1)].concat()));
        // Without a role: Mesos aborts if one is set here.
        let resource =
            |name: &str, value| [bytes(1, name), int(2, 0), bytes(3, double(1, value))].concat();
        let attribute = [bytes(1, "rack"), int(2, 3), bytes(5, bytes(1, "r1"))].concat();

        let executor = [
            bytes(1, bytes(1, &inputs.executor)),
            bytes(7, [bytes(2, &environment), bytes(3, "true")].concat()),
            bytes(8, bytes(1, &inputs.framework)),
            bytes(14, &labels),
        ];
        let slave = [
            bytes(3, resource("cpus", 4.0)),
            bytes(3, resource("mem", 128.0)),
            bytes(5, &attribute),
            bytes(6, bytes(1, "agent-1")),
            int(8, 5051),
            bytes(1, "host"),
        ];
        let task = [
            bytes(1, "t"),
            bytes(2, bytes(1, "task-1")),
            bytes(3, bytes(1, "agent-1")),
            bytes(4, resource("cpus", 1.0)),
            bytes(4, resource("mem", 32.0)),
            bytes(10, &labels),
        ];
        let status = [
            bytes(1, bytes(1, "task-1")),
            int(2, 1),
            bytes(12, &labels),
            bytes(13, bytes(1, bytes(5, bytes(2, "10.0.0.1")))),
        ];
        let framework = [
            bytes(1, "root"),
            bytes(3, bytes(1, &inputs.framework)),
            bytes(2, "fw"),
        ];
        let new = |class, parts: &[Vec<u8>], large_field| {
            Message::new(mesos, class, &inputs.message(parts, large_field))
        };
        let mut none = garbage();
        none.set_word(0, 1);
        let decorator = format!("{HOOK_MANAGER}{RESOURCE_DECORATOR}");
        Ok(Self {
            mesos,
            framework: new("13FrameworkInfo", &framework, 2)?,
            executor: new("12ExecutorInfo", &executor, 4)?,
            slave: new("9SlaveInfo", &slave, 1)?,
            task: new("8TaskInfo", &task, 6)?,
            framework_id: new("11FrameworkID", &[bytes(1, "fw-1")], 1)?,
            container_id: new("11ContainerID", &[bytes(1, "c1")], 1)?,
            status: new("10TaskStatus", &status, 3)?,
            sandbox: CxxString::new("/a/sandbox/that/is/no/short/string")?,
            none,
            labels,
            environment,
            attributes: if is_empty {
                Vec::new()
            } else {
                vec![attribute]
            },
            resources: if is_empty { 0 } else { 2 },
            has_resource_decorator: mesos.symbol(&decorator).is_ok(),
        })
    }

    /// Calls each method once.
    pub(crate) fn all(&mut self) -> Result<()> {
        self.remove_executor()?;
        self.labels().context("labels")?;
        self.executor_environment().context("environment")?;
        self.task_status().context("task status")?;
        self.resources_and_attributes()
            .context("resources, attributes")?;
        self.others()?;
        self.prepared_docker_executor().context("future")
    }

    pub(crate) fn remove_executor(&mut self) -> Result<()> {
        let arguments = [self.framework.address(), self.executor.address()];
        self.call(REMOVE_EXECUTOR, &arguments)
    }

    /// Calls [`Self::remove_executor`] and, in turns with it, a method for which the
    /// hook does nothing; prints how long each takes, in microseconds. Both times
    /// hold what it takes to get there: finding the method by its name,
    /// HookManager, and from 1.10 on its lock.
    pub(crate) fn measure(&mut self, rounds: usize) -> Result<()> {
        let (mut hook, mut empty) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        let slave = self.slave.address();
        for _ in 0..rounds {
            let start = Instant::now();
            self.remove_executor()?;
            hook.push(start.elapsed());
            let start = Instant::now();
            self.call(SLAVE_LOST, &[slave])?;
            empty.push(start.elapsed());
        }
        for (prefix, mut times) in [("", hook), ("empty_", empty)] {
            times.sort();
            // By nearest rank: a value that was measured.
            let at = |part: f64| {
                let rank = (times.len() as f64 * part).ceil() as usize;
                times[rank.saturating_sub(1)].as_secs_f64() * 1e6
            };
            println!(
                "{prefix}p50={:.1} {prefix}p99={:.1} {prefix}p999={:.1} {prefix}max={:.1}",
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
        }
        Ok(())
    }

    fn call(&self, method: &str, arguments: &[Address]) -> Result<()> {
        // SAFETY: each caller's own; the arguments outlive the call.
        unsafe { call(self.mesos, &format!("{HOOK_MANAGER}{method}"), arguments)? };
        Ok(())
    }

    fn labels(&mut self) -> Result<()> {
        let mut result = garbage();
        let (task, executor) = (self.task.address(), self.executor.address());
        let (framework, slave) = (self.framework.address(), self.slave.address());
        let arguments = [result.address(), task, executor, framework, slave];
        self.call(RUN_TASK_LABELS, &arguments)?;
        self.check_message("6Labels", result, &self.labels.clone())?;

        let mut result = garbage();
        self.call(
            LAUNCH_TASK_LABELS,
            &[result.address(), task, framework, slave],
        )?;
        self.check_message("6Labels", result, &self.labels.clone())
    }

    fn executor_environment(&mut self) -> Result<()> {
        let mut result = garbage();
        // By value: a copy that the function may take apart.
        let mut executor = Message::new(self.mesos, "12ExecutorInfo", &self.executor.bytes()?)?;
        self.call(
            EXECUTOR_ENVIRONMENT,
            &[result.address(), executor.address()],
        )?;
        self.check_message("11Environment", result, &self.environment.clone())
    }

    fn task_status(&mut self) -> Result<()> {
        let mut result = garbage();
        let expected = self.status.bytes()?;
        let mut status = Message::new(self.mesos, "10TaskStatus", &expected)?;
        let arguments = [
            result.address(),
            self.framework_id.address(),
            status.address(),
        ];
        self.call(TASK_STATUS, &arguments)?;
        self.check_message("10TaskStatus", result, &expected)
    }

    fn resources_and_attributes(&mut self) -> Result<()> {
        let slave = self.slave.address();
        let mut attributes = garbage();
        self.call(ATTRIBUTES, &[attributes.address(), slave])?;
        // SAFETY: Attributes is one RepeatedPtrField.
        let attributes = unsafe { repeated(self.mesos, "9Attribute", &mut attributes)? };
        ensure!(attributes == self.attributes, "{attributes:?}");

        let mut resources = garbage();
        self.call(RESOURCES, &[resources.address(), slave])?;
        self.check_resources(&mut resources)?;
        if self.has_resource_decorator {
            let mut result = garbage();
            let arguments = [result.address(), self.task.address(), resources.address()];
            self.call(RESOURCE_DECORATOR, &arguments)?;
            self.check_resources(&mut result)?;
        }
        Ok(())
    }

    fn check_resources(&self, resources: &mut Object) -> Result<()> {
        let convert = "_ZNK5mesos9ResourcescvN6google8protobuf16RepeatedPtrFieldINS_8ResourceEEEEv";
        let mut list = garbage();
        // SAFETY: Resources::operator RepeatedPtrField<Resource>() const
        unsafe { call(self.mesos, convert, &[list.address(), resources.address()])? };
        // SAFETY: that is what it returned.
        let list = unsafe { repeated(self.mesos, "8Resource", &mut list)? };
        ensure!(list.len() == self.resources, "{list:?}");
        Ok(())
    }

    fn others(&mut self) -> Result<()> {
        let slave = self.slave.address();
        self.call(SLAVE_LOST, &[slave])?;
        let arguments = [self.container_id.address(), self.sandbox.address()];
        self.call(&format!("{POST_FETCH}{STRING}"), &arguments)
    }

    /// The only method that returns a Future, which libprocess makes of those of
    /// all hooks.
    fn prepared_docker_executor(&mut self) -> Result<()> {
        const READY: u32 = 1;
        let mut result = garbage();
        let text = self.sandbox.address();
        let none = self.none.address();
        let arguments = [
            result.address(),
            none,
            self.executor.address(),
            text,
            text,
            text,
            none,
        ];
        let method = format!(
            "41slavePreLaunchDockerTaskExecutorDecoratorERK6OptionINS_8TaskInfoEERKNS_12ExecutorInfoERK{STRING}SH_SH_RKS2_ISt3mapISF_SF_St4lessISF_ESaISt4pairISG_SF_EEEE"
        );
        self.call(&method, &arguments)?;
        let data = result.at(0).cast::<*mut u32>();
        // SAFETY: a Future is a shared_ptr: the address of its data comes first.
        let data = unsafe { data.read() };
        let state = data.wrapping_add(1);
        let state = wait::until(FUTURE, "the future", || {
            // SAFETY: the state is the data's second word.
            let state = unsafe { state.read_volatile() };
            (state != 0).then_some(state)
        })?;
        ensure!(state == READY, "state {state}");
        for at in [4, 6] {
            let word = data.wrapping_add(at);
            // SAFETY: a Result<DockerTaskExecutorPrepareInfo> lies at 16.
            ensure!(unsafe { word.read() } == 0, "no value");
        }
        let info = data.wrapping_add(8).cast();
        // SAFETY: its value is at 32.
        let info = unsafe { serialize(self.mesos, "29DockerTaskExecutorPrepareInfo", info)? };
        ensure!(info.is_empty(), "{info:?}");
        Ok(())
    }

    fn check_message(&self, class: &'static str, object: Object, expected: &[u8]) -> Result<()> {
        // SAFETY: the caller has had it filled with one.
        let mut message = unsafe { Message::adopt(self.mesos, class, object) };
        ensure!(message.bytes()? == expected, "{class} is not what it was");
        Ok(())
    }
}

// Of HookManager; arguments after the result, if there is one.
const REMOVE_EXECUTOR: &str = "23slaveRemoveExecutorHookERKNS_13FrameworkInfoERKNS_12ExecutorInfoE";
const RUN_TASK_LABELS: &str = "26slaveRunTaskLabelDecoratorERKNS_8TaskInfoERKNS_12ExecutorInfoERKNS_13FrameworkInfoERKNS_9SlaveInfoE";
const LAUNCH_TASK_LABELS: &str =
    "30masterLaunchTaskLabelDecoratorERKNS_8TaskInfoERKNS_13FrameworkInfoERKNS_9SlaveInfoE";
const EXECUTOR_ENVIRONMENT: &str = "33slaveExecutorEnvironmentDecoratorENS_12ExecutorInfoE";
const TASK_STATUS: &str = "24slaveTaskStatusDecoratorERKNS_11FrameworkIDENS_10TaskStatusE";
const ATTRIBUTES: &str = "24slaveAttributesDecoratorERKNS_9SlaveInfoE";
const RESOURCES: &str = "23slaveResourcesDecoratorERKNS_9SlaveInfoE";
/// Since 1.8.
const RESOURCE_DECORATOR: &str =
    "33masterLaunchTaskResourceDecoratorERKNS_8TaskInfoERKNS_9ResourcesE";
const SLAVE_LOST: &str = "19masterSlaveLostHookERKNS_9SlaveInfoE";
/// And a const std::string&.
const POST_FETCH: &str = "18slavePostFetchHookERKNS_11ContainerIDERK";
