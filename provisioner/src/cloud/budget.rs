//! How often the cloud may be called: token buckets that are found empty here before they are there.
//!
//! [`Ledger`] is the rule: given the time, it says whose turn it is. [`Budget`] is the waiting room in
//! front of it. One ledger stands for one account in one region, as the cloud counts.
//!
//! **Order.** Who waits for the same bucket goes by [`Priority`], then by arrival. Nobody overtakes:
//! a cheap call never passes a dear one of the same priority that waits for the same bucket, so
//! none starves. Who would wait longer than his patience is told so at once, and blocks nobody.
//!
//! **Adaptation.** The account may have other users. When the cloud says that it was asked too often,
//! the bucket of that call is empty here as well and its refill is halved, at most once per
//! [`WINDOW`], because all calls of one moment learn of the same shortage, and not below 1/16 of the
//! published rate. It recovers by 1/60 of the published rate for every second that passes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A bucket of the cloud. Those of requests are shared by all our actions of that category: if the
/// cloud counts each action apart, as it says, we use less than it grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bucket {
    /// Requests that only ask, with a filter or in pages.
    Describe,
    /// Requests that change something and are in no other category; `CreateFleet` is one.
    Mutate,
    /// `RunInstances` requests.
    Run,
    /// `TerminateInstances` requests.
    Terminate,
    /// `CreateLaunchTemplateVersion` requests.
    TemplateVersion,
    /// Instances launched. Published for `RunInstances`; whether `CreateFleet` draws on it is not
    /// said, so we assume that it does.
    LaunchedInstances,
    /// Instances ended.
    EndedInstances,
}

/// Size of a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Tokens of a full bucket.
    pub capacity: u32,
    /// Tokens that come back per second.
    pub refill: f64,
}

impl Bucket {
    /// Every bucket.
    pub const ALL: [Self; 7] = [
        Self::Describe,
        Self::Mutate,
        Self::Run,
        Self::Terminate,
        Self::TemplateVersion,
        Self::LaunchedInstances,
        Self::EndedInstances,
    ];

    /// The published size: "Request throttling for the Amazon EC2 API" in the EC2 Developer Guide.
    #[must_use]
    pub const fn size(self) -> Size {
        let (capacity, refill) = match self {
            Self::Describe => (100, 20.0),
            Self::Mutate => (50, 5.0),
            Self::Run => (5, 2.0),
            Self::Terminate | Self::TemplateVersion => (100, 5.0),
            Self::LaunchedInstances => (1000, 2.0),
            Self::EndedInstances => (1000, 20.0),
        };
        Size { capacity, refill }
    }
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Ending instances: what is not ended costs money.
    Terminate,
    /// Launching, and what a launch needs to know.
    Launch,
    /// Looking.
    Observe,
    /// A person's `check`, which has time.
    Check,
}

/// What one call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    request: Bucket,
    instances: Option<(Bucket, u32)>,
}

impl Cost {
    /// One request.
    #[must_use]
    pub const fn request(bucket: Bucket) -> Self {
        Self {
            request: bucket,
            instances: None,
        }
    }

    /// One request that also draws `count` tokens, or as many as there can ever be, from the bucket
    /// `of`.
    #[must_use]
    pub const fn with_instances(self, of: Bucket, count: u32) -> Self {
        let most = of.size().capacity;
        let count = if count < most { count } else { most };
        Self {
            instances: Some((of, count)),
            ..self
        }
    }

    fn tokens(self) -> impl Iterator<Item = (Bucket, f64)> {
        let instances = self.instances.map(|(of, count)| (of, f64::from(count)));
        [Some((self.request, 1.0)), instances].into_iter().flatten()
    }

    fn takes_from(self, bucket: Bucket) -> bool {
        self.tokens().any(|(of, _)| of == bucket)
    }
}

/// Answers that arrive within this time of one that halved the refill speak of the same shortage.
pub const WINDOW: Duration = Duration::from_secs(1);
/// A refill is never slowed to less than this share of the published one: a call every 3 seconds
/// still finds out when it is over.
const SLOWEST: f64 = 1.0 / 16.0;
/// Share of the published refill that comes back each second.
const RECOVERY: f64 = 1.0 / 60.0;
/// Refills are sums of fractions: a millionth of a token is an error of rounding.
const ROUNDING: f64 = 1e-6;

