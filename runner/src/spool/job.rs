//! What a job file may say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest job name: what the patterns of the reboot lists are matched on.
const MAX_NAME_BYTES: usize = 1024;
/// Longest argument and longest `NAME=value`: the kernel's MAX_ARG_STRLEN, its final NUL included.
const MAX_STRING_BYTES: usize = 128 * 1024 - 1;
/// Most arguments and variables. With the 1 MiB of a job file it keeps an `execve` below the 2 MiB
/// that the kernel allows with the usual stack limit of 8 MiB.
const MAX_STRINGS: usize = 10_000;
/// Variables that a shell keeps for itself; to set one ends it.
const SHELL_VARIABLES: [&str; 7] = [
    "BASHOPTS",
    "BASH_VERSINFO",
    "EUID",
    "OPTIND",
    "PPID",
    "SHELLOPTS",
    "UID",
];

/// A job as somebody submitted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Name for people, and for the patterns of `jobs.toml`.
    pub name: String,
    /// Program and arguments; the program is looked up in `PATH`.
    pub command: Vec<String>,
    /// Variables in addition to the clean environment of a job.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Why a job file is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejection(pub String);

impl Job {
    /// The job that a job file describes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Rejection> {
        // Serde would also take the values without their names, in an array.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Rejection("not a job: expected an object, in braces".into()));
        }
        let job: Self = serde_json::from_slice(bytes).map_err(|error| {
            // It quotes what it found, and what is found must not forge a line of the log.
            let error = error.to_string().replace(char::is_control, "\u{fffd}");
            Rejection(format!("not a job: {error}"))
        })?;
        job.check().map_err(Rejection)?;
        Ok(job)
    }

    fn check(&self) -> Result<(), String> {
        if self.name.trim().is_empty() {
            return Err("`name` is empty: expected a name for people".into());
        }
        if self.name.len() > MAX_NAME_BYTES || self.name.chars().any(char::is_control) {
            return Err(format!(
                "`name` is too long or not one line: expected at most {MAX_NAME_BYTES} bytes without control characters"
            ));
        }
        match self.command.first() {
            None => return Err("`command` is empty: expected a program and its arguments".into()),
            Some(program) if program.is_empty() || program.starts_with('-') => {
                return Err(format!(
                    "`command` begins with `{}`: expected the name of a program",
                    program.escape_debug()
                ));
            }
            Some(_) => {}
        }
        for name in self.env.keys() {
            check_variable(name)?;
        }
        self.check_sizes()
    }

    fn check_sizes(&self) -> Result<(), String> {
        let variables = self
            .env
            .iter()
            .map(|(name, value)| (value, name.len() + 1 + value.len()));
        let arguments = self
            .command
            .iter()
            .map(|argument| (argument, argument.len()));
        for (text, length) in arguments.chain(variables) {
            if text.contains('\0') {
                return Err("a NUL character: no argument or variable can have one".into());
            }
            if length > MAX_STRING_BYTES {
                return Err(format!(
                    "an argument or variable of {length} bytes: expected at most {MAX_STRING_BYTES}"
                ));
            }
        }
        let count = self.command.len() + self.env.len();
        if count > MAX_STRINGS {
            return Err(format!(
                "{count} arguments and variables: expected at most {MAX_STRINGS}"
            ));
        }
        Ok(())
    }
}

fn check_variable(name: &str) -> Result<(), String> {
    let mut characters = name.chars();
    let is_name = characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_');
    if !is_name {
        return Err(format!(
            "variable `{}`: expected letters, digits and `_`, not beginning with a digit",
            name.escape_debug()
        ));
    }
    if SHELL_VARIABLES.contains(&name) || name.starts_with("FARMHAND_") {
        return Err(format!("variable `{name}` cannot be set by a job"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rejection(text: &str) -> String {
        Job::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_job_has_a_name_a_command_and_perhaps_variables() {
        let job =
            Job::parse(br#"{"name":"build","command":["make","-j2"],"env":{"CI":"1"}}"#).unwrap();
        assert_eq!(job.command, ["make", "-j2"]);
        assert_eq!(job.env["CI"], "1");
        assert!(
            Job::parse(br#"{"name":"build","command":["make"]}"#)
                .unwrap()
                .env
                .is_empty()
        );
    }

    #[test]
    fn what_is_no_job_is_rejected_with_what_was_expected() {
        let said: Vec<_> = [
            "",
            "hello",
            r#"["x",["true"],{}]"#,
            r#"{"name":"x"}"#,
            r#"{"name":"x","command":"make"}"#,
            r#"{"name":"x","command":["make"],"user":"root"}"#,
            r#"{"name":"x","name":"y","command":["make"]}"#,
            r#"{"a\nb":"x"}"#,
            r#"{"name":"x","command":["-a\nb"]}"#,
            r#"{"name":" ","command":["make"]}"#,
            r#"{"name":"a\njob.result=success","command":["make"]}"#,
            r#"{"name":"x","command":[]}"#,
            r#"{"name":"x","command":[""]}"#,
            r#"{"name":"x","command":["-c"]}"#,
            r#"{"name":"x","command":["a\u0000b"]}"#,
            r#"{"name":"x","command":["a"],"env":{"A=B":"1"}}"#,
            r#"{"name":"x","command":["a"],"env":{"":"1"}}"#,
            r#"{"name":"x","command":["a"],"env":{"1A":"1"}}"#,
            r#"{"name":"x","command":["a"],"env":{"OPTIND":"1"}}"#,
            r#"{"name":"x","command":["a"],"env":{"FARMHAND_JOB_ID":"1"}}"#,
            r#"{"name":"x","command":["a"],"env":{"A":"\u0000"}}"#,
        ]
        .into_iter()
        .map(rejection)
        .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_string_may_be_as_long_as_the_kernel_takes() {
        let job = |length: usize| format!(r#"{{"name":"x","command":["{}"]}}"#, "a".repeat(length));
        assert!(Job::parse(job(MAX_STRING_BYTES).as_bytes()).is_ok());
        assert!(rejection(&job(MAX_STRING_BYTES + 1)).contains("expected at most 131071"));
    }

    #[test]
    fn too_many_strings_are_rejected() {
        let job = |count: usize| {
            format!(
                r#"{{"name":"x","command":["a"{}]}}"#,
                r#","""#.repeat(count - 1)
            )
        };
        assert!(Job::parse(job(MAX_STRINGS).as_bytes()).is_ok());
        assert!(rejection(&job(MAX_STRINGS + 1)).contains("10001 arguments"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_job_that_can_be_run_or_a_rejection(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(job) = Job::parse(&bytes) {
                prop_assert!(!job.command[0].is_empty());
            }
        }

        #[test]
        fn a_job_that_is_written_is_read_again(
            name in "[a-z]{1,9}",
            command in prop::collection::vec("[^\0]{1,9}", 1..5),
            env in prop::collection::btree_map("[A-Z]{3}", "[^\0]{0,9}", 0..4),
        ) {
            prop_assume!(!command[0].starts_with('-'));
            let job = Job { name, command, env };
            let bytes = serde_json::to_vec(&job).unwrap();
            prop_assert_eq!(Job::parse(&bytes).unwrap(), job);
        }
    }
}
