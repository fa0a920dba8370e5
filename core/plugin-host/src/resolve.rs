//! From an id to a file. Only what is named is looked for: no directory is scanned.

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::vet::Ownership;

/// Where packages put plugins.
const LIBRARY_DIRECTORIES: [&str; 2] = ["/usr/local/lib/portreeve/plugins", "/usr/lib/portreeve/plugins"];

/// A library's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Whether it was found in a path of the configuration, and not beside the program or in `<libdir>`.
    pub configured: bool,
}

impl Found {
    /// How strictly the owners are looked at: strictly for what the configuration names when we are root.
    pub fn ownership(&self) -> Ownership {
        if self.configured && rustix::process::geteuid().is_root() { Ownership::Strict } else { Ownership::Relaxed }
    }
}

/// Looks for `portreeve_<id>.so`, then `libportreeve_<id>.so`, in the configured directories, then beside the
/// executable, then in `<libdir>/portreeve/plugins`.
pub fn resolve(id: &str, configured: &[PathBuf]) -> Result<Found, LoadError> {
    let beside = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let bundled: Vec<PathBuf> = beside.into_iter().chain(LIBRARY_DIRECTORIES.map(PathBuf::from)).collect();
    resolve_in(id, configured, &bundled)
}

fn resolve_in(id: &str, configured: &[PathBuf], bundled: &[PathBuf]) -> Result<Found, LoadError> {
    if !is_id(id) {
        return Err(LoadError::BadId { id: id.to_owned() });
    }
    let mut tried = Vec::new();
    let places = configured.iter().map(|place| (place, true)).chain(bundled.iter().map(|place| (place, false)));
    for (directory, configured) in places {
        for name in [format!("portreeve_{id}.so"), format!("libportreeve_{id}.so")] {
            let path = directory.join(name);
            // Whatever else is wrong with it, vetting says: the next place must not hide it.
            if path.symlink_metadata().is_ok() {
                return Ok(Found { path, configured });
            }
            tried.push(path);
        }
    }
    Err(LoadError::NotFound { id: id.to_owned(), tried })
}

/// `[a-z0-9_]{1,32}`: nothing that could leave a directory.
pub(crate) fn is_id(id: &str) -> bool {
    (1..=32).contains(&id.len()) && id.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_places_and_names() {
        let root = tempfile::tempdir().unwrap();
        let [configured, beside, libdir] = ["configured", "beside", "libdir"].map(|name| root.path().join(name));
        for directory in [&configured, &beside, &libdir] {
            std::fs::create_dir(directory).unwrap();
        }
        let find = || resolve_in("x", std::slice::from_ref(&configured), &[beside.clone(), libdir.clone()]);
        let LoadError::NotFound { tried, .. } = find().unwrap_err() else { panic!() };
        assert_eq!(tried.len(), 6);
        // From the last place to the first: each new file wins over those before.
        for (path, from_configuration) in [
            (libdir.join("libportreeve_x.so"), false),
            (libdir.join("portreeve_x.so"), false),
            (beside.join("libportreeve_x.so"), false),
            (beside.join("portreeve_x.so"), false),
            (configured.join("libportreeve_x.so"), true),
            (configured.join("portreeve_x.so"), true),
        ] {
            std::fs::write(&path, "").unwrap();
            assert_eq!(find().unwrap(), Found { path, configured: from_configuration });
        }
    }

    #[test]
    fn an_id_is_not_a_path() {
        for id in ["", "../x", "a/b", "A", "a.so", "a b", &"a".repeat(33)] {
            assert!(matches!(resolve(id, &[]), Err(LoadError::BadId { .. })), "{id:?}");
        }
    }
}
