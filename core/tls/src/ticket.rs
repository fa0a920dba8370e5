//! Session tickets (RFC 8446 §4.6.1, RFC 5077) under keys that all processes and nodes of a site share.
//!
//! ```text
//! ticket = key id (16) ‖ nonce (12) ‖ AES-256-GCM(seconds of issue (8) ‖ session state) with its tag (16)
//! key id, AES key = HKDF-SHA-256(shared key, what the listener is)
//! ```
//!
//! rustls' own ticketer draws keys per process: with several processes on one port a client would seldom
//! meet the one that knows its ticket. And since what the listener is goes into the key, a ticket from
//! port 25 means nothing on 587 (services must not be confused with each other by resumption).

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use crate::noted;
use crate::provider::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use crate::provider::hkdf::{HKDF_SHA256, KeyType, Salt};
use crate::provider::rand::{SecureRandom, SystemRandom};

/// The keys that tickets are sealed with, newest first; shared by all listeners, exchanged while they run.
pub struct TicketKeys {
    current: ArcSwap<Vec<Zeroizing<[u8; 32]>>>,
}

impl TicketKeys {
    /// Takes 256-bit keys, newest first. The newest seals, all open; those after the third are left out.
    /// Without any, no ticket is issued or honoured.
    pub fn new(keys: &[[u8; 32]]) -> Self {
        Self { current: ArcSwap::new(Self::keep(keys)) }
    }

    /// Exchanges the keys. Tickets under a key that is no longer among them lead to a full handshake.
    pub fn replace(&self, keys: &[[u8; 32]]) {
        self.current.store(Self::keep(keys));
    }

    fn keep(keys: &[[u8; 32]]) -> Arc<Vec<Zeroizing<[u8; 32]>>> {
        Arc::new(keys.iter().take(KEYS_MAX).map(|key| Zeroizing::new(*key)).collect())
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys")
    }
}

/// Seals and opens the tickets of one listener.
pub(crate) struct Tickets {
    shared: Arc<TicketKeys>,
    service: String,
    derived: ArcSwap<Derived>,
}

/// The listener's keys, and the shared ones that they were made from.
struct Derived {
    from: Arc<Vec<Zeroizing<[u8; 32]>>>,
    keys: Vec<ServiceKey>,
}

struct ServiceKey {
    id: [u8; ID_OCTETS],
    aead: LessSafeKey,
}

impl Tickets {
    /// `service` tells listeners apart: tickets pass only between those that say the same.
    pub(crate) fn new(shared: Arc<TicketKeys>, service: String) -> Self {
        let derived = ArcSwap::from_pointee(Derived::new(&service, shared.current.load_full()));
        Self { shared, service, derived }
    }

    fn derived(&self) -> Arc<Derived> {
        let derived = self.derived.load_full();
        let from = self.shared.current.load();
        if Arc::ptr_eq(&derived.from, &from) {
            return derived;
        }
        // Several threads may get here at once and derive the same keys; that is cheaper than a lock.
        let derived = Arc::new(Derived::new(&self.service, from.clone()));
        self.derived.store(derived.clone());
        derived
    }

    fn seal(&self, state: &[u8], now: u64) -> Option<Vec<u8>> {
        let derived = self.derived();
        let key = derived.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(8 + state.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(&now.to_be_bytes());
        sealed.extend_from_slice(state);
        key.aead.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key.id), &mut *sealed).ok()?;
        let mut ticket = Vec::with_capacity(ID_OCTETS + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(&key.id);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (id, rest) = ticket.split_first_chunk::<ID_OCTETS>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let derived = self.derived();
        // The id is public and chosen by us; comparing it needs no constant time.
        let key = derived.keys.iter().find(|key| key.id == *id)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let opened =
            key.aead.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(key.id), &mut sealed).ok()?;
        let (issued, state) = opened.split_first_chunk()?;
        // From the future: another node's clock may be a little ahead, so only age counts.
        let age = now.saturating_sub(u64::from_be_bytes(*issued));
        (age <= u64::from(LIFETIME_SECONDS)).then(|| state.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.derived().keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    /// None for a session with a client certificate: whoever held the ticket would come back as that
    /// client without proving anything, even when the certificate is no longer accepted.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        if noted::current(|noted| noted.certificate_presented) {
            return None;
        }
        self.seal(plain, unix_seconds()?)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, unix_seconds()?)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Derived {
    fn new(service: &str, from: Arc<Vec<Zeroizing<[u8; 32]>>>) -> Self {
        let keys = from.iter().filter_map(|key| ServiceKey::new(&key[..], service)).collect();
        Self { from, keys }
    }
}

impl ServiceKey {
    fn new(shared: &[u8], service: &str) -> Option<Self> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                ID_OCTETS + 32
            }
        }
        let mut okm = Zeroizing::new([0; ID_OCTETS + 32]);
        Salt::new(HKDF_SHA256, b"portreeve session tickets 1")
            .extract(shared)
            .expand(&[service.as_bytes()], Length)
            .and_then(|okm_source| okm_source.fill(&mut okm[..]))
            .ok()?;
        let (id, key) = okm.split_first_chunk()?;
        Some(Self { id: *id, aead: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?) })
    }
}

fn unix_seconds() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// A key seals until the next one comes, and opens until two more have come.
const KEYS_MAX: usize = 3;
/// Twice the time that a key seals, so that a ticket's key outlives it.
const LIFETIME_SECONDS: u32 = 12 * 60 * 60;
const ID_OCTETS: usize = 16;

#[cfg(test)]
mod tests;
