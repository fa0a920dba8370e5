//! What a run found: made from ticks, kept as JSON, said as text.
//!
//! Histograms stay in it as values and their counts, so that `report` and `compare` work on what was measured
//! and not on somebody's choice of percentiles.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::plan::{Kind, Plan};
use crate::tick::{Counts, Pairs, Tick, Troubles, histogram};

/// A result; the version of its form comes first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Of this form.
    pub version: u32,
    /// Program and version.
    pub tool: String,
    /// As it was typed.
    pub command: Vec<String>,
    /// When it began.
    pub time: String,
    /// Where.
    pub machine: Machine,
    /// What the server called itself in its first greeting.
    pub server_greeting: String,
    /// What was to be done, complete, without secrets.
    pub plan: Option<Plan>,
    /// Sessions that ended as they should.
    pub connections: u64,
    /// Sessions that did not.
    pub failed: u64,
    /// Messages that the server took.
    pub messages: u64,
    /// Their octets.
    pub message_octets: u64,
    /// What was measured took so long.
    pub seconds: f64,
    /// What the warm-up did; counted nowhere else.
    pub warm_up_seconds: f64,
    /// Of whole sessions, from their intended start, all scenarios but idle ones.
    pub latency_us: Percentiles,
    /// By scenario.
    pub scenarios: Vec<ScenarioReport>,
    /// Idle sessions that were held when they were all there.
    pub held: u64,
    /// Seconds until they were.
    pub gather_seconds: f64,
    /// Of those that were begun, how many are missing at the end.
    pub crowd_lost: u64,
    /// What went wrong, by scenario, stage and code.
    pub errors: Vec<Troubles>,
    /// What the server cost, when its process id was given.
    pub server: Option<Server>,
    /// Our own side.
    pub client: Client,
    /// The most frequent TLS version, suite and key exchange.
    pub tls: Option<String>,
    /// All of them.
    pub tls_all: BTreeMap<String, u64>,
    /// A second each.
    pub timeline: Vec<Moment>,
    /// Why these numbers may not mean what they seem to.
    pub warnings: Vec<String>,
    /// The run was ended before its bound.
    pub cut_short: Option<String>,
}

/// The form that this program writes.
pub const VERSION: u32 = 2;

/// Of a histogram, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// How many values.
    pub count: u64,
    /// Half are at most this.
    pub p50: u64,
    /// And so on.
    pub p90: u64,
    /// And so on.
    pub p99: u64,
    /// And so on.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Percentiles {
    /// Of a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |q| if histogram.is_empty() { 0 } else { histogram.value_at_quantile(q) };
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// A histogram as it is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Which.
    #[serde(flatten)]
    pub percentiles: Percentiles,
    /// Microseconds, and how often they came.
    pub values: Pairs,
}

impl Latency {
    /// Of a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let values = histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value()));
        Self { percentiles: Percentiles::of(histogram), values: values.collect() }
    }
}

/// What sessions of one scenario did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScenarioReport {
    /// Its name.
    pub name: String,
    /// Begun.
    pub begun: u64,
    /// Ended as they should.
    pub done: u64,
    /// Did not.
    pub failed: u64,
    /// Messages.
    pub messages: u64,
    /// Resumed handshakes.
    pub resumed: u64,
    /// `session`, `greeting`, `login`, `message`, `noop`; where there are values.
    pub latency_us: BTreeMap<String, Latency>,
}

/// What the server cost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Processes at the end.
    pub processes: usize,
    /// Processor seconds of what was measured.
    pub cpu_seconds: f64,
    /// Processor microseconds per message, or per session where there are no messages.
    pub cpu_us_each: f64,
    /// Private memory at the end less that before the run.
    pub memory_octets: i64,
    /// Private memory that the idle sessions took, per session.
    pub memory_octets_each: Option<f64>,
    /// The same of the kernel's objects, both ends when both are here.
    pub kernel_octets_each: Option<f64>,
    /// Of what was measured; of threads that have ended, what they had when they were last looked at, once a second.
    pub context_switches: u64,
}

/// What we ourselves did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Client {
    /// Load processes.
    pub processes: u32,
    /// Writes to sockets, of sessions that ended as they should.
    pub writes: u64,
    /// Octets of those.
    pub octets_sent: u64,
    /// Processor seconds of the load processes.
    pub cpu_seconds: f64,
    /// The busiest load process, share of a processor.
    pub cpu_share_max: f64,
    /// Share of the time in which the load processes could have run and did not get a processor.
    pub delayed_share: f64,
    /// How late sessions of an open loop were begun.
    pub late_us: Percentiles,
}

