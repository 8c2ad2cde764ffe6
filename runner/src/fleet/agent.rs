//! The background task: finds out which instance this is, then reports, obeys and looks for the end.

use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;

use farm_events::{AssignmentChanged, Event};
use jiff::Timestamp;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::assignment::{self, Activity, Assignment, Change, Facts, Order, Standing};
use super::config::{FleetConfig, METADATA_URL};
use super::imds::{Imds, Instance};
use super::lookout::NoticeWatch;
use super::memory::{Fence, FleetStatus, Membership, fence_path};
use super::notice::Notice;
use super::provisioner::{Fault, Provisioner, Report};
use super::{CurrentJob, Doing, Surroundings};
use crate::backoff::Backoff;

/// Waits between two questions to a metadata service that does not answer. It is on the host's own
/// machine, and while that boots it is a moment late.
const METADATA_BACKOFF: Backoff = Backoff {
    initial: Duration::from_millis(500),
    max: Duration::from_secs(60),
};

/// A provisioner that does not answer is asked again at the latest after so many times `ask_every`.
const SILENT_FACTOR: u32 = 8;
/// One that refuses this host is, after so many: only a person can change its mind.
const REFUSED_FACTOR: u32 = 10;

/// Two reports that nobody waits for are at least so far apart: a run that fails at once is no
/// reason to report all the time.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);

/// How much earlier or later than asked a host asks again, so that a farm that was started in one
/// second does not ask in one second for ever.
const JITTER: f64 = 0.1;

/// The background task.
pub(super) struct Agent {
    config: FleetConfig,
    surroundings: Surroundings,
    imds: Rc<Imds>,
    doing: watch::Receiver<Doing>,
    tell: mpsc::UnboundedSender<(Timestamp, Event)>,
    found: watch::Sender<Option<Instance>>,
    noticed: watch::Sender<Option<Notice>>,
    /// From when on a metadata service that does not answer is worth a line.
    patience: Instant,
    standing: Standing,
    is_fence_kept: bool,
    is_fence_fault_said: bool,
    activity: (Activity, Timestamp),
    /// The lost job that the provisioner knows of.
    acknowledged: Option<CurrentJob>,
    status: FleetStatus,
}

impl Agent {
    /// A host that an earlier process was told to quit takes no job from here on.
    pub(super) fn new(
        config: &FleetConfig,
        surroundings: Surroundings,
        doing: watch::Receiver<Doing>,
        tell: mpsc::UnboundedSender<(Timestamp, Event)>,
        found: watch::Sender<Option<Instance>>,
        noticed: watch::Sender<Option<Notice>>,
    ) -> Result<Self, String> {
        let base = config
            .metadata_url
            .as_deref()
            .or(surroundings.metadata_endpoint.as_deref())
            .unwrap_or(METADATA_URL);
        let imds = Imds::new(config, base)
            .map_err(|fault| format!("the address of the metadata service {fault}"))?;
        let fence = Fence::load(&surroundings.state_dir);
        let is_fence_kept = fence.is_some();
        let standing = Standing::new(fence.map(|fence| (fence.reason, fence.text)));
        let now = (surroundings.clock)();
        let mut agent = Self {
            config: config.clone(),
            surroundings,
            imds: Rc::new(imds),
            doing,
            tell,
            found,
            noticed,
            patience: Instant::now() + config.request_timeout,
            standing,
            is_fence_kept,
            is_fence_fault_said: false,
            activity: (Activity::Idle, now),
            acknowledged: None,
            status: FleetStatus::default(),
        };
        agent.obey();
        agent.publish();
        Ok(agent)
    }

    /// Waits for the metadata service, but not for long, and not for one who is asked to stop.
    pub(super) async fn find_instance_soon(&mut self) {
        let limit = self.config.request_timeout;
        let mut requests = self.surroundings.requests.clone();
        tokio::select! {
            found = timeout(limit, self.find_instance()) => {
                if let Ok(instance) = found {
                    self.adopt(instance);
                }
            }
            () = requests.stopped() => {}
        }
    }

