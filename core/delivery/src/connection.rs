//! One connection to a next hop: drives the machine of [`smtp::client`] over a blocking socket.
//!
//! Every wait has an end. Each reply must come within the step's time, and a whole transaction within a
//! time that grows with the message only, so a peer that says one line a minute does not hold a thread for
//! ever either.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use smtp::client::{Channel, Client, Message, Next, Settings, Stage};
use tls::{ClientSession, ClientTls};

use crate::route::Mail;

/// Where a next hop is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// A host at an address that was looked up already.
    Found(String, SocketAddr),
}

impl Place {
    /// As hosts are called in reports and certificates.
    pub(crate) fn host(&self) -> &str {
        match self {
            Self::Tcp(host, _) | Self::Found(host, _) => host,
            Self::Unix(_) => "localhost",
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Found(host, address) => write!(f, "{host}[{}]:{}", address.ip(), address.port()),
        }
    }
}

pub(crate) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Tells connections that the service ends.
#[derive(Clone, Default)]
pub(crate) struct Ending(Arc<OnceLock<Instant>>);

impl Ending {
    pub(crate) fn begin(&self) {
        self.0.get_or_init(Instant::now);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.get().is_some()
    }

    /// How long a wait in this step may still go on. A message that is with the peer as a whole gets a moment
    /// more: without its reply it would be sent twice.
    fn allows(&self, stage: Stage) -> bool {
        let grace = if stage == Stage::Final { Duration::from_secs(10) } else { Duration::ZERO };
        self.0.get().is_none_or(|begun| begun.elapsed() < grace)
    }
}

/// TLS before the greeting.
pub(crate) enum Begin<'a> {
    /// As the greeting comes.
    Clear,
    /// The handshake comes first, with this name.
    Tls(&'a ClientTls, &'a str),
}

pub(crate) struct Connection {
    wire: Wire,
    tls: Option<ClientSession>,
    client: Client,
    /// Plaintext that the machine has not used yet.
    plain: Vec<u8>,
    /// Longest wait for one reply.
    patience: Duration,
    /// The transaction's end.
    until: Instant,
    /// An earlier end for everything but the answer to the whole message: a client waits.
    cut: Option<Instant>,
    /// For STARTTLS.
    starttls: Option<(ClientTls, String)>,
    ending: Ending,
    pub(crate) idle_since: Instant,
}

const CONNECT_PATIENCE_MAX: Duration = Duration::from_secs(20);
/// Between looks whether the service ends.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 6;
/// A peer that takes fewer octets a second than this is too slow.
const OCTETS_PER_SECOND_MIN: u64 = 1024;
/// Steps of a transaction whose patience may be used up.
const PATIENT_STEPS: u32 = 6;
const WRITE_OCTETS: usize = 64 << 10;

/// Connects. `is_own` tells whether we would talk to ourselves: local and remote address are given. The name that a peer
/// says in its greeting would prove nothing: next hops on the same machine, and other nodes of a fleet, say ours.
pub(crate) fn connect(
    place: &Place,
    patience: Duration,
    is_own: &dyn Fn(SocketAddr, SocketAddr) -> bool,
) -> Result<Wire, String> {
    let addresses: Vec<SocketAddr> = match place {
        Place::Unix(path) => {
            return UnixStream::connect(path).map(Wire::Unix).map_err(|error| format!("connect: {error}"));
        }
        Place::Tcp(host, port) => {
            let found = (host.as_str(), *port).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
            found.take(ADDRESSES_MAX).collect()
        }
        Place::Found(_, address) => vec![*address],
    };
    let mut trouble = format!("{}: has no address", place.host());
    for address in addresses {
        match TcpStream::connect_timeout(&address, patience.min(CONNECT_PATIENCE_MAX)) {
            Ok(stream) => {
                let local = stream.local_addr().map_err(|error| error.to_string())?;
                if is_own(local, address) {
                    return Err(format!("{address} is this server itself: mail would go round; mend the route"));
                }
                let _ = stream.set_nodelay(true);
                return Ok(Wire::Tcp(stream));
            }
            Err(error) => trouble = format!("connect to {address}: {error}"),
        }
    }
    Err(trouble)
}

