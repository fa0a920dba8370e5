//! The run: starts the load processes, adds up what they tell, watches the server, ends in time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::doubts;
use crate::live::Live;
use crate::machine::{self, Machine};
use crate::plan::{Kind, Plan};
use crate::process::{self, Usage, Watch};
use crate::result::{Moment, Report, Server, Sum, VERSION};
use crate::tick::Tick;

/// What is around a run.
pub struct Options {
    /// A process of the server.
    pub pid: Option<u32>,
    /// No progress on standard error.
    pub quiet: bool,
    /// The program to start as load process; the running one otherwise.
    pub program: Option<std::path::PathBuf>,
    /// Set from outside to end the run with what there is.
    pub stop: Arc<AtomicBool>,
}

/// A load process that says nothing for so long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Which load process, and what it told; `None`: it has ended.
type Told = (usize, Option<Tick>);

/// A load process; ended when dropped.
struct Loader {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    last: Tick,
    heard: Instant,
    ended: bool,
    cpu: Duration,
    wall: Duration,
    delayed: Duration,
    busiest: f64,
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stdin = None;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gathering,
    WarmUp,
    Measured,
}

struct Run<'a> {
    plan: &'a Plan,
    options: &'a Options,
    loaders: Vec<Loader>,
    ticks: Receiver<Told>,
    /// Everything; what was measured; the current second.
    sum: Sum,
    second: Sum,
    started: Instant,
    phase: Phase,
    phase_since: Instant,
    live: Live,
    timeline: Vec<Moment>,
    last_second: Instant,
    watch: Option<Watch>,
    last_usage: Option<Usage>,
    greeting: String,
}

