//! A result as one HTML page that needs nothing else: tables, and plots as SVG.

use std::fmt::Write as _;

use crate::result::{Latency, Report};

/// The page.
pub fn page(report: &Report) -> String {
    let mut to = String::with_capacity(64 * 1024);
    let targets = report.plan.as_ref().map(|plan| plan.target.clone()).unwrap_or_default();
    to.push_str(&head(&format!("portreeve-load {targets} {}", report.time)));
    let _ = write!(
        to,
        "<h1>Load of {}</h1>\n<p class=\"sub\">{} · {} · {} cores, {}, kernel {}</p>\n",
        escape(&targets),
        escape(&report.time),
        escape(&report.tool),
        report.machine.cores,
        escape(&report.machine.cpu),
        escape(&report.machine.kernel),
    );
    if !report.server_greeting.is_empty() {
        let _ = writeln!(to, "<p class=\"sub\">The server calls itself: {}</p>", escape(&report.server_greeting));
    }
    for warning in &report.warnings {
        let _ = writeln!(to, "<p class=\"warning\">{}</p>", escape(warning));
    }
    if let Some(why) = &report.cut_short {
        let _ = writeln!(to, "<p class=\"warning\">Cut short: {}</p>", escape(why));
    }
    tiles(report, &mut to);
    to.push_str("<h2>Latency</h2>\n<div class=\"plots\"><div>");
    latency_table(report, &mut to);
    to.push_str("</div>");
    to.push_str(&percentile_plot(report).svg());
    to.push_str("</div>\n<h2>Over time</h2>\n<div class=\"plots\">\n");
    for plot in time_plots(report) {
        to.push_str(&plot.svg());
    }
    to.push_str("</div>\n<h2>Errors</h2>\n");
    errors(report, &mut to);
    to.push_str("<h2>How it was measured</h2>\n");
    let _ = writeln!(to, "<pre>{}</pre>", escape(&crate::machine::typed(&report.command)));
    if let Ok(plan) = serde_json::to_string_pretty(&report.plan) {
        let _ = writeln!(to, "<details><summary>The whole plan</summary><pre>{}</pre></details>", escape(&plan));
    }
    let client = &report.client;
    let _ = writeln!(
        to,
        "<p>{} load processes; the busiest used {:.0} % of a processor; they waited for one {:.0} % of the time. Warm-up: \
         {:.1} s. Load average at the beginning: {}.</p>\n</main></body></html>",
        client.processes,
        client.cpu_share_max * 100.0,
        client.delayed_share * 100.0,
        report.warm_up_seconds,
        escape(&report.machine.load),
    );
    to
}

/// The beginning of a page, to where its content stands; it ends with `</main></body></html>`.
pub fn head(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head><body><main>\n",
        escape(title)
    )
}

fn tiles(report: &Report, to: &mut String) {
    let seconds = report.seconds.max(1e-9);
    let mut tiles = vec![
        (format!("{:.0}", report.connections as f64 / seconds), "sessions per second".to_owned()),
        (format!("{:.3} ms", report.latency_us.p50 as f64 / 1e3), "p50 of a session".to_owned()),
        (format!("{:.3} ms", report.latency_us.p99 as f64 / 1e3), "p99 of a session".to_owned()),
        (report.errors.iter().map(|error| error.count).sum::<u64>().to_string(), "errors".to_owned()),
    ];
    if report.messages > 0 {
        tiles.insert(1, (format!("{:.0}", report.messages as f64 / seconds), "messages per second".to_owned()));
    }
    if report.held > 0 {
        tiles.push((report.held.to_string(), "idle sessions held".to_owned()));
    }
    if let Some(server) = &report.server {
        let of = if report.messages > 0 { "message" } else { "session" };
        tiles.push((format!("{:.1} µs", server.cpu_us_each), format!("server processor time per {of}")));
        if let Some(each) = server.memory_octets_each {
            tiles.push((format!("{each:.0} B"), "server memory per idle session".to_owned()));
        }
        if let Some(each) = server.kernel_octets_each {
            tiles.push((format!("{each:.0} B"), "of the kernel's, both ends".to_owned()));
        }
        tiles.push((server.context_switches.to_string(), "context switches of the server".to_owned()));
    }
    to.push_str("<div class=\"tiles\">");
    for (value, name) in tiles {
        let _ = write!(to, "<div><b>{}</b><span>{}</span></div>", escape(&value), escape(&name));
    }
    to.push_str("</div>\n");
}

