//! What all shards of a worker share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::budget::Budget;
use crate::cache::Passwords;
use crate::setup::{Notice, Passes, Port};

/// Of one worker process.
pub struct Shared {
    pub ports: Vec<Port>,
    pub passwords: Passwords,
    pub budget: Budget,
    pub limits: Arc<limits::Table>,
    /// Names of accounts become numbers under this key.
    pub account_key: Hmac<Sha256>,
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
    /// Whose reply waits for the next hop.
    pub passes: Option<Passes>,
    /// Per shard: when it last turned, milliseconds since 1970.
    pub beats: Box<[AtomicU64]>,
    /// Per shard: sessions.
    pub sessions: Box<[AtomicU64]>,
    pub panics: AtomicU64,
}

impl Shared {
    /// The number of an account in the limits; case does not make another one.
    pub fn account(&self, name: &[u8]) -> u64 {
        let mut mac = self.account_key.clone();
        mac.update(&name.to_ascii_lowercase());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        digest.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }
}
