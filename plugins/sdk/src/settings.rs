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

    /// A setting that is a list of plain values, in its order; empty when it is absent.
    pub fn list(&self, key: &str) -> Result<Vec<&'a str>, String> {
        let mut list = Vec::new();
        for (entry, value) in &self.entries {
            let below = entry.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with('.'));
            let Some(below) = below else { continue };
            let index = below.strip_prefix('.').and_then(|index| index.parse::<usize>().ok());
            if index != Some(list.len()) {
                return Err(format!("`{key}` is no list of plain values: write {key} = [\"…\"]"));
            }
            list.push(*value);
        }
        Ok(list)
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

    #[test]
    fn lists() {
        let list = |entries: &[(&'static str, &'static str)]| Settings::of("", entries).list("hosts");
        assert_eq!(list(&[]), Ok(vec![]));
        assert_eq!(list(&[("a", "x"), ("hosts.0", "b"), ("hosts.1", "a"), ("hosts_max", "2")]), Ok(vec!["b", "a"]));
        for bad in ["hosts", "hosts.1", "hosts.x", "hosts.0.name"] {
            assert!(list(&[(bad, "x")]).unwrap_err().contains("`hosts`"), "{bad}");
        }
    }
}
