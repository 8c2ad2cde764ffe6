//! This host as a member of a fleet: which instance it is, what the provisioner wants of it, and
//! when the cloud takes it back.
//!
//! # Theory of operation
//!
//! With `fleet.metadata = "imds"` one background task (`agent`) learns from the metadata service
//! which instance this is (`imds`), registers with the provisioner, reports what the host is doing
//! and is told what to do (`provisioner`), and looks for the spot notice (`lookout`, [`notice`]). The
//! runs never wait for it. They tell it what they do through a [`watch`] channel, and hear of it in
//! the same way as of a signal: a wish among the [`Requests`] that no job be taken, or that the job be
//! ended. What the provisioner says is weighed in [`assignment`], what must outlive the process is
//! kept by `memory`, which job is at work is seen by `job`.
//!
//! Everything outside may be slow, gone or lying: each request is bounded in time and size, and
//! there is one at a time. A host that cannot reach anybody goes on with its work.

mod agent;
pub mod assignment;
pub mod config;
mod http;
mod imds;
mod job;
mod lookout;
mod memory;
pub mod notice;
mod provisioner;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use farm_events::{Event, Identity};
use jiff::Timestamp;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::signals::{Requests, Wishes};
use agent::Agent;
use notice::Notice;

pub use config::FleetConfig;
pub(crate) use imds::Instance;
pub(crate) use job::{Watching, taken};
pub use memory::FleetStatus;

/// A job that a task has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentJob {
    /// Name, as the CI system calls it.
    pub name: String,
    /// Its id there; empty if the task did not say.
    pub id: String,
}

/// What the runs are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Doing {
    /// Whether a run is in progress, or the host is being halted.
    is_running: bool,
    is_halting: bool,
    job: Option<CurrentJob>,
    lost_job: Option<CurrentJob>,
    runs: u64,
}

/// What `runner status` and SIGUSR1 show; none while there is no fleet.
pub(crate) type SharedStatus = Arc<Mutex<Option<FleetStatus>>>;

/// What the fleet is told about the process it works in.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) state_dir: PathBuf,
    pub(crate) boot_id: String,
    /// Address of the metadata service from the environment.
    pub(crate) metadata_endpoint: Option<String>,
    pub(crate) clock: fn() -> Timestamp,
    pub(crate) wishes: Wishes,
    pub(crate) requests: Requests,
    pub(crate) status: SharedStatus,
    pub(crate) rng: StdRng,
}

/// The fleet, as the runs see it. Without one nothing it is told goes anywhere.
#[derive(Debug)]
pub(crate) struct Fleet {
    doing: watch::Sender<Doing>,
    /// What happened, and when, for the journal.
    news: mpsc::UnboundedReceiver<(Timestamp, Event)>,
    instance: watch::Receiver<Option<Instance>>,
    notice: watch::Receiver<Option<Notice>>,
    agent: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Starts what is configured. Waits a little for the metadata service, so that the first events
    /// have their tags; one that does not answer is asked again in the background.
    ///
    /// # Errors
    /// What keeps it from starting at all.
    pub(crate) async fn start(
        config: &FleetConfig,
        surroundings: Surroundings,
    ) -> Result<Self, String> {
        let (doing, doings) = watch::channel(Doing::default());
        let (tell, news) = mpsc::unbounded_channel();
        let (found, instance) = watch::channel(None);
        let (noticed, notice) = watch::channel(None);
        let agent = if config.is_on() {
            let mut agent = Agent::new(config, surroundings, doings, tell, found, noticed)?;
            agent.find_instance_soon().await;
            Some(tokio::task::spawn_local(agent.run()))
        } else {
            None
        };
        Ok(Self {
            doing,
            news,
            instance,
            notice,
            agent,
        })
    }

    /// Whether anybody wants to know what the runs do.
    pub(crate) fn is_on(&self) -> bool {
        self.agent.is_some()
    }

    /// Run number `runs` begins. From here on, and not only from its first task on, the host is not
    /// fenced: nothing may wait between the look at the wishes and this.
    pub(crate) fn run_began(&self, runs: u64) {
        self.doing.send_modify(|doing| {
            doing.is_running = true;
            doing.job = None;
            doing.runs = runs;
        });
    }

    /// The run is over, its host clean or given up.
    pub(crate) fn run_ended(&self) {
        self.doing.send_modify(|doing| {
            doing.is_running = false;
            doing.job = None;
        });
    }

    /// The host is being halted.
    pub(crate) fn halting(&self) {
        self.doing.send_modify(|doing| {
            doing.is_running = true;
            doing.is_halting = true;
        });
    }

    /// A task of the run has taken this job.
    pub(crate) fn job_taken(&self, job: CurrentJob) {
        self.doing.send_modify(|doing| doing.job = Some(job));
    }

    /// The job of this run was given up because the cloud takes the instance back.
    pub(crate) fn job_lost(&self, job: CurrentJob) {
        self.doing.send_modify(|doing| doing.lost_job = Some(job));
    }

    /// Looks at the report of a task, so that a job is known as soon as it is taken.
    pub(crate) fn watch_report(&self, report: impl AsFd, trusted: bool) -> Watching {
        Watching::start(report, trusted, self.doing.clone())
    }

    /// What happened meanwhile.
    pub(crate) fn next_news(&mut self) -> Option<(Timestamp, Event)> {
        self.news.try_recv().ok()
    }

    /// Waits for news.
    pub(crate) async fn news(&mut self) -> (Timestamp, Event) {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// Whether it was learnt since the last call which instance this is.
    pub(crate) fn has_new_instance(&mut self) -> bool {
        let is_new = self.instance.has_changed().unwrap_or_default();
        if is_new {
            self.instance.mark_unchanged();
        }
        is_new
    }

    /// Fills in what the configuration leaves open.
    pub(crate) fn identify(&self, identity: &mut Identity) {
        let instance = self.instance.borrow();
        let Some(instance) = instance.as_ref() else {
            return;
        };
        let image = match instance.user_data.image.as_str() {
            "" => &instance.image,
            image => image,
        };
        for (own, known) in [
            (&mut identity.pool, instance.user_data.pool.as_str()),
            (&mut identity.image, image),
            (&mut identity.region, instance.region.as_str()),
            (&mut identity.instance_id, instance.id.as_str()),
        ] {
            if own.is_empty() {
                known.clone_into(own);
            }
        }
    }

    /// The spot notice in force, in words.
    pub(crate) fn notice(&self) -> Option<String> {
        let notice = self.notice.borrow();
        notice
            .as_ref()
            .map(|notice| format!("{} at {}", notice.action, notice.time))
    }

    /// Ends the background task.
    pub(crate) async fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            // Ended by us: that is its only end.
            agent.await.ok();
        }
    }
}
