//! Group commit: one thread that appends and syncs, and one that has the next segment ready.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, MutexGuard};
use smtp::id::QueueId;

use crate::bug::{Bug, planted};
use crate::pool::Listener;
use crate::segment::{
    HEADER_COPIES, Key, Kind, PAYLOAD_OCTETS_MAX, RECORD_HEADER_OCTETS, RECORDS_START, RecordHeader, SegmentHeader,
    WriterId, encode_seal,
};
use crate::storage::File;
use crate::writer::{Durability, Pending, PendingBody, Shared};
use crate::{Doorbell, Trouble, names};

/// Octets that are written at once.
const WRITE_OCTETS: usize = 4 << 20;
/// Octets that are zero-filled at once, at most.
const FILL_OCTETS: u64 = 256 << 10;
/// A write of more than this is of so many messages that what a growing file costs is little for each.
const SHARED_OCTETS: u64 = 128 << 10;
/// How far ahead of the log a segment is filled; a whole one at once would keep the disk from those who wait for it.
const FILL_AHEAD_OCTETS: u64 = 4 << 20;
/// Of a seal, padded.
const SEAL_OCTETS: u64 = RECORD_HEADER_OCTETS as u64 + 16;

/// The committer's thread: whatever queued while the last sync ran goes with the next one.
pub(crate) fn run(shared: &Shared) {
    while wait(shared) {
        shared.log.lock().commit_all(shared);
        ring_if_due(shared);
    }
    shared.log.lock().end(shared);
    ring(shared);
}

/// Waits for messages; false when there will be no more.
fn wait(shared: &Shared) -> bool {
    let mut queue = shared.queue.lock();
    while queue.pending.is_empty() {
        if queue.stop {
            return false;
        }
        queue.committer_sleeps = true;
        let due = shared.bell.lock().due();
        match due {
            None => shared.queued.wait(&mut queue),
            Some(due) => {
                let left = due.saturating_duration_since((shared.clock)());
                if shared.queued.wait_for(&mut queue, left).timed_out() {
                    MutexGuard::unlocked(&mut queue, || ring_if_due(shared));
                }
            }
        }
    }
    queue.committer_sleeps = false;
    true
}

/// On the thread of a caller that may block, and that nobody else waits beside: two changes of thread are saved.
/// Does nothing when the committer is at work; it will see what has queued.
pub(crate) fn commit_here(shared: &Shared) -> bool {
    let Some(mut log) = shared.log.try_lock() else { return false };
    log.commit_all(shared);
    drop(log);
    // The committer sleeps, and nobody would ring later.
    ring(shared);
    true
}

/// Tells delivery, unless the last time was just now: then the next sync does, or the committer when it has nothing
/// else to do.
fn ring_if_due(shared: &Shared) {
    let mut bell = shared.bell.lock();
    // Told under the lock: an older one never comes behind a newer one.
    bell.take_if_due((shared.clock)()).into_iter().for_each(|newest| (shared.hooks.doorbell)(newest));
}

fn ring(shared: &Shared) {
    let mut bell = shared.bell.lock();
    bell.take((shared.clock)()).into_iter().for_each(|newest| (shared.hooks.doorbell)(newest));
}

/// The segments of this writer, as far as they are still appended to.
#[derive(Default)]
pub(crate) struct Log {
    current: Option<Current>,
    /// A segment whose sync failed and whose seal is not durable yet. Kept open and locked: as long as it is,
    /// delivery does not read it to its end.
    failed: Option<Current>,
    /// What is being committed.
    batch: Vec<Pending>,
    /// Records that are not written yet; they belong before `current.position`.
    buffer: Vec<u8>,
    /// Who waits for the next sync.
    waiting: Vec<Waiting>,
    next_wanted: bool,
}

struct Current {
    segment: Arc<Prepared>,
    /// Where the next record goes.
    position: u64,
    /// Everything before is durable.
    durable: u64,
}

struct Waiting {
    listener: Arc<Listener>,
    ticket: u64,
    /// The message's id, when its body has a file of its own.
    filed: Option<QueueId>,
}

