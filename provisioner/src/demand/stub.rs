//! A web server for tests: each request is shown to a function, whose reply is sent as it is.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Path and query.
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(it, _)| it == name)?;
        Some(value)
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(super) struct Given {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    ending: Ending,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Whole,
    /// The connection ends in the middle of the body.
    CutOff,
    /// The connection ends without anything.
    Nothing,
    /// Nothing ever comes.
    Never,
}

impl Given {
    pub(super) fn json(body: impl Into<String>) -> Self {
        Self::status(200, body)
    }

    pub(super) fn status(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.into().into_bytes(),
            ending: Ending::Whole,
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a `Date`.
    pub(super) fn at(self, time: Timestamp) -> Self {
        let time = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        self.header("date", time)
    }

    pub(super) fn cut_off(mut self) -> Self {
        self.ending = Ending::CutOff;
        self
    }

    pub(super) fn nothing() -> Self {
        let mut given = Self::json("");
        given.ending = Ending::Nothing;
        given
    }

    pub(super) fn never() -> Self {
        let mut given = Self::json("");
        given.ending = Ending::Never;
        given
    }
}

type Answer = Arc<dyn Fn(&Asked) -> Given + Send + Sync>;

/// The server. It ends with this value.
pub(super) struct Stub {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    server: JoinHandle<()>,
}

impl Stub {
    pub(super) async fn start(answer: impl Fn(&Asked) -> Given + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (answer, all): (Answer, _) = (Arc::new(answer), asked.clone());
        let server = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, answer.clone(), all.clone()));
            }
        });
        Self { url, asked, server }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Everything that was asked so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Path and query of everything that was asked so far.
    pub(super) fn paths(&self) -> Vec<String> {
        let asked = self.asked().into_iter();
        asked.map(|asked| asked.path).collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One request per connection: a client that keeps it open finds it closed.
async fn serve(mut connection: TcpStream, answer: Answer, all: Arc<Mutex<Vec<Asked>>>) {
    let Some(asked) = request(&mut connection).await else {
        return;
    };
    let given = answer(&asked);
    all.lock().unwrap().push(asked);
    match given.ending {
        Ending::Whole | Ending::CutOff => {}
        Ending::Nothing => return,
        Ending::Never => std::future::pending().await,
    }
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", given.status);
    let missing = usize::from(matches!(given.ending, Ending::CutOff));
    let length = given.body.len() + missing;
    if given.status != 304 {
        write!(head, "content-length: {length}\r\n").unwrap();
    }
    for (name, value) in &given.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head.push_str("\r\n");
    // A client that reads no further has its reasons.
    if connection.write_all(head.as_bytes()).await.is_ok()
        && connection.write_all(&given.body).await.is_ok()
    {
        connection.shutdown().await.ok();
    }
}

async fn request(connection: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
        body: String::new(),
    };
    let length = asked
        .header("content-length")
        .map_or(0, |it| it.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if connection.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Asked {
        body: String::from_utf8(body).unwrap(),
        ..asked
    })
}
