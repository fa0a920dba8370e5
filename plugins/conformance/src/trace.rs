//! A recorded exchange: everything that went into each step and everything that came out of it, as JSON Lines.
//! Because a step is pure, the same library gives the same octets again, here or elsewhere.
//!
//! A trace holds what the client said, passwords too: it is for tests, and written for its owner only.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::event::{Answer, Facts, Moment};
use crate::job::{Job, Task};
use crate::process::Served;
use crate::world::Stepper;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Form of the file.
    pub trace: u32,
    /// The library's file.
    pub file: PathBuf,
    /// Of its content.
    pub sha256: String,
    /// The mechanism.
    pub mech: String,
    /// Its settings.
    pub settings: Option<String>,
}

/// Every other line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A new exchange, on this connection.
    Begin(Facts),
    /// A step and its answer.
    Step(Moment, Answer),
}

/// A trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What was run.
    pub header: Header,
    /// How it went.
    pub entries: Vec<Entry>,
}

/// The form that this release writes.
const FORM: u32 = 1;
/// Largest file that is read.
const FILE_OCTETS_MAX: u64 = 256 << 20;

impl Trace {
    /// Of a job, with nothing in it yet.
    pub fn new(job: &Job) -> Result<Self, String> {
        let found = plugin_host::inspect(&job.file).map_err(|error| error.to_string())?;
        let (file, mech, settings) = (job.file.clone(), job.mech.clone(), job.settings.clone());
        let header = Header { trace: FORM, file, sha256: crate::client::hex(&found.sha256), mech, settings };
        Ok(Self { header, entries: Vec::new() })
    }

    /// Writes it, for its owner's eyes.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: cannot be written: {error}", path.display());
        let mut text = serde_json::to_string(&self.header).map_err(|error| error.to_string())?;
        for entry in &self.entries {
            text.push('\n');
            text += &serde_json::to_string(entry).map_err(|error| error.to_string())?;
        }
        text.push('\n');
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)
    }

    /// Reads it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        if path.metadata().map_err(failed)?.len() > FILE_OCTETS_MAX {
            return Err(format!("{}: larger than 256 MiB", path.display()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut lines = text.lines().enumerate();
        let wrong = |line: usize, cause: &str| format!("{}:{}: {cause}", path.display(), line + 1);
        let (_, first) = lines.next().ok_or_else(|| wrong(0, "empty: a trace begins with a header"))?;
        let header: Header =
            serde_json::from_str(first).map_err(|error| wrong(0, &format!("no header of a trace: {error}")))?;
        if header.trace != FORM {
            return Err(wrong(0, &format!("a trace of form {}, this release reads form {FORM}", header.trace)));
        }
        let entry =
            |(at, line): (usize, &str)| serde_json::from_str(line).map_err(|error| wrong(at, &error.to_string()));
        Ok(Self { header, entries: lines.map(entry).collect::<Result<_, _>>()? })
    }

    /// The job that it came from, with another file perhaps.
    pub fn job(&self, plugin: Option<PathBuf>) -> Job {
        Job {
            task: Task::Serve,
            file: plugin.unwrap_or_else(|| self.header.file.clone()),
            mech: self.header.mech.clone(),
            settings: self.header.settings.clone(),
            vectors: None,
            budget_ms: 0,
            seed: 0,
            exchanges: 0,
        }
    }
}

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Exchanges.
    pub exchanges: usize,
    /// Steps.
    pub steps: usize,
    /// The first difference.
    pub difference: Option<String>,
}

/// Runs a trace again in a sandboxed child and compares every octet.
pub fn replay(program: &PathBuf, trace: &Trace, plugin: Option<PathBuf>) -> Result<Replayed, String> {
    replay_in(&mut Served::start(program, &trace.job(plugin))?, trace)
}

/// The same wherever the steps are made.
pub fn replay_in(served: &mut impl Stepper, trace: &Trace) -> Result<Replayed, String> {
    let mut replayed = Replayed { exchanges: 0, steps: 0, difference: None };
    let mut facts = None;
    for (at, entry) in trace.entries.iter().enumerate() {
        // The header is line 1.
        let line = at + 2;
        let found = match (entry, &facts) {
            (Entry::Begin(connection), _) => {
                replayed.exchanges += 1;
                if facts.replace(connection.clone()).is_some() {
                    served.finish().map_err(|fault| format!("{}: {}", fault.rule, fault.text))?;
                }
                served.begin().map_err(|fault| format!("{}: {}", fault.rule, fault.text))?;
                continue;
            }
            (Entry::Step(moment, _), Some(facts)) => served.step(facts, moment),
            (Entry::Step(..), None) => return Err(format!("line {line}: a step before any exchange")),
        };
        let Entry::Step(_, expected) = entry else { continue };
        replayed.steps += 1;
        let difference = match found {
            Ok(found) if found == *expected => continue,
            Ok(found) => format!("recorded {expected:?}\n            now {found:?}"),
            Err(fault) => format!("recorded {expected:?}\n            now {}: {}", fault.rule, fault.text),
        };
        replayed.difference =
            Some(format!("line {line}, step {} of exchange {}: {difference}", replayed.steps, replayed.exchanges));
        return Ok(replayed);
    }
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Octets};

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let moment = Moment { event: Event::Start(Some(Octets(vec![0, 255]))), entropy: Octets(vec![7; 64]) };
        let answer = Answer { action: 3, arg: 2, ..Answer::default() };
        let header = Header {
            trace: 1,
            file: "x.so".into(),
            sha256: "00".into(),
            mech: "X-A".into(),
            settings: Some(r#"{"a":1}"#.into()),
        };
        let trace = Trace { header, entries: vec![Entry::Begin(Facts::default()), Entry::Step(moment, answer)] };
        trace.write(&path).unwrap();
        assert_eq!(Trace::read(&path).unwrap(), trace);
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for (text, why) in [("", "begins with a header"), ("{}", ":1: no header"), ("{\"trace\":1}", ":1: no header")] {
            std::fs::write(&path, text).unwrap();
            assert!(Trace::read(&path).unwrap_err().contains(why), "{text}");
        }
        let text = format!("{}\nnonsense\n", serde_json::to_string(&trace.header).unwrap());
        std::fs::write(&path, text).unwrap();
        assert!(Trace::read(&path).unwrap_err().contains(":2: "));
    }
}
