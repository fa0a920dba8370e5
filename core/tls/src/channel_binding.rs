//! Channel bindings: octets that belong to one TLS connection (or to the certificate of its server), so that a
//! SASL exchange that was signed together with them is worth nothing on another (RFC 5056).
//!
//! rustls' unbuffered connection has no exporter. But it tells the exporter secret of TLS 1.3 (`secret.rs`), and the
//! 32 octets of RFC 9266 §2 are derived from it at once; the secret is not kept.

use std::fmt;
use std::sync::Arc;

use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;
use zeroize::Zeroizing;

use crate::provider::digest::{self, digest};
use crate::secret::expand_label;

/// What a connection can be bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// RFC 9266; TLS 1.3 only, since the extended master secret of RFC 7627 cannot be seen on older ones.
    TlsExporter,
    /// RFC 5929 §4: a digest of the server's certificate.
    TlsServerEndPoint,
}

/// The channel bindings of one connection.
#[derive(Default)]
pub(crate) struct Bindings {
    pub(crate) exporter: Option<Zeroizing<[u8; EXPORTER_OCTETS]>>,
    pub(crate) end_point: Option<Arc<[u8]>>,
}

impl fmt::Debug for Bindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bindings")
    }
}

/// RFC 9266 §2.
const EXPORTER_OCTETS: usize = 32;
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// RFC 8446 §7.5, with the label of RFC 9266 and no context. The hash is known by the length of the secret.
pub(crate) fn export(secret: &[u8]) -> Option<Zeroizing<[u8; EXPORTER_OCTETS]>> {
    let hash = if secret.len() == 48 { &digest::SHA384 } else { &digest::SHA256 };
    let nothing = digest(hash, b"");
    let mut derived = Zeroizing::new([0; 48]);
    let derived = derived.get_mut(..secret.len())?;
    expand_label(secret, EXPORTER_LABEL, nothing.as_ref(), derived)?;
    let mut exported = Zeroizing::new([0; EXPORTER_OCTETS]);
    expand_label(derived, b"exporter", nothing.as_ref(), &mut *exported)?;
    Some(exported)
}

/// The tls-server-end-point of a certificate in DER, for clients. None where that is undefined, and of what is no
/// certificate.
pub fn server_end_point_of(der: &[u8]) -> Option<Arc<[u8]>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    server_end_point(der, &certificate)
}

/// The tls-server-end-point of a certificate: hashed as its signature is, but never by less than SHA-256.
/// None where that is undefined, as for Ed25519.
pub(crate) fn server_end_point(der: &[u8], certificate: &X509Certificate<'_>) -> Option<Arc<[u8]>> {
    let algorithm = &certificate.signature_algorithm;
    let oid = match SignatureAlgorithm::try_from(algorithm) {
        Ok(SignatureAlgorithm::RSASSA_PSS(params)) => params.hash_algorithm_oid().to_id_string(),
        _ => algorithm.algorithm.to_id_string(),
    };
    let hash = match oid.as_str() {
        // md5WithRSAEncryption, sha1WithRSAEncryption, ecdsa-with-SHA1; SHA-1 alone is the default of PSS.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.3.14.3.2.26" => &digest::SHA256,
        // With RSA, with ECDSA, and alone as a parameter of PSS.
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => &digest::SHA512,
        _ => return None,
    };
    Some(digest(hash, der).as_ref().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peer::*;
    use crate::*;

    fn bound() -> Settings<'static> {
        Settings { channel_binding: true, ..Settings::default() }
    }

    #[test]
    fn the_exporter_agrees_with_a_connection_that_has_one() {
        for suite in ["TLS13_AES_128_GCM_SHA256", "TLS13_AES_256_GCM_SHA384", "TLS13_CHACHA20_POLY1305_SHA256"] {
            let config = Client { suite: Some(suite), ..Client::new(V13) }.config();
            let server = server(&bound());
            // The second time with a ticket: another connection, other octets.
            let mut seen = Vec::new();
            for resumed in [false, true] {
                let mut pair = Pair::open(&server, connect(&config, "mail.example"));
                assert_eq!(pair.session.facts().unwrap().resumed, resumed, "{suite}");
                let theirs = pair.client.export_keying_material([0; 32], EXPORTER_LABEL, Some(b"")).unwrap();
                let ours = pair.session.channel_binding(ChannelBinding::TlsExporter).unwrap();
                assert_eq!(ours, theirs, "{suite}, resumed: {resumed}");
                assert!(!seen.contains(&theirs));
                seen.push(theirs);
                let end_point = pair.session.channel_binding(ChannelBinding::TlsServerEndPoint);
                assert_eq!(end_point.is_none(), resumed, "who resumes has seen an earlier certificate");
                pair.session.forget_channel_bindings();
                assert_eq!(pair.session.channel_binding(ChannelBinding::TlsExporter), None);
            }
        }
    }

    #[test]
    fn what_is_bound_by_and_where() {
        let made = Made::rsa();
        let store = store(&[&made]);
        for (settings, version, exporter, end_point) in [
            (bound(), V13, true, true),
            (bound(), V12, false, true),
            (Settings::default(), V13, false, false),
            (Settings::default(), V12, false, false),
        ] {
            let server = server_with(&settings, store.clone(), &[[1; 32]]);
            let mut pair = Pair::new(&server, Client::new(version).connect("mail.example"));
            assert_eq!(pair.session.channel_binding(ChannelBinding::TlsExporter), None, "no handshake yet");
            assert_eq!(pair.session.channel_binding(ChannelBinding::TlsServerEndPoint), None);
            pair.run().unwrap();
            assert_eq!(pair.session.channel_binding(ChannelBinding::TlsExporter).is_some(), exporter);
            // The certificate is signed with SHA-256.
            let found = pair.session.channel_binding(ChannelBinding::TlsServerEndPoint);
            let wanted = digest(&digest::SHA256, &made.der());
            assert_eq!(found, end_point.then_some(wanted.as_ref()));
        }
    }

    #[test]
    fn end_points_by_signature() {
        for (signature, octets) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let key = rcgen::KeyPair::generate_for(signature).unwrap();
            let params = rcgen::CertificateParams::new(vec!["mail.example".into()]).unwrap();
            let chain = params.self_signed(&key).unwrap().pem();
            let certificate = Made { chain, key: key.serialize_pem() }.certificate();
            assert_eq!(certificate.end_point.as_ref().map(|end_point| end_point.len()), octets, "{signature:?}");
        }
    }
}
