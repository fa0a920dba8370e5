//! Counters and records of one shard. Counts go to the shared pages once per turn, records to the log
//! writer a few times per second: a shared word travels between cores, a message wakes a process.

use telemetry::{Counter, Event, EventSender, Gauge, Histogram, Level, Slot};

/// What a shard counts and tells.
pub struct Watch {
    slot: Slot,
    events: EventSender,
    counts: [u64; Counter::ALL.len()],
    counted: Vec<usize>,
    gauges: [i64; Gauge::ALL.len()],
    gauged: Vec<usize>,
    /// When the records that wait have to leave.
    due_ms: Option<u64>,
}

impl Watch {
    /// Counts into `slot`, tells `events`.
    pub fn new(slot: Slot, events: EventSender) -> Self {
        Self { slot, events, counts: [0; _], counted: Vec::new(), gauges: [0; _], gauged: Vec::new(), due_ms: None }
    }

    /// Counts.
    pub fn add(&mut self, counter: Counter, n: u64) {
        let at = counter as usize;
        if self.counts[at] == 0 {
            self.counted.push(at);
        }
        self.counts[at] += n;
    }

    /// Moves a gauge.
    pub fn gauge(&mut self, gauge: Gauge, by: i64) {
        let at = gauge as usize;
        if self.gauges[at] == 0 {
            self.gauged.push(at);
        }
        self.gauges[at] += by;
    }

    /// Notes a value of a distribution.
    pub fn observe(&self, histogram: Histogram, value: u64) {
        self.slot.observe(histogram, value);
    }

    /// Hands a record over; `false` when an audit record found no room.
    pub fn tell(&mut self, event: &Event<'_>, now_ms: u64) -> bool {
        self.due_ms.get_or_insert(now_ms + RECORDS_MS);
        self.events.send(event).is_ok()
    }

    /// Whether a log record of this level goes anywhere.
    pub fn wants(&self, level: Level) -> bool {
        self.events.wants(level)
    }

    /// Whether work that will need an audit record may begin.
    pub fn may_begin(&self) -> bool {
        self.events.audit_ready()
    }

    /// The directory's epoch.
    pub fn epoch(&self) -> u64 {
        self.slot.board().directory_epoch().load(std::sync::atomic::Ordering::Acquire)
    }

    /// When records have to leave.
    pub fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// The end of a turn.
    pub fn turn(&mut self, now_ms: u64) {
        for at in self.counted.drain(..) {
            if let Some(&counter) = Counter::ALL.get(at) {
                self.slot.add(counter, std::mem::take(&mut self.counts[at]));
            }
        }
        for at in self.gauged.drain(..) {
            if let Some(&gauge) = Gauge::ALL.get(at) {
                self.slot.gauge_add(gauge, std::mem::take(&mut self.gauges[at]));
            }
        }
        if self.due_ms().is_some_and(|due| now_ms >= due) {
            // What the socket does not take now goes as soon as the writer has read some of it.
            self.due_ms = (!self.events.flush()).then_some(now_ms.saturating_add(RETRY_MS));
        }
    }

    /// The end of the shard: records leave now.
    pub fn end(&mut self) {
        self.turn(u64::MAX);
    }

    /// "I am alive."
    pub fn heartbeat(&self, unix_ms: u64) {
        self.slot.heartbeat(unix_ms);
    }
}

/// How long records wait for company.
const RECORDS_MS: u64 = 100;

/// How soon records that the socket did not take are offered again. A socket holds about 200 KiB: at 100 ms
/// that would be 2 MB of records a second, less than a busy worker writes.
const RETRY_MS: u64 = 2;
