//! One event loop: its connections, and what happens to them in a turn.
//!
//! ```text
//! poll → clocks → events │ run queue │ inbox │ directory │ wheel │ doors → questions and steps leave → counts leave
//!
//! a connection's turn (`turn`)
//!   unsent?  send it first; while it does not leave, nothing is read
//!   pending? wait: one effect at a time, replies keep their order
//!   input    one read into the shard's scratch (behind a kept piece of a line), TLS → plaintext,
//!            session.receive, all replies of the batch in one write
//!   again    until a short read, an effect, or the turn's share is used up; then the run queue
//! ```
//!
//! A panic in a session's turn ends that session with 421 and is counted; the others do not notice
//! (CONTRACT C27).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use limits::Refusal;
use link::Link;
use mio::unix::SourceFd;
use mio::{Interest, Poll};
use plugin_host::RemoteLibrary;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use smtp::host::{Context, Outcome, Peer, Pools, TlsFacts, Trouble};
use smtp::{Farewell, Next, Phase, Session};
use telemetry::{Counter, Event, Gauge, Histogram};

use crate::connection::{Clock, Pending, Slot, Stage, Tls, flag, keep, ticks};
use crate::doors::{Arrival, DOORS, Doors};
use crate::host::{Local, Shared, TurnHost, committed};
use crate::inbox::Inbox;
use crate::passing::{Doubt, News};
use crate::questions::{Lost, Memory};
use crate::setup::Notice;
use crate::slab::{GenSlab, Token};
use crate::wheel::{Link as WheelLink, Tick, Wheel};

/// What other threads tell a shard.
pub enum Mail {
    /// A commit has ended.
    Committed(Token, Result<(), spool::Trouble>),
    /// The spool has room again.
    Room,
    /// A message that is not kept has its file; where it stands in [`crate::passing`].
    Handed(Token, Result<spool::Handed, spool::Trouble>),
    /// A new link to the directory.
    Directory(Link),
    /// A new link to delivery.
    Delivery(Link),
    /// A link to a process that runs mechanisms: which library, which edition, whether it has described itself.
    Runner(Arc<RemoteLibrary>, u32, Link, bool),
    /// Accept nobody; end idle sessions after the first time, all after the second, milliseconds from now.
    Drain(u64, u64),
    /// End all sessions now.
    Stop,
}

/// One event loop.
pub struct Shard {
    poll: Poll,
    shared: Arc<Shared>,
    local: Local,
    inbox: Inbox<Mail>,
    doors: Doors,
    slots: GenSlab<Slot>,
    slots_max: usize,
    wheel: Wheel,
    pools: Pools,
    /// Where reads go; behind a kept piece of input.
    input: Vec<u8>,
    plain: Vec<u8>,
    /// Replies of the batch, in clear.
    out: Vec<u8>,
    /// What goes to the kernel, when that is not `out` itself.
    wire: Vec<u8>,
    /// Connections with more to do than their share of a turn.
    run: VecDeque<Token>,
    sink_full: Vec<Token>,
    answers: Vec<(Token, Outcome)>,
    /// From delivery.
    news: News,
    drain: Option<Drain>,
    /// When sessions panicked, the last few.
    panics: VecDeque<u64>,
    /// Reads for handshakes in this turn.
    handshakes: usize,
    /// A descriptor came back in this turn.
    closed: bool,
}

struct Drain {
    idle_ms: u64,
    hard_ms: u64,
}

/// What became of octets that were to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    All,
    /// The client has to read first.
    Blocked,
    /// There is nobody any more.
    Gone,
}

/// What a read gave.
enum Read {
    Octets(usize),
    Nothing,
    End,
}

/// Token numbers of the shard itself.
pub const INBOX: u32 = 0;
const DIRECTORY: u32 = 1;
const DELIVERY: u32 = 2;
/// And of links to mechanism-hosts, from here on.
const RUNNERS: u32 = 1 << 24;

/// What a shard begins with.
pub struct Beginning {
    pub poll: Poll,
    pub inbox: Inbox<Mail>,
    pub shared: Arc<Shared>,
    pub local: Local,
    pub sockets: Vec<(u16, OwnedFd)>,
    pub slots_max: usize,
}

impl Shard {
    /// A shard whose doors are open.
    pub fn new(beginning: Beginning) -> io::Result<Self> {
        let Beginning { poll, inbox, shared, local, sockets, slots_max } = beginning;
        let doors = Doors::open(poll.registry(), sockets)?;
        let shard = Self {
            doors,
            poll,
            shared,
            wheel: Wheel::new(local.now.tick),
            local,
            inbox,
            slots: GenSlab::default(),
            slots_max,
            pools: Pools::default(),
            input: Vec::new(),
            plain: Vec::new(),
            out: Vec::new(),
            wire: Vec::new(),
            run: VecDeque::new(),
            sink_full: Vec::new(),
            answers: Vec::new(),
            news: News::default(),
            drain: None,
            panics: VecDeque::new(),
            handshakes: 0,
            closed: false,
        };
        shard.watch_directory()?;
        shard.watch_delivery()?;
        Ok(shard)
    }

