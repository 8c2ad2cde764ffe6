//! rsyslog, listening by TCP, UDP and on a unix socket, writing one file.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::READY_LIMIT;
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// A running (or stopped) `rsyslogd`.
#[derive(Debug)]
pub struct Rsyslog {
    process: Option<Process>,
    port: Port,
    directory: TempDir,
}

impl Rsyslog {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not become ready.
    #[must_use]
    pub fn start() -> Self {
        let directory = TempDir::with_prefix("farm-rsyslog-").expect("a temporary directory");
        let port = Port::reserve();
        let configuration = configuration(directory.path(), port.number());
        fs_err::write(directory.path().join("rsyslog.conf"), configuration)
            .expect("a temporary directory can be written");
        let mut daemon = Self {
            process: None,
            port,
            directory,
        };
        daemon.start_again();
        daemon
    }

    /// `host:port`, the same for TCP and UDP.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Its unix socket: what `/dev/log` is on a host.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("log.socket")
    }

    /// The lines it has written, each as `imtcp|imudp|imuxsock TIME HOST PROGRAM MSGID STRUCTURED-DATA TEXT`.
    ///
    /// # Panics
    ///
    /// If the file cannot be read.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match fs_err::read(self.directory.path().join("messages")) {
            Ok(text) => String::from_utf8_lossy(&text)
                .lines()
                .map(str::to_owned)
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Ends it; what it wrote stays.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// Starts it with the ports and the file it had.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_again(&mut self) {
        let directory = self.directory.path();
        // Without a pid file: it would lie in `/`, where `rsyslogd` changes to, and be shared by all.
        let mut process = Process::start(
            &programs::installed("rsyslogd"),
            ["-n", "-f", "rsyslog.conf", "-i", "NONE"],
            directory,
            &directory.join("rsyslogd.log"),
        );
        // Its inputs open one after the other; the unix socket takes connections only once it reads.
        let (socket, port) = (self.socket(), self.port.number());
        process.ready(READY_LIMIT, || accepts(&socket, port));
        self.process = Some(process);
    }
}

/// Whether all three inputs take messages; each attempt sends none.
fn accepts(socket: &Path, port: u16) -> std::io::Result<()> {
    std::net::TcpStream::connect(("127.0.0.1", port))?;
    std::os::unix::net::UnixDatagram::unbound()?.connect(socket)?;
    // A UDP port that is taken is one that listens: it was reserved for this daemon.
    match std::net::UdpSocket::bind(("127.0.0.1", port)) {
        Ok(_) => Err(std::io::Error::other("nothing listens on its UDP port")),
        Err(_) => Ok(()),
    }
}

fn configuration(directory: &Path, port: u16) -> String {
    let directory = directory.display();
    format!(
        r#"global(workDirectory="{directory}" maxMessageSize="64k")
module(load="imtcp")
module(load="imudp")
module(load="imuxsock" SysSock.Use="off")
template(name="line" type="string" string="%inputname% %timereported:::date-rfc3339% %hostname% %app-name% %msgid% %structured-data% %msg%\n")
ruleset(name="all") {{
  action(type="omfile" file="{directory}/messages" template="line" asyncWriting="off")
}}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="all")
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="all")
input(type="imuxsock" socket="{directory}/log.socket" createPath="on" ruleset="all")
"#
    )
}
