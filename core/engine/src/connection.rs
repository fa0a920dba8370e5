//! One connection: the descriptor, the session, and what they hold while they need it.
//!
//! An idle connection is this one slot (and its TLS state); everything else hangs in [`Held`] and exists
//! only between two turns that need it: a piece of a line, a reply that did not leave, a message.

use std::os::fd::OwnedFd;

use smtp::host::{Peer, SessionId, TlsFacts};
use smtp::{Phase, Session};

use crate::setup::Deadlines;
use crate::slab::Token;
use crate::wheel::{Link, Linked, TICK_MS, Tick};

/// A connection and its session.
pub struct Slot {
    pub link: Link,
    pub fd: OwnedFd,
    pub port: u16,
    pub stage: Stage,
    pub pending: Pending,
    pub flags: u16,
    pub clock: Clock,
    /// Ticks that delays have taken from the clock before login.
    pub paused: u16,
    pub peer: Peer,
    pub tls: Option<Box<Tls>>,
    pub held: Option<Box<Held>>,
    /// Where the question that is pending stands; of a commit, when it began: microseconds, their low part.
    pub question: u32,
    /// What the limits want back; none for exempt clients.
    pub ticket: Option<limits::Ticket>,
    pub born: Tick,
    /// When `clock` started.
    pub started: Tick,
    pub session: Session,
}

/// A hundred thousand idle sessions stay cheap; growing this is a decision (DECISIONS C16).
const _: () = assert!(size_of::<Option<Slot>>() <= 192);

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TLS is being negotiated; `tls` is made with the first octets.
    Handshake,
    /// The session talks.
    Open,
    /// The session has nothing more to say; what is unsent leaves, then the end.
    Closing,
    /// Our side is shut; what the client still sends is thrown away, so that our last reply is not lost to a reset.
    Linger,
}

/// What the session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing but the client.
    None,
    /// The directory.
    Question,
    /// A mechanism in another process.
    Step,
    /// The spool.
    Commit,
    /// The next hop.
    Passing,
    /// Delivery, which makes durable what the next hop has left.
    Keeping,
    /// Time.
    Delay,
}

/// Which deadline counts. An effect has no clock of its own here: what it interrupts goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The handshake.
    Handshake,
    /// The next command.
    Command,
    /// The AUTH exchange as a whole.
    Auth,
    /// A message: its rate.
    Data,
}

/// Bits of [`Slot::flags`].
pub mod flag {
    /// The kernel has (or had) octets that were not read; edges are not repeated.
    pub const READABLE: u16 = 1;
    /// The client has shut its side, or is gone.
    pub const READ_CLOSED: u16 = 2;
    /// The end of the client's octets was read.
    pub const EOF: u16 = 4;
    /// Stands in the run queue.
    pub const QUEUED: u16 = 8;
    /// [`Held::input`](super::Held::input) holds what the session may take now; not just a piece of a line.
    pub const INPUT: u16 = 16;
    /// Waits for room in the spool.
    pub const SINK_FULL: u16 = 32;
    /// TLS begins when what is unsent has left.
    pub const START_TLS: u16 = 64;
    /// WRITABLE is registered.
    pub const WRITABLE: u16 = 128;
    /// The session's end was told.
    pub const ENDED: u16 = 256;
    /// Counted among those who have logged in.
    pub const KNOWN: u16 = 512;
    /// The poll knows the descriptor.
    pub const REGISTERED: u16 = 1024;
    /// Sending failed: nobody is there.
    pub const GONE: u16 = 2048;
}

/// TLS of a connection.
pub struct Tls {
    pub session: tls::TlsSession,
    /// Known after the handshake.
    pub facts: Option<TlsFacts>,
    /// Octets that the budget was charged for incomplete records.
    pub charged: usize,
    /// When the first octets of the handshake came, microseconds.
    pub began_us: u64,
}

/// A channel binding as the TLS side calls it.
pub fn binding(kind: sasl::ChannelBinding) -> tls::ChannelBinding {
    match kind {
        sasl::ChannelBinding::TlsExporter => tls::ChannelBinding::TlsExporter,
        sasl::ChannelBinding::TlsServerEndPoint => tls::ChannelBinding::TlsServerEndPoint,
    }
}

/// The set of those that a connection has.
pub fn bindings(session: &tls::TlsSession) -> u32 {
    let all = [sasl::ChannelBinding::TlsExporter, sasl::ChannelBinding::TlsServerEndPoint];
    let had = all.into_iter().filter(|&kind| session.channel_binding(binding(kind)).is_some());
    had.fold(0, |set, kind| set | 1 << kind as u32)
}

