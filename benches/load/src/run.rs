//! The run: keeps so many connections going, counts what happens, reads the server's cost.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

use crate::connection::{self, Connection, Outcome};
use crate::script::Script;
use portreeve_load::process::{self, Usage};

pub struct Plan {
    pub target: SocketAddr,
    pub script: Script,
    pub count: u64,
    pub concurrency: usize,
    /// Source addresses, taken in turn.
    pub sources: Vec<IpAddr>,
    /// Hold all connections for so long when all have come to the end of the script.
    pub hold: Option<Duration>,
    pub pid: Option<u32>,
    pub time_max: Duration,
    /// Messages that a connection delivers.
    pub messages_each: u64,
}

pub struct Report {
    done: u64,
    messages: u64,
    errors: BTreeMap<String, u64>,
    elapsed: Duration,
    own_cpu: Duration,
    /// Microseconds from connect to the end of the script.
    latency: Histogram<u64>,
    server: Option<(Usage, Usage)>,
    held: usize,
    cut_short: bool,
    /// Of this program, all connections.
    writes: u64,
    octets_sent: u64,
    /// TLS version, suite and key exchange of the last connection.
    tls: Option<String>,
}

pub fn run(plan: Plan) -> Result<Report, String> {
    let text = |error: std::io::Error| error.to_string();
    let tls = connection::client_config()?;
    let mut poll = Poll::new().map_err(text)?;
    let mut events = Events::with_capacity(1024);
    let mut slots: Vec<Option<Connection>> = (0..plan.concurrency.min(plan.count as usize)).map(|_| None).collect();
    let mut report = Report {
        done: 0,
        messages: 0,
        errors: BTreeMap::new(),
        elapsed: Duration::ZERO,
        own_cpu: Duration::ZERO,
        latency: Histogram::new_with_bounds(1, 600_000_000, 3).map_err(|error| error.to_string())?,
        server: None,
        held: 0,
        cut_short: false,
        writes: 0,
        octets_sent: 0,
        tls: None,
    };
    let before = plan.pid.map(process::usage);
    let own_before = process::usage(std::process::id()).cpu;
    let start = Instant::now();
    let progress = std::io::stderr().is_terminal();
    let mut told = start;
    let mut begun = 0;
    let mut failed = 0;
    let mut free: Vec<usize> = (0..slots.len()).rev().collect();
    // An idle crowd comes in gently, so that the accept queue never overflows.
    let burst = if plan.hold.is_some() { 256 } else { usize::MAX };
    while report.done + failed < plan.count {
        for _ in 0..burst {
            if begun >= plan.count {
                break;
            }
            let Some(slot) = free.pop() else { break };
            let source = plan.sources.get(begun as usize % plan.sources.len().max(1)).copied();
            begun += 1;
            let opened = Connection::open(plan.target, source, &plan.script, &tls).and_then(|mut connection| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut connection.stream, Token(slot), interest)?;
                Ok(connection)
            });
            match opened {
                Ok(connection) => slots[slot] = Some(connection),
                Err(error) => {
                    failed += 1;
                    *report.errors.entry(format!("connect: {}", error.kind())).or_default() += 1;
                    free.push(slot);
                }
            }
        }
        poll.poll(&mut events, Some(Duration::from_millis(200))).or_else(interrupted).map_err(text)?;
        for event in &events {
            let Token(slot) = event.token();
            let Some(connection) = &mut slots[slot] else { continue };
            match connection.advance(&plan.script, &tls) {
                Ok(Outcome::Going) => continue,
                Ok(Outcome::Done) => {
                    report.done += 1;
                    report.messages += plan.messages_each;
                    report.writes += connection.writes;
                    report.octets_sent += connection.octets_sent;
                    if report.done == 1 {
                        report.tls = connection.tls_words();
                    }
                    let micros = connection.began.elapsed().as_micros() as u64;
                    report.latency.saturating_record(micros);
                    if plan.hold.is_some() {
                        continue;
                    }
                }
                Err(trouble) => {
                    failed += 1;
                    *report.errors.entry(format!("{}: {}", trouble.stage, trouble.what)).or_default() += 1;
                }
            }
            // Dropping closes; the registration goes with the descriptor.
            slots[slot] = None;
            free.push(slot);
        }
        if start.elapsed() > plan.time_max {
            report.cut_short = true;
            break;
        }
        if progress && told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            eprint!("\r{} of {}, {} failed ", report.done, plan.count, failed);
        }
    }
    if progress {
        eprintln!("\r{} of {}, {} failed ", report.done, plan.count, failed);
    }
    report.elapsed = start.elapsed();
    report.held = slots.iter().flatten().count();
    report.own_cpu = process::usage(std::process::id()).cpu - own_before;
    if let Some(hold) = plan.hold {
        // The server settles, is measured, and the crowd stays.
        std::thread::sleep(Duration::from_millis(500));
        report.server = plan.pid.zip(before).map(|(pid, before)| (before, process::usage(pid)));
        eprintln!("holding {} connections", report.held);
        std::thread::sleep(hold);
        // Whoever was thrown out while idle was not held.
        poll.poll(&mut events, Some(Duration::ZERO)).or_else(interrupted).map_err(text)?;
        let lost = events.iter().filter(|event| event.is_read_closed()).count();
        if lost > 0 {
            *report.errors.entry("idle: closed by the server".to_owned()).or_default() += lost as u64;
        }
    } else {
        report.server = plan.pid.zip(before).map(|(pid, before)| (before, process::settled(pid)));
    }
    Ok(report)
}