/// What one bucket holds.
#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: f64,
    /// Tokens per second at `at`; rises from there to the published refill.
    refill: f64,
    at: Instant,
    slowed_at: Option<Instant>,
}

impl Level {
    /// Brings the level to `now`. A clock that stepped back changes nothing.
    fn settle(&mut self, size: Size, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let slope = size.refill * RECOVERY;
        let rising = ((size.refill - self.refill) / slope).clamp(0.0, seconds);
        let risen = (self.refill + slope * rising).min(size.refill);
        let came = f64::midpoint(self.refill, risen) * rising + size.refill * (seconds - rising);
        self.tokens = (self.tokens + came).min(f64::from(size.capacity));
        self.refill = risen;
        self.at = self.at.max(now);
    }

    fn slow_down(&mut self, size: Size, now: Instant) {
        self.tokens = self.tokens.min(0.0);
        let known = self
            .slowed_at
            .is_some_and(|at| now.saturating_duration_since(at) < WINDOW);
        if !known {
            self.refill = (self.refill / 2.0).max(size.refill * SLOWEST);
            self.slowed_at = Some(now);
        }
    }

    /// How long until there are `wanted` tokens, at the refill of now; less if that recovers.
    fn until(&self, wanted: f64) -> Duration {
        let missing = wanted - self.tokens;
        if missing <= ROUNDING {
            return Duration::ZERO;
        }
        // Rounded up to the millisecond, which timers count in.
        let millis = (missing / self.refill * 1000.0).ceil();
        Duration::try_from_secs_f64(millis / 1000.0).unwrap_or(Duration::MAX)
    }
}

/// A place in the queue. The smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    priority: Priority,
    number: u64,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Go: the tokens are taken and the ticket is used up.
    Now,
    /// First in the queue; there are no tokens before this time.
    At(Instant),
    /// Others go first.
    Behind,
}

/// The buckets of one account in one region, and who waits for them.
#[derive(Clone, Debug)]
pub struct Ledger {
    levels: BTreeMap<Bucket, Level>,
    queue: BTreeMap<Ticket, Cost>,
    tickets: u64,
}

impl Ledger {
    /// With full buckets.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let full = |bucket: Bucket| {
            let size = bucket.size();
            let level = Level {
                tokens: f64::from(size.capacity),
                refill: size.refill,
                at: now,
                slowed_at: None,
            };
            (bucket, level)
        };
        Self {
            levels: Bucket::ALL.into_iter().map(full).collect(),
            queue: BTreeMap::new(),
            tickets: 0,
        }
    }

    /// A place in the queue for a call of this cost.
    pub fn enter(&mut self, priority: Priority, cost: Cost) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket {
            priority,
            number: self.tickets,
        };
        self.queue.insert(ticket, cost);
        ticket
    }

    /// Gives up a place.
    pub fn leave(&mut self, ticket: Ticket) {
        self.queue.remove(&ticket);
    }

    /// Whether the call of `ticket` may be made at `now`; if so it counts as made.
    pub fn ask(&mut self, ticket: Ticket, now: Instant) -> Turn {
        let Some(&cost) = self.queue.get(&ticket) else {
            return Turn::Now;
        };
        let mut ahead = self.queue.range(..ticket).map(|(_, other)| other);
        if ahead.any(|other| cost.tokens().any(|(bucket, _)| other.takes_from(bucket))) {
            return Turn::Behind;
        }
        let waits = cost
            .tokens()
            .map(|(bucket, tokens)| self.level(bucket, now).until(tokens));
        match waits.max() {
            Some(wait) if !wait.is_zero() => Turn::At(now + wait),
            Some(_) | None => {
                for (bucket, tokens) in cost.tokens() {
                    self.level_mut(bucket, now).tokens -= tokens;
                }
                self.queue.remove(&ticket);
                Turn::Now
            }
        }
    }

    /// How long `ticket` will wait if nobody more urgent comes.
    #[must_use]
    pub fn expected_wait(&self, ticket: Ticket, now: Instant) -> Duration {
        let Some(cost) = self.queue.get(&ticket) else {
            return Duration::ZERO;
        };
        let waits = cost.tokens().map(|(bucket, _)| {
            let wanted = self
                .queue
                .range(..=ticket)
                .flat_map(|(_, ahead)| ahead.tokens())
                .filter(|(of, _)| *of == bucket)
                .map(|(_, tokens)| tokens)
                .sum();
            self.level(bucket, now).until(wanted)
        });
        waits.max().unwrap_or_default()
    }

    /// The cloud answered a call of this cost with "too many"; it does not say which bucket it was,
    /// so it is taken for that of requests. Returns how long a further call will wait at least.
    pub fn throttled(&mut self, cost: Cost, now: Instant) -> Duration {
        let level = self.level_mut(cost.request, now);
        level.slow_down(cost.request.size(), now);
        level.until(1.0)
    }

    /// The first of each bucket's queue: one of them goes next.
    fn firsts(&self) -> impl Iterator<Item = Ticket> {
        let first = |bucket: Bucket| {
            self.queue
                .iter()
                .find(move |(_, cost)| cost.takes_from(bucket))
        };
        Bucket::ALL
            .into_iter()
            .filter_map(first)
            .map(|(ticket, _)| *ticket)
    }

    fn level(&self, bucket: Bucket, now: Instant) -> Level {
        let mut level = self.levels[&bucket];
        level.settle(bucket.size(), now);
        level
    }

    fn level_mut(&mut self, bucket: Bucket, now: Instant) -> &mut Level {
        let level = self
            .levels
            .get_mut(&bucket)
            .expect("every bucket has a level");
        level.settle(bucket.size(), now);
        level
    }
}

