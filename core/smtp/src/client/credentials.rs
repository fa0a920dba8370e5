//! Who we are to a peer, and what proves it.

use std::fmt;
use std::sync::Mutex;

use sasl::Secret;

use super::sasl::Mechanism;
use super::scram::{Hash, Keys};

/// Who we are to a peer. Shared by connections: what is expensive is done once.
pub struct Credentials {
    pub(super) authcid: Box<str>,
    pub(super) authzid: Box<str>,
    pub(super) secret: Secret,
    proof: Proof,
    /// SCRAM keys for the hash and salt that the peer showed last.
    keys: Mutex<Option<Keys>>,
}

/// What proves who we are. No mechanism may be handed another's secret: a password in the place of a token
/// would cross the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Password,
    /// A bearer token (RFC 6750).
    Token,
    /// Something that the peer has seen already, such as a client certificate.
    External,
}

/// A name or password that no mechanism can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCredentials;

impl fmt::Display for BadCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("user name, password or token is empty, too long, or has octets in it that no mechanism can carry")
    }
}

impl std::error::Error for BadCredentials {}

/// Octets of a name or password.
const NAME_OCTETS_MAX: usize = 1024;
/// Octets of a token: with its frame and in base64 it fits a line of 12288 octets (RFC 4954 §4).
const TOKEN_OCTETS_MAX: usize = 8192;

impl Credentials {
    /// A password. `authzid` is whom to act as; empty: who we are.
    pub fn new(authcid: &str, authzid: &str, password: &str) -> Result<Self, BadCredentials> {
        let bad = |text: &str| text.len() > NAME_OCTETS_MAX || text.contains('\0');
        if authcid.is_empty() || password.is_empty() || bad(authcid) || bad(authzid) || bad(password) {
            return Err(BadCredentials);
        }
        Ok(Self::with(authcid, authzid, password, Proof::Password))
    }

    /// A bearer token that was issued to `authcid`.
    pub fn token(authcid: &str, token: &str) -> Result<Self, BadCredentials> {
        // RFC 6750 §2.1: visible characters only. U+0001 ends a field of the message (RFC 7628 §3.1).
        let good_token =
            !token.is_empty() && token.len() <= TOKEN_OCTETS_MAX && token.bytes().all(|octet| octet.is_ascii_graphic());
        let good_name = !authcid.is_empty() && authcid.len() <= NAME_OCTETS_MAX && !authcid.contains(['\0', '\x01']);
        if good_token && good_name { Ok(Self::with(authcid, "", token, Proof::Token)) } else { Err(BadCredentials) }
    }

    /// What the peer has seen of us already. `authzid` is whom to act as; empty: who that shows us to be.
    pub fn external(authzid: &str) -> Result<Self, BadCredentials> {
        if authzid.len() > NAME_OCTETS_MAX || authzid.contains('\0') {
            return Err(BadCredentials);
        }
        Ok(Self::with("", authzid, "", Proof::External))
    }

    fn with(authcid: &str, authzid: &str, secret: &str, proof: Proof) -> Self {
        let secret = Secret::new(secret.as_bytes().to_vec());
        Self { authcid: authcid.into(), authzid: authzid.into(), secret, proof, keys: Mutex::new(None) }
    }

    /// Whether `mechanism` can say all of it, and takes what we have for a proof.
    pub(super) fn fit(&self, mechanism: Mechanism) -> bool {
        mechanism.proof() == self.proof && (self.authzid.is_empty() || mechanism.carries_authzid())
    }

    /// SCRAM keys, from the last time when hash, salt and iterations are the same (RFC 5802 §3 allows it).
    pub(super) fn scram_keys(&self, hash: Hash, salt: &[u8], iterations: u32) -> Keys {
        // A panic elsewhere leaves no half-made keys behind: they are replaced whole.
        let mut kept = self.keys.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(keys) = kept.as_ref().filter(|keys| keys.are_for(hash, salt, iterations)) {
            return keys.clone();
        }
        let keys = Keys::derive(hash, self.secret.expose(), salt, iterations);
        *kept = Some(keys.clone());
        keys
    }
}
