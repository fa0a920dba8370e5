//! Client certificates, asked for so that SASL EXTERNAL (RFC 4422 appendix A) can use them.
//!
//! `request` never refuses anybody: many mail servers present a certificate to whoever asks, issued by
//! authorities that nobody here ever heard of, and a refusal would cost their mail. Such a certificate
//! counts as presented but not as verified. `require` refuses what does not verify.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::certificate::Pem;
use crate::error::CertificateError;
use crate::noted;
use crate::provider;
use crate::provider::digest::{SHA256, digest};

#[derive(Debug)]
pub(crate) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Verifies against the authorities; None where there are none.
    authorities: Option<Arc<dyn ClientCertVerifier>>,
    required: bool,
}

impl Verifier {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        authorities: Option<Pem<'_>>,
        required: bool,
    ) -> Result<Self, CertificateError> {
        let authorities = match authorities {
            Some(bundle) => Some(read_authorities(&provider, bundle)?),
            None if required => return Err(CertificateError::NoAuthorities),
            None => None,
        };
        Ok(Self { provider, authorities, required })
    }
}

/// What a certificate says about the client that holds its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Mail addresses (subjectAltName, rfc822Name).
    pub mail: Vec<String>,
    /// URIs (subjectAltName).
    pub uris: Vec<String>,
    /// Common names of the subject.
    pub common_names: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
}

impl ClientIdentity {
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut identity = Self::default();
        identity.spki_sha256.copy_from_slice(digest(&SHA256, certificate.public_key().raw).as_ref());
        if let Some(extension) = certificate.subject_alternative_name().ok()? {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::RFC822Name(mail) => identity.mail.extend(plain(mail)),
                    GeneralName::URI(uri) => identity.uris.extend(plain(uri)),
                    _ => {}
                }
            }
        }
        let common_names = certificate.subject().iter_common_name();
        identity.common_names = common_names.filter_map(|name| plain(name.as_str().ok()?)).collect();
        Some(identity)
    }
}

/// A name with NUL or another control character is an attempt to be read as another one.
fn plain(name: &str) -> Option<String> {
    (!name.is_empty() && !name.contains(char::is_control)).then(|| name.to_owned())
}

/// Whether a bundle holds authorities that client certificates can be verified against.
pub fn check_authorities(bundle: Pem<'_>) -> Result<(), CertificateError> {
    read_authorities(&Arc::new(provider::default_provider()), bundle).map(drop)
}

fn read_authorities(
    provider: &Arc<CryptoProvider>,
    bundle: Pem<'_>,
) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(bundle.octets).enumerate() {
        let malformed =
            |cause: String| CertificateError::Malformed { file: bundle.file.into(), position: index + 1, cause };
        let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
        roots.add(certificate).map_err(|error| malformed(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(CertificateError::NoCertificate { file: bundle.file.into() });
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| CertificateError::Settings { cause: error.to_string() })
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.as_ref().map_or(&[], |authorities| authorities.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = match &self.authorities {
            Some(authorities) => authorities.verify_client_cert(end_entity, intermediates, now).map(|_| true),
            None => Ok(false),
        };
        let verified = if self.required { verified? } else { verified.unwrap_or(false) };
        noted::current(|noted| {
            noted.certificate_presented = true;
            noted.certificate_verified = verified;
        });
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
