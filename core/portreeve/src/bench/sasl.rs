//! `bench sasl`: what a mechanism's exchange costs inline, and through a mechanism-host that is locked up as in
//! service. Each measured exchange was run once before, with a client and a world that check it.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use conformance::client::{Kind, Person};
use conformance::event::{Event, Facts, Moment, base64};
use conformance::job::{Job, Line, Task};
use conformance::process;
use conformance::rules::Verdict;
use conformance::world::{End, Plan, World, run};
use link::mechanism::ANSWER;
use plugin_host::Vetted;
use rustix::thread::CpuSet;
use sasl::{Input, Step};
use serde_json::{Map, Value, json};

use crate::cli::exit;
use crate::runners::{self, Hosted, Inline};
use crate::terminal;

/// What is measured inline, and which library has it.
const MECHANISMS: [(&str, &str); 9] = [
    ("PLAIN", "standard"),
    ("LOGIN", "standard"),
    ("SCRAM-SHA-1", "standard"),
    ("SCRAM-SHA-256", "standard"),
    ("SCRAM-SHA-256-PLUS", "standard"),
    ("SCRAM-SHA-512", "standard"),
    ("OAUTHBEARER", "standard"),
    ("CRAM-MD5", "legacy"),
    ("DIGEST-MD5", "legacy"),
];
/// Exchanges that go to a mechanism-host at a time.
const BATCHES: [usize; 3] = [1, 16, 64];

/// The command.
pub fn command(seconds: f64, json: bool) -> ExitCode {
    let seconds = seconds.clamp(0.01, 600.0);
    match measure(Duration::from_secs_f64(seconds)) {
        Ok(report) => {
            terminal::print(&if json { format!("{:#}\n", report.to_json()) } else { report.to_text() });
            if report.bars().iter().all(|bar| bar.is_met()) { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILURE) }
        }
        Err(why) => terminal::fail(exit::UNTRIED, why),
    }
}

/// What was found.
struct Report {
    inline: Vec<Measured>,
    hosted: Vec<Batch>,
}

/// A mechanism inside this process.
struct Measured {
    mech: &'static str,
    /// Nanoseconds of an exchange: the median of all rounds, and the best.
    ns: f64,
    best_ns: f64,
    /// Octets of state that the host keeps for it.
    state_octets: usize,
    /// Calls of `malloc` and its like in an exchange.
    allocations: u64,
}

/// PLAIN through a mechanism-host.
struct Batch {
    exchanges: usize,
    /// Microseconds of an exchange from both sides' view together.
    us: f64,
    best_us: f64,
    /// Processor time of both processes.
    cpu_us: f64,
}

/// What a figure may be at most.
struct Bar {
    what: &'static str,
    value: f64,
    most: f64,
}

impl Bar {
    fn is_met(&self) -> bool {
        self.value <= self.most
    }
}

fn measure(budget: Duration) -> Result<Report, String> {
    let program = PathBuf::from("/proc/self/exe");
    let mut inline = Vec::new();
    for (mech, id) in MECHANISMS {
        let file = plugin_host::resolve(id, &[]).map_err(|error| error.to_string())?.path;
        let mut script = Script::record(&runners::vet(&file)?, mech)?;
        let (ns, best_ns) = script.time(budget);
        let state_octets = script.inline.mechanism.traits().state_octets;
        let allocations = allocations(&program, &file, mech)?;
        inline.push(Measured { mech, ns, best_ns, state_octets, allocations });
    }
    stay_on_one_core().map_err(|error| format!("cannot stay on one core: {error}"))?;
    let standard = plugin_host::resolve("standard", &[]).map_err(|error| error.to_string())?.path;
    let vetted = runners::vet(&standard)?;
    let script = Script::record(&vetted, "PLAIN")?;
    let mut hosted = Vec::new();
    for exchanges in BATCHES {
        hosted.push(script.time_hosted(&mut Hosted::start(&program, &vetted, "PLAIN", None)?, exchanges, budget)?);
    }
    Ok(Report { inline, hosted })
}

/// Keeps this process and those that it starts from now on where it runs. Otherwise, on a machine with nothing else to do,
/// the other process would find a core that sleeps, and what is measured would be how long that takes to wake up.
fn stay_on_one_core() -> rustix::io::Result<()> {
    let mut here = CpuSet::new();
    here.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &here)
}

/// What goes into each step of an exchange that succeeds.
struct Script {
    inline: Inline,
    facts: Facts,
    moments: Vec<Moment>,
}

