//! A socket, TLS when there is any, and octets on their way out, as fast as they may go.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use socket2::{Domain, Socket, Type};

use smtp::client::ChannelBindings;

use crate::plan::{ChannelBinding, Scenario};

/// Octets to and from a server.
pub struct Transport {
    /// For registration with the loop.
    pub stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    unsent: Vec<u8>,
    sent: usize,
    /// Writes to the socket that took something, and what they took.
    pub writes: u64,
    /// See `writes`.
    pub octets_sent: u64,
    /// Octets that may be sent until the next [`Transport::allow`]; `None`: as many as the socket takes.
    allowance: Option<usize>,
}

impl Transport {
    /// Connects from `source`, or from the address that the system takes.
    pub fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let stream = match source {
            None => TcpStream::connect(target)?,
            Some(source) => {
                let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                // Ports of connections that have just ended may be taken again.
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::new(source, 0).into())?;
                match socket.connect(&target.into()) {
                    Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                        return Err(error);
                    }
                    _ => TcpStream::from_std(socket.into()),
                }
            }
        };
        // Without it a client's Finished and its first command wait for each other's acknowledgement.
        stream.set_nodelay(true)?;
        Ok(Self { stream, tls: None, unsent: Vec::new(), sent: 0, writes: 0, octets_sent: 0, allowance: None })
    }

    /// Begins the handshake.
    pub fn start_tls(&mut self, config: &TlsConfig, resume: bool) -> io::Result<()> {
        let chosen = if resume { &config.resuming } else { &config.full };
        let tls = ClientConnection::new(Arc::clone(chosen), config.name.clone()).map_err(io::Error::other)?;
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Whether nobody has answered yet.
    pub fn is_connecting(&self) -> bool {
        self.stream.peer_addr().is_err_and(|error| error.kind() == ErrorKind::NotConnected)
    }

    /// Whether there is TLS, and it is not there yet.
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// What TLS came to: version, suite, key exchange; and whether it was resumed.
    pub fn tls_words(&self) -> Option<(String, bool)> {
        let tls = self.tls.as_ref()?;
        let group = tls.negotiated_key_exchange_group().map(|group| group.name());
        let words = format!("{:?} {:?} {group:?}", tls.protocol_version()?, tls.negotiated_cipher_suite()?.suite());
        Some((words, tls.handshake_kind() == Some(HandshakeKind::Resumed)))
    }

    /// What a login can be bound to this connection by; the exporter where nothing is asked for and it may be used
    /// (RFC 9266 §3: not before TLS 1.3 without more ado).
    pub fn bindings(&self, wanted: Option<ChannelBinding>) -> io::Result<ChannelBindings> {
        let mut bindings = ChannelBindings::default();
        let Some(tls) = &self.tls else { return Ok(bindings) };
        let is_new = tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        match wanted {
            Some(ChannelBinding::TlsServerEndPoint) => bindings.server_end_point = end_point(tls),
            None if !is_new => bindings.server_end_point = end_point(tls),
            Some(ChannelBinding::TlsExporter) | None => {
                let exported = tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None);
                bindings.exporter = Some(exported.map_err(io::Error::other)?);
            }
        }
        Ok(bindings)
    }

    /// Octets that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Whether octets wait because they are not [allowed](Self::allow) yet.
    pub fn is_slowed(&self) -> bool {
        self.allowance.is_some() && self.waiting() > 0
    }

    /// From now on only what is allowed is sent.
    pub fn allow(&mut self, octets: usize) {
        self.allowance = Some(octets);
    }

    /// Takes octets to be sent by [`Transport::flush`].
    pub fn queue(&mut self, octets: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            // Nothing is sent in clear that is meant for TLS: rustls keeps it until the handshake is over.
            Some(tls) => {
                tls.set_buffer_limit(None);
                tls.writer().write_all(octets)
            }
            None => {
                self.unsent.extend_from_slice(octets);
                Ok(())
            }
        }
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.unsent)?;
            }
        }
        while self.sent < self.unsent.len() {
            let most = (self.unsent.len() - self.sent).min(self.allowance.unwrap_or(usize::MAX));
            if most == 0 {
                return Ok(());
            }
            match self.stream.write(&self.unsent[self.sent..self.sent + most]) {
                Ok(octets) => {
                    self.sent += octets;
                    self.writes += 1;
                    self.octets_sent += octets as u64;
                    if let Some(allowance) = &mut self.allowance {
                        *allowance -= octets;
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // An idle connection holds no buffer.
        (self.unsent, self.sent) = (Vec::new(), 0);
        Ok(())
    }

    /// Appends what came. `None`: nothing more now. `Some(0)`: the server has closed.
    pub fn read(&mut self, buffer: &mut [u8], to: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let octets = match self.stream.read(buffer) {
            Ok(octets) => octets,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Some(1)),
            Err(error) => return Err(error),
        };
        let Some(tls) = &mut self.tls else {
            to.extend_from_slice(&buffer[..octets]);
            return Ok(Some(octets));
        };
        let mut records = &buffer[..octets];
        while !records.is_empty() {
            tls.read_tls(&mut records)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let start = to.len();
            to.resize(start + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut to[start..])?;
        }
        Ok(Some(octets))
    }

    /// Closes with a reset instead of an end.
    pub fn reset(self) {
        let socket = Socket::from(std::net::TcpStream::from(self.stream));
        let _ = socket.set_linger(Some(std::time::Duration::ZERO));
    }
}

fn end_point(tls: &ClientConnection) -> Option<Box<[u8]>> {
    Some(tls::server_end_point_of(tls.peer_certificates()?.first()?)?.as_ref().into())
}

/// TLS of one scenario.
pub struct TlsConfig {
    name: ServerName<'static>,
    full: Arc<ClientConfig>,
    /// Shares tickets between connections.
    resuming: Arc<ClientConfig>,
}

impl TlsConfig {
    /// Towards a server whose certificate nobody looks at: measured, not trusted.
    pub fn new(scenario: &Scenario) -> Result<Self, String> {
        let told = |error: rustls::Error| error.to_string();
        let versions: &[&rustls::SupportedProtocolVersion] = match scenario.tls_version.as_deref() {
            None => rustls::ALL_VERSIONS,
            Some("1.2") => &[&rustls::version::TLS12],
            Some("1.3") => &[&rustls::version::TLS13],
            Some(other) => return Err(format!("tls_version: {other:?} is neither \"1.2\" nor \"1.3\"")),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(told)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut full = match (&scenario.client_cert, &scenario.client_key) {
            (Some(cert), Some(key)) => {
                let pem = |path: &std::path::Path, error| format!("{}: {error}", path.display());
                let certs = CertificateDer::pem_file_iter(cert)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| pem(cert, error))?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| pem(key, error))?;
                builder.with_client_auth_cert(certs, key).map_err(told)?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err("client_cert and client_key go together".to_owned()),
        };
        full.resumption = Resumption::disabled();
        let mut resuming = full.clone();
        resuming.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(4096)));
        let name = scenario.sni.clone().unwrap_or_else(|| "localhost".to_owned());
        let name = ServerName::try_from(name).map_err(|error| format!("sni: {error}"))?;
        Ok(Self { name, full: Arc::new(full), resuming: Arc::new(resuming) })
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
