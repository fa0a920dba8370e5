//! What parent and child say to each other: one job on the child's standard input, lines of JSON back.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::event::{Answer, Facts, Moment};
use crate::rules::{Finding, Verdict};
use crate::sandbox::Fault;
use crate::world::Traits;

/// What a child does. Each has its own process, so that what one breaks does not hide what another finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A1 to A6: loads it and reads its descriptor.
    Describe,
    /// A7: the host's own way of loading it.
    Handshake,
    /// D1.
    Settings,
    /// B1 to B4, and D1 for a back end.
    Backend,
    /// M2, M5, and what only running it shows of A5 and A6.
    Memory,
    /// M1.
    Purity,
    /// M3.
    Allocations,
    /// M4.
    Drop,
    /// M6.
    Threads,
    /// M7, P6.
    Time,
    /// P1, P2, P4.
    Protocol,
    /// P3, P5.
    Proof,
    /// P7, P8.
    Published,
    /// Random exchanges until somebody ends it.
    Fuzz,
    /// Steps on request.
    Serve,
}

impl Task {
    /// What is done for each mechanism, in this order.
    pub const EACH: [Task; 10] = [
        Task::Settings,
        Task::Memory,
        Task::Purity,
        Task::Allocations,
        Task::Drop,
        Task::Threads,
        Task::Time,
        Task::Protocol,
        Task::Proof,
        Task::Published,
    ];

    /// The rules that it decides.
    pub fn rules(self) -> &'static [&'static str] {
        match self {
            Self::Describe => &["A1", "A2", "A3", "A4", "A5", "A6"],
            Self::Handshake => &["A7"],
            Self::Settings => &["D1"],
            Self::Backend => &["D1", "B1", "B2", "B3", "B4"],
            Self::Memory => &["M2", "M5"],
            Self::Purity => &["M1"],
            Self::Allocations => &["M3"],
            Self::Drop => &["M4"],
            Self::Threads => &["M6"],
            Self::Time => &["M7", "P6"],
            Self::Protocol => &["P1", "P2", "P4"],
            Self::Proof => &["P3", "P5"],
            Self::Published => &["P7", "P8"],
            Self::Fuzz | Self::Serve => &[],
        }
    }

    /// The rule that is broken when the child dies of a memory fault here.
    pub fn rule_of_a_crash(self) -> &'static str {
        match self {
            Self::Describe => "A3",
            Self::Handshake => "A7",
            Self::Settings => "D1",
            Self::Backend => "B2",
            Self::Drop => "M4",
            Self::Threads => "M6",
            _ => "M2",
        }
    }
}

/// A child's work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What.
    pub task: Task,
    /// The library.
    pub file: PathBuf,
    /// The mechanism; empty for the whole library.
    pub mech: String,
    /// Settings as JSON, when they are given.
    pub settings: Option<String>,
    /// Sample exchanges, JSON.
    pub vectors: Option<String>,
    /// How long the repeated parts may take, milliseconds.
    pub budget_ms: u64,
    /// Chance.
    pub seed: u64,
    /// Exchanges of `Fuzz`, 0 without end.
    pub exchanges: u64,
}

/// A line from a child.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// About a rule.
    Finding(Finding),
    /// For people.
    Note(String),
    /// The library's mechanisms, and its id.
    Library {
        /// Its id.
        id: String,
        /// Its version.
        version: String,
        /// Its mechanisms.
        mechanisms: Vec<Traits>,
    },
    /// `Serve`: ready; or a step's answer.
    Ready(Traits),
    /// The answer to a step.
    Answer(Answer),
    /// A step broke a rule.
    Fault(FaultLine),
    /// `Fuzz`: exchanges so far.
    Progress(u64),
    /// A signal handler's last words.
    Died(Died),
    /// All done.
    Done,
}

/// A fault on its way to the parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaultLine {
    /// The rule.
    pub rule: String,
    /// What was seen.
    pub text: String,
}

/// How a child ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Died {
    /// 0: without a signal.
    pub signal: i32,
    /// Where, in words.
    pub place: String,
    /// System call, or -1.
    pub call: i64,
    /// Its first argument.
    pub argument: i64,
    /// Of the step: `PRV_EV_*`, 0 between steps.
    pub event: u32,
    /// Which step of the process.
    pub step: u64,
    /// The beginning of the client's message, hexadecimal.
    pub message: String,
    /// Its length.
    pub message_octets: u64,
}

/// A request to a child that serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A new exchange.
    Begin,
    /// A step.
    Step(Box<(Facts, Moment)>),
    /// The exchange is over.
    Finish,
}

/// The child's end of the pipe.
pub struct Pipe(pub OwnedFd);

impl Pipe {
    /// One line, whole.
    pub fn send(&self, line: &Line) {
        let mut octets = serde_json::to_vec(line).unwrap_or_default();
        octets.push(b'\n');
        let mut rest = octets.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&self.0, rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                // The parent is gone: so are we, at the next signal.
                Err(_) => return,
            }
        }
        let _ = std::io::stdout().flush();
    }

    /// A finding of this mechanism.
    pub fn finding(&self, rule: &str, mech: &str, verdict: Verdict, text: impl Into<String>) {
        self.send(&Line::Finding(Finding { rule: rule.into(), mech: mech.into(), verdict, text: text.into() }));
    }

    /// A broken rule.
    pub fn fault(&self, mech: &str, fault: &Fault) {
        self.finding(fault.rule, mech, Verdict::Fail, fault.text.clone());
    }
}
