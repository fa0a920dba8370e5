//! The worker's side: messages stream in, are made durable by other threads, and are reported back.
//!
//! ```text
//! event loops   Port.begin → Entry.append … → Port.commit ──► queue ──► committer thread   (committer.rs)
//!                                └ over 256 KiB, or slow ──► body threads ──┘               (bodies.rs)
//!                                                      preparer thread: the next segment    (committer/ahead.rs)
//! ```

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use parking_lot::{Condvar, Mutex, MutexGuard};
use smtp::id::QueueId;

use crate::bell::Bell;
use crate::bodies::{Bodies, Filing};
use crate::bug::{self, Bug, planted};
use crate::committer::{self, Ahead, Log};
use crate::pool::{CHUNK_OCTETS_MIN, CLASS_MAX, Chunk, Listener, Pool};
use crate::segment::{RECORDS_START, WriterId};
use crate::storage::{Disk, Guard, Room};
use crate::{Completions, Doorbell, Trouble};

/// Whether `done(Ok)` means durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// One fdatasync for all that is queued, before anybody is told.
    #[default]
    GroupFsync,
    /// No message is synced. A crash of the machine loses mail that was acknowledged: for benches only.
    None,
    /// Nothing is written: for benches of what stands before the spool, where every route discards anyway.
    Discard,
}

/// Below this, no new message is taken (CONTRACT C12).
#[derive(Clone, Copy, Debug)]
pub struct Floors {
    /// Free octets, per cent of the file system.
    pub octets_percent: u8,
    /// Free octets, absolute.
    pub octets_min: u64,
    /// Free inodes, per cent; ignored on file systems that do not count them.
    pub inodes_percent: u8,
}

impl Default for Floors {
    fn default() -> Self {
        Self { octets_percent: 10, octets_min: 256 << 20, inodes_percent: 10 }
    }
}

impl Floors {
    /// Whether a file system with this `room` may take `reserved` more octets.
    fn permit(&self, room: Room, reserved: u64) -> bool {
        let percent = |all: u64, percent: u8| (u128::from(all) * u128::from(percent) / 100) as u64;
        let floor = percent(room.octets, self.octets_percent).max(self.octets_min);
        room.octets_free >= floor.saturating_add(reserved)
            && (room.inodes == 0 || room.inodes_free >= percent(room.inodes, self.inodes_percent))
    }
}

/// How a writer works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of a segment.
    pub segment_octets: u64,
    /// Bodies above this go to their own file.
    pub inline_octets_max: usize,
    /// Memory for bodies on their way, all messages of the process together.
    pub pool_octets: usize,
    /// Whether to sync.
    pub durability: Durability,
    /// When to refuse.
    pub floors: Floors,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_octets: 64 << 20,
            inline_octets_max: 256 << 10,
            pool_octets: 64 << 20,
            durability: Durability::GroupFsync,
            floors: Floors::default(),
        }
    }
}

/// What a writer calls, on its own threads; must not block.
pub struct Hooks {
    /// After each sync: tell delivery. Only the newest one counts, so a slow link may drop older ones.
    pub doorbell: Box<dyn Fn(Doorbell) + Send + Sync>,
    /// The disk failed: one line for the operator.
    pub trouble: Box<dyn Fn(&str) + Send + Sync>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { doorbell: Box::new(|_| {}), trouble: Box::new(|_| {}) }
    }
}

/// The spool of one worker process. Dropped, it finishes what was committed.
pub struct Writer {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<()>>,
    preparer: Option<JoinHandle<()>>,
}

/// Tells the time of doorbells.
pub(crate) type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// What all threads see.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: Options,
    pub(crate) hooks: Hooks,
    pub(crate) pool: Pool,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) queued: Condvar,
    pub(crate) log: Mutex<Log>,
    pub(crate) bell: Mutex<Bell>,
    pub(crate) clock: Clock,
    /// Callers that wait in [`Port::commit_now`].
    blocked: AtomicUsize,
    pub(crate) ahead: Ahead,
    pub(crate) bodies: Bodies,
    pub(crate) position: Mutex<Option<Doorbell>>,
    home: Mutex<Option<Arc<Home>>>,
    metas: ArrayQueue<Vec<u8>>,
    floor: Floor,
}

