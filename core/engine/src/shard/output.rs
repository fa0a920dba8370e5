//! Output: one write for everything that a batch of input was answered with. What does not leave is kept, and
//! while it is, its connection is not read.

use std::os::fd::{AsRawFd, OwnedFd};

use mio::Interest;
use mio::unix::SourceFd;
use rustix::io::Errno;
use rustix::net::SendFlags;
use telemetry::Counter;

use super::{Shard, mio_token};
use crate::connection::{Stage, flag};
use crate::slab::Token;

/// What became of octets that were to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    All,
    /// The client has to read first.
    Blocked,
    /// There is nobody any more.
    Gone,
}

impl Shard {
    /// Sends what the session said. One write, one TLS record.
    pub(super) fn flush(&mut self, token: Token) -> Sent {
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

    pub(super) fn send_unsent(&mut self, token: Token) -> Sent {
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

/// Unsent octets of one connection; the session stops at a quarter of it.
const UNSENT_OCTETS_MAX: usize = 64 * 1024;
