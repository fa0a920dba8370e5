//! PLAIN (RFC 4616): `[authzid] NUL authcid NUL passwd`, all in one message.

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Settings, flag};

/// The PLAIN mechanism.
pub struct Plain;

impl Mechanism for Plain {
    const META: Meta = Meta {
        name: c"PLAIN",
        flags: flag::CLIENT_FIRST
            | flag::PLAINTEXT
            | flag::ALLOW_NUL
            | flag::UTF8
            | flag::POD_STATE
            | flag::ONE_ROUNDTRIP,
        needs: &[EffectKind::VerifyPassword],
        strength: 10,
        // RFC 4616 §2 demands 255 octets per field; more for long tokens that pass as passwords.
        message_octets_max: 2048,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = ();

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self)
    }

    fn step(&self, _: &mut (), cx: Cx<'_>) -> Result<Done, Bad> {
        match cx.event() {
            Event::Start { initial: None } => cx.challenge(),
            Event::Start { initial: Some(message) } | Event::Message(message) => verify(message, cx),
            Event::Outcome(outcome) => cx.succeed(outcome.proof()?),
            Event::Resume => Err(Bad::INTERNAL),
        }
    }
}

fn verify(message: &[u8], cx: Cx<'_>) -> Result<Done, Bad> {
    // Exactly two NULs: with a third one, where the password ends would be a matter of taste.
    let mut fields = message.split(|octet| *octet == 0);
    let (Some(authzid), Some(authcid), Some(password), None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(Bad::MALFORMED.because("not exactly two NULs (RFC 4616 section 2)"));
    };
    if authcid.is_empty() {
        return Err(Bad::MALFORMED.because("no user name (RFC 4616 section 2)"));
    }
    if password.is_empty() {
        return Err(Bad::MALFORMED.because("no password (RFC 4616 section 2)"));
    }
    let effect =
        Effect::VerifyPassword { authcid: cx.part(authcid)?, authzid: cx.part(authzid)?, password: cx.part(password)? };
    cx.perform(effect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    fn start(message: &[u8]) -> Answer {
        Exchange::new(Plain).start(Some(message))
    }

    #[test]
    fn fields_are_exactly_what_stands_between_the_nuls() {
        for (message, authzid, authcid, password) in [
            (&b"\0tim\0tanstaaftanstaaf"[..], &b""[..], &b"tim"[..], &b"tanstaaftanstaaf"[..]),
            (b"Ursel\0Kurt\0xipj3plmq", b"Ursel", b"Kurt", b"xipj3plmq"),
            (b"test\0test\x001234", b"test", b"test", b"1234"),
            (b"\0 tim \0 ", b"", b" tim ", b" "),
        ] {
            let expected = Answer::Effect {
                kind: EffectKind::VerifyPassword,
                arg: 0,
                authcid: authcid.to_vec(),
                authzid: authzid.to_vec(),
                data: password.to_vec(),
                data2: vec![],
            };
            assert_eq!(start(message), expected, "{message:?}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        for message in
            [&b""[..], b"\0", b"\0\0", b"\0user", b"\0user\0", b"\0\0pw", b"user\0pw", b"\0user\0pw\0", b"a\0b\0c\0d"]
        {
            assert!(matches!(start(message), Answer::Failure { class: fail::MALFORMED, .. }), "{message:?}");
        }
    }

    #[test]
    fn without_initial_response_it_asks_with_an_empty_challenge() {
        let mut exchange = Exchange::new(Plain);
        assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
        assert!(matches!(exchange.message(b"\0u\0p"), Answer::Effect { .. }));
        assert!(matches!(exchange.outcome(Status::Denied, b""), Answer::Failure { class: fail::CREDENTIALS, .. }));
        assert!(matches!(start(b""), Answer::Failure { .. }), "`=` is an empty response, not an absent one");
    }

    #[test]
    fn only_a_proof_succeeds() {
        for (status, class) in [
            (Status::Denied, fail::CREDENTIALS),
            (Status::Temporary, fail::TEMPORARY),
            (Status::Unsupported, fail::TEMPORARY),
            (Status::Transition, fail::TRANSITION),
            (Status::Expired, fail::EXPIRED),
        ] {
            let mut exchange = Exchange::new(Plain);
            exchange.start(Some(b"\0u\0p"));
            match exchange.outcome(status, b"") {
                Answer::Failure { class: found, .. } => assert_eq!(found, class, "{status:?}"),
                other => panic!("{status:?}: {other:?}"),
            }
        }
        let mut exchange = Exchange::new(Plain);
        exchange.start(Some(b"\0u\0p"));
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
    }
}
