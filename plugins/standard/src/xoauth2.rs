//! XOAUTH2, the form of bearer tokens that was there before OAUTHBEARER, as its vendors describe it:
//! `user=` name 0x01 `auth=Bearer ` token 0x01 0x01.
//!
//! The name is whom to act as: the host compares it with the identity that the token proves. A refused token
//! is answered with JSON as final data, which the client answers with an empty line.

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Part, Settings, flag};

use crate::bearer;

/// The XOAUTH2 mechanism.
pub struct Xoauth2;

/// Longest name, octets: more than an address may have (RFC 5321 §4.5.3.1: 64 + 1 + 255).
const USER_OCTETS_MAX: usize = 320;

impl Mechanism for Xoauth2 {
    const META: Meta = Meta {
        name: c"XOAUTH2",
        flags: flag::CLIENT_FIRST | flag::PLAINTEXT | flag::NEEDS_TLS | flag::UTF8 | flag::POD_STATE,
        needs: &[EffectKind::VerifyToken],
        strength: 40,
        message_octets_max: 16_384,
        output_octets_max: bearer::OUTPUT_OCTETS_MAX,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = ();

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self)
    }

    fn step(&self, _: &mut (), cx: Cx<'_>) -> Result<Done, Bad> {
        let message = match cx.event() {
            Event::Start { initial: None } => return cx.challenge(),
            Event::Start { initial: Some(message) } | Event::Message(message) => message,
            Event::Outcome(outcome) => {
                return bearer::conclude(&outcome, br#"{"status":"401","schemes":"bearer"}"#, cx);
            }
            Event::Resume => return Err(Bad::INTERNAL),
        };
        let (user, token) = parse(message)?;
        let (authzid, token) = (cx.part(user)?, cx.part(token)?);
        cx.perform(Effect::VerifyToken { token, authzid, fields: Part::EMPTY })
    }
}

fn parse(message: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let fields = message.strip_suffix(b"\x01\x01").and_then(|fields| fields.strip_prefix(b"user="));
    let fields = fields.and_then(|fields| {
        let at = fields.iter().position(|octet| *octet == 1)?;
        Some((fields.get(..at)?, fields.get(at + 1..)?.strip_prefix(b"auth=")?))
    });
    let (user, credentials) = fields.ok_or(Bad::MALFORMED.because("not user=, 0x01, auth=, 0x01, 0x01"))?;
    if user.is_empty() || user.len() > USER_OCTETS_MAX {
        return Err(Bad::MALFORMED.because("no user name, or one longer than 320 octets"));
    }
    if user.iter().any(u8::is_ascii_control) {
        return Err(Bad::MALFORMED.because("a control character in the user name"));
    }
    Ok((user, bearer::token(credentials)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    fn verify(user: &str, token: &str) -> Answer {
        Answer::Effect {
            kind: EffectKind::VerifyToken,
            arg: 0,
            authcid: vec![],
            authzid: user.into(),
            data: token.into(),
            data2: vec![],
        }
    }

    #[test]
    fn user_and_token() {
        let mut exchange = Exchange::new(Xoauth2);
        assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
        let message = "user=jürgen@example.com\x01auth=Bearer ya29.a-_~=\x01\x01";
        assert_eq!(exchange.message(message.as_bytes()), verify("jürgen@example.com", "ya29.a-_~="));
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
        let json = br#"{"status":"403","schemes":"bearer","scope":"mail"}"#;
        for (said, told) in [(&json[..], &json[..]), (b"", br#"{"status":"401","schemes":"bearer"}"#)] {
            exchange.start(Some(message.as_bytes()));
            match exchange.outcome(Status::Denied, said) {
                Answer::Failure { class: fail::CREDENTIALS, data: Some(data), .. } => assert_eq!(data, told),
                other => panic!("{other:?}"),
            }
        }
        exchange.start(Some(message.as_bytes()));
        let answer = exchange.outcome(Status::Temporary, json);
        assert!(matches!(answer, Answer::Failure { class: fail::TEMPORARY, data: None, .. }), "{answer:?}");
    }

    #[test]
    fn anything_else_is_malformed() {
        for message in [
            "",
            "\x01",
            "user=u",
            "user=u\x01auth=Bearer t",
            "user=u\x01auth=Bearer t\x01",
            "user=\x01auth=Bearer t\x01\x01",
            "User=u\x01auth=Bearer t\x01\x01",
            "user=u\x01Auth=Bearer t\x01\x01",
            "user=u\x01auth=Basic t\x01\x01",
            "user=u\x01auth=Bearer \x01\x01",
            "user=u\x01auth=Bearer t\x01\x01\x01",
            "user=u\x01x=y\x01auth=Bearer t\x01\x01",
            "auth=Bearer t\x01user=u\x01\x01",
            "user=a\tb\x01auth=Bearer t\x01\x01",
            "user=u\x01\x01auth=Bearer t\x01\x01",
        ] {
            let answer = Exchange::new(Xoauth2).start(Some(message.as_bytes()));
            assert!(
                matches!(answer, Answer::Failure { class: fail::MALFORMED, data: None, .. }),
                "{message:?}: {answer:?}"
            );
        }
        let long = |octets| format!("user={}\x01auth=Bearer t\x01\x01", "u".repeat(octets));
        assert_eq!(Exchange::new(Xoauth2).start(Some(long(320).as_bytes())), verify(&"u".repeat(320), "t"));
        assert!(matches!(Exchange::new(Xoauth2).start(Some(long(321).as_bytes())), Answer::Failure { .. }));
    }
}
