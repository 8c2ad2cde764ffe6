//! Where records go in the end.

pub(crate) mod influx;
pub(crate) mod jsonl;
pub(crate) mod syslog;

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use farm_events::Record;

/// Something that takes records. Fed by one task, in order.
pub(crate) trait Sink: Send + Sync {
    /// Hands over `records`. Bounded in time by the sink itself.
    fn deliver(&mut self, records: &[Record]) -> impl Future<Output = Delivery> + Send;
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Delivery {
    /// How many of the first records need not be sent again.
    pub(crate) settled: usize,
    /// How many of these the sink refused for ever.
    pub(crate) rejected: u64,
    /// Why the rest was not taken; none if all are settled.
    pub(crate) failure: Option<Failure>,
}

impl Delivery {
    /// All of `count` records were taken.
    pub(crate) const fn all(count: usize) -> Self {
        Self {
            settled: count,
            rejected: 0,
            failure: None,
        }
    }

    /// The first `settled` records were taken, then something went wrong.
    pub(crate) fn failed(settled: usize, failure: impl Into<Failure>) -> Self {
        Self {
            settled,
            rejected: 0,
            failure: Some(failure.into()),
        }
    }
}

/// Why a sink took no more for now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// For the log.
    pub(crate) message: String,
    /// How long the sink asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self {
            message,
            retry_after: None,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        error.to_string().into()
    }
}

/// The error and its causes on one line, without saying twice what two of them say.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
