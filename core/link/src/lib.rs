//! The only way our processes talk to each other.
//!
//! ```text
//! supervisor ──message──► worker, directory, delivery, control        start-up, drain, reload, events
//! worker ─────directory─► directory                                   credentials, recipients, sender rights
//! worker ─────(0x02xx)──► delivery                                    spool doorbells
//! worker ─────mechanism─► mechanism-host                              steps of exchanges
//! directory ──backend───► backend-host                                effects for back ends of libraries
//!
//! Link     one end of a SOCK_SEQPACKET pair; a packet carries frames and, beside them, descriptors
//! Outbox   frames waiting for the socket: several share a packet, bounded, never blocks
//! frames   a packet taken apart again
//! codec    the few integer and string forms that payloads are made of
//! message  what the supervisor and a child say      directory  what a worker asks about credentials
//! shared   words that several processes see (counters, limits)      sealed  a memfd that can no longer change
//! sandbox  limits, Landlock and seccomp for strangers' code       grant  what an operator lets through
//! sys      the only unsafe code: descriptor 3, mmap, ids, prctl, system calls of the sandbox
//! ```
//!
//! A frame is `u32 length, u16 kind, u64 question id, payload`, little-endian, at most
//! [`PACKET_OCTETS_MAX`] per packet. Whoever meets a kind that it does not know counts and skips it, so
//! that two versions can share a socket during an upgrade. Everything that arrives is untrusted: a bad
//! packet is a [`BadPacket`], never a panic ([`fuzz_packet`] is the fuzz entry).
//!
//! ```
//! use link::{Link, Outbox, Received, frames};
//!
//! let (here, there) = Link::pair()?;
//! let mut outbox = Outbox::new(1 << 20);
//! outbox.push(0x0100, 7, |payload| payload.extend_from_slice(b"who is alice?")).unwrap();
//! assert!(outbox.flush(&here)?);
//!
//! let mut packet = Vec::new();
//! assert!(matches!(there.receive(&mut packet)?, Received::Packet { .. }));
//! let frame = frames(&packet).next().unwrap().unwrap();
//! assert_eq!((frame.kind, frame.id, frame.payload), (0x0100, 7, &b"who is alice?"[..]));
//! # Ok::<(), std::io::Error>(())
//! ```
#![deny(unsafe_code)]

pub mod backend;
pub mod codec;
pub mod directory;
mod frame;
pub mod grant;
pub mod ids;
pub mod mechanism;
pub mod message;
pub mod pass;
pub mod sandbox;
pub mod sealed;
pub mod shared;
mod socket;
#[allow(unsafe_code, reason = "the one place for it: descriptors, mmap, ids, prctl")]
pub mod sys;

pub use frame::{BadPacket, FRAME_HEAD_OCTETS, FRAME_PAYLOAD_OCTETS_MAX, Frame, Frames, Full, Outbox, frames, wipe};
pub use message::Role;
pub use socket::{FDS_MAX, Link, Received};

/// The version of everything said over a link. Raised when a known kind changes its meaning; a new kind
/// needs no new version.
pub const LINK_VERSION: u16 = 1;

/// Largest packet. A seqpacket above the socket's buffer fails with EMSGSIZE (212,992 octets by default
/// on Linux), so this stays well below it.
pub const PACKET_OCTETS_MAX: usize = 128 * 1024;

/// Microseconds of the monotonic clock, for spans.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

/// Milliseconds of the monotonic clock that all processes of a machine share. What one process writes into
/// shared words, another compares with this; an `Instant` of one process means nothing to another.
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Fuzz entry: decodes `packet` in every way that a process of ours would.
pub fn fuzz_packet(packet: &[u8]) {
    for frame in frames(packet).flatten() {
        let _ = message::Message::decode(&frame);
        let _ = directory::Question::decode(frame.payload);
        let _ = directory::Answer::decode(frame.payload);
        let _ = pass::Question::decode(frame.payload);
        let _ = pass::Answer::decode(frame.payload);
        let _ = mechanism::Step::decode(frame.payload);
        let _ = mechanism::Answer::decode(frame.payload);
        let _ = mechanism::Description::decode(frame.payload);
        let _ = backend::Call::decode(frame.payload);
        let _ = backend::Reply::decode(frame.payload);
        let _ = backend::Description::decode(frame.payload);
    }
    for (_, message, _) in message::messages(packet, Vec::new()).flatten() {
        // What was understood must survive being said again.
        let mut again = Vec::new();
        message.encode(&mut again);
        let frame = Frame { kind: message.kind(), id: 0, payload: &again };
        assert!(matches!(message::Message::decode(&frame), Ok(Some(same)) if same == message));
    }
    let _ = directory::Question::decode(packet);
    let _ = directory::Answer::decode(packet);
}
