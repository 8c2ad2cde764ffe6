//! The hosts as they are heard: what each said last, and what it is told.
//!
//! The HTTP API writes what hosts say, the loop writes what they are told; both read. What was heard
//! goes to the store once in a pass, in one piece, so that ten thousand hosts cost one transaction.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::ids::{ImageName, InstanceId, PoolName};
use crate::store::{Action, ActionVerb, InstanceRecord};
use crate::world::{Assignment, HostActivity, HostView};

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// What it is doing.
    pub activity: HostActivity,
    /// Since when.
    pub since: Timestamp,
    /// The job it has.
    pub job: Option<String>,
    /// Runs since it started.
    pub runs: u64,
    /// When the cloud takes it.
    pub interruption_at: Option<Timestamp>,
    /// A job that was lost with it.
    pub lost_job: Option<String>,
}

/// One host.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Its pool.
    pub pool: PoolName,
    /// Its image.
    pub image: ImageName,
    /// What it said; `None` until it registered.
    pub view: Option<HostView>,
    /// What it is told.
    pub assignment: Assignment,
    /// Whether the store has not seen the view.
    dirty: bool,
    /// The lost job that was noted, so that it is noted once.
    lost_job: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: HashMap<InstanceId, Heard>,
    /// For the history, since the last pass.
    actions: Vec<Action>,
}

/// All hosts that may speak.
#[derive(Debug, Default)]
pub struct Hosts {
    inner: Mutex<Inner>,
    /// Woken when something was said that the next pass should not wait for.
    wake: Notify,
}

impl Hosts {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the store knows. Hosts that are gone are forgotten; what was heard since
    /// stays, and so does the listener's own time: silence counts from `listening_since` at least.
    pub fn settle(&self, records: &[InstanceRecord], listening_since: Timestamp) {
        let mut inner = self.inner();
        let mut before = std::mem::take(&mut inner.hosts);
        inner.hosts.reserve(records.len());
        for record in records {
            let known = before.remove(&record.id);
            let heard = known.unwrap_or_else(|| Heard {
                pool: record.pool.clone(),
                image: record.image.clone(),
                view: record.host.clone().map(|view| HostView {
                    heard_at: view.heard_at.max(listening_since),
                    ..view
                }),
                assignment: Assignment::GoOn,
                dirty: false,
                lost_job: None,
            });
            let heard = Heard {
                assignment: record.assignment.clone(),
                ..heard
            };
            inner.hosts.insert(record.id.clone(), heard);
        }
    }

    /// Lets a host speak that the store knows and the last pass did not.
    pub fn admit(&self, record: &InstanceRecord) {
        let mut inner = self.inner();
        inner
            .hosts
            .entry(record.id.clone())
            .or_insert_with(|| Heard {
                pool: record.pool.clone(),
                image: record.image.clone(),
                view: record.host.clone(),
                assignment: record.assignment.clone(),
                dirty: false,
                lost_job: None,
            });
    }

    /// A host registered: it exists, and is idle until it says otherwise.
    pub fn registered(&self, id: &InstanceId, now: Timestamp) {
        let mut inner = self.inner();
        let Some(host) = inner.hosts.get_mut(id) else {
            return;
        };
        if host.view.is_none() {
            host.view = Some(HostView {
                registered_at: now,
                heard_at: now,
                activity: HostActivity::Idle,
                since: now,
                job: None,
                runs: 0,
                interruption_at: None,
            });
            host.dirty = true;
        }
    }

    /// A host spoke: what it is told. `None` if it is not among the hosts.
    pub fn heard(&self, id: &InstanceId, said: Said, now: Timestamp) -> Option<Assignment> {
        let mut inner = self.inner();
        let Inner { hosts, actions } = &mut *inner;
        let host = hosts.get_mut(id)?;
        let before = host.view.as_ref();
        let fenced = |activity| activity == HostActivity::Fenced;
        let news = before.is_none_or(|view| {
            (fenced(said.activity) && !fenced(view.activity))
                || said.interruption_at != view.interruption_at
        });
        let registered_at = before.map_or(now, |view| view.registered_at);
        if said.lost_job.is_some() && host.lost_job != said.lost_job {
            host.lost_job.clone_from(&said.lost_job);
            actions.push(Action {
                at: now,
                by: id.to_string(),
                verb: ActionVerb::JobLost,
                instance: Some(id.clone()),
                intent: None,
                pool: Some(host.pool.clone()),
                pass: None,
                result: format!("lost with its host: {}", said.lost_job.unwrap_or_default()),
            });
        }
        host.view = Some(HostView {
            registered_at,
            heard_at: now,
            activity: said.activity,
            since: said.since.min(now),
            job: said.job,
            runs: said.runs,
            interruption_at: said.interruption_at,
        });
        host.dirty = true;
        let assignment = host.assignment.clone();
        drop(inner);
        if news {
            self.wake.notify_one();
        }
        Some(assignment)
    }

    /// One host, as it is now.
    #[must_use]
    pub fn get(&self, id: &InstanceId) -> Option<Heard> {
        self.inner().hosts.get(id).cloned()
    }

    /// What a host is told from now on.
    pub fn assign(&self, id: &InstanceId, assignment: Assignment) {
        if let Some(host) = self.inner().hosts.get_mut(id) {
            host.assignment = assignment;
        }
    }

    /// What was heard since the last call, for the store.
    #[must_use]
    pub fn take_news(&self) -> (Vec<(InstanceId, HostView)>, Vec<Action>) {
        let mut inner = self.inner();
        let mut views = Vec::new();
        for (id, host) in &mut inner.hosts {
            if std::mem::take(&mut host.dirty)
                && let Some(view) = &host.view
            {
                views.push((id.clone(), view.clone()));
            }
        }
        views.sort_by(|(a, _), (b, _)| a.cmp(b));
        (views, std::mem::take(&mut inner.actions))
    }

    /// Puts back what the store did not take.
    pub fn return_news(&self, views: &[(InstanceId, HostView)], actions: Vec<Action>) {
        let mut inner = self.inner();
        for (id, _) in views {
            if let Some(host) = inner.hosts.get_mut(id) {
                host.dirty = true;
            }
        }
        let newer = std::mem::replace(&mut inner.actions, actions);
        inner.actions.extend(newer);
    }

    /// Until a host says something the next pass should not wait for.
    pub async fn news(&self) {
        self.wake.notified().await;
    }

    /// Wakes the loop.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// How many hosts there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inner().hosts.len()
    }
}
