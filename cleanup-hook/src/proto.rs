//! The few fields of Mesos' messages that are read.
//!
//! Ids are `bytes` here: Mesos' `string` fields hold whatever was put there, and
//! prost would refuse a `string` that is not UTF-8.

use prost::Message;

/// `FrameworkID`, `ExecutorID`.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(bytes = "vec", tag = "1")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct FrameworkInfo {
    #[prost(message, optional, tag = "3")]
    id: Option<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecutorInfo {
    #[prost(message, optional, tag = "1")]
    executor_id: Option<Id>,
    #[prost(message, optional, tag = "8")]
    framework_id: Option<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameters {
    #[prost(message, repeated, tag = "1")]
    parameter: Vec<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Who died. The agent gives no container id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) framework: Vec<u8>,
    pub(crate) executor: Vec<u8>,
}

/// From the serialised arguments of `slaveRemoveExecutorHook`. An id that is
/// not set is empty.
pub(crate) fn ids(framework: &[u8], executor: &[u8]) -> Result<Ids, prost::DecodeError> {
    let framework = FrameworkInfo::decode(framework)?;
    let executor = ExecutorInfo::decode(executor)?;
    let mut framework = framework.id.unwrap_or_default().value;
    if framework.is_empty() {
        framework = executor.framework_id.unwrap_or_default().value;
    }
    Ok(Ids {
        framework,
        executor: executor.executor_id.unwrap_or_default().value,
    })
}

/// Keys and values.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The parameters of the module, in their order.
pub(crate) fn parameters(bytes: &[u8]) -> Result<Pairs, prost::DecodeError> {
    let Parameters { parameter } = Parameters::decode(bytes)?;
    let pair = |Parameter { key, value }| (key, value);
    Ok(parameter.into_iter().map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_any_bytes_are_read_and_the_rest_is_skipped() {
        // executor_id, an unknown field, framework_id
        let executor = b"\x0a\x05\x0a\x03\xff\x00\n\x4a\x01x\x42\x03\x0a\x01E";
        let framework = b"\x0a\x04root\x1a\x03\x0a\x01F";
        let read = ids(framework, executor).expect("valid");
        assert_eq!(read.framework, b"F");
        assert_eq!(read.executor, b"\xff\x00\n");
        // The framework's own description need not have its id.
        assert_eq!(ids(b"", executor).expect("valid").framework, b"E");
        assert_eq!(ids(b"", b"").expect("valid").executor, b"");
        assert!(ids(b"\x1a\x7f", executor).is_err());
    }

    #[test]
    fn parameters_keep_their_order() {
        let bytes = b"\x0a\x06\x0a\x01b\x12\x011\x0a\x06\x0a\x01a\x12\x012";
        let expected = [("b", "1"), ("a", "2")].map(|(key, value)| (key.into(), value.into()));
        assert_eq!(parameters(bytes).expect("valid"), expected);
    }
}