    /// Never ends by itself.
    pub(super) async fn run(mut self) {
        if self.found.borrow().is_none() {
            let instance = self.find_instance().await;
            self.adopt(instance);
        }
        let Some(instance) = self.found.borrow().clone() else {
            return;
        };
        let watch = NoticeWatch {
            imds: Rc::clone(&self.imds),
            every: self.config.notice_every,
            leave_before_end: self.config.leave_before_end,
            wishes: self.surroundings.wishes.clone(),
            clock: self.surroundings.clock,
            tell: self.tell.clone(),
            noticed: self.noticed.clone(),
            doing: self.doing.clone(),
            leave: None,
            is_failing: false,
        };
        if instance.is_spot() {
            tokio::join!(watch.run(), self.talk(&instance));
        } else {
            self.talk(&instance).await;
        }
    }

    async fn find_instance(&mut self) -> Instance {
        let mut failures = 0;
        loop {
            let error = match self.imds.instance().await {
                Ok(instance) => return instance,
                Err(error) => error,
            };
            failures += 1;
            if Instant::now() >= self.patience && self.status.metadata_error.is_none() {
                let address = self.imds.address();
                warn!(
                    address,
                    error,
                    "the metadata service does not say which instance this is; the host works without, and asks again"
                );
                self.status.metadata_error = Some(error);
                self.publish();
            }
            sleep(METADATA_BACKOFF.delay(failures, &mut self.surroundings.rng)).await;
        }
    }

    /// From here on it is known which instance this is.
    fn adopt(&mut self, instance: Instance) {
        let Instance {
            id,
            image,
            region,
            zone,
            capacity_type,
            user_data,
        } = &instance;
        info!(
            instance_id = id,
            image,
            region,
            zone,
            capacity_type,
            pool = user_data.pool,
            "this host is an instance"
        );
        if let Some(why) = &user_data.foreign {
            warn!(
                why,
                "the user data is not the provisioner's: this host has no pool and no provisioner from it"
            );
        }
        self.lift_a_foreign_fence(id);
        self.status.instance_id = Some(id.clone());
        self.status.zone.clone_from(zone);
        self.status.capacity_type.clone_from(capacity_type);
        self.status.metadata_error = None;
        self.found.send_replace(Some(instance));
        self.publish();
    }

    /// The image of this host was made from one that was told to quit; this one was not.
    fn lift_a_foreign_fence(&mut self, instance_id: &str) {
        let directory = &self.surroundings.state_dir;
        let is_foreign =
            Fence::load(directory).is_some_and(|fence| fence.is_of_another(instance_id));
        if !is_foreign {
            return;
        }
        if let Err(error) = Fence::remove(directory) {
            error!(%error, "the fence of another instance cannot be removed: no job is taken");
            return;
        }
        info!("the fence was that of another instance: it is lifted");
        self.is_fence_kept = false;
        self.standing = Standing::new(None);
        self.obey();
    }

    /// Has the runs do what is in force.
    fn obey(&self) {
        self.surroundings.wishes.hold(self.standing.holds());
    }