fn interrupted(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && !self.cut_short
    }

    /// Server processor microseconds per connection, or per message where there are messages.
    fn cpu_each(&self) -> Option<f64> {
        let (before, after) = self.server?;
        let each = if self.messages > 0 { self.messages } else { self.done };
        Some((after.cpu - before.cpu).as_secs_f64() * 1e6 / each.max(1) as f64)
    }

    pub fn text(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let mut text =
            format!("connections  {} in {seconds:.2} s, {:.0}/s\n", self.done, self.done as f64 / seconds.max(1e-9));
        if self.messages > 0 {
            text += &format!("messages     {}, {:.0}/s\n", self.messages, self.messages as f64 / seconds.max(1e-9));
        }
        let at = |q| self.latency.value_at_quantile(q) as f64 / 1000.0;
        text += &format!(
            "latency ms   p50 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}\n",
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
        if let (Some(cpu), Some((before, after))) = (self.cpu_each(), self.server) {
            let of = if self.messages > 0 { "messages" } else { "connections" };
            text += &format!("server CPU   {cpu:.2} ms per 1,000 {of}, {} processes\n", after.processes);
            let grown = after.anonymous_octets as f64 - before.anonymous_octets as f64;
            text += &format!("server memory +{:.1} KiB", grown / 1024.0);
            if self.held > 0 {
                text += &format!(", {:.0} octets per held connection", grown / self.held as f64);
            }
            text.push('\n');
        }
        let own = self.own_cpu.as_secs_f64() / seconds.max(1e-9);
        text += &format!("own CPU      {:.0} % of one processor\n", own * 100.0);
        if own > 0.9 {
            text += "warning: this program was short of processor time; latency and rate are its own limit\n";
        }
        for (what, times) in &self.errors {
            text += &format!("error        {times} × {what}\n");
        }
        if self.cut_short {
            text += "cut short by --time-max\n";
        }
        text
    }

    pub fn json(&self) -> serde_json::Value {
        let at = |q| self.latency.value_at_quantile(q);
        json!({
            "version": 1,
            "command": std::env::args().collect::<Vec<_>>(),
            "connections": self.done,
            "messages": self.messages,
            "seconds": self.elapsed.as_secs_f64(),
            "latency_us": { "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": at(1.0) },
            "held": self.held,
            "server": self.server.map(|(before, after)| json!({
                "processes": after.processes,
                "cpu_us_each": self.cpu_each(),
                "memory_octets": after.anonymous_octets as i64 - before.anonymous_octets as i64,
                "context_switches": after.context_switches - before.context_switches,
            })),
            "client": { "writes": self.writes, "octets_sent": self.octets_sent },
            "tls": self.tls,
            "own_cpu_seconds": self.own_cpu.as_secs_f64(),
            "errors": self.errors,
            "cut_short": self.cut_short,
        })
    }
}
