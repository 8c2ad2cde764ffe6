//! What the end of a task asks for, and how a run ended.

use serde::{Deserialize, Serialize};
use std::fmt;

use crate::{ColumnValue, Value};

/// What a task's end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Go on with the next task.
    Ok,
    /// Stop working and run the halt task.
    Halt,
    /// Stop working; the machine stays up.
    Exit,
    /// The attempt failed: try again.
    Retry,
}

impl Outcome {
    /// The outcome in lower case, as in events and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Halt => "halt",
            Self::Exit => "exit",
            Self::Retry => "retry",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ColumnValue for Outcome {
    const TYPE: &'static str = "`ok`, `halt`, `exit` or `retry`";
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Text(self.as_str()))
    }
}

/// How one pass through the tasks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// Every task ended well.
    Done,
    /// A task asked to halt the host.
    Halted,
    /// A task asked to stop without halting.
    Exited,
    /// A task failed at every attempt it had.
    Failed,
    /// A person or the init system asked `runner` to stop.
    Stopped,
}

impl RunResult {
    /// The result in lower case, as in events and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Halted => "halted",
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for RunResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ColumnValue for RunResult {
    const TYPE: &'static str = "`done`, `halted`, `exited`, `failed` or `stopped`";
    fn value(&self) -> Option<Value<'_>> {
        Some(Value::Text(self.as_str()))
    }
}