impl Script {
    /// Runs it once, with a client that computes along.
    fn record(vetted: &Vetted, mech: &str) -> Result<Self, String> {
        let mut inline = Inline::new(vetted, mech, "")?;
        let kind = Kind::of(mech).ok_or_else(|| format!("{mech}: no client for it"))?;
        let traits = runners::traits(&*inline.mechanism);
        let (facts, world) = (traits.facts(), World::default());
        let mut person = Person::user();
        if traits.channel_bind {
            (person.gs2, person.binding) = ("p=tls-exporter".into(), world.binding.clone());
        }
        let plan = Plan { initial: !traits.server_first, ..Plan::client(facts.clone(), kind, person) };
        let story = run(&mut inline, &traits, &world, &plan).map_err(|fault| format!("{mech}: {}", fault.text))?;
        if story.end != End::Success {
            let words: Vec<String> = story.words.iter().map(|words| base64(words)).collect();
            return Err(format!("{mech}: the exchange ended with {:?} after {}", story.end, words.join(" ")));
        }
        Ok(Self { inline, facts, moments: story.steps.into_iter().map(|(moment, _)| moment).collect() })
    }

    /// Nanoseconds of an exchange: median and best of many rounds.
    fn time(&mut self, budget: Duration) -> (f64, f64) {
        const ROUND: u32 = 2_000;
        let Self { inline: Inline { mechanism, state, scratch, .. }, facts, moments } = self;
        let unix_ms = facts.unix_ms;
        let Some(facts) = runners::sasl_facts(facts) else { return (f64::NAN, f64::NAN) };
        let mut message: &[u8] = b"";
        let inputs: Vec<_> = moments
            .iter()
            .filter_map(|moment| {
                message = match &moment.event {
                    Event::Start(initial) => initial.as_ref().map_or(b"", |initial| &initial.0),
                    Event::Message(words) => &words.0,
                    Event::Result(_) | Event::Resume => message,
                };
                Some(Input { unix_ms, ..runners::input(&facts, moment, message).ok()? })
            })
            .collect();
        let octets = mechanism.traits().state_octets;
        let mut rounds = Vec::new();
        let until = Instant::now() + budget;
        while Instant::now() < until || rounds.is_empty() {
            let started = Instant::now();
            for _ in 0..ROUND {
                state.prepare(octets);
                let mut ended = false;
                for input in &inputs {
                    ended = matches!(mechanism.step(state, black_box(*input), scratch), Step::Success { .. });
                }
                assert!(ended, "it succeeded when it was recorded");
                mechanism.finish(state);
            }
            rounds.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(ROUND));
        }
        middle_and_best(&mut rounds)
    }

    /// The same through another process, so many exchanges at a time: every step of all of them in one packet, or
    /// as few as hold them.
    fn time_hosted(&self, host: &mut Hosted, exchanges: usize, budget: Duration) -> Result<Batch, String> {
        let text = |fault: conformance::sandbox::Fault| fault.text;
        let (mut rounds, mut cpu, mut count) = (Vec::new(), 0.0, 0);
        let turn = |host: &mut Hosted| -> Result<(), String> {
            for moment in &self.moments {
                for exchange in 0..exchanges as u64 {
                    host.say(exchange, &self.facts, moment).map_err(text)?;
                }
                host.flush()?;
                let mut answers = 0;
                while answers < exchanges {
                    host.receive(&mut |kind, _, payload| {
                        let answer = link::mechanism::Answer::decode(payload);
                        answers += usize::from(kind == ANSWER && answer.is_ok_and(|answer| answer.action != 3));
                    })?;
                }
            }
            (0..exchanges as u64).for_each(|exchange| host.say_finish(exchange));
            Ok(())
        };
        // Warm.
        for _ in 0..3 {
            turn(host)?;
        }
        let until = Instant::now() + budget;
        let before = processor_ns(host.pid())?;
        while Instant::now() < until || rounds.is_empty() {
            let started = Instant::now();
            turn(host)?;
            rounds.push(started.elapsed().as_secs_f64() * 1e6 / exchanges as f64);
            count += exchanges;
        }
        cpu += (processor_ns(host.pid())? - before) / 1e3 / count as f64;
        let (us, best_us) = middle_and_best(&mut rounds);
        Ok(Batch { exchanges, us, best_us, cpu_us: cpu })
    }
}

fn middle_and_best(rounds: &mut [f64]) -> (f64, f64) {
    rounds.sort_by(f64::total_cmp);
    let at = |at: usize| rounds.get(at).copied().unwrap_or(f64::NAN);
    (at(rounds.len() / 2), at(0))
}

/// Processor time of that process and of this one so far, nanoseconds.
fn processor_ns(pid: u32) -> Result<f64, String> {
    [format!("/proc/{pid}/schedstat"), "/proc/self/schedstat".to_owned()].iter().try_fold(0.0, |sum, path| {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let first = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
        first.map(|ns| sum + ns).ok_or_else(|| format!("{path}: no number"))
    })
}

