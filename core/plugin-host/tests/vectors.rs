//! The published and computed exchanges of `tests/vectors/sasl.json`, through the real libraries: resolved,
//! vetted, sealed, loaded and stepped as in a worker.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use common::{Answer, Exchange, bundled, load, name};
use hmac::{KeyInit, Mac};
use plugin_host::Registry;
use sasl::{EffectKind, FailureClass, Mechanism, Proof, Status};
use serde_json::Value;

fn vectors(mechanism: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/sasl.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let found: Vec<_> =
        all["exchanges"].as_array().unwrap().iter().filter(|e| e["mech"] == mechanism).cloned().collect();
    assert!(!found.is_empty(), "no vector for {mechanism}");
    found
}

fn mechanism(id: &str, mechanism: &str) -> Arc<dyn Mechanism> {
    let mut registry = Registry::new();
    load(&mut registry, id, &bundled(id)).unwrap();
    registry.mechanism(&name(mechanism), "").unwrap()
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
        let client = |challenge: &[u8]| {
            let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(text(vector, "password").as_bytes()).unwrap();
            mac.update(challenge);
            mac.finalize().into_bytes().iter().map(|octet| format!("{octet:02x}")).collect::<String>()
        };
        let message = String::from_utf8(lines(vector, "c").remove(0)).unwrap();
        let (user, digest) = message.rsplit_once(' ').unwrap();
        assert_eq!(client(&lines(vector, "s")[0]), digest);
        // Not every vector repeats the context of its password.
        let same_password =
            |other: &&Value| other["password"] == vector["password"] && other["context_hex"].is_string();
        let context = text(vectors.iter().find(same_password).unwrap(), "context_hex");
        let context: Vec<u8> =
            (0..32).map(|at| u8::from_str_radix(&context[2 * at..2 * at + 2], 16).unwrap()).collect();

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
