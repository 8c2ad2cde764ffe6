//! What the stories stand on: real services, and hosts to run the real programs on.
//!
//! A story starts what it needs and owns it. Each service is the real program, in a private
//! directory, on a loopback port nobody else has, and ends with the value that stands for it. A
//! [`host::RunnerHost`] is a build host made of namespaces: it has its own processes, `/run`, users,
//! host name and boot id, so that a sweep or a reboot on it cannot reach the machine.
//!
//! Nobody can start EC2. [`ec2`] is a fake of our own with its limits and failures, and
//! [`services::Moto`] somebody else's, to check the first against.
//!
//! Nothing here skips silently: a component that is missing fails the test with the command that
//! installs it. Only what needs root is skipped without it, and says so ([`host::have_root`]).

pub mod ec2;
pub mod host;

pub mod nspawn;
pub mod place;
pub mod process;
pub mod programs;
pub mod services;
pub mod unique;
pub mod wait;
