use std::sync::Arc;

use rustls::SignatureScheme;

use crate::test_peer::*;
use crate::*;

const CLOSE: [u8; 7] = [21, 3, 3, 0, 2, 1, 0];

#[test]
fn both_versions_whole_and_in_pieces() {
    let server = server(&Settings { tickets: false, ..Settings::default() });
    for (version, number) in [(V12, 0x0303), (V13, 0x0304)] {
        let config = Client::new(version).config();
        for piece in [usize::MAX, 1, 2, 3, 5, 6, 100] {
            let mut pair = Pair::new(&server, connect(&config, "mail.example"));
            pair.piece = piece;
            assert_eq!(pair.session.facts(), None);
            pair.run().unwrap();
            assert_eq!((pair.state, pair.done), (State::Open, 1));
            let facts = pair.session.facts().unwrap();
            assert_eq!((facts.version, facts.sni, facts.resumed), (number, "mail.example", false));
            let cipher =
                if version == V13 { "TLS_AES_128_GCM_SHA256" } else { "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" };
            assert_eq!(facts.cipher, cipher, "ours, though the client likes another one better");
            assert!(!facts.group.is_empty() && !facts.client_certificate);

            pair.client_write(b"EHLO client.example\r\nNOOP\r\n");
            pair.run().unwrap();
            assert_eq!(pair.plain, b"EHLO client.example\r\nNOOP\r\n");
            pair.send(b"250 mail.example\r\n");
            assert_eq!(pair.client_read(), b"250 mail.example\r\n");
            assert_eq!(pair.session.pending_octets(), 0, "an idle session holds no buffer");
        }
    }
}

#[test]
fn any_cut_of_the_flights_gives_the_same() {
    // Full handshakes, and resumed ones.
    for (version, tickets) in [(V12, false), (V12, true), (V13, false), (V13, true)] {
        let server = server(&Settings { tickets, ..Settings::default() });
        let config = Client::new(version).config();
        // Which flight is cut, and where.
        for flight in 0..2 {
            for cut in 0.. {
                let mut pair = Pair::new(&server, connect(&config, "mail.example"));
                if flight == 1 {
                    let hello = pair.client_flight();
                    pair.feed(&hello).unwrap();
                }
                let wire = pair.client_flight();
                if cut > wire.len() {
                    assert!(cut > 50);
                    break;
                }
                pair.feed(&wire[..cut]).unwrap();
                if cut < wire.len() {
                    assert_eq!(pair.state, State::Handshaking);
                }
                pair.feed(&wire[cut..]).unwrap();
                pair.run().unwrap();
                assert_eq!((pair.state, pair.done), (State::Open, 1), "flight {flight} cut at {cut}");
                // The first of each round has no ticket, or an abandoned connection used it up.
                assert!(cut == 0 || pair.session.facts().unwrap().resumed == tickets);
            }
        }
    }
}

#[test]
fn much_data_in_any_pieces() {
    let server = server(&Settings::default());
    let text: Vec<u8> = (0..150_000u32).map(|n| (n * 7 % 251) as u8).collect();
    for version in [V12, V13] {
        for piece in [1, 4, 5, 1000, 16_384, 20_000, 65_536, usize::MAX] {
            let mut pair = Pair::open(&server, Client::new(version).connect("mail.example"));
            pair.plain.clear();
            pair.client.set_buffer_limit(None);
            let text = if piece < 1000 { &text[..40_000] } else { &text[..] };
            pair.client_write(text);
            let wire = pair.client_flight();
            pair.piece = piece;
            pair.feed(&wire).unwrap();
            assert!(pair.plain == text, "pieces of {piece}");
            assert_eq!(pair.session.pending_octets(), 0);

            let mut out = Vec::new();
            pair.session.send(text, &mut out).unwrap();
            assert_eq!(content_types(&out), vec![23; text.len().div_ceil(16_384)], "one record per 16 KiB");
            let mut read = Vec::new();
            for part in out.chunks(10_000) {
                pair.deliver(part);
                read.extend(pair.client_read());
            }
            assert!(read == text);
        }
    }
}

