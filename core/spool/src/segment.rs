//! The form of a segment, and how to read one that may be damaged.
//!
//! ```text
//! 0       header, and again at 4096: "PRSPOOL" version │ checksum │ salt │ writer │ sequence │ octets
//! 8192    record, record, … each on an 8-octet border; then zeros to the end
//!
//! record  mark (8 octets of the salt) │ checksum of the header │ kind │ offset │ id │ time │ lengths │ checksum
//!         of the payload │ envelope │ prepend │ body │ zeros to the border
//! ```
//!
//! All numbers are little-endian. Both checksums are CRC-32C seeded with the segment's random 128-bit salt,
//! and the mark *is* half of the salt: whoever writes a message body that imitates a record would have to
//! guess it. Lengths are trusted only under a good header checksum; so a bad payload is skipped by length,
//! and after a bad header the search goes on at 8-octet borders. One bad record never hides the next.

use std::fmt;
use std::io;

use memchr::memmem::Finder;
use smtp::id::QueueId;

use crate::bug::{Bug, planted};
use crate::storage::File;

/// First octets of a segment; the last one is the version of the format.
pub const MAGIC: [u8; 8] = *b"PRSPOOL\x01";
/// Where the header is, and its copy: one bad block must not cost a whole segment.
pub const HEADER_COPIES: [u64; 2] = [0, 4096];
/// Where the first record begins.
pub const RECORDS_START: u64 = 8192;
/// Octets of a segment header.
pub const SEGMENT_HEADER_OCTETS: usize = 64;
/// Octets of a record header.
pub const RECORD_HEADER_OCTETS: usize = 72;
/// More than any payload has (bodies above 256 KiB have their own file): bounds what a reader holds at once.
pub const PAYLOAD_OCTETS_MAX: u64 = 16 << 20;
/// Records begin on multiples of this.
pub const BORDER: u64 = 8;

/// Names a writer, that is one life of one worker process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriterId(pub u128);

impl WriterId {
    /// Reads the folder's name.
    pub fn parse(text: &str) -> Option<Self> {
        // Only the form that we write ourselves: two names for one writer would be two writers.
        QueueId::parse(text).filter(|id| id.to_string() == text).map(|id| Self(id.0))
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&QueueId(self.0), f)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stands at the head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Random; seeds every checksum in the segment.
    pub salt: [u8; 16],
    /// Whose it is.
    pub writer: WriterId,
    /// Its number among the writer's segments, from 1.
    pub sequence: u64,
    /// Octets that it may grow to.
    pub octets: u64,
}

/// Why octets are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Not ours, or damaged.
    Damaged,
    /// Ours, of a version that this program does not know.
    Version(u8),
}

impl SegmentHeader {
    /// The 64 octets.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_OCTETS] {
        let mut to = Fields::default();
        to.put(&MAGIC).put(&(SEGMENT_HEADER_OCTETS as u32).to_le_bytes()).put(&[0; 4]);
        to.put(&self.salt).put(&self.writer.0.to_le_bytes());
        to.put(&self.sequence.to_le_bytes()).put(&self.octets.to_le_bytes());
        let sum = crc32c::crc32c(&to.octets).to_le_bytes();
        to.octets[12..16].copy_from_slice(&sum);
        to.octets
    }

    /// Reads what [`SegmentHeader::encode`] wrote.
    pub fn decode(octets: &[u8]) -> Result<Self, BadHeader> {
        let octets: &[u8; SEGMENT_HEADER_OCTETS] = octets.first_chunk().ok_or(BadHeader::Damaged)?;
        if octets[..7] != MAGIC[..7] {
            return Err(BadHeader::Damaged);
        }
        let mut blank = *octets;
        blank[12..16].fill(0);
        if crc32c::crc32c(&blank) != u32::from_le_bytes(at(octets, 12)) {
            return Err(BadHeader::Damaged);
        }
        if octets[7] != MAGIC[7] {
            return Err(BadHeader::Version(octets[7]));
        }
        Ok(Self {
            salt: at(octets, 16),
            writer: WriterId(u128::from_le_bytes(at(octets, 32))),
            sequence: u64::from_le_bytes(at(octets, 48)),
            octets: u64::from_le_bytes(at(octets, 56)),
        })
    }
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message: envelope, prepend, body.
    Message,
    /// A message whose body lies in its own file.
    Large,
    /// An earlier segment of this writer is good only up to an offset: a sync of it failed. The payload is
    /// the segment's number and the offset, both u64.
    Seal,
    /// Of a later version. Kept, never read.
    Other(u8),
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Large => 2,
            Self::Seal => 3,
            Self::Other(code) => code,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::Message,
            2 => Self::Large,
            3 => Self::Seal,
            code => Self::Other(code),
        }
    }
}

