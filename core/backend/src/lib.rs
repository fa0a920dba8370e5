//! Embedded credentials and the directory service: what workers ask about users, and the file that knows.
//!
//! ```text
//! users     the text file in memory: names, secrets, aliases, limits     edit     changes it on disk
//! scheme    stored secrets: parse, check, make                           prep     when two names are the same
//! decoy     keys for users who do not exist                              watch    takes changed content into service
//! directory answers questions                                            pool     checks passwords away from the loop
//! token     whose a bearer token is
//! serve     the directory process: a loop over links
//! broker    back ends of libraries: whom to ask, how long to wait         outside  what they say, looked at
//! ```
//!
//! The file is read whole into memory, so a lookup never blocks; what is slow on purpose, hashing, runs in
//! [`pool`]. Whoever edits the file does so under a lock and by rename, beside a running server or without
//! one; a file that is not right is reported with line, cause and remedy and changes nothing.
//!
//! ```
//! use std::sync::Arc;
//! use backend::users::{Options, Users};
//! use zeroize::Zeroizing;
//!
//! let file = "alice@demo.test:{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==:aliases=info@demo.test\n";
//! let text = Zeroizing::new(file.as_bytes().to_vec());
//! let users = Users::parse("users".as_ref(), text, &Arc::new(Options::default()))?;
//! assert!(users.user("Alice@Demo.Test").unwrap().verify(b"pencil"));
//! assert_eq!(users.mailbox("info@demo.test").unwrap().name, "alice@demo.test");
//! # Ok::<(), backend::users::BadUsers>(())
//! ```
#![forbid(unsafe_code)]

pub mod broker;
pub mod decoy;
mod derived;
pub mod directory;
pub mod edit;
pub mod event;
pub mod outside;
pub mod pool;
pub mod prep;
pub mod scheme;
pub mod serve;
pub mod token;
pub mod users;
pub mod watch;

/// Fuzz entry: `octets` as every kind of text that this crate reads. Nothing may panic, and what is good must
/// be found again.
pub fn fuzz_texts(octets: &[u8]) {
    let text = zeroize::Zeroizing::new(octets.to_vec());
    if let Ok(users) = users::Users::parse("fuzz".as_ref(), text, &Default::default()) {
        for user in users.iter() {
            assert!(users.named(&user.name).is_some());
            assert!(user.aliases.iter().all(|alias| users.mailbox(alias).is_some_and(|owner| owner.name == user.name)));
        }
    }
    if let Ok(text) = std::str::from_utf8(octets) {
        let options = scheme::Options { allow_cleartext: true, ..Default::default() };
        if let Ok(canonical) = scheme::StoredSecret::canonical(text, &options) {
            assert!(scheme::StoredSecret::parse(&canonical, &options).is_ok());
        }
    }
    let rules = prep::NameRules::default();
    if let Some(name) = rules.name(octets) {
        assert_eq!(rules.name(name.as_bytes()).as_ref(), Some(&name), "preparation is idempotent");
    }
    let _ = edit::fuzz_import(octets);
}

#[cfg(test)]
mod tests {
    /// A short run of the fuzz entry: pieces of good texts in any order, from a fixed seed.
    #[test]
    fn fuzzing_for_a_moment() {
        let pieces: &[&[u8]] = &[
            b"alice",
            b"@",
            b"demo.test",
            b":",
            b" ",
            b"\n",
            b"\\3a",
            b"\\",
            b",",
            b"=",
            b"#",
            b"*",
            b"aliases=",
            b"senders=",
            b"disabled",
            b"size=1M",
            b"{SSHA}M0YXe+4K7AXJbpIQR++HGoshE8JzYWx0c2FsdA==",
            b"{PLAIN}",
            b"{MD5}",
            b"{CRYPT}",
            b"$1$saltsalt$wCrc3hcrR95SV83Xh8Z.41",
            b"SCRAM-SHA-1$4096:",
            b"$",
            b"\xc3\xa9",
            b"\xff",
            b"\0",
            b"\r",
            b"\t",
            b"+",
            b"nopassword",
            b".b64}",
            b"{",
            b"}",
            b"\xe2\x80\xa8",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..30_000 {
            let text: Vec<u8> = (0..next(24)).flat_map(|_| pieces[next(pieces.len())]).copied().collect();
            super::fuzz_texts(&text);
        }
    }
}
