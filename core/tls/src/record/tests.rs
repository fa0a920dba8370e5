use std::sync::{Arc, Mutex};

use rustls::KeyLog;
use rustls::client::ClientConfig;

use super::*;
use crate::fuzz::{Forge, fuzz_records};
use crate::secret::expand_label;
use crate::session::Layer;
use crate::test_peer::*;
use crate::*;

const SUITES: [&str; 3] = ["TLS13_AES_128_GCM_SHA256", "TLS13_AES_256_GCM_SHA384", "TLS13_CHACHA20_POLY1305_SHA256"];

/// A server and clients that let themselves be impersonated.
struct Setting {
    server: Arc<ServerTls>,
    config: Arc<ClientConfig>,
}

impl Setting {
    fn new(suite: Option<&'static str>) -> Self {
        let mut config = Client { suite, ..Client::new(V13) }.config();
        let changed = Arc::get_mut(&mut config).unwrap();
        changed.enable_secret_extraction = true;
        changed.resumption = rustls::client::Resumption::disabled();
        Self { server: server(&Settings::default()), config }
    }

    fn pair(&self) -> Pair {
        Pair::open(&self.server, connect(&self.config, "mail.example"))
    }

    /// The session of a pair, and who seals in place of its client.
    fn forge(&self) -> (Forge, TlsSession) {
        let Pair { client, session, .. } = self.pair();
        (Forge::new(client.dangerous_extract_secrets().unwrap()), session)
    }
}

fn records(session: &mut TlsSession) -> &mut Records {
    match &mut session.layer {
        Layer::Records(records) => records,
        _ => panic!("no record layer of ours"),
    }
}

