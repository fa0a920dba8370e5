//! Which certificate a client gets, and how the set is exchanged under running listeners.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certificate::CertificateSet;
use crate::noted;

/// The certificates in service. Handshakes under way keep those that they began with.
pub struct CertificateStore {
    current: ArcSwap<Table>,
}

impl CertificateStore {
    /// Begins with `set`.
    pub fn new(set: CertificateSet) -> Self {
        Self { current: ArcSwap::from_pointee(Table::from(set)) }
    }

    /// From the next handshake on, `set` is used.
    pub fn replace(&self, set: CertificateSet) {
        self.current.store(Arc::new(Table::from(set)));
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateStore")
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        noted::current(|noted| noted.sni = name.map(Into::into));
        let table = self.current.load();
        let chosen = table.choose(name, hello.signature_schemes())?;
        noted::current(|noted| {
            if let Some(bindings) = &mut noted.bindings {
                bindings.end_point.clone_from(&chosen.end_point);
            }
        });
        Some(Arc::clone(&chosen.key))
    }
}

/// Certificates by name; of each name the cheap ones to sign with first.
struct Table {
    by_name: HashMap<String, Vec<Entry>>,
    default: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    key: Arc<CertifiedKey>,
    /// tls-server-end-point.
    end_point: Option<Arc<[u8]>>,
}

impl From<CertificateSet> for Table {
    fn from(set: CertificateSet) -> Self {
        let mut certificates = set.into_certificates();
        let default_names = certificates.first().map(|first| first.names().to_vec()).unwrap_or_default();
        let default_key = certificates.first().map(|first| first.certified.clone());
        certificates.sort_by_key(|certificate| certificate.cost()); // stable: the order given decides within a kind
        let mut table = Self { by_name: HashMap::new(), default: Vec::new() };
        for certificate in &certificates {
            let is_first = default_key.as_ref().is_some_and(|key| Arc::ptr_eq(key, &certificate.certified));
            let entry = Entry { key: certificate.certified.clone(), end_point: certificate.end_point.clone() };
            if is_first || certificate.names().iter().any(|name| default_names.contains(name)) {
                table.default.push(entry.clone());
            }
            for name in certificate.names() {
                table.by_name.entry(name.clone()).or_default().push(entry.clone());
            }
        }
        table
    }
}

impl Table {
    /// The first certificate for the name that the client can verify; else the default's; else one whose
    /// use lets rustls say what is lacking. Names are compared as RFC 6125 §6.4.3 does: a `*` stands for
    /// one whole label on the left.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Entry> {
        let named = name.and_then(|name| {
            let wildcard = || name.split_once('.').and_then(|(_, parent)| self.by_name.get(&format!("*.{parent}")));
            self.by_name.get(name).or_else(wildcard)
        });
        let named = named.map(Vec::as_slice).unwrap_or_default();
        let verifiable = |entry: &&Entry| entry.key.key.choose_scheme(schemes).is_some();
        named
            .iter()
            .find(verifiable)
            .or_else(|| self.default.iter().find(verifiable))
            .or_else(|| named.first())
            .or_else(|| self.default.first())
    }
}
