//! Every event, declared once: its fields, whether each is a tag, and what it means.

use serde::{Deserialize, Serialize};

use crate::{Column, ColumnValue, Outcome, Role, RunResult};

/// What `docs/events.md` says of one field.
#[derive(Clone, Copy, Debug)]
pub struct FieldSchema {
    /// Name in every output.
    pub name: &'static str,
    /// Tag or field.
    pub role: Role,
    /// Type, in words.
    pub value_type: &'static str,
    /// Meaning, with the unit.
    pub doc: &'static [&'static str],
}

/// What `docs/events.md` says of one event.
#[derive(Clone, Copy, Debug)]
pub struct EventSchema {
    /// Measurement, or value of the JSON key `event`.
    pub name: &'static str,
    /// When it is recorded.
    pub doc: &'static [&'static str],
    /// Its fields in order.
    pub fields: &'static [FieldSchema],
}

macro_rules! role {
    (tag) => {
        Role::Tag
    };
    (field) => {
        Role::Field
    };
}

macro_rules! events {
    ($(
        $(#[doc = $event_doc:literal])*
        $event:ident $event_name:literal {
            $(
                $(#[doc = $field_doc:literal])*
                $role:ident $field:ident: $type:ty,
            )*
        }
    )*) => {
        $(
            $(#[doc = $event_doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub struct $event {
                $(
                    $(#[doc = $field_doc])*
                    pub $field: $type,
                )*
            }

            impl From<$event> for Event {
                fn from(event: $event) -> Self {
                    Self::$event(event)
                }
            }
        )*

        /// A fact that is counted.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        pub enum Event {
            $(
                $(#[doc = $event_doc])*
                #[serde(rename = $event_name)]
                $event($event),
            )*
        }

        impl Event {
            /// The measurement this event belongs to.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$event(_) => $event_name,)*
                }
            }

            /// Every column whose value is known, in the order of declaration.
            #[must_use]
            pub fn columns(&self) -> Vec<Column<'_>> {
                match self {
                    $(Self::$event(event) => [
                        $((stringify!($field), role!($role), event.$field.value()),)*
                    ]
                    .into_iter()
                    .filter_map(|(name, role, value)| Some(Column { name, role, value: value? }))
                    .collect(),)*
                }
            }
        }

        /// All events, for the reference page.
        pub const SCHEMA: &[EventSchema] = &[
            $(EventSchema {
                name: $event_name,
                doc: &[$($event_doc),*],
                fields: &[
                    $(FieldSchema {
                        name: stringify!($field),
                        role: role!($role),
                        value_type: <$type as ColumnValue>::TYPE,
                        doc: &[$($field_doc),*],
                    },)*
                ],
            },)*
        ];
    };
}