/// A second of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Moment {
    /// Since the run began.
    pub seconds: f64,
    /// `gathering`, `warm-up`, `measured`, `ending`.
    pub phase: String,
    /// Per second.
    pub sessions: f64,
    /// Per second.
    pub messages: f64,
    /// Per second.
    pub errors: f64,
    /// Microseconds.
    pub p50: u64,
    /// Microseconds.
    pub p99: u64,
    /// Idle sessions.
    pub held: u64,
    /// Sessions in progress.
    pub active: u64,
    /// Share of a processor.
    pub server_cpu: Option<f64>,
    /// Private memory, octets.
    pub server_memory: Option<u64>,
}

/// Adds ticks up.
pub struct Sum {
    /// One of each scenario.
    pub counts: Vec<Counts>,
    histograms: Vec<[Histogram<u64>; 5]>,
    late: Histogram<u64>,
    troubles: BTreeMap<(String, String, String), Troubles>,
    tls: BTreeMap<String, u64>,
}

const MEASURES: [&str; 5] = ["session", "greeting", "login", "message", "noop"];

impl Sum {
    /// Of nothing, for so many scenarios.
    pub fn new(scenarios: usize) -> Self {
        Self {
            counts: vec![Counts::default(); scenarios],
            histograms: (0..scenarios).map(|_| std::array::from_fn(|_| histogram())).collect(),
            late: histogram(),
            troubles: BTreeMap::new(),
            tls: BTreeMap::new(),
        }
    }

    /// One more.
    pub fn add(&mut self, tick: &Tick) {
        for ((sum, histograms), counts) in self.counts.iter_mut().zip(&mut self.histograms).zip(&tick.scenarios) {
            sum.begun += counts.begun;
            sum.done += counts.done;
            sum.failed += counts.failed;
            sum.messages += counts.messages;
            sum.message_octets += counts.message_octets;
            sum.resumed += counts.resumed;
            sum.writes += counts.writes;
            sum.octets_sent += counts.octets_sent;
            let all = [&counts.session, &counts.greeting, &counts.login, &counts.message, &counts.noop];
            for (histogram, pairs) in histograms.iter_mut().zip(all) {
                fill(histogram, pairs);
            }
        }
        fill(&mut self.late, &tick.late);
        for trouble in &tick.troubles {
            let key = (trouble.scenario.clone(), trouble.stage.clone(), trouble.code.clone());
            let entry = self.troubles.entry(key).or_insert_with(|| Troubles { count: 0, ..trouble.clone() });
            entry.count += trouble.count;
        }
        for (words, count) in &tick.tls {
            *self.tls.entry(words.clone()).or_default() += count;
        }
    }

    /// Sessions of what is no idle crowd.
    pub fn sessions(&self, is_idle: &[bool]) -> Histogram<u64> {
        let mut all = histogram();
        for (histograms, idle) in self.histograms.iter().zip(is_idle) {
            if !idle {
                // Both have the same bounds.
                let _ = all.add(&histograms[0]);
            }
        }
        all
    }

    /// Of every scenario.
    pub fn count(&self, what: impl Fn(&Counts) -> u64) -> u64 {
        self.counts.iter().map(what).sum()
    }

    /// Idle sessions that were begun.
    pub fn crowd_begun(&self, plan: &Plan) -> u64 {
        let all = plan.scenarios.iter().zip(&self.counts);
        all.filter(|(scenario, _)| scenario.kind == Kind::Idle).map(|(_, counts)| counts.begun).sum()
    }

    /// How often something went wrong.
    pub fn trouble_count(&self) -> u64 {
        self.troubles.values().map(|trouble| trouble.count).sum()
    }

    /// Puts what was summed into a report.
    pub fn report(&self, plan: &Plan, report: &mut Report) {
        let is_idle: Vec<bool> = plan.scenarios.iter().map(|s| s.kind == Kind::Idle).collect();
        let of_mix = |what: fn(&Counts) -> u64| {
            self.counts.iter().zip(&is_idle).filter(|(_, idle)| !**idle).map(|(counts, _)| what(counts)).sum::<u64>()
        };
        report.connections = of_mix(|counts| counts.done);
        report.failed = of_mix(|counts| counts.failed);
        report.messages = self.count(|counts| counts.messages);
        report.message_octets = self.count(|counts| counts.message_octets);
        report.latency_us = Percentiles::of(&self.sessions(&is_idle));
        report.client.writes = of_mix(|counts| counts.writes);
        report.client.octets_sent = of_mix(|counts| counts.octets_sent);
        report.client.late_us = Percentiles::of(&self.late);
        report.tls = self.tls.iter().max_by_key(|(_, count)| **count).map(|(words, _)| words.clone());
        report.tls_all = self.tls.clone();
        report.errors = self.troubles.values().cloned().collect();
        report.errors.sort_by_key(|trouble| std::cmp::Reverse(trouble.count));
        report.scenarios = plan
            .scenarios
            .iter()
            .zip(&self.counts)
            .zip(&self.histograms)
            .map(|((scenario, counts), histograms)| ScenarioReport {
                name: scenario.name.clone(),
                begun: counts.begun,
                done: counts.done,
                failed: counts.failed,
                messages: counts.messages,
                resumed: counts.resumed,
                latency_us: MEASURES
                    .iter()
                    .zip(histograms)
                    .filter(|(_, histogram)| !histogram.is_empty())
                    .map(|(name, histogram)| ((*name).to_owned(), Latency::of(histogram)))
                    .collect(),
            })
            .collect();
    }
}

