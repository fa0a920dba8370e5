//! One step of the mechanism: what it is told, where it runs, and what its answer asks of us.
//!
//! ```text
//! cause ─► event, facts, entropy ─► Mechanism::step in this process ─┐
//!                                └► Host::step: another process ─────┴► answer ─► 334, effect, decision
//! ```

use sasl::{
    EffectKind, Event, Facts, FailureClass, Input, Mechanism, OwnedStep, Proof, ScramKey, Secret, Status, Step, flag,
};

use super::ledger::Ledger;
use super::message::write_challenge;
use super::{Authentication, Claim};
use crate::host::{Account, Context, Effect, Outcome, SaslOutcome};

/// Why the mechanism is stepped.
pub(super) enum Cause {
    Start {
        initial: bool,
    },
    Message,
    Outcome(EffectKind, SaslOutcome),
    /// The mechanism has answered from where it runs.
    Answer(OwnedStep),
}

/// What a step came to, when the borrows of the step are over.
pub(super) enum Decision {
    Wait,
    Elsewhere,
    Pending(EffectKind),
    Outcome(EffectKind, SaslOutcome),
    Success(Proof, FinalData),
    Asserted(FinalData),
    Failure(FailureClass, FinalData),
}

/// Data that came with the mechanism's last word. It goes out in a 334, since 235 and 535 have no room for it, and the
/// client answers before it is told (RFC 4954 §4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FinalData {
    None,
    Sent,
}

impl FinalData {
    fn send(data: Option<&[u8]>, out: &mut Vec<u8>) -> Self {
        match data {
            None => Self::None,
            Some(data) => {
                write_challenge(data, out);
                Self::Sent
            }
        }
    }
}

impl Authentication {
    pub(super) fn step(
        &mut self,
        mechanism: &dyn Mechanism,
        cause: &Cause,
        diagnosis: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Decision {
        let Self { state, message, ledger, claim, effects, elsewhere, plus_offered, .. } = self;
        let facts = facts(*plus_offered, cx);
        let fresh = mechanism.traits().flags & flag::ENTROPY != 0;
        let entropy = if fresh { cx.host.entropy() } else { [0; 64] };
        let input = Input {
            event: cause.event(ledger),
            message: message.expose(),
            facts: &facts,
            entropy: if fresh { &entropy } else { &[] },
            unix_ms: cx.unix_ms,
            exchange: cx.session.0,
        };
        let octets = mechanism.traits().output_octets_max;
        if cx.pools.scratch.len() < octets {
            cx.pools.scratch.resize(octets, 0);
        }
        let scratch = cx.pools.scratch.get_mut(..octets).unwrap_or_default();
        let carried;
        let step = match cause {
            Cause::Answer(answer) => answer.step(),
            _ if mechanism.runner().is_some() => {
                *elsewhere = true;
                match cx.host.step(mechanism, input) {
                    None => return Decision::Elsewhere,
                    Some(answer) => {
                        carried = answer;
                        carried.step()
                    }
                }
            }
            _ => mechanism.step(state, input, scratch),
        };
        let decision = match step {
            Step::Challenge(data) => {
                write_challenge(data, cx.out);
                Decision::Wait
            }
            Step::Effect(sasl::Effect::VerifyToken { fields, .. }) if is_elsewhere(fields, &cx.listener.ports) => {
                diagnosis.extend(b"the client means another port; ours are the listener's bind and public_port");
                // The mechanism says so to the client in its own way: RFC 7628 §3.2.2 wants JSON and its answer to that.
                let data = Secret::new(br#"{"status":"invalid_request"}"#.to_vec());
                let (status, account) = (Status::Denied, Account::Good);
                let refused = SaslOutcome { status, doomed: false, identity: None, data, scram: None, account };
                Decision::Outcome(EffectKind::VerifyToken, refused)
            }
            Step::Effect(effect) => {
                *effects = effects.saturating_add(1);
                let kind = effect.kind();
                claim.read(&effect);
                match cx.host.perform(Effect::Sasl { mechanism: mechanism.name(), effect }) {
                    Some(Outcome::Sasl(outcome)) => Decision::Outcome(kind, outcome),
                    None => Decision::Pending(kind),
                    Some(_) => Decision::Failure(FailureClass::Internal, FinalData::None),
                }
            }
            Step::Success { proof, data } => Decision::Success(proof, FinalData::send(data, cx.out)),
            Step::Asserted { authcid, authzid, data } => {
                authcid.clone_into(&mut claim.authcid);
                authzid.clone_into(&mut claim.authzid);
                Decision::Asserted(FinalData::send(data, cx.out))
            }
            Step::Failure { class, data, diagnosis: words } => {
                diagnosis.extend(words.iter().take(DIAGNOSIS_OCTETS_MAX));
                Decision::Failure(class, FinalData::send(data, cx.out))
            }
            // Mechanisms that must leave the event loop are refused when they are loaded.
            Step::Offload => Decision::Failure(FailureClass::Internal, FinalData::None),
        };
        sasl::wipe(cx.pools.scratch.get_mut(..octets).unwrap_or_default());
        decision
    }
}

impl Cause {
    fn event<'a>(&'a self, ledger: &Ledger) -> Event<'a> {
        match self {
            Self::Start { initial } => Event::Start { initial: *initial },
            Self::Message => Event::Message,
            Self::Answer(_) => Event::Resume,
            Self::Outcome(effect, outcome) => {
                let data = outcome.data.expose();
                let scram = outcome.scram.and_then(|layout| {
                    let (salt, keys) = data.split_at_checked(usize::from(layout.salt_octets))?;
                    let (stored_key, server_key) = keys.split_at_checked(usize::from(layout.hash_octets))?;
                    Some(ScramKey { iterations: layout.iterations, salt, stored_key, server_key })
                });
                // Where keys lie in memory is nothing that a mechanism could use.
                let data = if scram.is_some() { &[] } else { data };
                let proof = if outcome.status == Status::Ok { ledger.last() } else { Proof(0) };
                Event::Outcome(sasl::Outcome { effect: *effect, status: outcome.status, proof, data, scram })
            }
        }
    }
}

