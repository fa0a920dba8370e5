//! The numbers as text: Prometheus exposition format, and JSON for the program's own `status`.

use std::collections::BTreeMap;
use std::fmt::Write;

use link::Role;
use serde_json::{Map, Value, json};

use crate::board::{BUCKETS, Board, Slot, State, Summary, bucket_top};
use crate::table::{Counter, Gauge, Histogram, Row};

/// Prometheus text (version 0.0.4). Numbers are added up per role; a row is shown for its owner and for
/// every other role that has something.
pub fn exposition(board: &Board) -> String {
    let roles = by_role(board);
    let mut text = String::with_capacity(32 * 1024);
    let mut family = "";
    for &counter in Counter::ALL {
        let row = counter.row();
        head(&mut text, &mut family, row, "counter");
        for (&role, slots) in &roles {
            let sum = slots.iter().map(|slot| slot.counter(counter)).fold(0, u64::wrapping_add);
            if sum != 0 || role == row.owner {
                sample(&mut text, row, role, sum);
            }
        }
    }
    for &gauge in Gauge::ALL {
        let row = gauge.row();
        head(&mut text, &mut family, row, "gauge");
        for (&role, slots) in &roles {
            let sum = slots.iter().map(|slot| slot.gauge(gauge)).fold(0, i64::saturating_add);
            if sum != 0 || role == row.owner {
                sample(&mut text, row, role, sum);
            }
        }
    }
    for &histogram in Histogram::ALL {
        let row = histogram.row();
        head(&mut text, &mut family, row, "histogram");
        for (&role, slots) in &roles {
            let mut summary = Summary::default();
            slots.iter().for_each(|slot| summary.add(slot, histogram));
            if summary.count() != 0 || role == row.owner {
                buckets(&mut text, histogram, role, &summary);
            }
        }
    }
    text.push_str("# HELP portreeve_process_heartbeat_unix_seconds Last sign of life of each process.\n");
    text.push_str("# TYPE portreeve_process_heartbeat_unix_seconds gauge\n");
    for slot in board.each().filter(|slot| slot.state() == State::Alive) {
        let (Some(role), pid, seconds) = (slot.role(), slot.pid(), slot.heartbeat_ms() / 1000) else { continue };
        let _ = writeln!(text, "portreeve_process_heartbeat_unix_seconds{{role=\"{role}\",pid=\"{pid}\"}} {seconds}");
    }
    text
}

fn by_role(board: &Board) -> BTreeMap<Role, Vec<Slot>> {
    let mut roles: BTreeMap<Role, Vec<Slot>> = BTreeMap::new();
    for slot in board.each() {
        if let Some(role) = slot.role() {
            roles.entry(role).or_default().push(slot);
        }
    }
    roles
}

fn head(text: &mut String, family: &mut &'static str, row: &Row, kind: &str) {
    if *family != row.name {
        *family = row.name;
        let _ = writeln!(text, "# HELP portreeve_{} {}\n# TYPE portreeve_{} {kind}", row.name, row.help, row.name);
    }
}

fn sample(text: &mut String, row: &Row, role: Role, value: impl std::fmt::Display) {
    let comma = if row.label.is_empty() { "" } else { "," };
    let _ = writeln!(text, "portreeve_{}{{role=\"{role}\"{comma}{}}} {value}", row.name, row.label);
}

/// Every fourth bucket ends just below a power of two; those are the borders that are shown.
fn buckets(text: &mut String, histogram: Histogram, role: Role, summary: &Summary) {
    let (name, divisor) = (histogram.row().name, histogram.divisor());
    let mut below = 0;
    for (bucket, n) in summary.buckets.iter().enumerate() {
        below += n;
        if bucket % 4 == 3 && bucket + 1 < BUCKETS {
            let top = bucket_top(bucket) as f64 / divisor;
            let _ = writeln!(text, "portreeve_{name}_bucket{{role=\"{role}\",le=\"{top}\"}} {below}");
        }
    }
    let _ = writeln!(text, "portreeve_{name}_bucket{{role=\"{role}\",le=\"+Inf\"}} {below}");
    let _ = writeln!(text, "portreeve_{name}_sum{{role=\"{role}\"}} {}", summary.sum as f64 / divisor);
    let _ = writeln!(text, "portreeve_{name}_count{{role=\"{role}\"}} {below}");
}

