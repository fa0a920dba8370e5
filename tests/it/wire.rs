//! A client of our own over TCP and TLS, and the dialogues against the built program.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned, SupportedProtocolVersion,
};
use smtp::listener::Role;

use crate::bare::{Bare, DOMAIN, HOSTNAME};
use crate::dialog::{self, Connection, Place};
use crate::mechanisms::cram_md5;
use crate::replies::Reply;
use crate::server::{Options, PATIENCE, Server, feed, root};

/// A connection to a server.
pub struct Wire {
    stream: Stream,
    config: Arc<ClientConfig>,
    unread: Vec<u8>,
    /// The end of the stream, or an error, was read.
    ended: Option<io::ErrorKind>,
}

enum Stream {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Gone,
}

impl Stream {
    fn io(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Clear(stream) => stream,
            Self::Tls(stream) => &mut **stream,
            Self::Gone => panic!("the connection failed earlier"),
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Takes exactly the certificate that the server was given: a test must notice a wrong one.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>, Arc<CryptoProvider>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *certificate == self.0 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("not the server's certificate".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

/// A client's TLS configuration for `server`.
pub fn tls(server: &Server) -> Arc<ClientConfig> {
    tls_with(server, rustls::ALL_VERSIONS, None)
}

/// The same, in these versions, with a certificate of its own.
pub fn tls_with(
    server: &Server,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(server.certificate_files().0).expect("a certificate");
    tls_pinned(certificate, versions, own)
}

/// For whoever has this certificate.
pub fn tls_pinned(
    certificate: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .expect("TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(certificate, provider)));
    Arc::new(match own {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).expect("a key that fits"),
        None => builder.with_no_client_auth(),
    })
}

impl Wire {
    /// Connects; on the implicit-TLS listener with the handshake.
    pub fn connect(address: SocketAddr, implicit_tls: bool, config: Arc<ClientConfig>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut wire = Self { stream: Stream::Clear(stream), config, unread: Vec::new(), ended: None };
        if implicit_tls {
            wire.enter_tls()?;
        }
        Ok(wire)
    }

    /// The TLS handshake.
    pub fn enter_tls(&mut self) -> io::Result<()> {
        let Stream::Clear(mut stream) = std::mem::replace(&mut self.stream, Stream::Gone) else {
            return Err(io::Error::other("inside TLS already"));
        };
        assert!(self.unread.is_empty(), "the server spoke between 220 and the handshake");
        let name = ServerName::try_from(HOSTNAME).expect("a name");
        let mut tls = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        self.stream = Stream::Tls(Box::new(StreamOwned::new(tls, stream)));
        Ok(())
    }

    /// What this end of the TLS connection exports (RFC 9266 §2).
    pub fn exporter(&self) -> Vec<u8> {
        let Stream::Tls(tls) = &self.stream else { panic!("not inside TLS") };
        let exported = tls.conn.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""));
        exported.expect("an exporter").to_vec()
    }

    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        let io = self.stream.io();
        io.write_all(octets)?;
        io.flush()
    }

