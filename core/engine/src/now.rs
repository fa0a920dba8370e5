//! The clocks, read once a turn: whatever happens in a turn happens at one time.

use crate::wheel::{TICK_MS, Tick};

/// The time of a turn.
#[derive(Clone, Copy)]
pub struct Now {
    /// Monotonic, of the machine.
    pub ms: u64,
    /// The same, finer: when the turn began.
    pub us: u64,
    /// Wall clock.
    pub unix_ms: u64,
    /// Ticks since the shard started.
    pub tick: Tick,
    start_ms: u64,
}

impl Now {
    /// Reads the clocks for the first time.
    pub fn first() -> Self {
        let mut now = Self { ms: 0, us: 0, unix_ms: 0, tick: 0, start_ms: 0 };
        now.read();
        now.start_ms = now.ms;
        now.tick = 0;
        now
    }

    /// Reads the clocks.
    pub fn read(&mut self) {
        self.us = link::monotonic_us();
        self.ms = self.us / 1000;
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.unix_ms = unix.as_millis() as u64;
        self.tick = (self.ms.saturating_sub(self.start_ms) / TICK_MS) as Tick;
    }

    /// The time of `tick`.
    pub fn at(&self, tick: Tick) -> u64 {
        self.start_ms + u64::from(tick) * TICK_MS
    }
}
