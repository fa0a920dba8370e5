//! The mechanisms of today's mail clients, as one library: id `standard`, one file per mechanism.
//!
//! | name | text | proves by |
//! |---|---|---|
//! | SCRAM-SHA-512, SCRAM-SHA-256 | RFC 5802, RFC 7677 | FETCH_KEY |
//! | SCRAM-SHA-512-PLUS, SCRAM-SHA-256-PLUS | RFC 9266, RFC 5929 | FETCH_KEY, CHANNEL_BINDING |
//! | SCRAM-SHA-1, SCRAM-SHA-1-PLUS | RFC 5802 | the same; off unless the configuration names them |
//! | EXTERNAL | RFC 4422 appendix A | VERIFY_EXTERNAL |
//! | OAUTHBEARER | RFC 7628 | VERIFY_TOKEN |
//! | XOAUTH2 | vendors' documents | VERIFY_TOKEN |
//! | PLAIN | RFC 4616 | VERIFY_PASSWORD |
//! | LOGIN | draft-murchison-sasl-login | VERIFY_PASSWORD |
//!
//! PLAIN, LOGIN and the bearer tokens send the secret as it is: the host offers them only inside TLS
//! (`PLAINTEXT`). No mechanism allocates in a step, and all but SCRAM and LOGIN keep no state at all.
//!
//! Here is one exchange, by the example of RFC 7677 §3 up to the server's nonce, which is not ours to choose:
//!
//! ```
//! use portreeve_plugin_sdk::ScramKey;
//! use portreeve_plugin_sdk::testing::{Answer, Exchange};
//! use portreeve_plugin_sdk::{Mechanism, Settings};
//! use portreeve_standard::ScramSha256;
//!
//! let mut exchange = Exchange::new(ScramSha256::configure(&Settings::default())?);
//! match exchange.start(Some(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")) {
//!     Answer::Effect { authcid, .. } => assert_eq!(authcid, b"user"),
//!     other => panic!("{other:?}"),
//! }
//! // What the directory keeps for `user` instead of a password.
//! let key = ScramKey { iterations: 4096, salt: b"0123456789abcdef", stored_key: &[1; 32], server_key: &[2; 32] };
//! match exchange.scram(key) {
//!     Answer::Challenge(server_first) => {
//!         assert!(server_first.starts_with(b"r=rOprNGfwEbeRWgbNEkqO"));
//!         assert!(server_first.ends_with(b",s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096"));
//!     }
//!     other => panic!("{other:?}"),
//! }
//! # Ok::<(), String>(())
//! ```
#![forbid(unsafe_code)]

mod bearer;
mod external;
mod fuzz;
mod gs2;
mod login;
mod oauthbearer;
mod plain;
mod scram;
mod xoauth2;

pub use external::External;
pub use fuzz::fuzz_oauthbearer;
pub use login::Login;
pub use oauthbearer::OauthBearer;
pub use plain::Plain;
pub use scram::{
    Fresh, Nonces, Scram, ScramHash, ScramSha1, ScramSha1Plus, ScramSha256, ScramSha256Plus, ScramSha512,
    ScramSha512Plus, Sha1, Sha256, Sha512,
};
pub use xoauth2::Xoauth2;

portreeve_plugin_sdk::portreeve_plugin! {
    id: "standard",
    mechanisms: [
        Plain, Login, ScramSha1, ScramSha1Plus, ScramSha256, ScramSha256Plus, ScramSha512, ScramSha512Plus, External,
        OauthBearer, Xoauth2,
    ],
}
