//! Token buckets: how often an action may be called, and how many machines calls may start or end.
//!
//! Sizes are those of "Request throttling for the Amazon EC2 API" (EC2 Developer Guide): per account
//! and region, "each API is evaluated individually", so every action has a bucket of the size of its
//! category. A request that finds no token fails with `RequestLimitExceeded`; it does not wait.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Size of a bucket, and tokens per second that come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    /// Tokens of a full bucket.
    pub(super) capacity: f64,
    /// Tokens per second.
    pub(super) refill: f64,
}

impl Size {
    const fn new(capacity: f64, refill: f64) -> Self {
        Self { capacity, refill }
    }
}

/// "Non-mutating actions", called with a filter, ids or `MaxResults`.
pub(super) const DESCRIBE: Size = Size::new(100.0, 20.0);
/// "Unfiltered and unpaginated non-mutating actions": the listed ones (`DescribeInstances`,
/// `DescribeInstanceStatus`, …) have it smaller when they ask for everything at once.
pub(super) const DESCRIBE_ALL: Size = Size::new(50.0, 10.0);
/// "Mutating actions"; `CreateFleet` is among them.
pub(super) const MUTATE: Size = Size::new(50.0, 5.0);
/// `RunInstances`.
pub(super) const RUN_INSTANCES: Size = Size::new(5.0, 2.0);
/// `TerminateInstances`.
pub(super) const TERMINATE_INSTANCES: Size = Size::new(100.0, 5.0);
/// `CreateTags` and `DeleteTags`.
pub(super) const TAGS: Size = Size::new(100.0, 10.0);
/// `CreateLaunchTemplateVersion` and `ModifyLaunchTemplate`.
pub(super) const TEMPLATE_VERSIONS: Size = Size::new(100.0, 5.0);
/// Machines started ("resource token bucket" of `RunInstances`). The guide does not say whether
/// `CreateFleet` draws on it; the fake assumes so, the harder case for its clients.
pub(super) const LAUNCHED_INSTANCES: Size = Size::new(1000.0, 2.0);
/// Machines ended ("resource token bucket" of `TerminateInstances`).
pub(super) const TERMINATED_INSTANCES: Size = Size::new(1000.0, 20.0);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Timestamp,
}

/// The buckets of one account in one region, by name; a bucket begins full.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets(BTreeMap<String, Bucket>);

impl Buckets {
    /// Tokens that are there at `now`, with a bucket whose size and refill are `scale` times as large.
    /// Zero switches throttling off: there are always enough.
    pub(super) fn available(&mut self, name: &str, size: Size, scale: f64, now: Timestamp) -> f64 {
        if scale <= 0.0 {
            return f64::INFINITY;
        }
        let capacity = size.capacity * scale;
        let bucket = self.0.entry(name.to_owned()).or_insert(Bucket {
            tokens: capacity,
            filled_at: now,
        });
        let passed = now.duration_since(bucket.filled_at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed * size.refill * scale).min(capacity);
        bucket.filled_at = now;
        bucket.tokens
    }

    /// Takes tokens if there are enough, all or none; says whether it did.
    pub(super) fn take(
        &mut self,
        name: &str,
        size: Size,
        scale: f64,
        now: Timestamp,
        count: u32,
    ) -> bool {
        let count = f64::from(count);
        // Refills are sums of fractions: half a millionth of a token is an error of rounding.
        let enough = self.available(name, size, scale, now) + 5e-7 >= count;
        if enough && let Some(bucket) = self.0.get_mut(name) {
            bucket.tokens -= count;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_size_at_once_and_its_refill_each_second_after() {
        let mut buckets = Buckets::default();
        let start = Timestamp::UNIX_EPOCH;
        let taken = |buckets: &mut Buckets, now| {
            (0..1000)
                .filter(|_| buckets.take("a", MUTATE, 1.0, now, 1))
                .count()
        };
        assert_eq!(taken(&mut buckets, start), 50);
        assert_eq!(taken(&mut buckets, start), 0);
        assert_eq!(
            taken(&mut buckets, start + SignedDuration::from_millis(199)),
            0
        );
        assert_eq!(
            taken(&mut buckets, start + SignedDuration::from_millis(200)),
            1
        );
        assert_eq!(taken(&mut buckets, start + SignedDuration::from_secs(2)), 9);
        assert_eq!(
            taken(&mut buckets, start + SignedDuration::from_hours(1)),
            50
        );
    }

    #[test]
    fn buckets_are_scaled_and_switched_off() {
        let mut buckets = Buckets::default();
        let now = Timestamp::UNIX_EPOCH;
        let taken = |buckets: &mut Buckets, name, scale| {
            (0..1000)
                .filter(|_| buckets.take(name, MUTATE, scale, now, 1))
                .count()
        };
        assert_eq!(taken(&mut buckets, "tenth", 0.1), 5);
        assert_eq!(taken(&mut buckets, "off", 0.0), 1000);
    }

    #[test]
    fn a_request_for_more_machines_than_tokens_takes_none() {
        let mut buckets = Buckets::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!(!buckets.take("machines", LAUNCHED_INSTANCES, 1.0, now, 1001));
        assert!(buckets.take("machines", LAUNCHED_INSTANCES, 1.0, now, 1000));
        assert!(!buckets.take("machines", LAUNCHED_INSTANCES, 1.0, now, 1));
    }
}
