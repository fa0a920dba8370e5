//! A file of tokens, one per line: `TOKEN USER [exp=SECONDS-SINCE-1970] [scope=WORD]…`. For tests, and for
//! machines that have no issuer. It is read again when it has changed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Claims;

/// Largest file.
const OCTETS_MAX: u64 = 16 << 20;

/// One file.
pub(super) struct List {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Size and time of what was read.
    stamp: Option<(u64, SystemTime)>,
    /// By the token's SHA-256: looking one up tells nothing about the others, however long it takes.
    tokens: HashMap<[u8; 32], Map<String, Value>>,
}

impl List {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inner: Mutex::default() }
    }

    pub(super) fn claims(&self, token: &[u8]) -> Claims {
        let mut inner = self.inner.lock();
        let stamp = std::fs::metadata(&self.path).ok().and_then(|meta| Some((meta.len(), meta.modified().ok()?)));
        let Some(stamp) = stamp.filter(|(octets, _)| *octets <= OCTETS_MAX) else { return Claims::Trouble };
        if inner.stamp != Some(stamp) {
            let Ok(text) = std::fs::read(&self.path).map(Zeroizing::new) else { return Claims::Trouble };
            *inner = Inner { stamp: Some(stamp), tokens: parse(&text) };
        }
        let key: [u8; 32] = Sha256::digest(token).into();
        inner.tokens.get(&key).map_or(Claims::Foreign, |claims| Claims::Are(claims.clone()))
    }
}

/// Lines that are none are passed over.
fn parse(text: &[u8]) -> HashMap<[u8; 32], Map<String, Value>> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (token, user) = (words.next()?, words.next()?);
        let mut claims = Map::new();
        // Under each name that an issuer may have been told to look at.
        for claim in ["email", "username", "sub"] {
            claims.insert(claim.to_owned(), json!(user));
        }
        let mut scopes = Vec::new();
        for word in words {
            match word.split_once('=') {
                Some(("scope", scope)) => scopes.push(scope),
                Some(("exp", seconds)) => drop(claims.insert("exp".into(), json!(seconds.parse::<u64>().ok()?))),
                _ => return None,
            }
        }
        claims.insert("scope".into(), json!(scopes.join(" ")));
        Some((Sha256::digest(token.as_bytes()).into(), claims))
    };
    lines.filter_map(entry).collect()
}