    /// Registers, reports and obeys, for ever.
    async fn talk(&mut self, instance: &Instance) {
        let address = match self.config.provisioner.trim_end_matches('/') {
            "" => instance.user_data.provisioner.clone(),
            address => address.to_owned(),
        };
        if address.is_empty() {
            info!(
                "neither the user data nor `fleet.provisioner` names a provisioner: nobody is asked"
            );
            return;
        }
        let provisioner = match Provisioner::new(&self.config, &address, instance) {
            Ok(provisioner) => provisioner,
            Err(error) => {
                error!(error, "the provisioner cannot be asked");
                return;
            }
        };
        self.status.provisioner = Some(address);
        let mut membership = self.membership(&instance.id).await;
        let mut failures = 0;
        loop {
            let report = self.compose();
            let sent_at = Instant::now();
            let urgency = urgency(
                self.doing.clone(),
                self.noticed.subscribe(),
                report.clone(),
                self.acknowledged.clone(),
            );
            let answer = tokio::select! {
                answer = self.exchange(&provisioner, &mut membership, instance, &report) => answer,
                // What is on its way may hang, and the time that is left is short. To say something
                // twice does no harm.
                () = urgency => continue,
            };
            let wait = match answer {
                Ok(assignment) => {
                    failures = 0;
                    self.note_answer(&report, &assignment);
                    self.keep_fence(&instance.id);
                    let again = assignment::ask_again(assignment.ask_again, self.config.ask_every);
                    again.mul_f64(1.0 + self.surroundings.rng.random_range(-JITTER..=JITTER))
                }
                Err(fault) => {
                    failures += 1;
                    self.note_failure(&fault);
                    self.wait_after(&fault, failures, &report)
                }
            };
            self.publish();
            self.wait_for_a_reason(&report, sent_at, wait, failures > 0)
                .await;
        }
    }

    /// The key of this host, which is on the disk before anybody sees it.
    async fn membership(&mut self, instance_id: &str) -> Membership {
        let directory = self.surroundings.state_dir.clone();
        if let Some(membership) = Membership::load(&directory, instance_id) {
            return membership;
        }
        let membership = Membership::new(instance_id, rand::make_rng::<StdRng>().random());
        let mut is_said = false;
        while let Err(error) = membership.save(&directory) {
            if !is_said {
                is_said = true;
                error!(%error, "the key of this host cannot be kept: it does not register, works on, and tries again");
            }
            sleep(self.config.ask_every).await;
        }
        membership
    }

    /// Puts the quit on the disk. Until it is there, `fenced` is not said.
    fn keep_fence(&mut self, instance_id: &str) {
        if self.standing.order != Order::Quit || self.is_fence_kept {
            return;
        }
        let fence = Fence {
            instance_id: instance_id.to_owned(),
            reason: self.standing.reason.clone(),
            text: self.standing.text.clone(),
            at: (self.surroundings.clock)(),
        };
        match fence.save(&self.surroundings.state_dir) {
            Ok(()) => self.is_fence_kept = true,
            Err(error) if !self.is_fence_fault_said => {
                self.is_fence_fault_said = true;
                error!(%error, "the fence cannot be kept: the host takes no job, but does not say that it is fenced");
            }
            Err(error) => debug!(%error, "the fence still cannot be kept"),
        }
    }

    fn compose(&mut self) -> Report {
        let doing = self.doing.borrow_and_update().clone();
        let notice = self.noticed.borrow().clone();
        let facts = Facts {
            is_running: doing.is_running,
            has_job: doing.job.is_some(),
            is_leaving: doing.is_halting || self.surroundings.requests.drain(),
            is_noticed: notice.is_some(),
            is_fence_kept: self.is_fence_kept,
        };
        let activity = assignment::activity(self.standing.order, facts);
        if activity != self.activity.0 {
            self.activity = (activity, (self.surroundings.clock)());
        }
        Report {
            boot_id: self.surroundings.boot_id.clone(),
            activity,
            since: self.activity.1,
            job: doing.job,
            runs: doing.runs,
            spot_notice: notice,
            lost_job: doing
                .lost_job
                .filter(|job| self.acknowledged.as_ref() != Some(job)),
        }
    }