/// Calls of `malloc` and its like by the library during an exchange, as the kit counts them (rule M3).
fn allocations(program: &Path, file: &Path, mech: &str) -> Result<u64, String> {
    let job = Job {
        task: Task::Allocations,
        file: file.to_owned(),
        mech: mech.to_owned(),
        settings: None,
        vectors: None,
        budget_ms: 100,
        seed: 1,
        exchanges: 0,
    };
    let mut found = Err(format!("{mech}: its allocations were not counted"));
    let running = process::start(&program.to_owned(), &job)?;
    running.listen(Instant::now() + Duration::from_secs(10), &mut |line| {
        if let Line::Finding(finding) = line
            && finding.rule == "M3"
        {
            found = match finding.verdict {
                Verdict::Fail => Ok(finding.text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(1)),
                Verdict::Pass => Ok(0),
                Verdict::Skip => Err(format!("{mech}: {}", finding.text)),
            };
        }
    });
    found
}

impl Report {
    fn inline(&self, mech: &str) -> Option<&Measured> {
        self.inline.iter().find(|measured| measured.mech == mech)
    }

    fn bars(&self) -> [Bar; 5] {
        let ns = |mech| self.inline(mech).map_or(f64::NAN, |measured| measured.ns);
        let state = self.inline("SCRAM-SHA-256").map_or(f64::NAN, |measured| measured.state_octets as f64);
        let allocations: u64 = self.inline.iter().map(|measured| measured.allocations).sum();
        let batch = self.hosted.last().map_or(f64::NAN, |batch| batch.us);
        [
            Bar { what: "plain_ns", value: ns("PLAIN"), most: 150.0 },
            Bar { what: "scram_sha256_us", value: ns("SCRAM-SHA-256") / 1e3, most: 2.5 },
            Bar { what: "allocs_per_exchange", value: allocations as f64, most: 0.0 },
            Bar { what: "state_bytes of SCRAM-SHA-256", value: state, most: 512.0 },
            Bar { what: "process_us at 64", value: batch, most: 1.0 },
        ]
    }

    fn to_json(&self) -> Value {
        let of = |value: fn(&Measured) -> Value| -> Map<String, Value> {
            self.inline.iter().map(|measured| (measured.mech.to_owned(), value(measured))).collect()
        };
        let batches = |value: fn(&Batch) -> f64| -> Map<String, Value> {
            self.hosted.iter().map(|batch| (batch.exchanges.to_string(), rounded(value(batch)))).collect()
        };
        let ns = |mech| self.inline(mech).map_or(f64::NAN, |measured| measured.ns);
        let allocations: u64 = self.inline.iter().map(|measured| measured.allocations).sum();
        let bars = self
            .bars()
            .map(|bar| json!({"what": bar.what, "value": rounded(bar.value), "most": bar.most, "met": bar.is_met()}));
        json!({
            "version": 1,
            "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "plain_ns": rounded(ns("PLAIN")),
            "scram_sha256_us": rounded(ns("SCRAM-SHA-256") / 1e3),
            "allocs_per_exchange": allocations,
            "state_bytes": of(|measured| measured.state_octets.into()),
            "process_us": batches(|batch| batch.us),
            "process_us_best": batches(|batch| batch.best_us),
            "process_cpu_us": batches(|batch| batch.cpu_us),
            "inline_ns": of(|measured| rounded(measured.ns)),
            "inline_ns_best": of(|measured| rounded(measured.best_ns)),
            "bars": bars,
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!("{:<20} {:>10} {:>10} {:>8} {:>7}\n", "inline", "ns", "best", "state", "malloc");
        for Measured { mech, ns, best_ns, state_octets, allocations } in &self.inline {
            text += &format!("{mech:<20} {ns:>10.1} {best_ns:>10.1} {state_octets:>8} {allocations:>7}\n");
        }
        text += &format!(
            "\n{:<20} {:>10} {:>10} {:>8}   both processes on one core\n",
            "PLAIN, process", "us", "best", "cpu us"
        );
        for Batch { exchanges, us, best_us, cpu_us } in &self.hosted {
            text += &format!("{:<20} {us:>10.3} {best_us:>10.3} {cpu_us:>8.3}\n", format!("{exchanges} at a time"));
        }
        text.push('\n');
        for bar in self.bars() {
            let met = if bar.is_met() { "met" } else { "MISSED" };
            text += &format!("{:<30} {:>10.2}  at most {:<6} {met}\n", bar.what, bar.value, bar.most);
        }
        if cfg!(debug_assertions) {
            text += "\nThis is a debug build: the figures say nothing.\n";
        }
        text
    }
}

fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}
