//! The external hook around each task: what it is told, and that it can never change a result.

use serde::{Deserialize, Serialize};

use farm_events::Outcome;

/// The JSON object a hook gets as its last argument. The names are those of the original runner,
/// whose hooks go on working.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookArgument {
    /// Full name of the task.
    pub task: String,
    /// Which attempt, from 1.
    pub try_num: u32,
    /// How many attempts the task has.
    pub max_retries: u32,
    /// Before the task `RUNNING`, after it what its end asks for.
    pub result: HookResult,
}

/// Where the task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HookResult {
    /// About to start.
    Running,
    /// Ended well.
    Ok,
    /// Asked to halt.
    Halt,
    /// Asked to stop.
    Exit,
    /// Failed.
    Retry,
}

impl From<Outcome> for HookResult {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok => Self::Ok,
            Outcome::Halt => Self::Halt,
            Outcome::Exit => Self::Exit,
            Outcome::Retry => Self::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_is_the_json_of_the_original() {
        let argument = HookArgument {
            task: "it's \"1-a\"".into(),
            try_num: 2,
            max_retries: 5,
            result: Outcome::Retry.into(),
        };
        assert_eq!(
            serde_json::to_string(&argument).unwrap(),
            r#"{"task":"it's \"1-a\"","try_num":2,"max_retries":5,"result":"RETRY"}"#
        );
    }
}
