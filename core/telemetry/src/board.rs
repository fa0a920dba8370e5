//! The numbers of all processes in shared pages.
//!
//! ```text
//! page 0         magic, layout, slots, directory epoch
//! per slot       role, pid, state, started, heartbeat │ counters │ gauges │ histograms │ up to a whole page
//! ```

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use link::Role;
use link::shared::SharedWords;

use crate::table::{Counter, Gauge, Histogram};

const PAGE_WORDS: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"portreev");

// Words of page 0.
const WORD_MAGIC: usize = 0;
const WORD_LAYOUT: usize = 1;
const WORD_SLOTS: usize = 2;
const WORD_DIRECTORY_EPOCH: usize = 3;

// Words of a slot.
const WORD_ROLE: usize = 0;
const WORD_PID: usize = 1;
const WORD_STATE: usize = 2;
const WORD_STARTED: usize = 3;
const WORD_HEARTBEAT: usize = 4;
const COUNTERS: usize = 8;
const GAUGES: usize = COUNTERS + Counter::ALL.len();
const HISTOGRAMS: usize = GAUGES + Gauge::ALL.len();
const SLOT_WORDS: usize = (HISTOGRAMS + Histogram::ALL.len() * HISTOGRAM_WORDS).next_multiple_of(PAGE_WORDS);

/// Four buckets per power of two: a value is known to within a quarter.
pub(crate) const BUCKETS: usize = 128;
const HISTOGRAM_WORDS: usize = BUCKETS + 1;

/// Most processes on one board.
const SLOTS_MAX: usize = 4096;

/// All numbers of all processes. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Board {
    words: Arc<SharedWords>,
    slots: usize,
}

/// One process' numbers.
#[derive(Clone, Debug)]
pub struct Slot {
    board: Board,
    start: usize,
}

/// What is known of a slot's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has used the slot.
    Free,
    /// The process runs.
    Alive,
    /// It is gone; its numbers stay.
    Dead,
}