impl Claim {
    /// Whom an effect is about.
    fn read(&mut self, effect: &sasl::Effect<'_>) {
        match *effect {
            sasl::Effect::VerifyPassword { authcid, authzid, .. } | sasl::Effect::FetchKey { authcid, authzid, .. } => {
                authcid.clone_into(&mut self.authcid);
                authzid.clone_into(&mut self.authzid);
            }
            sasl::Effect::VerifyToken { authzid, .. } | sasl::Effect::VerifyExternal { authzid } => {
                authzid.clone_into(&mut self.authzid);
            }
            sasl::Effect::ChannelBinding { .. } | sasl::Effect::BackendCall { .. } => {}
        }
    }
}

/// The connection as a mechanism may see it.
fn facts<'a>(plus_offered: bool, cx: &Context<'a>) -> Facts<'a> {
    Facts {
        tls: cx.tls.is_some(),
        tls_version: cx.tls.map_or(0, |tls| tls.version),
        client_certificate: cx.tls.is_some_and(|tls| tls.client_certificate),
        plus_offered,
        channel_bindings: cx.tls.map_or(0, |tls| tls.channel_bindings),
        server_name: &cx.listener.hostname,
        client_ip: cx.peer.ip,
        listener: &cx.listener.name,
        sni: cx.tls.map_or("", |tls| &tls.sni),
        session: cx.session.0,
    }
}

/// Whether `port` of a bearer token's fields (`key=value`, separated by 0x01) is none of ours: RFC 7628 §3.2 wants
/// compared what is known otherwise. That it is a number, once, the mechanism has seen.
fn is_elsewhere(fields: &[u8], ports: &[u16]) -> bool {
    let port = fields.split(|octet| *octet == 1).find_map(|field| field.strip_prefix(b"port="));
    let port = port.map(|port| std::str::from_utf8(port).ok().and_then(|port| port.parse().ok()));
    !ports.is_empty() && port.is_some_and(|port| port.is_none_or(|port| !ports.contains(&port)))
}

/// Octets of a mechanism's own words that reach the log.
const DIAGNOSIS_OCTETS_MAX: usize = 200;