/// The writer's own folder, made when the first message comes.
pub(crate) struct Home {
    pub(crate) id: WriterId,
    _lock: Guard,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) pending: Vec<Pending>,
    pub(crate) stop: bool,
    pub(crate) committer_sleeps: bool,
}

/// A message between commit and completion.
pub(crate) struct Pending {
    pub(crate) listener: Arc<Listener>,
    pub(crate) ticket: u64,
    pub(crate) id: QueueId,
    /// Envelope, then prepend.
    pub(crate) meta: Vec<u8>,
    pub(crate) envelope_octets: u32,
    pub(crate) body: PendingBody,
}

pub(crate) enum PendingBody {
    /// In memory.
    Held(Held),
    /// Durable in its own file.
    Filed {
        /// Its length.
        octets: u64,
        /// Its checksum.
        sum: u32,
    },
}

/// What is known of the room on disk, without asking the disk.
struct Floor {
    room: Mutex<Room>,
    /// Milliseconds since `started` of the last look.
    looked: AtomicU64,
    started: Instant,
    /// Octets that messages under way have announced, times 2.5 (CONTRACT C12).
    reserved: AtomicU64,
}

/// How old the picture of the room may be.
const ROOM_AGE_MAX: Duration = Duration::from_secs(1);
/// Messages that need not wait for others to queue.
const GROUP_WORTH: usize = 32;
/// Envelope and prepend buffers that are kept for the next message.
const METAS_KEPT: usize = 1024;
/// Above this such a buffer is not worth keeping.
const META_OCTETS_KEPT: usize = 4096;

impl Writer {
    /// Looks at the disk's room and starts the threads; files are made when the first message comes.
    pub fn open(disk: Arc<dyn Disk>, options: Options, hooks: Hooks) -> io::Result<Self> {
        Self::open_with(disk, options, hooks, Box::new(Instant::now))
    }

    pub(crate) fn open_with(disk: Arc<dyn Disk>, options: Options, hooks: Hooks, clock: Clock) -> io::Result<Self> {
        let mut options = options;
        // A record must fit into a segment with room to spare for its envelope.
        options.segment_octets = options.segment_octets.max(RECORDS_START * 2);
        let inline_max = usize::try_from(options.segment_octets / 4).unwrap_or(usize::MAX);
        options.inline_octets_max = options.inline_octets_max.min(inline_max);
        let room = disk.room()?;
        let (bodies, lanes) = Bodies::new();
        let shared = Arc::new(Shared {
            pool: Pool::new(options.pool_octets),
            queue: Mutex::default(),
            queued: Condvar::new(),
            log: Mutex::default(),
            bell: Mutex::default(),
            clock,
            blocked: AtomicUsize::new(0),
            ahead: Ahead::default(),
            bodies,
            position: Mutex::new(None),
            home: Mutex::new(None),
            metas: ArrayQueue::new(METAS_KEPT),
            floor: Floor {
                room: Mutex::new(room),
                looked: AtomicU64::new(0),
                started: Instant::now(),
                reserved: AtomicU64::new(0),
            },
            disk,
            options,
            hooks,
        });
        let mut writer = Self { shared: shared.clone(), committer: None, preparer: None };
        let bug = bug::current();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                bug::plant(bug);
                work();
            })
        };
        let threads = shared.clone();
        writer.preparer = Some(spawn("spool-ahead", Box::new(move || committer::prepare(&threads)))?);
        for jobs in lanes {
            let threads = shared.clone();
            let thread = spawn("spool-bodies", Box::new(move || crate::bodies::run(&threads, &jobs)))?;
            shared.bodies.keep(thread);
        }
        writer.committer = Some(spawn("spool-commit", Box::new(move || committer::run(&shared)))?);
        Ok(writer)
    }

    /// An event loop's way in.
    pub fn port(&self, completions: Arc<dyn Completions>) -> Port {
        Port { shared: self.shared.clone(), listener: Arc::new(Listener::new(completions)) }
    }

    /// The newest doorbell, for a delivery process that has just been (re)started; `None` before the first sync.
    pub fn position(&self) -> Option<Doorbell> {
        *self.shared.position.lock()
    }

    /// A failed segment could not be sealed: every commit fails from now on, and this process should be
    /// replaced.
    pub fn is_stopped(&self) -> bool {
        self.shared.ahead.is_stopped()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Bodies first: what they still hold goes to the committer.
        self.shared.bodies.stop();
        {
            let mut queue = self.shared.queue.lock();
            queue.stop = true;
            self.shared.queued.notify_one();
        }
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
        self.shared.ahead.stop();
        if let Some(preparer) = self.preparer.take() {
            let _ = preparer.join();
        }
        // Segments and folder are given up even when an entry still keeps `shared` alive.
        self.shared.home.lock().take();
    }
}

