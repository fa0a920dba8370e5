//! The published and computed exchanges of `tests/vectors`, through the real libraries: resolved, vetted,
//! sealed, loaded and stepped as in a worker.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use common::client::{self, Digest5, Hash, ScramKeys, unhex};
use common::{Answer, Exchange, bundled, load, name};
use plugin_host::Registry;
use sasl::{EffectKind, FailureClass, KeyKind, Mechanism, Proof, ScramKey, Status};
use serde_json::Value;

fn exchanges(file: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    all["exchanges"].as_array().unwrap().clone()
}

fn vectors(mechanism: &str) -> Vec<Value> {
    let mut found = exchanges("sasl.json");
    found.retain(|vector| vector["mech"] == mechanism);
    assert!(!found.is_empty(), "no vector for {mechanism}");
    found
}

fn mechanism(id: &str, mechanism: &str) -> Arc<dyn Mechanism> {
    with_settings(id, mechanism, "")
}

fn with_settings(id: &str, mechanism: &str, settings: &str) -> Arc<dyn Mechanism> {
    let mut registry = Registry::new();
    load(&mut registry, id, &bundled(id)).unwrap();
    registry.mechanism(&name(mechanism), settings).unwrap()
}

/// What the lines of one side say: `c` client, `s` server.
fn lines(vector: &Value, side: &str) -> Vec<Vec<u8>> {
    let lines = vector["exchange"].as_array().unwrap().iter().filter_map(|line| line[side].as_str());
    lines.map(|base64| BASE64_STANDARD.decode(base64).unwrap()).collect()
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_default()
}

fn verify(authcid: &str, authzid: &str, password: &str) -> Answer {
    Answer::Effect(EffectKind::VerifyPassword, authcid.into(), authzid.into(), password.into())
}

#[test]
fn plain() {
    let plain = mechanism("standard", "PLAIN");
    for vector in vectors("PLAIN") {
        let message = &lines(&vector, "c")[0];
        for with_initial_response in [true, false] {
            let mut exchange = Exchange::new(&plain);
            let answer = if with_initial_response {
                exchange.start(Some(message))
            } else {
                assert_eq!(exchange.start(None), Answer::Challenge(vec![]), "334 and a space");
                exchange.message(message)
            };
            match text(&vector, "outcome") {
                "success" => {
                    let (authcid, authzid) = (text(&vector, "authcid"), text(&vector, "authzid"));
                    assert_eq!(answer, verify(authcid, authzid, text(&vector, "password")), "{vector}");
                    assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
                }
                "malformed" => {
                    assert!(matches!(answer, Answer::Failure(FailureClass::Malformed, _)), "{vector}: {answer:?}");
                }
                other => panic!("outcome {other}"),
            }
        }
    }
}

#[test]
fn login() {
    let login = mechanism("standard", "LOGIN");
    for vector in vectors("LOGIN") {
        let mut client = lines(&vector, "c").into_iter();
        let mut server = lines(&vector, "s").into_iter();
        let mut exchange = Exchange::new(&login);
        let mut answer = match vector["initial"].as_bool() {
            Some(true) => exchange.start(client.next().as_deref()),
            _ => exchange.start(None),
        };
        while let Answer::Challenge(challenge) = answer {
            assert_eq!(Some(challenge), server.next(), "{vector}");
            answer = exchange.message(&client.next().unwrap());
        }
        assert_eq!(server.next(), None, "{vector}");
        assert_eq!(answer, verify("user", "", text(&vector, "password")));
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
    }
}