events! {
    /// An attempt of a task is about to start.
    TaskStarted "task_started" {
        /// Full name of the task: its file name.
        tag task: String,
        /// Run the attempt belongs to; unique on the host.
        field run_id: String,
        /// Which attempt of this task in this run, from 1.
        field attempt: u32,
        /// How many attempts the task has.
        field max_attempts: u32,
    }

    /// An attempt of a task ended, and nothing it started is left.
    TaskFinished "task_finished" {
        /// Full name of the task: its file name.
        tag task: String,
        /// What its end asks for.
        tag outcome: Outcome,
        /// Run the attempt belongs to; unique on the host.
        field run_id: String,
        /// Which attempt of this task in this run, from 1.
        field attempt: u32,
        /// How many attempts the task has.
        field max_attempts: u32,
        /// Exit code, if it exited by itself.
        field exit_code: Option<i32>,
        /// Number of the signal that ended it, if one did.
        field signal: Option<i32>,
        /// Whether it was ended because it ran longer than its `timeout`.
        field timed_out: bool,
        /// Whether it was ended because `runner` was asked to stop, or because the cloud takes the
        /// instance back. That is no retry.
        field stopped: bool,
        /// From start until nothing of it was left, in milliseconds.
        field duration_ms: u64,
        /// Wait before the next attempt in milliseconds; absent if there is none.
        field delay_ms: Option<u64>,
        /// Bytes it wrote to standard output and standard error.
        field output_bytes: u64,
        /// Processes it left behind, which were killed.
        field leftovers: u32,
        /// Why it could not be started, if it could not.
        field error: Option<String>,
    }

    /// A pass through the tasks ended.
    RunFinished "run_finished" {
        /// How it ended.
        tag result: RunResult,
        /// The run; unique on the host.
        field run_id: String,
        /// Task that decided the result, unless all ended well.
        field task: Option<String>,
        /// Runs finished since the host booted, this one included.
        field runs_since_boot: u64,
        /// Attempts of all tasks in this run.
        field attempts: u32,
        /// Duration in milliseconds, waits between attempts included.
        field duration_ms: u64,
    }

    /// A job that a task had taken ended.
    JobFinished "job_finished" {
        /// Name of the job, as the CI system calls it.
        tag job: String,
        /// Its result in the CI system's words: `success`, `failure`, …
        tag result: String,
        /// Task that took the job.
        tag task: String,
        /// The job's id in the CI system.
        field id: Option<String>,
        /// Page that shows the job.
        field url: Option<String>,
        /// Run that took the job; unique on the host.
        field run_id: String,
        /// Duration of the attempt that took the job, in milliseconds.
        field duration_ms: u64,
        /// The spot notice that the job was given up for: what is done to the instance, and when.
        field interruption: Option<String>,
    }

    /// The provisioner told the host something new, or a drain lapsed.
    AssignmentChanged "assignment_changed" {
        /// `go_on`, `drain` or `quit`.
        tag assignment: String,
        /// Why, in the provisioner's word; `lapsed` if it was not reached for too long.
        tag reason: Option<String>,
        /// Why, in a sentence for a person.
        field text: String,
    }

    /// The cloud said that it takes this spot instance back, or that it does not after all.
    InterruptionNoticed "interruption_noticed" {
        /// What is done to the instance: `terminate`, `stop` or `hibernate`.
        tag action: String,
        /// When, RFC 3339.
        field time_of_action: String,
        /// Whether the notice is no longer there.
        field withdrawn: bool,
        /// The job at work, if one is.
        field job: Option<String>,
    }

    /// `runner` started for the first time since the host booted.
    HostBooted "host_booted" {
        /// Kernel's id of this boot.
        field boot_id: String,
        /// Kernel's id of the boot before, if `runner` ran in it.
        field previous_boot_id: Option<String>,
        /// From the last halt until now in milliseconds; absent if `runner` did not halt the host.
        field gap_ms: Option<u64>,
        /// Why the host was halted, if `runner` did it.
        field halt_reason: Option<String>,
    }

    /// It was decided whether the host must reboot.
    RebootDecided "reboot_decided" {
        /// `reboot` or `go_on`.
        tag decision: String,
        /// Why: the first reason that applied.
        tag reason: Option<String>,
        /// The reboot pattern that matched, if one did.
        field pattern: Option<String>,
        /// Job that was weighed.
        field job: Option<String>,
        /// Run it was decided in; unique on the host.
        field run_id: String,
    }

    /// `cleanslate` finished a sweep.
    SweepFinished "sweep_finished" {
        /// `clean`, `unproven`, `dirty` or `baseline_damaged`.
        tag verdict: String,
        /// Processes that should not have been there.
        field leftovers: u32,
        /// How many of them ended on SIGTERM.
        field terminated: u32,
        /// How many of them needed SIGKILL.
        field killed: u32,
        /// How many of them are still there.
        field survived: u32,
        /// Duration in milliseconds.
        field duration_ms: u64,
        /// Run it belongs to; unique on the host.
        field run_id: String,
    }

    /// The external hook did not end well. It never changes a result.
    HookFailed "hook_failed" {
        /// Task around which it ran.
        tag task: String,
        /// What went wrong.
        field error: String,
        /// Run it belongs to; unique on the host.
        field run_id: String,
    }

    /// The host is alive. Recorded at a fixed interval while there is a sink.
    Heartbeat "heartbeat" {
        /// What `runner` is doing: `task`, `backoff`, `hook`, `halt`, `between_runs`, or `held` while
        /// the host is to take no job.
        tag phase: String,
        /// The task, if one runs or waits.
        field task: Option<String>,
        /// Runs finished since the host booted.
        field runs_since_boot: u64,
        /// Time since the host booted, in milliseconds.
        field uptime_ms: u64,
        /// Load average over one minute.
        field load_1m: f64,
        /// Memory in use, in bytes.
        field memory_used_bytes: u64,
        /// Records the spool dropped because it was full, since `runner` started.
        field spool_dropped: u64,
    }

    /// The provisioner planned a pass: the numbers of one pool.
    PoolPlanned "pool_planned" {
        /// Jobs that wait, neither too young nor too old to count.
        field pending: u32,
        /// Jobs that run, as the sources say.
        field running: u32,
        /// How long the oldest job has been waiting, in milliseconds.
        field oldest_age_ms: Option<u64>,
        /// Hosts that are up and not leaving.
        field existing: u32,
        /// Of these, hosts with a job.
        field busy: u32,
        /// Instances on their way.
        field requested: u32,
        /// Instances on their way out.
        field stopping: u32,
        /// Hosts wanted.
        field target: u32,
        /// Instances the pool asked for.
        field wanted: u32,
        /// Instances it got to launch in this pass.
        field launching: u32,
        /// Whether a source of demand held the decision.
        field held: bool,
        /// What the pool costs at most, in dollars per hour.
        field bill: f64,
        /// What the pool has cost today (UTC), in dollars.
        field spent_today: f64,
        /// Number of the pass.
        field pass: u64,
    }

    /// The provisioner finished a pass.
    PassFinished "pass_finished" {
        /// Number of the pass.
        field pass: u64,
        /// Duration in milliseconds, the cloud's answers included.
        field duration_ms: u64,
        /// Instances of the fleet when it began.
        field instances: u32,
        /// Instances launched.
        field launched: u32,
        /// Instances whose end the cloud accepted.
        field terminated: u32,
        /// Launches that stay open, to be sent again.
        field open: u32,
        /// Rules the plan broke; nothing of it was done if there is one.
        field faults: u32,
        /// What the fleet costs at most, in dollars per hour.
        field bill: f64,
    }

    /// The cloud launched an instance.
    InstanceLaunched "instance_launched" {
        /// Zone.
        tag zone: String,
        /// Kind of machine.
        tag instance_type: String,
        /// `spot` or `on_demand`.
        tag capacity_type: String,
        /// Price in dollars per hour.
        field price: f64,
        /// The decision that launched it; unique for ever.
        field intent: String,
        /// Pass that decided it.
        field pass: u64,
    }

    /// A launch brought fewer instances than asked for.
    LaunchFell "launch_fell" {
        /// Why: `no_capacity`, `interrupted`, `quota`, `no_address`, `unsupported`, `price`, `image`, `settings`, `not_allowed`, `throttled`, `cloud_fault` or `other`.
        tag reason: String,
        /// Zone, if the reason is about one.
        tag zone: Option<String>,
        /// Kind of machine, if the reason is about one.
        tag instance_type: Option<String>,
        /// In the cloud's words.
        field message: String,
        /// The decision.
        field intent: String,
    }

    /// An instance is ended, or gone.
    InstanceEnded "instance_ended" {
        /// Why: `idle`, `drifted`, `over_target`, `maintenance`, `pool_removed`, `used_up`, `never_started`, `never_registered`, `silent`, `stray`, `asked`; `lost` if it went without us, `interrupted` if the cloud took it back.
        tag reason: String,
        /// Kind of machine.
        tag instance_type: String,
        /// Time since its launch, in milliseconds.
        field lived_ms: u64,
        /// Pass in which it was decided or seen.
        field pass: u64,
    }
}