impl Shared {
    /// The writer's folder; made on first use.
    pub(crate) fn home(&self) -> io::Result<Arc<Home>> {
        let mut home = self.home.lock();
        if let Some(home) = &*home {
            return Ok(home.clone());
        }
        // Delivery may look at a folder between our making and our locking it, and remove it as empty.
        for _ in 0..8 {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(io::Error::other)?;
            let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let id = WriterId(QueueId::new(unix.as_millis() as u64, u128::from_le_bytes(random)).0);
            let name = id.to_string();
            self.disk.make_dir(&name)?;
            if let Some(lock) = self.disk.lock_dir(&name)? {
                if !planted(Bug::NoHomeName) {
                    self.disk.sync_dir("")?;
                }
                let made = Arc::new(Home { id, _lock: lock });
                *home = Some(made.clone());
                return Ok(made);
            }
        }
        Err(io::Error::other("somebody removes our spool folder as soon as it is made"))
    }

    /// Puts a message where the committer finds it, and has it look when at least `group` have queued.
    pub(crate) fn enqueue(&self, pending: Pending, group: usize) {
        let mut queue = self.queue.lock();
        if queue.stop {
            drop(queue);
            return pending.listener.completions.done(pending.ticket, Err(Trouble::Temporary));
        }
        queue.pending.push(pending);
        self.rouse(queue, group);
    }

    fn rouse(&self, mut queue: MutexGuard<'_, Queue>, group: usize) {
        if queue.pending.len() >= group && mem::take(&mut queue.committer_sleeps) {
            drop(queue);
            self.queued.notify_one();
        }
    }

    pub(crate) fn keep_meta(&self, mut meta: Vec<u8>) {
        if meta.capacity() <= META_OCTETS_KEPT {
            meta.clear();
            let _ = self.metas.push(meta);
        }
    }

    /// Looks at the disk's room again; on the preparer's thread.
    pub(crate) fn look_at_room(&self) {
        match self.disk.room() {
            Ok(room) => *self.floor.room.lock() = room,
            Err(error) => (self.hooks.trouble)(&format!("spool: cannot tell how much room is left: {error}")),
        }
    }

    /// Whether the floors permit another message. Never asks the disk: has it asked when the picture is old.
    fn has_room(&self, octets: u64) -> bool {
        let now = self.floor.started.elapsed().as_millis() as u64;
        let looked = self.floor.looked.load(Ordering::Relaxed);
        if now - looked.min(now) >= ROOM_AGE_MAX.as_millis() as u64
            && self.floor.looked.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.ahead.ask_for_room();
        }
        let room = *self.floor.room.lock();
        let reserved = self.floor.reserved.load(Ordering::Relaxed).saturating_add(reserve(octets));
        self.options.floors.permit(room, reserved)
    }
}

