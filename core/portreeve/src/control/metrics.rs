//! Figures over HTTP: `GET /metrics`, nothing else, one request per connection.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

/// Where scrapers come in.
pub enum Door {
    /// Unix socket.
    Unix(UnixListener),
    /// Loopback address.
    Tcp(TcpListener),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// Longest request head, octets.
const REQUEST_OCTETS_MAX: usize = 8192;
/// A whole exchange.
const PATIENCE: Duration = Duration::from_secs(10);

/// The door and who is connected.
pub struct Metrics {
    door: Door,
    connections: Vec<Connection>,
}

struct Connection {
    stream: Stream,
    input: Vec<u8>,
    output: Option<Vec<u8>>,
    until: Instant,
}

impl Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(from),
            Self::Tcp(stream) => stream.write(from),
        }
    }
}

impl Metrics {
    /// Takes the bound socket.
    pub fn new(door: Door) -> io::Result<Self> {
        match &door {
            Door::Unix(listener) => listener.set_nonblocking(true)?,
            Door::Tcp(listener) => listener.set_nonblocking(true)?,
        }
        Ok(Self { door, connections: Vec::new() })
    }

    /// What to wait for.
    pub fn interest<'a>(&'a self, to: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if self.connections.len() < CONNECTIONS_MAX {
            to.push((self.door.as_fd(), PollFlags::IN));
        }
        for connection in &self.connections {
            let flags = if connection.output.is_some() { PollFlags::OUT } else { PollFlags::IN };
            to.push((connection.stream.as_fd(), flags));
        }
    }

    /// Accepts, reads, answers, writes.
    pub fn turn(&mut self, now: Instant, text: impl Fn() -> String) {
        while self.connections.len() < CONNECTIONS_MAX
            && let Ok(stream) = self.door.accept()
        {
            self.connections.push(Connection { stream, input: Vec::new(), output: None, until: now + PATIENCE });
        }
        self.connections.retain_mut(|connection| now < connection.until && connection.turn(&text));
    }
}

impl Connection {
    /// `false` when it is over.
    fn turn(&mut self, text: impl Fn() -> String) -> bool {
        let mut buffer = [0; 1024];
        while self.output.is_none() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => self.input.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            self.output = respond(&self.input, &text);
        }
        while let Some(output) = &mut self.output {
            if output.is_empty() {
                return false;
            }
            match self.stream.write(output) {
                Ok(n) => {
                    output.drain(..n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// The answer, once the request's head is whole.
fn respond(input: &[u8], text: impl Fn() -> String) -> Option<Vec<u8>> {
    let whole = input.windows(4).any(|four| four == b"\r\n\r\n") || input.windows(2).any(|two| two == b"\n\n");
    if !whole && input.len() <= REQUEST_OCTETS_MAX {
        return None;
    }
    let line = input.split(|&c| c == b'\r' || c == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&c| c == b' ').collect();
    let (status, body) = match words.as_slice() {
        _ if !whole => ("431 Request Header Fields Too Large", "the request is too long\n".to_owned()),
        [method @ (b"GET" | b"HEAD"), path, version] if version.starts_with(b"HTTP/1.") => {
            match path.split(|&c| c == b'?').next() {
                Some(b"/metrics") => ("200 OK", if *method == b"GET" { text() } else { String::new() }),
                _ => ("404 Not Found", "only /metrics is here\n".to_owned()),
            }
        }
        [_, _, version] if version.starts_with(b"HTTP/1.") => ("405 Method Not Allowed", "only GET\n".to_owned()),
        _ => ("400 Bad Request", "this is HTTP/1.1\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    Some([head.as_bytes(), body.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &[u8]) -> Option<String> {
        let answer = String::from_utf8(respond(request, || "x 1\n".into())?).unwrap();
        Some(answer.lines().next().unwrap().to_owned())
    }

    #[test]
    fn only_get_metrics() {
        for (request, wanted) in [
            (&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], "HTTP/1.1 200 OK"),
            (b"HEAD /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
            (b"GET /metrics?x=1 HTTP/1.1\n\n", "HTTP/1.1 200 OK"),
            (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
            (b"EHLO x\r\n\r\n", "HTTP/1.1 400 Bad Request"),
            (b"\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ] {
            assert_eq!(status(request).as_deref(), Some(wanted), "{request:?}");
            assert_eq!(status(&request[..request.len() - 1]), None, "waits for the whole head");
        }
        assert_eq!(status(&[b'a'; 9000]).as_deref(), Some("HTTP/1.1 431 Request Header Fields Too Large"));
    }

    #[test]
    fn over_a_socket_and_bounded_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut metrics = Metrics::new(Door::Tcp(listener)).unwrap();
        let client = std::thread::spawn(move || {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer).unwrap()
        });
        while !client.is_finished() {
            metrics.turn(Instant::now(), || "x 1\n".into());
            std::thread::yield_now();
        }
        let answer = client.join().unwrap();
        assert!(answer.ends_with("\r\n\r\nx 1\n"), "{answer}");
        let _silent = TcpStream::connect(address).unwrap();
        metrics.turn(Instant::now(), String::new);
        assert_eq!(metrics.connections.len(), 1);
        metrics.turn(Instant::now() + PATIENCE, String::new);
        assert!(metrics.connections.is_empty());
    }
}
