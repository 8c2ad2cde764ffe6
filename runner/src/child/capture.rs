//! What a child writes: always read, so that it never waits for us, and kept only at its end.

use std::collections::VecDeque;
use std::io;

use tokio::net::unix::pipe;

/// How much of the end is kept. Enough for a stack trace; small enough for a daemon of 15 MB.
const KEPT: usize = 64 * 1024;

/// Read at once: the size of a pipe's buffer.
const CHUNK: usize = 64 * 1024;

/// What a child wrote to standard output and standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its last bytes.
    pub tail: Vec<u8>,
    /// All bytes it wrote.
    pub total: u64,
}

impl Output {
    /// The last `count` lines, with what is not UTF-8 replaced and control characters made visible.
    #[must_use]
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<&str> = text.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(count))
            .map(|line| {
                line.chars()
                    .map(|c| {
                        if c.is_control() && c != '\t' {
                            '\u{fffd}'
                        } else {
                            c
                        }
                    })
                    .collect()
            })
            .collect()
    }
}

/// The reading end of a child's output.
#[derive(Debug)]
pub(super) struct Capture {
    pipe: Option<pipe::Receiver>,
    tail: VecDeque<u8>,
    total: u64,
    chunk: Vec<u8>,
}

impl Capture {
    /// A pipe: we keep the reading end, the child gets the other.
    pub(super) fn new() -> io::Result<(Self, io::PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        let pipe = pipe::Receiver::from_owned_fd(reader.into())?;
        Ok((
            Self {
                pipe: Some(pipe),
                tail: VecDeque::new(),
                total: 0,
                chunk: Vec::new(),
            },
            writer,
        ))
    }

    /// Waits until there is something to read, and reads it. Never returns once all writers are gone.
    pub(super) async fn pump(&mut self) {
        let Some(pipe) = &self.pipe else {
            return std::future::pending().await;
        };
        if pipe.readable().await.is_err() {
            self.pipe = None;
            return;
        }
        self.read(|pipe, chunk| pipe.try_read(chunk));
    }

    /// Reads what is in the pipe now. A process that escaped and still writes cannot hold us here:
    /// at most one pipe buffer is read after the child's end.
    pub(super) fn drain(&mut self) {
        // Not by the runtime, which may not have noticed yet that there is something to read.
        self.read(|pipe, chunk| rustix::io::read(pipe, chunk).map_err(io::Error::from));
    }

    pub(super) fn into_output(self) -> Output {
        Output {
            tail: self.tail.into(),
            total: self.total,
        }
    }

    fn read(&mut self, read: impl FnOnce(&pipe::Receiver, &mut [u8]) -> io::Result<usize>) {
        let Some(pipe) = &self.pipe else {
            return;
        };
        self.chunk.resize(CHUNK, 0);
        match read(pipe, &mut self.chunk) {
            Ok(0) => self.pipe = None,
            Ok(count) => {
                self.total += count as u64;
                self.tail.extend(&self.chunk[..count]);
                let excess = self.tail.len().saturating_sub(KEPT);
                self.tail.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_show_no_control_characters() {
        let output = Output {
            tail: b"one\ntwo\x1b[31m\n\xffthree\r\n".to_vec(),
            total: 0,
        };
        assert_eq!(output.last_lines(2), ["two\u{fffd}[31m", "\u{fffd}three"]);
        assert_eq!(output.last_lines(9).len(), 3);
    }

    #[tokio::test]
    async fn only_the_end_of_long_output_is_kept() {
        use std::io::Write as _;
        let (mut capture, mut writer) = Capture::new().unwrap();
        let long = vec![b'x'; 4 * KEPT];
        let writing = std::thread::spawn(move || {
            writer.write_all(&long).unwrap();
            writer.write_all(b"the end").unwrap();
        });
        while capture.pipe.is_some() {
            capture.pump().await;
        }
        writing.join().unwrap();
        let output = capture.into_output();
        assert_eq!(output.total, 4 * KEPT as u64 + 7);
        assert_eq!(output.tail.len(), KEPT);
        assert!(output.tail.ends_with(b"xthe end"));
    }
}