/// Every histogram with its name.
fn latencies(report: &Report) -> impl Iterator<Item = (String, &Latency)> {
    report.scenarios.iter().flat_map(|scenario| {
        scenario.latency_us.iter().map(|(measure, latency)| (format!("{} {measure}", scenario.name), latency))
    })
}

fn latency_table(report: &Report, to: &mut String) {
    to.push_str("<table><tr><th>milliseconds</th><th>values</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>\n");
    for (name, latency) in latencies(report) {
        let p = latency.percentiles;
        let _ = write!(to, "<tr><td>{}</td><td>{}</td>", escape(&name), p.count);
        for micros in [p.p50, p.p90, p.p99, p.p999, p.max] {
            let _ = write!(to, "<td>{:.3}</td>", micros as f64 / 1e3);
        }
        to.push_str("</tr>\n");
    }
    to.push_str("</table>\n");
}

fn errors(report: &Report, to: &mut String) {
    if report.errors.is_empty() {
        to.push_str("<p>None: every reply was the expected one.</p>\n");
        return;
    }
    to.push_str("<table><tr><th>times</th><th>scenario</th><th>stage</th><th>code</th><th>first words</th></tr>\n");
    for error in &report.errors {
        let _ = writeln!(
            to,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            error.count,
            escape(&error.scenario),
            escape(&error.stage),
            escape(&error.code),
            escape(&error.text),
        );
    }
    to.push_str("</table>\n");
}

// -------------------------------------------------------------------------------------- plots

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

struct Plot {
    title: String,
    x_name: &'static str,
    y_scale: Scale,
    /// Where ticks of the x axis stand; made from the values when empty.
    x_ticks: Vec<(f64, String)>,
    series: Vec<(String, Vec<(f64, f64)>)>,
}

/// A share of the values against the time in which they ended, on a scale on which every nine is a step.
fn percentile_plot(report: &Report) -> Plot {
    let nines = |share: f64| -(1.0 - share).max(1e-9).log10();
    let mut series = Vec::new();
    let mut far: f64 = 2.0;
    for (name, latency) in latencies(report) {
        let count = latency.percentiles.count.max(1);
        let (mut seen, mut points) = (0, Vec::new());
        for &(micros, times) in &latency.values {
            // The step begins where the values before it end.
            points.push((nines(seen as f64 / count as f64), micros as f64 / 1e3));
            seen += times;
        }
        let last = nines(1.0 - 0.5 / count as f64);
        points.extend(latency.values.last().map(|&(micros, _)| (last, micros as f64 / 1e3)));
        far = far.max(last);
        series.push((name, thin(points, 600)));
    }
    let ticks =
        [("0", 0.0), ("50", 0.5), ("90", 0.9), ("99", 0.99), ("99.9", 0.999), ("99.99", 0.9999), ("99.999", 0.99999)];
    Plot {
        title: "Latency by percentile, ms".to_owned(),
        x_name: "per cent of all",
        y_scale: Scale::Logarithmic,
        x_ticks: ticks
            .iter()
            .map(|(name, share)| (nines(*share), (*name).to_owned()))
            .filter(|(x, _)| *x <= far + 1e-9)
            .collect(),
        series,
    }
}

/// As many points as a plot can show.
fn thin(points: Vec<(f64, f64)>, most: usize) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(most).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(n, _)| n % step == 0 || *n == last).map(|(_, point)| point).collect()
}