#[test]
fn plaintext_behind_the_finished_comes_along() {
    let server = server(&Settings::default());
    for version in [V12, V13] {
        let mut pair = Pair::new(&server, Client::new(version).connect("mail.example"));
        let hello = pair.client_flight();
        pair.feed(&hello).unwrap();
        let mut flight = pair.client_flight();
        if version.version == rustls::ProtocolVersion::TLSv1_2 {
            // The client may write only after our Finished.
            pair.feed(&flight).unwrap();
            flight.clear();
        }
        pair.client_write(b"EHLO x\r\n");
        pair.client.send_close_notify();
        flight.extend(pair.client_flight());
        pair.feed(&flight).unwrap();
        assert_eq!((pair.state, pair.done), (State::PeerClosed, 1), "both are told");
        assert_eq!(pair.plain, b"EHLO x\r\n");
        pair.send(b"221 bye\r\n");
        assert_eq!(pair.client_read(), b"221 bye\r\n", "the peer closed its direction only");
    }
}

#[test]
fn ecdsa_for_those_who_can_rsa_for_the_others() {
    let ecdsa = Made::self_signed(&["mail.example"]);
    let rsa = Made::rsa();
    for order in [[&ecdsa, &rsa], [&rsa, &ecdsa]] {
        let server = server_with(&Settings::default(), store(&order), &[]);
        for version in [V12, V13] {
            for name in ["mail.example", "unknown.example"] {
                let mut client = Client::new(version);
                let both = Pair::open(&server, client.connect(name));
                assert_eq!(both.client.peer_certificates().unwrap()[0], ecdsa.der(), "cheaper");
                client.schemes = Some(vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::RSA_PKCS1_SHA256]);
                let old = Pair::open(&server, client.connect(name));
                assert_eq!(old.client.peer_certificates().unwrap()[0], rsa.der(), "{name}");
            }
        }
    }
    // No certificate of that kind: a clear alert.
    let server = server_with(&Settings::default(), store(&[&ecdsa]), &[]);
    let client = Client { schemes: Some(vec![SignatureScheme::RSA_PSS_SHA256]), ..Client::new(V13) };
    let mut pair = Pair::new(&server, client.connect("mail.example"));
    assert!(matches!(pair.run(), Err(TlsError::Incompatible(_))));
}

#[test]
fn certificate_by_server_name() {
    let (first, second) =
        (Made::self_signed(&["mail.example", "192.0.2.1"]), Made::self_signed(&["MX.tenant.example"]));
    let wild = Made::self_signed(&["*.wild.example"]);
    let server = server_with(&Settings::default(), store(&[&first, &second, &wild]), &[]);
    for (name, expected, sni) in [
        ("mail.example", &first, "mail.example"),
        ("mx.tenant.example", &second, "mx.tenant.example"),
        ("mX.tenant.EXAMPLE", &second, "mx.tenant.example"),
        ("a.wild.example", &wild, "a.wild.example"),
        ("a.b.wild.example", &first, "a.b.wild.example"),
        ("wild.example", &first, "wild.example"),
        ("192.0.2.1", &first, ""),
        ("other.example", &first, "other.example"),
    ] {
        for version in [V12, V13] {
            let pair = Pair::open(&server, Client::new(version).connect(name));
            assert_eq!(pair.client.peer_certificates().unwrap()[0], expected.der(), "{name}");
            assert_eq!(pair.session.facts().unwrap().sni, sni);
        }
    }
}