/// What the floors keep free for a message of so many octets.
fn reserve(octets: u64) -> u64 {
    octets.saturating_mul(5) / 2
}

/// An event loop's way into the spool.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
}

impl Port {
    /// Begins a message. `size` is what the client announced. Refused below the floors, and when the writer
    /// has stopped.
    pub fn begin(&self, id: QueueId, size: Option<u64>) -> Result<Entry, Trouble> {
        let size = size.unwrap_or(0);
        if self.shared.ahead.is_stopped() {
            return Err(Trouble::Temporary);
        }
        if !self.shared.has_room(size) {
            return Err(Trouble::NoSpace);
        }
        self.shared.floor.reserved.fetch_add(reserve(size), Ordering::Relaxed);
        Ok(Entry { port: self.clone(), id, octets: 0, reserved: reserve(size), body: Body::Held(Held::default()) })
    }

    /// Makes a message durable: `envelope` is opaque, `prepend` goes before the body on the way out. The
    /// result comes as `done(ticket, …)`; from here on it cannot be taken back. [`Durability::Discard`] has
    /// nothing to wait for and says so at once.
    pub fn commit(&self, entry: Entry, envelope: &[u8], prepend: &[u8], ticket: u64) -> Commit {
        let commit = self.queue(entry, envelope, prepend, ticket);
        self.go();
        commit
    }

    /// As [`Port::commit`], for a caller that may block: returns when the message is durable, or nothing of it remains.
    /// When nobody else is about to commit, the caller's own thread does it.
    pub fn commit_now(&self, entry: Entry, envelope: &[u8], prepend: &[u8]) -> Result<(), Trouble> {
        let shared = &self.shared;
        let (waiter, result) = crossbeam_channel::bounded(1);
        let here = Self { shared: shared.clone(), listener: Arc::new(Listener::new(Arc::new(Waiter(waiter)))) };
        let alone = shared.blocked.fetch_add(1, Ordering::Relaxed) == 0;
        let commit = here.queue(entry, envelope, prepend, 0);
        if commit == Commit::Pending && !(alone && committer::commit_here(shared)) {
            self.go();
        }
        drop(here);
        let result = match commit {
            Commit::Done => Ok(()),
            // The spool has ended when nobody answers.
            Commit::Pending => result.recv().unwrap_or(Err(Trouble::Temporary)),
        };
        shared.blocked.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// What was given to [`Port::queue`] is waited for.
    pub fn go(&self) {
        self.shared.rouse(self.shared.queue.lock(), 1);
    }

    /// The same as [`Port::commit`] for a caller with more messages to come at once: they share a write and a sync,
    /// which begins when so many have queued that it is worth one, or with [`Port::go`]. Who calls this must call that.
    pub fn queue(&self, mut entry: Entry, envelope: &[u8], prepend: &[u8], ticket: u64) -> Commit {
        let shared = &self.shared;
        if shared.options.durability == Durability::Discard {
            return Commit::Done;
        }
        let mut meta = shared.metas.pop().unwrap_or_default();
        meta.extend_from_slice(envelope);
        meta.extend_from_slice(prepend);
        let envelope_octets = envelope.len() as u32;
        let body = mem::replace(&mut entry.body, Body::Gone);
        let (id, listener) = (entry.id, self.listener.clone());
        let pending = |body| Pending { listener, ticket, id, meta, envelope_octets, body };
        match body {
            Body::Held(held) => {
                shared.pool.leave(held.capacity());
                shared.enqueue(pending(PendingBody::Held(held)), GROUP_WORTH);
            }
            Body::Filed { filing, chunk } => {
                if let Some(chunk) = chunk {
                    filing.write(shared, chunk);
                }
                let pending = pending(PendingBody::Filed { octets: 0, sum: 0 });
                shared.bodies.commit(filing, pending);
            }
            Body::Gone => {}
        }
        Commit::Pending
    }

    /// Does not keep a message but gives it to whoever will wait for its next hop: as [`Completions::handed`] a
    /// file without a name. Nothing of it is durable.
    pub fn hand_over(&self, mut entry: Entry, envelope: &[u8], prepend: &[u8], ticket: u64) {
        let shared = &self.shared;
        let (filing, chunk) = match mem::replace(&mut entry.body, Body::Gone) {
            Body::Held(held) => {
                let filing = shared.bodies.begin(entry.id);
                held.into_chunks().for_each(|chunk| filing.write(shared, chunk));
                (filing, None)
            }
            Body::Filed { filing, chunk } => (filing, chunk),
            Body::Gone => return entry.port.listener.completions.handed(ticket, Err(Trouble::Temporary)),
        };
        if let Some(chunk) = chunk {
            filing.write(shared, chunk);
        }
        let mut meta = shared.metas.pop().unwrap_or_default();
        meta.extend_from_slice(envelope);
        meta.extend_from_slice(prepend);
        let (id, listener, envelope_octets) = (entry.id, entry.port.listener.clone(), envelope.len() as u32);
        let body = PendingBody::Filed { octets: 0, sum: 0 };
        shared.bodies.hand_over(filing, Pending { listener, ticket, id, meta, envelope_octets, body });
    }
}

/// A thread that waits for the end of its commit.
struct Waiter(crossbeam_channel::Sender<Result<(), Trouble>>);

impl Completions for Waiter {
    fn done(&self, _: u64, result: Result<(), Trouble>) {
        // There is room for the one result.
        let _ = self.0.try_send(result);
    }