fn time_plots(report: &Report) -> Vec<Plot> {
    let of = |value: &dyn Fn(&crate::result::Moment) -> Option<f64>| -> Vec<(f64, f64)> {
        thin(report.timeline.iter().filter_map(|moment| Some((moment.seconds, value(moment)?))).collect(), 1200)
    };
    let plot = |title: &str, y_scale, series: Vec<(&str, Vec<(f64, f64)>)>| Plot {
        title: title.to_owned(),
        x_name: "seconds",
        y_scale,
        x_ticks: Vec::new(),
        series: series
            .into_iter()
            .filter(|(_, points)| points.iter().any(|(_, y)| *y > 0.0))
            .map(|(name, points)| (name.to_owned(), points))
            .collect(),
    };
    let mut plots = vec![
        plot(
            "Throughput per second",
            Scale::Linear,
            vec![("sessions", of(&|m| Some(m.sessions))), ("messages", of(&|m| Some(m.messages)))],
        ),
        plot(
            "Latency of sessions, ms",
            Scale::Logarithmic,
            vec![("p50", of(&|m| Some(m.p50 as f64 / 1e3))), ("p99", of(&|m| Some(m.p99 as f64 / 1e3)))],
        ),
        plot(
            "Sessions at a time",
            Scale::Linear,
            vec![("in progress", of(&|m| Some(m.active as f64))), ("idle", of(&|m| Some(m.held as f64)))],
        ),
        plot("Errors per second", Scale::Linear, vec![("errors", of(&|m| Some(m.errors)))]),
        plot("Server: share of a processor", Scale::Linear, vec![("all processes", of(&|m| m.server_cpu))]),
        plot(
            "Server: private memory, MiB",
            Scale::Linear,
            vec![("all processes", of(&|m| m.server_memory.map(|octets| octets as f64 / f64::from(1 << 20))))],
        ),
    ];
    if report.server.is_none() {
        plots.truncate(4);
    }
    plots
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 42.0;
/// Told apart also by those who see few colours.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#555555"];

impl Plot {
    fn svg(&self) -> String {
        let mut to = String::new();
        let _ = write!(
            to,
            "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><text x=\"{LEFT}\" y=\"18\" \
             class=\"title\">{0}</text>",
            escape(&self.title)
        );
        let points = || self.series.iter().flat_map(|(_, points)| points.iter().copied());
        let finite =
            |(low, high): (f64, f64), v: f64| if v.is_finite() { (low.min(v), high.max(v)) } else { (low, high) };
        let (x_low, x_high) = points().map(|(x, _)| x).fold((f64::INFINITY, f64::NEG_INFINITY), finite);
        if x_low > x_high {
            let _ = writeln!(
                to,
                "<text x=\"{}\" y=\"{}\" class=\"none\">none</text></svg></figure>",
                WIDTH / 2.0,
                HEIGHT / 2.0
            );
            return to;
        }
        let x_high = if x_high - x_low < 1e-9 { x_low + 1.0 } else { x_high };
        let log = self.y_scale == Scale::Logarithmic;
        let (y_low, y_high) =
            points().map(|(_, y)| y).filter(|y| !log || *y > 0.0).fold((f64::INFINITY, f64::NEG_INFINITY), finite);
        let y_ticks = if log { decades(y_low, y_high) } else { steps(0.0, y_high.max(1e-9), 5) };
        let (y_low, y_high) =
            (y_ticks.first().copied().unwrap_or(0.0), y_ticks.last().copied().unwrap_or(1.0).max(y_high));
        let x_at = |x: f64| LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT);
        let y_at = |y: f64| {
            let share = if log {
                (y.max(y_low) / y_low).ln() / (y_high / y_low).ln().max(1e-9)
            } else {
                (y - y_low) / (y_high - y_low).max(1e-9)
            };
            HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        };
        for &y in &y_ticks {
            let at = y_at(y);
            let _ = write!(
                to,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1}\" \
                 class=\"y\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                short(y)
            );
        }
        let x_ticks = if self.x_ticks.is_empty() {
            steps(x_low, x_high, 8)
                .into_iter()
                .filter(|x| (x_low..=x_high).contains(x))
                .map(|x| (x, short(x)))
                .collect()
        } else {
            self.x_ticks.clone()
        };
        for (x, name) in x_ticks {
            let (at, foot) = (x_at(x), HEIGHT - BOTTOM);
            let _ = write!(
                to,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{foot}\" class=\"grid\"/><text x=\"{at:.1}\" y=\"{}\" \
                 class=\"x\">{}</text>",
                foot + 16.0,
                escape(&name)
            );
        }
        let _ = write!(
            to,
            "<text x=\"{}\" y=\"{}\" class=\"x\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 8.0,
            self.x_name
        );
        for (n, (_, points)) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let dash = if n >= COLOURS.len() { " stroke-dasharray=\"5 3\"" } else { "" };
            let mut path = String::new();
            for (x, y) in points.iter().filter(|(_, y)| !log || *y > 0.0) {
                let _ = write!(path, "{:.1},{:.1} ", x_at(*x), y_at(*y));
            }
            let _ = write!(to, "<polyline points=\"{}\" stroke=\"{colour}\"{dash} class=\"line\"/>", path.trim_end());
        }
        to.push_str("</svg><figcaption>");
        for (n, (name, _)) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            // As the line is drawn.
            let ink = match n < COLOURS.len() {
                true => colour.to_owned(),
                false => format!("repeating-linear-gradient(90deg,{colour} 0 5px,transparent 5px 8px)"),
            };
            let _ = write!(to, "<span><i style=\"background:{ink}\"></i>{}</span>", escape(name));
        }
        to.push_str("</figcaption></figure>\n");
        to
    }
}