#[test]
fn application_protocol() {
    let server = server(&Settings::default());
    for version in [V12, V13] {
        let with =
            |names: &[&[u8]]| Client { alpn: names.iter().map(|n| n.to_vec()).collect(), ..Client::new(version) };
        for names in [&[b"h2".as_slice(), b"http/1.1"][..], &[b"imap"], &[b"SMTP"]] {
            let mut pair = Pair::new(&server, with(names).connect("mail.example"));
            let hello = pair.client_flight();
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let error = pair.session.receive(&mut hello.clone(), &mut plain, &mut out).unwrap_err();
            assert_eq!(error, TlsError::ApplicationProtocol);
            // RFC 7301 §3.2; in TLS 1.3 it is encrypted already.
            let alert = pair.client.read_tls(&mut out.as_slice()).map(|_| pair.client.process_new_packets());
            let expected = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
            assert_eq!(alert.unwrap().map(|_| ()), Err(expected));
        }
        let pair = Pair::open(&server, with(&[b"h2", b"smtp"]).connect("mail.example"));
        assert_eq!(pair.client.alpn_protocol(), Some(b"smtp".as_slice()));
    }
}

/// Whether a second connection of the same client resumes the first's session.
fn resumes(first: &Arc<ServerTls>, second: &Arc<ServerTls>, client: &Client) -> bool {
    let config = client.config();
    let mut pair = Pair::open(first, connect(&config, "mail.example"));
    assert!(!pair.session.facts().unwrap().resumed);
    pair.send(b"250 ok\r\n");
    let pair = Pair::open(second, connect(&config, "mail.example"));
    pair.session.facts().unwrap().resumed
}

#[test]
fn tickets_pass_where_service_and_key_agree() {
    let made = Made::self_signed(&["mail.example"]);
    let store = store(&[&made]);
    let listener = |service, keys: &[[u8; 32]], tickets| {
        let settings = Settings { service, tickets, ..Settings::default() };
        server_with(&settings, store.clone(), keys)
    };
    let (a, b, c) = ([1; 32], [2; 32], [3; 32]);
    for version in [V12, V13] {
        let client = Client::new(version);
        let first = listener("mx smtp", &[b, a], true);
        for (second, expected, why) in [
            (first.clone(), true, "the same listener"),
            (listener("mx smtp", &[b, a], true), true, "another process"),
            (listener("mx smtp", &[c, b, a], true), true, "after a rotation"),
            (listener("mx smtp", &[c, a], true), false, "the key is gone"),
            (listener("mx smtp", &[], true), false, "no keys"),
            (listener("mx smtp", &[b, a], false), false, "tickets off"),
            (listener("submission smtp", &[b, a], true), false, "another service (CONTRACT C34)"),
        ] {
            assert_eq!(resumes(&first, &second, &client), expected, "{why}, {version:?}");
        }
        let off = listener("mx smtp", &[b, a], false);
        assert!(!resumes(&off, &off, &client), "none issued");
    }
}

#[test]
fn rotation_under_a_running_listener() {
    let keys = Arc::new(TicketKeys::new(&[[1; 32]]));
    let made = Made::self_signed(&["mail.example"]);
    let server = Arc::new(ServerTls::new(&Settings::default(), store(&[&made]), keys.clone()).unwrap());
    let config = Client::new(V13).config();
    let resumed = || {
        let mut pair = Pair::open(&server, connect(&config, "mail.example"));
        pair.send(b"250 ok\r\n");
        pair.session.facts().unwrap().resumed
    };
    assert!(!resumed());
    keys.replace(&[[2; 32], [1; 32]]);
    assert!(resumed(), "under the older key");
    keys.replace(&[[2; 32]]);
    assert!(resumed(), "it got a ticket under the newer key when it resumed");
    keys.replace(&[[3; 32]]);
    assert!(!resumed());
}

#[test]
fn exactly_one_ticket() {
    for (tickets, expected) in [(true, 1), (false, 0)] {
        let server = server(&Settings { tickets, ..Settings::default() });
        let mut pair = Pair::new(&server, Client::new(V13).connect("mail.example"));
        let hello = pair.client_flight();
        pair.feed(&hello).unwrap();
        let (mut finished, mut out) = (pair.client_flight(), Vec::new());
        assert!(pair.session.receive(&mut finished, &mut Vec::new(), &mut out).unwrap().handshake_done);
        assert_eq!(content_types(&out).len(), expected);
    }
}

