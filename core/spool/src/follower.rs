//! Delivery's side: finds messages in the segments of all writers, remembers what is done, frees segments.
//!
//! A living writer's segment is read only below its doorbell. A segment is read to its end when its lock is
//! free (the writer filled it, or died) or when the writer has rung for a later one; how far a failed segment
//! may be read is said by the seal at the head of a later one, so seals are looked up before.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;

use smtp::id::QueueId;

use crate::ack::{self, Ack, AckFile, Recipients, What};
use crate::bug::{Bug, planted};
use crate::segment::{
    BadHeader, HEADER_COPIES, Item, Key, Kind, RECORD_HEADER_OCTETS, RECORDS_START, RecordHeader,
    SEGMENT_HEADER_OCTETS, Scan, SegmentHeader, Window, WriterId, decode_seal,
};
use crate::storage::{Disk, File, Guard, RealFile};
use crate::{Doorbell, Handed, names};

/// Where a message lies; its name between [`Follower::next`] and [`Follower::acknowledge`].
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
    payload: Vec<u8>,
    envelope_octets: usize,
    prepend_octets: usize,
    large: Option<LargeBody>,
    settled: Recipients,
    told: Recipients,
}

struct LargeBody {
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

const BODY_PART_OCTETS: u64 = 256 << 10;
/// Envelope and prepend of a message that is handed over: more than any session makes.
const META_OCTETS_MAX: u64 = 8 << 20;

/// What the operator should hear.
#[derive(Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A writer is gone; what it left is being recovered.
    WriterGone {
        /// Who.
        writer: WriterId,
        /// Segments it left.
        segments: usize,
    },
    /// Octets that are no good message were copied to `corrupt/`.
    Damaged {
        /// Whose segment.
        writer: WriterId,
        /// Which.
        segment: u64,
        /// First octet.
        from: u64,
        /// Behind the last octet.
        to: u64,
        /// The message, when its record's header can be read.
        id: Option<QueueId>,
        /// The copy, below the spool's folder.
        kept: String,
    },
    /// A whole file was moved to `corrupt/`.
    SetAside {
        /// Which, below the spool's folder.
        file: String,
        /// Where it is now.
        kept: String,
        /// Why.
        why: &'static str,
    },
    /// A file of a later version, left as it is.
    LaterVersion {
        /// Which, below the spool's folder.
        file: String,
        /// Its version.
        version: u8,
    },
    /// A message's own body file is not there.
    BodyMissing {
        /// Whose.
        id: QueueId,
    },
    /// The disk failed; it is tried again.
    Trouble {
        /// What failed, naming the file.
        what: String,
        /// How.
        error: io::Error,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriterGone { writer, segments } => {
                write!(f, "writer {writer} is gone; recovering {segments} segments")
            }
            Self::Damaged { writer, segment, from, to, id, kept } => {
                let file = names::segment(*writer, *segment);
                write!(f, "{file}: octets {from} to {to} are damaged")?;
                id.iter().try_for_each(|id| write!(f, " (message {id})"))?;
                write!(f, "; copied to {kept}")
            }
            Self::SetAside { file, kept, why } => write!(f, "{file}: {why}; moved to {kept}"),
            Self::LaterVersion { file, version } => {
                write!(f, "{file}: format version {version} is of a later program; left for it")
            }
            Self::BodyMissing { id } => write!(f, "{id}: the body's file is missing; record copied to corrupt/"),
            Self::Trouble { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

/// Takes notices.
pub trait Watch: Send + Sync {
    /// One thing that the operator should hear.
    fn notice(&self, notice: &Notice);
}

impl<F: Fn(&Notice) + Send + Sync> Watch for F {
    fn notice(&self, notice: &Notice) {
        self(notice);
    }
}

/// Why a message that was found once cannot be read again.
#[derive(Debug)]
pub enum ReadTrouble {
    /// It is settled, or was never found.
    Unknown,
    /// The disk does not give it, or gives something else; try later.
    Unreadable,
}

/// Reads the segments of all writers; there is one per spool.
pub struct Follower {
    disk: Arc<dyn Disk>,
    watch: Arc<dyn Watch>,
    writers: BTreeMap<WriterId, Followed>,
    /// Segments that may hold something unread.
    work: VecDeque<(WriterId, u64)>,
    /// Messages taken from the front one since others had their turn.
    turns: u32,
    window: Window,
    window_of: Option<(WriterId, u64)>,
    /// Segments with entries that are not in their log yet.
    unlogged: BTreeSet<(WriterId, u64)>,
    /// Segments with entries that are in their log and may not be durable.
    unsynced: BTreeSet<(WriterId, u64)>,
    _lock: Guard,
}

#[derive(Default)]
struct Followed {
    /// We hold the folder's lock: its writer is gone.
    guard: Option<Guard>,
    bell: Option<Doorbell>,
    segments: BTreeMap<u64, Segment>,
    /// Sealed segments and their last good offsets.
    seals: BTreeMap<u64, u64>,
    /// Segments that are not ours to read, or done with.
    ignored: BTreeSet<u64>,
    /// Something was damaged: bodies that no record names may be of a message whose record is.
    damaged: bool,
    /// All its segments are known. As long as one could not be looked at, a body may be of a message in there.
    complete: bool,
    /// It has a segment of a later version, whose bodies we do not know.
    later: bool,
    swept: bool,
}

struct Segment {
    key: Key,
    /// Open while it is read; there may be more segments than a process may have descriptors.
    file: Option<Box<dyn File>>,
    scan: Scan,
    limit: u64,
    /// Nothing will be appended any more; `limit` is its end.
    closed: bool,
    in_work: bool,
    read_out: bool,
    /// The seals at its head are all read.
    seals_known: bool,
    /// Earlier segments that it seals: they need it.
    seals: Vec<u64>,
    /// It could not be read everywhere, or not set aside: it must not be removed.
    keep: bool,
    /// Settled in earlier lives, by offset (`None`: all of its recipients); taken out as the scan passes.
    settled: HashMap<u64, Option<Recipients>>,
    /// Whose senders know that they wait, likewise.
    told: HashMap<u64, Recipients>,
    /// Found and not settled yet.
    open: HashMap<u64, Progress>,
    acks: Option<AckFile>,
    acks_generation: u64,
    unlogged: Vec<Ack>,
    /// Bodies to remove as soon as the log says that they are done.
    bodies_done: Vec<QueueId>,
}

struct Progress {
    settled: Recipients,
    told: Recipients,
    large: Option<QueueId>,
}

/// How far entries go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Into the log: the end of this process does not undo them.
    File,
    /// The end of the machine does not, either.
    Disk,
}

/// Messages of one segment before another one has its turn.
const TURN_MESSAGES: u32 = 64;

impl Follower {
    /// Takes the spool's lock and looks for what is there. Fails when another process has the lock.
    pub fn open(disk: Arc<dyn Disk>, watch: Arc<dyn Watch>) -> io::Result<Self> {
        let lock = disk.lock_dir("")?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::WouldBlock,
                "spool: another delivery process works on it; stop that one first",
            )
        })?;
        let mut follower = Self {
            disk,
            watch,
            writers: BTreeMap::new(),
            work: VecDeque::new(),
            turns: 0,
            window: Window::default(),
            window_of: None,
            unlogged: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            _lock: lock,
        };
        follower.scan();
        Ok(follower)
    }

    /// Looks for new writers and for writers that are gone. Call it when a worker's link closes, and now and then.
    pub fn scan(&mut self) {
        let names = match self.disk.list("") {
            Ok(names) => names,
            Err(error) => return self.trouble("spool: cannot be listed".to_owned(), error),
        };
        for writer in names.iter().filter_map(|name| WriterId::parse(name)) {
            self.refresh(writer);
            self.free(writer);
        }
    }

    /// A writer says how far its segment is durable.
    pub fn ring(&mut self, bell: Doorbell) {
        let known = self.writers.get(&bell.writer).and_then(|followed| followed.bell);
        if known.is_some_and(|known| (known.segment, known.durable) >= (bell.segment, bell.durable)) {
            return;
        }
        if known.is_none_or(|known| known.segment != bell.segment) {
            match self.disk.list(&bell.writer.to_string()) {
                Ok(_) => {}
                // Freed meanwhile, or never there: no reason to remember anything.
                Err(_) => return,
            }
            self.writers.entry(bell.writer).or_default().bell = Some(bell);
            self.refresh(bell.writer);
        }
        let Some(followed) = self.writers.get_mut(&bell.writer) else { return };
        followed.bell = Some(bell);
        if let Some(segment) = followed.segments.get_mut(&bell.segment)
            && !segment.closed
            && open_segment(&*self.disk, bell.writer, bell.segment, segment).is_ok()
            && let Some(file) = &segment.file
        {
            let octets = file.octets().unwrap_or(0);
            segment.limit = if planted(Bug::ReadBeyondBell) { octets } else { bell.durable.min(octets) };
            enqueue(&mut self.work, bell.writer, bell.segment, segment);
        }
    }

    /// The next message that is not settled; false when there is none now.
    pub fn next(&mut self, message: &mut Message) -> bool {
        while let Some(&(writer, sequence)) = self.work.front() {
            if self.next_in(writer, sequence, message) {
                self.turns += 1;
                if self.turns >= TURN_MESSAGES {
                    self.turns = 0;
                    self.work.rotate_left(1);
                    if self.work.len() > 1
                        && let Some(segment) = self.segment_mut(writer, sequence)
                    {
                        segment.file = None;
                    }
                }
                return true;
            }
            self.turns = 0;
            self.work.pop_front();
            if let Some(segment) = self.segment_mut(writer, sequence) {
                segment.in_work = false;
            }
            self.free(writer);
        }
        false
    }

    /// Messages found and not settled yet.
    pub fn open_messages(&self) -> usize {
        let segments = self.writers.values().flat_map(|followed| followed.segments.values());
        segments.map(|segment| segment.open.len()).sum()
    }

    /// Reads a message again that was found before.
    pub fn read(&mut self, key: MessageKey, message: &mut Message) -> Result<(), ReadTrouble> {
        let disk = self.disk.clone();
        let segment = self.segment_mut(key.writer, key.segment).ok_or(ReadTrouble::Unknown)?;
        let progress = segment.open.get(&key.offset).ok_or(ReadTrouble::Unknown)?;
        let (settled, told) = (progress.settled.clone(), progress.told.clone());
        let opened;
        let file: &dyn File = match &segment.file {
            Some(file) => &**file,
            None => {
                opened = disk.open(&names::segment(key.writer, key.segment)).map_err(|_| ReadTrouble::Unreadable)?;
                &*opened
            }
        };
        let mut head = [0; RECORD_HEADER_OCTETS];
        let read = file.read_at(key.offset, &mut head).unwrap_or(0);
        let header = head.get(..read).and_then(|head| segment.key.decode(head, key.offset));
        let header = header.ok_or(ReadTrouble::Unreadable)?;
        // The header is good, so the length is ours.
        message.payload.clear();
        message.payload.resize(header.payload_octets() as usize, 0);
        let read = file.read_at(key.offset + RECORD_HEADER_OCTETS as u64, &mut message.payload);
        if !read.is_ok_and(|read| read == message.payload.len())
            || segment.key.sum(&message.payload) != header.payload_sum
        {
            return Err(ReadTrouble::Unreadable);
        }
        fill(message, key, &header, settled, told);
        if header.kind == Kind::Large {
            message.large = Some(open_body(&*disk, key.writer, &header).map_err(|_| ReadTrouble::Unreadable)?);
        }
        Ok(())
    }

    /// These recipients (of so many) need nothing more. It is in the log after the next [`Follower::sync`].
    pub fn acknowledge(&mut self, key: MessageKey, recipients: u32, settled: impl Iterator<Item = u32>) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        let recipients = recipients.max(1);
        let mut now = Recipients::default();
        settled.filter(|&index| index < recipients).for_each(|index| now.insert(index));
        progress.settled.add(&now);
        if progress.settled.count() >= recipients {
            let large = progress.large;
            segment.open.remove(&key.offset);
            segment.bodies_done.extend(large);
        }
        segment.unlogged.push(Ack { offset: key.offset, recipients, what: What::Settled, whom: now });
        self.unlogged.insert((key.writer, key.segment));
    }

    /// The sender was told that these recipients (of so many) have to wait. It is in the log after the next
    /// [`Follower::sync`].
    pub fn note_told(&mut self, key: MessageKey, recipients: u32, told: impl Iterator<Item = u32>) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        let mut now = Recipients::default();
        told.filter(|&index| index < recipients).for_each(|index| now.insert(index));
        progress.told.add(&now);
        segment.unlogged.push(Ack { offset: key.offset, recipients, what: What::Told, whom: now });
        self.unlogged.insert((key.writer, key.segment));
    }

    /// Makes the acknowledgements durable and frees what is done with. Entries that could not be written are
    /// tried again next time.
    pub fn sync(&mut self) {
        let mut segments = mem::take(&mut self.unsynced);
        segments.append(&mut self.unlogged);
        self.log_all(segments, Reach::Disk);
    }

    /// The same without waiting for the disk, for messages that may be handed on twice: what the end of this
    /// process leaves alone may be undone by the end of the machine, until the next [`Follower::sync`].
    pub fn write(&mut self) {
        let segments = mem::take(&mut self.unlogged);
        self.log_all(segments, Reach::File);
    }

    fn log_all(&mut self, segments: BTreeSet<(WriterId, u64)>, reach: Reach) {
        for (writer, sequence) in segments {
            // A segment that goes as a whole needs no log.
            self.free(writer);
            if let Err(error) = self.log(writer, sequence, reach) {
                self.trouble(format!("{}: acknowledgements", names::segment(writer, sequence)), error);
                self.unlogged.insert((writer, sequence));
            }
        }
    }

    /// Entries that [`Follower::sync`] or [`Follower::write`] have still to write.
    pub fn has_unlogged(&self) -> bool {
        !self.unlogged.is_empty()
    }

    /// Copies a message that cannot be handed on to `corrupt/`, its body file too, and settles it.
    pub fn set_aside(&mut self, key: MessageKey) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        // Not through `bodies_done`: the body is moved, not removed.
        let large = progress.large.take();
        let opened = self.disk.open(&names::segment(key.writer, key.segment));
        let Ok(file) = opened else { return };
        let mut head = [0; RECORD_HEADER_OCTETS];
        let read = file.read_at(key.offset, &mut head).unwrap_or(0);
        let header = self
            .segment_mut(key.writer, key.segment)
            .and_then(|segment| head.get(..read).and_then(|head| segment.key.decode(head, key.offset)));
        let Some(header) = header else { return };
        self.keep_copy(key.writer, key.segment, (key.offset, header.end()), Some(header.id), &*file);
        if let Some(id) = large {
            self.move_body(key.writer, id, "its octets are not those that were accepted");
        }
        self.acknowledge(key, 1, std::iter::once(0));
        // However many recipients it has: it is gone from here.
        if let Some(segment) = self.segment_mut(key.writer, key.segment) {
            segment.open.remove(&key.offset);
        }
    }

    fn segment_mut(&mut self, writer: WriterId, sequence: u64) -> Option<&mut Segment> {
        self.writers.get_mut(&writer)?.segments.get_mut(&sequence)
    }

    fn trouble(&self, what: String, error: io::Error) {
        self.watch.notice(&Notice::Trouble { what, error });
    }

    /// Looks at a writer's folder: is it alive, are there new segments, which ones are closed?
    fn refresh(&mut self, writer: WriterId) {
        let folder = writer.to_string();
        let followed = self.writers.entry(writer).or_default();
        let mut gone = false;
        if followed.guard.is_none() {
            match self.disk.lock_dir(&folder) {
                Ok(guard) => {
                    gone = guard.is_some();
                    followed.guard = guard;
                }
                Err(error) => return self.trouble(format!("{folder}: cannot be locked"), error),
            }
        }
        if !self.load_segments(writer) {
            return;
        }
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        let rung = followed.bell.map_or(0, |bell| bell.segment);
        let mut closing = Vec::new();
        for (&sequence, segment) in &mut followed.segments {
            if segment.closed {
                // Its file could not be opened last time, perhaps.
                enqueue(&mut self.work, writer, sequence, segment);
                continue;
            }
            let file = self.disk.open(&names::segment(writer, sequence));
            if sequence < rung || file.and_then(|file| file.try_lock()).unwrap_or(false) {
                closing.push(sequence);
            }
        }
        if gone && !followed.segments.is_empty() {
            self.watch.notice(&Notice::WriterGone { writer, segments: followed.segments.len() });
        }
        if closing.is_empty() {
            return;
        }
        // A seal is durable before the sealed segment is given up; so now, and not before, it can be seen.
        if !self.load_segments(writer) {
            return;
        }
        if !self.load_seals(writer) {
            return;
        }
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        for sequence in closing {
            let sealed = followed.seals.get(&sequence).copied();
            let Some(segment) = followed.segments.get_mut(&sequence) else { continue };
            let octets = self.disk.open(&names::segment(writer, sequence)).and_then(|file| file.octets());
            match octets {
                Ok(octets) => segment.limit = octets.min(sealed.unwrap_or(u64::MAX)),
                // The next look at the folder tries again.
                Err(error) => {
                    let what = names::segment(writer, sequence);
                    self.watch.notice(&Notice::Trouble { what, error });
                    continue;
                }
            }
            segment.closed = true;
            enqueue(&mut self.work, writer, sequence, segment);
        }
    }

    /// Reads the headers of segments that are not known yet; false when something could not be read.
    fn load_segments(&mut self, writer: WriterId) -> bool {
        let folder = writer.to_string();
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.complete = false;
        }
        let names = match self.disk.list(&folder) {
            Ok(names) => names,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.trouble(format!("{folder}: cannot be listed"), error);
                }
                return false;
            }
        };
        let Some(followed) = self.writers.get(&writer) else { return false };
        let new: Vec<u64> = names
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .filter(|sequence| !followed.segments.contains_key(sequence) && !followed.ignored.contains(sequence))
            .collect();
        let mut complete = true;
        for sequence in new {
            match self.load_segment(writer, sequence, &names) {
                Ok(Some(segment)) => {
                    if let Some(followed) = self.writers.get_mut(&writer) {
                        followed.segments.insert(sequence, segment);
                    }
                }
                Ok(None) => {
                    if let Some(followed) = self.writers.get_mut(&writer) {
                        followed.ignored.insert(sequence);
                    }
                }
                // It may hold a seal: nothing is closed before it could be read.
                Err(error) => {
                    self.trouble(names::segment(writer, sequence), error);
                    complete = false;
                }
            }
        }
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.complete = complete;
        }
        complete
    }

    /// `None`: it is not for us, and has been dealt with.
    fn load_segment(&mut self, writer: WriterId, sequence: u64, names: &[String]) -> io::Result<Option<Segment>> {
        let path = names::segment(writer, sequence);
        let file = self.disk.open(&path)?;
        let mut header = Err(BadHeader::Damaged);
        for copy in HEADER_COPIES {
            let mut octets = [0; SEGMENT_HEADER_OCTETS];
            file.read_at(copy, &mut octets)?;
            header = SegmentHeader::decode(&octets);
            if header.is_ok_and(|header| (header.writer, header.sequence) != (writer, sequence)) {
                header = Err(BadHeader::Damaged);
            }
            if header != Err(BadHeader::Damaged) {
                break;
            }
        }
        let header = match header {
            Ok(header) => header,
            Err(BadHeader::Version(version)) => {
                if let Some(followed) = self.writers.get_mut(&writer) {
                    followed.later = true;
                }
                self.watch.notice(&Notice::LaterVersion { file: path, version });
                return Ok(None);
            }
            Err(BadHeader::Damaged) => {
                drop(file);
                self.move_segment(writer, sequence, "no segment header in it can be read")?;
                return Ok(None);
            }
        };
        let mut segment = Segment {
            key: Key::new(&header.salt),
            file: None,
            scan: Scan::default(),
            limit: 0,
            closed: false,
            in_work: false,
            read_out: false,
            seals_known: false,
            seals: Vec::new(),
            keep: false,
            settled: HashMap::new(),
            told: HashMap::new(),
            open: HashMap::new(),
            acks: None,
            acks_generation: 0,
            unlogged: Vec::new(),
            bodies_done: Vec::new(),
        };
        for (of, generation) in names.iter().filter_map(|name| names::parse_acks(name)) {
            if of == sequence {
                segment.acks_generation = segment.acks_generation.max(generation + 1);
                let log = read_whole(&*self.disk.open(&names::acks(writer, sequence, generation))?)?;
                for ack in ack::read(&log) {
                    if ack.what == What::Told {
                        segment.told.entry(ack.offset).or_default().add(&ack.whom);
                        continue;
                    }
                    let settled = segment.settled.entry(ack.offset).or_insert_with(|| Some(Recipients::default()));
                    if let Some(some) = settled {
                        some.add(&ack.whom);
                        if some.count() >= ack.recipients {
                            *settled = None;
                        }
                    }
                }
            }
        }
        Ok(Some(segment))
    }

    /// Reads the seals at the heads of a writer's segments; false when one cannot be opened.
    fn load_seals(&mut self, writer: WriterId) -> bool {
        let Some(followed) = self.writers.get_mut(&writer) else { return false };
        for (&sequence, segment) in followed.segments.iter_mut().filter(|(_, segment)| !segment.seals_known) {
            let file = match self.disk.open(&names::segment(writer, sequence)) {
                Ok(file) => file,
                Err(error) => {
                    self.trouble(names::segment(writer, sequence), error);
                    return false;
                }
            };
            let mut window = Window::default();
            let mut at = RECORDS_START;
            loop {
                let limit = at + RECORD_HEADER_OCTETS as u64 + 16;
                let record = window.at(&*file, at, limit - at, limit);
                let Some(header) = segment.key.decode(record, at).filter(|header| header.kind == Kind::Seal) else {
                    break;
                };
                let payload = record.get(RECORD_HEADER_OCTETS..).unwrap_or_default();
                if segment.key.sum(payload) != header.payload_sum {
                    break;
                }
                if let Some((sealed, good)) = decode_seal(payload) {
                    followed.seals.insert(sealed, good);
                    segment.seals.push(sealed);
                }
                at = header.end();
                window.clear();
            }
            // Seals come first; with a record there can be no more of them.
            segment.seals_known = segment.closed || !segment.seals.is_empty();
        }
        true
    }

    fn next_in(&mut self, writer: WriterId, sequence: u64, message: &mut Message) -> bool {
        let disk = self.disk.clone();
        loop {
            let Some(segment) = self.writers.get_mut(&writer).and_then(|f| f.segments.get_mut(&sequence)) else {
                return false;
            };
            if let Err(error) = open_segment(&*disk, writer, sequence, segment) {
                self.trouble(names::segment(writer, sequence), error);
                return false;
            }
            let Some(file) = &segment.file else { return false };
            if self.window_of != Some((writer, sequence)) {
                self.window.clear();
                self.window_of = Some((writer, sequence));
            }
            self.window.unreadable = false;
            let (key, limit, closed) = (&segment.key, segment.limit, segment.closed);
            let item = segment.scan.next(&**file, &mut self.window, key, limit, closed);
            segment.keep |= self.window.unreadable;
            match item {
                None => {
                    if closed {
                        segment.read_out = true;
                        segment.file = None;
                        (segment.settled, segment.told) = (HashMap::new(), HashMap::new());
                        // What was read may be cut off when the next segment comes to the same place.
                        self.window_of = None;
                    }
                    return false;
                }
                Some(Item::Record(header)) if matches!(header.kind, Kind::Message | Kind::Large) => {
                    let settled = segment.settled.remove(&header.offset).unwrap_or_else(|| Some(Recipients::default()));
                    let told = segment.told.remove(&header.offset).unwrap_or_default();
                    let Some(settled) = settled else {
                        // Its body may have outlived the crash that followed the acknowledgement.
                        if header.kind == Kind::Large {
                            let _ = disk.remove(&names::body(writer, header.id));
                        }
                        continue;
                    };
                    let from = header.offset + RECORD_HEADER_OCTETS as u64;
                    message.payload.clear();
                    message.payload.extend_from_slice(self.window.at(&**file, from, header.payload_octets(), limit));
                    let large = (header.kind == Kind::Large).then_some(header.id);
                    segment
                        .open
                        .insert(header.offset, Progress { settled: settled.clone(), told: told.clone(), large });
                    let key = MessageKey { writer, segment: sequence, offset: header.offset };
                    fill(message, key, &header, settled, told);
                    if header.kind == Kind::Large {
                        match open_body(&*disk, writer, &header) {
                            Ok(body) => message.large = Some(body),
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                                self.watch.notice(&Notice::BodyMissing { id: header.id });
                                self.set_aside(key);
                                continue;
                            }
                            // It stays open, and the segment with it, until the next start.
                            Err(error) => {
                                self.trouble(names::body(writer, header.id), error);
                                continue;
                            }
                        }
                    }
                    return true;
                }
                Some(Item::Record(header)) => {
                    // Seals were read before; what is of a later version stays for a later program.
                    segment.keep |= header.kind != Kind::Seal;
                }
                Some(Item::BadPayload(header)) => {
                    let range = (header.offset, header.end().min(limit));
                    self.damage(writer, sequence, range, Some(header.id));
                    if header.kind == Kind::Large {
                        self.move_body(writer, header.id, "its record is damaged");
                    }
                }
                Some(Item::Damage { from, to }) => self.damage(writer, sequence, (from, to), None),
            }
        }
    }

    fn damage(&mut self, writer: WriterId, sequence: u64, range: (u64, u64), id: Option<QueueId>) {
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.damaged = true;
        }
        match self.disk.open(&names::segment(writer, sequence)) {
            Ok(file) => self.keep_copy(writer, sequence, range, id, &*file),
            Err(error) => {
                self.trouble(names::segment(writer, sequence), error);
                if let Some(segment) = self.segment_mut(writer, sequence) {
                    segment.keep = true;
                }
            }
        }
    }

    /// Copies a part of a segment to `corrupt/`, unless an earlier life has.
    fn keep_copy(&mut self, writer: WriterId, sequence: u64, range: (u64, u64), id: Option<QueueId>, file: &dyn File) {
        let (from, to) = range;
        let kept = format!("{}/{writer}-{sequence:010}-{from:012}.part", names::CORRUPT);
        if self.disk.open(&kept).is_ok() {
            return;
        }
        match self.copy(file, from, to, &kept) {
            Ok(()) => self.watch.notice(&Notice::Damaged { writer, segment: sequence, from, to, id, kept }),
            Err(error) => {
                self.trouble(kept, error);
                if let Some(segment) = self.segment_mut(writer, sequence) {
                    segment.keep = true;
                }
            }
        }
    }

    fn copy(&self, file: &dyn File, from: u64, to: u64, kept: &str) -> io::Result<()> {
        self.make_corrupt()?;
        let unfinished = format!("{kept}.new");
        let _ = self.disk.remove(&unfinished);
        let copy = self.disk.create(&unfinished)?;
        let mut window = Window::default();
        let mut at = from;
        while at < to {
            let part = window.at(file, at, 1 << 20, to);
            if part.is_empty() {
                break;
            }
            copy.write_at(at - from, part)?;
            at += part.len() as u64;
        }
        copy.sync()?;
        self.disk.rename(&unfinished, kept)?;
        self.disk.sync_dir(names::CORRUPT)
    }

    fn make_corrupt(&self) -> io::Result<()> {
        match self.disk.make_dir(names::CORRUPT) {
            Ok(()) => self.disk.sync_dir(""),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn move_segment(&self, writer: WriterId, sequence: u64, why: &'static str) -> io::Result<()> {
        let file = names::segment(writer, sequence);
        self.set_file_aside(file, format!("{}/{writer}-{sequence:010}.seg", names::CORRUPT), why)
    }

    fn move_body(&self, writer: WriterId, id: QueueId, why: &'static str) {
        let file = names::body(writer, id);
        match self.set_file_aside(file.clone(), format!("{}/{id}.body", names::CORRUPT), why) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.trouble(file, error),
            _ => {}
        }
    }

    fn set_file_aside(&self, file: String, kept: String, why: &'static str) -> io::Result<()> {
        self.make_corrupt()?;
        self.disk.rename(&file, &kept)?;
        self.disk.sync_dir(names::CORRUPT)?;
        self.watch.notice(&Notice::SetAside { file, kept, why });
        Ok(())
    }

    fn log(&mut self, writer: WriterId, sequence: u64, reach: Reach) -> io::Result<()> {
        let disk = self.disk.clone();
        let Some(segment) = self.segment_mut(writer, sequence) else { return Ok(()) };
        if segment.acks.is_none() && segment.unlogged.is_empty() {
            // What was in its log failed with it.
            return Ok(());
        }
        if segment.acks.is_none() {
            let path = names::acks(writer, sequence, segment.acks_generation);
            segment.acks_generation += 1;
            segment.acks = Some(AckFile::create(&*disk, &writer.to_string(), &path)?);
        }
        // A body may go only when its message cannot come back without it.
        let body_goes = !segment.bodies_done.is_empty() && !planted(Bug::BodyFirst);
        let reach = if body_goes { Reach::Disk } else { reach };
        if let Some(acks) = &mut segment.acks
            && let Err(error) = acks.append(&segment.unlogged).and_then(|()| match reach {
                Reach::File => Ok(()),
                Reach::Disk => acks.sync(),
            })
        {
            // Final for this file; what it had before is durable, or may come twice. The rest goes to the next one.
            segment.acks = None;
            return Err(error);
        }
        segment.unlogged.clear();
        let bodies = mem::take(&mut segment.bodies_done);
        match reach {
            Reach::File => self.unsynced.insert((writer, sequence)),
            Reach::Disk => self.unsynced.remove(&(writer, sequence)),
        };
        for id in bodies {
            if let Err(error) = disk.remove(&names::body(writer, id)) {
                self.trouble(names::body(writer, id), error);
            }
        }
        Ok(())
    }

    /// Removes what is done with.
    fn free(&mut self, writer: WriterId) {
        // Freeing a sealed segment lets the one with its seal go.
        while let Some(sequence) = self.writers.get(&writer).and_then(Followed::freeable) {
            if let Err(error) = self.free_segment(writer, sequence) {
                self.trouble(names::segment(writer, sequence), error);
                break;
            }
        }
        let Some(followed) = self.writers.get(&writer) else { return };
        let known = followed.complete && followed.segments.values().all(|segment| segment.read_out);
        if followed.guard.is_some() && known {
            if !followed.swept {
                self.sweep_bodies(writer);
            }
            if self.writers.get(&writer).is_some_and(|followed| followed.segments.is_empty()) {
                self.free_writer(writer);
            }
        }
    }

    fn free_segment(&mut self, writer: WriterId, sequence: u64) -> io::Result<()> {
        let disk = self.disk.clone();
        let folder = writer.to_string();
        let keep = self.segment_mut(writer, sequence).is_some_and(|segment| segment.keep);
        if planted(Bug::AcksFirst) {
            for generation in 0..self.segment_mut(writer, sequence).map_or(0, |segment| segment.acks_generation) {
                disk.remove(&names::acks(writer, sequence, generation))?;
            }
            disk.sync_dir(&folder)?;
        }
        if keep {
            self.move_segment(writer, sequence, "parts of it could not be read")?;
        } else {
            disk.remove(&names::segment(writer, sequence))?;
        }
        // Gone for good before its log: a segment without one would be delivered again.
        disk.sync_dir(&folder)?;
        let Some(followed) = self.writers.get_mut(&writer) else { return Ok(()) };
        followed.ignored.insert(sequence);
        let Some(segment) = followed.segments.remove(&sequence) else { return Ok(()) };
        self.unsynced.remove(&(writer, sequence));
        for generation in 0..segment.acks_generation {
            let _ = disk.remove(&names::acks(writer, sequence, generation));
        }
        for id in segment.bodies_done {
            let _ = disk.remove(&names::body(writer, id));
        }
        Ok(())
    }

    /// Body files of a writer that is gone, for which no record was found: the message was never accepted.
    fn sweep_bodies(&mut self, writer: WriterId) {
        // What an earlier life has set aside counts, too.
        let of_writer = format!("{writer}-");
        let set_aside = match self.disk.list(names::CORRUPT) {
            Ok(names) => names.iter().any(|name| name.starts_with(&of_writer)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // The next look tries again.
            Err(error) => return self.trouble(names::CORRUPT.to_owned(), error),
        };
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        followed.swept = true;
        if followed.later {
            return;
        }
        let damaged = followed.damaged || set_aside;
        let open: BTreeSet<QueueId> = followed
            .segments
            .values()
            .flat_map(|segment| {
                segment.open.values().filter_map(|progress| progress.large).chain(segment.bodies_done.iter().copied())
            })
            .collect();
        let names = self.disk.list(&writer.to_string()).unwrap_or_default();
        for id in names.iter().filter_map(|name| names::parse_body(name)).filter(|id| !open.contains(id)) {
            if damaged {
                self.move_body(writer, id, "no record names it, and a record is damaged");
            } else if let Err(error) = self.disk.remove(&names::body(writer, id)) {
                self.trouble(names::body(writer, id), error);
            }
        }
    }

    fn free_writer(&mut self, writer: WriterId) {
        let folder = writer.to_string();
        let mut empty = true;
        for name in self.disk.list(&folder).unwrap_or_default() {
            if name.ends_with(".new") || names::parse_acks(&name).is_some() {
                let _ = self.disk.remove(&format!("{folder}/{name}"));
            } else {
                empty = false;
            }
        }
        if empty && self.disk.remove_dir(&folder).is_ok() {
            self.writers.remove(&writer);
        }
    }
}

impl Followed {
    /// A segment with nothing left in it that nobody needs.
    fn freeable(&self) -> Option<u64> {
        let mut segments = self.segments.iter();
        let done = segments.find(|(_, segment)| {
            segment.closed
                && segment.read_out
                && segment.open.is_empty()
                && segment.seals.iter().all(|sealed| !self.segments.contains_key(sealed))
        });
        done.map(|(&sequence, _)| sequence)
    }
}

fn open_segment(disk: &dyn Disk, writer: WriterId, sequence: u64, segment: &mut Segment) -> io::Result<()> {
    if segment.file.is_none() {
        segment.file = Some(disk.open(&names::segment(writer, sequence))?);
    }
    Ok(())
}

fn enqueue(work: &mut VecDeque<(WriterId, u64)>, writer: WriterId, sequence: u64, segment: &mut Segment) {
    if !segment.in_work && !segment.read_out {
        segment.in_work = true;
        work.push_back((writer, sequence));
    }
}

fn fill(message: &mut Message, key: MessageKey, header: &RecordHeader, settled: Recipients, told: Recipients) {
    message.key = key;
    message.id = header.id.0;
    message.unix_ms = header.unix_ms;
    message.envelope_octets = header.envelope_octets as usize;
    message.prepend_octets = header.prepend_octets as usize;
    message.large = None;
    (message.settled, message.told) = (settled, told);
}

fn open_body(disk: &dyn Disk, writer: WriterId, header: &RecordHeader) -> io::Result<LargeBody> {
    let file = disk.open(&names::body(writer, header.id))?;
    Ok(LargeBody { file, octets: header.body_octets, sum: header.body_sum })
}

fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut octets = vec![0; usize::try_from(file.octets()?).unwrap_or(0)];
    let read = file.read_at(0, &mut octets)?;
    octets.truncate(read);
    Ok(octets)
}