/// What a session says to a wire that comes in pieces, and how it stands then.
fn feed(
    session: &mut TlsSession,
    wire: &[u8],
    piece: usize,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<State, TlsError> {
    let mut state = State::Open;
    for piece in wire.chunks(piece) {
        state = session.receive(&mut piece.to_vec(), plain, out)?.state;
    }
    Ok(state)
}

#[test]
fn faults_and_their_alerts() {
    let peer = |cause: &str| TlsError::Peer(cause.into());
    let alert = |name: &str| TlsError::Alert(name.into());
    let sealed = |records: &'static [(u8, &'static [u8])]| {
        move |forge: &mut Forge| records.iter().flat_map(|(kind, content)| forge.record(*kind, content)).collect()
    };
    let clear = |octets: &'static [u8]| move |_: &mut Forge| octets.to_vec();
    let unprotected = || peer("a record that is not protected");
    let odd_type = || peer("a record of a type that is not in order");
    let amid = || peer("a record in the middle of a handshake message");
    let behind = || peer("a message behind a KeyUpdate in one record");
    let other = || peer("a handshake message other than KeyUpdate");
    let length = || peer("a KeyUpdate of another length than 1");
    type Wire = Box<dyn Fn(&mut Forge) -> Vec<u8>>;
    let cases: Vec<(Wire, TlsError, Option<u8>)> = vec![
        // §5: what is not protected, and what is no TLS at all.
        (Box::new(clear(&[20, 3, 3, 0, 1, 1])), unprotected(), Some(10)),
        (Box::new(clear(&[21, 3, 3, 0, 2, 1, 0])), unprotected(), Some(10)),
        (Box::new(clear(&[22, 3, 1, 0, 5, 24, 0, 0, 1, 0])), unprotected(), Some(10)),
        (Box::new(clear(b"MAIL FROM:<injected@example>\r\n")), TlsError::NotTls, Some(10)),
        (Box::new(clear(&[24, 3, 3, 0, 2, 1, 0])), TlsError::NotTls, Some(10)),
        (Box::new(clear(&[23, 2, 3, 0, 20])), TlsError::NotTls, Some(10)),
        // §5.2: the header alone is enough.
        (Box::new(clear(&[23, 3, 3, 0x41, 0x01])), TlsError::TooLarge, Some(22)),
        (Box::new(clear(&[23, 3, 3, 0xff, 0xff])), TlsError::TooLarge, Some(22)),
        // What cannot be authentic.
        (Box::new(clear(&[23, 3, 3, 0, 0])), TlsError::BadRecord, Some(20)),
        (
            Box::new(clear(&[23, 3, 3, 0, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])),
            TlsError::BadRecord,
            Some(20),
        ),
        (
            Box::new(clear(&[23, 3, 3, 0, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])),
            TlsError::BadRecord,
            Some(20),
        ),
        // Types.
        (Box::new(sealed(&[(0, b"")])), peer("a record of zeroes, without a content type"), Some(10)),
        (Box::new(sealed(&[(0, &[0; 300])])), peer("a record of zeroes, without a content type"), Some(10)),
        (Box::new(sealed(&[(20, &[1])])), odd_type(), Some(10)),
        (Box::new(sealed(&[(24, b"heartbeat")])), odd_type(), Some(10)),
        (Box::new(sealed(&[(255, b"NOOP\r\n")])), odd_type(), Some(10)),
        (Box::new(sealed(&[(0, b"NOOP\r\n\0\0\0")])), odd_type(), Some(10)),
        // §6: alerts.
        (Box::new(sealed(&[(21, b"")])), peer("an empty alert"), Some(10)),
        (Box::new(sealed(&[(21, &[2])])), peer("an alert of another length than 2"), Some(50)),
        (Box::new(sealed(&[(21, &[1, 90, 1, 0])])), peer("an alert of another length than 2"), Some(50)),
        (Box::new(sealed(&[(21, &[2, 20])])), alert("BadRecordMac"), None),
        (Box::new(sealed(&[(21, &[1, 40])])), alert("HandshakeFailure"), None),
        (Box::new(sealed(&[(21, &[1, 255])])), alert("255"), None),
        // §4.6.3, §5.1: handshake messages.
        (Box::new(sealed(&[(22, b"")])), peer("an empty record of a handshake message"), Some(10)),
        (Box::new(sealed(&[(22, &[1, 0, 0, 2, 3, 3])])), other(), Some(10)),
        (Box::new(sealed(&[(22, &[4])])), other(), Some(10)),
        (Box::new(sealed(&[(22, &[13, 0, 0, 0])])), other(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 2, 0, 0])])), length(), Some(50)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 0])])), length(), Some(50)),
        (Box::new(sealed(&[(22, &[24, 1])])), length(), Some(50)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 1, 2])])), peer("a KeyUpdate that asks for something unknown"), Some(47)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 1, 255])])), peer("a KeyUpdate that asks for something unknown"), Some(47)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 1, 0, 24])])), behind(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0, 0, 1, 1, 24, 0, 0, 1, 1])])), behind(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0]), (23, b"NOOP\r\n")])), amid(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0]), (23, b"")])), amid(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0]), (21, &[1, 0])])), amid(), Some(10)),
        (Box::new(sealed(&[(22, &[24, 0]), (22, b"")])), peer("an empty record of a handshake message"), Some(10)),
        // §4.6.3: from here on the other key counts.
        (Box::new(sealed(&[(22, &[24, 0, 0, 1, 0]), (23, b"NOOP\r\n")])), TlsError::BadRecord, Some(20)),
        (
            Box::new(sealed(&[(22, &[24]), (22, &[0, 0, 1]), (22, &[1]), (23, b"NOOP\r\n")])),
            TlsError::BadRecord,
            Some(20),
        ),
    ];
    let setting = Setting::new(None);
    for (number, (wire, expected, alert)) in cases.into_iter().enumerate() {
        for piece in [usize::MAX, 1, 7] {
            let (mut forge, mut session) = setting.forge();
            let wire = [forge.record(23, b"RSET\r\n"), wire(&mut forge)].concat();
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let result = feed(&mut session, &wire, piece, &mut plain, &mut out);
            assert_eq!(result, Err(expected.clone()), "case {number}");
            assert_eq!(plain, b"RSET\r\n", "case {number}: what came before counts, nothing else");
            let said: Vec<_> = alert.iter().map(|alert| (21, vec![2, *alert])).collect();
            assert_eq!(forge.read(&mut out.clone()), said, "case {number}");

            let silent = out.len();
            let again = session.receive(&mut forge.record(23, b"NOOP\r\n"), &mut plain, &mut out);
            assert_eq!(again, Err(TlsError::NotOpen));
            assert_eq!(session.send(b"250 ok\r\n", &mut out), Err(TlsError::NotOpen));
            session.close(&mut out);
            assert_eq!((plain.len(), out.len(), session.pending_octets()), (6, silent, 0), "case {number}");
            assert!(matches!(session.layer, Layer::Over), "the keys are gone");
        }
    }
}

