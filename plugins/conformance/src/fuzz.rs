//! `plugin fuzz`: random exchanges, random outcomes, damaged keys; the same seed gives the same ones. What must hold:
//! the same answers twice (M1), only its own memory (M2), no success without a proof (P3) or with something altered
//! (P5), and no INTERNAL that the host is not to blame for (P4).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::job::{Job, Line, Task};
use crate::process::{explain, start};
use crate::rules::{Finding, Verdict};

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Fuzzed {
    /// Exchanges tried, to the last thousand when it ended early.
    pub exchanges: u64,
    /// The first broken rule.
    pub finding: Option<Finding>,
}

/// Fuzzes one mechanism for `budget_ms`, or for so many exchanges as the job says.
pub fn fuzz(program: &PathBuf, job: &Job, hear: &mut dyn FnMut(u64)) -> Result<Fuzzed, String> {
    let job = Job { task: Task::Fuzz, ..job.clone() };
    let mut fuzzed = Fuzzed::default();
    let deadline = Instant::now() + Duration::from_millis(job.budget_ms) + PATIENCE;
    let mut ready = false;
    let ended = start(program, &job)?.listen(deadline, &mut |line| match line {
        Line::Progress(count) => {
            ready = true;
            fuzzed.exchanges = count;
            hear(count);
        }
        Line::Finding(finding) if finding.verdict == Verdict::Fail && fuzzed.finding.is_none() => {
            fuzzed.finding = Some(finding);
        }
        _ => {}
    });
    if let Some((rule, text)) = explain(Task::Fuzz, &ended) {
        if !ready && text.contains("exit status: 1") {
            return Err(format!(
                "{}: {} is not in it, or it cannot be loaded; `plugin check` tells more",
                job.file.display(),
                job.mech
            ));
        }
        let text = format!("{text} (again: --seed {} --exchanges {})", job.seed, fuzzed.exchanges + 1000);
        fuzzed.finding = Some(Finding { rule: rule.into(), mech: job.mech.clone(), verdict: Verdict::Fail, text });
    }
    Ok(fuzzed)
}

/// Beyond the budget: loading, exploring, and the last exchange.
const PATIENCE: Duration = Duration::from_secs(5);
