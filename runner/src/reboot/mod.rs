//! Whether the host must reboot, and why.
