//! Facts of the host that `show` prints, from `sysinfo`. Nothing is decided by them.

use serde::Serialize;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// How the host is doing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// Time since boot, in seconds.
    pub uptime_s: u64,
    /// Load average over one, five and fifteen minutes.
    pub load: [f64; 3],
    /// Memory in use, in bytes.
    pub memory_used_bytes: u64,
    /// Memory there is, in bytes.
    pub memory_total_bytes: u64,
}

impl Facts {
    /// Asks the host.
    ///
    /// # Errors
    /// If it does not tell one of them.
    pub fn read() -> Result<Self, sysinfo::Error> {
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory)?;
        let load = System::load_average()?;
        Ok(Self {
            uptime_s: System::uptime()?,
            load: [load.one, load.five, load.fifteen],
            memory_used_bytes: system.used_memory(),
            memory_total_bytes: system.total_memory(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_answers_is_up_and_has_memory() {
        let facts = Facts::read().unwrap();
        assert!(facts.uptime_s > 0);
        assert!((1..=facts.memory_total_bytes).contains(&facts.memory_used_bytes));
    }
}
