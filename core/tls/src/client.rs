//! The client's side, for delivery to next hops: few connections, each with a thread of its own, so rustls'
//! buffered connection is good enough here.
//!
//! Opportunistic TLS (RFC 7435) believes any certificate: the alternative is no TLS at all. Whoever wants to
//! know whom they talk to names [`Trust::Authorities`], and the handshake fails for anybody else.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::version::{TLS12, TLS13};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::certificate::Pem;
use crate::error::CertificateError;
use crate::provider;

/// Whose certificates are believed.
#[derive(Clone, Copy)]
pub enum Trust<'a> {
    /// Everybody's: protects against who only listens.
    Anybody,
    /// Those that these authorities have issued, for the name that is asked for.
    Authorities(Pem<'a>),
}

/// What connections to a next hop have in common.
#[derive(Clone)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
}

impl ClientTls {
    /// TLS 1.2 and 1.3 (RFC 8996). A bundle must hold at least one authority that can be used; others in it,
    /// as systems' bundles have them, are passed over.
    pub fn new(trust: Trust<'_>) -> Result<Self, CertificateError> {
        let provider = Arc::new(provider::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| CertificateError::Settings { cause: error.to_string() })?;
        let config = match trust {
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
                .with_no_client_auth(),
            Trust::Authorities(bundle) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.octets).flatten());
                if roots.is_empty() {
                    return Err(CertificateError::NoCertificate { file: bundle.file.into() });
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        Ok(Self { config: Arc::new(config) })
    }
}

/// Why a connection cannot go on.
#[derive(Debug)]
pub struct ClientError(String);

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ClientError {}

/// One connection's TLS: octets in, octets out.
pub struct ClientSession(Box<ClientConnection>);

impl ClientSession {
    /// Begins; `name` is whom we want to meet (a host name or an address). The first flight goes to `out`.
    pub fn connect(tls: &ClientTls, name: &str, out: &mut Vec<u8>) -> Result<Self, ClientError> {
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| ClientError(format!("{name:?} is no name that a certificate could have")))?;
        let connection = ClientConnection::new(tls.config.clone(), server).map_err(|error| of(&error))?;
        let mut session = Self(Box::new(connection));
        session.flush(out)?;
        Ok(session)
    }

    /// Whether the handshake is still going on.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes octets off the wire; appends plaintext and what must be sent. `false`: the peer has said that
    /// it ends here. After an error `out` holds the alert.
    pub fn receive(&mut self, mut wire: &[u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<bool, ClientError> {
        while !wire.is_empty() {
            let taken = self.0.read_tls(&mut wire).map_err(|error| ClientError(error.to_string()))?;
            let state = match self.0.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    let _ = self.flush(out);
                    return Err(of(&error));
                }
            };
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            if let Some(room) = plain.get_mut(start..) {
                self.0.reader().read_exact(room).map_err(|error| ClientError(error.to_string()))?;
            }
            if state.peer_has_closed() || taken == 0 {
                self.flush(out)?;
                return Ok(false);
            }
        }
        self.flush(out)?;
        Ok(true)
    }

    /// Encrypts.
    pub fn send(&mut self, mut plain: &[u8], out: &mut Vec<u8>) -> Result<(), ClientError> {
        while !plain.is_empty() {
            // rustls keeps 64 KiB at most, so it is emptied in between.
            let taken = self.0.writer().write(plain).map_err(|error| ClientError(error.to_string()))?;
            plain = plain.get(taken..).unwrap_or_default();
            self.flush(out)?;
        }
        Ok(())
    }

    /// Says that nothing more comes (close_notify).
    pub fn close(&mut self, out: &mut Vec<u8>) {
        self.0.send_close_notify();
        let _ = self.flush(out);
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), ClientError> {
        while self.0.wants_write() {
            self.0.write_tls(out).map_err(|error| ClientError(error.to_string()))?;
        }
        Ok(())
    }
}

fn of(error: &Error) -> ClientError {
    ClientError(match error {
        Error::InvalidCertificate(cause) => format!("certificate: {cause}"),
        other => other.to_string(),
    })
}

/// Believes every certificate, but not that its owner is there: signatures of the handshake are checked.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peer::{Made, server_with, store};
    use crate::{Settings, TlsSession};

    /// A handshake and an exchange in memory; the error when it fails.
    fn meet(made: &Made, trust: Trust<'_>, name: &str) -> Result<(), String> {
        let server = server_with(&Settings::default(), store(&[made]), &[[1; 32]]);
        let mut session = TlsSession::accept(&server).unwrap();
        let tls = ClientTls::new(trust).unwrap();
        let mut to_server = Vec::new();
        let mut client = ClientSession::connect(&tls, name, &mut to_server).unwrap();
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        let mut sent = false;
        while !to_server.is_empty() {
            let mut to_client = Vec::new();
            session
                .receive(&mut std::mem::take(&mut to_server), &mut at_server, &mut to_client)
                .map_err(|e| e.to_string())?;
            if at_server == b"ping" && !sent {
                session.send(b"pong", &mut to_client).unwrap();
                sent = true;
            }
            client.receive(&to_client, &mut at_client, &mut to_server).map_err(|error| error.to_string())?;
            if !client.is_handshaking() && at_server.is_empty() && !sent {
                client.send(b"ping", &mut to_server).unwrap();
            }
        }
        assert_eq!((&at_server[..], &at_client[..]), (&b"ping"[..], &b"pong"[..]));
        Ok(())
    }

    #[test]
    fn anybody_is_believed_only_where_that_is_asked_for() {
        let made = Made::self_signed(&["mail.example"]);
        let other = Made::self_signed(&["mail.example"]);
        let bundle = |made: &Made| made.chain.clone().into_bytes();
        let (own, foreign) = (bundle(&made), bundle(&other));
        meet(&made, Trust::Anybody, "elsewhere.example").unwrap();
        let authorities = |octets| Trust::Authorities(Pem { file: "ca.pem", octets });
        let unknown = meet(&made, authorities(&foreign), "mail.example").unwrap_err();
        assert!(unknown.contains("certificate"), "{unknown}");
        let misnamed = meet(&made, authorities(&own), "elsewhere.example").unwrap_err();
        assert!(misnamed.contains("certificate"), "{misnamed}");
        assert!(ClientTls::new(authorities(b"no certificate")).is_err());
    }

    /// An authority (PEM) and a certificate that it issued.
    fn authority(name: &str) -> (String, Made) {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["ca.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(params, ca_key);
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (ca.pem(), Made { chain: leaf.pem(), key: key.serialize_pem() })
    }

    #[test]
    fn an_authority_and_the_right_name_are_enough() {
        let (ca, leaf) = authority("mail.example");
        let bundle = Pem { file: "ca.pem", octets: ca.as_bytes() };
        meet(&leaf, Trust::Authorities(bundle), "mail.example").unwrap();
        assert!(meet(&leaf, Trust::Authorities(bundle), "other.example").is_err());
    }
}