#[test]
fn close_notify_in_every_state_ends_it() {
    let server = server(&Settings::default());
    for version in [V12, V13] {
        // Before anything; after part of the hello; after the server's flight.
        for state in 0..3 {
            for piece in [1, usize::MAX] {
                let mut pair = Pair::new(&server, Client::new(version).connect("mail.example"));
                pair.piece = piece;
                let hello = pair.client_flight();
                match state {
                    0 => {}
                    // Then it stands inside a record and is no alert at all.
                    1 => pair.feed(&hello[..hello.len() - 7]).unwrap(),
                    _ => pair.feed(&hello).unwrap(),
                }
                let result = pair.feed(&CLOSE);
                if state == 1 {
                    assert!(result.is_err() || pair.state == State::Handshaking, "part of a ClientHello");
                } else {
                    assert_eq!((result, pair.state), (Ok(()), State::PeerClosed));
                    // Nothing more is taken, nothing is said, and it is not an SMTP session in clear.
                    let (mut plain, mut out) = (Vec::new(), Vec::new());
                    let received = pair.session.receive(&mut b"EHLO x\r\n".to_owned(), &mut plain, &mut out).unwrap();
                    assert_eq!(received, Received { state: State::PeerClosed, handshake_done: false });
                    assert!(plain.is_empty() && out.is_empty());
                    assert_eq!(pair.session.send(b"250 ok\r\n", &mut out), Err(TlsError::NotOpen));
                    pair.session.close(&mut out);
                    assert!(out.is_empty());
                }
            }
        }
        // In the open session.
        let mut pair = Pair::open(&server, Client::new(version).connect("mail.example"));
        pair.client_write(b"QUIT\r\n");
        pair.client.send_close_notify();
        let mut wire = pair.client_flight();
        wire.extend_from_slice(b"MAIL FROM:<evil@example>\r\n");
        pair.feed(&wire).unwrap();
        assert_eq!((pair.state, pair.plain.as_slice()), (State::PeerClosed, b"QUIT\r\n".as_slice()));
        pair.send(b"221 bye\r\n");
        assert_eq!(pair.client_read(), b"221 bye\r\n");
    }
}

#[test]
fn our_close_notify() {
    let server = server(&Settings::default());
    for version in [V12, V13] {
        let mut pair = Pair::open(&server, Client::new(version).connect("mail.example"));
        let mut out = Vec::new();
        pair.session.close(&mut out);
        assert_eq!(content_types(&out).len(), 1);
        pair.deliver(&out);
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
        let mut again = Vec::new();
        pair.session.close(&mut again);
        assert!(again.is_empty(), "once");
        assert_eq!(pair.session.send(b"x", &mut again), Err(TlsError::NotOpen));
        // What the client still says does not matter, garbage included.
        let received = pair.session.receive(&mut [0xff; 100], &mut Vec::new(), &mut again).unwrap();
        assert_eq!((received.state, again.len()), (State::PeerClosed, 0));
    }
}

#[test]
fn what_is_not_tls() {
    let server = server(&Settings::default());
    for wire in [
        b"GET / HTTP/1.1\r\nHost: mail.example\r\n\r\n".as_slice(),
        b"EHLO x\r\n",
        b"\x00\x00\x00\x00\x00",
        b"\x16\x09\x01\x00\x10",
        b"\xff\xff\xff\xff\xff\xff",
    ] {
        for piece in [1, 3, 100] {
            let mut pair = Pair::new(&server, Client::new(V13).connect("mail.example"));
            pair.piece = piece;
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let result =
                wire.chunks(piece).find_map(|p| pair.session.receive(&mut p.to_vec(), &mut plain, &mut out).err());
            assert_eq!(result, Some(TlsError::NotTls), "{wire:?}");
            assert_eq!(out, [21, 3, 3, 0, 2, 2, 50], "decode_error");
            out.clear();
            assert_eq!(pair.session.receive(&mut [22], &mut plain, &mut out), Err(TlsError::NotOpen));
            pair.session.close(&mut out);
            assert!(out.is_empty() && plain.is_empty());
        }
    }
}

