/// The operator's settings of one mechanism.
///
/// Nested tables and arrays are flattened: `a.b.0`. Values are text; `json` has the whole with its types.
#[derive(Debug, Default)]
pub struct Settings<'a> {
    pub(crate) json: &'a str,
    pub(crate) entries: Vec<(&'a str, &'a str)>,
}

impl<'a> Settings<'a> {
    /// Settings for a test.
    pub fn of(json: &'a str, entries: &[(&'a str, &'a str)]) -> Self {
        Self { json, entries: entries.to_vec() }
    }

    /// One setting, as text.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.entries.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    /// All settings as a JSON object.
    pub fn json(&self) -> &'a str {
        self.json
    }

    /// An error that names the first setting which is not in `known` (by its first component).
    pub fn only(&self, known: &[&str]) -> Result<(), String> {
        let unknown = |key: &str| !known.contains(&key.split('.').next().unwrap_or_default());
        match self.entries.iter().find(|(key, _)| unknown(key)) {
            Some((key, _)) if known.is_empty() => Err(format!("unknown setting `{key}`: this mechanism has none")),
            Some((key, _)) => Err(format!("unknown setting `{key}`: known are {}", known.join(", "))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_nobody_reads_is_named() {
        let settings = Settings::of("", &[("scope", "mail"), ("keys.0.file", "/x")]);
        assert_eq!(settings.value("scope"), Some("mail"));
        assert_eq!(settings.only(&["scope", "keys"]), Ok(()));
        assert_eq!(settings.only(&["scope"]), Err("unknown setting `keys.0.file`: known are scope".into()));
        assert!(settings.only(&[]).unwrap_err().contains("`scope`"));
    }
}
