//! Lines of a plan file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// Where things stand in a file: what is wrong with them is told with their line.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub(crate) file: Option<PathBuf>,
    pub(crate) keys: BTreeMap<String, usize>,
    pub(crate) scenarios: Vec<usize>,
}

impl Places {
    pub(crate) fn of(path: &Path, text: &str) -> Self {
        #[derive(Deserialize)]
        struct Tables {
            #[serde(default)]
            scenario: Vec<Spanned<toml::Table>>,
        }
        let line = |at: usize| 1 + text.bytes().take(at).filter(|octet| *octet == b'\n').count();
        let keys: BTreeMap<Spanned<String>, toml::Value> = toml::from_str(text).unwrap_or_default();
        let tables = toml::from_str(text).unwrap_or(Tables { scenario: Vec::new() });
        Self {
            file: Some(path.to_owned()),
            keys: keys.into_keys().map(|key| (key.get_ref().clone(), line(key.span().start))).collect(),
            scenarios: tables.scenario.iter().map(|table| line(table.span().start)).collect(),
        }
    }

    /// `file:line: ` before what is wrong, as far as it stands in one.
    pub(crate) fn before(&self, line: Option<&usize>) -> String {
        match (&self.file, line) {
            (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
            _ => String::new(),
        }
    }
}
