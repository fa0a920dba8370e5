//! The SMTP session: bytes in; replies and at most one pending effect out.
#![forbid(unsafe_code)]
pub mod envelope;
pub mod host;
pub mod id;
