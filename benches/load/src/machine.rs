//! Where and when something was measured: without it a number means nothing.

use serde::{Deserialize, Serialize};

/// The machine, as far as it tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Its processor.
    pub cpu: String,
    /// How many of them it has.
    pub cores: usize,
    /// In all.
    pub memory: String,
    /// Its release.
    pub kernel: String,
    /// Load averages when it was asked.
    pub load: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split(':').nth(1).unwrap_or("?").trim().to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        Self {
            cpu: field(&cpuinfo, "model name"),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory: field(&read("/proc/meminfo"), "MemTotal"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").trim().to_owned(),
        }
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2026-08-01` of a time (Gregorian, UTC).
pub fn date(unix_seconds: u64) -> String {
    let mut left = unix_seconds / 86_400;
    let mut year = 1970;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

/// `2026-08-01T12:34:56Z`.
pub fn time(unix_seconds: u64) -> String {
    let of_day = unix_seconds % 86_400;
    format!("{}T{:02}:{:02}:{:02}Z", date(unix_seconds), of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// The command line as anybody may type it: the program by its name, not by the folder it happens to lie in.
pub fn command() -> Vec<String> {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(program) = words.first_mut()
        && let Some(name) = std::path::Path::new(program.as_str()).file_name()
    {
        *program = name.to_string_lossy().into_owned();
    }
    words
}

/// Words as a shell takes them again.
pub fn typed(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let typed = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    };
    words.iter().map(typed).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_typed_again() {
        let words = ["a", "--to", "it's {n}@x", "", "k=v:1,2"].map(str::to_owned);
        assert_eq!(typed(&words), r"a --to 'it'\''s {n}@x' '' k=v:1,2");
    }

    #[test]
    fn dates() {
        for (days, expect) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_818, "2026-12-31")] {
            assert_eq!(date(days * 86_400 + 86_399), expect);
        }
        assert_eq!(time(86_399), "1970-01-01T23:59:59Z");
    }
}
