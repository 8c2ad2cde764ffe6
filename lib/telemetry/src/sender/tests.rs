use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;
use crate::tests::{number, record};
use farm_events::Record;

/// When a sink was asked, and with which records.
type Tries = Vec<(Duration, Vec<u32>)>;

/// What a made-up sink does with a batch.
enum Act {
    Take,
    /// Takes so many, then fails.
    Fail(usize),
    /// Fails and asks to be left alone.
    Busy(Duration),
    Hang,
}

/// A sink that plays a script, then takes everything, and notes when it was asked.
#[derive(Default)]
struct Scripted {
    script: VecDeque<Act>,
    log: Arc<Mutex<Tries>>,
    started: Option<Instant>,
}

impl Sink for Scripted {
    async fn deliver(&mut self, records: &[Record]) -> Delivery {
        let started = *self.started.get_or_insert_with(Instant::now);
        let numbers = records.iter().map(number).collect();
        self.log.lock().unwrap().push((started.elapsed(), numbers));
        match self.script.pop_front().unwrap_or(Act::Take) {
            Act::Take => Delivery::all(records.len()),
            Act::Fail(settled) => Delivery::failed(settled, "broken".to_owned()),
            Act::Busy(pause) => Delivery::failed(
                0,
                Failure {
                    message: "busy".to_owned(),
                    retry_after: Some(pause),
                },
            ),
            Act::Hang => pending().await,
        }
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    spool: Arc<Spool>,
    status: Arc<Status>,
    log: Arc<Mutex<Tries>>,
    stop: watch::Sender<Option<Instant>>,
    task: JoinHandle<()>,
    /// How often the feeder was woken.
    polls: Arc<AtomicU32>,
}

fn rig(script: impl IntoIterator<Item = Act>) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(dir.path(), 64 << 20, &["s".to_owned()]).unwrap());
    let sink = Scripted {
        script: script.into_iter().collect(),
        ..Scripted::default()
    };
    let (log, status) = (Arc::clone(&sink.log), Arc::new(Status::default()));
    let (stop, stopped) = watch::channel(None);
    let feeder = Feeder {
        sink,
        number: 0,
        name: "s".to_owned(),
        spool: Arc::clone(&spool),
        status: Arc::clone(&status),
    };
    let polls = Arc::new(AtomicU32::new(0));
    let task = tokio::spawn(counted(feeder.run(stopped), Arc::clone(&polls)));
    Rig {
        _dir: dir,
        spool,
        status,
        log,
        stop,
        task,
        polls,
    }
}

async fn counted(future: impl Future<Output = ()>, polls: Arc<AtomicU32>) {
    let mut future = pin!(future);
    poll_fn(|context| {
        polls.fetch_add(1, Ordering::Relaxed);
        future.as_mut().poll(context)
    })
    .await
}

