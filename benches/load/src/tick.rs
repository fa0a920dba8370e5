//! What a load process tells its parent, and how it counts until then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::dialogue::{Measure, Trouble};
use crate::process;

/// What happened in one interval.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tick {
    /// Microseconds since the process began.
    pub at_us: u64,
    /// Since "go"; 0 before.
    pub running_us: u64,
    /// The interval's sessions began in the warm-up.
    pub warm: bool,
    /// All idle sessions are there (or failed).
    pub gathered: bool,
    /// Nothing more will begin, and everything that began has ended.
    pub done: bool,
    /// Idle sessions that are held now.
    pub held: u64,
    /// Sessions in progress now.
    pub active: u64,
    /// Own processor time of the interval, microseconds.
    pub cpu_us: u64,
    /// What the interval took, microseconds.
    pub wall_us: u64,
    /// How long we could have run and another had the processor, microseconds.
    pub delayed_us: u64,
    /// How late sessions were begun, microseconds.
    pub late: Pairs,
    /// One of each scenario.
    pub scenarios: Vec<Counts>,
    /// By stage and code.
    pub troubles: Vec<Troubles>,
    /// TLS version, suite and key exchange, with their number.
    pub tls: BTreeMap<String, u64>,
    /// The first greeting, without its code.
    pub greeting: String,
}

/// Values and how often they came: a histogram on its way.
pub type Pairs = Vec<(u64, u64)>;

/// What sessions of one scenario did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Begun.
    pub begun: u64,
    /// Ended as they should.
    pub done: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Messages that the server took.
    pub messages: u64,
    /// Their octets.
    pub message_octets: u64,
    /// Handshakes that were resumed.
    pub resumed: u64,
    /// Writes to sockets, by sessions that ended as they should.
    pub writes: u64,
    /// Octets of those.
    pub octets_sent: u64,
    /// Whole sessions, from their intended start.
    pub session: Pairs,
    /// See [`Measure`].
    pub greeting: Pairs,
    /// See [`Measure`].
    pub login: Pairs,
    /// See [`Measure`].
    pub message: Pairs,
    /// See [`Measure`].
    pub noop: Pairs,
}

/// A kind of trouble and how often it came.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Troubles {
    /// Which scenario.
    pub scenario: String,
    /// How far it had come.
    pub stage: String,
    /// A reply code, or what happened instead.
    pub code: String,
    /// The words of the first of them.
    pub text: String,
    /// How often.
    pub count: u64,
}

/// Microseconds that fit a histogram: an hour.
const MICROS_MAX: u64 = 3_600_000_000;

/// An empty histogram of the precision that is used everywhere.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("bounds that fit")
}

/// Kinds of trouble that are told apart.
const TROUBLES_MAX: usize = 200;

/// Counts since the last tick.
pub(crate) struct Interval {
    since: Instant,
    /// One of each scenario, without their histograms.
    pub counts: Vec<Counts>,
    histograms: Vec<[Option<Histogram<u64>>; 5]>,
    /// How late sessions were begun, microseconds.
    pub late: Histogram<u64>,
    troubles: BTreeMap<(usize, String, String), (String, u64)>,
    /// See [`Tick::tls`].
    pub tls: BTreeMap<String, u64>,
    cpu: Duration,
    delayed: Duration,
}

impl Interval {
    pub fn new(scenarios: usize, now: Instant) -> Self {
        let (cpu, delayed) = process::own();
        Self {
            since: now,
            counts: vec![Counts::default(); scenarios],
            histograms: (0..scenarios).map(|_| Default::default()).collect(),
            late: histogram(),
            troubles: BTreeMap::new(),
            tls: BTreeMap::new(),
            cpu,
            delayed,
        }
    }

    /// A whole session took so long.
    pub fn session(&mut self, scenario: usize, micros: u64) {
        self.record(scenario, 0, micros);
    }

    /// A part of one took so long.
    pub fn part(&mut self, scenario: usize, measure: Measure, micros: u64) {
        self.record(scenario, 1 + measure as usize, micros);
    }

    fn record(&mut self, scenario: usize, which: usize, micros: u64) {
        let place = &mut self.histograms[scenario][which];
        place.get_or_insert_with(histogram).saturating_record(micros.max(1));
    }

    pub fn trouble(&mut self, scenario: usize, trouble: &Trouble) {
        let mut key = (scenario, trouble.stage.clone(), trouble.code.clone());
        if self.troubles.len() >= TROUBLES_MAX && !self.troubles.contains_key(&key) {
            key = (scenario, "other".to_owned(), "other".to_owned());
        }
        let entry = self.troubles.entry(key).or_insert_with(|| (trouble.text.clone(), 0));
        entry.1 += 1;
    }

    /// What was counted, in a tick that has nothing else; counts from here on anew. `names` are those of the scenarios.
    pub fn take(&mut self, names: Vec<&str>, now: Instant) -> Tick {
        let before = std::mem::replace(self, Self::new(names.len(), now));
        let mut scenarios = before.counts;
        for (counts, histograms) in scenarios.iter_mut().zip(before.histograms) {
            let [session, greeting, login, message, noop] = histograms.map(|h| h.map_or_else(Pairs::new, pairs));
            (counts.session, counts.greeting, counts.login) = (session, greeting, login);
            (counts.message, counts.noop) = (message, noop);
        }
        let troubles = before.troubles.into_iter().map(|((scenario, stage, code), (text, count))| Troubles {
            scenario: names[scenario].to_owned(),
            stage,
            code,
            text,
            count,
        });
        Tick {
            cpu_us: self.cpu.saturating_sub(before.cpu).as_micros() as u64,
            wall_us: (now - before.since).as_micros() as u64,
            delayed_us: self.delayed.saturating_sub(before.delayed).as_micros() as u64,
            late: pairs(before.late),
            scenarios,
            troubles: troubles.collect(),
            tls: before.tls,
            ..Tick::default()
        }
    }
}

fn pairs(histogram: Histogram<u64>) -> Pairs {
    histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}

// Which histogram a measure has follows from its place.
const _: () = assert!(Measure::Greeting as usize == 0 && Measure::Noop as usize == 3);