impl Log {
    /// Commits what has queued.
    fn commit_all(&mut self, shared: &Shared) {
        let mut batch = mem::take(&mut self.batch);
        mem::swap(&mut batch, &mut shared.queue.lock().pending);
        let mut refused = None;
        for pending in batch.drain(..) {
            let octets = record_octets(&pending);
            let fits =
                octets <= PAYLOAD_OCTETS_MAX && RECORDS_START + SEAL_OCTETS + octets <= shared.options.segment_octets;
            let trouble = match refused {
                None if !fits => Some(Trouble::Temporary),
                None => {
                    refused = self.make_room(shared, octets).err();
                    refused
                }
                trouble => trouble,
            };
            match trouble {
                None => self.append(shared, pending),
                Some(trouble) => self.reject(shared, pending, trouble),
            }
            if self.buffer.len() >= WRITE_OCTETS
                && let Err(error) = self.write(shared)
            {
                self.fail(shared, &error);
            }
        }
        self.batch = batch;
        // The chunks are free already; senders may go on while the disk works.
        shared.pool.wake();
        self.sync(shared);
    }

    /// Sees to it that `current` has room for a record.
    fn make_room(&mut self, shared: &Shared, octets: u64) -> Result<(), Trouble> {
        if let Some(current) = &self.current {
            if current.position + octets <= current.segment.octets {
                return Ok(());
            }
            self.sync(shared);
            // All of it is durable now: giving it up unlocks it, and delivery may read it to its end. After a
            // failed sync `current` is the new one already.
            if self.current.as_ref().is_some_and(|current| current.position + octets > current.segment.octets) {
                self.current = None;
            }
        }
        if self.current.is_none() { self.next_segment(shared) } else { Ok(()) }
    }

    fn append(&mut self, shared: &Shared, pending: Pending) {
        let Some(current) = &mut self.current else { return self.reject(shared, pending, Trouble::Temporary) };
        let Pending { listener, ticket, id, meta, envelope_octets, body } = pending;
        let header = RecordHeader {
            kind: Kind::Message,
            offset: current.position,
            id,
            unix_ms: (id.0 >> 80) as u64,
            envelope_octets,
            prepend_octets: meta.len() as u32 - envelope_octets,
            body_octets: 0,
            payload_sum: 0,
            body_sum: 0,
        };
        let before = self.buffer.len();
        let mut filed = None;
        let key = &current.segment.key;
        match body {
            PendingBody::Held(held) => {
                let body_octets = held.chunks().map(|chunk| chunk.len() as u64).sum();
                let parts = std::iter::once(&meta[..]).chain(held.chunks().map(|chunk| &chunk[..]));
                key.append_record(&mut self.buffer, RecordHeader { body_octets, ..header }, parts);
                let octets = held.capacity();
                held.into_chunks().for_each(|chunk| shared.pool.give(chunk));
                shared.pool.left(octets);
            }
            PendingBody::Filed { octets, sum } => {
                filed = Some(id);
                let header = RecordHeader { kind: Kind::Large, body_octets: octets, body_sum: sum, ..header };
                key.append_record(&mut self.buffer, header, std::iter::once(&meta[..]));
            }
        }
        current.position += (self.buffer.len() - before) as u64;
        shared.keep_meta(meta);
        self.waiting.push(Waiting { listener, ticket, filed });
    }

    fn reject(&self, shared: &Shared, pending: Pending, trouble: Trouble) {
        match pending.body {
            PendingBody::Held(held) => {
                let octets = held.capacity();
                held.into_chunks().for_each(|chunk| shared.pool.give(chunk));
                shared.pool.left(octets);
            }
            PendingBody::Filed { .. } => shared.bodies.discard(pending.id),
        }
        pending.listener.completions.done(pending.ticket, Err(trouble));
    }

    fn write(&mut self, shared: &Shared) -> io::Result<()> {
        if let Some(current) = &self.current
            && !self.buffer.is_empty()
        {
            current.segment.write(current.position - self.buffer.len() as u64, &self.buffer)?;
            shared.ahead.appended.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
            shared.ahead.writes.fetch_add(1, Ordering::Relaxed);
            self.buffer.clear();
            if current.segment.wants_filling() {
                shared.ahead.wake();
            }
        }
        Ok(())
    }

