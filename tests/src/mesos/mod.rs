//! A real Mesos master and agent, a framework, and executors that run pods.

pub mod agent;
pub mod api;
pub mod executors;
pub mod framework;
pub mod libmesos;
pub mod pod;
pub mod runtime;
pub mod spec;
pub mod standin;
