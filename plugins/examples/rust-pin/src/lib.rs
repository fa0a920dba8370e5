// SPDX-License-Identifier: MIT OR Apache-2.0
//! An example: X-PIN asks for the name, then for a number of so many digits.
//!
//! It has what PLAIN does without: a state, because the name comes one message before the number; a setting, and
//! its description; and messages of the server's own.
//!
//! ```toml
//! [mechanism.X-PIN]
//! digits = 8
//! ```
#![forbid(unsafe_code)]

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Part, Settings, flag};

/// The mechanism, with its settings.
pub struct Pin {
    digits: usize,
}

/// Longest name, octets.
const NAME_OCTETS_MAX: usize = 320;

/// What one exchange remembers. It lies in memory of the server, so it has a fixed size.
pub struct Remembered {
    awaits: Awaits,
    name: [u8; NAME_OCTETS_MAX],
    name_octets: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Awaits {
    Name,
    Number,
    Outcome,
}

impl Default for Remembered {
    fn default() -> Self {
        Self { awaits: Awaits::Name, name: [0; NAME_OCTETS_MAX], name_octets: 0 }
    }
}

impl Mechanism for Pin {
    const META: Meta = Meta {
        name: c"X-PIN",
        flags: flag::SERVER_FIRST | flag::PLAINTEXT | flag::UTF8 | flag::POD_STATE,
        needs: &[EffectKind::VerifyPassword],
        config_schema: Some(
            c"{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"digits\":{\"type\":\"integer\",\
              \"minimum\":4,\"maximum\":12,\"default\":6,\"description\":\"how many digits a number has\"}}}",
        ),
        strength: 5,
        message_octets_max: 512,
        output_octets_max: 32,
        steps_max: 4,
        ..Meta::NONE
    };
    type State = Remembered;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["digits"])?;
        let digits = settings.value("digits").unwrap_or("6");
        match digits.parse() {
            Ok(digits @ 4..=12) => Ok(Self { digits }),
            _ => Err(format!("digits is {digits}: it is a number from 4 to 12")),
        }
    }

    fn step(&self, state: &mut Remembered, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match (state.awaits, cx.event()) {
            (Awaits::Name, Event::Start { initial: None }) => {
                cx.put(b"name")?;
                cx.challenge()
            }
            (Awaits::Name, Event::Message(name)) => {
                let room = state.name.get_mut(..name.len()).filter(|room| !room.is_empty());
                room.ok_or(Bad::MALFORMED.because("no name, or a long one"))?.copy_from_slice(name);
                (state.name_octets, state.awaits) = (name.len(), Awaits::Number);
                cx.put(b"number")?;
                cx.challenge()
            }
            (Awaits::Number, Event::Message(number)) => {
                if number.len() != self.digits || !number.iter().all(u8::is_ascii_digit) {
                    return Err(Bad::MALFORMED.because("not so many digits"));
                }
                let name = state.name.get(..state.name_octets).unwrap_or_default();
                let (authcid, password) = (cx.part(name)?, cx.part(number)?);
                state.awaits = Awaits::Outcome;
                cx.perform(Effect::VerifyPassword { authcid, authzid: Part::EMPTY, password })
            }
            (Awaits::Outcome, Event::Outcome(outcome)) => cx.succeed(outcome.proof()?),
            _ => Err(Bad::INTERNAL),
        }
    }
}

portreeve_plugin_sdk::portreeve_plugin! { id: "example_pin", mechanisms: [Pin] }

#[cfg(test)]
mod tests {
    use super::*;
    use portreeve_plugin_sdk::Status;
    use portreeve_plugin_sdk::abi::fail;
    use portreeve_plugin_sdk::testing::{Answer, Exchange};

    #[test]
    fn a_name_then_a_number() {
        let pin = Pin::configure(&Settings::of("", &[("digits", "4")])).unwrap();
        let mut exchange = Exchange::new(pin);
        assert_eq!(exchange.start(None), Answer::Challenge(b"name".to_vec()));
        assert_eq!(exchange.message(b"user"), Answer::Challenge(b"number".to_vec()));
        match exchange.message(b"1234") {
            Answer::Effect { kind: EffectKind::VerifyPassword, authcid, data, .. } => {
                assert_eq!((&authcid[..], &data[..]), (&b"user"[..], &b"1234"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(exchange.outcome(Status::Ok, b""), Answer::Success { data: None });
    }

    #[test]
    fn other_numbers_are_malformed() {
        for number in [&b""[..], b"123", b"12345", b"12a4"] {
            let mut exchange = Exchange::new(Pin { digits: 4 });
            exchange.start(None);
            exchange.message(b"user");
            let answer = exchange.message(number);
            assert!(matches!(answer, Answer::Failure { class: fail::MALFORMED, .. }), "{number:?}: {answer:?}");
        }
    }

    #[test]
    fn settings() {
        for bad in [("digits", "3"), ("digits", "x"), ("digit", "6")] {
            assert!(Pin::configure(&Settings::of("", &[bad])).is_err(), "{bad:?}");
        }
        assert_eq!(Pin::configure(&Settings::default()).unwrap().digits, 6);
    }
}
