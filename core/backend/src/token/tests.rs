//! Tokens that are good, and all the ways in which they are not; a server that misbehaves in all the usual ways.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;

use super::keys::{Found, Keys, Pace};
use super::*;

const ISS: &str = "https://login.example";

/// Somebody who signs.
struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

impl Signer {
    fn new(algorithm: Algorithm, kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(match algorithm {
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            _ => &rcgen::PKCS_RSA_SHA256,
        });
        let pair = pair.unwrap();
        let der = pair.serialize_der();
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            // What is inside of PKCS #8 is PKCS #1; for 2048 bits what is around it has this length.
            _ => EncodingKey::from_rsa_der(&der[26..]),
        };
        let mut jwk = match algorithm {
            Algorithm::EdDSA => {
                json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": url_safe(pair.public_key_raw()) })
            }
            _ => serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap(),
        };
        jwk["kid"] = json!(kid);
        Self { key, algorithm, jwk }
    }

    fn sign(&self, header: impl FnOnce(&mut Header), claims: &Value) -> String {
        let mut head = Header::new(self.algorithm);
        head.kid = self.jwk["kid"].as_str().map(str::to_owned);
        header(&mut head);
        jsonwebtoken::encode(&head, claims, &self.key).unwrap()
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(|_| {}, claims)
    }
}

fn url_safe(octets: impl AsRef<[u8]>) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, octets)
}

/// What a good token says, with `changes`; `null` takes a claim out.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": ISS, "aud": "smtp.example", "exp": unix_seconds() + 600, "email": "alice@demo.test", "scope": "openid mail",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn issuer(kind: Kind) -> Issuer {
    Issuer {
        name: "test".into(),
        kind,
        issuer: Some(ISS.into()),
        audience: vec!["smtp.example".into()],
        claim: "email".into(),
        scope: Some("mail".into()),
        openid_configuration: Some("https://login.example/.well-known/openid-configuration".into()),
        skew: Duration::from_secs(30),
        authorities: None,
        timeout: Duration::from_millis(400),
    }
}

struct House {
    dir: tempfile::TempDir,
    told: Arc<Mutex<Vec<String>>>,
}

impl House {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), told: Arc::default() }
    }

    fn report(&self) -> Report {
        let told = self.told.clone();
        Arc::new(move |event: &Event| told.lock().push(format!("{}: {event}", event.name())))
    }

    fn keys(&self, all: &[&Value]) -> KeySource {
        let path = self.dir.path().join("jwks");
        std::fs::write(&path, json!({ "keys": all }).to_string()).unwrap();
        KeySource::File(path)
    }

    fn jwt(&self, signers: &[&Signer]) -> Tokens {
        let keys = self.keys(&signers.iter().map(|signer| &signer.jwk).collect::<Vec<_>>());
        let algorithms = ALGORITHMS.iter().map(|&name| name.to_owned()).collect();
        self.tokens(vec![issuer(Kind::Jwt { keys, algorithms })])
    }

    fn tokens(&self, issuers: Vec<Issuer>) -> Tokens {
        Tokens::new(issuers, self.report()).unwrap()
    }
}

impl Tokens {
    fn judged(&self, token: &[u8]) -> Answer {
        self.verify(token).0
    }
}

fn good() -> Answer {
    Answer::Good("alice@demo.test".into())
}

fn is_bad(answer: &Answer) -> bool {
    matches!(answer, Answer::Bad(Refusal::Invalid(_)))
}

#[test]
fn every_signature_that_is_known() {
    let house = House::new();
    let signers: Vec<Signer> = [
        Algorithm::ES256,
        Algorithm::EdDSA,
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS512,
    ]
    .into_iter()
    .map(|algorithm| Signer::new(algorithm, &format!("{algorithm:?}")))
    .collect();
    let tokens = house.jwt(&signers.iter().collect::<Vec<_>>());
    for signer in &signers {
        assert_eq!(tokens.judged(signer.token(&claims(json!({}))).as_bytes()), good(), "{:?}", signer.algorithm);
        // Each octet of the signature counts, and so does each claim.
        let token = signer.token(&claims(json!({ "jti": "1" })));
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { "B" } else { "A" };
        let changed = format!("{signed}.{other}{}", &signature[1..]);
        assert!(is_bad(&tokens.judged(changed.as_bytes())), "{:?}", signer.algorithm);
        let cut = format!("{signed}.{}", &signature[..signature.len() - 4]);
        assert!(is_bad(&tokens.judged(cut.as_bytes())), "{:?}", signer.algorithm);
        assert!(is_bad(&tokens.judged(format!("{signed}.").as_bytes())), "{:?}", signer.algorithm);
    }
}