/// There are no tokens in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "our budget of calls is used up for {}",
    humantime::format_duration(*retry_after)
)]
pub struct Exhausted {
    /// Wait at least this long.
    pub retry_after: Duration,
}

#[derive(Debug)]
struct Room {
    ledger: Ledger,
    waiting: BTreeMap<Ticket, Arc<Notify>>,
}

impl Room {
    fn wake_firsts(&self) {
        for ticket in self.ledger.firsts() {
            if let Some(notify) = self.waiting.get(&ticket) {
                notify.notify_one();
            }
        }
    }
}

/// The waiting room in front of a [`Ledger`].
#[derive(Debug)]
pub struct Budget(Mutex<Room>);

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(Room {
            ledger: Ledger::new(Instant::now()),
            waiting: BTreeMap::new(),
        }))
    }
}

impl Budget {
    /// Waits for the turn of a call; when it returns, the tokens are taken.
    ///
    /// # Errors
    /// If that would take, or took, longer than `patience`. No token is taken then.
    pub async fn admit(
        &self,
        priority: Priority,
        cost: Cost,
        patience: Duration,
    ) -> Result<(), Exhausted> {
        let begin = Instant::now();
        let place = Place::new(self, priority, cost);
        let expected = self.room().ledger.expected_wait(place.ticket, begin);
        if expected > patience {
            return Err(Exhausted {
                retry_after: expected,
            });
        }
        let deadline = begin + patience;
        loop {
            let now = Instant::now();
            let turn = self.room().ledger.ask(place.ticket, now);
            let look_again = match turn {
                Turn::Now => return Ok(()),
                Turn::At(at) => at.min(deadline),
                Turn::Behind => deadline,
            };
            if now >= deadline {
                let retry_after = self.room().ledger.expected_wait(place.ticket, now);
                return Err(Exhausted { retry_after });
            }
            tokio::select! {
                () = tokio::time::sleep_until(look_again) => {}
                () = place.notify.notified() => {}
            }
        }
    }