#[test]
fn oversized_and_altered_records() {
    let server = server(&Settings::default());
    // A record above 16 KiB and 2048 octets is refused at its header.
    let mut out = Vec::new();
    let mut session = TlsSession::accept(&server).unwrap();
    let error = session.receive(&mut [22, 3, 1, 0x48, 0x01], &mut Vec::new(), &mut out).unwrap_err();
    assert_eq!(error, TlsError::TooLarge);
    assert_eq!(content_types(&out), [21]);

    for version in [V12, V13] {
        let open = || {
            let mut pair = Pair::open(&server, Client::new(version).connect("mail.example"));
            pair.client_write(b"NOOP\r\n");
            let wire = pair.client_flight();
            (pair, wire)
        };
        for altered in 5..open().1.len() {
            let (mut pair, mut wire) = open();
            wire[altered] ^= 1;
            assert_eq!(pair.feed(&wire), Err(TlsError::BadRecord));
            assert!(pair.plain.is_empty());
        }
        let (mut pair, wire) = open();
        let (start, end) = wire.split_at(wire.len() - 1);
        pair.feed(start).unwrap();
        assert!(pair.plain.is_empty(), "truncated: waits");
        pair.send(b"421 too slow\r\n");
        assert_eq!(pair.client_read(), b"421 too slow\r\n", "sending goes on meanwhile");
        pair.feed(end).unwrap();
        assert_eq!(pair.plain, b"NOOP\r\n");
        let result = pair.feed(b"MAIL FROM:<injected@example>\r\n");
        assert!(matches!(result, Err(TlsError::NotTls)), "{result:?}: never back to clear");
    }
}

#[test]
fn endless_handshake_messages_are_bounded() {
    let server = server(&Settings::default());
    // A ClientHello that says it has 60,000 octets, in records of 1,000 and of 1.
    for size in [1000, 1] {
        let mut session = TlsSession::accept(&server).unwrap();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let mut message = vec![1, 0, 0xea, 0x60];
        message.resize(60_004, 0);
        let mut fed = 0;
        let error = message.chunks(size).find_map(|part| {
            let mut record = vec![22, 3, 1];
            record.extend_from_slice(&(part.len() as u16).to_be_bytes());
            record.extend_from_slice(part);
            fed += record.len();
            let result = session.receive(&mut record, &mut plain, &mut out);
            assert!(session.pending_octets() <= 64 << 10);
            result.err()
        });
        assert_eq!(error, Some(TlsError::TooLarge));
        assert!((24 << 10..26 << 10).contains(&fed), "{fed}");
        assert_eq!(out, [21, 3, 3, 0, 2, 2, 22]);
        assert_eq!(session.pending_octets(), 0);
    }
    // Empty records and warnings that say nothing.
    for record in [[22, 3, 1, 0, 0].as_slice(), &[21, 3, 1, 0, 2, 1, 90]] {
        let mut session = TlsSession::accept(&server).unwrap();
        let fed = (0..100).find(|_| session.receive(&mut record.to_vec(), &mut Vec::new(), &mut Vec::new()).is_err());
        assert!(fed.is_some(), "{record:?} without end");
    }
}

#[test]
fn truncated_hellos_wait_and_cost_nothing() {
    let server = server(&Settings::default());
    let hello = Pair::new(&server, Client::new(V13).connect("mail.example")).client_flight();
    for length in 0..hello.len() {
        let mut session = TlsSession::accept(&server).unwrap();
        let mut out = Vec::new();
        let received = session.receive(&mut hello[..length].to_vec(), &mut Vec::new(), &mut out).unwrap();
        assert_eq!((received.state, out.len()), (State::Handshaking, 0));
        session.close(&mut out);
        assert!(out.is_empty() && session.facts().is_none());
    }
}

