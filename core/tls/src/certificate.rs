//! Certificates with their keys: read from PEM, checked, and carried from one process to another.
//!
//! The process that may read key files is not the one that talks to clients: it checks a new set
//! ([`Certificate::from_pem`], [`CertificateSet::check_dates`]), and sends it ([`CertificateSet::encode`])
//! to the workers, which put it into service ([`CertificateStore::replace`](crate::CertificateStore::replace)).

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureAlgorithm};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use crate::channel_binding::server_end_point;
use crate::error::CertificateError;
use crate::provider;

/// The octets of a PEM file and the name to use for it in messages.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    /// The file's name.
    pub file: &'a str,
    /// What it holds.
    pub octets: &'a [u8],
}

/// A certificate chain with its private key, known to fit together.
pub struct Certificate {
    file: String,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
    key: Key,
    /// tls-server-end-point, where it is defined.
    pub(crate) end_point: Option<Arc<[u8]>>,
    pub(crate) certified: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads a chain (the server's own certificate first, then its issuers) and the key.
    ///
    /// Checked: that both can be read, that the key is the certificate's, that each certificate was issued
    /// by the next. Not checked here: dates, since an expired certificate is refused on reload but better
    /// than none at start; see [`CertificateSet::check_dates`].
    pub fn from_pem(chain: Pem<'_>, key: Pem<'_>) -> Result<Self, CertificateError> {
        let broken =
            |file: &str, error: pem::Error| CertificateError::Pem { file: file.into(), cause: pem_cause(&error) };
        let certificates = CertificateDer::pem_slice_iter(chain.octets)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| broken(chain.file, error))?;
        if certificates.is_empty() {
            return Err(CertificateError::NoCertificate { file: chain.file.into() });
        }
        let key_der = match PrivateKeyDer::from_pem_slice(key.octets) {
            Ok(der) => der,
            Err(pem::Error::NoItemsFound) if is_encrypted(key.octets) => {
                return Err(CertificateError::EncryptedKey { file: key.file.into() });
            }
            Err(pem::Error::NoItemsFound) => return Err(CertificateError::NoKey { file: key.file.into() }),
            Err(error) => return Err(broken(key.file, error)),
        };
        // SEC1 and PKCS#1 armour has no section of its own for a passphrase, only a header line.
        if is_encrypted(key.octets) {
            return Err(CertificateError::EncryptedKey { file: key.file.into() });
        }
        Self::from_der(chain.file, key.file, certificates, Key::from(key_der), &provider::default_provider())
    }