/// The challenge is the mechanism's own and fresh, so the client's part is computed as a client does it; that
/// this computation gives the digest of the vector for the vector's challenge is checked on the way.
#[test]
fn cram_md5() {
    let cram = mechanism("legacy", "CRAM-MD5");
    let vectors = vectors("CRAM-MD5");
    for vector in &vectors {
        let client = |challenge: &[u8]| client::cram_md5(text(vector, "password").as_bytes(), challenge);
        let message = String::from_utf8(lines(vector, "c").remove(0)).unwrap();
        let (user, digest) = message.rsplit_once(' ').unwrap();
        assert_eq!(client(&lines(vector, "s")[0]), digest);
        // Not every vector repeats the context of its password.
        let same_password =
            |other: &&Value| other["password"] == vector["password"] && other["context_hex"].is_string();
        let context = text(vectors.iter().find(same_password).unwrap(), "context_hex");
        let context = unhex(context);

        let run = |respond: &dyn Fn(&[u8]) -> String| {
            let mut exchange = Exchange::new(&cram);
            let Answer::Challenge(challenge) = exchange.start(None) else { panic!("{vector}") };
            let shape = std::str::from_utf8(&challenge).unwrap();
            assert!(shape.starts_with('<') && shape.ends_with(".1700000000@mail.example.com>"), "{shape}");
            let fetch = Answer::Effect(EffectKind::FetchKey, user.into(), vec![], vec![]);
            assert_eq!(exchange.message(respond(&challenge).as_bytes()), fetch);
            exchange.outcome(Status::Ok, &context)
        };
        assert_eq!(run(&|challenge| format!("{user} {}", client(challenge))), Answer::Success(Proof(41), None));
        // The recorded response to another challenge is a replay.
        assert!(matches!(run(&|_| message.clone()), Answer::Failure(FailureClass::Credentials, _)), "{vector}");
    }
}

fn decoded(vector: &Value, key: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text(vector, key)).unwrap()
}

fn binding_name(first: &[u8]) -> Vec<u8> {
    let flag = first.split(|octet| *octet == b',').next().unwrap();
    flag.strip_prefix(b"p=").unwrap_or_default().to_vec()
}

/// The server's nonce is the mechanism's own, so the client's part is computed as a client does it; that this
/// computation gives the messages and keys of the vector for the vector's nonce is checked on the way. (Octet
/// for octet, with the vector's nonce: a test inside of the library.)
#[test]
fn scram() {
    for mechanism_name in [
        "SCRAM-SHA-1",
        "SCRAM-SHA-256",
        "SCRAM-SHA-512",
        "SCRAM-SHA-1-PLUS",
        "SCRAM-SHA-256-PLUS",
        "SCRAM-SHA-512-PLUS",
    ] {
        let scram = mechanism("standard", mechanism_name);
        for vector in vectors(mechanism_name) {
            let (client, server) = (lines(&vector, "c"), lines(&vector, "s"));
            let as_text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
            let (first, binding) = (as_text(&client[0]), decoded(&vector, "channel_binding_b64"));
            let iterations = vector["iterations"].as_u64().unwrap() as u32;
            let password = text(&vector, "password").as_bytes();
            let keys = ScramKeys::new(Hash::of(mechanism_name), password, &decoded(&vector, "salt_b64"), iterations);
            assert_eq!(keys.stored_key, decoded(&vector, "stored_key_b64"), "{vector}");
            assert_eq!(keys.server_key, decoded(&vector, "server_key_b64"), "{vector}");
            let (last, verifier) = keys.finish(&first, &as_text(&server[0]), &binding, "");
            assert_eq!((last.as_bytes(), verifier.as_bytes()), (&client[1][..], &server[1][..]), "{vector}");

            let mut exchange = Exchange::new(&scram);
            exchange.channel_bindings = 0b110;
            let mut answer = exchange.start(Some(first.as_bytes()));
            if mechanism_name.ends_with("-PLUS") {
                let asked = Answer::Effect(EffectKind::ChannelBinding, vec![], vec![], binding_name(first.as_bytes()));
                assert_eq!(answer, asked, "{vector}");
                answer = exchange.outcome(Status::Ok, &binding);
            }
            assert!(matches!(answer, Answer::Effect(EffectKind::FetchKey, ..)), "{vector}: {answer:?}");
            let Answer::Challenge(challenge) = exchange.scram(keys.stored()) else { panic!("{vector}") };
            let (last, verifier) = keys.finish(&first, &as_text(&challenge), &binding, "");
            let success = Answer::Success(Proof(41), Some(verifier.into_bytes()));
            assert_eq!(exchange.message(last.as_bytes()), success, "{vector}");
        }
    }
}

