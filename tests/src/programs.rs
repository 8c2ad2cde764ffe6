//! Where the programs under test and the services are.

use std::path::{Path, PathBuf};

/// What to type when something is missing.
const HINT: &str = "run `tests/run`, which installs and builds what the tests need";

/// Directory of the binaries built together with this test: `target/debug`, wherever that is.
///
/// # Panics
///
/// If this is not a test or benchmark started by cargo.
#[must_use]
pub fn build_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the kernel knows this program");
    // target/debug/deps/buildbot-0123456789abcdef
    let deps = test.parent().expect("a file is in a directory");
    deps.parent()
        .expect("cargo puts tests into `deps` of the build directory")
        .to_path_buf()
}

/// One of our programs.
///
/// # Panics
///
/// If it has not been built.
#[must_use]
pub fn ours(name: &str) -> PathBuf {
    let program = build_dir().join(name);
    assert!(
        program.exists(),
        "`{}` is not built: {HINT}",
        program.display()
    );
    program
}

/// Builds one of our programs into the build directory of a benchmark: cargo itself builds for a
/// benchmark what it links, which is no program of another package.
///
/// # Panics
///
/// If it cannot be built.
pub fn build_for_benchmark(package: &str) {
    let build_dir = build_dir();
    let target = build_dir.parent().expect("the build directory is in one");
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--package", package])
        .arg("--target-dir")
        .arg(target)
        .current_dir(repository("."))
        .status();
    let built = status.is_ok_and(|status| status.success());
    assert!(built, "`{package}` cannot be built");
}

/// A program of a Debian package.
///
/// # Panics
///
/// If it is not installed.
#[must_use]
pub fn installed(name: &str) -> PathBuf {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|program| program.exists())
        .unwrap_or_else(|| panic!("`{name}` is not installed: {HINT}"))
}

/// The Python environment with Buildbot that `tests/setup` makes in the target directory.
///
/// # Panics
///
/// If it is not there, or older than its list of requirements.
#[must_use]
pub fn python_environment() -> PathBuf {
    environment(
        "venv",
        "Buildbot",
        include_str!("../buildbot/requirements.txt"),
    )
}

/// The one with moto.
///
/// # Panics
///
/// If it is not there, or older than its list of requirements.
#[must_use]
pub fn moto_environment() -> PathBuf {
    environment(
        "moto-venv",
        "moto",
        include_str!("../moto/requirements.txt"),
    )
}

fn environment(name: &str, content: &str, requirements: &str) -> PathBuf {
    let build_dir = build_dir();
    let environment = build_dir
        .ancestors()
        .map(|directory| directory.join("farm-tests").join(name))
        .find(|environment| environment.exists())
        .unwrap_or_else(|| panic!("no Python environment with {content}: {HINT}"));
    let installed = fs_err::read_to_string(environment.join("requirements.txt"));
    assert!(
        installed.is_ok_and(|text| text == requirements),
        "`{}` does not hold what the list of requirements for {content} asks for: {HINT}",
        environment.display()
    );
    environment
}

/// A directory of this repository, for what is shipped as it is: `tasks.d`, `blacklists`.
#[must_use]
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