    /// Reports, after registering if that has to be. A token that is not taken any more is asked for
    /// again with the same key, once.
    async fn exchange(
        &self,
        provisioner: &Provisioner,
        membership: &mut Membership,
        instance: &Instance,
        report: &Report,
    ) -> Result<Assignment, Fault> {
        let mut is_fresh = false;
        loop {
            let token = match membership.host_token.clone() {
                Some(token) => token,
                None => {
                    is_fresh = true;
                    let join_token = instance.user_data.join_token.as_ref().ok_or_else(|| {
                        Fault::Unwanted("the user data holds no join token for it".into())
                    })?;
                    let boot_id = &self.surroundings.boot_id;
                    let token = provisioner
                        .register(join_token, &membership.key, boot_id)
                        .await?;
                    membership.host_token = Some(token.clone());
                    if let Err(error) = membership.save(&self.surroundings.state_dir) {
                        warn!(%error, "the token of this host cannot be kept: it is asked for again when runner starts anew");
                    }
                    token
                }
            };
            match provisioner.report(&token, report).await {
                Err(Fault::TokenRefused(why)) => {
                    membership.host_token = None;
                    if is_fresh {
                        return Err(Fault::TokenRefused(why));
                    }
                }
                answer => return answer,
            }
        }
    }

    fn note_answer(&mut self, report: &Report, assignment: &Assignment) {
        let now = (self.surroundings.clock)();
        if self.status.is_reached != Some(true) {
            info!(address = self.status.provisioner, "the provisioner answers");
            self.status.is_reached = Some(true);
            self.status.since = now;
            self.status.error = None;
        }
        if report.lost_job.is_some() {
            self.acknowledged.clone_from(&report.lost_job);
        }
        let before = self.standing.order;
        match self.standing.answered(assignment, Instant::now()) {
            Change::None => {}
            Change::New if before == Order::GoOn && assignment.order == Order::GoOn => {}
            Change::New => {
                let Assignment {
                    order,
                    reason,
                    text,
                    ..
                } = assignment;
                info!(
                    assignment = order.as_str(),
                    reason, text, "the provisioner has a new assignment for this host"
                );
                self.tell(AssignmentChanged {
                    assignment: order.as_str().into(),
                    reason: reason.clone(),
                    text: text.clone(),
                });
            }
            Change::Refused if self.status.refused != Some(assignment.order) => {
                self.status.refused = Some(assignment.order);
                warn!(
                    assignment = assignment.order.as_str(),
                    "the provisioner takes back a quit: this host stays fenced, because its end may be on its way; to use it nevertheless, remove `{}` and start runner anew",
                    fence_path(&self.surroundings.state_dir).display()
                );
            }
            Change::Refused => {}
        }
        self.obey();
    }

    fn note_failure(&mut self, fault: &Fault) {
        let is_new = self.status.is_reached != Some(false) || self.status.fault != fault.kind();
        if is_new {
            let address = &self.status.provisioner;
            match fault {
                Fault::Unreachable(error) => {
                    warn!(
                        address,
                        error,
                        "the provisioner is not reached; the host goes on with its work, and asks again"
                    );
                }
                Fault::TokenRefused(error) | Fault::Unwanted(error) => {
                    error!(
                        address,
                        error,
                        "the provisioner refuses this host; it goes on with its work, and seldom asks again"
                    );
                }
            }
            self.status.since = (self.surroundings.clock)();
        }
        self.status.is_reached = Some(false);
        fault.kind().clone_into(&mut self.status.fault);
        self.status.error = Some(fault.to_string());
    }

    fn wait_after(&mut self, fault: &Fault, failures: u32, report: &Report) -> Duration {
        let every = self.config.ask_every;
        let rng = &mut self.surroundings.rng;
        match fault {
            // There is no time for a backoff, and soon there is no host.
            Fault::Unreachable(_) if report.spot_notice.is_some() => BETWEEN_REPORTS.min(every),
            Fault::Unreachable(_) => Backoff {
                initial: every,
                max: every * SILENT_FACTOR,
            }
            .delay(failures, rng),
            Fault::TokenRefused(_) | Fault::Unwanted(_) => {
                (every * REFUSED_FACTOR).mul_f64(1.0 + rng.random_range(-JITTER..=JITTER))
            }
        }
    }