#[test]
fn oauthbearer() {
    let bearer = mechanism("standard", "OAUTHBEARER");
    for vector in vectors("OAUTHBEARER") {
        let client = lines(&vector, "c");
        let mut exchange = Exchange::new(&bearer);
        exchange.server_name = "server.example.com".into();
        let Answer::Effect(EffectKind::VerifyToken, fields, authzid, token) = exchange.start(Some(&client[0])) else {
            panic!("{vector}")
        };
        if text(&vector, "outcome") == "success" {
            assert_eq!(authzid, text(&vector, "authzid").as_bytes());
            assert_eq!(token, text(&vector, "token").as_bytes());
            let with_host = text(&vector, "source").starts_with("RFC 7628");
            assert_eq!(fields, if with_host { &b"host=server.example.com\x01port=587"[..] } else { b"" });
            assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
        } else {
            fails_with_json(&vector, &mut exchange);
        }
    }
}

#[test]
fn xoauth2() {
    let xoauth2 = mechanism("standard", "XOAUTH2");
    for vector in vectors("XOAUTH2") {
        let mut exchange = Exchange::new(&xoauth2);
        let answer = exchange.start(Some(&lines(&vector, "c")[0]));
        if text(&vector, "outcome") == "success" {
            let (user, token) = (text(&vector, "authcid").into(), text(&vector, "token").into());
            assert_eq!(answer, Answer::Effect(EffectKind::VerifyToken, vec![], user, token), "{vector}");
            assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
        } else {
            fails_with_json(&vector, &mut exchange);
        }
    }
}

fn fails_with_json(vector: &Value, exchange: &mut Exchange) {
    assert_eq!(text(vector, "outcome"), "credentials");
    let json = &lines(vector, "s")[0];
    assert_eq!(exchange.outcome(Status::Denied, json), Answer::Failure(FailureClass::Credentials, String::new()));
    assert_eq!(exchange.last_words.as_ref(), Some(json), "{vector}");
}

#[test]
fn external() {
    let external = mechanism("standard", "EXTERNAL");
    for vector in vectors("EXTERNAL") {
        let message = &lines(&vector, "c")[0];
        let asked = Answer::Effect(EffectKind::VerifyExternal, vec![], text(&vector, "authzid").into(), vec![]);
        let mut exchange = Exchange::new(&external);
        assert_eq!(exchange.start(Some(message)), asked, "{vector}");
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success(Proof(41), None));
        let mut exchange = Exchange::new(&external);
        assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
        assert_eq!(exchange.message(message), asked, "{vector}");
    }
}

/// Succeeds without a proof: a host that does not know the permission for that refuses it.
#[test]
fn anonymous() {
    let anonymous = mechanism("legacy", "ANONYMOUS");
    assert_ne!(anonymous.traits().flags & sasl::flag::ANONYMOUS, 0);
    for vector in vectors("ANONYMOUS") {
        assert_eq!(lines(&vector, "c")[0], text(&vector, "trace").as_bytes());
        let answer = Exchange::new(&anonymous).start(Some(&lines(&vector, "c")[0]));
        assert_eq!(answer, Answer::Success(Proof(0), None), "{vector}");
    }
}