#[test]
fn any_altered_octet_of_the_hello_is_survived() {
    let server = server(&Settings::default());
    for version in [V12, V13] {
        let hello = Pair::new(&server, Client::new(version).connect("mail.example")).client_flight();
        for at in 0..hello.len() {
            for value in [0, 0xff, hello[at] ^ 1, hello[at].wrapping_add(1)] {
                let mut altered = hello.clone();
                altered[at] = value;
                let mut session = TlsSession::accept(&server).unwrap();
                let (mut plain, mut out) = (Vec::new(), Vec::new());
                let _ = session.receive(&mut altered, &mut plain, &mut out);
                assert!(plain.is_empty() && out.len() < 16 << 10);
            }
        }
    }
}

#[test]
fn replaced_certificates_serve_the_next_handshake() {
    let (old, new) = (Made::self_signed(&["mail.example"]), Made::self_signed(&["mail.example"]));
    let store = store(&[&old]);
    let server = server_with(&Settings::default(), store.clone(), &[]);
    for version in [V12, V13] {
        store.replace(CertificateSet::new(vec![old.certificate()]).unwrap());
        let config = Client::new(version).config();
        let mut open = Pair::open(&server, connect(&config, "mail.example"));
        let mut under_way = Pair::new(&server, connect(&config, "mail.example"));
        let hello = under_way.client_flight();
        under_way.feed(&hello).unwrap();
        store.replace(CertificateSet::new(vec![new.certificate()]).unwrap());
        under_way.run().unwrap();
        assert_eq!(under_way.state, State::Open);
        assert_eq!(under_way.client.peer_certificates().unwrap()[0], old.der());
        open.client_write(b"NOOP\r\n");
        open.run().unwrap();
        open.send(b"250 ok\r\n");
        assert_eq!(open.plain, b"NOOP\r\n");
        assert_eq!(open.client_read(), b"250 ok\r\n");
        let next = Pair::open(&server, connect(&config, "mail.example"));
        assert_eq!(next.client.peer_certificates().unwrap()[0], new.der());
    }
}

