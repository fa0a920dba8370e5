//! What goes wrong: with a connection ([`TlsError`]), with certificates and settings ([`CertificateError`]).

use std::fmt;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Why a TLS connection cannot go on. The alert, where one is due, has been appended to the output.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsError {
    /// The octets are not TLS: a client that speaks in clear, HTTP, a port scanner.
    NotTls,
    /// Nothing in common: versions, cipher suites, groups, signature schemes, extended master secret.
    Incompatible(String),
    /// The client offered application protocols (RFC 7301), `smtp` not among them.
    ApplicationProtocol,
    /// The peer gave up; the alert's name.
    Alert(String),
    /// The client's certificate is missing, unverifiable or not its own.
    ClientCertificate(String),
    /// A record that was altered on its way, or was not made with the session's keys.
    BadRecord,
    /// The peer broke the rules of TLS.
    Peer(String),
    /// More octets than a handshake or a record needs.
    TooLarge,
    /// The connection ended, or its handshake has not; nothing can be sent or received.
    NotOpen,
    /// Our own side failed: randomness, clock, key.
    Internal(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls => f.write_str("client does not speak TLS here"),
            Self::Incompatible(cause) => write!(f, "nothing in common with the client: {cause}"),
            Self::ApplicationProtocol => f.write_str("client wants another application protocol than smtp (ALPN)"),
            Self::Alert(name) => write!(f, "client gave up with alert {name}"),
            Self::ClientCertificate(cause) => write!(f, "client certificate: {cause}"),
            Self::BadRecord => f.write_str("record does not decrypt: altered, or made with other keys"),
            Self::Peer(cause) => write!(f, "client broke the rules of TLS: {cause}"),
            Self::TooLarge => f.write_str("handshake message or record is too large"),
            Self::NotOpen => f.write_str("TLS session is not open"),
            Self::Internal(cause) => write!(f, "internal: {cause}"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                Self::NotTls
            }
            Error::InvalidMessage(InvalidMessage::MessageTooLarge | InvalidMessage::HandshakePayloadTooLarge)
            | Error::PeerSentOversizedRecord => Self::TooLarge,
            Error::PeerIncompatible(cause) => Self::Incompatible(incompatibility(&cause)),
            // Found while signing, so rustls files it under misbehaviour of the peer or of the key.
            Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme) => {
                Self::ClientCertificate("signed with a scheme that was not offered".into())
            }
            Error::NoApplicationProtocol => Self::ApplicationProtocol,
            Error::AlertReceived(alert) => Self::Alert(alert_name(alert)),
            Error::NoCertificatesPresented => Self::ClientCertificate("none was presented".into()),
            Error::InvalidCertificate(cause) => Self::ClientCertificate(cause.to_string()),
            Error::DecryptError => Self::BadRecord,
            Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::General(_)
            | Error::EncryptError
            | Error::BadMaxFragmentSize
            | Error::InconsistentKeys(_)
            | Error::Other(_) => Self::Internal(error.to_string()),
            other => Self::Peer(other.to_string()),
        }
    }
}

fn incompatibility(cause: &PeerIncompatible) -> String {
    match cause {
        PeerIncompatible::Tls12NotOffered | PeerIncompatible::Tls12NotOfferedOrEnabled => {
            "no TLS version that is switched on here".into()
        }
        PeerIncompatible::NoCipherSuitesInCommon => "no cipher suite in common".into(),
        PeerIncompatible::NoKxGroupsInCommon => "no key-exchange group in common".into(),
        PeerIncompatible::NoSignatureSchemesInCommon => {
            "no certificate that the client's signature schemes can verify".into()
        }
        PeerIncompatible::ExtendedMasterSecretExtensionRequired => {
            "client lacks the extended master secret (RFC 7627)".into()
        }
        other => format!("{other:?}"),
    }
}

pub(crate) fn alert_name(alert: AlertDescription) -> String {
    match alert.as_str() {
        Some(name) => name.to_owned(),
        None => u8::from(alert).to_string(),
    }
}

