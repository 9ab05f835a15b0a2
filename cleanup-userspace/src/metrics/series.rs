//! Families whose series exist from the start: one for each value of a closed set.
//!
//! A series that appears with its first event hides that event from `increase()`,
//! and an alert on it cannot tell "none" from "not measured".

use std::fmt::Debug;

use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::PREFIX;

pub(super) type Labels = Vec<(&'static str, &'static str)>;

/// One member of a family for each key. Recording is a search through a handful of
/// keys and an atomic addition: no lock, no allocation.
#[derive(Debug)]
pub(super) struct Each<K, M> {
    members: Vec<(K, M)>,
    /// For a key that is not in the list: a defect, which must not cost the count.
    family: Family<Labels, M, fn() -> M>,
    labels: fn(K) -> Labels,
}

impl<K: Copy + PartialEq, M: Clone> Each<K, M> {
    fn new(
        family: Family<Labels, M, fn() -> M>,
        keys: impl IntoIterator<Item = K>,
        labels: fn(K) -> Labels,
    ) -> Self {
        let member = |key| (key, family.get_or_create_owned(&labels(key)));
        Self {
            members: keys.into_iter().map(member).collect(),
            family,
            labels,
        }
    }

    pub(super) fn of(&self, key: K) -> M {
        let known = self.members.iter().find(|(other, _)| *other == key);
        known.map_or_else(
            || self.family.get_or_create_owned(&(self.labels)(key)),
            |(_, member)| member.clone(),
        )
    }
}

/// Registers what is made. Names come without prefix, and without `_total`.
#[derive(Debug)]
pub(super) struct Registrar(pub(super) Registry);

impl Registrar {
    pub(super) fn new() -> Self {
        Self(Registry::with_prefix(PREFIX))
    }

    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn add_in<M: Metric + Clone>(&mut self, unit: Unit, name: &str, help: &str, metric: M) -> M {
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }

    pub(super) fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(name, help, Gauge::default())
    }

    pub(super) fn bytes(&mut self, name: &str, help: &str) -> Gauge {
        self.add_in(Unit::Bytes, name, help, Gauge::default())
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str) -> Seconds {
        self.add_in(Unit::Seconds, name, help, Seconds::default())
    }

    pub(super) fn durations(
        &mut self,
        name: &str,
        help: &str,
        new: fn() -> Histogram,
    ) -> Histogram {
        self.add_in(Unit::Seconds, name, help, new())
    }

    pub(super) fn each_duration<K: Copy + PartialEq>(
        &mut self,
        name: &str,
        help: &str,
        new: fn() -> Histogram,
        keys: impl IntoIterator<Item = K>,
        labels: fn(K) -> Labels,
    ) -> Each<K, Histogram> {
        let family = Family::new_with_constructor(new);
        Each::new(self.add_in(Unit::Seconds, name, help, family), keys, labels)
    }

    /// A counter or a gauge for each key.
    pub(super) fn each<K, M>(
        &mut self,
        name: &str,
        help: &str,
        keys: impl IntoIterator<Item = K>,
        labels: fn(K) -> Labels,
    ) -> Each<K, M>
    where
        K: Copy + PartialEq,
        M: Metric + TypedMetric + Clone + Default + Debug,
    {
        let family = Family::new_with_constructor(M::default as fn() -> M);
        Each::new(self.add(name, help, family), keys, labels)
    }
}

/// A gauge of seconds.
pub(super) type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
