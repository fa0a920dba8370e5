//! Memory for message bodies on their way to the disk: chunks from one bounded pool.
//!
//! A message takes a chunk of 4 KiB first and larger ones, doubling to 64 KiB, as it grows; so thousands
//! of slow senders do not hold what they do not fill. When the pool is empty a message waits, and its
//! event loop is told when there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

use crate::Completions;

/// Chunk sizes are `CHUNK_OCTETS_MIN << class`.
pub(crate) const CHUNK_OCTETS_MIN: usize = 4096;
/// Class of 64 KiB.
pub(crate) const CLASS_MAX: usize = 4;
/// Octets of unused chunks that are kept per class.
const KEPT_OCTETS_MAX: usize = 4 << 20;

/// A piece of a body; its capacity is one of the sizes and never grows.
pub(crate) type Chunk = Vec<u8>;

/// One event loop, as the pool and the committer see it.
pub(crate) struct Listener {
    pub(crate) completions: Arc<dyn Completions>,
    waits: AtomicBool,
}

impl Listener {
    pub(crate) fn new(completions: Arc<dyn Completions>) -> Self {
        Self { completions, waits: AtomicBool::new(false) }
    }
}

pub(crate) struct Pool {
    used: AtomicUsize,
    max: usize,
    /// Octets that are on their way out (queued for commit or for a body file) and will come back by themselves.
    leaving: AtomicUsize,
    free: [ArrayQueue<Chunk>; CLASS_MAX + 1],
    waiting: Mutex<Vec<Arc<Listener>>>,
    somebody_waits: AtomicBool,
}

impl Pool {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            max: max.max(CHUNK_OCTETS_MIN << CLASS_MAX),
            leaving: AtomicUsize::new(0),
            free: std::array::from_fn(|class| ArrayQueue::new(KEPT_OCTETS_MAX / (CHUNK_OCTETS_MIN << class))),
            waiting: Mutex::new(Vec::new()),
            somebody_waits: AtomicBool::new(false),
        }
    }

    /// A chunk of `class`, or of a smaller one when memory is short; `None` when there is no room at all.
    pub(crate) fn take(&self, class: usize) -> Option<Chunk> {
        for class in (0..=class.min(CLASS_MAX)).rev() {
            let octets = CHUNK_OCTETS_MIN << class;
            let room = |used: usize| (used + octets <= self.max).then_some(used + octets);
            if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).is_ok() {
                return Some(self.free[class].pop().unwrap_or_else(|| Vec::with_capacity(octets)));
            }
        }
        None
    }

    pub(crate) fn give(&self, mut chunk: Chunk) {
        let octets = chunk.capacity();
        let class = (octets / CHUNK_OCTETS_MIN).trailing_zeros() as usize;
        chunk.clear();
        if let Some(free) = self.free.get(class) {
            // Beyond what is kept it goes back to the allocator.
            let _ = free.push(chunk);
        }
        self.used.fetch_sub(octets, Ordering::SeqCst);
    }

    /// `octets` were handed over for writing.
    pub(crate) fn leave(&self, octets: usize) {
        self.leaving.fetch_add(octets, Ordering::SeqCst);
    }

    /// `octets` that were handed over have been given back.
    pub(crate) fn left(&self, octets: usize) {
        self.leaving.fetch_sub(octets, Ordering::SeqCst);
    }

    /// Whether room will come without anybody's doing.
    pub(crate) fn is_draining(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) > 0
    }

    /// `listener` is told once, when there is room.
    pub(crate) fn wait(&self, listener: &Arc<Listener>) {
        if !listener.waits.swap(true, Ordering::SeqCst) {
            self.waiting.lock().push(listener.clone());
            self.somebody_waits.store(true, Ordering::SeqCst);
        }
    }

    /// Tells those who wait; called after chunks came back.
    pub(crate) fn wake(&self) {
        if self.somebody_waits.swap(false, Ordering::SeqCst) {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            for listener in waiting {
                listener.waits.store(false, Ordering::SeqCst);
                listener.completions.room();
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }
}