    fn room(&self) {}
}

/// How far a commit has come when [`Port::commit`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// The result will come as [`Completions::done`].
    Pending,
    /// It is over.
    Done,
}

/// Chunks of a body in memory. Most messages fit into one or two.
#[derive(Default)]
pub(crate) struct Held {
    first: Option<Chunk>,
    more: Vec<Chunk>,
}

impl Held {
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.first.iter().chain(&self.more)
    }

    fn last_mut(&mut self) -> Option<&mut Chunk> {
        self.more.last_mut().or(self.first.as_mut())
    }

    fn push(&mut self, chunk: Chunk) {
        match self.first {
            None => self.first = Some(chunk),
            Some(_) => self.more.push(chunk),
        }
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.chunks().map(Vec::capacity).sum()
    }

    pub(crate) fn into_chunks(self) -> impl Iterator<Item = Chunk> {
        self.first.into_iter().chain(self.more)
    }
}

enum Body {
    Held(Held),
    Filed { filing: Arc<Filing>, chunk: Option<Chunk> },
    Gone,
}

/// A message that is coming in. Dropped, it leaves nothing.
pub struct Entry {
    port: Port,
    id: QueueId,
    octets: u64,
    reserved: u64,
    body: Body,
}

impl Entry {
    /// The message's id.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Octets taken so far.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Takes body octets and returns how many. Fewer than offered: memory or disk cannot follow;
    /// [`Completions::room`] says when to offer the rest again. After a disk error everything is taken and
    /// the commit fails.
    pub fn append(&mut self, octets: &[u8]) -> usize {
        if self.port.shared.options.durability == Durability::Discard {
            self.octets += octets.len() as u64;
            return octets.len();
        }
        let shared = self.port.shared.clone();
        let mut rest = octets;
        while !rest.is_empty() {
            let taken = self.fill(rest);
            if taken > 0 {
                rest = &rest[taken..];
                self.octets += taken as u64;
                self.pass_on(&shared);
                continue;
            }
            if self.grow(&shared) {
                continue;
            }
            // Room may have come between our look and our entry in the list of those who wait.
            shared.pool.wait(&self.port.listener);
            if !self.grow(&shared) {
                break;
            }
        }
        octets.len() - rest.len()
    }