/// What stands at the head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it holds.
    pub kind: Kind,
    /// Where the record itself begins: a copy of a record elsewhere is none.
    pub offset: u64,
    /// The message's id.
    pub id: QueueId,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// Octets of the envelope.
    pub envelope_octets: u32,
    /// Octets that go before the body.
    pub prepend_octets: u32,
    /// Octets of the body, here or in its own file.
    pub body_octets: u64,
    /// Checksum of what follows the header.
    pub payload_sum: u32,
    /// Checksum of a large body's file.
    pub body_sum: u32,
}

impl RecordHeader {
    /// Octets that follow the header in the segment, without padding.
    pub fn payload_octets(&self) -> u64 {
        let body = if self.kind == Kind::Large { 0 } else { self.body_octets };
        (u64::from(self.envelope_octets) + u64::from(self.prepend_octets)).saturating_add(body)
    }

    /// Where the next record begins.
    pub fn end(&self) -> u64 {
        let end = self.offset.saturating_add(RECORD_HEADER_OCTETS as u64).saturating_add(self.payload_octets());
        end.checked_next_multiple_of(BORDER).unwrap_or(u64::MAX)
    }
}

/// What the salt of a segment is turned into for use.
#[derive(Clone)]
pub struct Key {
    mark: [u8; 8],
    seed: u32,
    finder: Finder<'static>,
}

impl Key {
    /// Of a segment's salt.
    pub fn new(salt: &[u8; 16]) -> Self {
        let salt = if planted(Bug::NoSalt) { &[7; 16] } else { salt };
        let mark: [u8; 8] = at(salt, 0);
        Self { mark, seed: crc32c::crc32c(salt), finder: Finder::new(&mark).into_owned() }
    }

    /// Checksum of a record's payload.
    pub fn sum(&self, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(self.seed, payload)
    }

    /// The 72 octets before a payload.
    pub fn encode(&self, header: &RecordHeader) -> [u8; RECORD_HEADER_OCTETS] {
        let mut to = Fields::default();
        to.put(&self.mark).put(&[0; 4]).put(&[header.kind.code(), 0, 0, 0]);
        to.put(&header.offset.to_le_bytes()).put(&header.id.0.to_le_bytes()).put(&header.unix_ms.to_le_bytes());
        to.put(&header.envelope_octets.to_le_bytes()).put(&header.prepend_octets.to_le_bytes());
        to.put(&header.body_octets.to_le_bytes());
        to.put(&header.payload_sum.to_le_bytes()).put(&header.body_sum.to_le_bytes());
        let sum = self.sum(&to.octets[12..]).to_le_bytes();
        to.octets[8..12].copy_from_slice(&sum);
        to.octets
    }

    /// Reads a header that was found at `offset`; `None` when it is none.
    pub fn decode(&self, octets: &[u8], offset: u64) -> Option<RecordHeader> {
        let octets: &[u8; RECORD_HEADER_OCTETS] = octets.first_chunk()?;
        if octets[..8] != self.mark || self.sum(&octets[12..]) != u32::from_le_bytes(at(octets, 8)) {
            return None;
        }
        let header = RecordHeader {
            kind: Kind::of(octets[12]),
            offset: u64::from_le_bytes(at(octets, 16)),
            id: QueueId(u128::from_le_bytes(at(octets, 24))),
            unix_ms: u64::from_le_bytes(at(octets, 40)),
            envelope_octets: u32::from_le_bytes(at(octets, 48)),
            prepend_octets: u32::from_le_bytes(at(octets, 52)),
            body_octets: u64::from_le_bytes(at(octets, 56)),
            payload_sum: u32::from_le_bytes(at(octets, 64)),
            body_sum: u32::from_le_bytes(at(octets, 68)),
        };
        if planted(Bug::AnyOffset) {
            return Some(RecordHeader { offset, ..header });
        }
        (header.offset == offset).then_some(header)
    }

    /// Appends a whole record whose payload is `parts`, for a segment position of `header.offset`.
    /// The checksum in `header` is filled in here.
    pub fn append_record<'a>(&self, to: &mut Vec<u8>, mut header: RecordHeader, parts: impl Iterator<Item = &'a [u8]>) {
        let start = to.len();
        to.resize(start + RECORD_HEADER_OCTETS, 0);
        let payload = to.len();
        parts.for_each(|part| to.extend_from_slice(part));
        header.payload_sum = self.sum(to.get(payload..).unwrap_or_default());
        if let Some(room) = to.get_mut(start..payload) {
            room.copy_from_slice(&self.encode(&header));
        }
        to.resize(start + (to.len() - start).next_multiple_of(BORDER as usize), 0);
    }
}