/// Does what a checked plan says.
pub fn run(plan: &Plan, options: &Options) -> Result<Report, String> {
    let mut report = Report {
        version: VERSION,
        tool: format!("portreeve-load {}", env!("CARGO_PKG_VERSION")),
        command: machine::command(),
        time: machine::time(machine::unix_seconds()),
        machine: Machine::this(),
        plan: Some(plan.public()),
        ..Report::default()
    };
    let mut watch = options.pid.map(watch).transpose()?;
    // A server that has just done something else comes to rest first.
    let usage_before = watch.as_mut().map(Watch::settle);
    let kernel_before = process::kernel_octets();
    let (loaders, ticks) = start(plan, options)?;
    let now = Instant::now();
    let mut run = Run {
        plan,
        options,
        loaders,
        ticks,
        sum: Sum::new(plan.scenarios.len()),
        second: Sum::new(plan.scenarios.len()),
        started: now,
        phase: Phase::Gathering,
        phase_since: now,
        live: Live::new(options.quiet),
        timeline: Vec::new(),
        last_second: now,
        watch,
        last_usage: usage_before,
        greeting: String::new(),
    };

    // Idle sessions first: what is measured beside them is measured beside all of them.
    let time_max = || format!("after {} s (--time-max)", plan.time_max);
    let gathered = run.until(Duration::from_secs_f64(plan.time_max), &mut report, |run| {
        run.loaders.iter().all(|loader| loader.last.gathered || loader.ended)
    })?;
    if !gathered {
        report.cut_short.get_or_insert_with(time_max);
    }
    report.held = run.loaders.iter().map(|loader| loader.last.held).sum();
    let mut usage_idle = None;
    if plan.crowd() > 0 {
        report.gather_seconds = run.started.elapsed().as_secs_f64();
        usage_idle = run.watch.as_mut().map(Watch::settle);
        let grown = (process::kernel_octets() as f64 - kernel_before as f64) / report.held.max(1) as f64;
        let each = |usage: Usage, before: Usage| {
            (usage.anonymous_octets as f64 - before.anonymous_octets as f64) / report.held.max(1) as f64
        };
        report.server = usage_idle.zip(usage_before).map(|(usage, before)| Server {
            memory_octets_each: Some(each(usage, before)),
            kernel_octets_each: Some(grown),
            ..Server::default()
        });
        run.live.say(&format!("holding {} connections", report.held));
    }

    let left = |run: &Run<'_>| Duration::from_secs_f64(plan.time_max).saturating_sub(run.started.elapsed());
    let mut usage_begin = usage_idle.or(usage_before);
    if report.cut_short.is_some() {
        // It is over before it began: nothing is measured beside half a crowd.
    } else if plan.has_mix() {
        run.go(Phase::WarmUp);
        if plan.warm_up > 0.0 {
            let warm = Duration::from_secs_f64(plan.warm_up);
            run.until(warm.min(left(&run)), &mut report, |_| false)?;
            report.warm_up_seconds = run.phase_since.elapsed().as_secs_f64();
            usage_begin = run.watch.as_mut().map(Watch::look);
        }
        run.enter(Phase::Measured);
        let is_done = |run: &Run<'_>| run.loaders.iter().all(|loader| loader.last.done || loader.ended);
        // What is in progress when the duration is over may still end well.
        let enough = plan.duration.map_or(f64::MAX, |duration| duration + plan.patience);
        let bound = left(&run).min(Duration::try_from_secs_f64(enough).unwrap_or(Duration::MAX));
        let ended = run.until(bound, &mut report, is_done)?;
        if !ended && report.cut_short.is_none() {
            report.cut_short = Some(match left(&run).is_zero() {
                true => time_max(),
                false => format!("sessions had not ended {} s (--patience) after the last had begun", plan.patience),
            });
        }
        report.seconds = run.phase_since.elapsed().as_secs_f64();
        // The last sessions ended before we were told so.
        let told = run.loaders.iter().map(|loader| loader.last.running_us).max().unwrap_or_default();
        let told = (told as f64 / 1e6 - plan.warm_up).max(1e-3);
        if ended {
            report.seconds = report.seconds.min(told);
        }
    } else {
        run.go(Phase::Measured);
        let hold = Duration::from_secs_f64(plan.hold);
        let bound = left(&run);
        run.until(hold.min(bound), &mut report, |_| false)?;
        if hold > bound && report.cut_short.is_none() {
            report.cut_short = Some(time_max());
        }
        report.seconds = run.phase_since.elapsed().as_secs_f64();
    }
    let usage_end = run.watch.as_mut().map(Watch::settle);
    run.finish();
    run.live.end();
    run.sum.report(plan, &mut report);
    let held = run.loaders.iter().map(|loader| loader.last.held).sum();
    report.crowd_lost = run.sum.crowd_begun(plan).saturating_sub(held);
    if let (Some(before), Some(begin), Some(end)) = (usage_before, usage_begin, usage_end) {
        let server = report.server.get_or_insert_default();
        let cpu = end.cpu.saturating_sub(begin.cpu).as_secs_f64();
        let each = if report.messages > 0 { report.messages } else { report.connections };
        server.processes = end.processes;
        server.cpu_seconds = cpu;
        server.cpu_us_each = if each > 0 { cpu * 1e6 / each as f64 } else { 0.0 };
        server.memory_octets = end.anonymous_octets as i64 - before.anonymous_octets as i64;
        server.context_switches = end.context_switches.saturating_sub(begin.context_switches);
    }
    run.own_side(&mut report);
    report.server_greeting = std::mem::take(&mut run.greeting);
    report.timeline = std::mem::take(&mut run.timeline);
    Ok(report)
}

fn watch(pid: u32) -> Result<Watch, String> {
    match std::path::Path::new(&format!("/proc/{pid}")).exists() {
        true => Ok(Watch::new(pid)),
        false => Err(format!("--pid {pid}: no such process")),
    }
}

