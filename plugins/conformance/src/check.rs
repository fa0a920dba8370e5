//! `plugin check`: every rule, for every mechanism of a library.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::job::{Job, Line, Task};
use crate::process::{Ended, explain, start};
use crate::rules::{Finding, Verdict, rule};
use crate::world::Traits;

/// What to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that the children are, usually this one.
    pub program: PathBuf,
    /// The library.
    pub file: PathBuf,
    /// Only this mechanism.
    pub mech: Option<String>,
    /// Settings, JSON.
    pub settings: Option<String>,
    /// Sample exchanges, JSON.
    pub vectors: Option<String>,
    /// How long the repeated parts may take for each mechanism, seconds.
    pub seconds: f64,
    /// Chance.
    pub seed: u64,
}

/// One thing to tell.
#[derive(Clone, Debug)]
pub enum Told {
    /// About a rule.
    Finding(Finding),
    /// For people.
    Note(String),
}

impl Told {
    /// A line of JSON.
    pub fn to_json(&self) -> String {
        match self {
            Self::Note(text) => json!({"note": text}).to_string(),
            Self::Finding(Finding { rule: id, mech, verdict, text }) => {
                let mut line = json!({"rule": id, "mech": mech, "result": verdict, "text": text});
                if let (Some(rule), Some(object)) = (rule(id), line.as_object_mut()) {
                    object.insert("what".into(), rule.what.into());
                    if *verdict == Verdict::Fail {
                        object.insert("remedy".into(), rule.remedy.into());
                    }
                }
                line.to_string()
            }
        }
    }

    /// For people; what passed is told only when `all`.
    pub fn to_text(&self, all: bool) -> Option<String> {
        match self {
            Self::Note(text) => Some(format!("  note  {text}\n")),
            Self::Finding(Finding { rule: id, mech, verdict, text }) => {
                let what = rule(id).map_or("", |rule| rule.what);
                let mech = if mech.is_empty() { String::new() } else { format!(" {mech}") };
                match verdict {
                    Verdict::Pass if !all => None,
                    Verdict::Pass => Some(format!("  pass  {id}{mech}: {what}\n")),
                    Verdict::Skip => Some(format!("  skip  {id}{mech}: {text}\n")),
                    Verdict::Fail => {
                        let remedy = rule(id).map_or("", |rule| rule.remedy);
                        Some(format!("  FAIL  {id}{mech}: {text}\n        rule: {what}\n        mend: {remedy}\n"))
                    }
                }
            }
        }
    }
}

/// The end of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rules that hold.
    pub passed: usize,
    /// Rules that do not.
    pub failed: usize,
    /// Rules that do not apply or were not decided.
    pub skipped: usize,
}

struct Check<'a> {
    options: &'a Options,
    tell: &'a mut dyn FnMut(Told),
    summary: Summary,
}