    fn from_der(
        file: &str,
        key_file: &str,
        chain: Vec<CertificateDer<'static>>,
        key: Key,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        let mut parsed = Vec::with_capacity(chain.len());
        for (index, der) in chain.iter().enumerate() {
            let malformed =
                |cause: String| CertificateError::Malformed { file: file.into(), position: index + 1, cause };
            let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
            if !rest.is_empty() {
                return Err(malformed("octets behind its end".into()));
            }
            parsed.push(certificate);
        }
        let leaf = parsed.first().ok_or_else(|| CertificateError::NoCertificate { file: file.into() })?;

        let signing = provider
            .key_provider
            .load_private_key(key.to_der())
            .map_err(|error| CertificateError::UnusableKey { file: key_file.into(), cause: error.to_string() })?;
        if let Some(public) = signing.public_key() {
            let public: &[u8] = public.as_ref();
            match parsed.iter().position(|certificate| certificate.public_key().raw == public) {
                Some(0) => {}
                Some(index) => {
                    return Err(CertificateError::LeafNotFirst { file: file.into(), position: index + 1 });
                }
                None => {
                    return Err(CertificateError::KeyMismatch { file: file.into(), key_file: key_file.into() });
                }
            }
        }
        for (index, pair) in parsed.windows(2).enumerate() {
            if let [issued, issuer] = pair
                && issued.issuer().as_raw() != issuer.subject().as_raw()
            {
                return Err(CertificateError::ChainOrder {
                    file: file.into(),
                    position: index + 1,
                    issuer: issued.issuer().to_string(),
                    found: issuer.subject().to_string(),
                });
            }
        }

        let names = names_of(leaf);
        let end_point = chain.first().and_then(|der| server_end_point(der, leaf));
        // A root at the end is for clients that know it already; its dates say nothing.
        let dated = || {
            parsed
                .iter()
                .enumerate()
                .filter(|(index, c)| *index == 0 || c.issuer().as_raw() != c.subject().as_raw())
                .map(|(_, c)| c.validity())
        };
        let not_before = dated().map(|v| v.not_before.timestamp()).max().unwrap_or(i64::MIN);
        let not_after = dated().map(|v| v.not_after.timestamp()).min().unwrap_or(i64::MAX);
        drop(parsed);

        let certified = CertifiedKey::new(chain, signing);
        // rustls reads certificates more strictly than we did (X.509 version, extensions).
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => {
                return Err(CertificateError::Malformed { file: file.into(), position: 1, cause: error.to_string() });
            }
        }
        Ok(Self { file: file.into(), names, not_before, not_after, key, end_point, certified: Arc::new(certified) })
    }

    /// The file that the chain came from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The DNS names that it stands for, lower case; the common name where there are none.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The second since 1970 from which on all of the chain is valid.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// The last second since 1970 at which all of the chain is valid.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether `now` (seconds since 1970) lies in the time of validity; the error says on which side it does not.
    pub fn check_dates(&self, now: i64) -> Result<(), CertificateError> {
        if now > self.not_after {
            return Err(CertificateError::Expired { file: self.file.clone(), not_after: self.not_after });
        }
        if now < self.not_before {
            return Err(CertificateError::NotYetValid { file: self.file.clone(), not_before: self.not_before });
        }
        Ok(())
    }

    /// Cheap ones first: a P-256 signature costs a fourteenth of an RSA-2048 one.
    pub(crate) fn cost(&self) -> u8 {
        match self.certified.key.algorithm() {
            SignatureAlgorithm::ECDSA => 0,
            SignatureAlgorithm::ED25519 => 1,
            _ => 2,
        }
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("file", &self.file).field("names", &self.names).finish_non_exhaustive()
    }
}

/// The certificates of a listener: at least one; the first is the default.
#[derive(Debug)]
pub struct CertificateSet {
    certificates: Vec<Certificate>,
}

impl CertificateSet {
    /// Takes certificates in the order of the configuration. The first is used for clients that ask for
    /// no name or an unknown one, together with those that share a name with it (the same host with
    /// another kind of key).
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, CertificateError> {
        if certificates.is_empty() {
            return Err(CertificateError::EmptySet);
        }
        Ok(Self { certificates })
    }

    /// The certificates in order.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// The first certificate that is not valid at `now`, seconds since 1970: refuse the set on reload,
    /// warn loudly at start.
    pub fn check_dates(&self, now: i64) -> Result<(), CertificateError> {
        self.certificates.iter().try_for_each(|certificate| certificate.check_dates(now))
    }

