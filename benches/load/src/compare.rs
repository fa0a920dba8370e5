//! Two results beside each other, with ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::result::Report;

/// The table of `a` and `b`.
pub fn table(names: [&str; 2], a: &Report, b: &Report) -> String {
    let (rows_a, rows_b) = (rows(a), rows(b));
    let mut to = String::new();
    let _ = writeln!(to, "a = {}  ({}, {})", names[0], a.time, a.machine.cpu);
    let _ = writeln!(to, "b = {}  ({}, {})", names[1], b.time, b.machine.cpu);
    if a.machine.cpu != b.machine.cpu || a.machine.cores != b.machine.cores || a.machine.kernel != b.machine.kernel {
        let _ = writeln!(to, "warning: measured on different machines or kernels");
    }
    let plan = |report: &Report| serde_json::to_value(&report.plan).map(scrub).ok();
    if plan(a) != plan(b) {
        let _ = writeln!(to, "warning: what was done differs");
    }
    for (name, report) in [("a", a), ("b", b)] {
        for warning in &report.warnings {
            let _ = writeln!(to, "warning: {name}: {warning}");
        }
    }
    let _ = writeln!(to, "\n{:<44}{:>14}{:>14}{:>9}", "", "a", "b", "b/a");
    let by_name: BTreeMap<&str, f64> = rows_b.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for (name, value) in &rows_a {
        let Some(other) = by_name.get(name.as_str()) else {
            let _ = writeln!(to, "{name:<44}{:>14}{:>14}", number(*value), "-");
            continue;
        };
        let ratio = if *value == 0.0 { "-".to_owned() } else { format!("{:.2}×", other / value) };
        let _ = writeln!(to, "{name:<44}{:>14}{:>14}{ratio:>9}", number(*value), number(*other));
    }
    for (name, value) in &rows_b {
        if !rows_a.iter().any(|(known, _)| known == name) {
            let _ = writeln!(to, "{name:<44}{:>14}{:>14}", "-", number(*value));
        }
    }
    to
}

/// Addresses and files may differ, what is done may not.
fn scrub(mut plan: serde_json::Value) -> serde_json::Value {
    if let Some(plan) = plan.as_object_mut() {
        plan.remove("target");
        for scenario in plan.get_mut("scenario").and_then(|s| s.as_array_mut()).into_iter().flatten() {
            if let Some(scenario) = scenario.as_object_mut() {
                scenario.retain(|key, _| !matches!(key.as_str(), "target" | "password_file" | "user" | "to" | "from"));
            }
        }
    }
    plan
}

fn rows(report: &Report) -> Vec<(String, f64)> {
    let seconds = report.seconds.max(1e-9);
    let mut rows = vec![
        ("sessions per second".to_owned(), report.connections as f64 / seconds),
        ("messages per second".to_owned(), report.messages as f64 / seconds),
        ("sessions that failed".to_owned(), report.failed as f64),
        ("idle sessions held".to_owned(), report.held as f64),
    ];
    if let Some(server) = &report.server {
        rows.push(("server processor time each, µs".to_owned(), server.cpu_us_each));
        rows.push(("server context switches".to_owned(), server.context_switches as f64));
        rows.extend(server.memory_octets_each.map(|each| ("server memory per idle session, octets".to_owned(), each)));
        rows.extend(server.kernel_octets_each.map(|each| ("kernel memory per idle session, octets".to_owned(), each)));
    }
    for scenario in &report.scenarios {
        for (measure, latency) in &scenario.latency_us {
            let p = latency.percentiles;
            for (name, value) in [("p50", p.p50), ("p90", p.p90), ("p99", p.p99), ("p99.9", p.p999), ("max", p.max)] {
                rows.push((format!("{} {measure} {name}, µs", scenario.name), value as f64));
            }
        }
    }
    for error in &report.errors {
        rows.push((format!("error {}: {}: {}", error.scenario, error.stage, error.code), error.count as f64));
    }
    rows.retain(|(name, value)| *value != 0.0 || name.starts_with("sessions"));
    rows
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 || value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Latency, ScenarioReport};
    use crate::tick::histogram;

    #[test]
    fn ratios() {
        let report = |micros: u64, sessions: u64| {
            let mut histogram = histogram();
            histogram.record(micros).unwrap();
            let latency_us = BTreeMap::from([("session".to_owned(), Latency::of(&histogram))]);
            let scenario = ScenarioReport { name: "login".to_owned(), latency_us, ..ScenarioReport::default() };
            Report { connections: sessions, seconds: 2.0, scenarios: vec![scenario], ..Report::default() }
        };
        let table = table(["x.json", "y.json"], &report(100, 10), &report(150, 40));
        assert!(table.contains("4.00×") && table.contains("1.50×"), "{table}");
        assert!(table.lines().any(|line| line.starts_with("login session p99") && line.contains("150")), "{table}");
    }
}
