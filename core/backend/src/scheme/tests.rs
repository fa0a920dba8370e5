use super::*;

thread_local! {
    /// Derivations of SCRAM keys in this thread.
    pub static DERIVED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn lenient() -> Options {
    Options { dialect: None, allow_cleartext: true, default_scheme: None }
}

fn parse(text: &str) -> Result<StoredSecret, BadSecret> {
    StoredSecret::parse(text, &lenient())
}

#[test]
fn vectors_of_other_implementations() {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../testdata/vectors.json")).unwrap();
    let vectors = all["stored_passwords"].as_array().unwrap();
    assert_eq!(vectors.len(), 19);
    for vector in vectors {
        let (stored, password) = (vector["stored"].as_str().unwrap(), vector["password"].as_str().unwrap());
        if vector["scheme"] == "DES" {
            assert!(matches!(parse(stored), Err(BadSecret::Unsupported { .. })));
            continue;
        }
        for text in [stored.to_owned(), StoredSecret::canonical(stored, &lenient()).unwrap()] {
            let secret = parse(&text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
            assert!(secret.verify("", password.as_bytes()), "{text}");
            for wrong in ["", "Pencil", "pencil ", "pencil\0", "penci"] {
                assert!(!secret.verify("", wrong.as_bytes()), "{text}: {wrong:?}");
            }
        }
    }
}

#[test]
fn more_forms() {
    for (text, password) in [
        // Dovecot's own test values.
        ("{PBKDF2}$1$bUnT4Pl7yFtYX0KU$5000$50a83cafdc517b9f46519415e53c6a858908680a", "test"),
        ("{SHA1}qUqP5cyxm6YcTAhz05Hph5gvu9M=", "test"),
        ("{SHA.hex}a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "test"),
        ("{SHA}a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "test"),
        ("{PLAIN-MD5}098f6bcd4621d373cade4e832627b4f6", "test"),
        ("{PLAIN-MD5.b64}CY9rzUYh03PK3k6DJie09g==", "test"),
        ("{sha256}n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=", "test"),
        // SASL.md §3.8.
        ("{CRAM-MD5}d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b", "tanstaaftanstaaf"),
        ("{CRYPT}$2y$05$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu", "pencil"),
        ("{MD5}$1$saltsalt$wCrc3hcrR95SV83Xh8Z.41", "pencil"),
        ("{PLAIN}pen cil", "pen cil"),
        ("{CLEARTEXT.b64}cGVuY2ls", "pencil"),
        ("{SCRAM-SHA-1}4096,QSXCR+Q6sek8bf92,6dlGYMOdZcOPutkcNY8U2g7vK9Y=,D+CSWLOshSulAsxiupA+qs2/fTE=", "pencil"),
    ] {
        let secret = parse(text).unwrap_or_else(|bad| panic!("{text}: {bad}"));
        assert!(secret.verify("", password.as_bytes()), "{text}");
        assert!(!secret.verify("", b"x"), "{text}");
    }
    // bcrypt counts 72 octets.
    let long = StoredSecret {
        scheme: "BLF-CRYPT",
        kind: Kind::Bcrypt { cost: 4, salt: [7; 16], hash: bcrypt::bcrypt(4, [7; 16], &[b'a'; 72])[..23].to_vec() },
    };
    assert!(long.verify("", &[b'a'; 72]) && long.verify("", &[b'a'; 73]) && !long.verify("", &[b'a'; 71]));
}

#[test]
fn md5_means_what_the_dialect_says() {
    let base64 = "{MD5}CY9rzUYh03PK3k6DJie09g==";
    let hex = "{MD5}098f6bcd4621d373cade4e832627b4f6";
    let with = |dialect| Options { dialect, ..Options::default() };
    let verify = |text, dialect| StoredSecret::parse(text, &with(dialect)).map(|secret| secret.verify("", b"test"));
    assert_eq!(verify(base64, None), Err(BadSecret::AmbiguousMd5));
    assert_eq!(verify(base64, Some(Dialect::OpenLdap)), Ok(true));
    assert_eq!(verify(hex, Some(Dialect::Dovecot)), Ok(true));
    assert!(verify(base64, Some(Dialect::Dovecot)).is_err());
    assert_eq!(
        StoredSecret::canonical(hex, &with(Some(Dialect::Dovecot))).unwrap(),
        "{PLAIN-MD5}098f6bcd4621d373cade4e832627b4f6"
    );
}

#[test]
fn costs_are_bounded_when_read() {
    let salt_hash = "c2FsdHNhbHRzYWx0c2FsdA$I4cCeOfbYJmA04i9kXkJasmDdfTykpuQH7o0Jv1olho";
    for text in [
        format!("$argon2id$v=19$m=1048577,t=2,p=1${salt_hash}"),
        format!("$argon2id$v=19$m=1024,t=21,p=1${salt_hash}"),
        format!("$argon2id$v=19$m=1024,t=2,p=65${salt_hash}"),
        format!("$argon2id$v=19$m=99999999999999999999,t=2,p=1${salt_hash}"),
        format!("$scrypt$ln=24,r=64,p=1${salt_hash}"),
        format!("$scrypt$ln=63,r=8,p=1${salt_hash}"),
        "$2y$17$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu".to_owned(),
        format!("$6$rounds=10000001$saltsalt${}", "a".repeat(86)),
        format!("$6$rounds=10$saltsalt${}", "a".repeat(86)),
        "{PBKDF2-SHA256}10000001$AAECAwQFBgcICQoLDA0ODw$I8LnbU59Bz8ecfJNYIuK4zGkfYMpeMpcktodjygkCl8".to_owned(),
        "{SCRAM-SHA-1}10000001,QSXCR+Q6sek8bf92,6dlGYMOdZcOPutkcNY8U2g7vK9Y=,D+CSWLOshSulAsxiupA+qs2/fTE=".to_owned(),
        "{SCRAM-SHA-1}1,QSXCR+Q6sek8bf92,6dlGYMOdZcOPutkcNY8U2g7vK9Y=,D+CSWLOshSulAsxiupA+qs2/fTE=".to_owned(),
    ] {
        let bad = parse(&text).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert!(matches!(bad, BadSecret::Cost { .. } | BadSecret::Malformed { .. }), "{text}: {bad}");
    }
}

#[test]
fn refusals() {
    let strict = Options::default();
    assert_eq!(StoredSecret::parse("{PLAIN}x", &strict).err(), Some(BadSecret::Cleartext));
    assert_eq!(StoredSecret::parse("secret", &strict).err(), Some(BadSecret::NoScheme));
    let with_default = Options { default_scheme: Some("PLAIN-MD5".into()), ..Options::default() };
    assert!(StoredSecret::parse("098f6bcd4621d373cade4e832627b4f6", &with_default).unwrap().verify("", b"test"));
    for (text, word) in [
        ("$2x$05$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu", "$2x$"),
        ("$y$j9T$abc$def", "YESCRYPT"),
        ("{NTLM}00", "NTLM"),
        ("{WHAT}x", "WHAT"),
        ("{my password is}x", "…"),
        (
            "{ARGON2I}$argon2id$v=19$m=1024,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$I4cCeOfbYJmA04i9kXkJasmDdfTykpuQH7o0Jv1olho",
            "variant",
        ),
        ("{SSHA}####", "damaged"),
        ("{SSHA}AAAA", "length"),
        ("{CRAM-MD5}00", "64"),
        ("{PLAIN}", "empty"),
    ] {
        let bad = parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert!(bad.to_string().contains(word), "{text}: {bad}");
        assert!(!bad.to_string().contains("password is") && !bad.remedy().is_empty());
    }
}

/// Hashes come from files and may be anything: never a panic, whatever is cut, doubled or changed.
#[test]
fn damaged_texts_never_panic() {
    let all: serde_json::Value = serde_json::from_str(include_str!("../../testdata/vectors.json")).unwrap();
    for vector in all["stored_passwords"].as_array().unwrap() {
        let text = vector["stored"].as_str().unwrap();
        for at in 0..=text.len() {
            let _ = parse(&text[..at]);
            let _ = parse(&text[at..]);
            for insert in ["$", "=", ",", "é", "\0", "9999999999", ":", "}", "{"] {
                let _ = parse(&format!("{}{insert}{}", &text[..at], &text[at..]));
                let _ = parse(&format!("{}{insert}{}", &text[..at], text.get(at + 1..).unwrap_or_default()));
            }
        }
    }
}

#[test]
fn new_secrets() {
    let text = new_scram_sha256("päss".as_bytes(), 4096).unwrap();
    let secret = parse(&text).unwrap();
    assert!(secret.verify("", "päss".as_bytes()) && !secret.verify("", b"pass"));
    let keys = secret.scram_keys(Hash::Sha256).unwrap();
    assert_eq!((keys.iterations, keys.salt.len(), keys.stored_key.len()), (4096, 16, 32));
    assert!(secret.scram_keys(Hash::Sha1).is_none() && secret.cram_md5().is_none());
    assert_ne!(text, new_scram_sha256("päss".as_bytes(), 4096).unwrap());

    for password in [&b"tanstaaftanstaaf"[..], &[b'x'; 64], &[b'x'; 65], &[b'x'; 200]] {
        let text = new_cram_md5(password);
        let secret = parse(&text).unwrap();
        assert!(secret.verify("", password));
        // The context does what the key does (RFC 2104): one more block each, then the end of MD5.
        let context = secret.cram_md5().unwrap();
        let finish = |half: &[u8], message: &[u8]| {
            let mut state = [0u32; 4];
            state.iter_mut().zip(half.chunks(4)).for_each(|(w, o)| *w = u32::from_le_bytes(o.try_into().unwrap()));
            let mut block = [0; 64];
            block[..message.len()].copy_from_slice(message);
            block[message.len()] = 0x80;
            block[56..].copy_from_slice(&((64 + message.len() as u64) * 8).to_le_bytes());
            md5::block_api::compress(&mut state, &[block]);
            state.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
        };
        let inner = finish(&context[16..], b"<challenge>");
        assert_eq!(finish(&context[..16], &inner), *Hash::Md5.hmac(password, b"<challenge>"));
    }
}

/// What `doveadm pw -s DIGEST-MD5` prints, and htdigest writes: of the halves of a name, or of names of its own.
#[test]
fn digests_of_a_name_and_a_realm() {
    let parse = |text: &str| StoredSecret::parse(text, &Options::default());
    let dovecot = parse("{DIGEST-MD5}ad9a807ce00c929fd778bb7551638ae9").unwrap();
    assert!(dovecot.verify("alice@demo.test", b"secret") && !dovecot.verify("alice@demo.test", b"Secret"));
    assert!(!dovecot.verify("bob@demo.test", b"secret"), "it is of somebody else");
    assert!(dovecot.digest_md5("alice@demo.test", b"alice", b"demo.test").is_some());
    assert!(dovecot.digest_md5("alice@demo.test", b"alice@demo.test", b"demo.test").is_none());
    assert!(dovecot.digest_md5("alice@demo.test", b"alice", b"").is_none());
    let other = parse("{DIGEST-MD5}user:example.com:241dc523d512ee3f7608549fd1f9dd1b").unwrap();
    assert!(other.verify("whoever@demo.test", b"pencil"), "SASL.md's vector");
    assert!(other.digest_md5("whoever@demo.test", b"user", b"example.com").is_some());
    assert!(parse("{DIGEST-MD5.b64}rZqAfOAMkp/XeLt1UWOK6Q==").unwrap().verify("alice@demo.test", b"secret"));
    for bad in ["", "ad9a", "x:ad9a807ce00c929fd778bb7551638ae9", ":r:ad9a807ce00c929fd778bb7551638ae9", "u:r:xyz"] {
        assert!(parse(&format!("{{DIGEST-MD5}}{bad}")).is_err(), "{bad}");
    }
    // RFC 2831 §2.1.2.1: what ISO 8859-1 can hold is hashed in it, whatever it came in; the rest as UTF-8.
    let ha1 = |password: &str| digest_md5_ha1("jürgen".as_bytes(), b"r", password.as_bytes());
    assert_eq!(*ha1("päss"), Hash::Md5.digest(&[b"j\xfcrgen:r:p\xe4ss"])[..]);
    assert_eq!(*ha1("p🔑"), Hash::Md5.digest(&[b"j\xfcrgen:r:p\xf0\x9f\x94\x91"])[..]);
    for (name, scheme) in NewScheme::ALL {
        assert_eq!(NewScheme::named(&name.to_lowercase()), Some(scheme));
        let options = Options { allow_cleartext: true, ..Options::default() };
        for password in [&b"pencil"[..], "p\u{e4}ss".as_bytes()] {
            let stored = scheme.make("alice@demo.test", password).unwrap();
            let secret = StoredSecret::parse(&stored, &options).unwrap_or_else(|bad| panic!("{name}: {bad}"));
            assert_eq!(secret.scheme(), name);
            assert!(secret.verify("alice@demo.test", password), "{name}");
            assert!(!secret.verify("alice@demo.test", b"other"), "{name}");
        }
    }
}
