//! A client in memory (rustls' buffered connection), and what tests need around it.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::*;

/// A certificate with key, as PEM.
pub(crate) struct Made {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Made {
    pub(crate) fn self_signed(names: &[&str]) -> Self {
        let made = self_signed(names, 30).unwrap();
        Self { chain: made.certificate_pem, key: made.key_pem.to_string() }
    }

    /// Made once with `openssl req -x509 -newkey rsa:2048 -nodes -days 36500 -subj /CN=mail.example -addext
    /// subjectAltName=DNS:mail.example`: a test key that nobody uses for anything.
    pub(crate) fn rsa() -> Self {
        Self { chain: include_str!("testdata/rsa.crt").into(), key: include_str!("testdata/rsa.key").into() }
    }

    pub(crate) fn certificate(&self) -> Certificate {
        Certificate::from_pem(
            Pem { file: "chain.pem", octets: self.chain.as_bytes() },
            Pem { file: "key.pem", octets: self.key.as_bytes() },
        )
        .unwrap()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }
}

pub(crate) fn store(made: &[&Made]) -> Arc<CertificateStore> {
    Arc::new(CertificateStore::new(CertificateSet::new(made.iter().map(|m| m.certificate()).collect()).unwrap()))
}

pub(crate) fn server(settings: &Settings<'_>) -> Arc<ServerTls> {
    let made = Made::self_signed(&["mail.example"]);
    server_with(settings, store(&[&made]), &[[1; 32]])
}

pub(crate) fn server_with(settings: &Settings<'_>, store: Arc<CertificateStore>, keys: &[[u8; 32]]) -> Arc<ServerTls> {
    Arc::new(ServerTls::new(settings, store, Arc::new(TicketKeys::new(keys))).unwrap())
}

/// What the client is like.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) version: &'static SupportedProtocolVersion,
    pub(crate) schemes: Option<Vec<SignatureScheme>>,
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) certificate: Option<Arc<Made>>,
    /// The only one that it speaks, by rustls' name.
    pub(crate) suite: Option<&'static str>,
}

pub(crate) const V12: &SupportedProtocolVersion = &rustls::version::TLS12;
pub(crate) const V13: &SupportedProtocolVersion = &rustls::version::TLS13;

impl Client {
    pub(crate) fn new(version: &'static SupportedProtocolVersion) -> Self {
        Self { version, schemes: None, alpn: Vec::new(), certificate: None, suite: None }
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let mut provider = provider::default_provider();
        if let Some(suite) = self.suite {
            provider.cipher_suites.retain(|known| known.suite().as_str() == Some(suite));
            assert_eq!(provider.cipher_suites.len(), 1, "{suite}");
        }
        let provider = Arc::new(provider);
        let trust = TrustAll { provider: provider.clone(), schemes: self.schemes.clone() };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust));
        let mut config = match &self.certificate {
            Some(made) => builder
                .with_client_auth_cert(vec![made.der()], PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.clone();
        Arc::new(config)
    }

    pub(crate) fn connect(&self, name: &str) -> ClientConnection {
        connect(&self.config(), name)
    }
}

pub(crate) fn connect(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Accepts any certificate, and says which schemes it could verify.
#[derive(Debug)]
struct TrustAll {
    provider: Arc<CryptoProvider>,
    schemes: Option<Vec<SignatureScheme>>,
}

impl ServerCertVerifier for TrustAll {
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
        self.schemes.clone().unwrap_or_else(|| self.provider.signature_verification_algorithms.supported_schemes())
    }
}

/// A client and our session with a wire between them.
pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) session: TlsSession,
    /// What our session received in plain.
    pub(crate) plain: Vec<u8>,
    /// How many times the end of the handshake was reported.
    pub(crate) done: usize,
    pub(crate) state: State,
    /// Octets per call of `receive`.
    pub(crate) piece: usize,
}

impl Pair {
    pub(crate) fn new(server: &Arc<ServerTls>, client: ClientConnection) -> Self {
        let session = TlsSession::accept(server).unwrap();
        Self { client, session, plain: Vec::new(), done: 0, state: State::Handshaking, piece: usize::MAX }
    }

    /// The handshake to its end; what we sent is with the client.
    pub(crate) fn open(server: &Arc<ServerTls>, client: ClientConnection) -> Self {
        let mut pair = Self::new(server, client);
        pair.run().unwrap();
        assert_eq!(pair.state, State::Open);
        assert!(!pair.client.is_handshaking());
        pair
    }

    /// Carries octets both ways until neither has any more.
    pub(crate) fn run(&mut self) -> Result<(), TlsError> {
        loop {
            let wire = self.client_flight();
            if wire.is_empty() {
                return Ok(());
            }
            self.feed(&wire)?;
        }
    }

    /// What the client wants to send.
    pub(crate) fn client_flight(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// Gives octets to our session, and its answer to the client.
    pub(crate) fn feed(&mut self, wire: &[u8]) -> Result<(), TlsError> {
        for piece in wire.chunks(self.piece.min(wire.len().max(1))) {
            let mut out = Vec::new();
            let result = self.session.receive(&mut piece.to_vec(), &mut self.plain, &mut out);
            self.deliver(&out);
            let received = result?;
            self.done += usize::from(received.handshake_done);
            self.state = received.state;
        }
        Ok(())
    }

    /// The client takes octets; what it thinks of them is seen in what it does next.
    pub(crate) fn deliver(&mut self, mut wire: &[u8]) {
        while !wire.is_empty() {
            self.client.read_tls(&mut wire).unwrap();
            let _ = self.client.process_new_packets();
        }
    }

    pub(crate) fn send(&mut self, plaintext: &[u8]) {
        let mut out = Vec::new();
        self.session.send(plaintext, &mut out).unwrap();
        self.deliver(&out);
    }

    /// All that the client has received in plain.
    pub(crate) fn client_read(&mut self) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(octets @ 1..) = self.client.reader().read(&mut buffer) {
            plain.extend_from_slice(&buffer[..octets]);
        }
        plain
    }

    pub(crate) fn client_write(&mut self, plaintext: &[u8]) {
        self.client.writer().write_all(plaintext).unwrap();
    }
}

/// The content types of the records on a wire.
pub(crate) fn content_types(mut wire: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = wire {
        types.push(*kind);
        wire = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    types
}