fn fill(histogram: &mut Histogram<u64>, pairs: &Pairs) {
    for &(value, count) in pairs {
        histogram.saturating_record_n(value.max(1), count);
    }
}

impl Report {
    /// Reads one that was kept.
    pub fn read(path: &std::path::Path) -> Result<Self, String> {
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| told(&error))?;
        let report: Self = serde_json::from_str(&text).map_err(|error| told(&error))?;
        match report.version {
            VERSION => Ok(report),
            other => Err(told(&format!("result of version {other}, this program reads {VERSION}; measure again"))),
        }
    }

    /// Whether everything went as it should and to its end.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.crowd_lost == 0 && self.cut_short.is_none()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut to = String::new();
        let seconds = self.seconds.max(1e-9);
        let mut line = |name: &str, text: String| {
            let _ = writeln!(to, "{name:<13}{text}");
        };
        if !self.server_greeting.is_empty() {
            line("server", self.server_greeting.clone());
        }
        if self.connections + self.failed > 0 {
            let failed = if self.failed > 0 { format!(", {} failed", self.failed) } else { String::new() };
            let rate = self.connections as f64 / seconds;
            line("sessions", format!("{} in {seconds:.2} s, {rate:.0}/s{failed}", self.connections));
        }
        if self.messages > 0 {
            let mib = self.message_octets as f64 / seconds / f64::from(1 << 20);
            line("messages", format!("{}, {:.0}/s, {mib:.1} MiB/s", self.messages, self.messages as f64 / seconds));
        }
        if self.held > 0 {
            let lost = if self.crowd_lost > 0 { format!(", {} lost", self.crowd_lost) } else { String::new() };
            line("idle", format!("{} held, there after {:.1} s{lost}", self.held, self.gather_seconds));
        }
        line("", format!("{:>21}{:>9}{:>9}{:>9}{:>9}   milliseconds", "p50", "p90", "p99", "p99.9", "max"));
        for scenario in &self.scenarios {
            for (measure, latency) in &scenario.latency_us {
                let p = latency.percentiles;
                let ms = |micros: u64| format!("{:>9.3}", micros as f64 / 1000.0);
                let columns = [p.p50, p.p90, p.p99, p.p999, p.max].map(ms).concat();
                let name = format!("{} {measure}", scenario.name);
                line("", format!("{name:<12.24}{columns:>33}   {} values", p.count));
            }
        }
        if let Some(server) = &self.server {
            let of = if self.messages > 0 { "messages" } else { "sessions" };
            let cpu = match self.messages + self.connections {
                0 => format!("{:.3} s processor time", server.cpu_seconds),
                _ => format!("{:.2} ms processor time per 1,000 {of}", server.cpu_us_each),
            };
            let (processes, switches) = (server.processes, server.context_switches);
            line("server", format!("{cpu}, {processes} processes, {switches} context switches"));
            let mut text = format!("{:+.1} KiB private memory", server.memory_octets as f64 / 1024.0);
            if let Some(each) = server.memory_octets_each {
                let _ = write!(text, "; {each:.0} octets per idle session");
            }
            if let Some(each) = server.kernel_octets_each {
                let _ = write!(text, ", {each:.0} of the kernel's (both ends)");
            }
            line("", text);
        }
        if let Some(tls) = &self.tls {
            let resumed: u64 = self.scenarios.iter().map(|scenario| scenario.resumed).sum();
            line("TLS", format!("{tls}, {resumed} resumed"));
        }
        line(
            "load",
            format!(
                "{} processes, busiest {:.0} % of a processor, waited for one {:.0} % of the time",
                self.client.processes,
                self.client.cpu_share_max * 100.0,
                self.client.delayed_share * 100.0
            ),
        );
        for error in &self.errors {
            let text = if error.text.is_empty() { String::new() } else { format!(" ({})", error.text) };
            line("error", format!("{} × {}: {}: {}{text}", error.count, error.scenario, error.stage, error.code));
        }
        for warning in &self.warnings {
            line("warning", warning.clone());
        }
        if let Some(why) = &self.cut_short {
            line("cut short", why.clone());
        }
        let machine = &self.machine;
        line(
            "measured",
            format!("{}, {} on {} × {}, kernel {}", self.time, self.tool, machine.cores, machine.cpu, machine.kernel),
        );
        line("command", crate::machine::typed(&self.command));
        to
    }
}