#[test]
fn a_client_with_one_suite_gets_it() {
    for (suite, cipher) in [
        ("TLS13_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS13_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        ("TLS13_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
    ] {
        let client = Client { suite: Some(suite), ..Client::new(V13) };
        let pair = Pair::open(&server(&Settings::default()), client.connect("mail.example"));
        assert_eq!(pair.session.facts().unwrap().cipher, cipher);
    }
}

#[test]
fn lowest_version() {
    let server = server(&Settings { min_version: Version::Tls13, ..Settings::default() });
    Pair::open(&server, Client::new(V13).connect("mail.example"));
    let mut pair = Pair::new(&server, Client::new(V12).connect("mail.example"));
    let mut hello = pair.client_flight();
    let mut out = Vec::new();
    let error = pair.session.receive(&mut hello, &mut Vec::new(), &mut out).unwrap_err();
    assert!(matches!(error, TlsError::Incompatible(_)));
    assert_eq!(out, [21, 3, 3, 0, 2, 2, 70], "protocol_version");
}

#[cfg(feature = "aws-lc")]
#[test]
fn post_quantum_group_when_wanted() {
    for (post_quantum, group) in [(true, "X25519MLKEM768"), (false, "x25519")] {
        let server = server(&Settings { post_quantum, ..Settings::default() });
        let pair = Pair::open(&server, Client::new(V13).connect("mail.example"));
        assert_eq!(pair.session.facts().unwrap().group, group);
    }
}

#[test]
fn client_certificates() {
    let made = Arc::new(Made::self_signed(&["client.example"]));
    let stranger = Arc::new(Made::self_signed(&["stranger.example"]));
    let bundle = ca_and_leaf();
    let authorities = Pem { file: "ca.pem", octets: bundle.0.as_bytes() };
    let ours = Arc::new(bundle.1);
    for version in [V12, V13] {
        let client =
            |certificate: Option<&Arc<Made>>| Client { certificate: certificate.cloned(), ..Client::new(version) };
        let open = |auth, c: Option<&Arc<Made>>| {
            let server = server(&Settings { client_auth: auth, ..Settings::default() });
            let mut pair = Pair::new(&server, client(c).connect("mail.example"));
            pair.run().map(|()| {
                let facts = pair.session.facts().expect("open");
                (facts.client_certificate, usize::from(pair.session.certificate_presented()))
            })
        };
        assert_eq!(open(ClientAuth::Off, Some(&ours)), Ok((false, 0)));
        let request = ClientAuth::Request { authorities: Some(authorities) };
        assert_eq!(open(request, None), Ok((false, 0)));
        assert_eq!(open(request, Some(&ours)), Ok((true, 1)));
        assert_eq!(open(request, Some(&stranger)), Ok((false, 1)), "mail of strangers is not refused");
        assert_eq!(open(ClientAuth::Request { authorities: None }, Some(&made)), Ok((false, 1)));
        let require = ClientAuth::Require { authorities };
        assert_eq!(open(require, Some(&ours)), Ok((true, 1)));
        assert!(matches!(open(require, Some(&stranger)), Err(TlsError::ClientCertificate(_))));
        assert!(matches!(open(require, None), Err(TlsError::ClientCertificate(_))));

        let requests = server(&Settings { client_auth: request, ..Settings::default() });
        assert!(resumes(&requests, &requests, &client(None)));
        assert!(!resumes(&requests, &requests, &client(Some(&ours))), "proves itself every time");
        assert!(!resumes(&requests, &requests, &client(Some(&stranger))));
        let same = Made::self_signed(&["mail.example"]);
        let store = store(&[&same]);
        let off = server_with(&Settings::default(), store.clone(), &[[1; 32]]);
        let requires = server_with(&Settings { client_auth: require, ..Settings::default() }, store, &[[1; 32]]);
        assert!(!resumes(&off, &requires, &client(Some(&ours))), "a ticket is no way round the certificate");
    }
    let refused = ServerTls::new(
        &Settings {
            client_auth: ClientAuth::Require { authorities: Pem { file: "ca.pem", octets: b"" } },
            ..Settings::default()
        },
        store(&[&made]),
        Arc::new(TicketKeys::new(&[])),
    );
    assert_eq!(refused.unwrap_err(), CertificateError::NoCertificate { file: "ca.pem".into() });
}

/// An authority's certificate, and a client certificate that it issued.
fn ca_and_leaf() -> (String, Made) {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let mut leaf = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    (authority_certificate.pem(), Made { chain: certificate.pem(), key: key.serialize_pem() })
}

#[test]
fn fuzz_entry_point_survives_what_tests_know() {
    let server = server(&Settings::default());
    let hello = Pair::new(&server, Client::new(V12).connect("fuzz.example")).client_flight();
    for size in [0, 4, 255] {
        fuzz_receive(&[&[size], &hello[..]].concat());
        fuzz_receive(&[&[size], &hello[..], &CLOSE].concat());
        fuzz_receive(&[&[size], &CLOSE[..], &hello].concat());
        fuzz_receive(&[&[size], &[22, 3, 1, 0, 0].repeat(100)[..]].concat());
    }
    // A short run with a fixed seed: mutated hellos, so that it gets past the header.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..2000 {
        let mut data = [&[random() as u8], &hello[..], &hello].concat();
        for _ in 0..random() % 4 {
            let at = random() % data.len();
            data[at] = random() as u8;
        }
        data.truncate(random() % data.len() + 1);
        fuzz_receive(&data);
    }
}
