//! Where things lie in the shared words, and how a slot is found.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

use link::shared::SharedWords;

/// In so many neighbouring places a slot is looked for.
pub const PROBES: usize = 16;

const MAGIC: u64 = u64::from_le_bytes(*b"limits.1");

// Header words.
const WORD_MAGIC: usize = 0;
const WORD_ROWS: usize = 1;
const WORD_SECRETS: usize = 2;
const HEADER_WORDS: usize = 8;
/// A row fills a cache line, so that workers do not slow each other down.
pub(crate) const ROW_WORDS: usize = 8;

pub(crate) const PREFIX_SLOTS: usize = 1 << 16;
pub(crate) const RATE_SLOTS: usize = 1 << 17;
pub(crate) const RATE_WORDS: usize = 2;
pub(crate) const FAILURE_SLOTS: usize = 1 << 17;
pub(crate) const FAILURE_WORDS: usize = 3;

/// Workers of two generations, 58 processes each, and some.
const ROWS_MAX: usize = 128;

/// The table that all workers share. Pages that nobody touched cost nothing: it begins at a few KiB and ends
/// at 6 MiB for up to 4 rows, 22 MiB for 128.
#[derive(Debug)]
pub struct Table {
    words: SharedWords,
    rows: usize,
    pub(crate) row: usize,
    secrets: [u64; 2],
}

impl Table {
    /// Makes a table for so many workers (two generations must fit). The maker counts in row 0 itself; only
    /// tests do that.
    pub fn create(rows: usize) -> io::Result<Table> {
        if rows == 0 || rows > ROWS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "limits: a table has 1 to 128 rows"));
        }
        let words = SharedWords::create("portreeve-limits", words_of(rows))?;
        // Where a client's slots lie must not be foreseeable, or it could choose prefixes that fill one place.
        let secrets = [0, 1].map(|n| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(n);
            hasher.finish() | 1
        });
        let table = Table { words, rows, row: 0, secrets };
        table.word(WORD_ROWS).store(rows as u64, Relaxed);
        for (i, secret) in secrets.into_iter().enumerate() {
            table.word(WORD_SECRETS + i).store(secret, Relaxed);
        }
        table.word(WORD_MAGIC).store(MAGIC, Release);
        Ok(table)
    }

    /// Maps the table that the supervisor made; this process counts in `row`.
    pub fn attach(fd: OwnedFd, row: usize) -> io::Result<Table> {
        let words = SharedWords::attach(fd)?;
        let bad = |text| io::Error::new(io::ErrorKind::InvalidData, text);
        let head = |index: usize| words.words().get(index).map_or(0, |word| word.load(Relaxed));
        let rows = usize::try_from(head(WORD_ROWS)).unwrap_or(usize::MAX);
        if head(WORD_MAGIC) != MAGIC || rows > ROWS_MAX || words.words().len() != words_of(rows) {
            return Err(bad("limits: the descriptor is no table of this version"));
        }
        if row >= rows {
            return Err(bad("limits: the table has no such row"));
        }
        let secrets = [head(WORD_SECRETS), head(WORD_SECRETS + 1)];
        Ok(Table { words, rows, row, secrets })
    }

    /// To be sent to workers.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    /// How many workers fit.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn word(&self, index: usize) -> &AtomicU64 {
        &self.words.words()[index]
    }

    /// The first word of a row.
    pub(crate) fn row_start(&self, row: usize) -> usize {
        HEADER_WORDS + row * ROW_WORDS
    }

    /// Words of a prefix slot: its key, then the sessions of four workers in each word.
    pub(crate) fn prefix_words(&self) -> usize {
        prefix_words(self.rows)
    }

    /// The first word of a prefix slot.
    pub(crate) fn prefix_start(&self, slot: usize) -> usize {
        HEADER_WORDS + self.rows * ROW_WORDS + slot * self.prefix_words()
    }

    /// The first word of a rate slot.
    pub(crate) fn rate_start(&self, slot: usize) -> usize {
        self.prefix_start(PREFIX_SLOTS) + slot * RATE_WORDS
    }

    /// The first word of a failure slot.
    pub(crate) fn failure_start(&self, slot: usize) -> usize {
        self.rate_start(RATE_SLOTS) + slot * FAILURE_WORDS
    }

    /// A key for `subject` in the part of the table that `kind` names: never 0 (free) and never with the
    /// highest bit (which marks a slot that is changing hands).
    pub(crate) fn key(&self, kind: u8, subject: u128) -> u64 {
        let (high, low) = ((subject >> 64) as u64, subject as u64);
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product >> 64) as u64 ^ product as u64
        };
        let first = fold(high ^ self.secrets[0], low ^ self.secrets[1]);
        let key = fold(first ^ u64::from(kind), self.secrets[0].rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15);
        (key >> 1).max(1)
    }
}

/// The places where a key may lie, nearest first.
pub(crate) fn probes(key: u64, slots: usize) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |i| (key as usize).wrapping_add(i) & (slots - 1))
}

fn prefix_words(rows: usize) -> usize {
    1 + rows.div_ceil(4)
}

fn words_of(rows: usize) -> usize {
    HEADER_WORDS
        + rows * ROW_WORDS
        + PREFIX_SLOTS * prefix_words(rows)
        + RATE_SLOTS * RATE_WORDS
        + FAILURE_SLOTS * FAILURE_WORDS
}

/// What is counted as one client: an IPv4 address, also when mapped into IPv6, or an IPv6 /64.
pub fn prefix(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A prefix as a number; the two families do not meet (an IPv4-mapped address is IPv4 above).
pub(crate) fn prefix_bits(ip: IpAddr) -> u128 {
    match prefix(ip) {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}