    /// Turns until everything has ended after a drain or a stop.
    pub fn run(mut self) {
        let mut events = mio::Events::with_capacity(1024);
        let mut due = Vec::new();
        while self.drain.is_none() || !self.slots.is_empty() {
            match self.poll.poll(&mut events, Some(self.timeout())) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Without a poll there is nothing that this thread could do.
                Err(_) => {
                    (self.shared.notify)(Notice::Failed { shard: self.local.number });
                    break;
                }
            }
            self.local.now.read();
            (self.handshakes, self.closed) = (0, false);

            let (mut asked, mut passed) = (false, false);
            let mut waiting = self.run.len();
            for event in &events {
                let token = Token::from_word(event.token().0 as u64);
                match token.outside_number() {
                    None => self.event(token, event),
                    Some(INBOX) => self.inbox.woken(),
                    Some(DIRECTORY) => asked = true,
                    Some(DELIVERY) => passed = true,
                    Some(runner @ RUNNERS..) => self.hear_runner(runner - RUNNERS),
                    Some(door) => self.doors.knock((door - DOORS) as usize),
                }
            }
            while waiting > 0
                && let Some(token) = self.run.pop_front()
            {
                waiting -= 1;
                if let Some(slot) = self.slots.get_mut(token) {
                    slot.clear(flag::QUEUED);
                    self.guarded(token, |shard| shard.turn(token));
                }
            }
            while let Some(mail) = self.inbox.take() {
                self.take_mail(mail);
            }
            if asked {
                self.hear_directory();
            }
            if passed {
                // A lost link is replaced by the supervisor, as with the directory.
                let _ = self.local.passing.receive(self.local.now.ms, &mut self.news);
            }
            self.give_up_questions();
            self.wheel.advance(&mut self.slots, self.local.now.tick, &mut due);
            for index in due.drain(..) {
                if let Some(token) = self.slots.token_at(index) {
                    self.guarded(token, |shard| shard.expired(token));
                }
            }
            self.drain_step();
            self.accept();
            self.doors.resume(self.poll.registry(), self.local.now.ms, self.closed);
            if self.local.questions.flush(self.local.now.ms).is_err() {
                self.directory_lost();
            }
            let _ = self.local.passing.flush(self.local.now.ms, &mut self.news);
            self.tell_news();
            self.local.steps.flush(&mut self.answers);
            while !self.answers.is_empty() {
                self.hand_out_answers();
                self.local.steps.flush(&mut self.answers);
            }
            self.end_of_turn();
        }
        // Only after a stop, a drain's hard end or a failure of the poll is there anybody left.
        for token in self.slots.tokens() {
            self.guarded(token, |shard| {
                shard.farewell(token, Farewell::Shutdown);
                shard.close(token, "shutdown");
            });
        }
        self.end_of_turn();
        self.local.watch.end();
    }

    /// How long the poll may sleep.
    fn timeout(&self) -> Duration {
        if !self.run.is_empty() || self.doors.is_ready() {
            return Duration::ZERO;
        }
        let now = &self.local.now;
        let drain = self.drain.as_ref().map(|drain| if now.ms < drain.idle_ms { drain.idle_ms } else { drain.hard_ms });
        let next = [
            self.wheel.next().map(|tick| now.at(tick)),
            self.local.questions.give_up_at(),
            self.local.passing.give_up_at(),
            self.doors.paused_until(),
            self.local.watch.due_ms(),
            drain,
        ];
        let next = next.into_iter().flatten().min().unwrap_or(u64::MAX);
        Duration::from_millis(next.saturating_sub(now.ms).min(HEARTBEAT_MS))
    }

    fn end_of_turn(&mut self) {
        if std::mem::take(&mut self.local.queued) {
            self.local.spool.go();
        }
        let (shared, number) = (&self.shared, self.local.number);
        let now = self.local.now;
        // The process is as alive as its slowest shard (CONTRACT C26).
        if let Some(beat) = shared.beats.get(number)
            && now.unix_ms.saturating_sub(beat.load(Ordering::Relaxed)) >= HEARTBEAT_MS / 2
        {
            beat.store(now.unix_ms, Ordering::Relaxed);
            let slowest = shared.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).min();
            self.local.watch.heartbeat(slowest.unwrap_or(now.unix_ms));
        }
        self.local.watch.observe(Histogram::TurnMicros, link::monotonic_us().saturating_sub(now.us));
        self.local.watch.turn(now.ms);
    }

    // ------------------------------------------------------------------------------ connections come

    fn accept(&mut self) {
        let now_ms = self.local.now.ms;
        let mut left = ACCEPTS_MAX;
        for number in 0..self.doors.len() {
            // Each door gets its share even when another one is flooded.
            let mut share = ACCEPTS_MAX.div_ceil(self.doors.len());
            while left > 0 && share > 0 {
                match self.doors.accept(number, self.poll.registry(), now_ms) {
                    Arrival::Nobody => break,
                    Arrival::Client { fd, address, port } => {
                        (left, share) = (left - 1, share - 1);
                        let ip = address.ip().to_canonical();
                        self.welcome(fd, ip, address.port(), port);
                    }
                    Arrival::Unserved { fd, port } => {
                        self.refuse(fd, port, smtp::reply::OVERLOAD.line, Counter::ConnectionsRefusedOverload);
                        self.doors.told();
                    }
                }
                if self.doors.paused_until().is_some() {
                    self.local.watch.add(Counter::AcceptPauses, 1);
                    return;
                }
            }
        }
    }

    /// Admits a client or tells it why not; nothing was allocated for it until here.
    fn welcome(&mut self, fd: OwnedFd, ip: std::net::IpAddr, peer_port: u16, number: u16) {
        let shared = Arc::clone(&self.shared);
        let Some(port) = shared.ports.get(usize::from(number)) else { return };
        let exempt = port.exempt_nets.iter().any(|net| net.contains(&ip));
        if self.slots.len() >= self.slots_max {
            return self.refuse(fd, number, smtp::reply::OVERLOAD.line, Counter::ConnectionsRefusedTotal);
        }
        let mut ticket = None;
        if !exempt {
            ticket = match shared.limits.try_connect(&port.limits, ip, self.local.now.ms) {
                Ok(ticket) => Some(ticket),
                Err(refusal) => {
                    let (line, counter) = match refusal {
                        Refusal::Total => (smtp::reply::OVERLOAD.line, Counter::ConnectionsRefusedTotal),
                        Refusal::Prefix => (TOO_MANY, Counter::ConnectionsRefusedPrefix),
                        Refusal::Rate => (TOO_MANY, Counter::ConnectionsRefusedRate),
                    };
                    return self.refuse(fd, number, line, counter);
                }
            };
        }
        let implicit = port.listener.tls == smtp::listener::Tls::Implicit;
        let tick = self.local.now.tick;
        let token = self.slots.insert(Slot {
            link: WheelLink::default(),
            fd,
            port: number,
            stage: if implicit { Stage::Handshake } else { Stage::Open },
            pending: Pending::None,
            flags: 0,
            clock: if implicit { Clock::Handshake } else { Clock::Command },
            paused: 0,
            peer: Peer {
                ip,
                port: peer_port,
                exempt,
                cleartext_auth: port.cleartext_nets.iter().any(|net| net.contains(&ip)),
            },
            tls: None,
            held: None,
            question: 0,
            ticket,
            born: tick,
            started: tick,
            session: Session::new(),
        });
        self.count_sessions();
        self.local.watch.add(Counter::ConnectionsAccepted, 1);
        self.local.watch.gauge(Gauge::Sessions, 1);
        self.guarded(token, |shard| {
            if !implicit {
                shard.with_session(token, |session, cx| session.greet(cx));
                shard.flush(token);
            }
            if shard.register(token).is_err() {
                return shard.close(token, "poll");
            }
            shard.turn(token);
        });
    }

    /// Tells a client that it cannot be served; on ports where TLS comes first there is no way to.
    fn refuse(&mut self, fd: OwnedFd, port: u16, line: &str, counter: Counter) {
        self.local.watch.add(counter, 1);
        let port = self.shared.ports.get(usize::from(port));
        if port.is_some_and(|port| port.listener.tls != smtp::listener::Tls::Implicit) {
            self.wire.clear();
            self.wire.extend_from_slice(line.as_bytes());
            self.wire.extend_from_slice(b"\r\n");
            // Best effort: a fresh socket has room for one line.
            let _ = rustix::net::send(&fd, &self.wire, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            self.wire.clear();
        }
    }

    fn register(&mut self, token: Token) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        let interest =
            if slot.has(flag::WRITABLE) { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        slot.set(flag::REGISTERED);
        self.poll.registry().register(&mut SourceFd(&slot.fd.as_raw_fd()), mio_token(token), interest)
    }

    // ------------------------------------------------------------------------------ a connection's turn

    fn event(&mut self, token: Token, event: &mio::event::Event) {
        // Whoever had the slot before may have left an event in this batch.
        let Some(slot) = self.slots.get_mut(token) else { return };
        if event.is_readable() || event.is_read_closed() {
            slot.set(flag::READABLE);
        }
        if event.is_read_closed() {
            slot.set(flag::READ_CLOSED);
        }
        if event.is_error() {
            // A reset: nobody will read a reply. A commit that was handed over goes on by itself.
            slot.set(flag::GONE);
        }
        self.guarded(token, |shard| shard.turn(token));
    }

    /// Does what can be done for a connection now, as far as its share of a turn goes.
    fn turn(&mut self, token: Token) {
        let mut octets = 0;
        loop {
            let Some(slot) = self.slots.get_mut(token) else { return };
            if slot.has(flag::GONE) {
                return self.close(token, "lost");
            }
            if slot.is_unsent() {
                match self.send_unsent(token) {
                    Sent::All => continue,
                    Sent::Blocked => return self.arm(token),
                    Sent::Gone => return self.close(token, "lost"),
                }
            }
            match slot.stage {
                Stage::Closing => return self.shut(token),
                Stage::Linger => return self.linger(token),
                Stage::Handshake | Stage::Open => {}
            }
            if slot.has(flag::START_TLS) {
                slot.clear(flag::START_TLS);
                (slot.stage, slot.clock, slot.started) = (Stage::Handshake, Clock::Handshake, self.local.now.tick);
            }
            if slot.pending != Pending::None || slot.has(flag::SINK_FULL) {
                return;
            }
            if slot.has(flag::INPUT) {
                let mut input = self.take_input(token);
                self.feed(token, &input, None);
                sasl::wipe_all(&mut input);
                continue;
            }
            if slot.has(flag::EOF) {
                return self.close(token, "client");
            }
            if !slot.has(flag::READABLE) {
                break;
            }
            if self.drain.is_some() && slot.stage == Stage::Open && slot.is_idle() {
                self.farewell(token, Farewell::Shutdown);
                continue;
            }
            let handshake = slot.stage == Stage::Handshake;
            if octets >= TURN_OCTETS || (handshake && self.handshakes >= HANDSHAKES_MAX) {
                self.queue(token);
                break;
            }
            self.handshakes += usize::from(handshake);
            let read = self.read(token);
            if std::mem::take(&mut self.local.authenticated) {
                // A password passed through functions whose frames are gone and still lie there.
                zeroize::zeroize_stack::<STACK_OCTETS>();
            }
            match read {
                Read::Octets(more) => octets += more,
                Read::Nothing => {}
                Read::End => return self.close(token, "lost"),
            }
        }
        self.arm(token);
    }

    /// One read, and everything that follows from it.
    #[inline(never)]
    fn read(&mut self, token: Token) -> Read {
        let mut input = std::mem::take(&mut self.input);
        if input.len() != INPUT_OCTETS {
            input = vec![0; INPUT_OCTETS];
        }
        let result = self.read_into(token, &mut input);
        self.input = input;
        result
    }

    fn read_into(&mut self, token: Token, input: &mut [u8]) -> Read {
        let Some(slot) = self.slots.get_mut(token) else { return Read::End };
        let encrypted = slot.tls.is_some() || slot.stage == Stage::Handshake;
        let kept = if encrypted { 0 } else { slot.held.as_ref().map_or(0, |held| held.input.len()) };
        let share = if slot.session.phase() == Phase::Data { READ_OCTETS_DATA } else { READ_OCTETS };
        let Some(room) = input.get_mut(kept..kept + share) else { return Read::End };
        let octets = loop {
            match rustix::io::read(&slot.fd, &mut *room) {
                Ok(octets) => break octets,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    slot.clear(flag::READABLE);
                    return Read::Nothing;
                }
                Err(_) => return Read::End,
            }
        };
        if octets == 0 {
            slot.clear(flag::READABLE);
            slot.set(flag::EOF);
            return Read::Nothing;
        }
        // A short read has emptied the socket: what comes later is a new edge. Only an end that was already
        // reported would not be.
        if octets < share && !slot.has(flag::READ_CLOSED) {
            slot.clear(flag::READABLE);
        }
        self.local.watch.add(Counter::OctetsReceived, octets as u64);
        let content = slot.session.phase() == Phase::Data;
        self.local.secret = !content;
        if encrypted {
            // Decrypted where it lies.
            let net = input.get_mut(..octets).unwrap_or_default();
            let read = self.decrypt(token, net, octets);
            if self.is_secret(token, content) {
                sasl::wipe(net);
            }
            return read;
        }
        if kept > 0 {
            let mut piece = self.take_input(token);
            if let Some(front) = input.get_mut(..piece.len()) {
                front.copy_from_slice(&piece);
            }
            sasl::wipe_all(&mut piece);
        }
        let input = input.get_mut(..kept + octets).unwrap_or_default();
        self.feed(token, input, None);
        if self.is_secret(token, content) {
            sasl::wipe(input);
        }
        Read::Octets(octets)
    }

    /// Whether what was read has to be wiped: all but the content of messages. A client that is out of step says
    /// its password as a command.
    fn is_secret(&mut self, token: Token, content: bool) -> bool {
        self.local.secret || !content || !self.is_in_message(token)
    }

    fn is_in_message(&mut self, token: Token) -> bool {
        self.slots.get_mut(token).is_some_and(|slot| slot.session.phase() == Phase::Data)
    }

    fn decrypt(&mut self, token: Token, net: &mut [u8], octets: usize) -> Read {
        let shared = Arc::clone(&self.shared);
        let Some(slot) = self.slots.get_mut(token) else { return Read::End };
        let Some(port) = shared.ports.get(usize::from(slot.port)) else { return Read::End };
        if slot.tls.is_none() {
            let session = port.tls.as_ref().and_then(|server| tls::TlsSession::accept(server).ok());
            let Some(session) = session else { return Read::End };
            let began_us = link::monotonic_us();
            slot.tls = Some(Box::new(Tls { session, facts: None, charged: 0, began_us }));
        }
        let (mut plain, mut wire) = (std::mem::take(&mut self.plain), std::mem::take(&mut self.wire));
        plain.clear();
        // Growing it later would leave copies behind: more than this is not decrypted at once.
        let kept = slot.held.as_ref().map_or(0, |held| held.input.len());
        plain.reserve(kept + octets + tls::RECORD_PLAINTEXT_MAX);
        if let Some(held) = &mut slot.held {
            plain.extend_from_slice(&held.input);
            sasl::wipe_all(&mut held.input);
        }
        self.give_back(token);
        let received = match self.slots.get_mut(token).and_then(|slot| slot.tls.as_mut()) {
            Some(tls) => tls.session.receive(net, &mut plain, &mut wire),
            None => Err(tls::TlsError::NotOpen),
        };
        self.wire = wire;
        let state = match received {
            Ok(received) => {
                if received.handshake_done {
                    self.handshake_done(token);
                }
                Some(received.state)
            }
            Err(error) => {
                self.handshake_failed(token, &error);
                None
            }
        };
        if !plain.is_empty() && matches!(state, Some(tls::State::Open | tls::State::PeerClosed)) {
            self.feed(token, &plain, None);
            if self.local.secret || !self.is_in_message(token) {
                sasl::wipe(&mut plain);
            }
        }
        // A flight of the handshake, a ticket, an alert; feed() has sent it along with replies.
        self.flush(token);
        if !self.charge_records(token) {
            self.farewell(token, Farewell::Overload);
        }
        self.plain = plain;
        if state == Some(tls::State::PeerClosed)
            && let Some(slot) = self.slots.get_mut(token)
        {
            slot.set(flag::EOF);
            slot.clear(flag::READABLE);
        }
        if state.is_some() { Read::Octets(octets) } else { Read::End }
    }

    fn handshake_done(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let Some(tls) = &mut slot.tls else { return };
        tls.facts = tls.session.facts().map(|facts| TlsFacts {
            version: facts.version,
            cipher: facts.cipher,
            group: facts.group,
            sni: facts.sni.into(),
            client_certificate: facts.client_certificate,
            resumed: facts.resumed,
            channel_bindings: crate::connection::bindings(&tls.session),
        });
        tls.session.forget_name();
        let resumed = tls.facts.as_ref().is_some_and(|facts| facts.resumed);
        let took_us = link::monotonic_us().saturating_sub(tls.began_us);
        (slot.stage, slot.clock, slot.started) = (Stage::Open, Clock::Command, self.local.now.tick);
        let implicit = self
            .shared
            .ports
            .get(usize::from(slot.port))
            .is_some_and(|port| port.listener.tls == smtp::listener::Tls::Implicit);
        let watch = &mut self.local.watch;
        watch.add(Counter::TlsHandshakesOk, 1);
        watch.observe(Histogram::HandshakeMicros, took_us);
        watch.add(Counter::TlsResumed, resumed.into());
        watch.gauge(Gauge::SessionsTls, 1);
        self.with_session(token, |session, cx| if implicit { session.greet(cx) } else { session.tls_started(cx) });
    }

    fn handshake_failed(&mut self, token: Token, error: &tls::TlsError) {
        let now = self.local.now;
        let session = crate::connection::session_id(self.local.session_base, token);
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.stage != Stage::Handshake {
            return;
        }
        self.local.watch.add(Counter::TlsHandshakesFailed, 1);
        let event = Event::log("tls.failed", telemetry::Level::Info, now.unix_ms)
            .session(session.0)
            .word("client", slot.peer.ip.to_string())
            .untrusted("cause", error.to_string().into_bytes());
        self.local.watch.tell(&event, now.ms);
    }

    /// Gives `input` to the session, or, after an effect, what `first` says and then `input`; sends all
    /// replies at the end. What the session has not taken is kept.
    fn feed(&mut self, token: Token, input: &[u8], first: Option<Next>) {
        let mut used = 0;
        let mut next = match first {
            Some(Next::Read) if !input.is_empty() => self.receive(token, input, &mut used),
            Some(next) => next,
            None => self.receive(token, input, &mut used),
        };
        while next == Next::OutFull && self.flush(token) == Sent::All {
            next = self.receive(token, input, &mut used);
        }
        let rest = input.get(used..).unwrap_or_default();
        let Some(slot) = self.slots.get_mut(token) else { return };
        match next {
            Next::Read => self.keep_input(token, rest, false),
            Next::OutFull => self.keep_input(token, rest, true),
            Next::Pending => {
                if slot.pending == Pending::None {
                    // The session waits for something that nobody does.
                    self.farewell(token, Farewell::Internal);
                } else {
                    self.local.watch.gauge(Gauge::EffectsPending, 1);
                    self.keep_input(token, rest, true);
                    self.arm_effect(token);
                }
            }
            Next::SinkFull => {
                slot.set(flag::SINK_FULL);
                self.sink_full.push(token);
                self.keep_input(token, rest, true);
            }
            // RFC 3207 §6: what came before the handshake is dropped.
            Next::StartTls => slot.set(flag::START_TLS),
            Next::Close => slot.stage = Stage::Closing,
        }
        self.flush(token);
    }

    /// One call of `Session::receive`, and what it means for the deadline.
    fn receive(&mut self, token: Token, input: &[u8], used: &mut usize) -> Next {
        let before = self.out.len();
        let rest = input.get(*used..).unwrap_or_default();
        let Some((octets, next)) = self.with_session(token, |session, cx| session.receive(rest, cx)) else {
            return Next::Close;
        };
        *used += octets;
        self.wind_clock(token, self.out.len() > before);
        next
    }

    /// A pending effect has ended.
    fn resume(&mut self, token: Token, outcome: Outcome) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending == Pending::None || slot.stage != Stage::Open {
            return;
        }
        slot.pending = Pending::None;
        self.local.watch.gauge(Gauge::EffectsPending, -1);
        let Some(next) = self.with_session(token, |session, cx| session.complete(outcome, cx)) else { return };
        self.wind_clock(token, true);
        let mut input = self.take_input(token);
        self.feed(token, &input, Some(next));
        sasl::wipe_all(&mut input);
        self.turn(token);
    }

    /// Moves the deadline's clock: a command or a new phase starts it, octets alone do not.
    fn wind_clock(&mut self, token: Token, answered: bool) {
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.is_known() != slot.has(flag::KNOWN) {
            slot.flags ^= flag::KNOWN;
            if let Some(tls) = &mut slot.tls {
                tls.session.forget_channel_bindings();
            }
            self.local.watch.gauge(Gauge::SessionsAuthenticated, if slot.has(flag::KNOWN) { 1 } else { -1 });
        }
        let clock = match slot.session.phase() {
            Phase::Command { .. } => Clock::Command,
            Phase::Auth => Clock::Auth,
            Phase::Data => Clock::Data,
            // What an effect interrupts goes on.
            Phase::Effect | Phase::Closed => return,
        };
        if clock != slot.clock || (clock == Clock::Command && answered) {
            (slot.clock, slot.started) = (clock, tick);
        }
    }

    /// Calls the session with everything that it may look at.
    fn with_session<R>(&mut self, token: Token, call: impl FnOnce(&mut Session, &mut Context<'_>) -> R) -> Option<R> {
        let slot = self.slots.get_mut(token)?;
        let port = self.shared.ports.get(usize::from(slot.port))?;
        let id = crate::connection::session_id(self.local.session_base, token);
        let (now_ms, unix_ms) = (self.local.now.ms, self.local.now.unix_ms);
        let by_account = port.limits.messages_per_minute > 0 || port.limits.recipients_per_minute > 0;
        let identity = slot.session.identity().filter(|_| by_account);
        let account = identity.map(|identity| self.shared.account(identity.name.as_bytes()));
        let mut host = TurnHost {
            shared: &self.shared,
            local: &mut self.local,
            port,
            token,
            id,
            peer: &slot.peer,
            tls: slot.tls.as_deref(),
            account,
            pending: &mut slot.pending,
            question: &mut slot.question,
            held: &mut slot.held,
        };
        let mut cx = Context {
            listener: &port.listener,
            peer: &slot.peer,
            tls: slot.tls.as_ref().and_then(|tls| tls.facts.as_ref()),
            session: id,
            now_ms,
            unix_ms,
            out: &mut self.out,
            pools: &mut self.pools,
            host: &mut host,
        };
        Some(call(&mut slot.session, &mut cx))
    }

    // ------------------------------------------------------------------------------ output

    /// Sends what the session said. One write, one TLS record.
    fn flush(&mut self, token: Token) -> Sent {
        let Some(slot) = self.slots.get_mut(token) else {
            self.out.clear();
            self.wire.clear();
            return Sent::Gone;
        };
        if let Some(tls) = slot.tls.as_mut().filter(|tls| tls.facts.is_some()) {
            let failed = !self.out.is_empty() && tls.session.send(&self.out, &mut self.wire).is_err();
            self.out.clear();
            if slot.stage == Stage::Closing {
                tls.session.close(&mut self.wire);
            }
            if failed {
                slot.set(flag::GONE);
            }
        } else if self.wire.is_empty() {
            std::mem::swap(&mut self.out, &mut self.wire);
        } else {
            // Handshake octets: nothing is said in clear beside them.
            self.out.clear();
        }
        let sent = if self.wire.is_empty() { Sent::All } else { self.send(token) };
        self.wire.clear();
        sent
    }

    /// Sends `wire`; keeps what does not leave.
    fn send(&mut self, token: Token) -> Sent {
        let Some(slot) = self.slots.get_mut(token) else { return Sent::Gone };
        let mut sent = 0;
        if !slot.is_unsent() {
            sent = match send_some(&slot.fd, &self.wire) {
                Ok(sent) => sent,
                Err(Gone) => {
                    slot.set(flag::GONE);
                    return Sent::Gone;
                }
            };
            self.local.watch.add(Counter::OctetsSent, sent as u64);
            if sent == self.wire.len() {
                return Sent::All;
            }
        }
        let rest = self.wire.get(sent..).unwrap_or_default();
        let spare = &mut self.local.spare;
        let held = slot.held.get_or_insert_with(|| spare.pop().unwrap_or_default());
        if held.out.len() - held.sent + rest.len() > UNSENT_OCTETS_MAX {
            slot.set(flag::GONE);
            return Sent::Gone;
        }
        if held.out.is_empty() {
            held.out_tick = self.local.now.tick;
        }
        held.out.extend_from_slice(rest);
        if !self.charge(token) {
            if let Some(slot) = self.slots.get_mut(token) {
                slot.set(flag::GONE);
            }
            return Sent::Gone;
        }
        self.want_write(token);
        Sent::Blocked
    }

    fn send_unsent(&mut self, token: Token) -> Sent {
        let Some(slot) = self.slots.get_mut(token) else { return Sent::Gone };
        let Some(held) = &mut slot.held else { return Sent::All };
        let Ok(sent) = send_some(&slot.fd, held.out.get(held.sent..).unwrap_or_default()) else { return Sent::Gone };
        self.local.watch.add(Counter::OctetsSent, sent as u64);
        held.sent += sent;
        if sent > 0 {
            held.out_tick = self.local.now.tick;
        }
        if held.sent < held.out.len() {
            return Sent::Blocked;
        }
        (held.out, held.sent) = (Vec::new(), 0);
        self.give_back(token);
        Sent::All
    }

    /// WRITABLE is asked for only once something did not leave, and then stays: it is an edge.
    fn want_write(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.has(flag::WRITABLE) {
            return;
        }
        slot.set(flag::WRITABLE);
        if slot.has(flag::REGISTERED) {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let fd = slot.fd.as_raw_fd();
            if self.poll.registry().reregister(&mut SourceFd(&fd), mio_token(token), interest).is_err() {
                slot.set(flag::GONE);
            }
        }
    }

    // ------------------------------------------------------------------------------ what is held

    fn take_input(&mut self, token: Token) -> Vec<u8> {
        let Some(slot) = self.slots.get_mut(token) else { return Vec::new() };
        slot.clear(flag::INPUT);
        let input = slot.held.as_mut().map(|held| std::mem::take(&mut held.input)).unwrap_or_default();
        self.give_back(token);
        input
    }

    /// Keeps what the session has not taken. `whole`: it may hold whole lines, so it is offered again
    /// without waiting for the client.
    fn keep_input(&mut self, token: Token, rest: &[u8], whole: bool) {
        if rest.is_empty() {
            return self.give_back(token);
        }
        let Some(slot) = self.slots.get_mut(token) else { return };
        let spare = &mut self.local.spare;
        let held = slot.held.get_or_insert_with(|| spare.pop().unwrap_or_default());
        keep(&mut held.input, rest);
        if whole {
            slot.set(flag::INPUT);
        }
        if !self.charge(token) {
            self.take_input(token);
            self.farewell(token, Farewell::Overload);
        }
    }

    /// Squares the budget with what is held; `false` when it does not permit that.
    fn charge(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return true };
        let known = slot.is_known();
        let Some(held) = &mut slot.held else { return true };
        let octets = held.octets();
        let permitted = self.shared.budget.hold(held.charged, octets, known);
        if permitted {
            held.charged = octets;
        }
        permitted
    }

    /// The same for records that are not complete.
    fn charge_records(&mut self, token: Token) -> bool {
        let Some(slot) = self.slots.get_mut(token) else { return true };
        let known = slot.is_known();
        let Some(tls) = &mut slot.tls else { return true };
        let octets = tls.session.pending_octets();
        let permitted = self.shared.budget.hold(tls.charged, octets, known);
        if permitted {
            tls.charged = octets;
        }
        permitted
    }

    /// Gives the box back when nothing is in it any more; else counts anew what is.
    fn give_back(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.held.as_ref().is_some_and(|held| held.is_empty())
            && let Some(mut held) = slot.held.take()
        {
            self.shared.budget.hold(held.charged, 0, true);
            held.wipe();
            if self.local.spare.len() < SPARE_MAX {
                self.local.spare.push(held);
            }
        } else {
            // What is still held is less than it was, and always permitted.
            self.charge(token);
        }
    }

    fn queue(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if !slot.has(flag::QUEUED) {
            slot.set(flag::QUEUED);
            self.run.push_back(token);
        }
    }

    // ------------------------------------------------------------------------------ time

    fn is_crowded(&self) -> bool {
        self.slots.len() * 10 >= self.slots_max * 9
    }

    /// Hangs the connection up at its deadline. Later than before: one store.
    fn arm(&mut self, token: Token) {
        let crowded = self.is_crowded();
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending != Pending::None {
            return;
        }
        let Some(port) = self.shared.ports.get(usize::from(slot.port)) else { return };
        let due = slot.due(&port.deadlines, crowded);
        self.wheel.arm(&mut self.slots, token.index(), due);
    }

    fn arm_effect(&mut self, token: Token) {
        let now = self.local.now.tick;
        let ms = self.local.effect_ms;
        let Some(slot) = self.slots.get_mut(token) else { return };
        let due = match slot.pending {
            // Once handed over, the answer is the sync's, however late (DECISIONS H12).
            Pending::Commit => Tick::MAX / 2,
            Pending::Question | Pending::Step | Pending::Passing => now.saturating_add(ticks(ms)),
            Pending::Delay => {
                // A delay stops the clock before login (DECISIONS C7). One tick more: ticks are rounded down.
                slot.paused = slot.paused.saturating_add(u16::try_from(ticks(ms)).unwrap_or(u16::MAX));
                now.saturating_add(ticks(ms)).saturating_add(1)
            }
            Pending::None => return,
        };
        self.wheel.arm(&mut self.slots, token.index(), due);
    }

    /// The wheel came round to this connection.
    fn expired(&mut self, token: Token) {
        let crowded = self.is_crowded();
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        match slot.pending {
            Pending::Delay => return self.resume(token, Outcome::Elapsed),
            Pending::Question => {
                let question = slot.question;
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                self.local.watch.add(Counter::DirectoryTemporary, 1);
                return match self.local.questions.forget(token, question) {
                    Some(outcome) => self.resume(token, outcome),
                    None => self.farewell(token, Farewell::Internal),
                };
            }
            Pending::Step => {
                let question = slot.question;
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                // Those who wait for the same process are told at the end of this turn.
                let mut others = Vec::new();
                if let Some((runner, generation)) = self.local.steps.leave_debtor(question, &mut others) {
                    (self.shared.notify)(Notice::RunnerStuck { runner, generation });
                }
                self.local.steps.forget(token, question);
                others.retain(|(other, _)| *other != token);
                self.answers.append(&mut others);
                let late = sasl::OwnedStep::failure(sasl::FailureClass::Temporary, "no answer of its process in time");
                return self.resume(token, Outcome::Step(late));
            }
            Pending::Commit => return self.arm_effect(token),
            Pending::Passing => {
                let question = slot.question;
                self.local.watch.add(Counter::EffectsTimedOut, 1);
                self.local.passing.forget(token, question);
                return self.resume(token, Outcome::Commit(Err(Trouble::Late)));
            }
            Pending::None => {}
        }
        let Some(port) = self.shared.ports.get(usize::from(slot.port)) else { return };
        slot.look_for_slowness(tick);
        if slot.has(flag::SINK_FULL) {
            // It is us who are slow.
            slot.started = tick;
        }
        if slot.due(&port.deadlines, crowded) > tick {
            return self.arm(token);
        }
        self.local.watch.add(Counter::SessionsTimedOut, 1);
        if slot.is_unsent() || slot.stage != Stage::Open {
            return self.close(token, "timeout");
        }
        self.farewell(token, Farewell::Timeout);
        self.turn(token);
    }

    // ------------------------------------------------------------------------------ ends

    /// Says 421 when that is possible, and lets the connection close.
    fn farewell(&mut self, token: Token, why: Farewell) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.stage == Stage::Open {
            self.with_session(token, |session, cx| session.farewell(why, cx));
        }
        if let Some(slot) = self.slots.get_mut(token) {
            slot.stage = Stage::Closing;
        }
        self.drop_pending(token);
        self.flush(token);
    }

    fn drop_pending(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.pending == Pending::None {
            return;
        }
        if slot.pending == Pending::Question {
            self.local.questions.forget(token, slot.question);
        }
        if slot.pending == Pending::Step {
            self.local.steps.forget(token, slot.question);
        }
        if slot.pending == Pending::Passing {
            self.local.passing.forget(token, slot.question);
        }
        slot.pending = Pending::None;
        self.local.watch.gauge(Gauge::EffectsPending, -1);
    }

    /// Everything was sent. Closing with octets unread would make the kernel send a reset, which may
    /// overtake our last reply; then our side is shut and the rest is thrown away first.
    fn shut(&mut self, token: Token) {
        let tick = self.local.now.tick;
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.has(flag::EOF) || !slot.has(flag::READABLE) {
            return self.close(token, "us");
        }
        if rustix::net::shutdown(&slot.fd, Shutdown::Write).is_err() {
            return self.close(token, "us");
        }
        (slot.stage, slot.started) = (Stage::Linger, tick);
        self.end_session(token, "us");
        self.linger(token);
    }

    fn linger(&mut self, token: Token) {
        let mut input = std::mem::take(&mut self.input);
        input.resize(INPUT_OCTETS, 0);
        let mut left = 4;
        let ended = loop {
            let Some(slot) = self.slots.get_mut(token) else { break false };
            if left == 0 {
                self.queue(token);
                break false;
            }
            left -= 1;
            match rustix::io::read(&slot.fd, &mut input[..]) {
                Ok(0) => break true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break false,
                Err(_) => break true,
            }
        };
        self.input = input;
        if ended {
            return self.close(token, "us");
        }
        self.arm(token);
    }

    /// Tells the session that it is over and writes its record. Once.
    fn end_session(&mut self, token: Token, by: &'static str) {
        let now = self.local.now;
        let id = crate::connection::session_id(self.local.session_base, token);
        self.drop_pending(token);
        let Some(slot) = self.slots.get_mut(token) else { return };
        if slot.has(flag::ENDED) {
            return;
        }
        slot.set(flag::ENDED);
        let seconds = u64::from(now.tick - slot.born) * crate::wheel::TICK_MS / 1000;
        let listener = self.shared.ports.get(usize::from(slot.port)).map_or("", |port| &port.listener.name);
        let mut event = Event::audit("session.end", now.unix_ms)
            .session(id.0)
            .word("listener", listener)
            .word("client", slot.peer.ip.to_string())
            .number("port", slot.peer.port.into())
            .number("seconds", seconds)
            .number("messages", slot.session.messages().into())
            .word("by", by);
        if let Some(facts) = slot.tls.as_ref().and_then(|tls| tls.facts.as_ref()) {
            event = event.word("cipher", facts.cipher);
            if facts.client_certificate {
                event = event.word("client_certificate", "verified");
            } else if slot.tls.as_ref().is_some_and(|tls| tls.session.certificate_presented()) {
                event = event.word("client_certificate", "unverified");
            }
        }
        if let Some(identity) = slot.session.identity() {
            event = event.word("identity", identity.name.to_string());
        } else if slot.session.is_anonymous() {
            event = event.word("class", "anonymous");
        }
        let watch = &mut self.local.watch;
        watch.tell(&event, now.ms);
        watch.observe(Histogram::SessionMicros, u64::from(now.tick - slot.born) * crate::wheel::TICK_MS * 1000);
        if slot.tls.as_ref().is_some_and(|tls| tls.facts.is_some()) {
            watch.gauge(Gauge::SessionsTls, -1);
        }
        if slot.has(flag::KNOWN) {
            watch.gauge(Gauge::SessionsAuthenticated, -1);
        }
        self.with_session(token, |session, cx| session.end(cx));
        self.out.clear();
    }

    /// The end of a connection.
    fn close(&mut self, token: Token, by: &'static str) {
        self.end_session(token, by);
        self.forget(token);
    }

    fn forget(&mut self, token: Token) {
        self.wheel.disarm(&mut self.slots, token.index());
        let Some(mut slot) = self.slots.remove(token) else { return };
        if let Some(mut held) = slot.held.take() {
            self.shared.budget.hold(held.charged, 0, true);
            held.wipe();
            if self.local.spare.len() < SPARE_MAX {
                self.local.spare.push(held);
            }
        }
        if let Some(tls) = &slot.tls {
            self.shared.budget.hold(tls.charged, 0, true);
        }
        if let Some(ticket) = slot.ticket {
            self.shared.limits.disconnect(ticket);
        }
        self.count_sessions();
        self.local.watch.gauge(Gauge::Sessions, -1);
        self.closed = true;
    }

    fn count_sessions(&self) {
        if let Some(sessions) = self.shared.sessions.get(self.local.number) {
            sessions.store(self.slots.len() as u64, Ordering::Relaxed);
        }
    }

    /// Runs a piece of a session's work; a panic in it ends that session only.
    fn guarded(&mut self, token: Token, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.panicked(token);
        }
    }

    fn panicked(&mut self, token: Token) {
        let now = self.local.now;
        self.out.clear();
        self.wire.clear();
        self.shared.panics.fetch_add(1, Ordering::Relaxed);
        self.local.watch.add(Counter::Panics, 1);
        let id = crate::connection::session_id(self.local.session_base, token);
        let event = Event::log("panic", telemetry::Level::Error, now.unix_ms).session(id.0);
        self.local.watch.tell(&event, now.ms);
        self.panics.push_back(now.ms);
        while self.panics.front().is_some_and(|&then| now.ms - then > 60_000) {
            self.panics.pop_front();
        }
        if self.panics.len() > PANICS_PER_MINUTE_MAX {
            self.panics.clear();
            (self.shared.notify)(Notice::Panicking);
        }
        // The session's own state is not to be trusted any more, so it is not asked for its last words.
        let said = catch_unwind(AssertUnwindSafe(|| {
            if self.slots.get_mut(token).is_some_and(|slot| slot.stage == Stage::Open && !slot.is_unsent()) {
                self.out.extend_from_slice(smtp::reply::INTERNAL.line.as_bytes());
                self.out.extend_from_slice(b"\r\n");
                if let Some(slot) = self.slots.get_mut(token) {
                    slot.stage = Stage::Closing;
                }
                self.flush(token);
            }
            self.end_session(token, "panic");
        }));
        if said.is_err() {
            self.out.clear();
            self.wire.clear();
        }
        self.forget(token);
    }

    // ------------------------------------------------------------------------------ others

    fn take_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Committed(token, result) => {
                if result.is_err() {
                    self.local.watch.add(Counter::SpoolFailures, 1);
                }
                let waiting = self.slots.get_mut(token).filter(|slot| slot.pending == Pending::Commit);
                if let Some(began_us) = waiting.map(|slot| slot.question) {
                    let took_us = (link::monotonic_us() as u32).wrapping_sub(began_us);
                    self.local.watch.observe(Histogram::CommitMicros, took_us.into());
                    self.guarded(token, |shard| shard.resume(token, committed(result)));
                }
            }
            Mail::Room => {
                for token in std::mem::take(&mut self.sink_full) {
                    if let Some(slot) = self.slots.get_mut(token) {
                        slot.clear(flag::SINK_FULL);
                        self.guarded(token, |shard| shard.turn(token));
                    }
                }
            }
            Mail::Handed(at, result) => {
                if result.is_err() {
                    self.local.watch.add(Counter::SpoolFailures, 1);
                }
                self.local.passing.handed(at, result, &mut self.news);
            }
            Mail::Delivery(link) => {
                self.local.passing.connect(link, &mut self.news);
                // Unwatched it is as good as dead: what is asked ends at its deadline.
                let _ = self.watch_delivery();
            }
            Mail::Directory(link) => {
                self.local.questions.connect(link);
                if self.watch_directory().is_err() {
                    self.directory_lost();
                }
            }
            Mail::Runner(library, generation, link, described) => {
                let number = self.local.steps.connect(library, generation, link, described);
                if let Some(link) = self.local.steps.link(number) {
                    let token = mio_token(Token::outside(RUNNERS + number));
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    // Unwatched it is as good as dead: its steps end at their deadline.
                    let _ = self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), token, interest);
                }
                self.hear_runner(number);
            }
            Mail::Drain(idle_ms, hard_ms) => {
                self.doors.close(self.poll.registry());
                let now = self.local.now.ms;
                let drain = Drain { idle_ms: now.saturating_add(idle_ms), hard_ms: now.saturating_add(hard_ms) };
                self.drain = Some(drain);
            }
            Mail::Stop => {
                self.doors.close(self.poll.registry());
                self.drain = Some(Drain { idle_ms: 0, hard_ms: 0 });
            }
        }
    }

    /// Ends those whose time after a drain has come.
    fn drain_step(&mut self) {
        let now = self.local.now.ms;
        let Some(drain) = &mut self.drain else { return };
        let everybody = now >= drain.hard_ms;
        if !everybody && now < drain.idle_ms {
            return;
        }
        if everybody {
            drain.hard_ms = u64::MAX;
        }
        // Later ones are ended when they become idle: their next command finds the drain.
        drain.idle_ms = if everybody { u64::MAX } else { now + DRAIN_STEP_MS };
        for token in self.slots.tokens() {
            let Some(slot) = self.slots.get_mut(token) else { continue };
            if everybody || (slot.stage == Stage::Open && slot.is_idle()) || slot.stage == Stage::Handshake {
                self.guarded(token, |shard| {
                    shard.farewell(token, Farewell::Shutdown);
                    if everybody { shard.close(token, "shutdown") } else { shard.turn(token) }
                });
            }
        }
    }

    fn watch_directory(&self) -> io::Result<()> {
        let Some(link) = self.local.questions.link() else { return Ok(()) };
        let token = mio_token(Token::outside(DIRECTORY));
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), token, interest)
    }

    fn watch_delivery(&self) -> io::Result<()> {
        let Some(link) = self.local.passing.link() else { return Ok(()) };
        let token = mio_token(Token::outside(DELIVERY));
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), token, interest)
    }

    /// Tells sessions what their next hops said, and the operator what may be delivered twice.
    fn tell_news(&mut self) {
        self.local.passing.give_up(self.local.now.ms, &mut self.news);
        self.answers.append(&mut self.news.answers);
        let now = self.local.now;
        for Doubt { id, taken } in std::mem::take(&mut self.news.doubts) {
            self.local.watch.add(Counter::MessagesInDoubt, 1);
            let event = Event::log("passed.doubt", telemetry::Level::Warning, now.unix_ms).word("id", id.to_string());
            let text = "a next hop has it, or may have, and the client was not told: it may come twice";
            let event = taken.into_iter().fold(event, |event, taken| event.number("recipients", taken.into()));
            self.local.watch.tell(&event.word("text", text), now.ms);
        }
        self.hand_out_answers();
    }

    fn hear_directory(&mut self) {
        let passwords = &self.shared.passwords;
        let mut memory = Memory {
            passwords,
            addresses: &mut self.local.addresses,
            watch: &self.local.watch,
            now_ms: self.local.now.ms,
        };
        let heard = self.local.questions.receive(&mut memory, &mut self.answers);
        self.hand_out_answers();
        if let Err(Lost) = heard {
            self.directory_lost();
        }
    }

    fn hear_runner(&mut self, number: u32) {
        self.local.steps.receive(number, &mut self.answers);
        self.hand_out_answers();
        let now = self.local.now;
        for words in self.local.steps.take_words() {
            let level = match words.level {
                1 => telemetry::Level::Error,
                2 => telemetry::Level::Warning,
                3 => telemetry::Level::Info,
                _ => telemetry::Level::Debug,
            };
            let event = Event::log("plugin.log", level, now.unix_ms);
            self.local.watch.tell(&event.word("plugin", words.id).untrusted("text", words.text), now.ms);
        }
    }

    fn give_up_questions(&mut self) {
        if self.local.questions.give_up_at().is_some_and(|at| self.local.now.ms >= at) {
            self.local.questions.give_up(self.local.now.ms, &mut self.answers);
            self.local.watch.add(Counter::DirectoryTemporary, self.answers.len() as u64);
            self.hand_out_answers();
        }
    }

    fn hand_out_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for (token, outcome) in answers.drain(..) {
            let waits = matches!(
                self.slots.get_mut(token).map(|slot| slot.pending),
                Some(Pending::Question | Pending::Step | Pending::Passing)
            );
            if waits {
                self.guarded(token, |shard| shard.resume(token, outcome));
            }
        }
        self.answers = answers;
    }

    fn directory_lost(&mut self) {
        (self.shared.notify)(Notice::DirectoryLost { shard: self.local.number });
    }
}