    /// Octets from which [`decode`](Self::decode) makes the set again. They hold private keys.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let octets_of = |c: &Certificate| {
            c.file.len() + c.key.der.len() + 16 + c.certified.cert.iter().map(|der| der.len() + 4).sum::<usize>()
        };
        // All room at once: a growing vector would leave copies of the keys behind.
        let mut out = Vec::with_capacity(MAGIC.len() + 4 + self.certificates.iter().map(octets_of).sum::<usize>());
        let room = out.capacity();
        out.extend_from_slice(MAGIC);
        put_count(&mut out, self.certificates.len());
        for certificate in &self.certificates {
            put(&mut out, certificate.file.as_bytes());
            out.push(certificate.key.form as u8);
            put(&mut out, &certificate.key.der);
            put_count(&mut out, certificate.certified.cert.len());
            for der in &certificate.certified.cert {
                put(&mut out, der);
            }
        }
        debug_assert_eq!(out.capacity(), room);
        Zeroizing::new(out)
    }

    /// Makes the set that [`encode`](Self::encode) wrote, with all checks of [`Certificate::from_pem`].
    pub fn decode(octets: &[u8]) -> Result<Self, CertificateError> {
        let provider = provider::default_provider();
        let mut rest =
            octets.strip_prefix(MAGIC).ok_or(CertificateError::Encoding { cause: "unknown first octets" })?;
        let mut certificates = Vec::new();
        for _ in 0..take_count(&mut rest)? {
            let file = String::from_utf8_lossy(take(&mut rest)?).into_owned();
            let (&form, after) = rest.split_first().ok_or(CUT_SHORT)?;
            rest = after;
            let form = match form {
                1 => Form::Pkcs1,
                2 => Form::Sec1,
                3 => Form::Pkcs8,
                _ => return Err(CertificateError::Encoding { cause: "unknown form of a key" }),
            };
            let key = Key { form, der: Zeroizing::new(take(&mut rest)?.to_vec()) };
            let mut chain = Vec::new();
            for _ in 0..take_count(&mut rest)? {
                chain.push(CertificateDer::from(take(&mut rest)?.to_vec()));
            }
            certificates.push(Certificate::from_der(&file, &file, chain, key, &provider)?);
        }
        if !rest.is_empty() {
            return Err(CertificateError::Encoding { cause: "octets behind its end" });
        }
        Self::new(certificates)
    }

    pub(crate) fn into_certificates(self) -> Vec<Certificate> {
        self.certificates
    }
}

/// A private key's octets, wiped when dropped.
struct Key {
    form: Form,
    der: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Form {
    Pkcs1 = 1,
    Sec1 = 2,
    Pkcs8 = 3,
}

impl Key {
    fn to_der(&self) -> PrivateKeyDer<'static> {
        // rustls' loader takes ownership and does not wipe; what it keeps lives as long as the key is in use.
        let der = self.der.to_vec();
        match self.form {
            Form::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            Form::Sec1 => PrivateSec1KeyDer::from(der).into(),
            Form::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
        }
    }
}

impl From<PrivateKeyDer<'static>> for Key {
    fn from(mut der: PrivateKeyDer<'static>) -> Self {
        let form = match &der {
            PrivateKeyDer::Pkcs1(_) => Form::Pkcs1,
            PrivateKeyDer::Sec1(_) => Form::Sec1,
            _ => Form::Pkcs8,
        };
        let key = Self { form, der: Zeroizing::new(der.secret_der().to_vec()) };
        der.zeroize();
        key
    }
}

fn names_of(leaf: &X509Certificate<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    if let Ok(Some(extension)) = leaf.subject_alternative_name() {
        names.extend(extension.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        }));
    }
    if names.is_empty() {
        names.extend(
            leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_ascii_lowercase),
        );
    }
    names
}

fn pem_cause(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("a section without its end `{}`", String::from_utf8_lossy(end_marker).trim())
        }
        pem::Error::IllegalSectionStart { .. } => "a section begins with a malformed line".into(),
        pem::Error::Base64Decode(_) => "a section is not base64".into(),
        other => other.to_string(),
    }
}

fn is_encrypted(pem: &[u8]) -> bool {
    String::from_utf8_lossy(pem)
        .lines()
        .any(|line| line.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY") || line.starts_with("Proc-Type: 4,ENCRYPTED"))
}

fn put(out: &mut Vec<u8>, octets: &[u8]) {
    put_count(out, octets.len());
    out.extend_from_slice(octets);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("files are smaller than 4 GiB: the PEM reader refuses above 256 MiB");
    out.extend_from_slice(&count.to_be_bytes());
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], CertificateError> {
    let length = take_count(rest)? as usize;
    let (octets, after) = rest.split_at_checked(length).ok_or(CUT_SHORT)?;
    *rest = after;
    Ok(octets)
}

fn take_count(rest: &mut &[u8]) -> Result<u32, CertificateError> {
    let (count, after) = rest.split_first_chunk().ok_or(CUT_SHORT)?;
    *rest = after;
    Ok(u32::from_be_bytes(*count))
}

const MAGIC: &[u8] = b"portreeve certificates 1\n";
const CUT_SHORT: CertificateError = CertificateError::Encoding { cause: "cut short" };

#[cfg(test)]
mod tests;