    /// The next reply with all its lines; `Ok(None)` at the end of the connection.
    pub fn reply(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some((reply, rest)) = Reply::first_in(&self.unread).map_err(io::Error::other)? {
                let text = String::from_utf8_lossy(reply.octets).into_owned();
                self.unread = rest.to_vec();
                return Ok(Some(text));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.stream.io().read(&mut buffer) {
            Ok(0) => {
                self.ended = Some(io::ErrorKind::UnexpectedEof);
                Ok(false)
            }
            Ok(octets) => {
                self.unread.extend_from_slice(&buffer[..octets]);
                Ok(true)
            }
            Err(error) => {
                self.ended = Some(error.kind());
                Err(error)
            }
        }
    }

    /// Sends one line and takes its reply; fails when the connection ends.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Connection for Wire {
    fn send(&mut self, octets: &[u8]) {
        // A server that has closed says so when its reply is read.
        let _ = Wire::send(self, octets);
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        Wire::reply(self).ok().flatten().map(String::into_bytes)
    }

    fn handshake(&mut self) {
        self.enter_tls().unwrap_or_else(|error| panic!("TLS: {error}"));
    }

    fn closed(&mut self) -> bool {
        // More than what was asked for, or silence, is not an end.
        self.unread.is_empty() && (self.ended.is_some() || !self.fill().unwrap_or(true) || self.ended_by_reset())
    }

    fn bare(&mut self) -> Option<&mut Bare> {
        None
    }
}

impl Wire {
    fn ended_by_reset(&self) -> bool {
        matches!(self.ended, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
    }
}

/// Connects where a dialogue begins.
pub fn connect(server: &Server, place: Place, config: &Arc<ClientConfig>) -> io::Result<Wire> {
    let address = match place.role {
        Role::Mx => server.mx(),
        Role::Submission => server.submission(),
        Role::Submissions => server.submissions(),
    };
    Wire::connect(address, place.role == Role::Submissions, config.clone())
}

#[test]
fn dialogues_with_the_server() {
    let server = Server::start();
    let config = tls(&server);
    let mut failures = Vec::new();
    let mut played = 0;
    for dialog in dialog::ALL.iter().filter(|dialog| !dialog.bare) {
        for &place in &dialog.places {
            let mut wire = connect(&server, place, &config)
                .unwrap_or_else(|error| panic!("{}: {place:?}: {error}", dialog.name()));
            if let Err(why) = dialog::play(dialog, place, &mut wire) {
                failures.push(format!("{}\n  {why}", dialog.name()));
            }
            played += 1;
        }
    }
    println!("{played} dialogues");
    assert!(played >= 80, "only {played} dialogues");
    assert!(failures.is_empty(), "{} dialogues failed:\n{}", failures.len(), failures.join("\n"));
}

/// CONTRACT C33 over real sockets: whatever is pipelined behind STARTTLS in clear is gone.
#[test]
fn starttls_injection_over_the_wire() {
    let server = Server::start();
    let config = tls(&server);
    let injected =
        "EHLO evil.example\r\nAUTH PLAIN AGFsaWNlQGRlbW8udGVzdABzZWNyZXQ=\r\nMAIL FROM:<alice@demo.test>\r\n";
    for address in [server.mx(), server.submission()] {
        let mut wire = Wire::connect(address, false, config.clone()).expect("a connection");
        wire.reply().expect("a greeting");
        wire.ask("EHLO client.example").expect("a reply");
        wire.send(format!("STARTTLS\r\n{injected}").as_bytes()).expect("sent");
        assert!(wire.reply().expect("a reply").is_some_and(|reply| reply.starts_with("220 2.0.0")));
        wire.enter_tls().expect("the handshake is not disturbed by what was dropped");
        let refused = if address == server.mx() { "503 5.5.1" } else { "530 5.7.0" };
        assert!(wire.ask("MAIL FROM:<alice@demo.test>").expect("a reply").starts_with(refused));
        assert!(wire.ask("EHLO client.example").expect("a reply").starts_with("250-"));
        assert!(wire.ask("RCPT TO:<bob@demo.test>").expect("a reply").starts_with(refused));
    }
}

/// The published exchanges of PLAIN, LOGIN and CRAM-MD5 (tests/vectors) over the wire, with mechanisms that were loaded from
/// shared libraries. Names get our domain, and CRAM-MD5 answers the server's challenge instead of the
/// recorded one; malformed messages go out octet for octet.
#[test]
fn sasl_vectors_over_the_wire() {
    let mut server = Server::prepare(Options::default());
    let config = tls(&server);
    let vectors = std::fs::read_to_string(root().join("tests/vectors/sasl.json")).expect("the vectors");
    let vectors: serde_json::Value = serde_json::from_str(&vectors).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let own_name = |name: &str| if name.is_empty() { String::new() } else { format!("{name}@{DOMAIN}") };
    for (user, password) in [("tim", "tanstaaftanstaaf"), ("kurt", "xipj3plmq"), ("test", "1234"), ("user", "pencil")] {
        let mut add = server.command(&["user", "add", &own_name(user), "--password-stdin", "--cram-md5"]);
        let (status, said) = feed(&mut add, format!("{password}\n").as_bytes());
        assert!(status.success(), "{said}");
    }
    server.run();
    let mut counts = (0, 0);
    for vector in vectors["exchanges"].as_array().expect("a list") {
        let (mechanism, source) = (text(&vector["mech"]), text(&vector["source"]));
        let client: Vec<Vec<u8>> = vector["exchange"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|step| STANDARD.decode(step["c"].as_str()?).ok())
            .collect();
        let mut wire = Wire::connect(server.submissions(), true, config.clone()).expect("a connection");
        wire.reply().expect("a greeting");
        wire.ask("EHLO client.example").expect("EHLO");
        let reply = match (mechanism.as_str(), text(&vector["outcome"]).as_str()) {
            ("PLAIN", "malformed") => {
                let response = STANDARD.encode(&client[0]);
                let reply = wire.ask(&format!("AUTH PLAIN {}", if response.is_empty() { "=" } else { &response }));
                assert!(reply.expect("a reply").starts_with("501 5.5.2"), "{source}");
                counts.0 += 1;
                continue;
            }
            ("PLAIN", "success") => {
                let parts: Vec<String> =
                    client[0].split(|&c| c == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
                let message = format!("{}\0{}\0{}", own_name(&parts[0]), own_name(&parts[1]), parts[2]);
                let reply = wire.ask(&format!("AUTH PLAIN {}", STANDARD.encode(message))).expect("a reply");
                // The mechanism succeeds for Kurt as Ursel; that he may not act for her is policy.
                let wanted = if parts[0].is_empty() || parts[0] == parts[1] { "235 2.7.0" } else { "535 5.7.8" };
                assert!(reply.starts_with(wanted), "{source}: {reply}");
                counts.1 += 1;
                continue;
            }
            ("LOGIN", "success") => {
                let user = STANDARD.encode(own_name(&String::from_utf8_lossy(&client[0])));
                if vector["initial"] == true {
                    assert_eq!(wire.ask(&format!("AUTH LOGIN {user}")).expect("a reply"), "334 UGFzc3dvcmQ6\r\n");
                } else {
                    assert_eq!(wire.ask("AUTH LOGIN").expect("a reply"), "334 VXNlcm5hbWU6\r\n");
                    assert_eq!(wire.ask(&user).expect("a reply"), "334 UGFzc3dvcmQ6\r\n");
                }
                wire.ask(&STANDARD.encode(&client[1])).expect("a reply")
            }
            ("CRAM-MD5", "success") if !client[0].starts_with(b"tim cook") => {
                let challenge = wire.ask("AUTH CRAM-MD5").expect("a challenge");
                let challenge = STANDARD.decode(challenge[4..].trim()).expect("base64");
                let digest = cram_md5(text(&vector["password"]).as_bytes(), &challenge);
                wire.ask(&STANDARD.encode(format!("{} {digest}", own_name("tim")))).expect("a reply")
            }
            _ => continue,
        };
        assert!(reply.starts_with("235 2.7.0"), "{mechanism}, {source}: {reply}");
        counts.1 += 1;
    }
    assert!(counts.0 >= 7 && counts.1 >= 6, "only {counts:?} vectors were played");
}