struct Gone;

/// Sends what the kernel takes now.
fn send_some(fd: &OwnedFd, octets: &[u8]) -> Result<usize, Gone> {
    loop {
        match rustix::net::send(fd, octets, SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Ok(0),
            Err(_) => return Err(Gone),
        }
    }
}

fn mio_token(token: Token) -> mio::Token {
    mio::Token(token.word() as usize)
}

#[cfg(not(target_pointer_width = "64"))]
compile_error!("crate engine: a poll token holds index and generation, 64 bits");

/// To a client that has too many sessions already (PROTOCOL row 20).
const TOO_MANY: &str = "421 4.7.0 Too many connections from your network; please try again later";

/// How deep a login goes; what it leaves on the stack is wiped.
const STACK_OCTETS: usize = 16 * 1024;
/// Octets that one connection may read in a turn before others come.
const TURN_OCTETS: usize = 32 * 1024;
/// One read of message octets.
const READ_OCTETS_DATA: usize = 32 * 1024;
/// One read of commands: what stands behind an effect has to be kept.
const READ_OCTETS: usize = 16 * 1024;
/// Room for a read and everything that may have been kept before it.
const INPUT_OCTETS: usize = 96 * 1024;
/// Connections accepted in a turn; existing ones come first.
const ACCEPTS_MAX: usize = 64;
/// Reads for handshakes in a turn: an RSA signature takes half a millisecond.
const HANDSHAKES_MAX: usize = 16;
/// Unsent octets of one connection; the session stops at a quarter of it.
const UNSENT_OCTETS_MAX: usize = 64 * 1024;
/// Boxes kept for the next connection that needs one.
const SPARE_MAX: usize = 256;
/// More panics than this in a minute, and the process should be replaced (CONTRACT C27).
const PANICS_PER_MINUTE_MAX: usize = 10;
/// How often a shard shows that it is alive, at least.
const HEARTBEAT_MS: u64 = 1000;
/// How often idle sessions are looked for during the later part of a drain.
const DRAIN_STEP_MS: u64 = 500;
