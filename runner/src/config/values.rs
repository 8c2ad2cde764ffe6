//! Types of single configuration values.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A program with its arguments: a list, or one text split at white space. No shell is involved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandLine {
    /// The program: a path, or a name looked up in the tasks' `PATH`.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl CommandLine {
    fn try_new(words: impl IntoIterator<Item = String>) -> Result<Self, &'static str> {
        let mut words = words.into_iter();
        match words.next() {
            Some(program) if !program.is_empty() => {
                let arguments = words.collect::<Vec<_>>();
                if program.contains('\0') || arguments.iter().any(|word| word.contains('\0')) {
                    return Err("a NUL character cannot be part of a command line");
                }
                Ok(Self { program, arguments })
            }
            Some(_) | None => Err("expected a program, with or without arguments, found nothing"),
        }
    }
}

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = CommandLine;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a program with its arguments: text, or a list of texts")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<CommandLine, E> {
                CommandLine::try_new(text.split_whitespace().map(String::from)).map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<CommandLine, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element::<String>()? {
                    words.push(word);
                }
                CommandLine::try_new(words).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// A signal by name, with or without `SIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub Signal);

impl<'de> Deserialize<'de> for SignalName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let full = if name.starts_with("SIG") {
            name.clone()
        } else {
            format!("SIG{name}")
        };
        Signal::from_str(&full).map(Self).map_err(|_| {
            de::Error::custom(format!(
                "`{name}` is no signal: expected a name such as `HUP`"
            ))
        })
    }
}