#[test]
fn forged_tokens() {
    let house = House::new();
    let (ours, rsa) = (Signer::new(Algorithm::ES256, "k"), Signer::new(Algorithm::RS256, "r"));
    let theirs = Signer::new(Algorithm::ES256, "k");
    let tokens = house.jwt(&[&ours, &rsa]);
    let claims = claims(json!({}));
    let part = |value: &Value| url_safe(value.to_string());
    let body = part(&claims);
    // A public key as a shared secret: its octets are known to everybody.
    let modulus = rsa.jwk["n"].as_str().unwrap().as_bytes();
    let symmetric = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("r".into());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    let forged = [
        format!("{}.{body}.", part(&json!({ "alg": "none", "kid": "k" }))),
        format!("{}.{body}.x", part(&json!({ "alg": "None" }))),
        format!("{}.{body}.x", part(&json!({ "kid": "k" }))),
        symmetric(modulus),
        symmetric(rsa.jwk.to_string().as_bytes()),
        symmetric(b""),
        theirs.token(&claims),
        // Another key than the one that it names, and another kind of key.
        ours.sign(|head| head.kid = Some("r".into()), &claims),
        ours.sign(|head| head.kid = Some("../../../../etc/passwd".into()), &claims),
        ours.sign(|head| head.kid = Some("https://evil.example/jwks".into()), &claims),
        ours.sign(|head| head.kid = Some("k\0".into()), &claims),
        ours.sign(|head| head.kid = Some("x".repeat(10_000)), &claims),
        ours.sign(|head| head.kid = None, &claims),
        // Its own key along with it.
        theirs.sign(|head| head.jwk = serde_json::from_value(theirs.jwk.clone()).ok(), &claims),
        theirs.sign(|head| head.jku = Some("http://127.0.0.1:1/".into()), &claims),
        ours.sign(|head| head.crit = Some(vec!["exp".into()]), &claims),
        "a".repeat(16_000),
        format!("{0}.{0}.{0}", "e30"),
        "..".into(),
        "....".into(),
        ".".repeat(5000),
        format!("{}.{body}.{body}", part(&json!({ "alg": "ES256" }))),
        format!("{}.{}.x", part(&json!({ "alg": "ES256", "kid": "k" })), part(&json!([[[[[]]]]]))),
        format!("{}.{}.x", part(&json!({ "alg": "ES256", "kid": "k" })), "W".repeat(15_000)),
    ];
    for token in &forged {
        assert!(is_bad(&tokens.judged(token.as_bytes())), "{token}");
    }
    assert_eq!(tokens.judged(ours.token(&claims).as_bytes()), good(), "and the door still opens");
    let told = house.told.lock().join("\n");
    assert!(told.contains("tokens.refused"), "{told}");
    assert!(!forged.iter().any(|token| token.len() > 9 && told.contains(&token[..10])), "{told}");
}

