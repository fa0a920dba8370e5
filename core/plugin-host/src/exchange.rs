//! One exchange in a mechanism-host: its state, the client's current message, and how a step of it that came
//! over a link is taken. On which thread, `serve` decides.

use std::net::IpAddr;
use std::sync::Arc;

use link::mechanism as wire;
use sasl::{
    Event, Facts, FailureClass, Flat, Input, Mechanism, Outcome, Proof, ScramKey, Secret, State, Status, Step, Traits,
};

/// It lives as long as the shard wants it; `drop_state` is called with its end. What it is made of serves the next
/// one ([`Exchange::begin`] after [`Exchange::end`]), so that an exchange allocates nothing.
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
    /// Server name, listener, SNI.
    texts: String,
    lengths: [usize; 2],
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.mechanism.finish(&mut self.state);
    }
}

/// What a step came to.
pub(crate) enum Stepped {
    /// The answer was handed over.
    Answered,
    /// The rest of it takes long: to be taken again, with `resume`, where nobody waits.
    Offload,
}

/// Longer messages' buffers are not kept for the next exchange.
const MESSAGE_KEPT_OCTETS: usize = 1024;

impl Exchange {
    pub fn new(mechanism: &Arc<dyn Mechanism>, facts: &wire::Facts<'_>) -> Self {
        let (mechanism, message) = (Arc::clone(mechanism), Secret::default());
        let mut this = Self { mechanism, state: State::default(), message, facts: OwnedFacts::of(facts) };
        this.state.prepare(this.traits().state_octets);
        this
    }

    /// Another one begins here; the last one has ended.
    pub fn begin(&mut self, mechanism: &Arc<dyn Mechanism>, facts: &wire::Facts<'_>) {
        if !Arc::ptr_eq(&self.mechanism, mechanism) {
            self.mechanism = Arc::clone(mechanism);
        }
        self.state.prepare(mechanism.traits().state_octets);
        self.facts.set(facts);
    }

    /// It is over; nothing of it is left.
    pub fn end(&mut self) {
        self.mechanism.finish(&mut self.state);
        self.state.wipe();
        self.forget_message();
    }

    fn forget_message(&mut self) {
        if self.message.room() > MESSAGE_KEPT_OCTETS {
            self.message = Secret::default();
        } else if !self.message.expose().is_empty() {
            self.message.wipe();
        }
    }

    pub fn traits(&self) -> &Traits {
        self.mechanism.traits()
    }

    /// Takes a step and hands its answer over. Of `scratch` the mechanism gets what it has declared, no more.
    pub fn step(
        &mut self,
        step: &wire::Step<'_>,
        resume: bool,
        scratch: &mut [u8],
        answer: impl FnOnce(&wire::Answer<'_>),
    ) -> Stepped {
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
                    answer(&failure(FailureClass::Internal, b"an effect of a later time"));
                    return Stepped::Answered;
                };
                let scram = scram.map(|wire::Scram { iterations, salt, stored_key, server_key }| ScramKey {
                    iterations,
                    salt,
                    stored_key,
                    server_key,
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
        let octets = self.mechanism.traits().output_octets_max.min(scratch.len());
        let scratch = scratch.get_mut(..octets).unwrap_or_default();
        let said = self.mechanism.step(&mut self.state, input, scratch);
        if let Step::Offload = said {
            sasl::wipe(scratch);
            return Stepped::Offload;
        }
        answer(&flat(&said));
        // An effect's outcome comes with the message that it is for. Else the message has had its answer.
        let is_done = !matches!(said, Step::Effect(_));
        sasl::wipe(scratch);
        if is_done {
            self.forget_message();
        }
        Stepped::Answered
    }
}

/// A failure in the host's own words.
pub(crate) fn failure(class: FailureClass, why: &'static [u8]) -> wire::Answer<'static> {
    flat(&Step::Failure { class, data: None, diagnosis: why })
}

fn flat<'a>(step: &Step<'a>) -> wire::Answer<'a> {
    let Flat { action, arg, last, parts } = Flat::from(step);
    wire::Answer { action, arg, last, parts }
}

/// The facts of a connection as they travel to the process that runs the mechanism.
pub fn wire_facts<'a>(facts: &Facts<'a>) -> wire::Facts<'a> {
    wire::Facts {
        tls: facts.tls,
        tls_version: facts.tls_version,
        client_certificate: facts.client_certificate,
        plus_offered: facts.plus_offered,
        channel_bindings: facts.channel_bindings,
        server_name: facts.server_name,
        client_ip: facts.client_ip,
        listener: facts.listener,
        sni: facts.sni,
    }
}

impl OwnedFacts {
    fn of(facts: &wire::Facts<'_>) -> Self {
        let mut this = Self {
            tls: false,
            tls_version: 0,
            client_certificate: false,
            plus_offered: false,
            channel_bindings: 0,
            client_ip: facts.client_ip,
            texts: String::new(),
            lengths: [0; 2],
        };
        this.set(facts);
        this
    }

    fn set(&mut self, facts: &wire::Facts<'_>) {
        let wire::Facts { tls, tls_version, client_certificate, plus_offered, channel_bindings, client_ip, .. } =
            *facts;
        let mut texts = std::mem::take(&mut self.texts);
        texts.clear();
        [facts.server_name, facts.listener, facts.sni].iter().for_each(|text| texts.push_str(text));
        let lengths = [facts.server_name.len(), facts.listener.len()];
        *self =
            Self { tls, tls_version, client_certificate, plus_offered, channel_bindings, client_ip, texts, lengths };
    }

    fn borrow(&self, session: u64) -> Facts<'_> {
        let [server_name, listener] = self.lengths;
        let (server_name, rest) = self.texts.split_at_checked(server_name).unwrap_or_default();
        let (listener, sni) = rest.split_at_checked(listener).unwrap_or_default();
        Facts {
            tls: self.tls,
            tls_version: self.tls_version,
            client_certificate: self.client_certificate,
            plus_offered: self.plus_offered,
            channel_bindings: self.channel_bindings,
            server_name,
            client_ip: self.client_ip,
            listener,
            sni,
            session,
        }
    }
}
