//! `provisioner`: arguments, then configuration, then the verb, then its exit code.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use farm_telemetry::{Telemetry, log};
use jiff::Timestamp;
use nix::unistd::gethostname;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use provisioner::access::{Access, Admin};
use provisioner::api::{self, Api};
use provisioner::asking::Asking;
use provisioner::cli::{Cli, ExplainArgs, Format, PlanArgs, PsArgs, RunArgs, Verb};
use provisioner::cloud::any::AnyCloud;
use provisioner::cloud::local::{self, Surroundings};
use provisioner::cloud::{Cloud as _, Finding};
use provisioner::config::{self, CloudKind, Config};
use provisioner::exit::Exit;
use provisioner::hosts::Hosts;
use provisioner::ids::{PassId, PoolName};
use provisioner::pass::Centre;
use provisioner::service::{Ended, Service};
use provisioner::store::{self, AnyStore, Missing, Pass, Store, StoreError};
use provisioner::troubles::Told;
use provisioner::verbs::Streams;

/// Time for a supervisor to end after its runner did.
const LOCAL_STOP_SLACK: Duration = Duration::from_secs(5);

type Standard = Streams<std::io::Stdout, std::io::Stderr>;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error).into(),
    };
    let mut streams = Streams {
        out: std::io::stdout(),
        err: std::io::stderr(),
        format: cli.format,
    };
    match &cli.verb {
        Verb::Completions { shell } => return streams.completions(*shell).into(),
        Verb::Man => return streams.man().into(),
        Verb::LocalInstance(args) => return local::instance::run(args, now).into(),
        _ => {}
    }
    let config = match config::load(cli.config.as_deref()) {
        Ok(config) => config,
        Err(faults) => {
            for fault in faults {
                streams.refuse(Exit::Configuration, fault);
            }
            return Exit::Configuration.into();
        }
    };
    start_log(&cli);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            let message = format!("the system gives no threads: {error}");
            return streams.refuse(Exit::Failed, message).into();
        }
    };
    let (exit, again) = runtime.block_on(answer(cli, config, &mut streams));
    // What still runs is somebody else's request: the answers that matter have been given.
    runtime.shutdown_background();
    if again {
        return begin_again(&mut streams).into();
    }
    exit.into()
}

fn usage(error: &clap::Error) -> Exit {
    // Nobody is left to tell if the stream is closed.
    drop(error.print());
    match error.kind() {
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    }
}

fn start_log(cli: &Cli) {
    let format = match cli.log_format {
        Format::Text => log::Format::Text,
        Format::Json => log::Format::Json,
    };
    log::init(format, cli.verbose);
}

