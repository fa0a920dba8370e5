//! Delivery's side: finds messages in the segments of all writers, remembers what is done, frees segments.
//!
//! A living writer's segment is read only below its doorbell. A segment is read to its end when its lock is
//! free (the writer filled it, or died) or when the writer has rung for a later one; how far a failed segment
//! may be read is said by the seal at the head of a later one, so seals are looked up before.
//!
//! ```text
//! ring, scan ─► folder.rs: segments, seals, limits ─► next ─► message ─► noting.rs: the log of acknowledgements
//!                                                      └─ damage ─► aside.rs: corrupt/     └─► freeing.rs
//! ```

mod aside;
mod folder;
mod freeing;
mod noting;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use smtp::id::QueueId;

use crate::ack::{Ack, AckFile, Recipients};
use crate::bug::{Bug, planted};
use crate::message::LargeBody;
use crate::segment::{Item, Key, Kind, RECORD_HEADER_OCTETS, Scan, Window, WriterId};
use crate::storage::{Disk, File, Guard};
use crate::{Doorbell, Message, MessageKey, Notice, Watch, names};

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
        message.fill(key, &header, settled, told);
        if header.kind == Kind::Large {
            message.large = Some(LargeBody::open(&*disk, key.writer, &header).map_err(|_| ReadTrouble::Unreadable)?);
        }
        Ok(())
    }

    fn segment_mut(&mut self, writer: WriterId, sequence: u64) -> Option<&mut Segment> {
        self.writers.get_mut(&writer)?.segments.get_mut(&sequence)
    }

    fn trouble(&self, what: String, error: io::Error) {
        self.watch.notice(&Notice::Trouble { what, error });
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
                    message.fill(key, &header, settled, told);
                    if header.kind == Kind::Large {
                        match LargeBody::open(&*disk, writer, &header) {
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