    /// Puts what the message holds in memory into its own file. For senders so slow that they hold a chunk
    /// for seconds without filling it: the loop's timer calls this (and again), so that memory is for those who use it.
    pub fn spill(&mut self) {
        let shared = self.port.shared.clone();
        match &mut self.body {
            Body::Held(held) if held.first.is_some() => self.move_to_file(&shared),
            Body::Filed { filing, chunk } => {
                if let Some(chunk) = chunk.take() {
                    filing.write(&shared, chunk);
                }
            }
            _ => {}
        }
    }

    /// Copies into the chunk at hand; 0 when it is full or there is none.
    fn fill(&mut self, octets: &[u8]) -> usize {
        let chunk = match &mut self.body {
            Body::Held(held) => held.last_mut(),
            Body::Filed { filing, .. } if filing.trouble().is_some() => return octets.len(),
            Body::Filed { chunk, .. } => chunk.as_mut(),
            Body::Gone => None,
        };
        let Some(chunk) = chunk else { return 0 };
        let taken = octets.len().min(chunk.capacity() - chunk.len());
        chunk.extend_from_slice(&octets[..taken]);
        taken
    }

    /// A full chunk of a body that goes to a file need not wait here for the next octet.
    fn pass_on(&mut self, shared: &Shared) {
        if let Body::Filed { filing, chunk } = &mut self.body
            && let Some(full) = chunk.take_if(|chunk| chunk.len() == chunk.capacity())
        {
            filing.write(shared, full);
        }
    }

    /// Gets an empty chunk; false when there is no room.
    fn grow(&mut self, shared: &Arc<Shared>) -> bool {
        if let Body::Held(held) = &mut self.body {
            if self.octets < shared.options.inline_octets_max as u64 {
                if let Some(chunk) = shared.pool.take(held.len()) {
                    held.push(chunk);
                    return true;
                }
                // Messages that each hold a part and wait for more would wait for ever when nothing is on its
                // way out: this one makes room by going to its own file.
                if held.first.is_none() || shared.pool.is_draining() {
                    return false;
                }
            }
            self.move_to_file(shared);
        }
        let Body::Filed { filing, chunk } = &mut self.body else { return false };
        if chunk.is_none() && filing.may_write() {
            // Small again after a spill: a slow sender keeps being slow.
            let class = (self.octets as usize / (CHUNK_OCTETS_MIN << 2)).min(CLASS_MAX);
            *chunk = shared.pool.take(class);
        }
        chunk.is_some()
    }

    fn move_to_file(&mut self, shared: &Arc<Shared>) {
        let Body::Held(held) = mem::replace(&mut self.body, Body::Gone) else { return };
        let filing = shared.bodies.begin(self.id);
        for chunk in held.into_chunks() {
            filing.write(shared, chunk);
        }
        self.body = Body::Filed { filing, chunk: None };
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let shared = &self.port.shared;
        shared.floor.reserved.fetch_sub(self.reserved, Ordering::Relaxed);
        match mem::replace(&mut self.body, Body::Gone) {
            Body::Gone => return,
            Body::Held(held) => held.into_chunks().for_each(|chunk| shared.pool.give(chunk)),
            Body::Filed { filing, chunk } => {
                chunk.into_iter().for_each(|chunk| shared.pool.give(chunk));
                if !planted(Bug::KeepAborted) {
                    shared.bodies.abort(filing);
                }
            }
        }
        shared.pool.wake();
    }
}

/// Looks inside, for tests.
#[cfg(test)]
impl Writer {
    pub(crate) fn pool_used(&self) -> usize {
        self.shared.pool.used()
    }

    /// The committer has nothing to do, and has not begun to look for it.
    pub(crate) fn committer_sleeps(&self) -> bool {
        self.shared.queue.lock().committer_sleeps
    }
}