/// The same program with the same arguments in the place of this one: how a changed configuration is
/// taken up. All that matters is in the store.
fn begin_again(streams: &mut Standard) -> Exit {
    let mut arguments = std::env::args_os();
    let program = arguments.next().map(PathBuf::from);
    let program = std::env::current_exe().ok().or(program);
    let Some(program) = program else {
        return streams.refuse(Exit::Failed, "this program does not know what it is called");
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    streams.refuse(Exit::Failed, format!("cannot begin again: {error}"))
}

/// The answer of a verb, and whether to begin again.
async fn answer(cli: Cli, config: Config, streams: &mut Standard) -> (Exit, bool) {
    let path = cli.config;
    if let Verb::Run(args) = cli.verb {
        return match run(config, path.as_deref(), args, streams).await {
            Ok(ended) => ended,
            Err(refused) => (refused, false),
        };
    }
    let exit = match look(cli.verb, config, streams).await {
        Ok(exit) | Err(exit) => exit,
    };
    (exit, false)
}

async fn look(verb: Verb, config: Config, streams: &mut Standard) -> Result<Exit, Exit> {
    match verb {
        Verb::Check => return Ok(check(&config, streams).await),
        Verb::LocalStop => return local_stop(&config, streams).await,
        _ => {}
    }
    let store = store::open(&config.provisioner, Missing::Refuse)
        .await
        .map_err(|error| refuse_store(&error, streams))?;
    Ok(match verb {
        Verb::Plan(args) => plan(config, store, &args, streams).await?,
        Verb::Explain(args) => explain(&store, &args, streams).await?,
        Verb::Ps(PsArgs { pool }) => streams.ps(&store, &config, pool.as_ref(), now()).await,
        Verb::Pools => streams.pools(&store).await,
        Verb::Images => streams.images(&store, &config, now()).await,
        Verb::Hold(args) => streams.hold(&store, args, now()).await,
        Verb::Release(args) => streams.release(&store, args, now()).await,
        Verb::Maintenance(args) => streams.maintenance(&store, args, now()).await,
        Verb::History(args) => streams.history(&store, args, now()).await,
        Verb::Run(_)
        | Verb::Check
        | Verb::LocalStop
        | Verb::Completions { .. }
        | Verb::Man
        | Verb::LocalInstance(_) => unreachable!("answered before"),
    })
}

fn refuse_store(error: &StoreError, streams: &mut Standard) -> Exit {
    streams.refuse(Exit::Failed, error)
}

async fn run(
    config: Config,
    path: Option<&Path>,
    args: RunArgs,
    streams: &mut Standard,
) -> Result<(Exit, bool), Exit> {
    let access = Access::open(&config.provisioner)
        .map_err(|error| streams.refuse(Exit::Configuration, error))?;
    let admin = Admin::open(&config.provisioner)
        .map_err(|error| streams.refuse(Exit::Configuration, error))?;
    let store = store::open(&config.provisioner, Missing::Make)
        .await
        .map_err(|error| refuse_store(&error, streams))?;
    let store = Arc::new(store);
    // The embedded store is one process's. Asked before the port is, which the other one has too.
    let may_follow = config.provisioner.store != "sqlite";
    if !may_follow && matches!(store.lead().await, Ok(None)) {
        return Err(refuse_second(&config.provisioner.state_dir, streams));
    }
    let demand = Asking::new(&config).map_err(|faults| refuse_all(faults, streams))?;
    let telemetry = Telemetry::start(
        &config.telemetry,
        &config.provisioner.state_dir.join("spool"),
    )
    .map_err(|error| streams.refuse(Exit::Failed, chain(&error)))?;
    let listener = listen(&config, streams)?;
    let cloud = cloud(&config, streams).await?;
    let hosts = Arc::new(Hosts::default());
    let (leading, is_leading) = watch::channel(false);
    let (stop, stopping) = watch::channel(false);
    let again = listen_to_signals(stop, path.map(Path::to_owned))
        .map_err(|error| streams.refuse(Exit::Failed, error))?;

    let closing = CancellationToken::new();
    let api = Api::new(
        Arc::clone(&hosts),
        Arc::clone(&store),
        access.clone(),
        admin,
        Arc::new(config.clone()),
        now,
        is_leading,
    );
    let serving = tokio::spawn(api::serve(
        api::router(Arc::new(api)),
        listener,
        api::Limits::of_this_process(),
        closing.clone(),
    ));
    let state_dir = config.provisioner.state_dir.clone();
    let mut service = Service {
        centre: Centre {
            config,
            cloud,
            store,
            hosts,
            demand,
            welcome: access,
            listening_since: now(),
            clock: now,
        },
        passes: args.passes,
        telemetry,
        host: host_name(),
        rng: chance(),
        stop: stopping,
        leading,
        told: Told::default(),
    };
    tell_init(&sd_notify::NotifyState::Ready);
    let ended = service.run(may_follow).await;
    tell_init(&sd_notify::NotifyState::Stopping);
    closing.cancel();
    // Graceful: answers that were begun are given.
    drop(serving.await);
    let telemetry = service.telemetry;
    // It waits for sinks, for a bounded time.
    tokio::task::spawn_blocking(|| telemetry.finish())
        .await
        .ok();
    match ended {
        Ok(Ended::Asked) => Ok((Exit::Done, *again.borrow())),
        Ok(Ended::Locked) => Err(refuse_second(&state_dir, streams)),
        Err(error) => Err(refuse_store(&error, streams)),
    }
}

fn refuse_second(state_dir: &Path, streams: &mut Standard) -> Exit {
    let message = format!(
        "another provisioner works in `{}`: stop it, or give this one a `provisioner.state_dir` of its own",
        state_dir.display()
    );
    streams.refuse(Exit::Locked, message)
}

fn listen(config: &Config, streams: &mut Standard) -> Result<TcpListener, Exit> {
    let address = config.provisioner.listen;
    api::listen(address).map_err(|error| {
        streams.refuse(
            Exit::Failed,
            format!("cannot listen on {address}: {error}; free it, or set `provisioner.listen`"),
        )
    })
}

async fn cloud(config: &Config, streams: &mut Standard) -> Result<AnyCloud, Exit> {
    let program = std::env::current_exe().map_err(|error| {
        streams.refuse(
            Exit::Failed,
            format!("this program does not know where it is: {error}"),
        )
    })?;
    let surroundings = Surroundings {
        program,
        arguments: vec!["local-instance".into()],
        path: std::env::var_os("PATH").unwrap_or_default(),
        clock: now,
    };
    Ok(match config.provisioner.cloud {
        CloudKind::Local => AnyCloud::local(config, surroundings),
        #[cfg(feature = "ec2")]
        CloudKind::Ec2 => AnyCloud::ec2(config, now).await,
        #[cfg(not(feature = "ec2"))]
        CloudKind::Ec2 => unreachable!("the configuration was refused"),
    })
}

/// SIGTERM and SIGINT stop after the pass; the second one at once. SIGHUP reads the configuration
/// again, and begins again with it if it has no fault.
fn listen_to_signals(
    stop: watch::Sender<bool>,
    path: Option<PathBuf>,
) -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (again, is_again) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hang_up.recv() => match config::load(path.as_deref()) {
                    Ok(_) => {
                        again.send_replace(true);
                        stop.send_replace(true);
                    }
                    Err(faults) => {
                        for fault in faults {
                            tracing::error!(%fault, "the configuration has faults, and the old one stays");
                        }
                    }
                },
                _ = terminate.recv() => stop_or_leave(&stop, &again),
                _ = interrupt.recv() => stop_or_leave(&stop, &again),
            }
        }
    });
    Ok(is_again)
}