/// As for SCRAM. The service of the RFC's example is IMAP, which is refused here, so it is changed, too.
#[test]
fn digest_md5() {
    for vector in vectors("DIGEST-MD5") {
        let text = |key| text(&vector, key);
        let ha1 = Digest5::ha1(text("username"), text("realm"), text("password"));
        assert_eq!(ha1, unhex(text("ha1_hex")), "{vector}");
        let (nonce, cnonce, uri) = (text("nonce"), text("cnonce"), text("digest_uri"));
        let digest = Digest5 { ha1, nonce, cnonce, uri, authzid: "" };
        assert_eq!(digest.value("AUTHENTICATE"), text("response"), "{vector}");
        assert_eq!(digest.value(""), text("rspauth"), "{vector}");

        let realm = format!(r#"{{"realm":"{}"}}"#, text("realm"));
        let mut exchange = Exchange::new(&with_settings("legacy", "DIGEST-MD5", &realm));
        exchange.server_name = uri.split('/').nth(1).unwrap().into();
        let Answer::Challenge(challenge) = exchange.start(None) else { panic!("{vector}") };
        let challenge = String::from_utf8(challenge).unwrap();
        let nonce = challenge.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
        let uri = uri.replace("imap/", "smtp/");
        let digest = Digest5 { nonce, uri: &uri, ..digest };
        let response = format!(
            "username=\"{}\",realm=\"{}\",nonce=\"{nonce}\",nc={},cnonce=\"{cnonce}\",digest-uri=\"{uri}\",\
             response={},qop={}",
            text("username"),
            text("realm"),
            text("nc"),
            digest.value("AUTHENTICATE"),
            text("qop")
        );
        let asked = Answer::Effect(EffectKind::FetchKey, text("username").into(), vec![], text("realm").into());
        assert_eq!(exchange.message(response.as_bytes()), asked, "{vector}");
        assert_eq!(exchange.key, Some(KeyKind::DigestMd5Ha1));
        let rspauth = format!("rspauth={}", digest.value("")).into_bytes();
        assert_eq!(exchange.outcome(Status::Ok, &digest.ha1), Answer::Success(Proof(41), Some(rspauth)));
    }
}

/// Octet for octet in both directions: the server's nonce follows from the entropy that the host gives.
#[test]
fn computed_exchanges_are_followed_to_the_octet() {
    let mut counts = BTreeMap::new();
    for vector in exchanges("computed.json") {
        let mechanism_name = text(&vector, "mech");
        let (id, settings) = match mechanism_name {
            "DIGEST-MD5" => ("legacy", format!(r#"{{"realm":"{}"}}"#, text(&vector, "realm"))),
            "CRAM-MD5" => ("legacy", String::new()),
            _ => ("standard", String::new()),
        };
        let mut exchange = Exchange::new(&with_settings(id, mechanism_name, &settings));
        exchange.entropy = unhex(text(&vector, "entropy_hex")).try_into().unwrap();
        exchange.server_name = text(&vector, "server_name").into();
        exchange.unix_ms = vector["unix_ms"].as_u64().unwrap();
        exchange.channel_bindings = 0b110;
        let mut client = lines(&vector, "c").into_iter();
        let mut server = lines(&vector, "s").into_iter();
        let server_first = vector["exchange"][0]["s"].is_string();
        let mut answer = if server_first { exchange.start(None) } else { exchange.start(client.next().as_deref()) };
        let last = loop {
            answer = match answer {
                Answer::Challenge(challenge) => {
                    assert_eq!(Some(challenge), server.next(), "{vector}");
                    exchange.message(&client.next().unwrap())
                }
                Answer::Effect(EffectKind::ChannelBinding, ..) => {
                    exchange.outcome(Status::Ok, &decoded(&vector, "channel_binding_b64"))
                }
                Answer::Effect(EffectKind::FetchKey, authcid, authzid, realm) => {
                    assert_eq!(authcid, text(&vector, "authcid").as_bytes(), "{vector}");
                    assert_eq!(authzid, text(&vector, "authzid").as_bytes(), "{vector}");
                    assert_eq!(realm, text(&vector, "realm").as_bytes(), "{vector}");
                    match mechanism_name {
                        "DIGEST-MD5" => exchange.outcome(Status::Ok, &unhex(text(&vector, "ha1_hex"))),
                        "CRAM-MD5" => exchange.outcome(Status::Ok, &unhex(text(&vector, "context_hex"))),
                        _ => exchange.scram(ScramKey {
                            iterations: vector["iterations"].as_u64().unwrap() as u32,
                            salt: &decoded(&vector, "salt_b64"),
                            stored_key: &decoded(&vector, "stored_key_b64"),
                            server_key: &decoded(&vector, "server_key_b64"),
                        }),
                    }
                }
                other => break other,
            };
        };
        assert_eq!(last, Answer::Success(Proof(41), server.next()), "{vector}");
        // The empty line after final data is for the host.
        assert!(client.next().is_none_or(|line| line.is_empty()) && client.next().is_none(), "{vector}");
        *counts.entry(mechanism_name.to_owned()).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 8, "{counts:?}");
}