impl Rig {
    fn fill(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.spool.append(&record(number));
        }
    }

    fn tries(&self) -> Tries {
        self.log.lock().unwrap().clone()
    }

    async fn finish(self, flush: Duration) -> Duration {
        let asked = Instant::now();
        self.stop.send_replace(Some(asked + flush));
        self.task.await.unwrap();
        asked.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_gets_the_same_records_again_after_growing_pauses() {
    let rig = rig([Act::Fail(0), Act::Fail(0), Act::Fail(0), Act::Take]);
    rig.fill(0..3);
    sleep(Duration::from_secs(60)).await;
    let tries = rig.tries();
    assert_eq!(tries.len(), 4);
    assert!(tries.iter().all(|(_, numbers)| *numbers == [0, 1, 2]));
    for (pair, longest) in tries.windows(2).zip([1, 2, 4]) {
        let pause = (pair[1].0 - pair[0].0).as_secs_f64();
        let longest = f64::from(longest);
        assert!(
            (longest / 2.0..longest + 0.01).contains(&pause),
            "{pause} of {longest}"
        );
    }
    let stats = rig.status.stats("s");
    assert_eq!(
        (stats.delivered, stats.failing_for, stats.last_error),
        (3, None, None)
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_before_a_failure_is_not_sent_again() {
    let rig = rig([Act::Fail(2)]);
    rig.fill(0..5);
    sleep(Duration::from_secs(5)).await;
    let numbers: Vec<_> = rig
        .tries()
        .into_iter()
        .map(|(_, numbers)| numbers)
        .collect();
    assert_eq!(numbers, [vec![0, 1, 2, 3, 4], vec![2, 3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_to_be_left_alone_is_within_reason() {
    let rig = rig([Act::Busy(Duration::from_secs(90)), Act::Busy(Duration::MAX)]);
    rig.fill(0..1);
    sleep(Duration::from_secs(1000)).await;
    let times: Vec<_> = rig
        .tries()
        .into_iter()
        .map(|(time, _)| time.as_secs())
        .collect();
    assert_eq!(times, [0, 90, 390]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_host_sends_batches_and_not_one_record_at_a_time() {
    let rig = rig([]);
    for number in 0..1000 {
        rig.fill(number..number + 1);
        sleep(Duration::from_millis(1)).await;
    }
    let tries = rig.tries();
    assert!(
        (5..=15).contains(&tries.len()),
        "{} batches in one second",
        tries.len()
    );
    rig.finish(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_healthy_sink_gets_the_rest_at_once() {
    let rig = rig([]);
    rig.fill(0..3);
    sleep(Duration::from_millis(10)).await;
    rig.fill(3..10_000);
    let (spool, status) = (Arc::clone(&rig.spool), Arc::clone(&rig.status));
    let took = rig.finish(Duration::from_secs(5)).await;
    assert!(took < Duration::from_millis(1), "{took:?}");
    assert_eq!(status.stats("s").delivered, 10_000);
    assert_eq!(spool.stats().0, 0);
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_sink_that_fails_is_not_waited_for() {
    let rig = rig((0..100).map(|_| Act::Fail(0)));
    rig.fill(0..3);
    sleep(Duration::from_secs(100)).await;
    let status = Arc::clone(&rig.status);
    assert_eq!(rig.finish(Duration::from_secs(5)).await, Duration::ZERO);
    let stats = status.stats("s");
    assert_eq!(stats.last_error.as_deref(), Some("broken"));
    assert!(stats.failing_for.unwrap() >= Duration::from_secs(100));
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_sink_that_hangs_has_a_second_from_the_start_of_its_delivery() {
    let hanging = rig([Act::Hang]);
    hanging.fill(0..3);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(
        hanging.finish(Duration::from_secs(5)).await,
        Duration::from_millis(600)
    );

    let hanging = rig([Act::Hang]);
    hanging.fill(0..3);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(hanging.finish(Duration::from_secs(5)).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_idle_feeder_never_wakes_up() {
    let rig = rig([]);
    rig.fill(0..1);
    sleep(Duration::from_secs(1)).await;
    let before = rig.polls.load(Ordering::Relaxed);
    assert!(before > 0);
    sleep(Duration::from_secs(1_000_000)).await;
    assert_eq!(rig.polls.load(Ordering::Relaxed), before);
    rig.fill(1..2);
    sleep(Duration::from_secs(1)).await;
    assert!(
        rig.polls.load(Ordering::Relaxed) > before,
        "the count counts"
    );
}

proptest! {
    #[test]
    fn a_pause_doubles_up_to_a_minute_and_is_never_less_than_half(
        failures in 1u32..,
        chance in 0.0..=1.0,
    ) {
        let longest = if failures < 7 { 1u64 << (failures - 1) } else { 60 }.min(60);
        let pause = pause(failures, None, chance).as_secs_f64();
        prop_assert!(pause <= longest as f64 && pause >= longest as f64 / 2.0);
    }
}
