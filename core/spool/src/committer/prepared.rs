//! A segment with a file, a name and our lock, and how it is filled with zeros ahead of the log.
//!
//! The filler's blocks must not lie over what the log has written. A write that comes to where nothing is filled yet ends
//! the filling for good, and waits for the block that is being filled just then:
//!
//! ```text
//! 0 ─ header ─ records ──► written ─── zeros ──► filled ────────────────────► octets
//!              the log writes here     the filler's next block begins here
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::bug::{Bug, planted};
use crate::names;
use crate::segment::{HEADER_COPIES, Key, RECORDS_START, SegmentHeader, WriterId};
use crate::storage::File;
use crate::writer::{Durability, Shared};

/// Octets that are zero-filled at once, at most.
const FILL_OCTETS: u64 = 256 << 10;
/// How far ahead of the log a segment is filled; a whole one at once would keep the disk from those who wait for it.
const FILL_AHEAD_OCTETS: u64 = 4 << 20;

/// A segment that has its name, its header and our lock.
pub(super) struct Prepared {
    pub(super) writer: WriterId,
    pub(super) sequence: u64,
    pub(super) octets: u64,
    pub(super) key: Key,
    pub(super) file: Box<dyn File>,
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
    pub(super) fn create(shared: &Shared, sequence: u64) -> io::Result<Self> {
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
    pub(super) fn fill(&self, zeros: &[u8]) -> bool {
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

    pub(super) fn write(&self, offset: u64, octets: &[u8]) -> io::Result<()> {
        if offset + octets.len() as u64 > self.filled.load(Ordering::Acquire) {
            self.leave_unfilled();
            // The filler is through with its block, and begins no other.
            drop(self.gate.lock());
        }
        self.file.write_at(offset, octets)?;
        self.written.store(offset + octets.len() as u64, Ordering::Release);
        Ok(())
    }

    /// No more filling: a block that is being filled is the last one.
    pub(super) fn leave_unfilled(&self) {
        self.overtaken.store(true, Ordering::Release);
    }

    /// Whether blocks may still be filled.
    pub(super) fn may_fill(&self) -> bool {
        self.filled.load(Ordering::Acquire) < self.octets && !self.overtaken.load(Ordering::Acquire)
    }

    /// Whether one should be filled now.
    pub(super) fn wants_filling(&self) -> bool {
        let ahead = self.filled.load(Ordering::Acquire).saturating_sub(self.written.load(Ordering::Acquire));
        ahead < FILL_AHEAD_OCTETS && self.may_fill()
    }
}

/// Octets that are filled at once in a segment of this size.
pub(super) fn fill_octets(segment: u64) -> u64 {
    FILL_OCTETS.min(segment / 4)
}