#[test]
fn what_a_token_must_say() {
    let house = House::new();
    let signer = Signer::new(Algorithm::ES256, "k");
    let tokens = house.jwt(&[&signer]);
    let now = unix_seconds();
    let scope = Answer::Bad(Refusal::Scope);
    for (changes, wanted) in [
        (json!({ "exp": now - 20 }), Some(good())),
        (json!({ "exp": now - 40 }), None),
        (json!({ "exp": null }), None),
        (json!({ "exp": "tomorrow" }), None),
        (json!({ "exp": -1 }), None),
        (json!({ "exp": (now + 600) as f64 + 0.5 }), Some(good())),
        (json!({ "nbf": now + 20 }), Some(good())),
        (json!({ "nbf": now + 60 }), None),
        (json!({ "nbf": [] }), None),
        (json!({ "iss": "https://login.example/" }), None),
        (json!({ "iss": null }), None),
        (json!({ "iss": [ISS] }), None),
        (json!({ "aud": "other.example" }), None),
        (json!({ "aud": null }), None),
        (json!({ "aud": [] }), None),
        (json!({ "aud": {} }), None),
        (json!({ "aud": ["other.example", "smtp.example"] }), Some(good())),
        (json!({ "scope": "openid" }), Some(scope.clone())),
        (json!({ "scope": "mailbox nomail" }), Some(scope.clone())),
        (json!({ "scope": null }), Some(scope.clone())),
        (json!({ "scope": null, "scp": ["mail"] }), Some(good())),
        (json!({ "scope": null, "scp": "mail x" }), Some(good())),
        (json!({ "email": null, "sub": "alice@demo.test" }), None),
        (json!({ "email": "" }), None),
        (json!({ "email": ["alice@demo.test"] }), None),
        (json!({ "email_verified": false }), None),
        (json!({ "email_verified": "False" }), None),
        (json!({ "email_verified": true }), Some(good())),
        (json!({ "email": "bob@demo.test" }), Some(Answer::Good("bob@demo.test".into()))),
    ] {
        let answer = tokens.judged(signer.token(&claims(changes.clone())).as_bytes());
        match wanted {
            Some(wanted) => assert_eq!(answer, wanted, "{changes}"),
            None => assert!(is_bad(&answer), "{changes}: {answer:?}"),
        }
    }
    // However the configuration may have been made, clocks do not differ by more.
    let generous = Issuer { skew: Duration::from_secs(3600), ..issuer(Kind::List("/".into())) };
    assert!(judge(claims(json!({ "exp": now - 90 })).as_object().unwrap(), &generous, now).is_err());
}

#[test]
fn errors_in_the_form_of_their_mechanism() {
    let house = House::new();
    let tokens = house.tokens(vec![issuer(Kind::List(house.dir.path().join("none")))]);
    let url = "https://login.example/.well-known/openid-configuration";
    for (mechanism, refusal, wanted) in [
        (
            "OAUTHBEARER",
            Refusal::Invalid("x"),
            json!({ "status": "invalid_token", "scope": "mail", "openid-configuration": url }),
        ),
        (
            "OAUTHBEARER",
            Refusal::Scope,
            json!({ "status": "insufficient_scope", "scope": "mail", "openid-configuration": url }),
        ),
        ("XOAUTH2", Refusal::Invalid("x"), json!({ "status": "401", "schemes": "bearer", "scope": "mail" })),
        ("XOAUTH2", Refusal::Scope, json!({ "status": "403", "schemes": "bearer", "scope": "mail" })),
    ] {
        assert_eq!(serde_json::from_str::<Value>(&tokens.error(mechanism, refusal, None)).unwrap(), wanted);
    }
    // Text of the operator cannot change the structure.
    let odd = Issuer { scope: Some("a\"},{\"b".into()), ..issuer(Kind::List("/".into())) };
    let error: Value = serde_json::from_str(&house.tokens(vec![odd]).error("XOAUTH2", Refusal::Scope, None)).unwrap();
    assert_eq!(error["scope"], "a\"},{\"b");
}

