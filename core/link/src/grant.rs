//! What an operator lets a library of a stranger have beyond computing: `grant` of the configuration.
//!
//! ```text
//! net          connections to others, TCP and UDP; what the resolver reads comes with it
//! read:PATH    a file, or all files below a folder
//! write:PATH   the same, to be read, written, made and removed
//! ```

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What is granted; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Connections to others.
    pub net: bool,
    /// What may be read.
    pub read: Vec<PathBuf>,
    /// What may be read, written, made and removed.
    pub write: Vec<PathBuf>,
}

/// A word that is no grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadGrant {
    /// Which of the words.
    pub index: usize,
    /// What is wrong with it.
    pub cause: String,
    /// What to write instead.
    pub remedy: String,
}

impl Grants {
    /// From the words of the configuration.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, BadGrant> {
        let mut grants = Self::default();
        for (index, word) in words.into_iter().enumerate() {
            let bad = |cause: String, remedy: &str| BadGrant { index, cause, remedy: remedy.to_owned() };
            match word.split_once(':') {
                None if word == "net" => grants.net = true,
                Some((kind @ ("read" | "write"), path)) => {
                    let path = granted(path).map_err(|why| {
                        bad(format!("{word:?}: {why}"), "write a whole path, like \"read:/etc/krb5.keytab\"")
                    })?;
                    if kind == "read" { &mut grants.read } else { &mut grants.write }.push(path);
                }
                _ => {
                    let remedy = "write \"net\", \"read:/a/file\" or \"write:/a/folder\"";
                    return Err(bad(format!("{word:?} is no grant"), remedy));
                }
            }
        }
        Ok(grants)
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether any file is.
    pub fn files(&self) -> bool {
        !self.read.is_empty() || !self.write.is_empty()
    }

    /// As they are written.
    pub fn words(&self) -> Vec<String> {
        let net = self.net.then(|| "net".to_owned());
        let read = self.read.iter().map(|path| format!("read:{}", path.display()));
        let write = self.write.iter().map(|path| format!("write:{}", path.display()));
        net.into_iter().chain(read).chain(write).collect()
    }
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

/// A path that says without a doubt what is meant. The whole of the file system is no grant but the end of all walls.
fn granted(path: &str) -> Result<PathBuf, &'static str> {
    let whole = Path::new(path);
    match whole.components().count() {
        _ if !whole.is_absolute() => Err("a path begins with /"),
        _ if whole.components().any(|part| part == Component::ParentDir) => Err("a path has no .. in it"),
        1 => Err("everything is too much"),
        _ => Ok(whole.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_what_is_none() {
        let words = ["net", "read:/etc/krb5.conf", "read:/etc/krb5.keytab", "write:/var/tmp"];
        let grants = Grants::parse(words).unwrap();
        assert!(grants.net && grants.files() && grants.read.len() == 2 && grants.write.len() == 1);
        assert_eq!(grants.words(), words);
        assert!(Grants::parse([]).unwrap().is_empty());
        for bad in ["", "NET", "net:", "read", "read:", "read:etc", "write:/", "read:/etc/../root", "exec:/bin/sh"] {
            let error = Grants::parse(["net", bad]).unwrap_err();
            assert!(error.index == 1 && error.cause.contains(bad) && !error.remedy.is_empty(), "{bad}");
        }
    }
}