/// Why a certificate, its key or a TLS setting was not taken into service. Each begins with the file
/// concerned and ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateError {
    /// No PEM section CERTIFICATE.
    NoCertificate {
        /// Where it was looked for.
        file: String,
    },
    /// No PEM section with a private key.
    NoKey {
        /// Where it was looked for.
        file: String,
    },
    /// The private key is protected by a passphrase, which nobody could type in at start.
    EncryptedKey {
        /// The key's file.
        file: String,
    },
    /// The PEM armour is broken, mostly because the file was half written.
    Pem {
        /// The file.
        file: String,
        /// What is broken.
        cause: String,
    },
    /// A certificate that cannot be read.
    Malformed {
        /// The file.
        file: String,
        /// Which certificate in it, from 1.
        position: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// A key of a kind or size that is not supported.
    UnusableKey {
        /// The key's file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The key is not that of the first certificate.
    KeyMismatch {
        /// The chain's file.
        file: String,
        /// The key's file.
        key_file: String,
    },
    /// The key belongs to a later certificate of the chain.
    LeafNotFirst {
        /// The chain's file.
        file: String,
        /// Where the server's own certificate stands, from 1.
        position: usize,
    },
    /// A certificate that was not issued by the one behind it.
    ChainOrder {
        /// The chain's file.
        file: String,
        /// The certificate whose issuer does not follow, from 1.
        position: usize,
        /// The issuer that should follow.
        issuer: String,
        /// Who follows instead.
        found: String,
    },
    /// The certificate, or one in its chain, is no longer valid.
    Expired {
        /// The file.
        file: String,
        /// Seconds since 1970.
        not_after: i64,
    },
    /// The certificate is not valid yet.
    NotYetValid {
        /// The file.
        file: String,
        /// Seconds since 1970.
        not_before: i64,
    },
    /// A set without a certificate.
    EmptySet,
    /// The encoded set is damaged or of another release.
    Encoding {
        /// What was expected.
        cause: &'static str,
    },
    /// `client_auth = "require"` without an authority that could have signed a client's certificate.
    NoAuthorities,
    /// A certificate could not be made.
    Generate {
        /// Why.
        cause: String,
    },
    /// The cryptographic library refuses the settings.
    Settings {
        /// Why.
        cause: String,
    },
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate { file } => write!(
                f,
                "{file}: no certificate inside; give the full chain as PEM (-----BEGIN CERTIFICATE-----), the server's own first"
            ),
            Self::NoKey { file } => {
                write!(f, "{file}: no private key inside; give it as PEM (PKCS#8, PKCS#1 or SEC1), without a passphrase")
            }
            Self::EncryptedKey { file } => write!(
                f,
                "{file}: the private key is protected by a passphrase; remove it with `openssl pkey -in {file} -out NEWFILE` and protect the file by its mode (0600)"
            ),
            Self::Pem { file, cause } => {
                write!(f, "{file}: {cause}; was the file still being written? Write a new file and rename it")
            }
            Self::Malformed { file, position, cause } => {
                write!(f, "{file}: certificate {position} cannot be read ({cause}); look at it with `openssl x509 -text`")
            }
            Self::UnusableKey { file, cause } => write!(
                f,
                "{file}: the private key cannot be used ({cause}); supported are ECDSA P-256, P-384, P-521, Ed25519 and RSA of 2048 bits or more"
            ),
            Self::KeyMismatch { file, key_file } => write!(
                f,
                "{file}: the first certificate does not belong to the key in {key_file}; give the pair that was made together"
            ),
            Self::LeafNotFirst { file, position } => write!(
                f,
                "{file}: the server's own certificate is number {position}; put it first, then each issuer behind what it issued"
            ),
            Self::ChainOrder { file, position, issuer, found } => write!(
                f,
                "{file}: certificate {position} was issued by `{issuer}`, but `{found}` follows; order the chain from the server's own certificate upwards, leave out what does not belong"
            ),
            Self::Expired { file, not_after } => {
                write!(f, "{file}: the certificate expired at {}; renew it", date(*not_after))
            }
            Self::NotYetValid { file, not_before } => {
                write!(f, "{file}: the certificate is valid from {} on; check this machine's clock", date(*not_before))
            }
            Self::EmptySet => f.write_str("no certificate given; name a chain and a key, or switch TLS off"),
            Self::Encoding { cause } => {
                write!(f, "encoded certificates: {cause}; supervisor and worker must be of one release")
            }
            Self::NoAuthorities => f.write_str(
                "client certificates are required, but no authority is given that could have issued one; name a CA bundle, or use \"request\"",
            ),
            Self::Generate { cause } => write!(f, "cannot make a certificate: {cause}"),
            Self::Settings { cause } => write!(f, "TLS settings: {cause}"),
        }
    }
}

impl std::error::Error for CertificateError {}

fn date(unix_seconds: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(unix_seconds).map(|at| at.format(&Rfc3339)) {
        Ok(Ok(text)) => text,
        _ => format!("second {unix_seconds} since 1970"),
    }
}