#[test]
fn what_is_in_order() {
    let setting = Setting::new(None);
    let long = vec![b'x'; 16_384];
    let padded = [b"NOOP\r\n".as_slice(), &[23], &[0; 16_377]].concat();
    for piece in [usize::MAX, 1, 1000] {
        let (mut forge, mut session) = setting.forge();
        let wire = [
            forge.record(23, b""),
            forge.record(23, &long),
            // Padding of an odd length, and as much as there may be: 2^14 + 1 octets inside.
            forge.record(0, b"NOOP\r\n\x17\0\0\0"),
            forge.record(0, &padded),
            // Only padding.
            forge.record(0, b"\x17\0\0\0"),
            forge.record(21, &[1, 90]),
            forge.record(21, &[2, 90]),
            forge.record(23, b"QUIT\r\n"),
        ];
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        assert_eq!(feed(&mut session, &wire.concat(), piece, &mut plain, &mut out), Ok(State::Open));
        assert!(plain == [&long[..], b"NOOP\r\nNOOP\r\nQUIT\r\n"].concat());
        assert_eq!((out.len(), session.pending_octets()), (0, 0));

        // §6.1: whatever the level says; and what follows does not count, garbage included.
        let level = u8::from(piece == 1) + 1;
        let wire = [forge.record(21, &[level, 0]), b"MAIL FROM".to_vec(), forge.record(23, b"RSET\r\n")].concat();
        assert_eq!(feed(&mut session, &wire, piece, &mut plain, &mut out), Ok(State::PeerClosed));
        assert!(plain.ends_with(b"QUIT\r\n"));
        session.send(b"221 bye\r\n", &mut out).unwrap();
        session.close(&mut out);
        assert_eq!(forge.read(&mut out), [(23, b"221 bye\r\n".to_vec()), (21, vec![1, 0])]);
    }

    // One octet more inside, by content or by padding; the header could be right. §5.4
    for content in [[&long[..], b"x"].concat(), [&padded[..], &[0]].concat()] {
        let (mut forge, mut session) = setting.forge();
        let wire = match content.last() {
            Some(0) => forge.record(0, &content),
            _ => forge.record(23, &content),
        };
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let result = feed(&mut session, &wire, usize::MAX, &mut plain, &mut out);
        assert_eq!((result, plain.len()), (Err(TlsError::TooLarge), 0));
        assert_eq!(forge.read(&mut out), [(21, vec![2, 22])]);
    }
    // The longest record that there may be is waited for, and then it is not authentic.
    let (mut forge, mut session) = setting.forge();
    let mut wire = vec![0x5a; 5 + 16_640];
    wire[..5].copy_from_slice(&[23, 3, 3, 0x41, 0x00]);
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let (last, most) = wire.split_last().unwrap();
    assert_eq!(feed(&mut session, most, 5000, &mut plain, &mut out), Ok(State::Open));
    assert!(session.pending_octets() < 40 << 10);
    assert_eq!(feed(&mut session, &[*last], 1, &mut plain, &mut out), Err(TlsError::BadRecord));
    assert_eq!((forge.read(&mut out), plain.len()), (vec![(21, vec![2, 20])], 0));
}