    /// Makes durable what was appended, and says so.
    fn sync(&mut self, shared: &Shared) {
        if self.waiting.is_empty() {
            return;
        }
        if planted(Bug::AcknowledgeEarly) {
            self.tell();
        }
        let synced = self.write(shared).and_then(|()| match (&self.current, shared.options.durability) {
            (Some(current), Durability::GroupFsync) => match current.segment.file.sync() {
                Err(_) if planted(Bug::RetrySync) => current.segment.file.sync(),
                synced => synced,
            },
            _ => Ok(()),
        });
        if let Err(error) = synced {
            return self.fail(shared, &error);
        }
        self.tell();
        if let Some(current) = &mut self.current {
            current.durable = current.position;
            note(shared, current);
            if !self.next_wanted && current.position > current.segment.octets / 2 {
                self.next_wanted = true;
                shared.ahead.want();
            }
        }
    }

    /// All who wait have what they wait for.
    fn tell(&mut self) {
        for waiting in self.waiting.drain(..) {
            waiting.listener.completions.done(waiting.ticket, Ok(()));
        }
    }

    /// A write or a sync failed. What the disk holds behind the last good offset is unknown, also to a later
    /// sync: the segment is given up, and the next one begins by saying so.
    fn fail(&mut self, shared: &Shared, error: &io::Error) {
        self.buffer.clear();
        let waiting = mem::take(&mut self.waiting);
        if let Some(current) = self.current.take() {
            (shared.hooks.trouble)(&format!(
                "spool: segment {} is given up after octet {}: {error}; {} messages refused",
                names::segment(current.segment.writer, current.segment.sequence),
                current.durable,
                waiting.len()
            ));
            self.failed = Some(current);
        }
        // Sealed before anybody is told: after "451" the message must not turn up. When there is no segment to
        // be had now, nor at a second try, the next commit tries again, and so does the end of this process.
        if self.next_segment(shared).is_err() {
            let _ = self.next_segment(shared);
        }
        for waiting in waiting {
            // Without a seal the record may be found: then its body had better be there.
            if let (Some(id), None) = (waiting.filed, &self.failed) {
                shared.bodies.discard(id);
            }
            waiting.listener.completions.done(waiting.ticket, Err(Trouble::of(error)));
        }
    }

    /// The last chance to say how far a failed segment may be read; then all are given up.
    fn end(&mut self, shared: &Shared) {
        if self.failed.is_some() {
            let _ = self.next_segment(shared);
        }
        (self.current, self.failed) = (None, None);
    }

    fn next_segment(&mut self, shared: &Shared) -> Result<(), Trouble> {
        if shared.ahead.is_stopped() {
            return Err(Trouble::Temporary);
        }
        let segment = shared.ahead.take()?;
        self.next_wanted = false;
        let mut current = Current { segment, position: RECORDS_START, durable: RECORDS_START };
        if planted(Bug::NoSeal) {
            self.failed = None;
        }
        if let Some(failed) = &self.failed {
            if let Err(error) = seal(&mut current, failed) {
                shared.ahead.stop_accepting();
                (shared.hooks.trouble)(&format!(
                    "spool: segment {} cannot be sealed: {error}; this process accepts no more mail",
                    names::segment(failed.segment.writer, failed.segment.sequence),
                ));
                return Err(Trouble::Temporary);
            }
            self.failed = None;
            note(shared, &current);
        }
        self.current = Some(current);
        Ok(())
    }
}

/// Begins `current` with the durable record that `failed` is good only so far (DECISIONS B5).
fn seal(current: &mut Current, failed: &Current) -> io::Result<()> {
    let header = RecordHeader {
        kind: Kind::Seal,
        offset: current.position,
        id: QueueId(0),
        unix_ms: 0,
        envelope_octets: 16,
        prepend_octets: 0,
        body_octets: 0,
        payload_sum: 0,
        body_sum: 0,
    };
    let mut record = Vec::new();
    let payload = encode_seal(failed.segment.sequence, failed.durable);
    current.segment.key.append_record(&mut record, header, std::iter::once(&payload[..]));
    current.segment.write(current.position, &record)?;
    current.segment.file.sync()?;
    current.position += record.len() as u64;
    current.durable = current.position;
    Ok(())
}

/// How far the log is durable, for delivery.
fn note(shared: &Shared, current: &Current) {
    let Prepared { writer, sequence, .. } = *current.segment;
    let bell = Doorbell { writer, segment: sequence, durable: current.durable };
    *shared.position.lock() = Some(bell);
    shared.bell.lock().note(bell);
}

