//! A message that delivery has found, or was handed: its envelope, what goes before its body, the body in parts.

use std::io;

use smtp::id::QueueId;

use crate::ack::Recipients;
use crate::segment::{RecordHeader, WriterId};
use crate::storage::{Disk, File, RealFile};
use crate::{Handed, names};

/// Where a message lies; its name between [`next`](crate::Follower::next) and [`acknowledge`](crate::Follower::acknowledge).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageKey {
    /// Who wrote it.
    pub writer: WriterId,
    /// In which segment.
    pub segment: u64,
    /// At which offset.
    pub offset: u64,
}

impl Default for MessageKey {
    fn default() -> Self {
        Self { writer: WriterId(0), segment: 0, offset: 0 }
    }
}

/// A message that was found.
#[derive(Default)]
pub struct Message {
    key: MessageKey,
    id: u128,
    unix_ms: u64,
    /// Envelope, prepend, and the body unless it is large.
    pub(crate) payload: Vec<u8>,
    envelope_octets: usize,
    prepend_octets: usize,
    pub(crate) large: Option<LargeBody>,
    settled: Recipients,
    told: Recipients,
}

pub(crate) struct LargeBody {
    file: Box<dyn File>,
    octets: u64,
    sum: u32,
}

/// Why a large body cannot be handed on.
#[derive(Debug)]
pub enum BodyTrouble {
    /// Its octets are not those that were accepted.
    Damaged,
    /// The disk does not give it.
    Unreadable(io::Error),
}

impl Message {
    /// A message that was handed over instead of kept. It lies nowhere, and nobody is settled.
    pub fn handed(handed: Handed, unix_ms: u64) -> io::Result<Self> {
        let Handed { file, id, body_octets, envelope_octets, prepend_octets } = handed;
        let file = RealFile(file);
        let meta_octets = u64::from(envelope_octets) + u64::from(prepend_octets);
        // Another process says so; more than it sent is not asked for.
        if body_octets.checked_add(meta_octets) != Some(file.octets()?) || meta_octets > META_OCTETS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file that is not as long as it should be"));
        }
        let mut payload = vec![0; meta_octets as usize];
        if file.read_at(body_octets, &mut payload)? < payload.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            key: MessageKey::default(),
            id: id.0,
            unix_ms,
            payload,
            envelope_octets: envelope_octets as usize,
            prepend_octets: prepend_octets as usize,
            large: Some(LargeBody { file: Box::new(file), octets: body_octets, sum: 0 }),
            settled: Recipients::default(),
            told: Recipients::default(),
        })
    }

    /// Where it lies.
    pub fn key(&self) -> MessageKey {
        self.key
    }

    /// Its id.
    pub fn id(&self) -> QueueId {
        QueueId(self.id)
    }

    /// When it was accepted, milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    /// The envelope, as it was given to the writer.
    pub fn envelope(&self) -> &[u8] {
        self.payload.get(..self.envelope_octets).unwrap_or_default()
    }

    /// What goes before the body.
    pub fn prepend(&self) -> &[u8] {
        self.payload.get(self.envelope_octets..self.envelope_octets + self.prepend_octets).unwrap_or_default()
    }

    /// Says of what was read into `payload` what its record's header says. A large body is not opened yet.
    pub(crate) fn fill(&mut self, key: MessageKey, header: &RecordHeader, settled: Recipients, told: Recipients) {
        self.key = key;
        self.id = header.id.0;
        self.unix_ms = header.unix_ms;
        self.envelope_octets = header.envelope_octets as usize;
        self.prepend_octets = header.prepend_octets as usize;
        self.large = None;
        (self.settled, self.told) = (settled, told);
    }

    fn held_body(&self) -> &[u8] {
        self.payload.get(self.envelope_octets + self.prepend_octets..).unwrap_or_default()
    }

    /// Length of the body.
    pub fn body_octets(&self) -> u64 {
        self.large.as_ref().map_or(self.held_body().len() as u64, |large| large.octets)
    }

    /// Whether this recipient (by its place in the envelope) needs nothing more.
    pub fn is_settled(&self, recipient: u32) -> bool {
        self.settled.contains(recipient)
    }

    /// Whether this recipient's sender was told that it has to wait.
    pub fn is_told(&self, recipient: u32) -> bool {
        self.told.contains(recipient)
    }

    /// Reads a large body once and compares its checksum; do this before any of it is handed on. (Others
    /// were checked when they were found.)
    pub fn verify(&self) -> Result<(), BodyTrouble> {
        let Some(large) = &self.large else { return Ok(()) };
        let (mut octets, mut sum) = (0, 0);
        self.body(&mut |part| {
            octets += part.len() as u64;
            sum = crc32c::crc32c_append(sum, part);
            Ok(())
        })
        .map_err(BodyTrouble::Unreadable)?;
        let whole = large.file.octets().map_err(BodyTrouble::Unreadable)?;
        if (octets, whole, sum) == (large.octets, large.octets, large.sum) { Ok(()) } else { Err(BodyTrouble::Damaged) }
    }

    /// Gives the body to `each`, part by part.
    pub fn body(&self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some(large) = &self.large else { return each(self.held_body()) };
        let mut part = vec![0; (BODY_PART_OCTETS).min(large.octets) as usize];
        let mut offset = 0;
        while offset < large.octets {
            let wanted = part.len().min((large.octets - offset) as usize);
            let read = large.file.read_at(offset, part.get_mut(..wanted).unwrap_or_default())?;
            if read == 0 {
                break;
            }
            each(part.get(..read).unwrap_or_default())?;
            offset += read as u64;
        }
        Ok(())
    }
}

impl LargeBody {
    /// Opens the file of the body that this record is about.
    pub(crate) fn open(disk: &dyn Disk, writer: WriterId, header: &RecordHeader) -> io::Result<Self> {
        let file = disk.open(&names::body(writer, header.id))?;
        Ok(Self { file, octets: header.body_octets, sum: header.body_sum })
    }
}

const BODY_PART_OCTETS: u64 = 256 << 10;
/// Envelope and prepend of a message that is handed over: more than any session makes.
const META_OCTETS_MAX: u64 = 8 << 20;
