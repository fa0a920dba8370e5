use super::*;
use portreeve_plugin_sdk::Status;
use portreeve_plugin_sdk::abi::{fail, key};
use portreeve_plugin_sdk::testing::{Answer, Exchange};

/// `H(user:example.com:pencil)`, from the vectors.
const HA1: [u8; 16] = 0x241dc523d512ee3f7608549fd1f9dd1b_u128.to_be_bytes();
/// Hexadecimal of the octets 0 to 15, which the test's entropy begins with.
const NONCE: &str = "000102030405060708090a0b0c0d0e0f";

fn new(realm: Option<&str>, hosts: &[&str]) -> Exchange<DigestMd5> {
    let hosts = hosts.iter().copied().map(String::from).collect();
    Exchange::new(DigestMd5 { realm: realm.map(String::from), hosts, nonces: PhantomData })
}

fn md5(text: &str) -> String {
    String::from_utf8(hex(&Md5::digest(text).into()).to_vec()).unwrap()
}

/// The formula of RFC 2831 §2.1.2.1 once more, with formatted text instead of streaming.
fn client(ha1: [u8; 16], cnonce: &str, uri: &str, authzid: &str, method: &str) -> String {
    let authzid = if authzid.is_empty() { String::new() } else { format!(":{authzid}") };
    let a1 = [&ha1[..], format!(":{NONCE}:{cnonce}{authzid}").as_bytes()].concat();
    let a1 = hex(&Md5::digest(a1).into());
    let a1 = std::str::from_utf8(&a1).unwrap();
    md5(&format!("{a1}:{NONCE}:00000001:{cnonce}:auth:{}", md5(&format!("{method}:{uri}"))))
}

/// A good response.
fn good() -> String {
    format!(
        "charset=utf-8,username=\"user\",realm=\"example.com\",nonce=\"{NONCE}\",nc=00000001,cnonce=\"Y2xpZW50\",\
         digest-uri=\"smtp/mail.example.com\",response={},qop=auth",
        client(HA1, "Y2xpZW50", "smtp/mail.example.com", "", "AUTHENTICATE")
    )
}

fn respond(response: &str) -> Answer {
    let mut exchange = new(Some("example.com"), &[]);
    assert!(matches!(exchange.start(None), Answer::Challenge(_)));
    match exchange.message(response.as_bytes()) {
        Answer::Effect { .. } => exchange.outcome(Status::Ok, &HA1),
        other => other,
    }
}

fn class(answer: Answer) -> u32 {
    match answer {
        Answer::Failure { class, data: None, .. } => class,
        other => panic!("{other:?}"),
    }
}