fn record_octets(pending: &Pending) -> u64 {
    let body: usize = match &pending.body {
        PendingBody::Held(held) => held.chunks().map(Vec::len).sum(),
        PendingBody::Filed { .. } => 0,
    };
    ((RECORD_HEADER_OCTETS + pending.meta.len() + body) as u64).next_multiple_of(8)
}

/// A segment that has its name, its header and our lock.
pub(crate) struct Prepared {
    writer: WriterId,
    sequence: u64,
    octets: u64,
    key: Key,
    file: Box<dyn File>,
    /// For the filler's syncs: an error that one descriptor has reported is not told to it again, but it is
    /// told to the other.
    filler: Box<dyn File>,
    /// Written up to here.
    written: AtomicU64,
    /// Zero-filled up to here.
    filled: AtomicU64,
    /// The log has come closer than the filler, or is faster: no more filling.
    overtaken: AtomicBool,
    /// Held while a block is being filled.
    gate: Mutex<()>,
}

impl Prepared {
    /// Everything is durable before the file gets the name by which delivery finds it.
    fn create(shared: &Shared, sequence: u64) -> io::Result<Self> {
        let home = shared.home()?;
        let new = names::new_segment(home.id, sequence);
        let file = shared.disk.create(&new)?;
        let made = Self::dress(shared, home.id, sequence, &new, file);
        if made.is_err() {
            let _ = shared.disk.remove(&new);
        }
        made
    }

    fn dress(shared: &Shared, writer: WriterId, sequence: u64, new: &str, file: Box<dyn File>) -> io::Result<Self> {
        if !file.try_lock()? {
            return Err(io::Error::other("somebody else holds the lock of a new segment"));
        }
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let octets = shared.options.segment_octets;
        let header = SegmentHeader { salt, writer, sequence, octets }.encode();
        let mut first = vec![0; fill_octets(octets).max(RECORDS_START) as usize];
        for copy in HEADER_COPIES {
            first[copy as usize..copy as usize + header.len()].copy_from_slice(&header);
        }
        file.write_at(0, &first)?;
        file.sync()?;
        let name = names::segment(writer, sequence);
        shared.disk.rename(new, &name)?;
        if !planted(Bug::NoSegmentName) {
            shared.disk.sync_dir(&writer.to_string())?;
        }
        Ok(Self {
            writer,
            sequence,
            octets,
            key: Key::new(&salt),
            file,
            filler: shared.disk.open(&name)?,
            written: AtomicU64::new(RECORDS_START),
            filled: AtomicU64::new(first.len() as u64),
            // Filling is for the syncs of commits.
            overtaken: AtomicBool::new(shared.options.durability != Durability::GroupFsync),
            gate: Mutex::new(()),
        })
    }

    /// Zero-fills another block; false when there is nothing left to do.
    fn fill(&self, zeros: &[u8]) -> bool {
        {
            let _gate = self.gate.lock();
            let filled = self.filled.load(Ordering::Acquire);
            if filled >= self.octets || self.overtaken.load(Ordering::Acquire) {
                return false;
            }
            let octets = fill_octets(self.octets).min(self.octets - filled);
            let block = zeros.get(..octets as usize).unwrap_or_default();
            if self.file.write_at(filled, block).is_err() {
                // The disk is full, perhaps: who writes messages will see and say so.
                return false;
            }
            self.filled.store(filled + octets, Ordering::Release);
        }
        // Now, so that a commit's sync has only its own octets to wait for.
        self.filler.sync().is_ok()
    }

    fn write(&self, offset: u64, octets: &[u8]) -> io::Result<()> {
        if offset + octets.len() as u64 > self.filled.load(Ordering::Acquire) {
            self.overtaken.store(true, Ordering::Release);
            // The filler is through with its block, and begins no other.
            drop(self.gate.lock());
        }
        self.file.write_at(offset, octets)?;
        self.written.store(offset + octets.len() as u64, Ordering::Release);
        Ok(())
    }

    /// Whether blocks may still be filled.
    fn may_fill(&self) -> bool {
        self.filled.load(Ordering::Acquire) < self.octets && !self.overtaken.load(Ordering::Acquire)
    }