impl Board {
    /// Makes a board for so many processes.
    pub fn create(slots: usize) -> io::Result<Board> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "telemetry: a board has 1 to 4096 slots"));
        }
        let words = SharedWords::create("portreeve-telemetry", PAGE_WORDS + slots * SLOT_WORDS)?;
        let board = Board { words: Arc::new(words), slots };
        board.word(WORD_LAYOUT).store(layout(), Relaxed);
        board.word(WORD_SLOTS).store(slots as u64, Relaxed);
        board.word(WORD_MAGIC).store(MAGIC, Release);
        Ok(board)
    }

    /// Maps a board that the supervisor made. Refused when it was laid out by another table.
    pub fn attach(fd: OwnedFd) -> io::Result<Board> {
        let words = Arc::new(SharedWords::attach(fd)?);
        let bad = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if words.words().len() < PAGE_WORDS || words.words()[WORD_MAGIC].load(Acquire) != MAGIC {
            return bad("telemetry: the descriptor is no board");
        }
        if words.words()[WORD_LAYOUT].load(Relaxed) != layout() {
            return bad("telemetry: the board was laid out by another version");
        }
        let slots = usize::try_from(words.words()[WORD_SLOTS].load(Relaxed)).unwrap_or(usize::MAX);
        if slots > SLOTS_MAX || words.words().len() != PAGE_WORDS + slots * SLOT_WORDS {
            return bad("telemetry: the board's size does not fit its number of slots");
        }
        Ok(Board { words, slots })
    }

    /// To be sent to other processes.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    /// How many processes fit.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Raised by the directory at every change of users; a cached answer with an older epoch is stale.
    pub fn directory_epoch(&self) -> &AtomicU64 {
        self.word(WORD_DIRECTORY_EPOCH)
    }

    /// The numbers of process `index`; `None` beyond the last slot.
    pub fn slot(&self, index: usize) -> Option<Slot> {
        (index < self.slots).then(|| Slot { board: self.clone(), start: PAGE_WORDS + index * SLOT_WORDS })
    }

    /// Gives a slot to a new process. Counters and histograms of an earlier one of the same role go on, so
    /// that sums never fall; those of another role are forgotten.
    pub fn claim(&self, index: usize, role: Role, pid: u32, unix_ms: u64) -> Option<Slot> {
        let slot = self.slot(index)?;
        if slot.role() != Some(role) {
            self.words.words()[slot.start..slot.start + SLOT_WORDS].iter().for_each(|word| word.store(0, Relaxed));
        }
        slot.clear_gauges();
        slot.word(WORD_ROLE).store(role as u64 + 1, Relaxed);
        slot.word(WORD_PID).store(u64::from(pid), Relaxed);
        slot.word(WORD_STARTED).store(unix_ms, Relaxed);
        slot.word(WORD_HEARTBEAT).store(unix_ms, Relaxed);
        slot.word(WORD_STATE).store(1, Release);
        Some(slot)
    }

    /// The process is gone: its numbers stay, its gauges fall to zero.
    pub fn retire(&self, index: usize) {
        if let Some(slot) = self.slot(index) {
            slot.clear_gauges();
            slot.word(WORD_STATE).store(2, Release);
        }
    }

    /// A slot for a process of this role: one of the same role whose process is gone, else a free one, else
    /// any whose process is gone.
    pub fn vacant(&self, role: Role) -> Option<usize> {
        let state = |index: usize| self.slot(index).map(|slot| (slot.state(), slot.role()));
        let find = |wanted: &dyn Fn(State, Option<Role>) -> bool| {
            (0..self.slots).find(|&index| state(index).is_some_and(|(state, role)| wanted(state, role)))
        };
        find(&|state, was| state == State::Dead && was == Some(role))
            .or_else(|| find(&|state, _| state == State::Free))
            .or_else(|| find(&|state, _| state == State::Dead))
    }

    /// Sum over all processes.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.each().map(|slot| slot.counter(counter)).fold(0, u64::wrapping_add)
    }

    /// Sum over all processes.
    pub fn gauge(&self, gauge: Gauge) -> i64 {
        self.each().map(|slot| slot.gauge(gauge)).fold(0, i64::saturating_add)
    }

    /// Taken over all processes.
    pub fn summary(&self, histogram: Histogram) -> Summary {
        let mut summary = Summary::default();
        self.each().for_each(|slot| summary.add(&slot, histogram));
        summary
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..self.slots).filter_map(|index| self.slot(index)).filter(|slot| slot.state() != State::Free)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.words.words()[index]
    }
}

impl Slot {
    /// Counts.
    pub fn add(&self, counter: Counter, n: u64) {
        self.word(COUNTERS + counter as usize).fetch_add(n, Relaxed);
    }

