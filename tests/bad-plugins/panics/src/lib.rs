//! P4: panics where the client leaves out the colon.
#![forbid(unsafe_code)]

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Part, Settings, flag};

/// `name:password`.
pub struct Panics;

impl Mechanism for Panics {
    const META: Meta = Meta {
        name: c"X-PANICS",
        flags: flag::CLIENT_FIRST | flag::POD_STATE,
        needs: &[EffectKind::VerifyPassword],
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
            Event::Outcome(outcome) => return cx.succeed(outcome.proof()?),
            Event::Resume => return Err(Bad::INTERNAL),
        };
        let colon = message.iter().position(|octet| *octet == b':').expect("clients send a colon");
        let (authcid, password) = (cx.part(&message[..colon])?, cx.part(&message[colon + 1..])?);
        cx.perform(Effect::VerifyPassword { authcid, authzid: Part::EMPTY, password })
    }
}

portreeve_plugin_sdk::portreeve_plugin! { id: "panics", mechanisms: [Panics] }