#[expect(clippy::exit, reason = "asked twice: what is left is in the store")]
fn stop_or_leave(stop: &watch::Sender<bool>, again: &watch::Sender<bool>) {
    again.send_replace(false);
    if stop.send_replace(true) {
        std::process::exit(i32::from(Exit::Failed.code()));
    }
}

async fn check(config: &Config, streams: &mut Standard) -> Exit {
    let fault = |fault: String| Finding {
        subject: "configuration".into(),
        fault: Some(fault),
    };
    let mut findings = match Asking::new(config) {
        Ok(asking) => asking.check(now()).await,
        Err(faults) => faults.into_iter().map(fault).collect(),
    };
    if let Err(error) = Admin::open(&config.provisioner) {
        findings.push(fault(error.to_string()));
    }
    let cloud = match cloud(config, streams).await {
        Ok(cloud) => cloud,
        Err(exit) => return exit,
    };
    findings.extend(cloud.check().await);
    streams.findings(&findings)
}

async fn local_stop(config: &Config, streams: &mut Standard) -> Result<Exit, Exit> {
    let cloud = match cloud(config, streams).await? {
        AnyCloud::Local(cloud) => cloud,
        #[cfg(feature = "ec2")]
        AnyCloud::Ec2(_) => {
            let message = "`provisioner.cloud` is `ec2`: there is nothing to stop on this machine";
            return Err(streams.refuse(Exit::Failed, message));
        }
    };
    // A runner that does not end within its grace period is killed by its own supervisor first.
    let patience = config.local.grace_period + LOCAL_STOP_SLACK;
    let stopped = local::stop_all(cloud.directory(), patience, now)
        .await
        .map_err(|error| streams.refuse(Exit::Failed, error))?;
    streams.say(format!(
        "{} instances ended, {} of them killed",
        stopped.instances - stopped.left,
        stopped.killed
    ));
    if stopped.left > 0 {
        let message = format!("{} instances are still there", stopped.left);
        return Err(streams.refuse(Exit::Failed, message));
    }
    Ok(Exit::Done)
}

