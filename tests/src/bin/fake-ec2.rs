//! The fake EC2 as a program, for hands and for tests in other processes. Its first line of output is
//! its address; it ends by SIGTERM or SIGINT.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use farm_tests::ec2::{Settings, Shared, serve};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A fake EC2 on this machine: put the address it prints into `AWS_ENDPOINT_URL_EC2`.
#[derive(Debug, Parser)]
struct Arguments {
    /// Port of 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A JSON file with settings; what it leaves out is the default.
    #[arg(long)]
    settings: Option<PathBuf>,
    /// Print the settings and end.
    #[arg(long)]
    print_settings: bool,
}

/// `EX_USAGE` and `EX_CONFIG` of sysexits.h, as all our programs have them.
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(asked) => {
            let code = if asked.use_stderr() { USAGE } else { 0 };
            return match asked.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let settings = match settings(&arguments) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, CONFIGURATION),
    };
    let done = if arguments.print_settings {
        serde_json::to_string_pretty(&settings)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(std::io::stdout(), "{text}"))
    } else {
        run(settings, arguments.port)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), 1),
    }
}

fn settings(arguments: &Arguments) -> Result<Settings, String> {
    let Some(path) = &arguments.settings else {
        return Ok(Settings::default());
    };
    let text = fs_err::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("`{}`: {error}", path.display()))
}

#[tokio::main(flavor = "current_thread")]
async fn run(settings: Settings, port: u16) -> std::io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    writeln!(std::io::stdout(), "http://{}", listener.local_addr()?)?;
    tokio::select! {
        failed = serve(Shared::new(settings), listener) => failed.map(|never| match never {}),
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}

fn fail(error: &str, code: u8) -> ExitCode {
    // Nobody is left to be told if this fails too.
    writeln!(std::io::stderr(), "fake-ec2: {error}").ok();
    ExitCode::from(code)
}
