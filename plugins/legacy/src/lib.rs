//! Mechanisms that only old clients need, as one library: id `legacy`, one file per mechanism. It is apart
//! from `standard` so that a hardened site does not even map MD5 code.
//!
//! | name | text | proves by |
//! |---|---|---|
//! | CRAM-MD5 | RFC 2195 | FETCH_KEY, `CramMd5Context` |
//!
//! All are `OBSOLETE`: never offered unless the configuration names them.
#![forbid(unsafe_code)]

mod cram_md5;

pub use cram_md5::CramMd5;

portreeve_plugin_sdk::portreeve_plugin! { id: "legacy", mechanisms: [CramMd5] }
