//! `runner`: arguments, then configuration, then the verb, then its exit code.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use farm_telemetry::log;
use jiff::Timestamp;

use runner::child::{close_inherited_descriptors, standard_umask};
use runner::cli::{Cli, GetArgs, LogFormat, RunArgs, Verb};
use runner::config::{self, Config};
use runner::daemon::{self, Options};
use runner::exit::Exit;
use runner::host::Surroundings;
use runner::verbs::Streams;
use runner::view::View;
use runner::{reboot, spool};

fn main() -> ExitCode {
    close_inherited_descriptors();
    standard_umask();
    let mut streams = Streams {
        out: std::io::stdout(),
        err: std::io::stderr(),
    };
    let (verb, cli) = match parse(&mut streams) {
        Ok(parsed) => parsed,
        Err(exit) => return exit.into(),
    };
    match verb {
        Verb::Completions { shell } => streams.completions(shell).into(),
        Verb::Man => streams.man().into(),
        verb => match load(cli.config.as_deref(), &mut streams) {
            Ok(config) => answer(verb, config, &cli, &mut streams),
            Err(exit) => exit.into(),
        },
    }
}

fn parse(streams: &mut Standard) -> Result<(Verb, Cli), Exit> {
    let mut cli = Cli::try_parse().map_err(|error| {
        let asked = matches!(
            error.kind(),
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
        );
        // Nobody is left to tell if the stream is closed.
        drop(error.print());
        if asked { Exit::Done } else { Exit::Usage }
    })?;
    match (cli.verb.take(), cli.get.take()) {
        (Some(verb), None) => Ok((verb, cli)),
        (None, Some(key)) => Ok((Verb::Get(GetArgs { key }), cli)),
        (Some(_), Some(_)) => Err(streams.refuse(
            Exit::Usage,
            "`-g` takes no verb: type `runner -g SECTION.KEY`",
        )),
        (None, None) => Err(streams.refuse(Exit::Usage, "no verb given: type `runner --help`")),
    }
}

fn load(path: Option<&Path>, streams: &mut Standard) -> Result<Config, Exit> {
    let loaded = path.map_or_else(config::load_default, config::load);
    loaded.map_err(|faults| {
        for fault in faults {
            streams.refuse(Exit::Configuration, fault);
        }
        Exit::Configuration
    })
}

fn answer(verb: Verb, config: Config, cli: &Cli, streams: &mut Standard) -> ExitCode {
    let log = Logging {
        format: cli.log_format,
        verbosity: cli.verbose,
    };
    match verb {
        Verb::Run(args) => run(config, args, cli.config.as_deref(), &log, streams).into(),
        Verb::Order(args) => streams.order(&args, &config).into(),
        Verb::Check(args) => streams.check(&args, &config).into(),
        Verb::Get(args) => streams.get(&args, &config).into(),
        Verb::Status(args) => streams.status(&args, &config).into(),
        Verb::History(args) => streams.history(&args, &config).into(),
        Verb::Record(args) => streams.record(&args, &config, now()).into(),
        Verb::RebootDecision(args) => reboot_decision(&args, &config, streams),
        Verb::Blacklist(args) => blacklist(&args, &config, streams),
        Verb::TakeJob(args) => take_job(&args, &config, &log, streams),
        Verb::Completions { .. } | Verb::Man => unreachable!("they need no configuration"),
    }
}

type Standard = Streams<std::io::Stdout, std::io::Stderr>;

struct Logging {
    format: LogFormat,
    verbosity: u8,
}

impl Logging {
    fn start(&self, view: &View) {
        let format = match self.format {
            LogFormat::Text => log::Format::Text,
            LogFormat::Json => log::Format::Json,
        };
        log::init_to(format, self.verbosity, view.log_writer());
    }

    fn view(&self) -> View {
        let on_terminal = std::io::stderr().is_terminal() && self.format == LogFormat::Text;
        View::new(on_terminal)
    }
}

fn run(
    config: Config,
    args: RunArgs,
    config_path: Option<&Path>,
    log: &Logging,
    streams: &mut Standard,
) -> Exit {
    let view = log.view();
    log.start(&view);
    let surroundings = match surroundings(config_path, args.tasks_dir) {
        Ok(surroundings) => surroundings,
        Err(error) => return streams.refuse(Exit::Failed, error),
    };
    let options = Options {
        runs: args.runs.map(Into::into),
        halt_after: args.halt_after,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return streams.refuse(Exit::Failed, error),
    };
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, daemon::run(config, options, surroundings, view));
    match ended {
        Ok(exit) => exit,
        Err(fault) => {
            for line in fault.to_string().lines() {
                streams.refuse(fault.exit(), line);
            }
            fault.exit()
        }
    }
}

fn surroundings(
    config_path: Option<&Path>,
    tasks_dir: Option<PathBuf>,
) -> std::io::Result<Surroundings> {
    Ok(Surroundings {
        program: std::env::current_exe()?,
        config_path: config_path.map(std::path::absolute).transpose()?,
        tasks_dir,
        boot_id: fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned(),
        nonce: rand::random(),
        clock: now,
        // Named by the SDKs of the cloud; it holds an address, and no secret.
        metadata_endpoint: std::env::var_os("AWS_EC2_METADATA_SERVICE_ENDPOINT")
            .and_then(|endpoint| endpoint.into_string().ok())
            .filter(|endpoint| !endpoint.is_empty()),
    })
}

fn reboot_decision(
    args: &reboot::DecisionArgs,
    config: &Config,
    streams: &mut Standard,
) -> ExitCode {
    let (host, report) = (daemon::host_name(), report_path());
    let surroundings = reboot_surroundings(config, &host, report.as_deref());
    reboot::run_decision(args, &surroundings, &mut streams.out, &mut streams.err).into()
}

fn blacklist(args: &reboot::BlacklistArgs, config: &Config, streams: &mut Standard) -> ExitCode {
    let host = daemon::host_name();
    let surroundings = reboot_surroundings(config, &host, None);
    reboot::run_blacklist(args, &surroundings, &mut streams.out, &mut streams.err).into()
}

fn reboot_surroundings<'a>(
    config: &'a Config,
    host: &'a str,
    report: Option<&'a Path>,
) -> reboot::Surroundings<'a> {
    reboot::Surroundings {
        policy: &config.reboot,
        state_dir: &config.runner.state_dir,
        host,
        report,
        now: now(),
    }
}

fn take_job(
    args: &spool::TakeArgs,
    config: &Config,
    log: &Logging,
    streams: &mut Standard,
) -> ExitCode {
    log.start(&View::new(false));
    let (host, report) = (daemon::host_name(), report_path());
    let place = spool::Place {
        host: &host,
        report: report.as_deref(),
        clock: now,
    };
    match runtime() {
        Ok(runtime) => runtime
            .block_on(spool::take_job(
                args,
                &config.jobs,
                &place,
                &mut streams.err,
            ))
            .into(),
        Err(error) => streams.refuse(Exit::Failed, error).into(),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// The environment is read here, once.
fn report_path() -> Option<PathBuf> {
    std::env::var_os("RUNNER_OUTPUT").map(Into::into)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clock is read here, and passed on"
)]
fn now() -> Timestamp {
    Timestamp::now()
}
