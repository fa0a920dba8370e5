//! Group commit: one thread that appends and syncs, and one that has the next segment ready.
//!
//! ```text
//! queue ─► commit_all: records into the buffer ─► write ─► sync ─► tell, note ─► doorbell
//!              └─ make_room ◄─ segment (prepared.rs) ◄─ preparer (ahead.rs)
//!              a failed write or sync: the segment is given up, and the next one begins with its seal
//! ```

mod ahead;
mod prepared;

use std::io;
use std::mem;
use std::sync::Arc;

use parking_lot::MutexGuard;
use smtp::id::QueueId;

pub(crate) use self::ahead::{Ahead, prepare};
use self::prepared::Prepared;
use crate::bug::{Bug, planted};
use crate::pool::Listener;
use crate::segment::{Kind, PAYLOAD_OCTETS_MAX, RECORD_HEADER_OCTETS, RECORDS_START, RecordHeader, encode_seal};
use crate::writer::{Durability, Pending, PendingBody, Shared};
use crate::{Doorbell, Trouble, names};

/// Octets that are written at once.
const WRITE_OCTETS: usize = 4 << 20;
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
            shared.ahead.wrote(self.buffer.len());
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
