//! A client of another make: `openssl s_client` against a blocking loop around a session.
#![allow(clippy::unwrap_used, reason = "a test, helpers included")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tls::{
    Certificate, CertificateSet, CertificateStore, ChannelBinding, Pem, ServerTls, Settings, State, TicketKeys,
    TlsError, TlsSession,
};

const GREETING: &[u8] = b"220 mail.example ESMTP\r\n";

/// Serves one connection as a very small submissions port; reads `piece` octets at a time.
fn serve(server: &Arc<ServerTls>, mut stream: TcpStream, piece: usize) -> Result<Vec<u8>, TlsError> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut session = TlsSession::accept(server)?;
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; piece];
    let mut is_closing = false;
    loop {
        let octets = stream.read(&mut buffer).unwrap();
        if octets == 0 || is_closing {
            return Ok(plain);
        }
        let received = session.receive(&mut buffer[..octets], &mut plain, &mut out);
        match &received {
            Ok(received) if received.handshake_done => {
                let resumed = if facts_resumed(session.facts().unwrap()) { "resumed" } else { "full" };
                session.send(GREETING, &mut out)?;
                session.send(format!("250 {resumed}\r\n").as_bytes(), &mut out)?;
                if let Some(binding) = session.channel_binding(ChannelBinding::TlsExporter) {
                    let hex: String = binding.iter().map(|octet| format!("{octet:02X}")).collect();
                    session.send(format!("250 bound {hex}\r\n").as_bytes(), &mut out)?;
                }
            }
            _ => {}
        }
        if let Ok(received) = &received
            && (received.state == State::PeerClosed || plain.ends_with(b"QUIT\r\n"))
        {
            session.send(b"221 bye\r\n", &mut out)?;
            session.close(&mut out);
            is_closing = true;
        }
        let written = stream.write_all(&out);
        out.clear();
        received?;
        if written.is_err() {
            return Ok(plain);
        }
        if is_closing {
            // Wait until the client has seen it all, or resetting the connection could overtake it.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
    }
}

fn facts_resumed(facts: tls::Facts<'_>) -> bool {
    assert_eq!(facts.sni, "mail.example");
    assert!(facts.cipher.starts_with("TLS_") && facts.version >= 0x0303);
    facts.resumed
}

/// None when the machine has no openssl.
fn s_client(server: &Arc<ServerTls>, piece: usize, arguments: &[&str]) -> Option<(Output, Result<Vec<u8>, TlsError>)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "mail.example", "-crlf"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut client = match client {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: no openssl on this machine");
            return None;
        }
        client => client.unwrap(),
    };
    client.stdin.take().unwrap().write_all(b"EHLO client.example\nQUIT\n").unwrap();
    let server = server.clone();
    let served = thread::spawn(move || serve(&server, listener.accept().unwrap().0, piece));
    let output = client.wait_with_output().unwrap();
    Some((output, served.join().unwrap()))
}

/// A directory of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portreeve-tls-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn server() -> (Arc<ServerTls>, String) {
    server_with(&Settings::default())
}

fn server_with(settings: &Settings<'_>) -> (Arc<ServerTls>, String) {
    let made = tls::self_signed(&["mail.example"], 1).unwrap();
    let certificate = Certificate::from_pem(
        Pem { file: "certificate", octets: made.certificate_pem.as_bytes() },
        Pem { file: "key", octets: made.key_pem.as_bytes() },
    );
    let store = Arc::new(CertificateStore::new(CertificateSet::new(vec![certificate.unwrap()]).unwrap()));
    let keys = Arc::new(TicketKeys::new(&[[1; 32]]));
    (Arc::new(ServerTls::new(settings, store, keys).unwrap()), made.certificate_pem)
}

#[test]
fn both_versions_with_verification_and_resumption() {
    let (server, pem) = server();
    let folder = Folder::new("versions");
    let trusted = folder.file("ca.pem");
    fs::write(&trusted, pem).unwrap();
    for (version, piece) in [("-tls1_2", 4096), ("-tls1_3", 4096), ("-tls1_2", 1), ("-tls1_3", 1)] {
        let ticket = folder.file(&format!("{version}{piece}"));
        let verify = ["-CAfile", &trusted, "-verify_return_error", "-verify_hostname", "mail.example", version];
        for (with, expected) in [("-sess_out", "full"), ("-sess_in", "resumed")] {
            let arguments = [&verify[..], &["-quiet", "-alpn", "smtp", with, &ticket]].concat();
            let Some((output, received)) = s_client(&server, piece, &arguments) else { return };
            let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{version}: {complained}");
            assert_eq!(received.unwrap(), b"EHLO client.example\r\nQUIT\r\n");
            assert_eq!(said, format!("220 mail.example ESMTP\r\n250 {expected}\r\n221 bye\r\n"), "{complained}");
        }
    }
}

#[test]
fn refusals_reach_the_client() {
    let (server, _) = server();
    for (arguments, alert, expected) in [
        (["-alpn", "h2"], "no application protocol", TlsError::ApplicationProtocol),
        (["-sigalgs", "RSA-PSS+SHA256"], "handshake failure", TlsError::Incompatible(String::new())),
    ] {
        let Some((output, received)) = s_client(&server, 4096, &arguments) else { return };
        let complained = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!output.status.success() && complained.contains(alert), "{complained}");
        let error = received.unwrap_err();
        assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&expected), "{error}");
    }
}

/// RFC 9266 §2: the octets are those of another implementation's exporter, for each hash.
#[test]
fn the_exporter_is_openssl_s() {
    let (server, _) = server_with(&Settings { channel_binding: true, ..Settings::default() });
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        let export = ["-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32"];
        let arguments = [&export[..], &["-tls1_3", "-ciphersuites", suite, "-ign_eof"]].concat();
        let Some((output, received)) = s_client(&server, 4096, &arguments) else { return };
        received.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let of = |lead: &str| {
            let found = said.lines().find_map(|line| line.trim().strip_prefix(lead));
            found.unwrap_or_else(|| panic!("{suite}: no {lead:?} in {said}")).to_owned()
        };
        assert_eq!(of("250 bound "), of("Keying material: "), "{suite}");
    }
}
