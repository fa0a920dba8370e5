//! The admin socket: one JSON object per line, one answer per line.
//!
//! `{"command":"status"}`, `{"command":"reload"}`, `{"command":"drain","seconds":120}` →
//! `{"ok":true,…}` or `{"ok":false,"error":"…"}`. Who may open the socket may do all of it: its mode is 0600.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use link::message::AdminRequest;
use rustix::event::PollFlags;
use serde_json::{Value, json};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 32;
/// Longest request, octets.
const REQUEST_OCTETS_MAX: usize = 4096;
/// Who says nothing for so long is gone. A reload may take a while to answer, so it is generous.
const PATIENCE: Duration = Duration::from_secs(60);

/// The socket and who is connected.
pub struct Admin {
    listener: UnixListener,
    connections: HashMap<u64, Connection>,
    next: u64,
    about: Value,
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    until: Instant,
    /// What the supervisor is working on for it; until then nothing more is read.
    pending: Option<&'static str>,
    closed: bool,
}

impl Admin {
    /// Takes the bound socket.
    pub fn new(listener: UnixListener, about: Value) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, connections: HashMap::new(), next: 1, about })
    }

    /// The configuration is another one now.
    pub fn set_about(&mut self, about: Value) {
        self.about = about;
    }

    /// What to wait for.
    pub fn interest<'a>(&'a self, to: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if self.connections.len() < CONNECTIONS_MAX {
            to.push((self.listener.as_fd(), PollFlags::IN));
        }
        for connection in self.connections.values() {
            let flags = match (&connection.pending, connection.output.is_empty()) {
                (_, false) => PollFlags::OUT,
                (None, true) => PollFlags::IN,
                (Some(_), true) => PollFlags::empty(),
            };
            to.push((connection.stream.as_fd(), flags));
        }
    }

    /// The supervisor's answer to what `id` asked. For `status` it is JSON, and `numbers` go with it.
    pub fn answer(&mut self, id: u64, ok: bool, text: &str, numbers: impl FnOnce() -> Value) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let answer = match (connection.pending.take(), ok) {
            (None, _) => return,
            (Some("status"), true) => {
                let supervisor: Value = serde_json::from_str(text).unwrap_or(Value::Null);
                json!({"ok": true, "about": self.about, "status": numbers(), "supervisor": supervisor})
            }
            (Some(_), true) => json!({"ok": true, "text": text}),
            (Some(_), false) => json!({"ok": false, "error": text}),
        };
        connection.say(&answer);
    }

    /// Accepts, reads, answers, writes. `ask` hands a request to the supervisor, or says why it cannot.
    pub fn turn(&mut self, now: Instant, mut ask: impl FnMut(u64, AdminRequest<'static>) -> Result<(), String>) {
        while self.connections.len() < CONNECTIONS_MAX
            && let Ok((stream, _)) = self.listener.accept()
        {
            if stream.set_nonblocking(true).is_ok() {
                let connection = Connection {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    until: now + PATIENCE,
                    pending: None,
                    closed: false,
                };
                self.connections.insert(self.next, connection);
                self.next += 1;
            }
        }
        self.connections.retain(|&id, connection| {
            connection.read(now);
            while connection.pending.is_none()
                && let Some(end) = connection.input.iter().position(|&c| c == b'\n')
            {
                let line: Vec<u8> = connection.input.drain(..=end).collect();
                match understand(&line) {
                    Err(error) => connection.say(&json!({"ok": false, "error": error})),
                    Ok((name, request)) => match ask(id, request) {
                        Ok(()) => connection.pending = Some(name),
                        Err(error) => connection.say(&json!({"ok": false, "error": error})),
                    },
                }
            }
            connection.write();
            let waiting = connection.pending.is_some() || !connection.output.is_empty();
            now < connection.until && (!connection.closed || waiting)
        });
    }
}

fn understand(line: &[u8]) -> Result<(&'static str, AdminRequest<'static>), String> {
    let request: Value = serde_json::from_slice(line).map_err(|error| format!("not a JSON line: {error}"))?;
    match request["command"].as_str() {
        Some("status") => Ok(("status", AdminRequest::Status)),
        Some("reload") => Ok(("reload", AdminRequest::Reload)),
        Some("drain") => {
            let seconds = request["seconds"].as_u64().and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(120);
            Ok(("drain", AdminRequest::Drain { seconds }))
        }
        Some(other) => Err(format!("unknown command {other:?}; status, reload and drain are known")),
        None => Err("no \"command\" in the request".into()),
    }
}