/// The payload of a seal.
pub fn encode_seal(segment: u64, good: u64) -> [u8; 16] {
    (u128::from(segment) | (u128::from(good) << 64)).to_le_bytes()
}

/// Reads the payload of a seal: segment, last good offset.
pub fn decode_seal(payload: &[u8]) -> Option<(u64, u64)> {
    let both = u128::from_le_bytes(payload.try_into().ok()?);
    Some((both as u64, (both >> 64) as u64))
}

/// A part of a file in memory. Pages that cannot be read are taken as zeros, so that their neighbours
/// still can be; the checksums tell.
#[derive(Default)]
pub struct Window {
    octets: Vec<u8>,
    start: u64,
    /// Some page could not be read since this was last set to false.
    pub unreadable: bool,
}

/// Octets that are read at once.
const READ_AHEAD: u64 = 1 << 20;
const PAGE: usize = 4096;

impl Window {
    /// Forgets what it holds: the next octets come from another file, or the file has changed.
    pub fn clear(&mut self) {
        self.octets.clear();
        self.start = 0;
    }

    /// `octets` octets at `offset`; fewer where the file or `limit` ends.
    pub fn at(&mut self, file: &dyn File, offset: u64, octets: u64, limit: u64) -> &[u8] {
        let octets = octets.min(limit.saturating_sub(offset));
        let held = self.start + self.octets.len() as u64;
        if offset < self.start || offset + octets > held {
            self.fill(file, offset, octets.max(READ_AHEAD).min(limit.saturating_sub(offset)));
        }
        let from = (offset - self.start) as usize;
        let to = (from + octets as usize).min(self.octets.len());
        self.octets.get(from..to).unwrap_or_default()
    }

    fn fill(&mut self, file: &dyn File, offset: u64, octets: u64) {
        self.start = offset;
        self.octets.resize(octets as usize, 0);
        match file.read_at(offset, &mut self.octets) {
            Ok(read) => self.octets.truncate(read),
            Err(_) => {
                let file_end = file.octets().unwrap_or(u64::MAX);
                self.octets.truncate(file_end.saturating_sub(offset).min(octets) as usize);
                for (index, page) in self.octets.chunks_mut(PAGE).enumerate() {
                    if file.read_at(offset + (index * PAGE) as u64, page).is_err() {
                        page.fill(0);
                        self.unreadable = true;
                    }
                }
            }
        }
    }
}

/// What a scan meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A record whose payload is good.
    Record(RecordHeader),
    /// A record whose header is good and whose payload is not.
    BadPayload(RecordHeader),
    /// Octets that are no record, up to the next one or the end.
    Damage {
        /// First octet.
        from: u64,
        /// Behind the last octet.
        to: u64,
    },
}

/// Walks over the records of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    at: u64,
    /// Behind a bad header: up to here there is no good one.
    searched: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Self { at: RECORDS_START, searched: 0 }
    }
}

impl Scan {
    /// Where the next record is expected.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next item below `limit`; `None` when there is none (yet). `closed`: nothing will be appended any
    /// more, so what is incomplete now is damage.
    pub fn next(&mut self, file: &dyn File, window: &mut Window, key: &Key, limit: u64, closed: bool) -> Option<Item> {
        if self.at >= limit {
            return None;
        }
        let head = window.at(file, self.at, RECORD_HEADER_OCTETS as u64, limit);
        let Some(header) = key.decode(head, self.at) else {
            return self.search(file, window, key, limit, closed);
        };
        if header.end() > limit && !closed {
            return None;
        }
        let payload_octets = header.payload_octets();
        let payload = if payload_octets > PAYLOAD_OCTETS_MAX {
            None
        } else {
            let record_octets = RECORD_HEADER_OCTETS as u64 + payload_octets;
            let record = window.at(file, header.offset, record_octets, limit);
            if record.len() as u64 == record_octets { record.get(RECORD_HEADER_OCTETS..) } else { None }
        };
        let good = payload.is_some_and(|payload| key.sum(payload) == header.payload_sum || planted(Bug::TrustLength));
        self.at = header.end().min(limit.next_multiple_of(BORDER));
        Some(if good { Item::Record(header) } else { Item::BadPayload(header) })
    }

