//! Mechanisms that only old clients need, as one library: id `legacy`, one file per mechanism. It is apart
//! from `standard` so that a hardened site does not even map MD5 code.
//!
//! | name | text | proves by |
//! |---|---|---|
//! | CRAM-MD5 | RFC 2195 | FETCH_KEY, `CramMd5Context` |
//! | DIGEST-MD5 | RFC 2831, historic by RFC 6331 | FETCH_KEY, `DigestMd5Ha1` |
//! | ANONYMOUS | RFC 4505 | nothing: the operator must grant it |
//!
//! All are `OBSOLETE`: never offered unless the configuration names them.
#![forbid(unsafe_code)]

mod anonymous;
mod cram_md5;
mod digest_md5;

pub use anonymous::Anonymous;
pub use cram_md5::{Challenges, Cram, CramMd5, MsgId, RANDOM_OCTETS};
pub use digest_md5::{Digest, DigestMd5, HexNonce, Nonces};

portreeve_plugin_sdk::portreeve_plugin! { id: "legacy", mechanisms: [CramMd5, DigestMd5, Anonymous] }
