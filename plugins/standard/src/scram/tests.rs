use super::*;
use portreeve_plugin_sdk::Status;
use portreeve_plugin_sdk::abi::fail;
use portreeve_plugin_sdk::testing::{Answer, Exchange};
use serde_json::Value;

// ---------------------------------------------------------------- the published exchanges

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

/// Octet for octet, with the server's nonce of the vector.
fn follows<H: ScramHash>(vector: &Value) {
    let line = |at: usize| vector["plain"][at].as_str().unwrap().as_bytes();
    let (salt, stored_key) = (decoded(&vector["salt_b64"]), decoded(&vector["stored_key_b64"]));
    let (server_key, iterations) = (decoded(&vector["server_key_b64"]), vector["iterations"].as_u64().unwrap() as u32);
    let key = ScramKey { iterations, salt: &salt, stored_key: &stored_key, server_key: &server_key };
    let binding = decoded(&vector["channel_binding_b64"]);

    let first = ClientFirst::parse(line(0)).unwrap();
    let nonce = vector["server_nonce"].as_str().unwrap();
    let server_first = ServerFirst::new(first.nonce, nonce.as_bytes(), &key).unwrap();
    assert_eq!(server_first.as_bytes(), line(1), "{vector}");
    let sent = |binding: &[u8]| {
        let cbind = remember(&[first.header.octets, binding]);
        Sent::<H>::new(&first, &server_first, &key, cbind).unwrap()
    };
    assert_eq!([b"v=", sent(&binding).check(line(2)).unwrap().as_bytes()].concat(), line(3), "{vector}");
    let other_binding = [&binding[..], b"x"].concat();
    let refused = sent(&other_binding).check(line(2)).err().unwrap();
    assert_eq!(refused, Bad::CHANNEL_BINDING.because("the client sees another header or another TLS connection"));
}

#[test]
fn vectors() {
    let all: Value = serde_json::from_str(include_str!("../../../../tests/vectors/sasl.json")).unwrap();
    let mut counts = [0; 3];
    for vector in all["exchanges"].as_array().unwrap() {
        let (count, follows): (_, fn(&Value)) = match vector["mech"].as_str().unwrap().trim_end_matches("-PLUS") {
            "SCRAM-SHA-1" => (&mut counts[0], follows::<Sha1>),
            "SCRAM-SHA-256" => (&mut counts[1], follows::<Sha256>),
            "SCRAM-SHA-512" => (&mut counts[2], follows::<Sha512>),
            _ => continue,
        };
        *count += 1;
        follows(vector);
    }
    assert_eq!(counts, [2, 5, 2]);
}

// ---------------------------------------------------------------- a client

/// What the store and the client have; no password is stretched here.
struct Keys<H: ScramHash> {
    client_key: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
    hash: PhantomData<H>,
}

impl<H: ScramHash> Keys<H> {
    fn new() -> Self {
        let octets = octets::<H::Core>();
        let client_key = vec![0x11; octets];
        let stored_key = digest::<H::Core>(&client_key)[..octets].to_vec();
        Self { client_key, stored_key, server_key: vec![0x22; octets], hash: PhantomData }
    }

    fn stored(&self) -> ScramKey<'_> {
        let (stored_key, server_key) = (&self.stored_key, &self.server_key);
        ScramKey { iterations: 4096, salt: b"salt of 16 octet", stored_key, server_key }
    }

    /// The client-final-message; `between` stands where extensions do.
    fn client_final(&self, first: &str, server_first: &str, cbind: &[u8], between: &str) -> String {
        let bare = first.splitn(3, ',').nth(2).unwrap();
        let nonce = server_first.split(',').next().unwrap();
        let without_proof = format!("c={},{nonce}{between}", STANDARD.encode(cbind));
        let signed = format!("{bare},{server_first},{without_proof}");
        let keys = [&self.stored_key[..], &self.server_key];
        let [signature, _] = Transcript::<H::Core>::begin(keys, &[]).finish(keys, signed.as_bytes()).unwrap();
        let proof: Vec<u8> = self.client_key.iter().zip(signature.iter()).map(|(a, b)| a ^ b).collect();
        format!("{without_proof},p={}", STANDARD.encode(proof))
    }
}

fn new<H: ScramHash, const PLUS: bool>() -> Exchange<Scram<H, PLUS>> {
    let mut exchange = Exchange::new(Scram(PhantomData));
    exchange.channel_bindings = if PLUS { 0b110 } else { 0 };
    exchange
}

