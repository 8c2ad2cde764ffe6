//! host
/// x
#[must_use]
pub fn have_root() -> bool {
    nix::unistd::geteuid().is_root()
}
