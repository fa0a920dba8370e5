//! What an idle TLS session costs. Alone in its process, since it counts all that the allocator gives out.
#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::alloc::System;
use std::io::Write;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tls::{Certificate, CertificateSet, CertificateStore, Pem, ServerTls, Settings, State, TicketKeys, TlsSession};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SESSIONS: usize = 1000;
/// With TLS 1.2 rustls keeps the connection, with TLS 1.3 we do.
const TLS12_OCTETS_MAX: usize = 4000;
const TLS13_OCTETS_MAX: usize = 700;

#[test]
fn an_idle_session_fits_the_bar() {
    let made = tls::self_signed(&["mail.example"], 1).unwrap();
    let certificate = Certificate::from_pem(
        Pem { file: "certificate", octets: made.certificate_pem.as_bytes() },
        Pem { file: "key", octets: made.key_pem.as_bytes() },
    )
    .unwrap();
    let store = Arc::new(CertificateStore::new(CertificateSet::new(vec![certificate]).unwrap()));
    let keys = Arc::new(TicketKeys::new(&[[1; 32]]));
    let server =
        Arc::new(ServerTls::new(&Settings { channel_binding: true, ..Settings::default() }, store, keys).unwrap());

    let mut kept = Vec::new();
    for (version, octets_max) in
        [(&rustls::version::TLS13, TLS13_OCTETS_MAX), (&rustls::version::TLS12, TLS12_OCTETS_MAX)]
    {
        let config = client_config(version);
        for messages in [0, 1, 20] {
            // The first ones also pay for what is made once: tables, thread-locals, the allocator's arenas.
            kept.extend((0..100).map(|_| idle_session(&server, &config, messages)));
            kept.reserve(SESSIONS);
            let process_before = anonymous_memory();
            let region = Region::new(ALLOCATOR);
            for _ in 0..SESSIONS {
                kept.push(idle_session(&server, &config, messages));
            }
            let change = region.change();
            let live = (change.bytes_allocated - change.bytes_deallocated) / SESSIONS;
            let process = (anonymous_memory() - process_before) / SESSIONS;
            println!(
                "{:?}, after {messages} messages: {process} octets of process memory per idle session, {live} through \
                 Rust's allocator",
                version.version
            );
            // aws-lc allocates with malloc; only the process shows that.
            assert!((live..=octets_max).contains(&process), "{:?}, {messages}: {process}, {live}", version.version);
        }
    }
}

/// A session after its handshake and so many exchanges, with new keys in between where there can be; the client is gone.
fn idle_session(server: &Arc<ServerTls>, config: &Arc<ClientConfig>, messages: usize) -> Box<TlsSession> {
    let mut session = Box::new(TlsSession::accept(server).unwrap());
    let mut client = ClientConnection::new(config.clone(), ServerName::try_from("mail.example").unwrap()).unwrap();
    let text = [b'x'; 3000];
    let (mut plain, mut out, mut wire) = (Vec::new(), Vec::new(), Vec::new());
    for message in 0..=messages {
        if message > 0 {
            client.writer().write_all(&text).unwrap();
            if client.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
                client.refresh_traffic_keys().unwrap();
            }
        }
        while client.wants_write() {
            wire.clear();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            // Records come incomplete.
            for piece in wire.chunks_mut(1000) {
                out.clear();
                let state = session.receive(piece, &mut plain, &mut out).unwrap().state;
                if state == State::Open && !plain.is_empty() {
                    session.send(b"250 mail.example\r\n", &mut out).unwrap();
                }
                client.read_tls(&mut out.as_slice()).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }
    assert!(session.facts().is_some() && plain.len() == messages * text.len());
    session
}

/// Anonymous memory of this process, octets.
fn anonymous_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse().ok())
        .map_or(0, |kib: usize| kib * 1024)
}

fn client_config(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    #[cfg(feature = "aws-lc")]
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(feature = "ring")]
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll(provider)))
        .with_no_client_auth();
    // Every handshake a full one, and no memory of it on this side.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
