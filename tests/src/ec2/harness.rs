//! The fake EC2 of a test: starts on its own thread, ends with the value.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;

use super::control::Command;
use super::instance::Instance;
use super::machine::Ec2;
use super::server::{self, Shared};
use super::settings::Settings;

/// A running fake. Dropping it closes all connections.
#[derive(Debug)]
pub struct FakeEc2 {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeEc2 {
    /// Starts one on a loopback port of its own. It has a runtime of its own too, so it works for
    /// tests without one and for tests that pause theirs.
    ///
    /// # Panics
    ///
    /// If there is no port left.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("it is a socket");
        let address = listener.local_addr().expect("it is bound");
        let shared = Shared::new(settings);
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fake-ec2".to_owned())
            .spawn(move || run(served, listener, stopped))
            .expect("a thread is left");
        Self {
            shared,
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// What to put into `AWS_ENDPOINT_URL_EC2`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Looks at the fake, or changes it, at its present moment, while no call is at work.
    pub fn with<T>(&self, look: impl FnOnce(&mut Ec2, Timestamp) -> T) -> T {
        let mut state = self.shared.lock();
        let now = state.1.now();
        look(&mut state.0, now)
    }

    /// Does a control command.
    ///
    /// # Panics
    ///
    /// With what is wrong about it.
    pub fn control(&self, command: Command) -> Value {
        let shown = format!("{command:?}");
        self.shared
            .control(command)
            .unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    /// The time there.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.lock().1.now()
    }

    /// Puts its clock forward.
    pub fn advance(&self, by: Duration) {
        self.shared.lock().1.advance(by);
    }

    /// Every instance ever launched.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.with(|ec2, now| {
            ec2.settle(now);
            ec2.instances().cloned().collect()
        })
    }

    /// How often an action was called, in all regions.
    #[must_use]
    pub fn count(&self, action: &str) -> u64 {
        self.with(|ec2, _| ec2.count(action))
    }
}

impl Drop for FakeEc2 {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It has ended by itself if nobody listens.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the fake EC2 panicked"
            );
        }
    }
}

fn run(shared: Arc<Shared>, listener: std::net::TcpListener, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
        tokio::select! {
            failed = server::serve(shared, listener) => {
                let Err(error) = failed;
                panic!("the listener failed: {error}");
            }
            _ = stopped => {}
        }
    });
}
