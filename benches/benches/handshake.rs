//! The server's side of TLS 1.3, in memory: what its calls cost, the client's left out.
//!
//! Handshakes in processor time, so that others on the machine count less; it takes too long to read for a record.

use std::io::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CipherSuite, RootCertStore};
use tls::{Certificate, CertificateSet, CertificateStore, Pem, ServerTls, Settings, TicketKeys, TlsSession};

/// A client, a session of ours, and how long the session's calls took.
struct Pair {
    client: ClientConnection,
    session: TlsSession,
    clock: fn() -> Duration,
    took: Duration,
    wire: Vec<u8>,
    out: Vec<u8>,
    plain: Vec<u8>,
}

impl Pair {
    fn open(server: &Arc<ServerTls>, config: &Arc<ClientConfig>, clock: fn() -> Duration) -> Self {
        let name = ServerName::try_from("mail.example").expect("a name");
        let client = ClientConnection::new(config.clone(), name).expect("a client");
        let began = clock();
        let session = TlsSession::accept(server).expect("a session");
        let took = clock() - began;
        let mut pair = Self { client, session, clock, took, wire: Vec::new(), out: Vec::new(), plain: Vec::new() };
        while pair.client.wants_write() {
            pair.turn();
        }
        assert!(pair.session.facts().is_some(), "the handshake is through");
        pair
    }

    /// What the client has to say, and the answer.
    fn turn(&mut self) {
        self.wire.clear();
        self.out.clear();
        self.plain.clear();
        while self.client.wants_write() {
            self.client.write_tls(&mut self.wire).expect("to memory");
        }
        let began = (self.clock)();
        self.session.receive(&mut self.wire, &mut self.plain, &mut self.out).expect("a good client");
        if !self.plain.is_empty() {
            self.session.send(b"250 2.0.0 OK\r\n", &mut self.out).expect("open");
        }
        self.took += (self.clock)() - began;
        let mut out = self.out.as_slice();
        while !out.is_empty() {
            self.client.read_tls(&mut out).expect("from memory");
            let state = self.client.process_new_packets().expect("a good server");
            let read = std::io::copy(
                &mut std::io::Read::take(self.client.reader(), state.plaintext_bytes_to_read() as u64),
                &mut std::io::sink(),
            );
            read.expect("what is there");
        }
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn wall_time() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

/// Bar for the full handshake with P-256: 110 µs of the server.
fn handshake(criterion: &mut Criterion) {
    let made = tls::self_signed(&["mail.example"], 1).expect("a certificate");
    let certificate = Certificate::from_pem(
        Pem { file: "certificate", octets: made.certificate_pem.as_bytes() },
        Pem { file: "key", octets: made.key_pem.as_bytes() },
    );
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.certificate_pem.as_bytes()).expect("PEM")).expect("a certificate");
    let set = CertificateSet::new(vec![certificate.expect("just made")]).expect("a set");
    let store = Arc::new(CertificateStore::new(set));
    let server = |post_quantum| {
        let settings = Settings { post_quantum, ..Settings::default() };
        let keys = Arc::new(TicketKeys::new(&[[1; 32]]));
        Arc::new(ServerTls::new(&settings, store.clone(), keys).expect("settings"))
    };
    let (classical, hybrid) = (server(false), server(true));

    let mut group = criterion.benchmark_group("handshake");
    for (name, server, suite, resumption) in [
        ("full, P-256, X25519", &classical, None, Resumption::disabled()),
        ("full, P-256, X25519, AES-256", &classical, Some(AES_256), Resumption::disabled()),
        ("full, P-256, X25519MLKEM768", &hybrid, None, Resumption::disabled()),
        ("resumed, X25519", &classical, None, Resumption::in_memory_sessions(8)),
    ] {
        let config = client(&roots, suite, resumption);
        // The first one has no ticket yet.
        drop(Pair::open(server, &config, processor_time));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| Pair::open(server, &config, processor_time).took).sum());
        });
    }
    group.finish();

    let config = client(&roots, None, Resumption::disabled());
    let mut group = criterion.benchmark_group("records");
    for octets in [6, 4096, 16_384] {
        let text = vec![b'x'; octets];
        let mut pair = Pair::open(&classical, &config, wall_time);
        group.throughput(Throughput::Bytes(octets as u64));
        group.bench_function(format!("{octets} octets in, a reply out"), |bencher| {
            bencher.iter_custom(|times| {
                pair.took = Duration::ZERO;
                for _ in 0..times {
                    pair.client.writer().write_all(&text).expect("to memory");
                    pair.turn();
                }
                pair.took
            });
        });
    }
    group.finish();
}

fn client(roots: &RootCertStore, suite: Option<CipherSuite>, resumption: Resumption) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|known| suite.is_none_or(|suite| known.suite() == suite));
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("a version");
    let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
    config.resumption = resumption;
    Arc::new(config)
}

const AES_256: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;

criterion_group!(benches, handshake);
criterion_main!(benches);