    /// What was counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.word(COUNTERS + counter as usize).load(Relaxed)
    }

    /// Sets a gauge.
    pub fn gauge_set(&self, gauge: Gauge, value: i64) {
        self.word(GAUGES + gauge as usize).store(value.cast_unsigned(), Relaxed);
    }

    /// Moves a gauge up or down.
    pub fn gauge_add(&self, gauge: Gauge, by: i64) {
        self.word(GAUGES + gauge as usize).fetch_add(by.cast_unsigned(), Relaxed);
    }

    /// Where a gauge stands.
    pub fn gauge(&self, gauge: Gauge) -> i64 {
        self.word(GAUGES + gauge as usize).load(Relaxed).cast_signed()
    }

    /// Notes one value of a distribution.
    pub fn observe(&self, histogram: Histogram, value: u64) {
        self.word(bucket_word(histogram, bucket_of(value))).fetch_add(1, Relaxed);
        self.word(bucket_word(histogram, BUCKETS)).fetch_add(value, Relaxed);
    }

    pub(crate) fn bucket(&self, histogram: Histogram, bucket: usize) -> u64 {
        self.word(bucket_word(histogram, bucket)).load(Relaxed)
    }

    /// "I am alive": called at least every few seconds from what must not hang.
    pub fn heartbeat(&self, unix_ms: u64) {
        self.word(WORD_HEARTBEAT).store(unix_ms, Relaxed);
    }

    /// When the process last gave a sign of life, milliseconds since 1970.
    pub fn heartbeat_ms(&self) -> u64 {
        self.word(WORD_HEARTBEAT).load(Relaxed)
    }

    /// When the process started, milliseconds since 1970.
    pub fn started_ms(&self) -> u64 {
        self.word(WORD_STARTED).load(Relaxed)
    }

    /// Its role; `None` while nobody has used the slot.
    pub fn role(&self) -> Option<Role> {
        let number = self.word(WORD_ROLE).load(Relaxed).checked_sub(1)?;
        Role::from_number(u8::try_from(number).ok()?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.word(WORD_PID).load(Relaxed)).unwrap_or(0)
    }

    /// Sets the process id: the supervisor claims a slot before the child exists.
    pub fn set_pid(&self, pid: u32) {
        self.word(WORD_PID).store(u64::from(pid), Relaxed);
    }

    /// Whether the process runs.
    pub fn state(&self) -> State {
        match self.word(WORD_STATE).load(Acquire) {
            0 => State::Free,
            1 => State::Alive,
            _ => State::Dead,
        }
    }

    /// The board that it is on.
    pub fn board(&self) -> &Board {
        &self.board
    }

    fn clear_gauges(&self) {
        Gauge::ALL.iter().for_each(|&gauge| self.gauge_set(gauge, 0));
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        self.board.word(self.start + index)
    }
}

fn bucket_word(histogram: Histogram, bucket: usize) -> usize {
    HISTOGRAMS + histogram as usize * HISTOGRAM_WORDS + bucket
}

/// 0, 1, 2, 3, then four buckets for each power of two.
pub(crate) fn bucket_of(value: u64) -> usize {
    if value < 4 {
        return value as usize;
    }
    let octave = value.ilog2() as usize;
    let quarter = (value >> (octave - 2)) as usize & 3;
    (octave * 4 - 4 + quarter).min(BUCKETS - 1)
}

/// The largest value that falls into a bucket (all larger ones fall into the last).
pub(crate) fn bucket_top(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64;
    }
    let (octave, quarter) = (bucket / 4 + 1, (bucket % 4) as u64);
    ((5 + quarter) << (octave - 2)) - 1
}

/// A distribution, added up over processes.
#[derive(Clone, Debug)]
pub struct Summary {
    pub(crate) buckets: [u64; BUCKETS],
    /// Sum of all values.
    pub sum: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl Summary {
    pub(crate) fn add(&mut self, slot: &Slot, histogram: Histogram) {
        for (bucket, n) in self.buckets.iter_mut().enumerate() {
            *n += slot.bucket(histogram, bucket);
        }
        self.sum = self.sum.wrapping_add(slot.bucket(histogram, BUCKETS));
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The value that `share` (0.0 to 1.0) of all do not exceed, to within a quarter; 0 when there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return bucket_top(bucket);
            }
        }
        0
    }
}