/// What a connection holds between two turns.
#[derive(Default)]
pub struct Held {
    /// Input that the session has not taken.
    pub input: Vec<u8>,
    /// Output that did not leave.
    pub out: Vec<u8>,
    /// Octets of `out` that did.
    pub sent: usize,
    /// When `out` last moved.
    pub out_tick: Tick,
    /// Octets of the message so far, for its rate.
    pub data_octets: u64,
    /// When a message in progress was last looked at for slowness, and what it had then.
    pub looked: Tick,
    pub looked_octets: u64,
    /// The message that arrives.
    pub message: Option<Message>,
    /// Octets that the budget was charged.
    pub charged: usize,
}

/// A message on its way into the spool.
pub struct Message {
    pub entry: spool::Entry,
    /// When its last octet came.
    pub last_ms: u64,
}

impl Held {
    /// Whether nothing is held any more.
    pub fn is_empty(&self) -> bool {
        self.input.is_empty() && self.out.is_empty() && self.message.is_none()
    }

    /// Forgets everything; what a client sent may have been a password.
    pub fn wipe(&mut self) {
        sasl::wipe_all(&mut self.input);
        *self = Self::default();
    }

    /// Memory that counts.
    pub fn octets(&self) -> usize {
        self.input.capacity() + self.out.capacity()
    }
}

/// Replaces the content of `part` by `rest`. Capacity goes 64, 512, exact: most pieces of lines are short,
/// and a client that sends octet by octet does not cause an allocation for each.
pub fn keep(part: &mut Vec<u8>, rest: &[u8]) {
    sasl::wipe_all(part);
    if part.capacity() < rest.len() {
        *part = Vec::with_capacity(match rest.len() {
            ..=64 => 64,
            65..=512 => 512,
            more => more,
        });
    }
    part.extend_from_slice(rest);
}

impl Linked for Slot {
    fn link(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl Slot {
    /// Whether a flag is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Sets a flag.
    pub fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    /// Clears a flag.
    pub fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// Whether replies wait for the client to read.
    pub fn is_unsent(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.out.is_empty())
    }

    /// Whether the session may be ended without cutting anything short.
    pub fn is_idle(&self) -> bool {
        self.pending == Pending::None && matches!(self.session.phase(), Phase::Command { transaction: false, .. })
    }

    /// Looks whether a message came so slowly that its octets should not stay in memory (DECISIONS H11).
    pub fn look_for_slowness(&mut self, now: Tick) {
        let Some(held) = &mut self.held else { return };
        let Some(message) = &mut held.message else { return };
        if now.saturating_sub(held.looked) >= ticks(SLOW_MS) {
            if held.data_octets - held.looked_octets < SLOW_OCTETS {
                message.entry.spill();
            }
            (held.looked, held.looked_octets) = (now, held.data_octets);
        }
    }

    /// Whether the client has logged in.
    pub fn is_known(&self) -> bool {
        self.session.identity().is_some()
    }

    /// When the connection has to be looked at, if nothing happens before. Not for one whose effect is
    /// pending: that has its own time.
    pub fn due(&self, deadlines: &Deadlines, crowded: bool) -> Tick {
        let held = self.held.as_deref();
        match self.stage {
            Stage::Linger => return self.started.saturating_add(ticks(deadlines.linger_ms)),
            _ if self.is_unsent() => {
                return held.map_or(0, |held| held.out_tick).saturating_add(ticks(deadlines.unread_ms));
            }
            _ => {}
        }
        let clock = match self.clock {
            Clock::Handshake => ticks(deadlines.handshake_ms),
            Clock::Command if crowded && !self.is_known() => ticks(deadlines.crowded_ms.min(deadlines.command_ms)),
            Clock::Command => ticks(deadlines.command_ms),
            Clock::Auth => ticks(deadlines.auth_ms),
            Clock::Data => {
                let octets = held.map_or(0, |held| held.data_octets);
                let rate = deadlines.data_octets_per_second.max(1);
                ticks(deadlines.data_grace_ms.saturating_add(octets.saturating_mul(1000) / rate))
            }
        };
        let mut due = self.started.saturating_add(clock);
        if let Some(preauth_ms) = deadlines.preauth_ms
            && !self.is_known()
        {
            due = due.min(self.born.saturating_add(ticks(preauth_ms)).saturating_add(self.paused.into()));
        }
        if let Some(held) = held.filter(|held| held.message.is_some()) {
            due = due.min(held.looked.saturating_add(ticks(SLOW_MS)));
        }
        due.min(self.born.saturating_add(ticks(deadlines.session_ms)))
    }
}

/// How often a message in progress is looked at, and how much it must have grown to stay in memory.
const SLOW_MS: u64 = 5_000;
const SLOW_OCTETS: u64 = 4096;

/// Milliseconds as ticks, rounded up.
pub fn ticks(ms: u64) -> Tick {
    Tick::try_from(ms.div_ceil(TICK_MS)).unwrap_or(Tick::MAX / 2)
}

/// A session's name in logs: its place under a number that the shard drew when it started.
pub fn session_id(base: u64, token: Token) -> SessionId {
    SessionId(base ^ token.word())
}