fn text(answer: Answer) -> String {
    match answer {
        Answer::Challenge(challenge) => String::from_utf8(challenge).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Up to the server-first-message.
fn until_server_first<H: ScramHash, const PLUS: bool>(
    exchange: &mut Exchange<Scram<H, PLUS>>,
    first: &str,
    binding: &[u8],
) -> String {
    let mut answer = exchange.start(Some(first.as_bytes()));
    if PLUS {
        assert!(matches!(answer, Answer::Effect { kind: EffectKind::ChannelBinding, .. }), "{answer:?}");
        answer = exchange.outcome(Status::Ok, binding);
    }
    match answer {
        Answer::Effect { kind: EffectKind::FetchKey, arg, .. } => assert_eq!(arg, H::KEY as u32),
        other => panic!("{other:?}"),
    }
    text(exchange.scram(Keys::<H>::new().stored()))
}

fn class(answer: Answer) -> u32 {
    match answer {
        Answer::Failure { class, data: None, .. } => class,
        other => panic!("{other:?}"),
    }
}

fn whole<H: ScramHash, const PLUS: bool>(first: &str, binding: &[u8]) {
    let mut exchange = new::<H, PLUS>();
    let server_first = until_server_first(&mut exchange, first, binding);
    let header = first.match_indices(',').nth(1).unwrap().0 + 1;
    let cbind = [&first.as_bytes()[..header], binding].concat();
    let last = Keys::<H>::new().client_final(first, &server_first, &cbind, "");
    match exchange.message(last.as_bytes()) {
        Answer::Success { data: Some(verifier) } => assert!(verifier.starts_with(b"v=")),
        other => panic!("{other:?}"),
    }
    // Once is enough.
    assert_eq!(class(exchange.message(last.as_bytes())), fail::INTERNAL);
}

#[test]
fn all_six() {
    whole::<Sha1, false>("n,,n=user,r=abc", b"");
    whole::<Sha256, false>("n,a=admin,n=user,r=abc", b"");
    whole::<Sha512, false>("y,,n=user,r=abc", b"");
    whole::<Sha1, true>("p=tls-exporter,,n=user,r=abc", &[1; 32]);
    whole::<Sha256, true>("p=tls-server-end-point,a=b=2Cc,n=user,r=abc", &[1; 64]);
    whole::<Sha512, true>("p=tls-exporter,,n=user,r=abc", &[1; 32]);
}

#[test]
fn the_server_first_message() {
    let mut exchange = new::<Sha256, false>();
    assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
    assert!(matches!(exchange.message(b"n,,n=user,r=abc"), Answer::Effect { .. }));
    // The test's entropy begins with the octets 0 to 17.
    let expected = "r=abcAAECAwQFBgcICQoLDA0ODxAR,s=c2FsdCBvZiAxNiBvY3RldA==,i=4096";
    assert_eq!(text(exchange.scram(Keys::<Sha256>::new().stored())), expected);
    for (iterations, digits) in [(1, "1"), (10, "10"), (15_000, "15000"), (u32::MAX, "4294967295")] {
        exchange.start(Some(b"n,,n=user,r=abc"));
        let challenge = text(exchange.scram(ScramKey { iterations, ..Keys::<Sha256>::new().stored() }));
        assert!(challenge.ends_with(&format!(",i={digits}")), "{challenge}");
    }
}

#[test]
fn the_state_is_small_and_plain() {
    // The host puts one octet behind it.
    assert!(size_of::<ScramState<Sha1>>() < 300, "{}", size_of::<ScramState<Sha1>>());
    assert!(size_of::<ScramState<Sha256>>() < 350, "{}", size_of::<ScramState<Sha256>>());
    assert!(size_of::<ScramState<Sha512>>() < 510, "{}", size_of::<ScramState<Sha512>>());
    assert!(!std::mem::needs_drop::<ScramState<Sha512>>());
}

#[test]
fn names_and_escapes() {
    for (first, expected_authcid, expected_authzid) in [
        ("n,,n=user,r=abc", "user", ""),
        ("n,a=admin,n=user,r=abc", "user", "admin"),
        ("n,a=a=3Db,n=we=2Cird=3Duser,r=abc", "we,ird=user", "a=b"),
        ("n,,n==3D=2C,r=abc", "=,", ""),
        ("n,,n=jürgen a\u{1f600},r=abc", "jürgen a\u{1f600}", ""),
    ] {
        match new::<Sha256, false>().start(Some(first.as_bytes())) {
            Answer::Effect { authcid, authzid, data, .. } => {
                assert_eq!((&authcid[..], &authzid[..]), (expected_authcid.as_bytes(), expected_authzid.as_bytes()));
                assert_eq!(data, b"");
            }
            other => panic!("{first}: {other:?}"),
        }
    }
    // Two names as long as can be, of nothing but escapes, still fit.
    let name = "=2C".repeat(170);
    match new::<Sha256, false>().start(Some(format!("n,a={name},n={name},r=x").as_bytes())) {
        Answer::Effect { authcid, authzid, .. } => assert_eq!((authcid.len(), authzid.len()), (170, 170)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_client_first() {
    for first in [
        "",
        "n",
        "n,,",
        "n,,n=user",
        "n,,n=user,",
        "n,,n=,r=abc",
        "n,,n=user,r=",
        "n,,r=abc,n=user",
        "n,,N=user,r=abc",
        "n,,n=user,R=abc",
        "n,,n=user,r=a c",
        "n,,n=user,r=a\u{7f}",
        "n,,n=user,r=ä",
        "n,,n=us=er,r=abc",
        "n,,n=user=,r=abc",
        "n,,n=user=2c,r=abc",
        "n,,n=user=3d,r=abc",
        "n,,n=user=2,r=abc",
        "n,,n=user==,r=abc",
        "n,,m=x,n=user,r=abc",
        "n,,n=user,m=x,r=abc",
        "n,,n=user,r=abc,m=x",
        "n,,n=user,r=abc,",
        "n,,n=user,r=abc,,x=y",
        "n,,n=user,r=abc,x",
        "n,,n=user,r=abc,x=",
        "n,,n=user,r=abc,1=y",
        "n,,n=user,r=abc,xy=z",
        "n,,n=user,r=abc,r=abc",
        "n,,n=user,n=user,r=abc",
        "n,,n=user,r=abc,n=user",
        "n,,n=user,r=abc,a=b",
        "n,,n=user,r=abc,p=b",
        "n,,n=user,r=abc,x=y,x=y",
        "n,a=,n=user,r=abc",
        "n,a,n=user,r=abc",
        "n,n=user,r=abc",
        "p=,,n=user,r=abc",
        "p=tls exporter,,n=user,r=abc",
        "x,,n=user,r=abc",
        "n,,n=us\0er,r=abc",
        "n,,n=user,r=abc,x=\0",
        " n,,n=user,r=abc",
        "n,,n=user,r=abc\n",
        "F,n,,n=user,r=abc",
    ] {
        assert_eq!(class(new::<Sha256, false>().start(Some(first.as_bytes()))), fail::MALFORMED, "{first:?}");
    }
    let with_nonce = |octets| format!("n,,n=user,r={}", "x".repeat(octets));
    assert!(matches!(new::<Sha256, false>().start(Some(with_nonce(256).as_bytes())), Answer::Effect { .. }));
    assert_eq!(class(new::<Sha256, false>().start(Some(with_nonce(257).as_bytes()))), fail::MALFORMED);
    let with_name = |octets| format!("n,,n={},r=x", "x".repeat(octets));
    assert!(matches!(new::<Sha256, false>().start(Some(with_name(512).as_bytes())), Answer::Effect { .. }));
    assert_eq!(class(new::<Sha256, false>().start(Some(with_name(513).as_bytes()))), fail::MALFORMED);
}

#[test]
fn flags_and_bindings() {
    for (flag, plus_offered, expected) in [
        ("n", false, None),
        ("n", true, None),
        ("y", false, None),
        ("y", true, Some(fail::CBINDING)),
        ("p=tls-exporter", false, Some(fail::CBINDING)),
        ("p=tls-exporter", true, Some(fail::CBINDING)),
    ] {
        let mut exchange = new::<Sha256, false>();
        (exchange.plus_offered, exchange.channel_bindings) = (plus_offered, 0b110);
        let answer = exchange.start(Some(format!("{flag},,n=user,r=abc").as_bytes()));
        match expected {
            None => assert!(matches!(answer, Answer::Effect { kind: EffectKind::FetchKey, .. }), "{flag} {answer:?}"),
            Some(expected) => assert_eq!(class(answer), expected, "{flag} {plus_offered}"),
        }
    }
    let (exporter, end_point) = (ChannelBinding::TlsExporter as u32, ChannelBinding::TlsServerEndPoint as u32);
    for (flag, usable, expected) in [
        ("n", 0b110, None),
        ("y", 0b110, None),
        ("p=tls-unique", 0b111, None),
        ("p=tls-exporte", 0b110, None),
        ("p=TLS-EXPORTER", 0b110, None),
        ("p=tls-exporter", 0b100, None),
        ("p=tls-server-end-point", 0b010, None),
        ("p=tls-exporter", 0, None),
        ("p=tls-exporter", 0b010, Some(exporter)),
        ("p=tls-server-end-point", 0b100, Some(end_point)),
    ] {
        let mut exchange = new::<Sha256, true>();
        exchange.channel_bindings = usable;
        match (exchange.start(Some(format!("{flag},,n=user,r=abc").as_bytes())), expected) {
            (Answer::Effect { kind: EffectKind::ChannelBinding, arg, .. }, Some(expected)) => assert_eq!(arg, expected),
            (answer, None) => assert_eq!(class(answer), fail::CBINDING, "{flag}"),
            (answer, _) => panic!("{flag}: {answer:?}"),
        }
    }
}

#[test]
fn extensions_are_ignored_but_signed() {
    for (first, between, good) in [
        ("n,,n=user,r=abc,x=y", "", true),
        ("n,,n=user,r=abc,x=y=,X=ä", ",z==", true),
        ("n,,n=user,r=abc", ",x=y,z=1", true),
        ("n,,n=user,r=abc", ",m=y", false),
        ("n,,n=user,r=abc", ",x=", false),
        ("n,,n=user,r=abc", ",x=1,x=2", false),
        ("n,,n=user,r=abc", ",", false),
        ("n,,n=user,r=abc", ",p=AAAA", false),
        ("n,,n=user,r=abc", ",c=biws", false),
    ] {
        let mut exchange = new::<Sha256, false>();
        let server_first = until_server_first(&mut exchange, first, b"");
        let last = Keys::<Sha256>::new().client_final(first, &server_first, b"n,,", between);
        match exchange.message(last.as_bytes()) {
            Answer::Success { .. } => assert!(good, "{first} {between}"),
            other => assert!(!good && class(other) == fail::MALFORMED, "{first} {between}"),
        }
    }
    // Signed: a client that does not sign its own extension is refused.
    let mut exchange = new::<Sha256, false>();
    let server_first = until_server_first(&mut exchange, "n,,n=user,r=abc,x=y", b"");
    let last = Keys::<Sha256>::new().client_final("n,,n=user,r=abc", &server_first, b"n,,", "");
    assert_eq!(class(exchange.message(last.as_bytes())), fail::CREDENTIALS);
}

#[test]
fn what_must_come_back() {
    let first = "n,,n=user,r=abc";
    let answer = |cbind: &[u8], change: &dyn Fn(String) -> String| {
        let mut exchange = new::<Sha256, false>();
        let server_first = until_server_first(&mut exchange, first, b"");
        let last = Keys::<Sha256>::new().client_final(first, &server_first, cbind, "");
        exchange.message(change(last).as_bytes())
    };
    let same = |last: String| last;
    assert!(matches!(answer(b"n,,", &same), Answer::Success { .. }));
    // The header of another message, or more than the header (Cyrus compares a prefix only).
    for cbind in [&b""[..], b"n", b"n,", b"y,,", b"n,,x", b"n,a=b,", b"p=tls-exporter,,", &[b'x'; 603]] {
        assert_eq!(class(answer(cbind, &same)), fail::CBINDING, "{cbind:?}");
    }
    type Change = fn(String) -> String;
    let malformed: [(&str, Change); 14] = [
        ("another nonce", |last| last.replace("r=abc", "r=abd")),
        ("half of the nonce", |last| last.replace("AAECAwQF", "")),
        ("more nonce", |last| last.replace(",p=", "x,p=")),
        ("an empty nonce", |last| last.replace("r=abcAAECAwQFBgcICQoLDA0ODxAR", "r=")),
        ("no nonce", |last| last.replace(",r=abcAAECAwQFBgcICQoLDA0ODxAR", "")),
        ("no binding", |last| last.replace("c=biws,", "")),
        ("no proof", |last| last[..last.rfind(',').unwrap()].into()),
        ("an empty proof", |last| format!("{}p=", &last[..last.rfind('p').unwrap()])),
        ("a short proof", |last| format!("{}p=AAAA", &last[..last.rfind('p').unwrap()])),
        ("a long proof", |last| format!("{}p={}", &last[..last.rfind('p').unwrap()], "A".repeat(44 * 9))),
        ("proof without padding", |last| last.trim_end_matches('=').into()),
        ("something after the proof", |last| last + ",x=y"),
        ("two proofs", |last| format!("{last},{}", &last[last.rfind("p=").unwrap()..])),
        ("binding is no base64", |last| last.replace("c=biws", "c=biw")),
    ];
    for (what, change) in malformed {
        assert_eq!(class(answer(b"n,,", &change)), fail::MALFORMED, "{what}");
    }
}

#[test]
fn every_wrong_bit_and_every_end_is_refused() {
    fn refused<H: ScramHash, const PLUS: bool>(first: &str, binding: &[u8]) {
        let header = first.match_indices(',').nth(1).unwrap().0 + 1;
        let cbind = [&first.as_bytes()[..header], binding].concat();
        let respond = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut exchange = new::<H, PLUS>();
            let server_first = until_server_first(&mut exchange, first, binding);
            let mut last = Keys::<H>::new().client_final(first, &server_first, &cbind, "").into_bytes();
            change(&mut last);
            (last.len(), exchange.message(&last))
        };
        let (octets, answer) = respond(&|_| {});
        assert!(matches!(answer, Answer::Success { .. }));
        for at in 0..octets {
            for bit in 0..8 {
                let (_, answer) = respond(&|last| last[at] ^= 1 << bit);
                let class = class(answer);
                assert!([fail::CREDENTIALS, fail::MALFORMED, fail::CBINDING].contains(&class), "{at} {bit}: {class}");
            }
            assert_eq!(class(respond(&|last| last.truncate(at)).1), fail::MALFORMED, "cut at {at}");
        }
    }
    refused::<Sha1, false>("n,,n=user,r=abc", b"");
    refused::<Sha256, true>("p=tls-exporter,,n=user,r=abc", &[7; 32]);
    refused::<Sha512, false>("n,,n=user,r=abc", b"");
}

#[test]
fn the_binding_of_another_connection() {
    let first = "p=tls-exporter,,n=user,r=abc";
    for (theirs, expected) in [(&[7; 32][..], None), (&[8; 32], Some(())), (&[7; 31], Some(())), (b"", Some(()))] {
        let mut exchange = new::<Sha256, true>();
        let server_first = until_server_first(&mut exchange, first, &[7; 32]);
        let cbind = [b"p=tls-exporter,,", theirs].concat();
        let last = Keys::<Sha256>::new().client_final(first, &server_first, &cbind, "");
        match (exchange.message(last.as_bytes()), expected) {
            (Answer::Success { .. }, None) => {}
            (answer, Some(())) => assert_eq!(class(answer), fail::CBINDING),
            (answer, None) => panic!("{answer:?}"),
        }
    }
}

#[test]
fn bad_outcomes() {
    for (status, expected) in [
        (Status::Denied, fail::CREDENTIALS),
        (Status::Temporary, fail::TEMPORARY),
        (Status::Unsupported, fail::TEMPORARY),
        (Status::Transition, fail::TRANSITION),
        (Status::Expired, fail::EXPIRED),
        // No key at all, though the host says that there is one.
        (Status::Ok, fail::INTERNAL),
    ] {
        let mut exchange = new::<Sha256, false>();
        exchange.start(Some(b"n,,n=user,r=abc"));
        assert_eq!(class(exchange.outcome(status, b"")), expected, "{status:?}");
        let mut exchange = new::<Sha256, true>();
        exchange.start(Some(b"p=tls-exporter,,n=user,r=abc"));
        assert_eq!(class(exchange.outcome(status, b"")), expected, "{status:?}");
    }
    let keys = Keys::<Sha256>::new();
    let good = keys.stored();
    for bad in [
        ScramKey { iterations: 0, ..good },
        ScramKey { salt: b"", ..good },
        ScramKey { salt: &[1; 257], ..good },
        ScramKey { stored_key: &[1; 31], ..good },
        ScramKey { stored_key: &[1; 64], ..good },
        ScramKey { server_key: b"", ..good },
    ] {
        let mut exchange = new::<Sha256, false>();
        exchange.start(Some(b"n,,n=user,r=abc"));
        assert_eq!(class(exchange.scram(bad)), fail::INTERNAL);
    }
    let mut exchange = new::<Sha256, false>();
    exchange.start(Some(format!("n,,n=user,r={}", "x".repeat(256)).as_bytes()));
    assert!(matches!(exchange.scram(ScramKey { salt: &[1; 256], ..good }), Answer::Challenge(_)), "the longest of all");
}

#[test]
fn steps_out_of_order_are_faults() {
    let mut exchange = new::<Sha256, false>();
    exchange.start(Some(b"n,,n=user,r=abc"));
    assert_eq!(class(exchange.message(b"n,,n=user,r=abc")), fail::INTERNAL);
    let mut exchange = new::<Sha256, false>();
    let _ = until_server_first(&mut exchange, "n,,n=user,r=abc", b"");
    assert_eq!(class(exchange.outcome(Status::Ok, b"")), fail::INTERNAL);
    let mut exchange = new::<Sha256, false>();
    assert_eq!(class(exchange.resume()), fail::INTERNAL);
}