#[test]
fn any_altered_octet_of_a_record() {
    for suite in SUITES {
        let setting = Setting::new(Some(suite));
        let length = setting.forge().0.record(23, b"NOOP\r\n").len();
        for at in 0..length {
            for bit in [1, 0x80] {
                let (mut forge, mut session) = setting.forge();
                let mut wire = forge.record(23, b"NOOP\r\n");
                wire[at] ^= bit;
                // Behind it, so that a longer length finds octets.
                wire.extend(forge.record(23, &[b'x'; 400]));
                let (mut plain, mut out) = (Vec::new(), Vec::new());
                let result = feed(&mut session, &wire, usize::MAX, &mut plain, &mut out);
                assert!(plain.is_empty(), "{suite}: octet {at} altered, and taken");
                let said = forge.read(&mut out);
                match (at, bit) {
                    // The header says that it is something else.
                    (0, _) => assert_eq!(said, [(21, vec![2, 10])]),
                    (1, _) => assert_eq!((result, said), (Err(TlsError::NotTls), vec![(21, vec![2, 10])])),
                    (3, 0x80) => assert_eq!((result, said), (Err(TlsError::TooLarge), vec![(21, vec![2, 22])])),
                    // 128 or 256 octets more, or one less: another record, and no authentic one. The version is sealed.
                    _ => assert_eq!((result, said), (Err(TlsError::BadRecord), vec![(21, vec![2, 20])]), "octet {at}"),
                }
            }
        }
    }
}

#[test]
fn records_left_out_repeated_or_exchanged() {
    let setting = Setting::new(None);
    for (order, taken) in [
        ([0, 1, 2].as_slice(), Ok(3)),
        (&[0, 0, 1], Err(1)),
        (&[0, 1, 1], Err(2)),
        (&[0, 2, 1], Err(1)),
        (&[1, 0, 2], Err(0)),
        (&[0, 2], Err(1)),
        (&[1, 2], Err(0)),
    ] {
        let (mut forge, mut session) = setting.forge();
        let sealed = [forge.record(23, b"0"), forge.record(23, b"1"), forge.record(23, b"2")];
        let wire: Vec<_> = order.iter().flat_map(|number| sealed[*number].clone()).collect();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let result = feed(&mut session, &wire, usize::MAX, &mut plain, &mut out);
        let octets = b"012".as_slice();
        match taken {
            Ok(count) => assert_eq!((result, plain.as_slice()), (Ok(State::Open), &octets[..count])),
            Err(count) => {
                assert_eq!((result, plain.as_slice()), (Err(TlsError::BadRecord), &octets[..count]), "{order:?}");
                assert_eq!(forge.read(&mut out), [(21, vec![2, 20])]);
            }
        }
    }
    // Of another connection, and our own sent back to us.
    let (mut forge, mut session) = setting.forge();
    let mut foreign = setting.forge().0.record(23, b"NOOP\r\n");
    let result = session.receive(&mut foreign, &mut Vec::new(), &mut Vec::new());
    assert_eq!(result, Err(TlsError::BadRecord));
    let (_, mut session) = setting.forge();
    let mut own = Vec::new();
    session.send(b"250 ok\r\n", &mut own).unwrap();
    assert_eq!(session.receive(&mut own, &mut Vec::new(), &mut Vec::new()), Err(TlsError::BadRecord));
    // Cut off: nothing is told of it, however long one waits.
    let (_, mut session) = setting.forge();
    let record = forge.record(23, b"QUIT\r\n");
    for length in 0..record.len() {
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let mut part = record[length..=length].to_vec();
        let received = session.receive(&mut part, &mut plain, &mut out);
        assert!(length + 1 == record.len() || received.unwrap().state == State::Open);
        assert!(plain.is_empty());
    }
}

/// Tells the secret that the client's Finished is sealed with.
#[derive(Debug, Default)]
struct HandshakeSecret(Mutex<Vec<u8>>);

impl KeyLog for HandshakeSecret {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        if label == "CLIENT_HANDSHAKE_TRAFFIC_SECRET" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}

