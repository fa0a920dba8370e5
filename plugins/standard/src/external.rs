//! EXTERNAL (RFC 4422 appendix A): the client has proven itself by its TLS certificate already, and says at
//! most whom it wants to act as. Who the certificate stands for is the host's to know.

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Settings, flag};

/// The EXTERNAL mechanism.
pub struct External;

impl Mechanism for External {
    const META: Meta = Meta {
        name: c"EXTERNAL",
        flags: flag::CLIENT_FIRST
            | flag::NEEDS_TLS
            | flag::NEEDS_CERT
            | flag::UTF8
            | flag::POD_STATE
            | flag::ONE_ROUNDTRIP,
        needs: &[EffectKind::VerifyExternal],
        strength: 80,
        message_octets_max: 1024,
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
            Event::Start { initial: Some(authzid) } | Event::Message(authzid) => {
                if authzid.contains(&0) {
                    return Err(Bad::MALFORMED.because("NUL in the authorization identity"));
                }
                let authzid = cx.part(authzid)?;
                cx.perform(Effect::VerifyExternal { authzid })
            }
            Event::Outcome(outcome) => cx.succeed(outcome.proof()?),
            Event::Resume => Err(Bad::INTERNAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    fn verify(authzid: &[u8]) -> Answer {
        let authzid = authzid.to_vec();
        let (authcid, data, data2) = (vec![], vec![], vec![]);
        Answer::Effect { kind: EffectKind::VerifyExternal, arg: 0, authcid, authzid, data, data2 }
    }

    #[test]
    fn the_message_is_the_authorization_identity() {
        for authzid in [&b"fred@example.com"[..], b"", "jürgen".as_bytes()] {
            let mut exchange = Exchange::new(External);
            assert_eq!(exchange.start(Some(authzid)), verify(authzid));
            assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
            assert_eq!(exchange.start(None), Answer::Challenge(vec![]));
            assert_eq!(exchange.message(authzid), verify(authzid));
            let answer = exchange.outcome(Status::Denied, b"");
            assert!(matches!(answer, Answer::Failure { class: fail::CREDENTIALS, .. }), "{answer:?}");
        }
        let answer = Exchange::new(External).start(Some(b"fred\0"));
        assert!(matches!(answer, Answer::Failure { class: fail::MALFORMED, .. }), "{answer:?}");
    }
}