#[test]
fn a_file_of_tokens() {
    let house = House::new();
    let path = house.dir.path().join("tokens");
    let now = unix_seconds();
    let line = |more: &str| format!("# users\n\nsesame alice@demo.test scope=mail scope=other {more}\nbad\n");
    std::fs::write(&path, line("")).unwrap();
    let list = Issuer { issuer: None, audience: Vec::new(), ..issuer(Kind::List(path.clone())) };
    let tokens = house.tokens(vec![list.clone()]);
    assert_eq!(tokens.judged(b"sesame"), good());
    assert!(is_bad(&tokens.judged(b"#")) && is_bad(&tokens.judged(b"bad")) && is_bad(&tokens.judged(b"sesam")));
    // A file that has changed is read again; what was verified a moment ago is still believed.
    std::fs::write(&path, format!("mellon alice@demo.test scope=mail exp={}\n", now + 100)).unwrap();
    assert_eq!((tokens.judged(b"mellon"), tokens.judged(b"sesame")), (good(), good()));
    assert!(is_bad(&house.tokens(vec![list.clone()]).judged(b"sesame")));
    std::fs::write(&path, format!("mellon alice@demo.test scope=mail exp={}\n", now - 100)).unwrap();
    assert!(is_bad(&house.tokens(vec![list.clone()]).judged(b"mellon")));
    std::fs::write(&path, "mellon alice@demo.test\n").unwrap();
    assert_eq!(house.tokens(vec![list.clone()]).judged(b"mellon"), Answer::Bad(Refusal::Scope));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(house.tokens(vec![list]).judged(b"mellon"), Answer::Trouble);
}

#[test]
fn several_issuers_and_the_one_that_knows() {
    let house = House::new();
    let path = house.dir.path().join("tokens");
    std::fs::write(&path, "sesame bob@demo.test scope=mail\n").unwrap();
    let list = Issuer { issuer: None, audience: Vec::new(), name: "list".into(), ..issuer(Kind::List(path.clone())) };
    let signer = Signer::new(Algorithm::EdDSA, "k");
    let keys = house.keys(&[&signer.jwk]);
    let jwt = issuer(Kind::Jwt { keys, algorithms: vec!["EdDSA".into()] });
    let tokens = house.tokens(vec![jwt, list]);
    assert_eq!(tokens.judged(signer.token(&claims(json!({}))).as_bytes()), good());
    assert_eq!(tokens.judged(b"sesame"), Answer::Good("bob@demo.test".into()));
    assert!(is_bad(&tokens.judged(b"other")));
    // One that cannot be asked might have known it.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(tokens.judged(b"another"), Answer::Trouble);
    assert_eq!(tokens.judged(signer.token(&claims(json!({ "jti": "2" }))).as_bytes()), good());
}

#[test]
fn a_client_is_told_what_the_issuer_of_its_token_wants() {
    let house = House::new();
    let path = house.dir.path().join("tokens");
    std::fs::write(&path, "sesame bob@demo.test\nmellon bob@demo.test scope=post\n").unwrap();
    let list = Issuer {
        issuer: None,
        audience: Vec::new(),
        scope: Some("post".into()),
        openid_configuration: None,
        ..issuer(Kind::List(path))
    };
    let signer = Signer::new(Algorithm::EdDSA, "k");
    let keys = house.keys(&[&signer.jwk]);
    let jwt = issuer(Kind::Jwt { keys, algorithms: vec!["EdDSA".into()] });
    for (first, second) in [(&jwt, &list), (&list, &jwt)] {
        let tokens = house.tokens(vec![first.clone(), second.clone()]);
        let told = |token: &[u8]| {
            let (answer, issuer) = tokens.verify(token);
            let refusal = match answer {
                Answer::Bad(refusal) => refusal,
                _ => Refusal::Invalid("for nobody here"),
            };
            let error: Value = serde_json::from_str(&tokens.error("OAUTHBEARER", refusal, issuer)).unwrap();
            (error["status"].as_str().unwrap().to_owned(), error["scope"].as_str().unwrap().to_owned())
        };
        let of = |status: &str, scope: &str| (status.to_owned(), scope.to_owned());
        assert_eq!(
            told(signer.token(&claims(json!({ "scope": "openid" }))).as_bytes()),
            of("insufficient_scope", "mail")
        );
        assert_eq!(told(signer.token(&claims(json!({ "exp": 1 }))).as_bytes()), of("invalid_token", "mail"));
        assert_eq!(told(b"sesame"), of("insufficient_scope", "post"));
        // Good, but for nobody here; the second time from the cache.
        for _ in 0..2 {
            assert_eq!(told(b"mellon"), of("invalid_token", "post"));
        }
    }
}

// ---------------------------------------------------------------- over the network