    /// Returns when it is time to report again: `wait` is over, or there is something to say that
    /// `sent` does not. What somebody waits for is said at once; the rest not all the time, and not
    /// before its time to a provisioner that does not answer.
    async fn wait_for_a_reason(
        &mut self,
        sent: &Report,
        sent_at: Instant,
        wait: Duration,
        is_failing: bool,
    ) {
        let next = Instant::now() + wait;
        let spaced = sent_at + BETWEEN_REPORTS.min(self.config.ask_every);
        let mut noticed = self.noticed.subscribe();
        loop {
            self.let_lapse();
            let report = self.compose();
            self.publish();
            let is_urgent = is_urgent(sent, report.spot_notice.as_ref(), report.lost_job.as_ref());
            let is_news = report.activity != sent.activity
                || report.job != sent.job
                || report.runs != sent.runs;
            let until = match (is_urgent, is_news && !is_failing) {
                (true, _) => return,
                (false, true) => next.min(spaced),
                (false, false) => next,
            };
            if until <= Instant::now() {
                return;
            }
            let lapses_at = self.standing.lapses_at(self.config.drain_lapses_after);
            tokio::select! {
                () = sleep_until(until.min(lapses_at.unwrap_or(until))) => {}
                changed = self.doing.changed() => {
                    if changed.is_err() {
                        // The runs are over, and this task with them.
                        std::future::pending::<()>().await;
                    }
                }
                _ = noticed.changed() => {}
                () = self.surroundings.requests.changed() => {}
            }
        }
    }

    fn let_lapse(&mut self) {
        let after = self.config.drain_lapses_after;
        if self.standing.lapse(Instant::now(), after) {
            warn!(
                ?after,
                "the provisioner was not reached for so long: its drain lapses, and the host works again"
            );
            self.tell(AssignmentChanged {
                assignment: Order::GoOn.as_str().into(),
                reason: Some("lapsed".into()),
                text: "the provisioner was not reached".into(),
            });
            self.obey();
        }
    }

    fn tell(&self, event: impl Into<Event>) {
        // Nobody listens once the runs are over.
        self.tell
            .send(((self.surroundings.clock)(), event.into()))
            .ok();
    }

    /// Shows what is known to whoever asks.
    fn publish(&mut self) {
        let doing = self.doing.borrow().clone();
        self.status.assignment = self.standing.order;
        self.status.reason.clone_from(&self.standing.reason);
        self.status.text.clone_from(&self.standing.text);
        self.status.activity = self.activity.0;
        self.status.job = doing.job;
        self.status.lost_job = doing.lost_job;
        self.status.notice.clone_from(&self.noticed.borrow());
        let mut shared = self
            .surroundings
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref() == Some(&self.status) {
            return;
        }
        *shared = Some(self.status.clone());
        if let Err(error) = self.status.save(&self.surroundings.state_dir) {
            debug!(%error, "what the fleet knows cannot be shown by `runner status`");
        }
    }
}

/// Returns when there is something to say that nobody can wait for, and `sent` does not say it.
async fn urgency(
    mut doing: watch::Receiver<Doing>,
    mut noticed: watch::Receiver<Option<Notice>>,
    sent: Report,
    acknowledged: Option<CurrentJob>,
) {
    loop {
        let notice = noticed.borrow_and_update().clone();
        let lost = doing.borrow_and_update().lost_job.clone();
        let lost = lost.filter(|job| acknowledged.as_ref() != Some(job));
        if is_urgent(&sent, notice.as_ref(), lost.as_ref()) {
            return;
        }
        tokio::select! {
            changed = doing.changed() => if changed.is_err() {
                // The runs are over, and this task with them.
                std::future::pending::<()>().await;
            },
            _ = noticed.changed() => {}
        }
    }
}

/// Whether the notice is another than the one that was said, or a job was lost since.
fn is_urgent(sent: &Report, notice: Option<&Notice>, lost: Option<&CurrentJob>) -> bool {
    notice != sent.spot_notice.as_ref() || (lost.is_some() && lost != sent.lost_job.as_ref())
}
