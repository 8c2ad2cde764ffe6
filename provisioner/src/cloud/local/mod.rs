//! The local cloud: instances are `runner` processes on this machine.
