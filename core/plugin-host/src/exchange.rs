//! One exchange in a mechanism-host: its state, the client's current message, and how a step of it that came
//! over a link is taken. On which thread, `serve` decides.

use std::net::IpAddr;
use std::sync::Arc;

use link::mechanism as wire;
use sasl::{
    Event, Facts, FailureClass, Flat, Input, Mechanism, Outcome, Proof, ScramKey, Secret, State, Status, Step, Traits,
};

/// It lives as long as the shard wants it; `drop_state` is called with its end.
pub(crate) struct Exchange {
    mechanism: Arc<dyn Mechanism>,
    state: State,
    /// The client's current message.
    message: Secret,
    facts: OwnedFacts,
}

struct OwnedFacts {
    tls: bool,
    tls_version: u16,
    client_certificate: bool,
    plus_offered: bool,
    channel_bindings: u32,
    client_ip: IpAddr,
    server_name: Box<str>,
    listener: Box<str>,
    sni: Box<str>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.mechanism.finish(&mut self.state);
    }
}

/// What a step came to.
pub(crate) enum Stepped {
    /// `to` has the encoded answer.
    Answered,
    /// The rest of it takes long: to be taken again, with `resume`, where nobody waits.
    Offload,
}

impl Exchange {
    pub fn new(mechanism: &Arc<dyn Mechanism>, facts: &wire::Facts<'_>) -> Self {
        let mut state = State::default();
        state.prepare(mechanism.traits().state_octets);
        let (mechanism, message) = (Arc::clone(mechanism), Secret::default());
        Self { mechanism, state, message, facts: OwnedFacts::of(facts) }
    }

    pub fn traits(&self) -> &Traits {
        self.mechanism.traits()
    }

    /// Takes a step and appends its encoded answer.
    pub fn step(&mut self, step: &wire::Step<'_>, resume: bool, scratch: &mut [u8], to: &mut Vec<u8>) -> Stepped {
        let event = match &step.event {
            _ if resume => Event::Resume,
            wire::Event::Start { initial, .. } => {
                self.message.set(initial.unwrap_or_default());
                Event::Start { initial: initial.is_some() }
            }
            wire::Event::Message(message) => {
                self.message.set(message);
                Event::Message
            }
            wire::Event::Outcome { effect, status, proof, data, scram } => {
                let Some(effect) = sasl::EffectKind::from_abi(*effect) else {
                    failure(FailureClass::Internal, b"an effect of a later time", to);
                    return Stepped::Answered;
                };
                let scram = scram.and_then(|layout| {
                    let (salt, keys) = data.split_at_checked(usize::from(layout.salt_octets))?;
                    let (stored_key, server_key) = keys.split_at_checked(usize::from(layout.hash_octets))?;
                    Some(ScramKey { iterations: layout.iterations, salt, stored_key, server_key })
                });
                let (status, proof) = (Status::from_abi(*status), Proof(*proof));
                Event::Outcome(Outcome { effect, status, proof, data, scram })
            }
        };
        let facts = self.facts.borrow(step.session);
        let input = Input {
            event,
            message: self.message.expose(),
            facts: &facts,
            entropy: step.entropy,
            unix_ms: step.unix_ms,
            exchange: step.session,
        };
        let stepped = match self.mechanism.step(&mut self.state, input, scratch) {
            Step::Offload => Stepped::Offload,
            said => {
                encode(&said, to);
                Stepped::Answered
            }
        };
        scratch.fill(0);
        stepped
    }
}

/// Appends an encoded failure in the host's own words.
pub(crate) fn failure(class: FailureClass, why: &'static [u8], to: &mut Vec<u8>) {
    encode(&Step::Failure { class, data: None, diagnosis: why }, to);
}

fn encode(step: &Step<'_>, to: &mut Vec<u8>) {
    let Flat { action, arg, last, parts } = Flat::from(step);
    // A buffer that grows leaves copies of a password behind.
    to.reserve(64 + parts.iter().map(|part| part.len()).sum::<usize>());
    wire::Answer { action, arg, last, parts }.encode(to);
}

impl OwnedFacts {
    fn of(facts: &wire::Facts<'_>) -> Self {
        Self {
            tls: facts.tls,
            tls_version: facts.tls_version,
            client_certificate: facts.client_certificate,
            plus_offered: facts.plus_offered,
            channel_bindings: facts.channel_bindings,
            client_ip: facts.client_ip,
            server_name: facts.server_name.into(),
            listener: facts.listener.into(),
            sni: facts.sni.into(),
        }
    }

    fn borrow(&self, session: u64) -> Facts<'_> {
        Facts {
            tls: self.tls,
            tls_version: self.tls_version,
            client_certificate: self.client_certificate,
            plus_offered: self.plus_offered,
            channel_bindings: self.channel_bindings,
            server_name: &self.server_name,
            client_ip: self.client_ip,
            listener: &self.listener,
            sni: &self.sni,
            session,
        }
    }
}