/// §5.1: or a message would be read with keys that it was not sealed with. The takeover relies on rustls here.
#[test]
fn nothing_stands_behind_the_finished_in_its_record() {
    for behind in [b"".as_slice(), &[24, 0, 0, 1, 0], &[24, 0, 0, 1, 1], &[24], &[24, 0, 0, 1]] {
        let mut setting = Setting::new(Some(SUITES[0]));
        let secret = Arc::new(HandshakeSecret::default());
        Arc::get_mut(&mut setting.config).unwrap().key_log = secret.clone();
        let mut pair = Pair::new(&setting.server, connect(&setting.config, "mail.example"));
        let hello = pair.client_flight();
        pair.feed(&hello).unwrap();
        let mut flight = pair.client_flight();
        assert_eq!(content_types(&flight), [20, 23], "change_cipher_spec, Finished");
        let (mut key, mut iv) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 12]));
        let secret = secret.0.lock().unwrap().clone();
        expand_label(&secret, b"key", b"", &mut key[..16]).unwrap();
        expand_label(&secret, b"iv", b"", &mut *iv).unwrap();
        let mut keys = Keys { algorithm: &AES_128_GCM, key, iv, sequence: 0 };
        let cipher = keys.cipher().unwrap();
        let (kind, finished) = keys.open(&cipher, &mut flight[6..]).unwrap();
        assert_eq!((kind, finished[0]), (22, 20));
        let content = [finished, behind].concat();
        keys.sequence = 0;
        let mut wire = Vec::new();
        keys.seal(&cipher, 22, &content, &mut wire).unwrap();
        let result = pair.feed(&wire);
        if behind.is_empty() {
            assert_eq!((result, pair.state), (Ok(()), State::Open));
        } else {
            assert!(matches!(result, Err(TlsError::Peer(_))), "{behind:?}: {result:?}");
            assert!(pair.session.facts().is_none() && matches!(pair.session.layer, Layer::Over));
        }
    }
}

#[test]
fn keys_that_change_with_the_first_record() {
    let setting = Setting::new(None);
    for piece in [usize::MAX, 1, 30] {
        let mut pair = Pair::new(&setting.server, connect(&setting.config, "mail.example"));
        pair.piece = piece;
        let hello = pair.client_flight();
        pair.feed(&hello).unwrap();
        pair.client.refresh_traffic_keys().unwrap();
        pair.client_write(b"EHLO x\r\n");
        let flight = pair.client_flight();
        assert_eq!(content_types(&flight), [20, 23, 23, 23]);
        pair.feed(&flight).unwrap();
        assert_eq!((pair.state, pair.done, pair.plain.as_slice()), (State::Open, 1, b"EHLO x\r\n".as_slice()));
        pair.send(b"250 ok\r\n");
        assert_eq!(pair.client_read(), b"250 ok\r\n", "behind the ticket and a KeyUpdate of ours");
    }
}

#[test]
fn keys_change_in_both_directions() {
    for suite in SUITES {
        let setting = Setting::new(Some(suite));
        for piece in [usize::MAX, 1, 50] {
            let mut pair = setting.pair();
            pair.piece = piece;
            for round in 0..70u32 {
                if round % 3 > 0 {
                    // rustls asks for ours with it.
                    pair.client.refresh_traffic_keys().unwrap();
                }
                let text = format!("NOOP {round}\r\n");
                pair.client_write(text.as_bytes());
                pair.run().unwrap();
                assert_eq!(pair.plain, text.as_bytes(), "{suite}");
                pair.plain.clear();
                if round % 2 > 0 {
                    let reply = format!("250 ok {round}\r\n");
                    pair.send(reply.as_bytes());
                    assert_eq!(pair.client_read(), reply.as_bytes());
                }
            }
        }
    }
}

#[test]
fn one_answer_to_all_requests_before_we_speak() {
    let setting = Setting::new(None);
    let mut pair = setting.pair();
    for _ in 0..10 {
        pair.client.refresh_traffic_keys().unwrap();
        let wire = pair.client_flight();
        let mut out = Vec::new();
        pair.session.receive(&mut wire.clone(), &mut Vec::new(), &mut out).unwrap();
        assert!(out.is_empty(), "§4.6.3: before the next application data, not before");
    }
    let mut out = Vec::new();
    pair.session.send(b"250 one\r\n", &mut out).unwrap();
    assert_eq!(content_types(&out).len(), 2);
    pair.deliver(&out);
    pair.send(b"250 two\r\n");
    assert_eq!(pair.client_read(), b"250 one\r\n250 two\r\n");
    out.clear();
    pair.session.send(b"250 three\r\n", &mut out).unwrap();
    assert_eq!(content_types(&out).len(), 1);
}

