//! Entry point for a fuzzer: anything may come off the wire.

use std::sync::{Arc, OnceLock};

use crate::{Certificate, CertificateSet, CertificateStore, Pem, ServerTls, Settings, TicketKeys, TlsSession};

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
