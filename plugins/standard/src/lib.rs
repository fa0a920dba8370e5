//! The mechanisms of today's mail clients, as one library: id `standard`, one file per mechanism.
//!
//! | name | text | proves by |
//! |---|---|---|
//! | PLAIN | RFC 4616 | VERIFY_PASSWORD |
//! | LOGIN | draft-murchison-sasl-login | VERIFY_PASSWORD |
//!
//! Both send the password as it is: the host offers them only inside TLS (`PLAINTEXT`). Neither allocates,
//! and PLAIN keeps no state at all.
#![forbid(unsafe_code)]

mod login;
mod plain;

pub use login::Login;
pub use plain::Plain;

portreeve_plugin_sdk::portreeve_plugin! { id: "standard", mechanisms: [Plain, Login] }