#[test]
fn a_key_update_in_parts_and_we_send_meanwhile() {
    let setting = Setting::new(None);
    for piece in [1, 30, usize::MAX] {
        let (mut forge, mut session) = setting.forge();
        let parts: [&[u8]; 4] = [&[24], &[0, 0], &[1], &[1]];
        let parts = parts.map(|part| forge.record(22, part)).concat();
        let mut out = Vec::new();
        let mut sent = 0;
        for part in parts.chunks(piece.min(parts.len())) {
            session.receive(&mut part.to_vec(), &mut Vec::new(), &mut out).unwrap();
            session.send(b"250 ok\r\n", &mut out).unwrap();
            sent += 1;
        }
        // The last part asks for a key of ours; what comes then is sealed with the next one.
        let mut expected = vec![(23, b"250 ok\r\n".to_vec()); sent - 1];
        expected.push((22, vec![24, 0, 0, 1, 0]));
        assert_eq!(forge.read(&mut out), expected);
    }
}

#[test]
fn a_key_seals_no_more_than_it_may() {
    for suite in SUITES {
        let setting = Setting::new(Some(suite));
        let mut pair = setting.pair();
        let is_gcm = suite.contains("GCM");
        assert_eq!(records(&mut pair.session).limit, if is_gcm { 1 << 24 } else { u64::MAX }, "§5.5");
        records(&mut pair.session).set_limit(4);
        let text: Vec<u8> = (0..200_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut out = Vec::new();
        pair.session.send(&text, &mut out).unwrap();
        // 13 records of 16 KiB; the ticket was the first under its key, each key has three and a KeyUpdate.
        assert_eq!(content_types(&out).len(), 13 + 4, "{suite}");
        let mut read = Vec::new();
        for part in out.chunks(10_000) {
            pair.deliver(part);
            read.extend(pair.client_read());
        }
        assert!(read == text);
        // The client was asked for new keys as well, and it goes on with them.
        pair.client_write(b"NOOP\r\n");
        pair.run().unwrap();
        assert_eq!(pair.plain, b"NOOP\r\n");
        assert!(records(&mut pair.session).read.sequence <= 2, "{suite}");
    }
    // A client that uses a key for long is asked for another, once.
    let setting = Setting::new(None);
    let (mut forge, mut session) = setting.forge();
    records(&mut session).set_limit(8);
    let wire: Vec<_> = (0..12).flat_map(|_| forge.record(23, b"x")).collect();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    feed(&mut session, &wire, usize::MAX, &mut plain, &mut out).unwrap();
    session.send(b"250 ok\r\n", &mut out).unwrap();
    assert_eq!(forge.read(&mut out), [(22, vec![24, 0, 0, 1, 1])]);
}

#[test]
fn a_sequence_number_never_serves_twice() {
    let setting = Setting::new(Some(SUITES[2]));
    let (mut forge, mut session) = setting.forge();
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    records(&mut session).read.sequence = u64::MAX;
    let result = session.receive(&mut forge.record(23, b"NOOP\r\n"), &mut plain, &mut out);
    assert!(matches!(result, Err(TlsError::Internal(_))) && plain.is_empty());
    assert_eq!(forge.read(&mut out), [(21, vec![2, 80])]);

    let (_, mut session) = setting.forge();
    out.clear();
    records(&mut session).write.sequence = u64::MAX;
    // Not even a KeyUpdate is left: it ends, and in silence.
    assert!(matches!(session.send(b"250 ok\r\n", &mut out), Err(TlsError::Internal(_))));
    session.close(&mut out);
    assert!(out.is_empty());
    assert!(matches!(session.layer, Layer::Over));
}

#[test]
fn records_that_say_nothing_are_counted() {
    let setting = Setting::new(None);
    for (kind, content) in [(23, b"".as_slice()), (0, b"\x17\0\0\0\0"), (21, &[1, 90])] {
        let (mut forge, mut session) = setting.forge();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let mut wire: Vec<_> = (0..32).flat_map(|_| forge.record(kind, content)).collect();
            wire.extend(forge.record(23, b"x"));
            feed(&mut session, &wire, 100, &mut plain, &mut out).unwrap();
        }
        let wire: Vec<_> = (0..33).flat_map(|_| forge.record(kind, content)).collect();
        let result = feed(&mut session, &wire, usize::MAX, &mut plain, &mut out);
        assert!(matches!(result, Err(TlsError::Peer(_))), "{result:?}");
        assert_eq!((plain.as_slice(), forge.read(&mut out)), (b"xxx".as_slice(), vec![(21, vec![2, 10])]));
    }
    let mut pair = setting.pair();
    for _ in 0..33 {
        pair.client.refresh_traffic_keys().unwrap();
    }
    let wire = pair.client_flight();
    let result = pair.session.receive(&mut wire.clone(), &mut Vec::new(), &mut Vec::new());
    assert!(matches!(result, Err(TlsError::Peer(_))), "{result:?}");
}

