//! The exit codes of `runner`: an interface for init systems and scripts.

/// How `runner` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The runs that were asked for are done, or it was asked to stop.
    Done,
    /// A task failed at every attempt, or the system refused something.
    Failed,
    /// A task asked to halt the host.
    Halted,
    /// A task asked to stop.
    Exited,
    /// The command line is wrong.
    Usage,
    /// Another `runner` works on the same state directory.
    Locked,
    /// The configuration, the tasks or a list is wrong.
    Configuration,
}

impl Exit {
    /// The number. 64, 75 and 78 are those of `sysexits.h`.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Halted => 2,
            Self::Exited => 3,
            Self::Usage => 64,
            Self::Locked => 75,
            Self::Configuration => 78,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
