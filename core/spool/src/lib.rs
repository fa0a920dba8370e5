//! The spool: what is accepted is on disk before the client reads `250`.
//!
//! ```text
//! worker process                                                   delivery process
//!   Port ─ Entry.append ─► chunks ─ commit ─► committer ─┐           Follower.next ─► message
//!                             └─ large ─► body thread    │ sync        ▲        acknowledge ─► ack log
//!   Completions.done ◄───────────────────────────────────┴─ doorbell ──┘        free whole segments
//!
//! spool/<writer>/0000000001.seg     records of one worker process, appended, never changed  (segment.rs)
//! spool/<writer>/<id>.body          a large body; its record is in the segment
//! spool/<writer>/0000000001.0.ack   what delivery has done with the segment's messages      (ack.rs)
//! spool/corrupt/                    what could not be read, kept for the operator
//! ```
//!
//! The rules that everything here serves:
//! - `done(Ok)` comes after a successful fdatasync of the segment (and of a large body and its folder).
//!   Whatever is queued while one sync runs goes with the next one; nobody waits for a window to pass.
//! - A failed write or sync is final for its segment. The next segment begins with a durable *seal* that says
//!   how far the failed one may be read; without it the writer stops.
//! - One process writes a segment (it holds the file's lock), one other, delivery, reads and deletes it.
//!   Delivery reads a living writer's segment only as far as the doorbell said it was durable.
//! - The caller of [`Port`] and [`Entry`] is an event loop: nothing there touches the disk or waits.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//! use spool::{Completions, Follower, Hooks, Message, Options, RealDisk, Trouble, Writer};
//! use smtp::id::QueueId;
//!
//! struct Inbox(mpsc::SyncSender<(u64, Result<(), Trouble>)>);
//! impl Completions for Inbox {
//!     fn done(&self, ticket: u64, result: Result<(), Trouble>) {
//!         let _ = self.0.send((ticket, result));
//!     }
//!     fn room(&self) {}
//! }
//!
//! let folder = tempfile::tempdir()?;
//! let (inbox, results) = mpsc::sync_channel(1);
//! let options = Options { segment_octets: 1 << 20, ..Options::default() };
//! let writer = Writer::open(Arc::new(RealDisk::open(folder.path())?), options, Hooks::default())?;
//! let port = writer.port(Arc::new(Inbox(inbox)));
//! let mut entry = port.begin(QueueId::new(1_700_000_000_000, 1), None).unwrap();
//! assert_eq!(entry.append(b"Subject: hello\r\n\r\nworld\r\n"), 25);
//! port.commit(entry, b"envelope", b"Received: by here\r\n", 7);
//! assert_eq!(results.recv()?, (7, Ok(())));
//! drop((port, writer));
//!
//! let mut follower = Follower::open(Arc::new(RealDisk::open(folder.path())?), Arc::new(|_: &spool::Notice| {}))?;
//! let mut message = Message::default();
//! assert!(follower.next(&mut message));
//! assert_eq!(message.envelope(), b"envelope");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod ack;
mod bell;
mod bodies;
mod bug;
mod committer;
mod follower;
mod message;
mod notice;
mod pool;
mod segment;
pub mod sim;
mod storage;
mod writer;

use std::os::fd::OwnedFd;

use smtp::id::QueueId;

pub use follower::{Follower, ReadTrouble};
pub use message::{BodyTrouble, Message, MessageKey};
pub use notice::{Notice, Watch};
pub use segment::{WriterId, fuzz_segment};
pub use storage::{Disk, File, Guard, RealDisk, Room};
pub use writer::{Commit, Durability, Entry, Floors, Hooks, Options, Port, Writer};

/// Why a message was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The disk failed: 451 4.3.0.
    Temporary,
    /// No room on the disk, or less than the floors: 452 4.3.1.
    NoSpace,
}