#[test]
fn any_cut_of_records_gives_the_same() {
    let setting = Setting::new(None);
    for cut in 0.. {
        let mut pair = setting.pair();
        pair.client_write(b"MAIL FROM:<a@b.example>\r\n");
        pair.client.refresh_traffic_keys().unwrap();
        pair.client_write(b"RCPT TO:<c@d.example>\r\n");
        pair.client.send_close_notify();
        let wire = pair.client_flight();
        if cut > wire.len() {
            assert!(cut > 100);
            break;
        }
        pair.feed(&wire[..cut]).unwrap();
        assert!(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n".starts_with(&pair.plain));
        pair.feed(&wire[cut..]).unwrap();
        assert_eq!(pair.plain, b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n");
        assert_eq!((pair.state, pair.session.pending_octets()), (State::PeerClosed, 0));
        pair.send(b"221 bye\r\n");
        assert_eq!(pair.client_read(), b"221 bye\r\n");
    }
}

#[test]
fn sealed_records_are_made_where_they_are_sent_from() {
    let setting = Setting::new(None);
    let mut pair = setting.pair();
    let mut out = b"before".to_vec();
    pair.session.send(&[b'x'; 40_000], &mut out).unwrap();
    assert!(out.starts_with(b"before\x17\x03\x03"));
    assert_eq!(out.len(), 6 + 40_000 + 3 * OVERHEAD_OCTETS, "§5.4: no padding");
    let room = out.capacity();
    pair.session.close(&mut out);
    assert_eq!((out.len(), out.capacity()), (6 + 40_000 + 3 * OVERHEAD_OCTETS + OVERHEAD_OCTETS + 2, room));
    for part in out[6..].chunks(10_000) {
        pair.deliver(part);
        pair.client_read();
    }
    assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn fuzz_entry_point_survives_what_tests_know() {
    let known: [&[u8]; 8] = [
        b"\x03\0\x06NOOP\r\n\x03\x20\x06RSET\r\n",
        b"\x02\0\x05\x18\0\0\x01\x01\x03\0\x01x",
        b"\x02\0\x01\x18\x02\0\x04\0\0\x01\0",
        b"\x01\0\x02\x01\0\x03\0\x04more",
        b"\x01\0\x02\x02\x14",
        b"\x83\0\x14aaaabbbbccccddddeeee",
        b"\xff\0\x05\x17\x03\x03\x41\x01",
        b"\x03\0\0\x03\x05\0\x00\0\0",
    ];
    for size in [0, 4, 255] {
        for instructions in known {
            fuzz_records(&[&[size], instructions].concat());
        }
        fuzz_records(&[&[size], &known.concat()[..]].concat());
        fuzz_records(&[&[size], &b"\x03\0\0".repeat(40)[..]].concat());
    }
}