/// Round values from at or below `low` to at or above `high`.
fn steps(low: f64, high: f64, about: usize) -> Vec<f64> {
    let raw = (high - low).max(1e-9) / about as f64;
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * power).find(|step| *step >= raw).unwrap_or(raw);
    let first = (low / step).floor() as i64;
    let last = (high / step).ceil() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// Powers of ten around both.
fn decades(low: f64, high: f64) -> Vec<f64> {
    if !(low.is_finite() && high.is_finite()) {
        return vec![1.0, 10.0];
    }
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last.max(first + 1)).map(|power| 10_f64.powi(power)).collect()
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", trim(value / 1e6)),
        v if v >= 1e4 => format!("{}k", trim(value / 1e3)),
        _ => trim(value),
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What came from a server is text, never markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5c6670;--line:#d7dce1;--paper:#fff;--tile:#f4f6f8}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#3a424a;--paper:#15191d;--tile:#1f252b}}\
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}\
main{max-width:1340px;margin:0 auto;padding:24px}\
h1{margin:0;font-size:26px}h2{margin:32px 0 8px;font-size:19px}.sub{color:var(--soft);margin:4px 0 20px}\
.warning{background:#fff3cd;color:#5c4400;padding:8px 12px;border-left:4px solid #e69f00;margin:8px 0}\
.tiles{display:flex;flex-wrap:wrap;gap:12px}.tiles div{background:var(--tile);padding:10px 16px;border-radius:6px}\
.tiles b{display:block;font-size:22px}.tiles span{color:var(--soft);font-size:13px}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:3px 14px 3px 0;text-align:right;\
border-bottom:1px solid var(--line)}td:first-child,th:first-child{text-align:left}\
figure{margin:12px 0;max-width:640px}.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:8px 24px}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}\
svg .name{font-size:13px;fill:var(--ink)}svg .title{fill:var(--ink);font-size:14px;font-weight:600}svg .y{text-anchor:end}svg .x,svg .none{text-anchor:middle}\
.grid{stroke:var(--line);stroke-width:1}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
figcaption span{margin-right:16px;white-space:nowrap;font-size:13px}figcaption i{display:inline-block;width:14px;height:4px;\
margin-right:6px;vertical-align:middle}pre{background:var(--tile);padding:12px;overflow:auto;border-radius:6px}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover() {
        assert_eq!(steps(0.0, 97.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(decades(0.3, 42.0), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!(decades(f64::INFINITY, f64::NEG_INFINITY), [1.0, 10.0]);
        assert_eq!((short(0.1), short(12_000.0), short(2_500_000.0)), ("0.1".into(), "12k".into(), "2.5M".into()));
    }

    #[test]
    fn what_a_server_says_is_no_markup() {
        let mut report = Report::default();
        let text = "<script>alert(1)</script>\"&".to_owned();
        report.errors.push(crate::tick::Troubles { text, count: 3, ..Default::default() });
        let page = page(&report);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;"));
        // Nothing is fetched from anywhere.
        assert!(!page.contains("http") && !page.contains("src="));
    }
}
