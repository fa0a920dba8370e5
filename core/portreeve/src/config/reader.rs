//! One table of the file: its options as values, and findings about them, both by the paths of the table of options.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::options;
use crate::report::Report;
use crate::values::{Settings, Table, Value};

/// Reads a table. What is not written has the default of its row, for a listener that of its role.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub table: &'a Table,
    /// A listener's; the others have the same defaults for every role.
    pub role: &'a str,
    /// Where relative paths start at.
    pub base: &'a Path,
}

impl Reader<'_> {
    fn value(&self, path: &str) -> Option<Value> {
        self.table.value(path, self.role)
    }

    pub fn text(&self, path: &str) -> Option<String> {
        match self.value(path)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A required text; says so when it is missing (not when it was written and is wrong).
    pub fn required(&self, path: &'static str, report: &mut Report) -> Option<String> {
        let text = self.text(path);
        if text.is_none() {
            About::new(self.table, report).missing(path);
        }
        text
    }

    pub fn word(&self, path: &str) -> String {
        self.text(path).unwrap_or_default()
    }

    pub fn flag(&self, path: &str) -> bool {
        matches!(self.value(path), Some(Value::Flag(true)))
    }

    pub fn number(&self, path: &str) -> Option<u64> {
        match self.value(path)? {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    /// A number whose bounds in the table fit `T`.
    pub fn count<T: TryFrom<u64>>(&self, path: &str) -> T {
        let number = self.number(path).expect("the option has a default (tested)");
        T::try_from(number).ok().expect("the option's bounds fit the field (tested)")
    }

    pub fn time(&self, path: &str) -> Duration {
        Duration::from_millis(self.count(path))
    }

    /// Per minute; 0: no limit.
    pub fn rate(&self, path: &str) -> u32 {
        match self.value(path) {
            Some(Value::Rate(per_minute)) => per_minute,
            _ => 0,
        }
    }

    pub fn words(&self, path: &str) -> Vec<String> {
        match self.value(path) {
            Some(Value::Words(words)) => words,
            _ => Vec::new(),
        }
    }

    pub fn addresses(&self, path: &str) -> Vec<SocketAddr> {
        match self.value(path) {
            Some(Value::Addresses(addresses)) => addresses,
            _ => Vec::new(),
        }
    }

    pub fn networks(&self, path: &str) -> Vec<IpNet> {
        match self.value(path) {
            Some(Value::Networks(networks)) => networks,
            _ => Vec::new(),
        }
    }

    pub fn settings(&self, path: &str) -> Settings {
        match self.value(path) {
            Some(Value::Settings(settings)) => settings,
            _ => Settings::none(),
        }
    }

    pub fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(|text| self.base.join(text))
    }

    /// Whether it stands in the file.
    pub fn is_written(&self, path: &str) -> bool {
        self.table.entries.contains_key(path)
    }
}

/// Tells what is wrong with the options of a table: an option's path says where that is, and what it is called.
pub struct About<'a> {
    table: &'a Table,
    report: &'a mut Report,
}

impl<'a> About<'a> {
    pub fn new(table: &'a Table, report: &'a mut Report) -> Self {
        Self { table, report }
    }

    pub fn error(&mut self, path: &str, cause: impl Into<String>, remedy: impl Into<String>) {
        self.report.error(Some(self.table.span(path)), key(path), cause, remedy);
    }

    pub fn warning(&mut self, path: &str, cause: impl Into<String>, remedy: impl Into<String>) {
        self.report.warning(Some(self.table.span(path)), key(path), cause, remedy);
    }

    /// About an element of a list.
    pub fn error_in(&mut self, path: &str, index: usize, cause: impl Into<String>, remedy: impl Into<String>) {
        self.report.error(Some(self.table.element(path, index)), key(path), cause, remedy);
    }

    /// About an element of a list.
    pub fn warning_in(&mut self, path: &str, index: usize, cause: impl Into<String>, remedy: impl Into<String>) {
        self.report.warning(Some(self.table.element(path, index)), key(path), cause, remedy);
    }

    /// A required option is not there. One that is wrong has been told already.
    pub fn missing(&mut self, path: &'static str) {
        if !self.table.broken.contains(path) {
            let option = options::find(path).expect("a row of the table (tested)");
            let remedy = format!("add: {} = {}", option.key(), option.example);
            self.report.error(Some(self.table.header.clone()), key(path), "is missing", remedy);
        }
    }
}

/// An option as people call it.
fn key(path: &str) -> String {
    path.replace("[]", "")
}

/// Those that are called as an earlier one is.
pub fn called_twice<T>(all: &[T], name: impl Fn(&T) -> &str) -> Vec<&T> {
    let earlier = |index: usize, one: &T| all[..index].iter().any(|earlier| name(earlier) == name(one));
    all.iter().enumerate().filter(|(index, one)| earlier(*index, one)).map(|(_, one)| one).collect()
}