#[test]
fn vectors() {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../../../tests/vectors/sasl.json")).unwrap();
    let mut count = 0;
    for vector in all["exchanges"].as_array().unwrap().iter().filter(|vector| vector["mech"] == "DIGEST-MD5") {
        let text = |key: &str| vector[key].as_str().unwrap();
        let message = format!(
            "username=\"{}\",realm=\"{}\",nonce=\"{}\",cnonce=\"{}\",nc={},qop={},digest-uri=\"{}\",response={}",
            text("username"),
            text("realm"),
            text("nonce"),
            text("cnonce"),
            text("nc"),
            text("qop"),
            text("digest_uri"),
            text("response")
        );
        let response = Response::parse(message.as_bytes()).unwrap();
        let ha1 = u128::from_str_radix(text("ha1_hex"), 16).unwrap().to_be_bytes();
        let session = response.session_key(&ha1, text("nonce").as_bytes());
        let value = |method: &[u8]| response.value(&session, text("nonce").as_bytes(), method).to_vec();
        assert_eq!(value(b"AUTHENTICATE:"), response.response, "{vector}");
        assert_eq!(value(b":"), text("rspauth").as_bytes(), "{vector}");
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn a_whole_exchange() {
    let mut exchange = new(None, &[]);
    let challenge =
        format!("realm=\"mail.example.com\",nonce=\"{NONCE}\",qop=\"auth\",algorithm=md5-sess,charset=utf-8");
    assert_eq!(exchange.start(None), Answer::Challenge(challenge.into_bytes()));
    let mut exchange = new(Some("example.com"), &[]);
    exchange.start(None);
    match exchange.message(good().as_bytes()) {
        Answer::Effect { kind: EffectKind::FetchKey, arg: key::DIGEST_MD5_HA1, authcid, authzid, data, .. } => {
            assert_eq!((&authcid[..], &authzid[..], &data[..]), (&b"user"[..], &b""[..], &b"example.com"[..]));
        }
        other => panic!("{other:?}"),
    }
    let rspauth = format!("rspauth={}", client(HA1, "Y2xpZW50", "smtp/mail.example.com", "", ""));
    assert_eq!(exchange.outcome(Status::Ok, &HA1), Answer::Success { data: Some(rspauth.into_bytes()) });
    // A nonce is good for one response.
    assert_eq!(class(exchange.message(good().as_bytes())), fail::INTERNAL);
}

#[test]
fn freedoms_of_the_grammar() {
    let good = good();
    let digest = client(HA1, "Y2xpZW50", "smtp/mail.example.com", "", "AUTHENTICATE");
    for response in [
        good.replace(",", " ,\t, "),
        good.replace(",", ",\r\n "),
        format!(",, {good},"),
        good.replace("nc=00000001", "nc = \"00000001\""),
        good.replace("qop=auth", "qop=\"auth\""),
        good.replace(",qop=auth", ""),
        good.replace("charset=utf-8,", ""),
        good.replace("\"user\"", "\"u\\se\\r\""),
        good.replace("\"user\"", "user"),
        good.replace("Y2xpZW50", "Y2xp\\ZW50"),
        format!("{good},maxbuf=65536,cipher=rc4,algorithm=md5-sess,opaque=\"x\""),
    ] {
        assert!(matches!(respond(&response), Answer::Success { data: Some(_) }), "{response}");
    }
    assert!(good.contains(&digest));
}

#[test]
fn what_is_malformed() {
    let good = good();
    for (what, response) in [
        ("nothing", String::new()),
        ("only commas", ",,".into()),
        ("no username", good.replace("username=\"user\",", "")),
        ("an empty username", good.replace("\"user\"", "\"\"")),
        ("no nonce", good.replace(&format!("nonce=\"{NONCE}\",nc"), "nc")),
        ("another nonce", good.replace("000102", "000103")),
        ("no cnonce", good.replace("cnonce=\"Y2xpZW50\",", "")),
        ("an empty cnonce", good.replace("Y2xpZW50", "")),
        ("no nc", good.replace("nc=00000001,", "")),
        ("nc 2", good.replace("nc=00000001", "nc=00000002")),
        ("nc short", good.replace("nc=00000001", "nc=1")),
        ("no digest-uri", good.replace("digest-uri=\"smtp/mail.example.com\",", "")),
        ("digest-uri without host", good.replace("smtp/mail.example.com", "smtp/")),
        ("digest-uri without service", good.replace("smtp/mail.example.com", "/mail.example.com")),
        ("digest-uri of four", good.replace("smtp/mail.example.com", "smtp/mail.example.com/a/b")),
        ("digest-uri with an empty name", good.replace("smtp/mail.example.com", "smtp/mail.example.com/")),
        ("digest-uri with escapes", good.replace("smtp/mail.example.com", "smtp/mail\\.example.com")),
        ("no response", good.replace("response=", "maxbuf=")),
        ("an empty authzid", format!("{good},authzid=\"\"")),
        ("auth-int", good.replace("qop=auth", "qop=auth-int")),
        ("another qop", good.replace("qop=auth", "qop=AUTH")),
        ("another charset", good.replace("utf-8", "UTF-8")),
        ("upper-case digest", good.replace("response=", "response=A").replace(&good[good.len() - 10..], ",qop=auth")),
        ("name in another case", good.replace("username", "Username")),
        ("an unknown directive", format!("{good},x=y")),
        ("no closing quote", good.replace("\"user\"", "\"user")),
        ("two words", good.replace("qop=auth", "qop=auth auth")),
        ("no equals", good.replace("qop=auth", "qop")),
        ("no value", good.replace("qop=auth", "qop=")),
        ("a separator", good.replace("qop=auth", "qop=a@b")),
        ("a control character", good.replace("\"user\"", "\"us\x01er\"")),
        ("an escaped control character", good.replace("\"user\"", "\"us\\\x01er\"")),
        ("NUL", good.replace("\"user\"", "\"us\0er\"")),
    ] {
        assert_ne!(response, good, "{what}");
        assert_eq!(class(respond(&response)), fail::MALFORMED, "{what}: {response}");
    }
    for directive in good.split(',') {
        assert_eq!(class(respond(&format!("{good},{directive}"))), fail::MALFORMED, "{directive} twice");
    }
    let not_utf8 = good.replace("user\"", "us").into_bytes();
    let at = not_utf8.windows(2).position(|two| two == b"us").unwrap();
    let message = [&not_utf8[..at], b"\xff\"", &not_utf8[at + 2..]].concat();
    let mut exchange = new(Some("example.com"), &[]);
    exchange.start(None);
    assert_eq!(class(exchange.message(&message)), fail::MALFORMED);
}

#[test]
fn names_and_hosts_that_are_not_ours() {
    let good = good();
    for (what, response) in [
        ("another realm", good.replace("example.com\",nonce", "example.org\",nonce")),
        ("a realm in another case", good.replace("\"example.com\"", "\"Example.com\"")),
        ("no realm", good.replace("realm=\"example.com\",", "")),
        ("another host", good.replace("smtp/mail.example.com", "smtp/mail.example.org")),
        ("another service", good.replace("smtp/mail.example.com", "imap/mail.example.com")),
    ] {
        assert_eq!(class(respond(&response)), fail::CREDENTIALS, "{what}");
    }
    for (uri, hosts) in [
        ("smtp/Mail.Example.COM", &[][..]),
        ("SMTP/mail.example.com", &[]),
        ("smtp/mail.example.com/example.com", &[]),
        ("smtp/smtp.example.com", &["smtp.example.com"]),
    ] {
        let digest = client(HA1, "c", uri, "", "AUTHENTICATE");
        let mut exchange = new(Some("example.com"), hosts);
        exchange.start(None);
        exchange.message(
            format!(
                "username=\"user\",realm=\"example.com\",nonce=\"{NONCE}\",nc=00000001,cnonce=\"c\",digest-uri=\"{uri}\",\
                 response={digest}"
            )
            .as_bytes(),
        );
        assert!(matches!(exchange.outcome(Status::Ok, &HA1), Answer::Success { .. }), "{uri}");
    }
}

#[test]
fn realms() {
    let start = |realm: &str| match new(Some(realm), &[]).start(None) {
        Answer::Challenge(challenge) => String::from_utf8(challenge).unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(start("a\"b\\c").starts_with("realm=\"a\\\"b\\\\c\",nonce="));
    assert!(start("").starts_with("nonce="));
    assert!(start(&"\"".repeat(255)).len() < 2048);
    // Without a realm on offer the client may leave it out, or say that it is empty.
    for realm in ["", "realm=\"\","] {
        let digest = client(HA1, "c", "smtp/mail.example.com", "", "AUTHENTICATE");
        let mut exchange = new(Some(""), &[]);
        exchange.start(None);
        let message = format!(
            "username=\"user\",{realm}nonce=\"{NONCE}\",nc=00000001,cnonce=\"c\",digest-uri=\"smtp/mail.example.com\",\
             response={digest}"
        );
        let Answer::Effect { data, .. } = exchange.message(message.as_bytes()) else { panic!() };
        assert_eq!(data, b"");
        assert!(matches!(exchange.outcome(Status::Ok, &HA1), Answer::Success { .. }));
    }
}

#[test]
fn names_in_two_charsets() {
    let digest = |authzid: &str| client(HA1, "c", "smtp/mail.example.com", authzid, "AUTHENTICATE");
    let ask = |charset: &str, name: &[u8], authzid: &str| {
        let mut exchange = new(Some("example.com"), &[]);
        exchange.start(None);
        let mut message = format!("{charset}username=\"").into_bytes();
        message.extend_from_slice(name);
        let asked = if authzid.is_empty() { String::new() } else { format!(",authzid=\"{authzid}\"") };
        message.extend_from_slice(
            format!(
                "\",realm=\"example.com\",nonce=\"{NONCE}\",nc=00000001,cnonce=\"c\",\
                 digest-uri=\"smtp/mail.example.com\",response={}{asked}",
                digest(&authzid.replace('\\', ""))
            )
            .as_bytes(),
        );
        match exchange.message(&message) {
            Answer::Effect { authcid, authzid, .. } => {
                assert!(matches!(exchange.outcome(Status::Ok, &HA1), Answer::Success { .. }));
                Ok((String::from_utf8(authcid).unwrap(), String::from_utf8(authzid).unwrap()))
            }
            other => Err(class(other)),
        }
    };
    let names = |name: &str, authzid: &str| Ok((name.to_owned(), authzid.to_owned()));
    assert_eq!(ask("charset=utf-8,", "jürgen".as_bytes(), ""), names("jürgen", ""));
    assert_eq!(ask("", b"j\xfcrgen", ""), names("jürgen", ""));
    assert_eq!(ask("charset=utf-8,", b"j\xfcrgen", ""), Err(fail::MALFORMED));
    assert_eq!(ask("", b"a\\\"b", "admin"), names("a\"b", "admin"));
    assert_eq!(ask("", b"user", "ad\\min"), names("user", "admin"));
    assert_eq!(ask("", b"user", "jürgen"), names("user", "jürgen"));
    assert_eq!(ask("", &[0xfc; 320], &"ü".repeat(160)), names(&"ü".repeat(320), &"ü".repeat(160)));
    assert_eq!(ask("", &[b'a'; 321], ""), Err(fail::MALFORMED));
}

#[test]
fn every_wrong_bit_and_every_end_is_refused() {
    let good = good();
    assert!(matches!(respond(&good), Answer::Success { .. }));
    let respond = |message: &[u8]| {
        let mut exchange = new(Some("example.com"), &[]);
        exchange.start(None);
        match exchange.message(message) {
            // The key of another user is another key.
            Answer::Effect { authcid, .. } if authcid != b"user" => exchange.outcome(Status::Ok, &[7; 16]),
            Answer::Effect { .. } => exchange.outcome(Status::Ok, &HA1),
            other => other,
        }
    };
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut message = good.clone().into_bytes();
            message[at] ^= 1 << bit;
            let class = class(respond(&message));
            let text = String::from_utf8_lossy(&message).into_owned();
            assert!([fail::CREDENTIALS, fail::MALFORMED].contains(&class), "{text}: {class}");
        }
    }
    // Cut before what is needed; qop at the end is not.
    let needed = good.rfind(",qop").unwrap();
    for end in 0..needed {
        assert_eq!(class(respond(&good.as_bytes()[..end])), fail::MALFORMED, "{}", &good[..end]);
    }
}

#[test]
fn bad_outcomes() {
    for (status, octets, expected) in [
        (Status::Denied, 16, fail::CREDENTIALS),
        (Status::Temporary, 16, fail::TEMPORARY),
        (Status::Transition, 0, fail::TRANSITION),
        (Status::Ok, 16, fail::CREDENTIALS),
        (Status::Ok, 15, fail::INTERNAL),
        (Status::Ok, 0, fail::INTERNAL),
    ] {
        let mut exchange = new(Some("example.com"), &[]);
        exchange.start(None);
        exchange.message(good().as_bytes());
        assert_eq!(class(exchange.outcome(status, &vec![0; octets])), expected, "{status:?} {octets}");
    }
    assert_eq!(class(new(None, &[]).start(Some(b""))), fail::INTERNAL, "the host does not let that happen");
}

#[test]
fn settings() {
    let made = |entries: &[(&str, &str)]| DigestMd5::configure(&Settings::of("", entries));
    let made_well = made(&[("realm", "example.com"), ("hosts.0", "a")]).ok().unwrap();
    assert_eq!((made_well.realm.as_deref(), &made_well.hosts[..]), (Some("example.com"), &["a".to_owned()][..]));
    assert!(made(&[]).is_ok_and(|made| made.realm.is_none()));
    for (bad, expected) in [(("realm", "a\nb"), "realm"), (("hosts", "a"), "hosts"), (("qop", "auth-int"), "qop")] {
        assert!(made(&[bad]).err().unwrap().contains(expected));
    }
}