fn start(plan: &Plan, options: &Options) -> Result<(Vec<Loader>, Receiver<Told>), String> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| error.to_string())?,
    };
    let (sender, ticks) = mpsc::channel();
    let mut loaders = Vec::new();
    for index in 0..plan.processes {
        let told = |error: &dyn std::fmt::Display| format!("load process {index}: {error}");
        let mut child = Command::new(&program)
            .arg("__load-process")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| told(&error))?;
        let mut stdin = child.stdin.take();
        let mut line = serde_json::to_vec(&plan.share(index)).map_err(|error| told(&error))?;
        line.push(b'\n');
        if let Some(stdin) = &mut stdin {
            stdin.write_all(&line).map_err(|error| told(&error))?;
        }
        if let Some(stdout) = child.stdout.take() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines() {
                    let Some(tick) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
                    if sender.send((index as usize, Some(tick))).is_err() {
                        return;
                    }
                }
                let _ = sender.send((index as usize, None));
            });
        }
        loaders.push(Loader {
            child,
            stdin,
            last: Tick::default(),
            heard: Instant::now(),
            ended: false,
            cpu: Duration::ZERO,
            wall: Duration::ZERO,
            delayed: Duration::ZERO,
            busiest: 0.0,
        });
    }
    Ok((loaders, ticks))
}

