//! Why a number may not mean what it seems to: the load program, not the server, may be what was measured.

use crate::plan::Plan;
use crate::result::Report;

/// A load process that uses more of its processor than this may be what was measured.
const BUSY_MAX: f64 = 0.9;
/// Share of the time that load processes may wait for a processor.
const DELAYED_MAX: f64 = 0.1;
/// How late an open loop may be at p99, of the p99 that it measured.
const LATE_MAX: f64 = 0.25;
/// Lateness that is nobody's concern, microseconds.
const LATE_US_MIN: u64 = 1000;
/// Share of the sessions of an open loop that must have begun.
const BEGUN_MIN: f64 = 0.95;

/// Error code of a load process that has no descriptor left.
pub const NO_DESCRIPTOR: &str = "no descriptor";
/// Error code of a source address that has no port left, or that is not ours.
pub const NO_PORT: &str = "no address";

/// Sentences that stand beside the result.
pub fn of(plan: &Plan, report: &Report) -> Vec<String> {
    let client = &report.client;
    let mut doubts = Vec::new();
    if client.cpu_share_max > BUSY_MAX {
        doubts.push(format!(
            "a load process used {:.0} % of its processor: rate and latency are its own limit (use more --processes, or \
             less load)",
            client.cpu_share_max * 100.0
        ));
    }
    if client.delayed_share > DELAYED_MAX {
        doubts.push(format!(
            "load processes waited for a processor {:.0} % of the time: others on this machine, perhaps the server itself, \
             are in the latencies",
            client.delayed_share * 100.0
        ));
    }
    if let Some(rate) = plan.rate {
        let (late, p99) = (client.late_us.p99, report.latency_us.p99);
        if late as f64 > LATE_MAX * p99 as f64 && late > LATE_US_MIN {
            doubts.push(format!(
                "sessions began up to {:.1} ms (p99) after their intended start: at the limit of --concurrency, or this \
                 program was too slow",
                late as f64 / 1000.0
            ));
        }
        // The last of them may take longer than the duration in which they begin.
        let wanted = rate * plan.duration.map_or(report.seconds, |duration| duration.min(report.seconds));
        let begun = report.connections + report.failed;
        if plan.count.is_none() && (begun as f64) < BEGUN_MIN * wanted {
            doubts.push(format!("only {begun} sessions of {wanted:.0} were begun: the rate was not reached"));
        }
    }
    let has = |code: &str| report.errors.iter().any(|error| error.code == code);
    if has(NO_DESCRIPTOR) {
        doubts.push("a load process ran out of descriptors: use more --processes, or raise `ulimit -n`".to_owned());
    }
    if has(NO_PORT) {
        doubts.push("a source address has no port left, or is none of this machine: use more --sources".to_owned());
    }
    for error in report.errors.iter().filter(|error| error.code == "connection refused") {
        // What a name came to is not what everybody expects: localhost may be ::1.
        let scenario = plan.scenarios.iter().find(|scenario| scenario.name == error.scenario);
        let target = scenario.and_then(|scenario| scenario.target.as_deref()).unwrap_or(&plan.target);
        doubts
            .push(format!("{}: nobody listens at {target}: is the server there, and is it --target?", error.scenario));
    }
    if report.latency_us == Default::default() && plan.has_mix() {
        doubts.push("no session ended as it should: there is nothing to be measured".to_owned());
    } else if report.failed > 0 {
        doubts.push("sessions failed: latencies are those of the others".to_owned());
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Kind, Scenario};

    #[test]
    fn each_doubt_has_its_cause_and_none_comes_without() {
        let open = Plan { rate: Some(100.0), scenarios: vec![Scenario::new(Kind::Connect)], ..Plan::default() };
        let mut good = Report { connections: 1000, seconds: 10.0, ..Report::default() };
        (good.latency_us.count, good.latency_us.p50, good.latency_us.p99) = (1000, 2_000, 10_000);
        (good.client.cpu_share_max, good.client.delayed_share, good.client.late_us.p99) = (0.5, 0.02, 1_500);
        assert_eq!(of(&open, &good), Vec::<String>::new());
        type Spoil = fn(&mut Report);
        // The last session took long: nothing is missing for that.
        let bounded = Plan { duration: Some(10.0), ..open.clone() };
        assert_eq!(of(&bounded, &Report { seconds: 15.0, ..good.clone() }), Vec::<String>::new());
        let trouble = |code: &str| crate::tick::Troubles { code: code.to_owned(), ..Default::default() };
        let short = Report { errors: vec![trouble(NO_DESCRIPTOR), trouble(NO_PORT)], ..good.clone() };
        assert_eq!(of(&open, &short).len(), 2);
        let cases: [(Spoil, &str); 6] = [
            (|report| report.client.cpu_share_max = 0.97, "97 % of its processor"),
            (|report| report.client.delayed_share = 0.4, "waited for a processor 40 %"),
            (|report| report.client.late_us.p99 = 3_000, "3.0 ms (p99) after their intended start"),
            (|report| report.connections = 900, "only 900 sessions of 1000"),
            (|report| report.failed = 3, "sessions failed"),
            (|report| report.latency_us = Default::default(), "nothing to be measured"),
        ];
        for (spoil, expect) in cases {
            let mut report = good.clone();
            spoil(&mut report);
            let doubts = of(&open, &report);
            assert!(doubts.iter().any(|doubt| doubt.contains(expect)), "{expect}: {doubts:?}");
        }
    }
}
