//! The table, the plot and the JSON of a run.

use std::fmt::Write as _;
use std::path::Path;

use portreeve_load::bars::{bars, number};
use portreeve_load::html::{escape, head};
use portreeve_load::machine::{self, Machine};
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::{Measured, Sample, WORKS};

/// Medians of the rounds.
struct Medians {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_us: f64,
    errors: u64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

fn medians(samples: &[Sample]) -> Option<Medians> {
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let errors = samples.iter().map(|sample| sample.errors).sum();
    // Where most failed there is nothing to be compared.
    (!samples.is_empty() && samples.iter().all(|sample| sample.rate > 0.0)).then(|| Medians {
        rate: of(|sample| sample.rate),
        p50_ms: of(|sample| sample.p50_ms),
        p99_ms: of(|sample| sample.p99_ms),
        cpu_us: of(|sample| sample.cpu_us),
        errors,
    })
}

/// Writes all three and prints the table.
pub fn write(
    out: &Path,
    disk: &Disk,
    measured: &[Measured],
    absent: &[(String, String)],
    rounds: usize,
) -> Result<(), String> {
    let date = machine::date(machine::unix_seconds());
    let machine = Machine::this();
    let command = machine::command().join(" ");
    let text = markdown(&date, &command, &machine, disk, measured, absent, rounds);
    print!("{text}");
    let page = page(&date, &command, &machine, disk, measured, absent, rounds);
    let value = value(&date, &command, &machine, disk, measured, absent, rounds);
    std::fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
    for (ending, content) in [("md", text), ("html", page), ("json", format!("{value:#}\n"))] {
        let path = out.join(format!("{date}-peers.{ending}"));
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

const WHAT: &str = "Processor time is that of all processes of the server, also of those that have ended, per session or message, the \
                    kernel's work for them included. Rates are those of one core for the server and one for the load. \
                    Latency of a message is from the end of its data to its 250; of a session, from connect to its end.";
const NOT: &str = "What it does not show: other disks, many cores, networks, large messages, filters, or servers that were tuned. \
                   A server that keeps less on disk before its 250 does less; see its line. Passwords are checked \
                   differently, too.";

fn markdown(
    date: &str,
    command: &str,
    machine: &Machine,
    disk: &Disk,
    measured: &[Measured],
    absent: &[(String, String)],
    rounds: usize,
) -> String {
    let mut to = format!(
        "# Portreeve beside other servers\n\n- date: {date}\n- command: `{command}`\n- machine: {}, {} cores, {}, kernel {}\n\
         - load average at the end: {}\n- disk: {}, 4 KiB appended and synced in {} µs\n\n{WHAT} Medians of {rounds} rounds in turn.\n",
        machine.cpu, machine.cores, machine.memory, machine.kernel, machine.load, disk.kind, disk.sync_us,
    );
    for (at, work) in WORKS.iter().enumerate() {
        let _ = write!(
            to,
            "\n## {}: {}\n\n| server | {}s/s | p50 ms | p99 ms | processor µs each | beside Portreeve | errors |\n\
             |---|---|---|---|---|---|---|\n",
            work.name, work.what, work.of
        );
        let ours = ours(measured, at);
        for peer in measured {
            let Some(found) = peer.samples.get(at).and_then(|samples| medians(samples)) else {
                let why = peer.samples.get(at).and_then(|samples| samples.first());
                let why = why.map_or("", |sample| sample.first_error.as_str());
                let _ = writeln!(to, "| {} | not measured: {} | | | | | |", peer.name, why.replace('|', "/"));
                continue;
            };
            let ratio = ours.map_or("-".to_owned(), |ours| format!("{:.2}×", found.cpu_us / ours));
            let _ = writeln!(
                to,
                "| {} | {} | {:.3} | {:.3} | {} | {ratio} | {} |",
                peer.name,
                number(found.rate),
                found.p50_ms,
                found.p99_ms,
                number(found.cpu_us),
                found.errors
            );
        }
    }
    to.push_str(
        "\n## What 250 means, and what was behind it\n\n| server | on disk before 250, as documented | syncs per message, counted | \
         then | passwords | processor time from |\n|---|---|---|---|---|---|\n",
    );
    for peer in measured {
        let syncs = peer.syncs.as_ref().map_or_else(|why| format!("not counted: {why}"), |syncs| syncs.words());
        let _ = writeln!(
            to,
            "| {} | {} | {syncs} | {} | {} | {} |",
            peer.name, peer.durable, peer.then, peer.password, peer.how
        );
    }
    for (name, why) in absent {
        let _ = writeln!(to, "\nNot measured: {name}: {}", why.replace('\n', " "));
    }
    let _ =
        writeln!(to, "\nSyncs are counted with one connection at a time: where several wait, one may serve all. {NOT}");
    for (warning, who) in warnings(measured) {
        let _ = writeln!(to, "\nWarning ({who}): {warning}");
    }
    to
}

/// Processor time of ours.
fn ours(measured: &[Measured], at: usize) -> Option<f64> {
    let ours = measured.iter().find(|peer| peer.key == "portreeve")?;
    medians(ours.samples.get(at)?).map(|medians| medians.cpu_us)
}

/// What the load tool doubted, and at whom; each kind once.
fn warnings(measured: &[Measured]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for peer in measured {
        for (work, samples) in WORKS.iter().zip(&peer.samples) {
            for warning in samples.iter().flat_map(|sample| &sample.warnings) {
                let kind: String = warning.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default().to_owned();
                let who = format!("{}, {}", peer.key, work.name);
                match found.iter_mut().find(|(known, _)| known.starts_with(&kind)) {
                    Some((_, whom)) if !whom.contains(&who) => *whom += &format!("; {who}"),
                    Some(_) => {}
                    None => found.push((warning.clone(), who)),
                }
            }
        }
    }
    found
}

fn page(
    date: &str,
    command: &str,
    machine: &Machine,
    disk: &Disk,
    measured: &[Measured],
    absent: &[(String, String)],
    rounds: usize,
) -> String {
    let mut to = head(&format!("Portreeve beside other servers, {date}"));
    let _ = write!(
        to,
        "<h1>Portreeve beside other servers</h1><p class=\"sub\">{date} · {} cores, {}, kernel {} · disk {}, 4 KiB appended and synced in \
         {} µs · medians of {rounds} rounds</p><p>{WHAT}</p>",
        machine.cores,
        escape(&machine.cpu),
        escape(&machine.kernel),
        escape(&disk.kind),
        disk.sync_us,
    );
    for (at, work) in WORKS.iter().enumerate() {
        let _ = write!(to, "<h2>{}: {}</h2><div class=\"plots\">", escape(work.name), escape(work.what));
        let values = |value: fn(&Medians) -> f64| -> Vec<(String, Option<f64>)> {
            let of = |peer: &Measured| peer.samples.get(at).and_then(|samples| medians(samples)).map(|m| value(&m));
            let mut rows: Vec<_> = measured.iter().map(|peer| (peer.name.clone(), of(peer))).collect();
            rows.extend(absent.iter().map(|(name, _)| (name.clone(), None)));
            rows
        };
        to.push_str(&bars(&format!("Processor time per {}", work.of), "µs", &values(|m| m.cpu_us)));
        let what = if work.alone { "p50, one at a time".to_owned() } else { format!("{}s per second", work.of) };
        let second = if work.alone { values(|m| m.p50_ms) } else { values(|m| m.rate) };
        to.push_str(&bars(&what, if work.alone { "ms" } else { "/s" }, &second));
        to.push_str("</div>");
    }
    to.push_str("<h2>What 250 means, and what was behind it</h2><table><tr><th>server</th><th>on disk before 250, as documented</th><th>syncs per message, counted</th><th>then</th><th>passwords</th></tr>");
    for peer in measured {
        let syncs = peer.syncs.as_ref().map_or_else(|why| format!("not counted: {why}"), |syncs| syncs.words());
        let cells = [peer.name.as_str(), peer.durable, &syncs, peer.then, peer.password];
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = write!(to, "<tr>{cells}</tr>");
    }
    to.push_str("</table>");
    for (name, why) in absent {
        let _ = write!(to, "<p class=\"warning\">Not measured: {}: {}</p>", escape(name), escape(why));
    }
    for (warning, who) in warnings(measured) {
        let _ = write!(to, "<p class=\"warning\">{}: {}</p>", escape(&who), escape(&warning));
    }
    let _ = writeln!(to, "<p>{NOT}</p><pre>{}</pre></main></body></html>", escape(command));
    to
}

fn value(
    date: &str,
    command: &str,
    machine: &Machine,
    disk: &Disk,
    measured: &[Measured],
    absent: &[(String, String)],
    rounds: usize,
) -> Value {
    let sample = |sample: &Sample| {
        json!({
            "per_second": sample.rate, "p50_ms": sample.p50_ms, "p99_ms": sample.p99_ms, "cpu_us": sample.cpu_us,
            "errors": sample.errors, "first_error": sample.first_error, "warnings": sample.warnings,
        })
    };
    let peers: Vec<Value> = measured
        .iter()
        .map(|peer| {
            let works: serde_json::Map<String, Value> = WORKS
                .iter()
                .zip(&peer.samples)
                .map(|(work, samples)| (work.name.to_owned(), samples.iter().map(sample).collect()))
                .collect();
            let syncs = match &peer.syncs {
                Ok(syncs) => json!({ "messages": syncs.messages, "calls": syncs.calls, "each": syncs.each() }),
                Err(why) => json!({ "not_counted": why }),
            };
            json!({
                "key": peer.key, "name": peer.name, "durable": peer.durable, "then": peer.then, "password": peer.password,
                "cpu_from": peer.how, "syncs": syncs, "samples": works,
            })
        })
        .collect();
    let absent: Vec<Value> = absent.iter().map(|(name, why)| json!({ "key": name, "why": why })).collect();
    json!({
        "version": 1, "date": date, "command": command, "machine": machine, "rounds": rounds,
        "disk": { "kind": disk.kind, "sync_us": disk.sync_us },
        "works": WORKS.iter().map(|work| json!({ "name": work.name, "what": work.what, "of": work.of })).collect::<Vec<_>>(),
        "peers": peers, "not_measured": absent,
    })
}