/// FNV-1a over the table: two builds that would read each other's words wrongly get different numbers.
fn layout() -> u64 {
    let counters = Counter::ALL.iter().map(|row| ("counter", row.row()));
    let gauges = Gauge::ALL.iter().map(|row| ("gauge", row.row()));
    let histograms = Histogram::ALL.iter().map(|row| ("histogram", row.row()));
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (kind, row) in counters.chain(gauges).chain(histograms) {
        for octet in kind.bytes().chain(row.name.bytes()).chain(row.label.bytes()).chain([0]) {
            hash = (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_see_each_others_numbers() {
        let here = Board::create(3).unwrap();
        let there = Board::attach(here.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let slot = here.claim(1, Role::Worker, 77, 1000).unwrap();
        slot.add(Counter::Commands, 5);
        slot.gauge_add(Gauge::Sessions, 3);
        slot.gauge_add(Gauge::Sessions, -1);
        here.directory_epoch().store(9, Relaxed);
        let seen = there.slot(1).unwrap();
        assert_eq!((seen.role(), seen.pid(), seen.state()), (Some(Role::Worker), 77, State::Alive));
        assert_eq!((seen.counter(Counter::Commands), seen.gauge(Gauge::Sessions)), (5, 2));
        assert_eq!(there.directory_epoch().load(Relaxed), 9);
        assert!(there.slot(3).is_none());
        assert_eq!(there.slot(0).unwrap().state(), State::Free);
    }

    #[test]
    fn a_dead_process_leaves_its_counters_and_its_slot_to_the_same_role() {
        let board = Board::create(3).unwrap();
        board.claim(0, Role::Directory, 1, 0).unwrap().add(Counter::DirectoryAnswers, 4);
        let slot = board.claim(1, Role::Worker, 2, 0).unwrap();
        slot.add(Counter::Commands, 5);
        slot.gauge_set(Gauge::Sessions, 3);
        board.retire(1);
        assert_eq!((board.counter(Counter::Commands), board.gauge(Gauge::Sessions)), (5, 0));
        assert_eq!(board.vacant(Role::Worker), Some(1));
        assert_eq!(board.vacant(Role::Control), Some(2));
        board.claim(1, Role::Worker, 3, 0).unwrap().add(Counter::Commands, 1);
        assert_eq!(board.counter(Counter::Commands), 6);
        board.claim(2, Role::Control, 4, 0).unwrap();
        assert_eq!(board.vacant(Role::Worker), None);
        board.retire(0);
        assert_eq!(board.vacant(Role::Worker), Some(0));
        board.claim(0, Role::Worker, 5, 0).unwrap();
        assert_eq!(board.counter(Counter::DirectoryAnswers), 0);
    }

    #[test]
    fn what_is_no_board_is_refused() {
        let small = SharedWords::create("small", 8).unwrap();
        assert!(Board::attach(small.as_fd().try_clone_to_owned().unwrap()).is_err());
        let board = Board::create(2).unwrap();
        board.word(WORD_SLOTS).store(u64::MAX, Relaxed);
        assert!(Board::attach(board.as_fd().try_clone_to_owned().unwrap()).is_err());
        board.word(WORD_SLOTS).store(2, Relaxed);
        board.word(WORD_LAYOUT).store(1, Relaxed);
        assert!(Board::attach(board.as_fd().try_clone_to_owned().unwrap()).is_err());
        assert!(Board::create(0).is_err());
    }

    #[test]
    fn buckets_cover_every_value_in_order() {
        let mut last = 0;
        for value in (0..5000).chain((12..34).map(|octave| (1 << octave) - 1)).chain([u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(bucket >= last || value < 5000, "{value}");
            last = bucket;
            assert!(bucket == BUCKETS - 1 || value <= bucket_top(bucket), "{value} in {bucket}");
            assert!(bucket == 0 || value > bucket_top(bucket - 1), "{value} in {bucket}");
        }
        assert!((1..BUCKETS).all(|bucket| bucket_top(bucket) > bucket_top(bucket - 1)));
    }

    #[test]
    fn quantiles_are_within_a_quarter() {
        let board = Board::create(1).unwrap();
        let slot = board.claim(0, Role::Worker, 1, 0).unwrap();
        assert_eq!(board.summary(Histogram::TurnMicros).quantile(0.5), 0);
        (1..=1000).for_each(|value| slot.observe(Histogram::TurnMicros, value));
        let summary = board.summary(Histogram::TurnMicros);
        assert_eq!((summary.count(), summary.sum), (1000, 500_500));
        for (share, exact) in [(0.5, 500), (0.9, 900), (0.99, 990), (1.0, 1000)] {
            let found = summary.quantile(share);
            assert!((exact..=exact + exact / 4).contains(&found), "{share}: {found}");
        }
        assert_eq!(board.summary(Histogram::CommitMicros).count(), 0);
    }

    #[test]
    fn threads_lose_no_count() {
        let board = Board::create(1).unwrap();
        let slot = board.claim(0, Role::Worker, 1, 0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| slot.add(Counter::Commands, 1)));
            }
        });
        assert_eq!(board.counter(Counter::Commands), 40_000);
    }
}
