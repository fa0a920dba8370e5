//! Vectors against a running server: an SMTP client that says what a vector's client says. It believes any
//! certificate, because all that it tells is in a public file.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use tls::{ClientSession, ClientTls, Trust};

use crate::client::{Client, Kind};
use crate::event::{base64, shown, unbase64};
use crate::vectors::Vector;

/// How a vector came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// As it stands there.
    Right,
    /// Otherwise.
    Wrong(String),
    /// Not tried, and why.
    Skipped(String),
}

/// Longest that a server is waited for. It may delay a failure (RFC 4954 §9).
const PATIENCE: Duration = Duration::from_secs(40);
/// Longest reply, octets.
const REPLY_OCTETS_MAX: usize = 64 << 10;

/// Runs one vector on a connection of its own. `server` is `host:port`, with `smtps:` before it where TLS comes
/// without STARTTLS. `exact`: the server has the nonces of the vectors, so all that is said must be as published;
/// otherwise a client computes along where the server's nonce decides.
pub fn run(server: &str, vector: &Vector, exact: bool) -> Result<Came, String> {
    let kind = Kind::of(&vector.mech);
    if vector.mech.ends_with("-PLUS") {
        return Ok(Came::Skipped("this client sees no channel binding".into()));
    }
    if kind == Some(Kind::External) {
        return Ok(Came::Skipped("this client has no certificate".into()));
    }
    if exact && vector.server_words().is_empty() && kind.is_some_and(Kind::computes) {
        return Ok(Came::Skipped("it has no messages to compare".into()));
    }
    let mut wire = Wire::open(server)?;
    if !wire.offers(&vector.mech) {
        return Ok(Came::Skipped(format!("the server offers {}", wire.mechanisms.join(" "))));
    }
    let came = match kind {
        Some(kind) if kind.computes() && !exact => wire.live(vector, Client::new(kind, vector.person())),
        _ => wire.words(vector),
    };
    let _ = wire.send("QUIT");
    came
}

struct Wire {
    stream: TcpStream,
    tls: Option<ClientSession>,
    plain: Vec<u8>,
    mechanisms: Vec<String>,
}

type Reply = (u16, String);