async fn plan(
    config: Config,
    store: AnyStore,
    args: &PlanArgs,
    streams: &mut Standard,
) -> Result<Exit, Exit> {
    let Some(what) = &args.replay else {
        let demand = Asking::new(&config).map_err(|faults| refuse_all(faults, streams))?;
        let access = Access::open(&config.provisioner)
            .map_err(|error| streams.refuse(Exit::Configuration, error))?;
        let mut centre = Centre {
            cloud: cloud(&config, streams).await?,
            config,
            store: Arc::new(store),
            hosts: Arc::new(Hosts::default()),
            demand,
            welcome: access,
            listening_since: now(),
            clock: now,
        };
        let seed = rand::Rng::next_u64(&mut chance());
        let pass = centre
            .rehearse(seed)
            .await
            .map_err(|error| refuse_store(&error, streams))?;
        return Ok(streams.rehearsal(&pass));
    };
    let pass = match what.parse() {
        Ok(number) => stored_pass(&store, PassId(number), streams).await?,
        Err(_) => {
            let text = fs_err::read_to_string(what)
                .map_err(|error| streams.refuse(Exit::Failed, error))?;
            serde_json::from_str(&text).map_err(|error| {
                let message = format!(
                    "`{what}` holds no pass ({error}): expected what `provisioner explain PASS --format json` prints"
                );
                streams.refuse(Exit::Failed, message)
            })?
        }
    };
    Ok(streams.replay(pass, config, args.as_then))
}

async fn explain(
    store: &AnyStore,
    args: &ExplainArgs,
    streams: &mut Standard,
) -> Result<Exit, Exit> {
    let what = args.what.as_deref();
    if let Some(number) = what.and_then(|what| what.parse().ok()) {
        let pass = stored_pass(store, PassId(number), streams).await?;
        return Ok(streams.pass(&pass, None));
    }
    let pool = what
        .map(PoolName::parse)
        .transpose()
        .map_err(|fault| streams.refuse(Exit::Usage, fault))?;
    let last = store.passes(1).await;
    let last = last.map_err(|error| refuse_store(&error, streams))?;
    let Some(last) = last.first() else {
        return Err(streams.refuse(Exit::Failed, "no pass was made yet"));
    };
    let pass = stored_pass(store, last.id, streams).await?;
    if let Some(pool) = &pool
        && !pass.plan.pools.contains_key(pool)
    {
        let message = format!(
            "no pool `{pool}` in pass {}: `provisioner pools` shows them",
            pass.id
        );
        return Err(streams.refuse(Exit::Failed, message));
    }
    Ok(streams.pass(&pass, pool.as_ref()))
}

async fn stored_pass(store: &AnyStore, id: PassId, streams: &mut Standard) -> Result<Pass, Exit> {
    match store.pass(id).await {
        Ok(Some(pass)) => Ok(pass),
        Ok(None) => Err(streams.refuse(
            Exit::Failed,
            format!("pass {id} is not kept: `provisioner.passes_kept` says how many are"),
        )),
        Err(error) => Err(refuse_store(&error, streams)),
    }
}

fn refuse_all(faults: Vec<String>, streams: &mut Standard) -> Exit {
    for fault in faults {
        streams.refuse(Exit::Configuration, fault);
    }
    Exit::Configuration
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn tell_init(state: &sd_notify::NotifyState<'_>) {
    // Without systemd there is nobody to tell.
    drop(sd_notify::notify(std::slice::from_ref(state)));
}

fn host_name() -> String {
    let name = gethostname()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn chance() -> StdRng {
    rand::make_rng()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}
