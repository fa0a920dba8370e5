//! Entry points for a fuzzer: anything may come off the wire.

use std::sync::{Arc, OnceLock};

use rustls::ExtractedSecrets;
use rustls::client::ClientConnection;
use rustls_pki_types::ServerName;

use crate::record::Keys;
use crate::{
    Certificate, CertificateSet, CertificateStore, ClientTls, Pem, ServerTls, Settings, State, TicketKeys, TlsError,
    TlsSession, Trust,
};

/// Feeds a fresh session with `data`: the first octet says in pieces of what size, the rest is the wire.
///
/// Panics when a session keeps or answers more than a constant, or goes on after an error.
pub fn fuzz_receive(data: &[u8]) {
    let Some((&size, wire)) = data.split_first() else { return };
    let mut session = TlsSession::accept(server()).expect("settings are constant");
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    for piece in wire.chunks(usize::from(size) + 1) {
        let result = session.receive(&mut piece.to_vec(), &mut plain, &mut out);
        assert!(session.pending_octets() <= 24 << 10, "keeps {} octets", session.pending_octets());
        assert!(plain.is_empty(), "plaintext without a handshake");
        if result.is_err() {
            let answered = out.len();
            let again = session.receive(&mut piece.to_vec(), &mut plain, &mut out);
            assert!(again.is_err() && out.len() == answered, "goes on after an error");
            break;
        }
    }
    // One flight of the handshake, warnings, an alert.
    assert!(out.len() < 16 << 10, "answers {} octets to {}", out.len(), wire.len());
    let answered = out.len();
    assert!(session.send(b"220 too early\r\n", &mut out).is_err() && out.len() == answered);
    session.close(&mut out);
}

/// Feeds an open TLS 1.3 session with records that have the right keys, and with others: the first octet says in pieces
/// of what size; then come instructions, see `Forge::follow`.
///
/// Panics when the plaintext is not what was sealed in front of the first fault, when pieces change anything, when a
/// session keeps or answers more than a constant, or goes on after an error.
pub fn fuzz_records(data: &[u8]) {
    let Some((&size, instructions)) = data.split_first() else { return };
    let whole = records(instructions, usize::MAX);
    let pieces = records(instructions, usize::from(size) + 1);
    assert!(whole == pieces, "pieces of {size} change something: {:?}, {:?}", whole.1, pieces.1);
}

/// Plaintext, how it ended, and the alerts and KeyUpdates that were answered.
type Heard = (Vec<u8>, Result<State, TlsError>, Vec<(u8, Vec<u8>)>);

fn records(instructions: &[u8], piece: usize) -> Heard {
    let (mut session, mut forge) = open();
    let (wire, sealed) = forge.follow(instructions);
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let mut end = Ok(State::Open);
    for piece in wire.chunks(piece.min(wire.len().max(1))) {
        end = session.receive(&mut piece.to_vec(), &mut plain, &mut out).map(|received| received.state);
        assert!(session.pending_octets() <= 40 << 10, "keeps {} octets", session.pending_octets());
        if end.is_err() {
            break;
        }
    }
    assert!(sealed.starts_with(&plain), "plaintext that nobody sealed");
    let answered = out.len();
    match &end {
        Ok(_) => session.send(b"250 ok\r\n", &mut out).expect("open in our direction"),
        Err(_) => {
            let again = session.receive(&mut wire.clone(), &mut plain, &mut out);
            assert!(again.is_err() && session.send(b"250 ok\r\n", &mut out).is_err(), "goes on after an error");
            assert!(out.len() == answered && sealed.starts_with(&plain));
        }
    }
    session.close(&mut out);
    let said = forge.read(&mut out);
    assert!(said.len() <= 3, "answers too much: {said:?}");
    (plain, end, said)
}

