//! SCRAM, CRAM-MD5 and DIGEST-MD5 as they ship, with the nonces of published examples instead of fresh ones: with it
//! `portreeve plugin vectors --smtp … --exact` plays RFC 5802 §5, RFC 7677 §3, RFC 2195 §2 and others octet by octet
//! against a running server, which is the ordinary one.
//!
//! The mechanisms are compiled from the very files of `portreeve-standard` and `portreeve-legacy`; only where a nonce
//! comes from is ours. It is a library for tests: nonces that everybody knows protect nobody. Nothing that ships has a
//! way to fixed nonces.
// The mechanisms' own tests run where the mechanisms live.
#![cfg(not(test))]
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "what only the mechanisms that ship use")]

// Formatted where they live.
#[rustfmt::skip]
#[path = "../../../plugins/legacy/src/cram_md5.rs"]
mod cram_md5;
#[rustfmt::skip]
#[path = "../../../plugins/legacy/src/digest_md5.rs"]
mod digest_md5;
#[rustfmt::skip]
#[path = "../../../plugins/standard/src/gs2.rs"]
mod gs2;
#[rustfmt::skip]
#[path = "../../../plugins/standard/src/scram.rs"]
mod scram;

use portreeve_plugin_sdk::Bad;

use cram_md5::{Challenges, Cram, RANDOM_OCTETS};
use digest_md5::Digest;
use scram::{Scram, Sha1, Sha256, Sha512};

/// RFC 5802 §5. What was computed for SCRAM-SHA-512 has the same nonce.
struct Rfc5802;

impl scram::Nonces for Rfc5802 {
    fn nonce(_: &[u8], _: &[u8]) -> Result<impl AsRef<[u8]>, Bad> {
        Ok(b"3rfcNHYJY1ZVvWVs7j")
    }
}

/// RFC 7677 §3, and what was computed for a client with the nonce `abc`.
struct Rfc7677;

impl scram::Nonces for Rfc7677 {
    fn nonce(_: &[u8], client_first: &[u8]) -> Result<impl AsRef<[u8]>, Bad> {
        Ok(if client_first.ends_with(b",r=abc") { &b"xyz"[..] } else { b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0" })
    }
}

/// RFC 2195 §2.
struct Rfc2195;

impl Challenges for Rfc2195 {
    fn challenge(_: &[u8; RANDOM_OCTETS], _: u64, _: &[u8]) -> Result<impl AsRef<[u8]>, Bad> {
        Ok(b"<1896.697170952@postoffice.reston.mci.net>")
    }
}

/// What was computed for DIGEST-MD5 with SMTP; RFC 2831 has no example of it.
struct Computed;

impl digest_md5::Nonces for Computed {
    fn nonce(_: &[u8; 16]) -> impl AsRef<[u8]> {
        b"c2VydmVybm9uY2U"
    }
}

portreeve_plugin_sdk::portreeve_plugin! {
    id: "published",
    mechanisms: [
        Scram<Sha1, false, Rfc5802>,
        Scram<Sha256, false, Rfc7677>,
        Scram<Sha512, false, Rfc5802>,
        Cram<Rfc2195>,
        Digest<Computed>,
    ],
}
