//! What is wrong with a configuration, told so that one can mend it: file, line, column, key, cause,
//! remedy, and the line itself with a caret.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing starts.
    Error,
    /// It starts, but somebody should know.
    Warning,
}

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Where in the text, octets; `None` when it is about something that is not written there.
    pub span: Option<Range<usize>>,
    /// The key concerned, `listener.bind`; empty for syntax.
    pub key: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

/// All findings about one file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file, as the operator named it.
    pub file: PathBuf,
    /// Its content.
    pub text: Arc<str>,
    /// What was found, unordered.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Nothing found yet.
    pub fn new(file: PathBuf, text: Arc<str>) -> Self {
        Self { file, text, findings: Vec::new() }
    }

    /// Adds an error.
    pub fn error(
        &mut self,
        span: Option<Range<usize>>,
        key: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (key, cause, remedy) = (key.into(), cause.into(), remedy.into());
        self.findings.push(Finding { severity: Severity::Error, span, key, cause, remedy });
    }

    /// Adds a warning.
    pub fn warning(
        &mut self,
        span: Option<Range<usize>>,
        key: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (key, cause, remedy) = (key.into(), cause.into(), remedy.into());
        self.findings.push(Finding { severity: Severity::Warning, span, key, cause, remedy });
    }

    /// Whether anything forbids to start.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Line and column, both from 1; columns count characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// All findings as text, in the order of the file; what has no place comes last.
    pub fn render(&self, color: bool) -> String {
        let mut ordered: Vec<&Finding> = self.findings.iter().collect();
        ordered.sort_by_key(|finding| (finding.span.as_ref().map_or(usize::MAX, |span| span.start), finding.severity));
        let mut to = String::new();
        for finding in ordered {
            self.render_one(finding, color, &mut to);
        }
        to
    }

    /// All errors in one line, for a log.
    pub fn line(&self) -> String {
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let told = errors.map(|finding| {
            let place = match &finding.span {
                Some(span) => {
                    let (line, column) = self.position(span.start);
                    format!("{}:{line}:{column}", self.file.display())
                }
                None => self.file.display().to_string(),
            };
            let key = if finding.key.is_empty() { String::new() } else { format!(" {}:", finding.key) };
            visible(&format!("{place}:{key} {}; {}", finding.cause, finding.remedy))
        });
        told.collect::<Vec<_>>().join(" | ")
    }

    fn render_one(&self, finding: &Finding, color: bool, to: &mut String) {
        let (paint, bold, plain) = match (color, finding.severity) {
            (false, _) => ("", "", ""),
            (true, Severity::Error) => ("\x1b[31m", "\x1b[1m", "\x1b[0m"),
            (true, Severity::Warning) => ("\x1b[33m", "\x1b[1m", "\x1b[0m"),
        };
        let word = match finding.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        let key = if finding.key.is_empty() { String::new() } else { format!("{}: ", finding.key) };
        let place = match &finding.span {
            Some(span) => {
                let (line, column) = self.position(span.start);
                format!("{}:{line}:{column}", self.file.display())
            }
            None => self.file.display().to_string(),
        };
        let _ = writeln!(
            to,
            "{bold}{place}{plain}: {paint}{word}{plain}{key}{}; {}",
            visible(&finding.cause),
            visible(&finding.remedy)
        );
        let Some(span) = &finding.span else { return };
        let (number, column) = self.position(span.start);
        let line = self.text.lines().nth(number - 1).unwrap_or_default();
        let shown = visible(&redact(line));
        let margin = number.to_string().len();
        let width = self.text.get(span.clone()).and_then(|text| text.lines().next()).map_or(1, |t| t.chars().count());
        let room = shown.chars().count().saturating_sub(column - 1).max(1);
        let _ = writeln!(to, "{:margin$} |\n{number} | {shown}", "");
        let _ = writeln!(
            to,
            "{:margin$} | {:indent$}{paint}{}{plain}",
            "",
            "",
            "^".repeat(width.clamp(1, room)),
            indent = column - 1
        );
    }
}

/// Control characters of a file must not reach somebody's terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\t' {
                ' '
            } else if c.is_control() {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// A line that seems to hold a secret is shown up to its `=` only. There is no option that takes one,
/// so such a line is a mistake already; it must not get into somebody's log as well.
fn redact(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    match line.find('=') {
        Some(at) if ["password", "passwd", "secret", "token"].iter().any(|word| lower.contains(word)) => {
            format!("{}= …", &line[..at])
        }
        _ => line.to_owned(),
    }
}
