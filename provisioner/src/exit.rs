//! The exit codes of `provisioner`: an interface for init systems and scripts.

/// How `provisioner` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done as asked.
    Done,
    /// It failed, or something it was asked to check does not hold.
    Failed,
    /// The command line is wrong.
    Usage,
    /// Another `provisioner` works on the same store.
    Locked,
    /// The configuration is wrong.
    Configuration,
}

impl Exit {
    /// The number. 64, 75 and 78 are those of `sysexits.h`.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
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