    /// Whether one should be filled now.
    fn wants_filling(&self) -> bool {
        let ahead = self.filled.load(Ordering::Acquire).saturating_sub(self.written.load(Ordering::Acquire));
        ahead < FILL_AHEAD_OCTETS && self.may_fill()
    }
}

/// Octets that are filled at once in a segment of this size.
fn fill_octets(segment: u64) -> u64 {
    FILL_OCTETS.min(segment / 4)
}

/// Between the committer, who needs segments, and the preparer, who makes them.
#[derive(Default)]
pub(crate) struct Ahead {
    slot: Mutex<Slot>,
    changed: Condvar,
    stopped: AtomicBool,
    /// Octets that the log has written, and in how many writes: tells the filler how busy it is.
    appended: AtomicU64,
    writes: AtomicU64,
}

#[derive(Default)]
struct Slot {
    wanted: bool,
    ready: Option<Arc<Prepared>>,
    trouble: Option<Trouble>,
    room_wanted: bool,
    stop: bool,
}

impl Ahead {
    /// Has the next segment made.
    fn want(&self) {
        self.slot.lock().wanted = true;
        self.changed.notify_all();
    }

    /// Waits for the next segment.
    fn take(&self) -> Result<Arc<Prepared>, Trouble> {
        let mut slot = self.slot.lock();
        slot.trouble = None;
        loop {
            if let Some(ready) = slot.ready.take() {
                return Ok(ready);
            }
            if let Some(trouble) = slot.trouble.take() {
                return Err(trouble);
            }
            slot.wanted = true;
            self.changed.notify_all();
            self.changed.wait(&mut slot);
        }
    }

    /// A segment should be filled further.
    fn wake(&self) {
        // Under the lock: who is about to wait has looked before.
        let _slot = self.slot.lock();
        self.changed.notify_all();
    }

    /// Has the room on disk looked at.
    pub(crate) fn ask_for_room(&self) {
        self.slot.lock().room_wanted = true;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.slot.lock().stop = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn stop_accepting(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// The preparer's thread.
pub(crate) fn prepare(shared: &Shared) {
    let mut sequence = 0;
    // Not ours to keep open: a segment is given up by closing it.
    let mut filling: Vec<Weak<Prepared>> = Vec::new();
    let zeros = vec![0; fill_octets(shared.options.segment_octets) as usize];
    loop {
        let (create, look, fill) = {
            let mut slot = shared.ahead.slot.lock();
            loop {
                if slot.stop {
                    slot.ready = None;
                    return;
                }
                let create = slot.wanted && slot.ready.is_none();
                let look = mem::take(&mut slot.room_wanted);
                filling.retain(|segment| segment.upgrade().is_some_and(|segment| segment.may_fill()));
                let fill = filling.iter().filter_map(Weak::upgrade).find(|segment| segment.wants_filling());
                if create || look || fill.is_some() {
                    break (create, look, fill);
                }
                shared.ahead.changed.wait(&mut slot);
            }
        };
        if look {
            shared.look_at_room();
        }
        if create {
            // A number is used once, whatever came of it.
            sequence += 1;
            let made = Prepared::create(shared, sequence).map(Arc::new);
            let mut slot = shared.ahead.slot.lock();
            slot.wanted = false;
            match made {
                Ok(made) => {
                    filling.push(Arc::downgrade(&made));
                    slot.ready = Some(made);
                }
                Err(error) => {
                    slot.trouble = Some(Trouble::of(&error));
                    (shared.hooks.trouble)(&format!("spool: no new segment: {error}"));
                }
            }
            shared.ahead.changed.notify_all();
        } else if let Some(segment) = fill {
            let ahead = &shared.ahead;
            let written = || (ahead.appended.load(Ordering::Relaxed), ahead.writes.load(Ordering::Relaxed));
            let before = written();
            let more = segment.fill(&zeros);
            let after = written();
            let (octets, writes) = (after.0 - before.0, after.1 - before.1);
            // At that pace a sync is shared by so many that a growing file is as fast, and filling would take
            // half of the disk's bandwidth, and of the processor time that writing takes.
            let busy = octets > zeros.len() as u64 / 4 || (writes > 0 && octets / writes > SHARED_OCTETS);
            if busy || !more {
                segment.overtaken.store(true, Ordering::Release);
            }
        }
    }
}