impl Connection {
    fn say(&mut self, answer: &Value) {
        self.output.extend_from_slice(answer.to_string().as_bytes());
        self.output.push(b'\n');
    }

    fn read(&mut self, now: Instant) {
        let mut buffer = [0; 1024];
        while self.pending.is_none() && !self.closed && self.input.len() <= REQUEST_OCTETS_MAX {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    self.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    self.until = now + PATIENCE;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
        if self.input.len() > REQUEST_OCTETS_MAX && !self.input.contains(&b'\n') {
            self.input.clear();
            self.closed = true;
            self.say(&json!({"ok": false, "error": "the request is longer than 4096 octets"}));
        }
    }

    fn write(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => {
                    self.output.drain(..n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.closed = true;
                    self.output.clear();
                    self.pending = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn admin(name: &str) -> (Admin, UnixStream) {
        let path = std::env::temp_dir().join(format!("portreeve-admin-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let admin = Admin::new(UnixListener::bind(&path).unwrap(), json!({"version": "x"})).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        (admin, stream)
    }

    fn line(stream: &UnixStream) -> Value {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn questions_and_answers() {
        let (mut admin, mut client) = admin("talk");
        client.write_all(b"{\"command\":\"status\"}\n").unwrap();
        let mut asked = 0;
        admin.turn(Instant::now(), |id, request| {
            assert_eq!(request, AdminRequest::Status);
            asked = id;
            Ok(())
        });
        admin.answer(asked, true, "{\"pid\":7}", || json!({"n": 1}));
        admin.turn(Instant::now(), |_, _| panic!("not asked"));
        let answer = line(&client);
        assert_eq!(
            answer,
            json!({"ok": true, "about": {"version": "x"}, "status": {"n": 1}, "supervisor": {"pid": 7}})
        );

        client.write_all(b"{\"command\":\"frob\"}\nnonsense\n").unwrap();
        admin.turn(Instant::now(), |_, _| panic!("not asked"));
        let mut reader = BufReader::new(&client);
        for wanted in ["unknown command", "not a JSON line"] {
            let mut text = String::new();
            reader.read_line(&mut text).unwrap();
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn the_supervisor_may_take_its_time() {
        let (mut admin, mut client) = admin("wait");
        client.write_all(b"{\"command\":\"reload\"}\n{\"command\":\"status\"}\n").unwrap();
        let mut asked = Vec::new();
        admin.turn(Instant::now(), |id, request| {
            assert_eq!(request, AdminRequest::Reload, "status waits its turn");
            asked.push(id);
            Ok(())
        });
        admin.turn(Instant::now(), |_, _| panic!("nothing is asked while something is pending"));
        admin.answer(99, true, "not for anybody", || panic!("nobody asked"));
        admin.answer(asked[0], false, "bad file", || panic!("no numbers go with this"));
        admin.turn(Instant::now(), |_, request| {
            assert_eq!(request, AdminRequest::Status);
            Err("busy".into())
        });
        let mut reader = BufReader::new(&client);
        let mut text = String::new();
        reader.read_line(&mut text).unwrap();
        assert_eq!(text, "{\"error\":\"bad file\",\"ok\":false}\n");
        text.clear();
        reader.read_line(&mut text).unwrap();
        assert!(text.contains("busy"), "{text}");
    }

    #[test]
    fn bounded_in_length_number_and_time() {
        let (mut admin, mut client) = admin("bounds");
        client.write_all(&[b'x'; 8000]).unwrap();
        admin.turn(Instant::now(), |_, _| panic!("no question"));
        assert!(line(&client)["error"].as_str().unwrap().contains("longer than"));
        assert!(admin.connections.is_empty());
        let (mut admin, _client) = self::admin("time");
        admin.turn(Instant::now(), |_, _| Ok(()));
        assert_eq!(admin.connections.len(), 1);
        admin.turn(Instant::now() + PATIENCE, |_, _| Ok(()));
        assert!(admin.connections.is_empty());
    }
}