/// Checks. An error means that it could not be done at all.
pub fn check(options: &Options, tell: &mut dyn FnMut(Told)) -> Result<Summary, String> {
    if !options.file.is_file() {
        return Err(format!("{}: no such file", options.file.display()));
    }
    let mut check = Check { options, tell, summary: Summary::default() };
    let mut mechanisms: Vec<Traits> = Vec::new();
    let broken = check.task(Task::Describe, "", &mut mechanisms)?;
    let wanted = |traits: &Traits| options.mech.as_ref().is_none_or(|mech| *mech == traits.name);
    let noted = plugin_host::inspect(&options.file).map(|found| found.note.backends).unwrap_or_default();
    let backends: Vec<String> =
        noted.into_keys().filter(|name| options.mech.as_ref().is_none_or(|mech| mech == name)).collect();
    if broken || (mechanisms.is_empty() && backends.is_empty()) {
        for task in [Task::Handshake].into_iter().chain(Task::EACH) {
            check.skip(task, "", "the descriptor must be good first");
        }
        return Ok(check.summary);
    }
    if !mechanisms.iter().any(wanted) && backends.is_empty() {
        let names: Vec<&str> = mechanisms.iter().map(|traits| traits.name.as_str()).collect();
        let name = options.mech.as_deref().unwrap_or_default();
        return Err(format!("{}: no mechanism {name}; it has {}", options.file.display(), names.join(", ")));
    }
    let refused = check.task(Task::Handshake, "", &mut vec![])?;
    for name in &backends {
        if refused {
            check.skip(Task::Backend, name, "the host does not load it");
        } else {
            check.task(Task::Backend, name, &mut vec![])?;
        }
    }
    for traits in mechanisms.iter().filter(|traits| wanted(traits)) {
        let (mut stopped, mut impure) = (false, false);
        for task in Task::EACH {
            // What does not survive being called, or cannot be configured, cannot be asked anything else; and who
            // answers differently each time does so beside others, too.
            if stopped || (impure && task == Task::Threads) {
                check.skip(task, &traits.name, "what failed above comes first");
                continue;
            }
            let broken = check.task(task, &traits.name, &mut vec![])?;
            stopped |= broken && matches!(task, Task::Settings | Task::Memory);
            impure |= broken && task == Task::Purity;
        }
    }
    Ok(check.summary)
}

impl Check<'_> {
    /// Runs one child; true when a rule was found broken.
    fn task(&mut self, task: Task, mech: &str, mechanisms: &mut Vec<Traits>) -> Result<bool, String> {
        let options = self.options;
        let budget = Duration::from_secs_f64(options.seconds.clamp(0.05, 3600.0) / 4.0);
        let job = Job {
            task,
            file: options.file.clone(),
            mech: mech.into(),
            settings: options.settings.clone(),
            vectors: options.vectors.clone(),
            budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
            seed: options.seed,
            exchanges: 0,
        };
        let mut found: Vec<Finding> = Vec::new();
        let mut notes = Vec::new();
        let ended = start(&options.program, &job)?.listen(Instant::now() + budget + PATIENCE, &mut |line| match line {
            Line::Finding(finding) => found.push(finding),
            Line::Note(note) => notes.push(note),
            Line::Library { mechanisms: all, .. } => *mechanisms = all,
            _ => {}
        });
        if let Ended::Silent(status) = &ended
            && status.code() == Some(1)
            && found.is_empty()
        {
            return Err("the check's own child failed: does this kernel allow seccomp filters and memfds?".into());
        }
        if let Some((rule, text)) = explain(task, &ended) {
            found.push(Finding { rule: rule.into(), mech: mech.into(), verdict: Verdict::Fail, text });
        }
        for rule in task.rules() {
            if !found.iter().any(|finding| finding.rule == *rule) {
                let text = "not decided: the check ended before".to_owned();
                found.push(Finding { rule: (*rule).into(), mech: mech.into(), verdict: Verdict::Skip, text });
            }
        }
        let broken = found.iter().any(|finding| finding.verdict == Verdict::Fail);
        notes.into_iter().for_each(|note| (self.tell)(Told::Note(note)));
        found.into_iter().for_each(|finding| self.tell(finding));
        Ok(broken)
    }

    fn skip(&mut self, task: Task, mech: &str, why: &str) {
        for rule in task.rules() {
            let text = format!("not tried: {why}");
            self.tell(Finding { rule: (*rule).into(), mech: mech.into(), verdict: Verdict::Skip, text });
        }
    }

    fn tell(&mut self, finding: Finding) {
        match finding.verdict {
            Verdict::Pass => self.summary.passed += 1,
            Verdict::Fail => self.summary.failed += 1,
            Verdict::Skip => self.summary.skipped += 1,
        }
        (self.tell)(Told::Finding(finding));
    }
}

/// Beyond the budget of the repeated parts: exploring, and whatever else is bounded by count.
const PATIENCE: Duration = Duration::from_secs(4);
