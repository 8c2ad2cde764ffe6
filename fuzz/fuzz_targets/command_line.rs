//! The command lines of both programs, one argument a line.
#![no_main]

use clap::Parser as _;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let arguments = || std::iter::once("program").chain(text.lines());
    if let Err(error) = runner::cli::Cli::try_parse_from(arguments()) {
        assert!(!error.to_string().trim().is_empty());
    }
    if let Err(error) = cleanslate::cli::Cli::try_parse_from(arguments()) {
        assert!(!error.to_string().trim().is_empty());
    }
});