impl Wire {
    fn open(server: &str) -> Result<Self, String> {
        let (implicit, address) = server.strip_prefix("smtps:").map_or((false, server), |address| (true, address));
        let cannot = |cause: String| format!("{address}: {cause}");
        let mut addresses = address.to_socket_addrs().map_err(|error| cannot(error.to_string()))?;
        let target = addresses.next().ok_or_else(|| cannot("no address".into()))?;
        let stream = TcpStream::connect_timeout(&target, PATIENCE).map_err(|error| cannot(error.to_string()))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| cannot(error.to_string()))?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|error| cannot(error.to_string()))?;
        let mut wire = Self { stream, tls: None, plain: Vec::new(), mechanisms: Vec::new() };
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name).trim_matches(['[', ']']);
        if implicit {
            wire.secure(name)?;
        }
        wire.expect(220)?;
        let mut lines = wire.ehlo()?;
        if !implicit && lines.lines().any(|line| line.eq_ignore_ascii_case("STARTTLS")) {
            wire.send("STARTTLS")?;
            wire.expect(220)?;
            wire.secure(name)?;
            lines = wire.ehlo()?;
        }
        let auth = lines.lines().find_map(|line| line.strip_prefix("AUTH "));
        wire.mechanisms = auth.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        Ok(wire)
    }

    fn offers(&self, mech: &str) -> bool {
        self.mechanisms.iter().any(|offered| offered == mech)
    }

    fn ehlo(&mut self) -> Result<String, String> {
        self.send("EHLO vectors.invalid")?;
        self.expect(250)
    }

    fn secure(&mut self, name: &str) -> Result<(), String> {
        let tls = ClientTls::new(Trust::Anybody).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        let session = ClientSession::connect(&tls, name, &mut out).map_err(|error| error.to_string())?;
        self.tls = Some(session);
        self.flush(&out)?;
        while self.tls.as_ref().is_some_and(ClientSession::is_handshaking) {
            self.fill()?;
        }
        Ok(())
    }

    fn flush(&mut self, octets: &[u8]) -> Result<(), String> {
        self.stream.write_all(octets).map_err(|error| error.to_string())
    }

    fn fill(&mut self) -> Result<(), String> {
        let mut buffer = [0; 16 << 10];
        let read = self.stream.read(&mut buffer).map_err(|error| format!("no reply: {error}"))?;
        let octets =
            buffer.get(..read).filter(|octets| !octets.is_empty()).ok_or("the server has closed the connection")?;
        match &mut self.tls {
            None => self.plain.extend_from_slice(octets),
            Some(tls) => {
                let mut out = Vec::new();
                tls.receive(octets, &mut self.plain, &mut out).map_err(|error| error.to_string())?;
                self.flush(&out)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let line = format!("{line}\r\n");
        let mut out = Vec::new();
        match &mut self.tls {
            None => out.extend_from_slice(line.as_bytes()),
            Some(tls) => tls.send(line.as_bytes(), &mut out).map_err(|error| error.to_string())?,
        }
        self.flush(&out)
    }

    /// A whole reply: its code, and its text with a line for each line.
    fn reply(&mut self) -> Result<Reply, String> {
        let mut text = String::new();
        loop {
            let Some(end) = self.plain.windows(2).position(|window| window == b"\r\n") else {
                if self.plain.len() > REPLY_OCTETS_MAX {
                    return Err("a reply without an end".into());
                }
                self.fill()?;
                continue;
            };
            let line: Vec<u8> = self.plain.drain(..end + 2).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let code = line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(|| format!("no reply: {line:?}"))?;
            text += line.get(4..).unwrap_or_default();
            text.push('\n');
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok((code, text));
            }
        }
    }

    fn expect(&mut self, code: u16) -> Result<String, String> {
        match self.reply()? {
            (found, text) if found == code => Ok(text),
            (found, text) => Err(format!("{found} {}", text.trim_end())),
        }
    }

    fn auth(&mut self, mech: &str, initial: Option<&[u8]>) -> Result<(), String> {
        self.send(&match initial {
            None => format!("AUTH {mech}"),
            Some(b"") => format!("AUTH {mech} ="),
            Some(message) => format!("AUTH {mech} {}", base64(message)),
        })
    }

    fn challenge(text: &str) -> Result<Vec<u8>, String> {
        unbase64(text.trim_end()).ok_or_else(|| format!("334 {text:?} is not base64"))
    }

    /// A client that answers what the server sends now.
    fn live(&mut self, vector: &Vector, mut client: Client) -> Result<Came, String> {
        let initial = client.initial();
        self.auth(&vector.mech, initial.as_deref())?;
        loop {
            let (code, text) = self.reply()?;
            if code != 334 {
                let proven = client.is_content() || code != 235;
                return Ok(if proven {
                    judge(vector, code, &text)
                } else {
                    Came::Wrong("235 without the server's own proof".into())
                });
            }
            let challenge = Self::challenge(&text)?;
            match client.answer(&challenge) {
                Ok(message) => self.send(&base64(&message))?,
                Err(why) => return Ok(Came::Wrong(format!("after {}: {why}", shown(&challenge)))),
            }
        }
    }

    /// The vector's own words.
    fn words(&mut self, vector: &Vector) -> Result<Came, String> {
        let mut words = vector.client_words().into_iter();
        let mut challenges = vector.server_words().into_iter();
        let initial = if vector.client_begins() { words.next() } else { None };
        self.auth(&vector.mech, initial.as_deref())?;
        loop {
            let (code, text) = self.reply()?;
            if code != 334 {
                return Ok(judge(vector, code, &text));
            }
            let challenge = Self::challenge(&text)?;
            // The server writes its own error; only what a success is made of is compared.
            if vector.outcome() == "success" && challenges.next() != Some(challenge.clone()) {
                return Ok(Came::Wrong(format!("the challenge is {}", shown(&challenge))));
            }
            match words.next() {
                Some(message) => self.send(&base64(&message))?,
                None if vector.outcome() != "success" => self.send("")?,
                None => return Ok(Came::Wrong(format!("one more challenge: {}", shown(&challenge)))),
            }
        }
    }
}

fn judge(vector: &Vector, code: u16, text: &str) -> Came {
    let expected = match vector.outcome() {
        "success" => 235,
        "malformed" => 501,
        "temporary" | "internal" => 454,
        _ => 535,
    };
    let text = text.trim_end();
    match (code, expected) {
        (code, expected) if code == expected => Came::Right,
        (535, 235) => {
            let person = vector.person();
            let who = if person.authcid.is_empty() { "its user".into() } else { format!("{:?}", person.authcid) };
            Came::Wrong(format!("535 {text}: does the server know {who} with the vector's password or token?"))
        }
        (code, expected) => Came::Wrong(format!("{code} {text}, not {expected}")),
    }
}
