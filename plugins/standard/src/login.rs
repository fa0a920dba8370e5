//! LOGIN (draft-murchison-sasl-login): asks for the user name, then for the password.
//!
//! The draft has the server speak first, but clients send the user name as an initial response
//! (`AUTH LOGIN dXNlcg==`), so LOGIN is not declared SERVER_FIRST. The prompts are exactly `Username:` and
//! `Password:`: old clients compare them. No authorization identity exists.

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Part, Settings, flag};

/// The LOGIN mechanism.
pub struct Login;

/// Longest user name, octets: more than an address may have (RFC 5321 §4.5.3.1: 64 + 1 + 255).
const USER_OCTETS_MAX: usize = 320;

/// The user name must outlive one message: the password comes in the next.
pub struct LoginState {
    awaits: Awaits,
    user_octets: u16,
    user: [u8; USER_OCTETS_MAX],
}

#[derive(Clone, Copy, PartialEq)]
enum Awaits {
    User,
    Password,
    Outcome,
}

impl Default for LoginState {
    fn default() -> Self {
        Self { awaits: Awaits::User, user_octets: 0, user: [0; USER_OCTETS_MAX] }
    }
}

impl Mechanism for Login {
    const META: Meta = Meta {
        name: c"LOGIN",
        // Not UTF8: clients of its age send passwords in the charset of their machine.
        flags: flag::CLIENT_FIRST | flag::PLAINTEXT | flag::POD_STATE,
        needs: &[EffectKind::VerifyPassword],
        strength: 5,
        message_octets_max: 1024,
        output_octets_max: 16,
        steps_max: 5,
        ..Meta::NONE
    };
    type State = LoginState;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Self)
    }

    fn step(&self, state: &mut LoginState, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match (state.awaits, cx.event()) {
            (Awaits::User, Event::Start { initial: None }) => {
                cx.put(b"Username:")?;
                cx.challenge()
            }
            (Awaits::User, Event::Start { initial: Some(user) } | Event::Message(user)) => {
                let room = state.user.get_mut(..user.len());
                room.ok_or(Bad::MALFORMED.because("user name longer than 320 octets"))?.copy_from_slice(user);
                state.user_octets = user.len() as u16;
                state.awaits = Awaits::Password;
                cx.put(b"Password:")?;
                cx.challenge()
            }
            (Awaits::Password, Event::Message(password)) => {
                let user = state.user.get(..usize::from(state.user_octets)).unwrap_or_default();
                // An empty field fails only now: both prompts come whatever the client sends.
                if user.is_empty() || password.is_empty() {
                    return Err(Bad::MALFORMED.because("user name or password is empty"));
                }
                let (authcid, password) = (cx.part(user)?, cx.part(password)?);
                state.awaits = Awaits::Outcome;
                cx.perform(Effect::VerifyPassword { authcid, authzid: Part::EMPTY, password })
            }
            (Awaits::Outcome, Event::Outcome(outcome)) => cx.succeed(outcome.proof()?),
            _ => Err(Bad::INTERNAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    fn challenge(text: &str) -> Answer {
        Answer::Challenge(text.into())
    }

    fn verify(user: &[u8], password: &[u8]) -> Answer {
        Answer::Effect {
            kind: EffectKind::VerifyPassword,
            arg: 0,
            authcid: user.to_vec(),
            authzid: vec![],
            data: password.to_vec(),
            data2: vec![],
        }
    }

    #[test]
    fn two_prompts() {
        let mut exchange = Exchange::new(Login);
        assert_eq!(exchange.start(None), challenge("Username:"));
        assert_eq!(exchange.message(b"user"), challenge("Password:"));
        assert_eq!(exchange.message(b"pencil\xff"), verify(b"user", b"pencil\xff"));
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
    }

    #[test]
    fn an_initial_response_is_the_user_name() {
        let mut exchange = Exchange::new(Login);
        assert_eq!(exchange.start(Some(b"user")), challenge("Password:"));
        assert_eq!(exchange.message(b"pencil"), verify(b"user", b"pencil"));
        assert!(matches!(exchange.outcome(Status::Temporary, b""), Answer::Failure { class: fail::TEMPORARY, .. }));
    }

    #[test]
    fn empty_fields_fail_after_both_prompts() {
        for (user, password) in [(&b""[..], &b"pw"[..]), (b"user", b""), (b"", b"")] {
            let mut exchange = Exchange::new(Login);
            assert_eq!(exchange.start(Some(user)), challenge("Password:"));
            assert!(matches!(exchange.message(password), Answer::Failure { class: fail::MALFORMED, .. }));
        }
    }

    #[test]
    fn long_names() {
        let mut exchange = Exchange::new(Login);
        assert_eq!(exchange.start(Some(&[b'u'; 320])), challenge("Password:"));
        assert_eq!(exchange.message(b"pw"), verify(&[b'u'; 320], b"pw"));
        let mut exchange = Exchange::new(Login);
        assert!(matches!(exchange.start(Some(&[b'u'; 321])), Answer::Failure { class: fail::MALFORMED, .. }));
    }

    #[test]
    fn steps_out_of_order_are_faults() {
        let mut exchange = Exchange::new(Login);
        exchange.start(None);
        assert!(matches!(exchange.outcome(Status::Ok, b""), Answer::Failure { class: fail::INTERNAL, .. }));
    }
}
