//! A whole fleet at once, and what is said of it in the log.

use std::io::Write;
use std::sync::Mutex;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::*;

const HOSTS: usize = 2_000;

/// Memory of this process, in KiB.
fn resident() -> usize {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let count = line.unwrap().split_whitespace().nth(1).unwrap();
    count.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_hosts_that_report_at_once_are_answered_soon() {
    let farm = Farm::new().await;
    let records: Vec<InstanceRecord> = (0..HOSTS)
        .map(|n| suite::record(&format!("i-{n}")))
        .collect();
    farm.api.hosts.settle(&records, noon());
    let before = resident();
    let begin = Instant::now();
    let reports = (0..HOSTS).map(|n| {
        let farm = &farm;
        async move {
            let name = format!("i-{n}");
            let token = farm.api.access.host_token(&id(&name), KEY);
            farm.report(&name, token.expose(), said("idle")).await
        }
    });
    let answers: Vec<Answer> = futures_util::stream::iter(reports)
        .buffer_unordered(HOSTS)
        .collect()
        .await;
    let took = begin.elapsed();
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(answered, HOSTS);
    assert_eq!(farm.api.hosts.take_news().0.len(), HOSTS);
    let grown = resident().saturating_sub(before);
    // Unoptimised and on a busy machine two seconds and 50 MiB, the two thousand clients included.
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(grown < 128 << 10, "{grown}");
}

/// Lines of the log.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_in_the_log_or_in_an_error() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let farm = Farm::new().await;
    let join = farm.join_token();
    let token = farm.join("i-1").await;
    let wrong_key = OTHER_KEY.replace('f', "g");
    let mut answers = vec![
        farm.register("i-1", join.expose(), OTHER_KEY).await,
        farm.register("i-1", join.expose(), &wrong_key).await,
        farm.register("i-1", &token, KEY).await,
        farm.register("i-2", join.expose(), KEY).await,
        farm.report("i-2", &token, said("idle")).await,
        farm.report("i-1", join.expose(), said("idle")).await,
        farm.report("i-1", &format!("{token}x"), said("idle")).await,
        farm.report("i-1", &token, json!({ "activity": KEY })).await,
        farm.report("i-1", &token, said("idle")).await,
        farm.get("/v1/pools", &token).await,
        farm.get("/v1/pools", ADMIN).await,
        farm.get("/v1/pools", &format!("{ADMIN}x")).await,
        farm.get("/healthz", "").await,
    ];
    farm.api.store.fails.store(true, Ordering::Relaxed);
    answers.push(farm.get("/v1/passes", ADMIN).await);
    answers.push(farm.register("i-1", join.expose(), KEY).await);
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said = answers.iter().map(|answer| answer.body.to_string());
    let said: Vec<String> = said.collect();
    // It is looked at what there is.
    assert!(log.contains("a host registered"), "{log}");
    assert!(log.contains("speaks for another instance"), "{log}");
    assert!(log.contains("wrong token"), "{log}");
    assert!(log.contains("inner-secret-place"), "{log}");
    let secret: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let secrets = [
        KEY.to_owned(),
        OTHER_KEY.into(),
        wrong_key,
        ADMIN.into(),
        tag(join.expose()),
        tag(&token),
        secret,
    ];
    for secret in &secrets {
        assert!(!log.contains(secret.as_str()), "{secret} in {log}");
        for body in &said {
            assert!(!body.contains(secret.as_str()), "{secret} in {body}");
        }
    }
    assert!(said.iter().all(|body| !body.contains("inner-secret-place")));
}
