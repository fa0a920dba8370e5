//! What one sees while it runs: a few lines that are drawn anew on a terminal, plain lines otherwise.

use std::io::{IsTerminal as _, Write as _};

use crate::result::Moment;

/// The view on standard error.
pub struct Live {
    quiet: bool,
    terminal: bool,
    drawn: usize,
    last_phase: String,
    skipped: u32,
    /// p99 of the last seconds, for the little curve.
    curve: Vec<u64>,
}

/// Seconds between plain lines.
const PLAIN_SECONDS: u32 = 5;
const CURVE_SECONDS: usize = 48;
const BAR: usize = 32;

impl Live {
    /// Where standard error goes to decides.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { quiet, terminal, drawn: 0, last_phase: String::new(), skipped: PLAIN_SECONDS, curve: Vec::new() }
    }

    /// A line that stays. It is said even when there is no view: programs wait for it.
    pub fn say(&mut self, text: &str) {
        self.wipe();
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A second is over.
    pub fn show(&mut self, moment: &Moment, errors: u64, part: f64, left: Option<f64>) {
        if self.quiet {
            return;
        }
        let ms = |micros: u64| micros as f64 / 1000.0;
        let left = left.map_or(String::new(), |left| format!("{left:.0} s left"));
        if !self.terminal {
            self.skipped += 1;
            if self.skipped < PLAIN_SECONDS && moment.phase == self.last_phase {
                return;
            }
            (self.skipped, self.last_phase) = (0, moment.phase.clone());
            let server = moment.server_cpu.map_or(String::new(), |cpu| format!(", server {:.0} % CPU", cpu * 100.0));
            let _ = writeln!(
                std::io::stderr(),
                "{:>4.0} s {} {:.0} %: {:.0} sessions/s, {:.0} messages/s, p50 {:.3} ms, p99 {:.3} ms, {} active, {} held, \
                 {errors} errors{server} {left}",
                moment.seconds,
                moment.phase,
                part * 100.0,
                moment.sessions,
                moment.messages,
                ms(moment.p50),
                ms(moment.p99),
                moment.active,
                moment.held,
            );
            return;
        }
        self.curve.push(moment.p99);
        let from = self.curve.len().saturating_sub(CURVE_SECONDS);
        self.curve.drain(..from);
        let full = (part * BAR as f64).round() as usize;
        let bar = format!("{}{}", "█".repeat(full.min(BAR)), "░".repeat(BAR.saturating_sub(full)));
        let mut lines = vec![
            format!("{:<10} {bar} {:>3.0} %  {left}", moment.phase, part * 100.0),
            format!("sessions   {:>9.0}/s    active {:>8}    held {:>8}", moment.sessions, moment.active, moment.held),
            format!("messages   {:>9.0}/s    errors {errors:>8}", moment.messages),
            format!(
                "latency    p50 {:>9.3} ms   p99 {:>9.3} ms   {}",
                ms(moment.p50),
                ms(moment.p99),
                curve(&self.curve)
            ),
        ];
        if let (Some(cpu), Some(memory)) = (moment.server_cpu, moment.server_memory) {
            let mib = memory as f64 / f64::from(1 << 20);
            lines.push(format!("server     {:>8.0} % CPU   {mib:>9.1} MiB private", cpu * 100.0));
        }
        // A line that is wrapped would be two when it is drawn anew.
        let width = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| usize::from(size.ws_col));
        let width = if width == 0 { 80 } else { width };
        for line in &mut lines {
            *line = line.chars().take(width).collect();
        }
        self.wipe();
        self.drawn = lines.len();
        let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    }

    /// Takes the view away.
    pub fn end(&mut self) {
        self.wipe();
    }

    fn wipe(&mut self) {
        if self.terminal && self.drawn > 0 {
            // Up, and clear to the end of the screen.
            let _ = write!(std::io::stderr(), "\x1b[{}A\x1b[J", self.drawn);
        }
        self.drawn = 0;
    }
}

fn curve(values: &[u64]) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let max = values.iter().copied().max().unwrap_or(0).max(1);
    values.iter().map(|&value| STEPS[(value * 7 / max) as usize]).collect()
}