/// What the server does with a request.
#[derive(Clone)]
enum Mood {
    Answer(String),
    Raw(Vec<u8>),
    /// Says nothing.
    BlackHole,
    /// Octet by octet, for ever.
    Drip,
    /// More than anybody wants.
    Flood,
    Reset,
}

/// A web server of one page, in whatever mood; it ends with its listener's process.
struct Web {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            address: listener.local_addr().unwrap(),
            mood: Arc::new(Mutex::new(mood)),
            asked: Arc::default(),
            requests: Arc::default(),
        };
        let (mood, asked, requests) = (web.mood.clone(), web.asked.clone(), web.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mood, asked, requests) = (mood.clone(), asked.clone(), requests.clone());
                std::thread::spawn(move || serve(stream, &mood, &asked, &requests));
            }
        });
        web
    }

    fn url(&self) -> String {
        format!("http://{}/page", self.address)
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: std::net::TcpStream, mood: &Mutex<Mood>, asked: &AtomicUsize, requests: &Mutex<Vec<String>>) {
    loop {
        // Head and body of one request; bodies here are short.
        let (mut text, mut buffer) = (String::new(), [0; 65536]);
        loop {
            let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                break;
            }
        }
        asked.fetch_add(1, Ordering::SeqCst);
        requests.lock().push(text);
        let mood = mood.lock().clone();
        let written = match mood {
            Mood::Answer(body) => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            }
            Mood::Raw(octets) => stream.write_all(&octets).and(Err(std::io::ErrorKind::Other.into())),
            Mood::BlackHole => stream.read(&mut buffer).map(drop),
            Mood::Drip => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
                loop {
                    std::thread::park_timeout(Duration::from_millis(20));
                    if stream.write_all(b" ").is_err() {
                        return;
                    }
                }
            }
            Mood::Flood => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n");
                let chunk = vec![b' '; 1 << 20];
                while stream.write_all(&chunk).is_ok() {}
                return;
            }
            Mood::Reset => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn moods_of_trouble() -> Vec<Mood> {
    let raw = |text: &str| Mood::Raw(text.as_bytes().to_vec());
    vec![
        Mood::BlackHole,
        Mood::Drip,
        Mood::Flood,
        Mood::Reset,
        Mood::Answer("{\"active\":".into()),
        Mood::Answer("[]".into()),
        Mood::Answer("{\"active\":\"true\"}".into()),
        Mood::Answer("{}".into()),
        Mood::Answer(format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
        raw("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"),
        raw("HTTP/1.1 401 Who?\r\ncontent-length: 0\r\n\r\n"),
        raw("HTTP/1.1 204 Nothing\r\n\r\n"),
        raw("SSH-2.0-nonsense\r\n"),
        Mood::Raw(vec![0xff; 70_000]),
        raw("HTTP/1.1 302 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
        raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"active\":true"),
    ]
}

#[test]
fn introspection_by_the_letter() {
    let house = House::new();
    let web = Web::start(Mood::Answer("{\"active\":false}".into()));
    let client = Some(("our id:".to_owned(), zeroize::Zeroizing::new("s%cret".to_owned())));
    let server = |claim: &str| Issuer {
        claim: claim.into(),
        ..issuer(Kind::Introspection { url: web.url(), client: client.clone() })
    };
    let tokens = house.tokens(vec![server("username")]);
    assert!(is_bad(&tokens.judged(b"a+b/c=")));
    let request = web.requests.lock().pop().unwrap();
    assert!(request.starts_with("POST /page HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\ntoken=a%2Bb%2Fc%3D&token_type_hint=access_token"), "{request}");
    // RFC 6749 §2.3.1: `our+id%3A:s%25cret`.
    assert!(request.to_lowercase().contains("authorization: basic b3vyk2lkjtnbonmlmjvjcmv0"), "{request}");

    let says = |changes: Value| {
        let mut claims = claims(changes);
        claims["active"] = json!(true);
        claims["username"] = claims["email"].clone();
        Mood::Answer(claims.to_string())
    };
    let now = unix_seconds();
    for (n, (changes, wanted)) in [
        (json!({}), Some(good())),
        (json!({ "exp": null }), Some(good())),
        (json!({ "exp": now - 100 }), None),
        (json!({ "aud": "other" }), None),
        (json!({ "iss": "other" }), None),
        (json!({ "scope": "none" }), Some(Answer::Bad(Refusal::Scope))),
        (json!({ "email": null }), None),
    ]
    .into_iter()
    .enumerate()
    {
        web.set(says(changes.clone()));
        let answer = tokens.judged(format!("token{n}").as_bytes());
        match wanted {
            Some(wanted) => assert_eq!(answer, wanted, "{changes}"),
            None => assert!(is_bad(&answer), "{changes}: {answer:?}"),
        }
    }
    // Good ones are remembered, others are asked about again.
    let asked = web.asked();
    assert_eq!(tokens.judged(b"token0"), good());
    assert_eq!(web.asked(), asked);
    assert!(is_bad(&tokens.judged(b"token6")) && web.asked() == asked + 1);
}

#[test]
fn a_server_in_trouble_costs_no_login_its_token() {
    for mood in moods_of_trouble() {
        let house = House::new();
        let web = Web::start(mood.clone());
        let server = Issuer {
            claim: "email".into(),
            timeout: Duration::from_millis(150),
            ..issuer(Kind::Introspection { url: web.url(), client: None })
        };
        let tokens = house.tokens(vec![server]);
        // It is left alone after some failures, and asked again later: nobody is told that a token is bad.
        for n in 0..8 {
            assert_eq!(tokens.judged(format!("token{n}").as_bytes()), Answer::Trouble);
        }
        assert!(web.asked() <= 5, "{}", web.asked());
        let told = house.told.lock().clone();
        assert_eq!(told.len(), 1, "told once: {told:?}");
        assert!(told[0].starts_with("tokens.trouble: "), "{told:?}");
        assert!(!told[0].contains("token0"), "{told:?}");
    }
    let house = House::new();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = issuer(Kind::Introspection { url: format!("http://{gone}/"), client: None });
    assert_eq!(house.tokens(vec![server]).judged(b"token"), Answer::Trouble);
}

#[test]
fn a_server_that_comes_and_goes() {
    let house = House::new();
    let mut all = claims(json!({}));
    all["active"] = json!(true);
    let well = Mood::Answer(all.to_string());
    let web = Web::start(well.clone());
    let tokens = house.tokens(vec![issuer(Kind::Introspection { url: web.url(), client: None })]);
    for n in 0..20 {
        web.set(if n % 2 == 0 {
            well.clone()
        } else {
            Mood::Raw(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec())
        });
        let wanted = if n % 2 == 0 { good() } else { Answer::Trouble };
        assert_eq!(tokens.judged(format!("token{n}").as_bytes()), wanted, "{n}");
    }
}

// ---------------------------------------------------------------- keys

const QUICK: Pace = Pace {
    gap: Duration::from_millis(1),
    refresh: Duration::from_secs(600),
    stale: Duration::from_secs(600),
    unknown: Duration::from_secs(600),
};

fn set(signers: &[&Signer]) -> Mood {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    Mood::Answer(json!({ "keys": keys }).to_string())
}

fn has(keys: &Keys, kid: &str) -> Option<bool> {
    match keys.find(Some(kid)) {
        Found::Keys(_) => Some(true),
        Found::Unknown => Some(false),
        Found::Unavailable => None,
    }
}

#[test]
fn keys_are_fetched_by_one_for_all() {
    let house = House::new();
    let (first, second) = (Signer::new(Algorithm::ES256, "1"), Signer::new(Algorithm::ES256, "2"));
    let web = Web::start(set(&[&first]));
    let source = KeySource::Url(web.url());
    let patient = Issuer { timeout: Duration::from_secs(10), ..issuer(Kind::List("/".into())) };
    tls::provide_for_others();
    let slow = Pace { gap: Duration::from_secs(600), ..QUICK };
    let keys = Keys::start(&patient, &source, slow, &house.report()).unwrap();
    // Twenty who wait for the first set are one request.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(has(&keys, "1"), Some(true)));
        }
    });
    // Made-up ids cost nothing while the set is young.
    for n in 0..2000 {
        assert_eq!(has(&keys, &format!("made up {n}")), Some(false));
    }
    assert_eq!(web.asked(), 1);

    // A new key is found when a token names it, and the made-up ones are remembered as such.
    let keys = Keys::start(&patient, &source, QUICK, &house.report()).unwrap();
    assert_eq!((has(&keys, "1"), has(&keys, "2"), has(&keys, "3")), (Some(true), Some(false), Some(false)));
    web.set(set(&[&first, &second]));
    assert_eq!(has(&keys, "2"), Some(false), "not asked for again so soon");
    let asked = web.asked();
    for _ in 0..50 {
        assert_eq!(has(&keys, "3"), Some(false));
    }
    assert_eq!(web.asked(), asked);
    for n in 0.. {
        assert_eq!(has(&keys, &format!("new {n}")), Some(false));
        if has(&keys, "2") == Some(true) {
            break; // it came along with the answer to another question
        }
    }

    // While the server is down, what is known serves on, and about the rest nothing is said.
    web.set(Mood::Reset);
    for n in 0.. {
        assert_eq!(has(&keys, "1"), Some(true));
        if has(&keys, &format!("newer {n}")).is_none() {
            break;
        }
    }
    // A key that was taken back is gone with the next set.
    web.set(set(&[&second]));
    while has(&keys, "1") != Some(false) {
        std::thread::yield_now();
        let _ = has(&keys, "newest");
    }
    assert_eq!(has(&keys, "2"), Some(true));
}