/// A session behind its handshake, and a client for it.
fn open() -> (TlsSession, Forge) {
    static CLIENT: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = CLIENT.get_or_init(|| {
        let tls = ClientTls::new(Trust::Anybody).expect("settings are constant");
        let mut config = (*tls.config).clone();
        config.enable_secret_extraction = true;
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    });
    let name = ServerName::try_from("fuzz.example").expect("a name");
    let mut client = ClientConnection::new(config.clone(), name).expect("settings are constant");
    let mut session = TlsSession::accept(server()).expect("settings are constant");
    while client.wants_write() {
        let (mut wire, mut out) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut wire).expect("to memory");
        }
        session.receive(&mut wire, &mut Vec::new(), &mut out).expect("the handshake of a good client");
        let mut out = out.as_slice();
        while !out.is_empty() {
            client.read_tls(&mut out).expect("from memory");
            client.process_new_packets().expect("the handshake of a good server");
        }
    }
    let secrets = client.dangerous_extract_secrets().expect("the handshake is through");
    (session, Forge::new(secrets))
}

/// A client behind its handshake that seals whatever it is told to.
pub(crate) struct Forge {
    write: Keys,
    read: Keys,
}

impl Forge {
    pub(crate) fn new(secrets: ExtractedSecrets) -> Self {
        let keys = |secrets| Keys::new(secrets).expect("a cipher that we have");
        Self { write: keys(secrets.tx), read: keys(secrets.rx) }
    }

    /// A record, padded when `content` ends in a content type and zeroes and `kind` is zero.
    pub(crate) fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        let cipher = self.write.cipher().expect("a usable key");
        self.write.seal(&cipher, kind, content, &mut record).expect("not too long");
        record
    }

    /// What stands in records of the session, up to a key that it does not have.
    pub(crate) fn read(&mut self, mut wire: &mut [u8]) -> Vec<(u8, Vec<u8>)> {
        let mut read = Vec::new();
        let cipher = self.read.cipher().expect("a usable key");
        while let [_, _, _, high, low, ..] = *wire {
            let (record, behind) = wire.split_at_mut(5 + usize::from(u16::from_be_bytes([high, low])));
            wire = behind;
            let Ok((kind, content)) = self.read.open(&cipher, record) else { break };
            read.push((kind, content.to_vec()));
        }
        read
    }

    /// Instructions are `kind, padding, length`, then as many octets of content (or what is left): a record of that
    /// kind; above 127 not sealed but as it is, and from 192 on without a header.
    /// The wire, and the application data that was sealed.
    fn follow(&mut self, mut instructions: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut wire, mut data) = (Vec::new(), Vec::new());
        while let [kind, padding, length, rest @ ..] = instructions {
            let (content, behind) = rest.split_at(rest.len().min(usize::from(*length)));
            instructions = behind;
            match *kind {
                0..128 => {
                    // Nearly all of the others are the same to it.
                    let kind = if *kind < 96 { 20 + kind % 4 } else { *kind };
                    if kind == 23 {
                        data.extend_from_slice(content);
                    }
                    let zeroes = vec![0; usize::from(*padding)];
                    let (kind, padded) = match zeroes.is_empty() {
                        true => (kind, content.to_vec()),
                        false => (0, [content, &[kind], &zeroes[1..]].concat()),
                    };
                    wire.extend(self.record(kind, &padded));
                }
                128..192 => {
                    wire.extend_from_slice(&[20 + kind % 4, 3, 3, 0, *length]);
                    wire.extend_from_slice(content);
                }
                192.. => wire.extend_from_slice(content),
            }
        }
        (wire, data)
    }
}

fn server() -> &'static Arc<ServerTls> {
    static SERVER: OnceLock<Arc<ServerTls>> = OnceLock::new();
    SERVER.get_or_init(|| {
        let made = crate::self_signed(&["fuzz.example"], 1).expect("names are constant");
        let certificate = Certificate::from_pem(
            Pem { file: "certificate", octets: made.certificate_pem.as_bytes() },
            Pem { file: "key", octets: made.key_pem.as_bytes() },
        );
        let set = CertificateSet::new(vec![certificate.expect("just made")]).expect("not empty");
        let store = Arc::new(CertificateStore::new(set));
        let keys = Arc::new(TicketKeys::new(&[[7; 32]]));
        Arc::new(ServerTls::new(&Settings::default(), store, keys).expect("settings are constant"))
    })
}
