//! The baseline: an epoll program that answers by the first octet of a line, parses nothing, checks nothing
//! and keeps nothing. TLS by bare rustls. What an SMTP server costs beyond this is what it does.
//!
//! `canned-reply [--tls] [--port N]` prints its address and serves until it is killed.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection};

const LISTENER: Token = Token(usize::MAX);

struct Connection {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// What came after the last LF.
    partial: Vec<u8>,
    in_data: bool,
    greeted: bool,
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let port = args.iter().position(|arg| arg == "--port").and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(0);
    let tls = if args.iter().any(|arg| arg == "--tls") { Some(tls_config()?) } else { None };
    // As a server would: a deep accept queue, small replies sent at once.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    let mut listener = TcpListener::from_std(socket.into());
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut out = Vec::with_capacity(64 * 1024);
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let slot = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    let tls = match &tls {
                        None => {
                            let _ = stream.write(b"220 canned\r\n");
                            None
                        }
                        Some(config) => {
                            Some(Box::new(ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?))
                        }
                    };
                    poll.registry().register(&mut stream, Token(slot), Interest::READABLE)?;
                    let greeted = tls.is_none();
                    connections[slot] = Some(Connection { stream, tls, partial: Vec::new(), in_data: false, greeted });
                }
                continue;
            }
            let Token(slot) = event.token();
            let Some(connection) = &mut connections[slot] else { continue };
            out.clear();
            if !connection.turn(&mut buffer, &mut out).unwrap_or(false) {
                connections[slot] = None;
                free.push(slot);
            }
        }
    }
}

impl Connection {
    /// Reads what there is and answers it in one write; false when the connection is over.
    fn turn(&mut self, buffer: &mut [u8], out: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let octets = match &mut self.tls {
                None => match self.stream.read(buffer) {
                    Ok(0) => return Ok(false),
                    Ok(octets) => octets,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                },
                Some(tls) => {
                    match tls.read_tls(&mut self.stream) {
                        Ok(0) => return Ok(false),
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                        Err(error) => return Err(error),
                    }
                    tls.process_new_packets().map_err(io::Error::other)?;
                    if !self.greeted && !tls.is_handshaking() {
                        self.greeted = true;
                        tls.writer().write_all(b"220 canned\r\n")?;
                    }
                    match tls.reader().read(buffer) {
                        Ok(0) => return Ok(false),
                        Ok(octets) => octets,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                        Err(error) => return Err(error),
                    }
                }
            };
            let going = self.answer(&buffer[..octets], out);
            match &mut self.tls {
                None => self.stream.write_all(out)?,
                Some(tls) => {
                    tls.writer().write_all(out)?;
                    while tls.wants_write() {
                        tls.write_tls(&mut self.stream)?;
                    }
                }
            }
            out.clear();
            if !going || (self.tls.is_none() && octets < buffer.len()) {
                return Ok(going);
            }
        }
    }

    fn answer(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        let mut rest = input;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            let first = if self.partial.is_empty() { line[0] } else { self.partial[0] };
            if self.in_data {
                if first == b'.' && self.partial.len() + line.len() == 3 {
                    self.in_data = false;
                    out.extend_from_slice(b"250 ok\r\n");
                }
            } else {
                match first {
                    b'E' => out.extend_from_slice(b"250-canned\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n"),
                    b'A' => out.extend_from_slice(b"235 ok\r\n"),
                    b'D' => {
                        self.in_data = true;
                        out.extend_from_slice(b"354 go\r\n");
                    }
                    b'Q' => {
                        out.extend_from_slice(b"221 bye\r\n");
                        return false;
                    }
                    _ => out.extend_from_slice(b"250 ok\r\n"),
                }
            }
            self.partial.clear();
        }
        self.partial.extend_from_slice(rest);
        true
    }
}

fn tls_config() -> io::Result<Arc<ServerConfig>> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(io::Error::other)?;
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As Portreeve: AES-128 first, whatever the client likes, and one ticket.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private.into())
        .map_err(io::Error::other)?;
    config.ignore_client_order = true;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}
