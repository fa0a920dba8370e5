//! Bars beside each other: one value of several, as SVG for a page of [`html`](crate::html).

use std::fmt::Write as _;

use crate::html::escape;

const WIDTH: f64 = 640.0;
const ROW: f64 = 30.0;
const LEFT: f64 = 180.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 34.0;

/// A plot with a bar for each name; the first is ours and stands out. What has no value is said so.
pub fn bars(title: &str, unit: &str, rows: &[(String, Option<f64>)]) -> String {
    let most = rows.iter().filter_map(|(_, value)| *value).fold(0.0, f64::max).max(1e-9);
    let height = TOP + ROW * rows.len() as f64 + 6.0;
    let mut to = String::new();
    let _ = write!(
        to,
        "<figure><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><text x=\"0\" y=\"18\" \
         class=\"title\">{0}</text>",
        escape(title)
    );
    for (n, (name, value)) in rows.iter().enumerate() {
        let top = TOP + ROW * n as f64;
        let base = top + ROW / 2.0 + 4.0;
        let _ = write!(to, "<text x=\"{}\" y=\"{base:.1}\" class=\"y name\">{}</text>", LEFT - 8.0, escape(name));
        let Some(value) = value else {
            let _ = write!(to, "<text x=\"{LEFT}\" y=\"{base:.1}\">not measured</text>");
            continue;
        };
        let length = (value / most * (WIDTH - LEFT - RIGHT)).max(1.0);
        let colour = if n == 0 { "#0072b2" } else { "#9aa4ae" };
        let _ = write!(
            to,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{base:.1}\" class=\"name\">{} {}</text>",
            top + 5.0,
            ROW - 10.0,
            LEFT + length + 8.0,
            number(*value),
            escape(unit),
        );
    }
    to.push_str("</svg></figure>\n");
    to
}

/// As many digits as say something.
pub fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => {
            let whole = format!("{v:.0}");
            // 12,345: a figure of six digits is not read otherwise.
            let mut to = String::new();
            for (n, digit) in whole.chars().enumerate() {
                if n > 0 && (whole.len() - n).is_multiple_of(3) {
                    to.push(',');
                }
                to.push(digit);
            }
            to
        }
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_numbers() {
        assert_eq!([0.126, 12.34, 999.6, 1_234_567.0].map(number), ["0.13", "12.3", "1,000", "1,234,567"]);
        let rows = [("ours".to_owned(), Some(2.0)), ("<b>".to_owned(), Some(4.0)), ("absent".to_owned(), None)];
        let svg = bars("a & b", "µs", &rows);
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;b&gt;") && svg.contains("not measured"), "{svg}");
        // The longest fills the room, half of it is half as long.
        assert!(svg.contains("width=\"350.0\"") && svg.contains("width=\"175.0\""), "{svg}");
    }
}
