//! The preparer: has the next segment ready before it is needed, fills segments ahead of the log, looks at the room on disk.
//!
//! ```text
//! committer ─ want: half of the segment is used ──┐
//!           ─ take: waits ────────────────────────┼─► Slot ─► preparer ─► ready │ trouble ─► take
//!           ─ wake: less is filled than should be ┤               ├─► a segment that is ahead: filled further
//! writer    ─ ask_for_room ───────────────────────┘               └─► the floors of octets and inodes
//! ```

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use super::prepared::{Prepared, fill_octets};
use crate::Trouble;
use crate::writer::Shared;

/// A write of more than this is of so many messages that what a growing file costs is little for each.
const SHARED_OCTETS: u64 = 128 << 10;

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
    pub(super) fn want(&self) {
        self.slot.lock().wanted = true;
        self.changed.notify_all();
    }

    /// Waits for the next segment.
    pub(super) fn take(&self) -> Result<Arc<Prepared>, Trouble> {
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

    /// The log has written so much at once.
    pub(super) fn wrote(&self, octets: usize) {
        self.appended.fetch_add(octets as u64, Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// A segment should be filled further.
    pub(super) fn wake(&self) {
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

    pub(super) fn stop_accepting(&self) {
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
                segment.leave_unfilled();
            }
        }
    }
}