#[test]
fn without_keys_nothing_is_said_about_a_token() {
    for mood in
        [Mood::BlackHole, Mood::Drip, Mood::Flood, Mood::Answer("{}".into()), Mood::Answer("{\"keys\":[]}".into())]
    {
        let house = House::new();
        let web = Web::start(mood);
        let signer = Signer::new(Algorithm::ES256, "1");
        let keys = KeySource::Url(web.url());
        let tokens = house.tokens(vec![issuer(Kind::Jwt { keys, algorithms: vec!["ES256".into()] })]);
        assert_eq!(tokens.judged(signer.token(&claims(json!({}))).as_bytes()), Answer::Trouble);
    }
}

#[test]
fn keys_in_a_file_that_changes() {
    let house = House::new();
    let (first, second) = (Signer::new(Algorithm::ES256, "1"), Signer::new(Algorithm::RS256, "2"));
    let source = house.keys(&[&first.jwk]);
    let patient = Issuer { timeout: Duration::from_secs(10), ..issuer(Kind::List("/".into())) };
    let pace = Pace { unknown: Duration::ZERO, ..QUICK };
    let keys = Keys::start(&patient, &source, pace, &house.report()).unwrap();
    assert_eq!(has(&keys, "1"), Some(true));
    house.keys(&[&first.jwk, &second.jwk]);
    while has(&keys, "2") != Some(true) {
        std::thread::yield_now();
    }
    // A file that is no key set any more: those that are known go on.
    std::fs::write(house.dir.path().join("jwks"), "half of a f").unwrap();
    while house.told.lock().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(has(&keys, "1"), Some(true));
}

#[test]
fn key_sets() {
    let signer = Signer::new(Algorithm::ES256, "a");
    let unnamed = {
        let mut jwk = signer.jwk.clone();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "a" });
    let encrypts = {
        let mut jwk = signer.jwk.clone();
        jwk["use"] = json!("enc");
        jwk
    };
    let strange = json!({ "kty": "quantum", "kid": "q" });
    let read = |keys: Value| parse_keys(json!({ "keys": keys }).to_string().as_bytes());
    assert_eq!(read(json!([strange, secret, signer.jwk, encrypts, 7])).unwrap().len(), 1);
    assert!(read(json!([unnamed])).unwrap().contains_key(""));
    assert!(read(json!([secret])).is_err() && read(json!([encrypts])).is_err() && read(json!([])).is_err());
    assert!(parse_keys(b"").is_err() && parse_keys(b"[]").is_err() && parse_keys(b"{\"keys\":{}}").is_err());
}