    /// There should be a record at `self.at` and is none: goes to the next good header.
    fn search(&mut self, file: &dyn File, window: &mut Window, key: &Key, limit: u64, closed: bool) -> Option<Item> {
        let from = self.at;
        let mut start = if planted(Bug::StopAtBad) { limit } else { self.searched.max(from + BORDER) };
        while start < limit {
            let block = window.at(file, start, READ_AHEAD, limit);
            let end = start + block.len() as u64;
            if block.is_empty() {
                break;
            }
            // Blocks begin on borders and so do headers: a mark is never cut by the end of a block.
            let places: Vec<u64> = key.finder.find_iter(block).map(|place| start + place as u64).collect();
            for place in places.into_iter().filter(|place| place % BORDER == 0) {
                if key.decode(window.at(file, place, RECORD_HEADER_OCTETS as u64, limit), place).is_some() {
                    (self.at, self.searched) = (place, 0);
                    return Some(Item::Damage { from, to: place });
                }
            }
            start = end;
        }
        if !closed {
            // More may come; a header that is cut by `limit` is looked at again.
            self.searched = limit.saturating_sub(RECORD_HEADER_OCTETS as u64) / BORDER * BORDER;
            return None;
        }
        self.at = limit;
        let to = last_octet(file, window, from, limit);
        (to > from).then_some(Item::Damage { from, to })
    }
}

/// Behind the last octet between `from` and `limit` that is not zero; `from` when all are.
fn last_octet(file: &dyn File, window: &mut Window, from: u64, limit: u64) -> u64 {
    let (mut last, mut start) = (from, from);
    loop {
        let block = window.at(file, start, READ_AHEAD, limit);
        if block.is_empty() {
            return last;
        }
        for (index, page) in block.chunks(PAGE).enumerate() {
            if page != ZEROS.get(..page.len()).unwrap_or_default() {
                let place = page.iter().rposition(|&octet| octet != 0).unwrap_or(0);
                last = start + (index * PAGE + place) as u64 + 1;
            }
        }
        start += block.len() as u64;
    }
}

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Fuzz entry: any octets as a segment, raw and behind a good header with the checksums of what looks like
/// records put right, so that the lengths in them are reached.
pub fn fuzz_segment(octets: &[u8]) {
    let header = SegmentHeader { salt: [7; 16], writer: WriterId(1), sequence: 1, octets: octets.len() as u64 };
    let key = Key::new(&header.salt);
    let mut image = vec![0; RECORDS_START as usize];
    image[..SEGMENT_HEADER_OCTETS].copy_from_slice(&header.encode());
    image.extend_from_slice(octets);
    for image in [octets.to_vec(), image.clone(), with_good_checksums(image, &key)] {
        let _ = SegmentHeader::decode(&image);
        for closed in [false, true] {
            let (mut scan, mut window, mut last) = (Scan::default(), Window::default(), 0);
            let limit = image.len() as u64;
            while let Some(item) = scan.next(&image, &mut window, &key, limit, closed) {
                let from = match item {
                    Item::Record(header) => {
                        assert!(header.offset + RECORD_HEADER_OCTETS as u64 + header.payload_octets() <= limit);
                        header.offset
                    }
                    Item::BadPayload(header) => header.offset,
                    Item::Damage { from, to } => {
                        assert!(from < to && to <= limit);
                        from
                    }
                };
                assert!(from >= last && scan.position() > from, "a scan only goes forward");
                last = from;
            }
        }
    }
}

fn with_good_checksums(mut image: Vec<u8>, key: &Key) -> Vec<u8> {
    let mut place = RECORDS_START as usize;
    while let Some(head) = image.get_mut(place..place + RECORD_HEADER_OCTETS) {
        if head[0] == b'R' {
            head[..8].copy_from_slice(&key.mark);
            head[16..24].copy_from_slice(&(place as u64).to_le_bytes());
            let sum = key.sum(&head[12..]).to_le_bytes();
            head[8..12].copy_from_slice(&sum);
        }
        place += BORDER as usize;
    }
    image
}

/// Octets in memory as a file, for the fuzz entry and tests.
impl File for Vec<u8> {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let rest = self.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let octets = rest.len().min(into.len());
        into[..octets].copy_from_slice(&rest[..octets]);
        Ok(octets)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn octets(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Fixed-size fields, one after the other.
struct Fields<const N: usize> {
    octets: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self { octets: [0; N], filled: 0 }
    }
}

impl<const N: usize> Fields<N> {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        self.octets[self.filled..self.filled + field.len()].copy_from_slice(field);
        self.filled += field.len();
        self
    }
}

/// `N` octets at a place that is known to exist.
fn at<const N: usize>(octets: &[u8], from: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&octets[from..from + N]);
    field
}

#[cfg(test)]
mod tests;