impl Connection {
    /// Talks until messages may be sent. On failure the machine tells why ([`Connection::client`]).
    pub(crate) fn begin(
        wire: Wire,
        settings: Arc<Settings>,
        begin: Begin<'_>,
        starttls: Option<(ClientTls, String)>,
        patience: Duration,
        cut: Option<Instant>,
        ending: &Ending,
    ) -> (Self, Next) {
        let mut entropy = [0; 24];
        // SCRAM's nonce; without randomness the server's half still protects the server.
        let _ = getrandom::fill(&mut entropy);
        let channel = match (&wire, &begin) {
            (Wire::Tcp(_), Begin::Clear) => Channel::Clear,
            _ => Channel::Tls,
        };
        let now = Instant::now();
        let mut connection = Self {
            wire,
            tls: None,
            client: Client::new(settings, channel, entropy),
            plain: Vec::new(),
            patience,
            until: now + patience * PATIENT_STEPS,
            cut,
            starttls,
            ending: ending.clone(),
            idle_since: now,
        };
        if let Begin::Tls(tls, name) = begin
            && let Err(why) = connection.handshake(tls, name)
        {
            let next = connection.client.lost(&why);
            return (connection, next);
        }
        let next = connection.drive(Next::Read, Vec::new(), None);
        (connection, next)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Sends one message; results are the machine's.
    pub(crate) fn send_message(&mut self, message: &Message<'_>, mail: &Mail<'_>) -> Next {
        let transfer = Duration::from_secs(message.octets / OCTETS_PER_SECOND_MIN);
        self.until = Instant::now() + self.patience * PATIENT_STEPS + transfer;
        self.cut = mail.until();
        let mut out = Vec::new();
        let next = self.client.deliver(message, &mut out);
        self.drive(next, out, Some(mail))
    }

    /// Whether an idle connection can still be used: nothing has come, not even its end.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut octet = [0; 1];
        let waits = |result: io::Result<usize>| {
            matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) && self.plain.is_empty()
        };
        let nonblocking = |on| match &self.wire {
            Wire::Tcp(stream) => stream.set_nonblocking(on),
            Wire::Unix(stream) => stream.set_nonblocking(on),
        };
        let _ = nonblocking(true);
        // What comes unasked ends the connection anyway: it need not be understood.
        let read = match &mut &self.wire {
            Wire::Tcp(stream) => (&*stream).read(&mut octet),
            Wire::Unix(stream) => (&*stream).read(&mut octet),
        };
        let alive = waits(read);
        nonblocking(false).is_ok() && alive
    }

    /// Says goodbye without waiting for an answer.
    pub(crate) fn quit(mut self) {
        // Bounded by its own time, also at the end of everything.
        self.ending = Ending::default();
        let mut out = Vec::new();
        self.client.quit(&mut out);
        self.until = Instant::now() + Duration::from_millis(100);
        let _ = self.write(&out, Duration::from_millis(100));
        if let Some(tls) = &mut self.tls {
            let mut wire = Vec::new();
            tls.close(&mut wire);
            let _ = self.write_wire(&wire, Instant::now() + Duration::from_millis(100));
        }
    }

    /// Does what the machine asks for until it has nothing more to ask.
    fn drive(&mut self, mut next: Next, mut out: Vec<u8>, mail: Option<&Mail<'_>>) -> Next {
        let mut step = (self.client.stage(), Instant::now() + self.step());
        loop {
            if !out.is_empty() {
                if let Err(error) = self.write(&out, self.step()) {
                    return self.last_words(&format!("write: {error}"));
                }
                out.clear();
            }
            match next {
                Next::Ready | Next::Delivered | Next::Closed => {
                    self.idle_since = Instant::now();
                    return next;
                }
                Next::StartTls => {
                    self.plain.clear();
                    let begun = match self.starttls.take() {
                        Some((tls, name)) => {
                            let done = self.handshake(&tls, &name);
                            self.starttls = Some((tls, name));
                            done
                        }
                        None => Err("no TLS settings".to_owned()),
                    };
                    next = match begun {
                        Ok(()) => self.client.tls_started(&mut out),
                        Err(why) => return self.client.lost(&why),
                    };
                }
                Next::Write => {
                    let Some(mail) = mail else { return self.client.lost("no message is under way") };
                    next = match self.feed(mail, &mut out) {
                        Ok(next) => next,
                        Err(why) => return self.last_words(&why),
                    };
                }
                Next::Read => {
                    if self.client.stage() != step.0 {
                        step = (self.client.stage(), Instant::now() + self.step());
                    }
                    if let Err(why) = self.read(step.1) {
                        return self.client.lost(&why);
                    }
                    let used;
                    (used, next) = self.client.receive(&self.plain, &mut out);
                    self.plain.drain(..used.min(self.plain.len()));
                    if used > 0 {
                        step.1 = Instant::now() + self.step();
                    }
                }
            }
        }
    }

    /// How long this step may take.
    fn step(&self) -> Duration {
        let stage: Stage = self.client.stage();
        self.patience.min(Duration::from_secs(u64::from(stage.patience_seconds())))
    }

    /// The peer may have said why before it closed.
    fn last_words(&mut self, why: &str) -> Next {
        let until = Instant::now() + self.patience.min(Duration::from_secs(2));
        let mut out = Vec::new();
        while self.read(until).is_ok() {
            let (used, next) = self.client.receive(&self.plain, &mut out);
            self.plain.drain(..used.min(self.plain.len()));
            if matches!(next, Next::Closed) {
                return next;
            }
        }
        self.client.lost(why)
    }

    /// Hands the whole message to the machine.
    fn feed(&mut self, mail: &Mail<'_>, out: &mut Vec<u8>) -> Result<Next, String> {
        let mut next = Next::Write;
        let mut broken = None;
        let mut part = |this: &mut Self, octets: &[u8]| -> io::Result<()> {
            for piece in octets.chunks(WRITE_OCTETS) {
                if next != Next::Write {
                    return Err(io::Error::other("refused"));
                }
                next = this.client.body(piece, out);
                if out.len() >= WRITE_OCTETS {
                    if let Err(error) = this.write(out, this.step()) {
                        broken = Some(format!("write: {error}"));
                        return Err(error);
                    }
                    out.clear();
                }
            }
            Ok(())
        };
        let fed = part(self, mail.prepend()).and_then(|()| mail.body(&mut |octets| part(self, octets)));
        match (broken, fed) {
            (Some(why), _) => Err(why),
            (None, _) if next != Next::Write => Ok(next),
            (None, Err(error)) => Ok(self.client.lost(&format!("message cannot be read: {error}"))),
            (None, Ok(())) => Ok(self.client.lost("message is shorter than it was")),
        }
    }

    fn handshake(&mut self, tls: &ClientTls, name: &str) -> Result<(), String> {
        let until = Instant::now() + self.step();
        let mut out = Vec::new();
        let mut session = ClientSession::connect(tls, name, &mut out).map_err(|error| format!("TLS: {error}"))?;
        let mut plain = Vec::new();
        loop {
            self.write_wire(&out, until).map_err(|error| format!("TLS handshake: {error}"))?;
            out.clear();
            if !session.is_handshaking() {
                self.plain = plain;
                self.tls = Some(session);
                return Ok(());
            }
            let octets = self.read_wire(until).map_err(|error| format!("TLS handshake: {error}"))?;
            match session.receive(&octets, &mut plain, &mut out) {
                Ok(true) => {}
                Ok(false) => return Err("TLS handshake: peer ended it".to_owned()),
                Err(error) => {
                    let _ = self.write_wire(&out, until);
                    return Err(format!("TLS: {error}"));
                }
            }
        }
    }

    /// Waits for more plaintext.
    fn read(&mut self, until: Instant) -> Result<(), String> {
        let before = self.plain.len();
        while self.plain.len() == before {
            let octets = self.read_wire(until).map_err(|error| error.to_string())?;
            match &mut self.tls {
                None => self.plain.extend_from_slice(&octets),
                Some(tls) => {
                    let mut out = Vec::new();
                    let received = tls.receive(&octets, &mut self.plain, &mut out);
                    let _ = self.write_wire(&out, until);
                    match received {
                        Ok(true) => {}
                        Ok(false) if self.plain.len() > before => {}
                        Ok(false) => return Err("peer closed the connection".to_owned()),
                        Err(error) => return Err(format!("TLS: {error}")),
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, plain: &[u8], patience: Duration) -> io::Result<()> {
        let until = Instant::now() + patience;
        match &mut self.tls {
            None => self.write_wire(plain, until),
            Some(tls) => {
                let mut wire = Vec::with_capacity(plain.len() + 512);
                tls.send(plain, &mut wire).map_err(io::Error::other)?;
                self.write_wire(&wire, until)
            }
        }
    }

    fn read_wire(&mut self, until: Instant) -> io::Result<Vec<u8>> {
        let mut octets = vec![0; 16 << 10];
        loop {
            let left = self.left(until)?;
            let read = match &mut self.wire {
                Wire::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut octets)),
                Wire::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut octets)),
            };
            match read {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "peer closed the connection")),
                Ok(read) => {
                    octets.truncate(read);
                    return Ok(octets);
                }
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write_wire(&mut self, mut octets: &[u8], until: Instant) -> io::Result<()> {
        while !octets.is_empty() {
            let left = self.left(until)?;
            let written = match &mut self.wire {
                Wire::Tcp(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(octets)),
                Wire::Unix(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(octets)),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => octets = octets.get(written..).unwrap_or_default(),
                Err(error) if is_early(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How long to wait before the next look.
    fn left(&self, until: Instant) -> io::Result<Duration> {
        let now = Instant::now();
        // A message that is with the peer as a whole is waited for: who gives up does not know whether it was taken.
        if self.cut.is_some_and(|cut| now >= cut) && self.client.stage() != Stage::Final {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "peer did not answer while the client waited"));
        }
        let left = until.min(self.until).saturating_duration_since(now);
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "peer did not answer in time"));
        }
        if !self.ending.allows(self.client.stage()) {
            return Err(io::Error::other("delivery ends; tried again after its start"));
        }
        Ok(left.clamp(Duration::from_millis(1), LOOK_EVERY))
    }
}

/// Nothing has happened yet: the deadline decides.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
