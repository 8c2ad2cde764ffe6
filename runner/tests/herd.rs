//! Two thousand hosts whose shared repository is down for ten minutes, waiting as `runner` waits.
//!
//! The hosts fail in the same second, as they do when they were all started for the same jobs.
//! The repository, once it is back, serves a fixed number of requests each second and refuses the
//! rest at once; a refused host waits for the next [`Backoff::delay`]. No clock is involved: the
//! simulation goes from request to request.

#![expect(clippy::print_stdout, reason = "prints the figures it measured")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use runner::backoff::Backoff;
use runner::config::BackoffSettings;

/// Hosts that share the repository.
const HOSTS: usize = 2_000;
/// Requests it serves in a second; the others are refused.
const CAPACITY: usize = 20;
/// For how long it is down.
const OUTAGE_MS: u64 = 600_000;
/// Seeds of the median.
const SEEDS: u64 = 21;

/// What one herd did.
struct Herd {
    /// Most requests in one second, the failure that started it all not counted.
    peak: usize,
    /// Seconds from the end of the outage until 99 % of the hosts have been served.
    t99: u64,
    /// Most attempts any host needed, the first failure included.
    attempts: u32,
    /// Hosts that needed five attempts at most.
    within_five: usize,
    /// All requests after the first failure.
    requests: usize,
}

fn simulate(backoff: Backoff, seed: u64) -> Herd {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut requests: BinaryHeap<Reverse<(u64, usize)>> = (0..HOSTS)
        .map(|host| Reverse((millis(backoff.delay(1, &mut rng)), host)))
        .collect();
    let mut failures = vec![1_u32; HOSTS];
    let mut arrived: Vec<usize> = Vec::new();
    let mut served: Vec<usize> = Vec::new();
    let mut healthy: Vec<u64> = Vec::new();
    while let Some(Reverse((at, host))) = requests.pop() {
        let second = usize::try_from(at / 1_000).expect("hours fit");
        arrived.resize(arrived.len().max(second + 1), 0);
        served.resize(served.len().max(second + 1), 0);
        arrived[second] += 1;
        if at >= OUTAGE_MS && served[second] < CAPACITY {
            served[second] += 1;
            healthy.push(at);
        } else {
            failures[host] += 1;
            requests.push(Reverse((
                at + millis(backoff.delay(failures[host], &mut rng)),
                host,
            )));
        }
    }
    let t99 = healthy[HOSTS * 99 / 100 - 1] - OUTAGE_MS;
    Herd {
        peak: arrived.iter().copied().max().unwrap_or(0),
        t99: t99.div_ceil(1_000),
        attempts: failures.iter().copied().max().unwrap_or(0) + 1,
        within_five: failures.iter().filter(|failures| **failures < 5).count(),
        requests: arrived.iter().sum(),
    }
}

fn millis(delay: std::time::Duration) -> u64 {
    u64::try_from(delay.as_millis()).expect("hours fit")
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

fn herds(backoff: Backoff) -> Vec<Herd> {
    (0..SEEDS).map(|seed| simulate(backoff, seed)).collect()
}

/// The waits of a host nobody configured.
fn default_backoff() -> Backoff {
    Backoff::new(BackoffSettings::default(), BackoffSettings::default())
}

#[test]
fn two_thousand_hosts_come_back_without_a_stampede() {
    let herds = herds(default_backoff());
    let peak = median(herds.iter().map(|herd| herd.peak));
    let t99 = median(herds.iter().map(|herd| herd.t99));
    let requests = median(herds.iter().map(|herd| herd.requests));
    let attempts = herds.iter().map(|herd| herd.attempts).max().unwrap_or(0);
    println!(
        "{HOSTS} hosts, {CAPACITY}/s, down for {} s, median of {SEEDS} seeds: peak {peak}/s, \
         99 % served {t99} s after recovery, {requests} requests; at most {attempts} attempts",
        OUTAGE_MS / 1_000
    );
    assert!(peak <= 80, "{peak}/s at the peak");
    assert!(t99 <= 230, "99 % served only after {t99} s");
}

/// The outage lasts longer than the few attempts that are enough for an ordinary task: a task that
/// uses a shared resource is given more.
#[test]
fn twenty_attempts_outlast_the_outage_for_every_host_and_five_for_hardly_one() {
    for herd in herds(default_backoff()) {
        // `simulate` ends only when every host has been served.
        assert!(herd.attempts <= 20, "{} attempts", herd.attempts);
        assert!(herd.requests < 16_000, "{} requests", herd.requests);
        assert!(herd.within_five < HOSTS / 100, "{} hosts", herd.within_five);
    }
}

/// The measure itself tells good from bad: without growth the hosts come all the time.
#[test]
fn the_same_herd_with_waits_of_five_seconds_is_a_stampede() {
    let five = Some(std::time::Duration::from_secs(5));
    let impatient = BackoffSettings {
        initial: five,
        max: five,
        seed: None,
    };
    let herd = simulate(Backoff::new(impatient, BackoffSettings::default()), 1);
    assert!(
        herd.peak > 80 && herd.requests > 100_000,
        "{}/s, {}",
        herd.peak,
        herd.requests
    );
}
