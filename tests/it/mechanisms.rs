//! PLAIN, LOGIN and CRAM-MD5, implemented directly: the session is tested without loading a library.
//! Short on purpose; the ones that ship are `plugins/standard` and `plugins/legacy`.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sasl::{
    Effect, EffectKind, Event, FailureClass, Input, KeyKind, Mechanism, MechanismName, State, Status, Step, Traits,
    flag,
};

/// Strongest first, as a listener keeps them.
pub fn all() -> Vec<Arc<dyn Mechanism>> {
    vec![Arc::new(CramMd5::new()), Arc::new(Plain::new()), Arc::new(Login::new())]
}

fn traits(flags: u32, effect: EffectKind, strength: u32) -> Traits {
    Traits {
        flags,
        needs: effect.need(),
        strength,
        state_octets: 128,
        // 12288 octets of base64 (RFC 4954 §4).
        message_octets_max: 9216,
        output_octets_max: 128,
        steps_max: 8,
        plus_of: None,
    }
}

fn failure<'a>(class: FailureClass) -> Step<'a> {
    Step::Failure { class, data: None, diagnosis: b"" }
}

/// What every mechanism makes of the end of its effect.
fn judge<'a>(outcome: sasl::Outcome<'_>) -> Step<'a> {
    match outcome.status {
        Status::Ok => Step::Success { proof: outcome.proof, data: None },
        Status::Denied => failure(FailureClass::Credentials),
        Status::Expired => failure(FailureClass::Expired),
        Status::Transition => failure(FailureClass::Transition),
        Status::Temporary | Status::Unsupported => failure(FailureClass::Temporary),
    }
}

struct Plain {
    name: MechanismName,
    traits: Traits,
}

impl Plain {
    fn new() -> Self {
        let flags = flag::CLIENT_FIRST | flag::PLAINTEXT | flag::ALLOW_NUL | flag::UTF8 | flag::ONE_ROUNDTRIP;
        let name = MechanismName::parse(b"PLAIN").expect("a name");
        Self { name, traits: traits(flags, EffectKind::VerifyPassword, 20) }
    }
}

impl Mechanism for Plain {
    fn name(&self) -> &MechanismName {
        &self.name
    }

    fn traits(&self) -> &Traits {
        &self.traits
    }

    fn step<'a>(&'a self, _: &'a mut State, input: Input<'a>, _: &'a mut [u8]) -> Step<'a> {
        match input.event {
            Event::Start { initial: false } => Step::Challenge(b""),
            Event::Start { initial: true } | Event::Message => {
                let mut parts = input.message.split(|&c| c == 0);
                match (parts.next(), parts.next(), parts.next(), parts.next()) {
                    (Some(authzid), Some(authcid), Some(password), None)
                        if !authcid.is_empty() && !password.is_empty() =>
                    {
                        Step::Effect(Effect::VerifyPassword { authcid, authzid, password })
                    }
                    _ => failure(FailureClass::Malformed),
                }
            }
            Event::Outcome(outcome) => judge(outcome),
            Event::Resume => failure(FailureClass::Internal),
        }
    }
}

/// Keeps the user name in the first block of the state: one octet of length plus one (0: no name yet), then the name.
struct Login {
    name: MechanismName,
    traits: Traits,
}

impl Login {
    fn new() -> Self {
        let name = MechanismName::parse(b"LOGIN").expect("a name");
        let flags = flag::CLIENT_FIRST | flag::PLAINTEXT;
        Self { name, traits: traits(flags, EffectKind::VerifyPassword, 10) }
    }
}

impl Mechanism for Login {
    fn name(&self) -> &MechanismName {
        &self.name
    }

    fn traits(&self) -> &Traits {
        &self.traits
    }

    fn step<'a>(&'a self, state: &'a mut State, input: Input<'a>, _: &'a mut [u8]) -> Step<'a> {
        let Some(block) = state.block(0) else { return failure(FailureClass::Internal) };
        match input.event {
            Event::Start { initial: false } => Step::Challenge(b"Username:"),
            Event::Start { initial: true } | Event::Message if block[0] == 0 => match input.message.len() {
                len @ 0..=62 => {
                    block[0] = len as u8 + 1;
                    block[1..=len].copy_from_slice(input.message);
                    Step::Challenge(b"Password:")
                }
                _ => failure(FailureClass::Malformed),
            },
            Event::Start { .. } | Event::Message => {
                let len = usize::from(block[0]) - 1;
                Step::Effect(Effect::VerifyPassword { authcid: &block[1..=len], authzid: b"", password: input.message })
            }
            Event::Outcome(outcome) => judge(outcome),
            Event::Resume => failure(FailureClass::Internal),
        }
    }
}

/// The state's first block holds the 16 random octets of which the challenge is made.
struct CramMd5 {
    name: MechanismName,
    traits: Traits,
}

impl CramMd5 {
    fn new() -> Self {
        let name = MechanismName::parse(b"CRAM-MD5").expect("a name");
        Self { name, traits: traits(flag::SERVER_FIRST | flag::ENTROPY, EffectKind::FetchKey, 30) }
    }
}

/// `<32 hex digits@host>` for the octets of a challenge.
fn challenge(random: &[u8], host: &str, to: &mut [u8]) -> usize {
    let hex: String = random.iter().map(|octet| format!("{octet:02x}")).collect();
    let text = format!("<{hex}@{host}>");
    to[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
}

/// The digest of RFC 2195 §2, in lower-case hexadecimal.
pub fn cram_md5(password: &[u8], challenge: &[u8]) -> String {
    let mut mac = Hmac::<md5::Md5>::new_from_slice(password).expect("any length will do");
    mac.update(challenge);
    mac.finalize().into_bytes().iter().map(|octet| format!("{octet:02x}")).collect()
}

impl Mechanism for CramMd5 {
    fn name(&self) -> &MechanismName {
        &self.name
    }

    fn traits(&self) -> &Traits {
        &self.traits
    }

    fn step<'a>(&'a self, state: &'a mut State, input: Input<'a>, scratch: &'a mut [u8]) -> Step<'a> {
        let Some(block) = state.block(0) else { return failure(FailureClass::Internal) };
        let split = input.message.iter().rposition(|&c| c == b' ');
        match (input.event, split) {
            (Event::Start { .. }, _) => {
                block[..16].copy_from_slice(&input.entropy[..16]);
                let len = challenge(&block[..16], input.facts.server_name, scratch);
                Step::Challenge(&scratch[..len])
            }
            (Event::Message, Some(at)) => {
                let authcid = &input.message[..at];
                Step::Effect(Effect::FetchKey { kind: KeyKind::Cleartext, authcid, authzid: b"", realm: b"" })
            }
            (Event::Outcome(outcome), Some(at)) => {
                let len = challenge(&block[..16], input.facts.server_name, scratch);
                let right = outcome.status != Status::Ok
                    || cram_md5(outcome.data, &scratch[..len]).as_bytes() == &input.message[at + 1..];
                if right { judge(outcome) } else { failure(FailureClass::Credentials) }
            }
            _ => failure(FailureClass::Malformed),
        }
    }
}

#[test]
fn digest_of_rfc_2195() {
    let digest = cram_md5(b"tanstaaftanstaaf", b"<1896.697170952@postoffice.reston.mci.net>");
    assert_eq!(digest, "b913a602c7eda7a495b4e6e7334d3890");
}
