//! Where the events of this host go: to the journal on disk and to the telemetry sinks.

use std::rc::Rc;

use farm_events::{Event, Identity, Record};
use farm_telemetry::Telemetry;
use jiff::Timestamp;
use tracing::warn;

use crate::history::History;

/// Records events.
#[derive(Debug)]
pub struct Journal {
    identity: Identity,
    clock: fn() -> Timestamp,
    history: History,
    /// None while the sinks cannot be started: events then go to the journal on disk only.
    telemetry: Option<Rc<Telemetry>>,
    history_fails: bool,
}

impl Journal {
    /// Puts both together.
    #[must_use]
    pub fn new(
        identity: Identity,
        clock: fn() -> Timestamp,
        history: History,
        telemetry: Rc<Telemetry>,
    ) -> Self {
        Self {
            identity,
            clock,
            history,
            telemetry: Some(telemetry),
            history_fails: false,
        }
    }

    /// The sinks.
    #[must_use]
    pub fn telemetry(&self) -> Option<&Rc<Telemetry>> {
        self.telemetry.as_ref()
    }

    /// Replaces identity and sinks. The old sinks are finished first: there is one spool.
    ///
    /// # Errors
    /// If the new sinks cannot start; events then go to the journal on disk only.
    pub(crate) fn renew<E>(
        &mut self,
        identity: Identity,
        start: impl FnOnce() -> Result<Telemetry, E>,
    ) -> Result<(), E> {
        self.identity = identity;
        if let Some(old) = self.telemetry.take().and_then(Rc::into_inner) {
            old.finish();
        }
        self.telemetry = Some(Rc::new(start()?));
        Ok(())
    }

    /// The sinks, for finishing them, unless somebody else still uses them.
    pub(crate) fn into_telemetry(self) -> Option<Telemetry> {
        self.telemetry.and_then(Rc::into_inner)
    }

    /// From here on events are this host's.
    pub(crate) fn identify(&mut self, identity: Identity) {
        self.identity = identity;
    }

    /// Records what happened. A journal that cannot be written is said once, and never stops a run.
    pub fn record(&mut self, event: impl Into<Event>) {
        self.record_at((self.clock)(), event.into());
    }

    /// As [`Journal::record`], of something that happened a while ago.
    pub(crate) fn record_at(&mut self, time: Timestamp, event: Event) {
        let record = Record {
            time,
            identity: self.identity.clone(),
            event,
        };
        if let Some(telemetry) = &self.telemetry {
            telemetry.record(&record);
        }
        match self.history.append(&record) {
            Ok(()) => self.history_fails = false,
            Err(error) if !self.history_fails => {
                self.history_fails = true;
                warn!(%error, "the history of this host cannot be written");
            }
            Err(_) => {}
        }
    }
}
