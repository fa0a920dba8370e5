//! Secrets of TLS 1.3's key schedule (RFC 8446 §7) that outlive the handshake.
//!
//! rustls tells them to the `KeyLog` of its configuration, during the handshake and on the caller's thread. [`Told`]
//! keeps two for the connection that is being made, from which the keys behind a KeyUpdate come (`record.rs`), and has the
//! third turned into a channel binding at once. No log is written.

use std::fmt;

use rustls::KeyLog;
use zeroize::Zeroizing;

use crate::channel_binding::export;
use crate::noted;
use crate::provider::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

/// A secret of the schedule; wiped when it is dropped.
pub(crate) struct Secret {
    octets: Zeroizing<[u8; SECRET_OCTETS_MAX]>,
    /// That of the hash; 0 for none.
    length: u8,
}

/// `client_application_traffic_secret_N` and `server_application_traffic_secret_N`.
#[derive(Default)]
pub(crate) struct Traffic {
    pub(crate) client: Secret,
    pub(crate) server: Secret,
}

/// None.
impl Default for Secret {
    fn default() -> Self {
        Self { octets: Zeroizing::new([0; SECRET_OCTETS_MAX]), length: 0 }
    }
}

impl Secret {
    fn of(octets: &[u8]) -> Self {
        let mut secret = Self::default();
        if let (Some(to), Ok(length)) = (secret.octets.get_mut(..octets.len()), u8::try_from(octets.len())) {
            to.copy_from_slice(octets);
            secret.length = length;
        }
        secret
    }

    /// HKDF-Expand-Label with it and no context. None for a secret that is none.
    pub(crate) fn expand(&self, label: &[u8], to: &mut [u8]) -> Option<()> {
        expand_label(self.octets.get(..usize::from(self.length))?, label, b"", to)
    }

    /// The one behind it (§7.2).
    pub(crate) fn next(&self) -> Option<Self> {
        let mut next = Self { length: self.length, ..Self::default() };
        self.expand(b"traffic upd", next.octets.get_mut(..usize::from(self.length))?)?;
        Some(next)
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traffic")
    }
}

/// Takes the secrets as they come by.
#[derive(Debug)]
pub(crate) struct Told {
    /// Also that of channel bindings.
    pub(crate) exporter: bool,
}

impl KeyLog for Told {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        // TLS 1.2 does not ask `will_log` first.
        noted::current(|noted| match label {
            CLIENT => noted.traffic.get_or_insert_default().client = Secret::of(secret),
            SERVER => noted.traffic.get_or_insert_default().server = Secret::of(secret),
            EXPORTER => {
                if let Some(bindings) = &mut noted.bindings {
                    bindings.exporter = export(secret);
                }
            }
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER) || (self.exporter && label == EXPORTER)
    }
}

/// HKDF-Expand-Label of RFC 8446 §7.1. The hash is known by the length of the secret.
pub(crate) fn expand_label(secret: &[u8], label: &[u8], context: &[u8], to: &mut [u8]) -> Option<()> {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(to.len()).ok()?.to_be_bytes();
    let label_octets = [u8::try_from(PREFIX.len() + label.len()).ok()?];
    let context_octets = [u8::try_from(context.len()).ok()?];
    let info = [&length[..], &label_octets, PREFIX, label, &context_octets, context];
    Prk::new_less_safe(hash_of(secret)?, secret).expand(&info, Octets(to.len())).ok()?.fill(to).ok()
}

fn hash_of(secret: &[u8]) -> Option<hkdf::Algorithm> {
    match secret.len() {
        32 => Some(HKDF_SHA256),
        48 => Some(HKDF_SHA384),
        _ => None,
    }
}

struct Octets(usize);

impl KeyType for Octets {
    fn len(&self) -> usize {
        self.0
    }
}

/// Of SHA-384.
const SECRET_OCTETS_MAX: usize = 48;

// As the format of NSS key log files calls them.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";
const EXPORTER: &str = "EXPORTER_SECRET";