impl Run<'_> {
    fn enter(&mut self, phase: Phase) {
        (self.phase, self.phase_since) = (phase, Instant::now());
    }

    /// The mix begins.
    fn go(&mut self, phase: Phase) {
        for loader in &mut self.loaders {
            // One that has died is found out when nothing is heard of it.
            if let Some(stdin) = &mut loader.stdin {
                let _ = stdin.write_all(b"go\n");
            }
            loader.last.done = false;
        }
        self.enter(phase);
    }

    /// Takes ticks until `is_over`, or for so long; true when it was over. A stop from outside ends it, too.
    fn until(&mut self, most: Duration, report: &mut Report, is_over: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let end = Instant::now() + most.min(Duration::from_secs(1 << 30));
        loop {
            if is_over(self) {
                return Ok(true);
            }
            if report.cut_short.is_some() || Instant::now() >= end {
                return Ok(false);
            }
            if self.options.stop.load(Ordering::Relaxed) {
                report.cut_short = Some("stopped by a signal; this is what was measured until then".to_owned());
                return Ok(false);
            }
            let wait = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
            self.take(wait)?;
            if let Some(dead) =
                self.loaders.iter().position(|loader| loader.heard.elapsed() > SILENCE_MAX && !loader.ended)
            {
                return Err(format!("load process {dead}: says nothing for {} s", SILENCE_MAX.as_secs()));
            }
        }
    }

    fn take(&mut self, wait: Duration) -> Result<(), String> {
        match self.ticks.recv_timeout(wait) {
            Ok((index, Some(tick))) => self.add(index, tick),
            Ok((index, None)) => {
                self.loaders[index].ended = true;
                if !self.loaders[index].last.done {
                    let status = self.loaders[index].child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                    return Err(format!("load process {index}: ended early, {status}"));
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if self.last_second.elapsed() >= Duration::from_secs(1) {
            self.second_over();
        }
        Ok(())
    }

    fn add(&mut self, index: usize, mut tick: Tick) {
        if self.greeting.is_empty() {
            self.greeting = std::mem::take(&mut tick.greeting);
        }
        self.sum.add(&tick);
        self.second.add(&tick);
        let loader = &mut self.loaders[index];
        if self.phase == Phase::Measured {
            let micros = Duration::from_micros;
            loader.cpu += micros(tick.cpu_us);
            loader.wall += micros(tick.wall_us);
            loader.delayed += micros(tick.delayed_us);
        }
        loader.heard = Instant::now();
        // The lists are added up; only the state is asked for.
        loader.last = Tick { scenarios: Vec::new(), troubles: Vec::new(), late: Vec::new(), ..tick };
    }

    /// A line of the timeline, and of the live view.
    fn second_over(&mut self) {
        let seconds = self.last_second.elapsed().as_secs_f64();
        self.last_second = Instant::now();
        let usage = self.watch.as_mut().map(Watch::look);
        let second = std::mem::replace(&mut self.second, Sum::new(self.plan.scenarios.len()));
        let is_idle: Vec<bool> = self.plan.scenarios.iter().map(|s| s.kind == Kind::Idle).collect();
        let sessions = if self.plan.has_mix() && self.phase != Phase::Gathering {
            second.sessions(&is_idle)
        } else {
            second.sessions(&vec![false; is_idle.len()])
        };
        let phase = match self.phase {
            Phase::Gathering => "gathering",
            Phase::WarmUp => "warm-up",
            Phase::Measured => "measured",
        };
        let at = |q| if sessions.is_empty() { 0 } else { sessions.value_at_quantile(q) };
        let moment = Moment {
            seconds: self.started.elapsed().as_secs_f64(),
            phase: phase.to_owned(),
            sessions: sessions.len() as f64 / seconds,
            messages: second.count(|counts| counts.messages) as f64 / seconds,
            errors: second.trouble_count() as f64 / seconds,
            p50: at(0.5),
            p99: at(0.99),
            held: self.loaders.iter().map(|loader| loader.last.held).sum(),
            active: self.loaders.iter().map(|loader| loader.last.active).sum(),
            server_cpu: usage
                .zip(self.last_usage)
                .map(|(now, before)| now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds),
            server_memory: usage.map(|usage| usage.anonymous_octets),
        };
        self.last_usage = usage;
        let (part, left) = self.progress();
        self.live.show(&moment, self.sum.trouble_count(), part, left);
        self.timeline.push(moment);
    }

    /// How much of the phase is over, and seconds that are left of it, as far as one can tell.
    fn progress(&self) -> (f64, Option<f64>) {
        let seconds = self.phase_since.elapsed().as_secs_f64();
        let of_time = |whole: f64| ((seconds / whole.max(1e-9)).min(1.0), Some((whole - seconds).max(0.0)));
        let of_count = |done: u64, whole: u64| {
            let part = done as f64 / whole.max(1) as f64;
            (part.min(1.0), (part > 0.01).then(|| (seconds / part - seconds).max(0.0)))
        };
        match self.phase {
            Phase::Gathering => {
                of_count(self.loaders.iter().map(|loader| loader.last.held).sum(), self.plan.crowd().max(1))
            }
            Phase::WarmUp => of_time(self.plan.warm_up),
            Phase::Measured if !self.plan.has_mix() => of_time(self.plan.hold),
            Phase::Measured => match (self.plan.count, self.plan.duration) {
                (Some(count), _) => {
                    of_count(self.sum.count(|counts| counts.done + counts.failed), count + self.plan.crowd())
                }
                (None, Some(duration)) => of_time(duration),
                (None, None) => (0.0, None),
            },
        }
    }

    /// Tells the load processes to stop and takes what they still say.
    fn finish(&mut self) {
        self.loaders.iter_mut().for_each(|loader| loader.stdin = None);
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until && self.loaders.iter().any(|loader| !loader.ended) {
            match self.ticks.recv_timeout(Duration::from_millis(100)) {
                Ok((index, Some(tick))) => self.add(index, tick),
                Ok((index, None)) => self.loaders[index].ended = true,
                Err(_) => {}
            }
        }
    }

    /// What we did, and whether it can be believed.
    fn own_side(&mut self, report: &mut Report) {
        let client = &mut report.client;
        client.processes = self.plan.processes;
        client.cpu_seconds = self.loaders.iter().map(|loader| loader.cpu.as_secs_f64()).sum();
        let share = |part: Duration, whole: Duration| part.as_secs_f64() / whole.as_secs_f64().max(1e-9);
        for loader in &mut self.loaders {
            loader.busiest = share(loader.cpu, loader.wall);
        }
        client.cpu_share_max = self.loaders.iter().map(|loader| loader.busiest).fold(0.0, f64::max);
        let wall: Duration = self.loaders.iter().map(|loader| loader.wall).sum();
        client.delayed_share = share(self.loaders.iter().map(|loader| loader.delayed).sum(), wall);
        report.warnings = doubts::of(self.plan, report);
    }
}