    /// As [`Ledger::throttled`].
    pub fn throttled(&self, cost: Cost) -> Duration {
        self.room().ledger.throttled(cost, Instant::now())
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // Whoever panicked left the room in order: no change spans a call that can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ticket that is given back when its holder goes on or gives up.
struct Place<'a> {
    budget: &'a Budget,
    ticket: Ticket,
    notify: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn new(budget: &'a Budget, priority: Priority, cost: Cost) -> Self {
        let notify = Arc::new(Notify::new());
        let mut room = budget.room();
        let ticket = room.ledger.enter(priority, cost);
        room.waiting.insert(ticket, Arc::clone(&notify));
        drop(room);
        Self {
            budget,
            ticket,
            notify,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut room = self.budget.room();
        room.ledger.leave(self.ticket);
        room.waiting.remove(&self.ticket);
        room.wake_firsts();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DESCRIBE: Cost = Cost::request(Bucket::Describe);
    const MUTATE: Cost = Cost::request(Bucket::Mutate);

    fn launch(count: u32) -> Cost {
        MUTATE.with_instances(Bucket::LaunchedInstances, count)
    }

    /// How many calls of `cost` are admitted at `now`, out of `tries`.
    fn admitted(ledger: &mut Ledger, cost: Cost, tries: u32, now: Instant) -> u32 {
        (0..tries)
            .map(|_| {
                let ticket = ledger.enter(Priority::Observe, cost);
                let goes = ledger.ask(ticket, now) == Turn::Now;
                ledger.leave(ticket);
                u32::from(goes)
            })
            .sum()
    }

    #[test]
    fn the_buckets_are_those_the_cloud_publishes() {
        let published = [
            (Bucket::Describe, 100, 20.0),
            (Bucket::Mutate, 50, 5.0),
            (Bucket::Run, 5, 2.0),
            (Bucket::Terminate, 100, 5.0),
            (Bucket::TemplateVersion, 100, 5.0),
            (Bucket::LaunchedInstances, 1000, 2.0),
            (Bucket::EndedInstances, 1000, 20.0),
        ];
        assert_eq!(published.map(|(bucket, ..)| bucket), Bucket::ALL);
        for (bucket, capacity, refill) in published {
            assert_eq!(bucket.size(), Size { capacity, refill }, "{bucket:?}");
        }
    }

    #[test]
    fn a_bucket_gives_its_size_at_once_and_its_refill_after() {
        let start = Instant::now();
        for bucket in Bucket::ALL {
            let (mut ledger, cost) = (Ledger::new(start), Cost::request(bucket));
            let size = bucket.size();
            assert_eq!(
                admitted(&mut ledger, cost, 2000, start),
                size.capacity,
                "{bucket:?}"
            );
            let next = Duration::from_secs_f64(1.0 / size.refill);
            let early = start + next - Duration::from_millis(1);
            assert_eq!(admitted(&mut ledger, cost, 10, early), 0, "{bucket:?}");
            assert_eq!(
                admitted(&mut ledger, cost, 10, start + next),
                1,
                "{bucket:?}"
            );
            let hour = start + Duration::from_secs(3600);
            assert_eq!(
                admitted(&mut ledger, cost, 2000, hour),
                size.capacity,
                "{bucket:?}"
            );
        }
    }

    #[test]
    fn a_launch_takes_tokens_for_each_of_its_instances() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, launch(400), 3, start), 2);
        assert_eq!(admitted(&mut ledger, launch(200), 2, start), 1);
        // None are left, and two come back each second.
        assert_eq!(admitted(&mut ledger, launch(1), 1, start), 0);
        assert_eq!(
            admitted(&mut ledger, launch(10), 2, start + Duration::from_secs(5)),
            1
        );
        // Other calls of the same category are not kept waiting by that.
        assert_eq!(admitted(&mut ledger, MUTATE, 1, start), 1);
    }

