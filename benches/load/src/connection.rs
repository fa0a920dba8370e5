//! One connection: a script, a socket, TLS when the script asks for it, and where it stands.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

use socket2::{Domain, Socket, Type};

use crate::script::Script;

/// Why a connection ended before its script.
pub struct Trouble {
    pub stage: &'static str,
    pub what: String,
}

/// What became of an event.
pub enum Outcome {
    Going,
    /// The script is at its end.
    Done,
}

pub struct Connection {
    pub stream: TcpStream,
    pub began: Instant,
    tls: Option<Box<ClientConnection>>,
    step: usize,
    /// Replies of the current step that have come.
    replies: usize,
    received: Vec<u8>,
    unsent: Vec<u8>,
    sent: usize,
    /// Writes to the socket that took something.
    pub writes: u64,
    pub octets_sent: u64,
}

impl Connection {
    /// From `source`, or from the address that the system takes.
    pub fn open(
        target: SocketAddr,
        source: Option<IpAddr>,
        script: &Script,
        tls: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
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
        let mut connection = Self {
            stream,
            began: Instant::now(),
            tls: None,
            step: 0,
            replies: 0,
            received: Vec::new(),
            unsent: Vec::new(),
            sent: 0,
            writes: 0,
            octets_sent: 0,
        };
        if script.implicit_tls {
            connection.start_tls(tls)?;
        }
        Ok(connection)
    }

    pub fn stage(&self, script: &Script) -> &'static str {
        script.steps.get(self.step).map_or("end", |step| step.stage)
    }

    /// What TLS came to: version, suite, key exchange.
    pub fn tls_words(&self) -> Option<String> {
        let tls = self.tls.as_ref()?;
        let group = tls.negotiated_key_exchange_group().map(|group| group.name());
        Some(format!("{:?} {:?} {group:?}", tls.protocol_version()?, tls.negotiated_cipher_suite()?.suite()))
    }

    fn start_tls(&mut self, tls: &Arc<ClientConfig>) -> io::Result<()> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        self.tls = Some(Box::new(ClientConnection::new(Arc::clone(tls), name).map_err(io::Error::other)?));
        Ok(())
    }

    /// The socket is ready for something: sends and receives all that is possible.
    pub fn advance(&mut self, script: &Script, config: &Arc<ClientConfig>) -> Result<Outcome, Trouble> {
        let trouble = |this: &Self, what: String| Trouble { stage: this.stage(script), what };
        loop {
            self.flush().map_err(|error| trouble(self, error.kind().to_string()))?;
            let mut buffer = [0; 16 * 1024];
            let octets = match self.read(&mut buffer) {
                Ok(0) => return Err(trouble(self, "closed by the server".to_owned())),
                Ok(octets) => octets,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Going),
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(Outcome::Going),
                Err(error) => return Err(trouble(self, error.kind().to_string())),
            };
            self.received.extend_from_slice(&buffer[..octets]);
            while let Some(code) = self.take_reply().map_err(|what| trouble(self, what))? {
                let step = &script.steps[self.step];
                if step.expect[self.replies] != code {
                    return Err(trouble(self, format!("reply {code} instead of {}", step.expect[self.replies])));
                }
                self.replies += 1;
                if self.replies < step.expect.len() {
                    continue;
                }
                if step.then_tls {
                    self.start_tls(config).map_err(|error| trouble(self, error.to_string()))?;
                }
                (self.step, self.replies) = (self.step + 1, 0);
                match script.steps.get(self.step) {
                    None => return Ok(Outcome::Done),
                    Some(step) => self.queue(&step.send).map_err(|error| trouble(self, error.to_string()))?,
                }
            }
        }
    }

    /// The code of a whole reply, of one line or of several (RFC 5321 §4.2.1).
    fn take_reply(&mut self) -> Result<Option<u16>, String> {
        let mut from = 0;
        while let Some(end) = self.received[from..].windows(2).position(|two| two == b"\r\n").map(|at| from + at) {
            let line = &self.received[from..end];
            let code = line.get(..3).and_then(|code| std::str::from_utf8(code).ok()).and_then(|code| code.parse().ok());
            let Some(code) = code else { return Err("not a reply".to_owned()) };
            from = end + 2;
            if line.get(3) != Some(&b'-') {
                self.received.drain(..from);
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    fn queue(&mut self, octets: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(octets),
            None => {
                self.unsent.extend_from_slice(octets);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(octets) => {
                        self.writes += 1;
                        self.octets_sent += octets as u64;
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(octets) => {
                    self.sent += octets;
                    self.writes += 1;
                    self.octets_sent += octets as u64;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(octets) => {
                        self.writes += 1;
                        self.octets_sent += octets as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// TLS towards a server whose certificate nobody signed: measured, not trusted.
pub fn client_config() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    // Every handshake is a full one.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
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