/// All numbers as JSON: `totals` over all processes, and `processes` with what is theirs. Histograms in the
/// units of the pages (microseconds, octets).
pub fn snapshot(board: &Board) -> Value {
    let mut totals = Map::new();
    for &counter in Counter::ALL {
        totals.insert(key(counter.row()), json!(board.counter(counter)));
    }
    for &gauge in Gauge::ALL {
        totals.insert(key(gauge.row()), json!(board.gauge(gauge)));
    }
    for &histogram in Histogram::ALL {
        let summary = board.summary(histogram);
        let name = histogram.row().name.replace("_seconds", "_micros");
        let quantile = |share| json!(summary.quantile(share));
        totals.insert(
            name,
            json!({ "count": summary.count(), "sum": summary.sum,
                "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "max": quantile(1.0) }),
        );
    }
    let processes: Vec<Value> = board
        .each()
        .filter(|slot| slot.state() == State::Alive)
        .map(|slot| {
            let mut numbers = Map::new();
            for &counter in Counter::ALL.iter().filter(|&&counter| slot.counter(counter) != 0) {
                numbers.insert(key(counter.row()), json!(slot.counter(counter)));
            }
            for &gauge in Gauge::ALL.iter().filter(|&&gauge| slot.gauge(gauge) != 0) {
                numbers.insert(key(gauge.row()), json!(slot.gauge(gauge)));
            }
            json!({ "role": slot.role().map(Role::name), "pid": slot.pid(),
                "started_unix_ms": slot.started_ms(), "heartbeat_unix_ms": slot.heartbeat_ms(), "numbers": numbers })
        })
        .collect();
    json!({ "totals": totals, "processes": processes })
}

/// `replies_total` and label `class="2"` make `replies_total.2`.
fn key(row: &Row) -> String {
    match row.label.split('"').nth(1) {
        Some(value) => format!("{}.{value}", row.name),
        None => row.name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn board() -> Board {
        let board = Board::create(4).unwrap();
        for (index, commands) in [(0, 2), (1, 3)] {
            let slot = board.claim(index, Role::Worker, index as u32 + 10, 5000).unwrap();
            slot.add(Counter::Commands, commands);
            slot.add(Counter::Replies5, 1);
            slot.gauge_set(Gauge::Sessions, 7);
            slot.observe(Histogram::LoginMicros, 1500);
        }
        board.claim(2, Role::Directory, 12, 5000).unwrap().add(Counter::LinkBad, 1);
        board.retire(1);
        board
    }

    #[test]
    fn sums_per_role_and_one_head_per_family() {
        let text = exposition(&board());
        for line in [
            "portreeve_commands_total{role=\"worker\"} 5",
            "portreeve_replies_total{role=\"worker\",class=\"5\"} 2",
            "portreeve_replies_total{role=\"worker\",class=\"4\"} 0",
            "portreeve_sessions{role=\"worker\"} 7",
            "portreeve_link_bad_packets_total{role=\"directory\"} 1",
            "portreeve_login_seconds_count{role=\"worker\"} 2",
            "portreeve_login_seconds_sum{role=\"worker\"} 0.003",
            "portreeve_login_seconds_bucket{role=\"worker\",le=\"0.001023\"} 0",
            "portreeve_login_seconds_bucket{role=\"worker\",le=\"0.002047\"} 2",
            "portreeve_process_heartbeat_unix_seconds{role=\"directory\",pid=\"12\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("commands_total{role=\"directory\"}"));
        let heads: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        assert_eq!(heads.len(), heads.iter().collect::<HashSet<_>>().len());
    }

    #[test]
    fn every_line_follows_the_format() {
        let text = exposition(&board());
        let mut typed = HashSet::new();
        let mut samples = HashSet::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                typed.insert(head.split(' ').next().unwrap());
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
                let name = series.split('{').next().unwrap();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|end| name.strip_suffix(end))
                    .find(|family| typed.contains(family))
                    .unwrap_or(name);
                assert!(typed.contains(family), "{line} has no head before it");
                assert!(samples.insert(series), "{line} twice");
            }
        }
    }

    #[test]
    fn snapshot_names_every_number() {
        let value = snapshot(&board());
        assert_eq!(value["totals"]["commands_total"], 5);
        assert_eq!(value["totals"]["replies_total.5"], 2);
        assert_eq!(value["totals"]["login_micros"]["count"], 2);
        assert_eq!(value["processes"].as_array().unwrap().len(), 2);
        assert_eq!(value["processes"][0]["numbers"]["sessions"], 7);
    }
}