    #[test]
    fn a_launch_of_more_than_a_bucket_holds_takes_all_it_holds() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, launch(5000), 2, start), 1);
        assert_eq!(admitted(&mut ledger, launch(1), 1, start), 0);
    }

    #[test]
    fn the_more_urgent_goes_first_and_equals_in_order_of_arrival() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, DESCRIBE, 200, start), 100);
        let looks = ledger.enter(Priority::Observe, DESCRIBE);
        let looks_too = ledger.enter(Priority::Observe, DESCRIBE);
        let launches = ledger.enter(Priority::Launch, DESCRIBE);
        let ends = ledger.enter(Priority::Terminate, DESCRIBE);
        let checks = ledger.enter(Priority::Check, DESCRIBE);
        let later = start + Duration::from_secs(1);
        for next in [ends, launches, looks, looks_too, checks] {
            let others = [looks, looks_too, launches, ends, checks];
            for other in others.into_iter().filter(|other| *other > next) {
                assert_eq!(ledger.ask(other, later), Turn::Behind);
            }
            assert_eq!(ledger.ask(next, later), Turn::Now);
        }
    }

    #[test]
    fn calls_of_different_buckets_do_not_wait_for_each_other() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, MUTATE, 100, start), 50);
        let launches = ledger.enter(Priority::Launch, MUTATE);
        let looks = ledger.enter(Priority::Observe, DESCRIBE);
        assert!(matches!(ledger.ask(launches, start), Turn::At(_)));
        assert_eq!(ledger.ask(looks, start), Turn::Now);
    }

    #[test]
    fn a_cheap_call_does_not_starve_a_dear_one_that_came_before() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, launch(1000), 1, start), 1);
        let dear = ledger.enter(Priority::Launch, launch(20));
        let cheap = ledger.enter(Priority::Launch, launch(1));
        let soon = start + Duration::from_secs(1);
        assert_eq!(ledger.ask(cheap, soon), Turn::Behind);
        assert_eq!(
            ledger.ask(dear, soon),
            Turn::At(start + Duration::from_secs(10))
        );
        assert_eq!(ledger.ask(dear, start + Duration::from_secs(10)), Turn::Now);
        assert!(matches!(
            ledger.ask(cheap, start + Duration::from_secs(10)),
            Turn::At(_)
        ));
    }

    #[test]
    fn the_wait_counts_everyone_ahead() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, MUTATE, 100, start), 50);
        let first = ledger.enter(Priority::Launch, MUTATE);
        let second = ledger.enter(Priority::Launch, MUTATE);
        assert_eq!(
            ledger.expected_wait(first, start),
            Duration::from_millis(200)
        );
        assert_eq!(
            ledger.expected_wait(second, start),
            Duration::from_millis(400)
        );
    }

    #[test]
    fn being_throttled_empties_the_bucket_and_halves_its_refill_once_a_second() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        // 5 per second, halved: 2.5 per second, so a call after 400 ms.
        assert_eq!(ledger.throttled(MUTATE, start), Duration::from_millis(400));
        let same_moment = start + WINDOW - Duration::from_millis(1);
        ledger.throttled(MUTATE, same_moment);
        let slow = ledger.level(Bucket::Mutate, same_moment).refill;
        assert!((2.5..2.6).contains(&slow), "{slow}");
        ledger.throttled(MUTATE, same_moment + WINDOW);
        let slower = ledger.level(Bucket::Mutate, same_moment + WINDOW).refill;
        assert!((1.2..1.4).contains(&slower), "{slower}");
        // The others are as before.
        assert_eq!(admitted(&mut ledger, DESCRIBE, 200, start), 100);
    }

    #[test]
    fn a_refill_never_stops_and_is_back_a_minute_after_the_last_refusal() {
        let mut now = Instant::now();
        let mut ledger = Ledger::new(now);
        for _ in 0..100 {
            now += WINDOW;
            ledger.throttled(MUTATE, now);
        }
        let slowest = ledger.level(Bucket::Mutate, now).refill;
        assert!((slowest - 5.0 / 16.0).abs() < 1e-9, "{slowest}");
        let half_way = ledger
            .level(Bucket::Mutate, now + Duration::from_secs(28))
            .refill;
        assert!((2.6..2.7).contains(&half_way), "{half_way}");
        let minute = ledger
            .level(Bucket::Mutate, now + Duration::from_secs(60))
            .refill;
        assert!((minute - 5.0).abs() < f64::EPSILON, "{minute}");
    }

    #[test]
    fn a_clock_that_stands_or_steps_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(100);
        let mut ledger = Ledger::new(start);
        assert_eq!(admitted(&mut ledger, MUTATE, 100, start), 50);
        assert_eq!(
            admitted(&mut ledger, MUTATE, 100, start - Duration::from_secs(100)),
            0
        );
        assert_eq!(admitted(&mut ledger, MUTATE, 100, start), 0);
    }

    proptest! {
        /// The bucket of the cloud is another implementation; ours never gives what it would refuse.
        #[test]
        fn whatever_is_asked_in_whatever_order_no_bucket_gives_more_than_published(
            steps in prop::collection::vec((0u64..3000, 0usize..3, 1u32..60, any::<bool>()), 1..60)
        ) {
            let mut now = Instant::now();
            let mut ledger = Ledger::new(now);
            let mut given: BTreeMap<Bucket, f64> = BTreeMap::new();
            let begin = now;
            for (pause, kind, count, refused) in steps {
                now += Duration::from_millis(pause);
                let cost = [DESCRIBE, MUTATE, launch(count)][kind];
                for _ in 0..count {
                    if admitted(&mut ledger, cost, 1, now) == 1 {
                        for (bucket, tokens) in cost.tokens() {
                            *given.entry(bucket).or_default() += tokens;
                        }
                    }
                }
                if refused {
                    ledger.throttled(cost, now);
                }
                for (bucket, given) in &given {
                    let size = bucket.size();
                    let most = f64::from(size.capacity) + size.refill * (now - begin).as_secs_f64();
                    prop_assert!(*given <= most + 0.001, "{bucket:?}: {given} of {most}");
                }
            }
        }
    }

    const PATIENT: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn two_hundred_calls_at_once_are_made_at_the_published_rate() {
        let budget = Arc::new(Budget::default());
        let begin = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let budget = Arc::clone(&budget);
            calls.spawn(async move { budget.admit(Priority::Observe, DESCRIBE, PATIENT).await });
        }
        for admitted in calls.join_all().await {
            admitted.unwrap();
        }
        // 100 at once and 100 more at 20 per second.
        assert_eq!(begin.elapsed().as_millis(), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_overtakes_those_that_wait() {
        let budget = Arc::new(Budget::default());
        for _ in 0..50 {
            budget
                .admit(Priority::Observe, MUTATE, PATIENT)
                .await
                .unwrap();
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        let priorities = [
            Priority::Check,
            Priority::Observe,
            Priority::Launch,
            Priority::Terminate,
        ];
        for priority in priorities {
            let (budget, order) = (Arc::clone(&budget), Arc::clone(&order));
            tasks.spawn(async move {
                budget.admit(priority, MUTATE, PATIENT).await.unwrap();
                order.lock().unwrap().push(priority);
            });
            tokio::task::yield_now().await;
        }
        while tasks.join_next().await.is_some() {}
        let mut sorted = priorities;
        sorted.sort();
        assert_eq!(*order.lock().unwrap(), sorted);
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_told_at_once_and_takes_nothing() {
        let budget = Budget::default();
        budget
            .admit(Priority::Launch, launch(1000), PATIENT)
            .await
            .unwrap();
        let begin = Instant::now();
        let refused = budget
            .admit(Priority::Launch, launch(100), Duration::from_secs(10))
            .await
            .unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(50));
        assert_eq!(
            refused.to_string(),
            "our budget of calls is used up for 50s"
        );
        assert_eq!(begin.elapsed(), Duration::ZERO);
        budget
            .admit(Priority::Launch, launch(20), Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_lets_the_next_one_go() {
        let budget = Arc::new(Budget::default());
        budget
            .admit(Priority::Launch, launch(1000), PATIENT)
            .await
            .unwrap();
        let begin = Instant::now();
        let dear = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.admit(Priority::Launch, launch(1000), PATIENT).await }
        });
        tokio::task::yield_now().await;
        let next = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.admit(Priority::Launch, launch(2), PATIENT).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        dear.abort();
        next.await.unwrap().unwrap();
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_also_when_more_urgent_calls_keep_coming() {
        let budget = Arc::new(Budget::default());
        for _ in 0..50 {
            budget
                .admit(Priority::Launch, MUTATE, PATIENT)
                .await
                .unwrap();
        }
        let look = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move {
                budget
                    .admit(Priority::Observe, MUTATE, Duration::from_secs(2))
                    .await
            }
        });
        tokio::task::yield_now().await;
        let urgent: Vec<_> = (0..20)
            .map(|_| {
                let budget = Arc::clone(&budget);
                tokio::spawn(
                    async move { budget.admit(Priority::Terminate, MUTATE, PATIENT).await },
                )
            })
            .collect();
        let begin = Instant::now();
        assert!(look.await.unwrap().is_err());
        assert_eq!(begin.elapsed(), Duration::from_secs(2));
        for call in urgent {
            call.await.unwrap().unwrap();
        }
        assert_eq!(begin.elapsed(), Duration::from_secs(4));
    }
}
