//! Clients come: they are accepted, admitted or told why not, and watched.
//!
//! Nothing is allocated for a client before the limits have let it in, and each door gets its share of a turn.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use limits::Refusal;
use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::Errno;
use rustix::net::SendFlags;
use smtp::Session;
use smtp::host::Peer;
use telemetry::{Counter, Gauge};

use super::{Shard, mio_token};
use crate::connection::{Clock, Pending, Slot, Stage, flag};
use crate::doors::Arrival;
use crate::slab::Token;
use crate::wheel::Link;

impl Shard {
    pub(super) fn accept(&mut self) {
        let now_ms = self.local.now.ms;
        let doors = self.doors.len();
        for number in 0..doors {
            // Each door gets its share even when all others are flooded.
            let mut share = (ACCEPTS_MAX / doors).max(1);
            while share > 0 {
                match self.doors.accept(number, self.poll.registry(), now_ms) {
                    Arrival::Nobody => break,
                    Arrival::Client { fd, address, port } => {
                        share -= 1;
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
    fn welcome(&mut self, fd: OwnedFd, ip: IpAddr, peer_port: u16, number: u16) {
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
            link: Link::default(),
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
            let mut rest = &self.wire[..];
            while !rest.is_empty() {
                match rustix::net::send(&fd, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(octets) => rest = rest.get(octets..).unwrap_or_default(),
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
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
}

/// To a client that has too many sessions already (PROTOCOL row 20).
const TOO_MANY: &str = "421 4.7.0 Too many connections from your network; please try again later";

/// Connections accepted in a turn, unless there are more doors; existing ones come first.
const ACCEPTS_MAX: usize = 64;