impl Trouble {
    fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::NoSpace,
            _ => Self::Temporary,
        }
    }
}

/// Where results go: an event loop's inbox. Called on the spool's own threads; must not block.
pub trait Completions: Send + Sync {
    /// The commit with this ticket ended: the message is durable, or nothing of it remains.
    fn done(&self, ticket: u64, result: Result<(), Trouble>);
    /// An entry of this port took less than it was offered; now it may take more.
    fn room(&self);
    /// [`Port::hand_over`] with this ticket ended. Only for those who call that.
    fn handed(&self, ticket: u64, result: Result<Handed, Trouble>) {
        let _ = (ticket, result);
    }
}

/// A message that is not in the spool but in a file without a name: body, envelope, prepend.
#[derive(Debug)]
pub struct Handed {
    /// The file.
    pub file: OwnedFd,
    /// The message's id.
    pub id: QueueId,
    /// Length of the body.
    pub body_octets: u64,
    /// Length of the envelope behind it.
    pub envelope_octets: u32,
    /// Length of what goes before the body, behind that.
    pub prepend_octets: u32,
}

/// "My segment is durable up to here": what a writer tells delivery after each sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Whose segment.
    pub writer: WriterId,
    /// Its number.
    pub segment: u64,
    /// Everything before this offset is durable. All earlier segments of the writer are durable as a whole,
    /// or sealed.
    pub durable: u64,
}

impl Doorbell {
    /// Kind of the `link` frame that carries one.
    pub const FRAME_KIND: u16 = 0x0200;

    /// Octets of the encoded form.
    pub const OCTETS: usize = 32;

    /// The octets that go over a link.
    pub fn encode(&self) -> [u8; Self::OCTETS] {
        let mut octets = [0; Self::OCTETS];
        octets[..16].copy_from_slice(&self.writer.0.to_le_bytes());
        octets[16..24].copy_from_slice(&self.segment.to_le_bytes());
        octets[24..].copy_from_slice(&self.durable.to_le_bytes());
        octets
    }

    /// Reads what [`Doorbell::encode`] wrote.
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let (writer, rest) = octets.split_first_chunk()?;
        let (segment, rest) = rest.split_first_chunk()?;
        let durable: &[u8; 8] = rest.try_into().ok()?;
        Some(Self {
            writer: WriterId(u128::from_le_bytes(*writer)),
            segment: u64::from_le_bytes(*segment),
            durable: u64::from_le_bytes(*durable),
        })
    }
}

/// Names of files, made here and nowhere else.
mod names {
    use smtp::id::QueueId;

    use crate::segment::WriterId;

    /// What could not be read.
    pub(crate) const CORRUPT: &str = "corrupt";

    pub(crate) fn segment(writer: WriterId, sequence: u64) -> String {
        format!("{writer}/{sequence:010}.seg")
    }

    /// A segment that is not ready yet.
    pub(crate) fn new_segment(writer: WriterId, sequence: u64) -> String {
        format!("{writer}/{sequence:010}.new")
    }

    pub(crate) fn acks(writer: WriterId, sequence: u64, generation: u64) -> String {
        format!("{writer}/{sequence:010}.{generation}.ack")
    }

    pub(crate) fn body(writer: WriterId, id: QueueId) -> String {
        format!("{writer}/{id}.body")
    }

    pub(crate) fn parse_segment(name: &str) -> Option<u64> {
        name.strip_suffix(".seg")?.parse().ok()
    }

    /// Sequence and generation.
    pub(crate) fn parse_acks(name: &str) -> Option<(u64, u64)> {
        let (sequence, generation) = name.strip_suffix(".ack")?.split_once('.')?;
        Some((sequence.parse().ok()?, generation.parse().ok()?))
    }

    pub(crate) fn parse_body(name: &str) -> Option<QueueId> {
        QueueId::parse(name.strip_suffix(".body")?)
    }
}

#[cfg(test)]
mod tests;
