//! The P rules: what a host and its clients may rely on.

use std::collections::BTreeSet;
use std::time::Instant;

use portreeve_plugin_abi::{action, binding, fail, status};

use super::{Judged, Trial, internal};
use crate::client::{Kind, Person};
use crate::event::{Answer, Facts, Moment, STATUSES, effect_name};
use crate::explore::{self, Known};
use crate::sandbox::Fault;
use crate::vectors;
use crate::world::{End, Local, Plan, Policy, Random, Stepper as _, Story, Voice, in_words, with_sibling};

impl Trial<'_> {
    pub(super) fn initial_responses(&self, local: &mut Local<'_>) -> Judged {
        let facts = self.traits.facts();
        let without = self.run_plan(local, &Plan::words(facts.clone(), false, vec![]))?;
        let first = without.steps.first().map(|(_, answer)| answer.clone()).unwrap_or_default();
        if first.action != action::CHALLENGE {
            let text = format!("START without an initial response gives {}, not CHALLENGE", first.name());
            return Err(Fault::new("P1", text));
        }
        // LOGIN is no client-first mechanism, but clients treat it as one.
        if self.traits.client_first && !first.data.0.is_empty() && self.traits.name != "LOGIN" {
            let text = format!("CLIENT_FIRST, but without an initial response the challenge is {}", first.data);
            return Err(Fault::new("P1", text));
        }
        if self.traits.server_first {
            return Ok(None);
        }
        let empty = self.run_plan(local, &Plan::words(facts, true, vec![vec![]]))?;
        match empty.steps.first() {
            Some((_, answer)) if answer.action == action::CHALLENGE && *answer == first => {
                let text =
                    format!("an empty initial response (`=`) gives CHALLENGE {}, as if there were none", answer.data);
                Err(Fault::new("P1", text))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn statuses(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        let mut tried = BTreeSet::new();
        for Known { plan, story } in known.iter().filter(|known| !known.story.ledger.is_empty()) {
            for (at, entry) in story.ledger.iter().enumerate() {
                if !tried.insert((at, entry.effect, plan.initial, story.steps.len())) {
                    continue;
                }
                for (name, status) in
                    STATUSES.into_iter().chain([("77, which is none", 77)]).filter(|(_, status)| *status != 0)
                {
                    // The client has two more lines, should the mechanism want to hear them.
                    let words = [story.words.clone(), vec![vec![], vec![]]].concat();
                    let plan = Plan { policy: Policy::At(at, status), voice: Voice::Words(words), ..plan.clone() };
                    let story = self.run_plan(local, &plan)?;
                    if story.ledger.len() <= at {
                        continue;
                    }
                    let effect = effect_name(entry.effect);
                    let good = match story.end {
                        End::Failure(class) => allowed(status, entry.effect).contains(&class),
                        End::Success => false,
                        _ => true,
                    };
                    if !good {
                        let text = format!("{effect} ends with {name}, and the exchange with {}", in_words(&story.end));
                        return Err(Fault::new("P2", text));
                    }
                }
            }
        }
        if tried.is_empty() { Ok(Some("no exchange came to an effect".into())) } else { Ok(None) }
    }

    pub(super) fn spoiled(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        for Known { plan, story } in known.iter() {
            if let End::Failure(fail::INTERNAL) = story.end
                && plan.policy == Policy::Truth
            {
                return Err(internal(story));
            }
            for words in self.variants(plan, story.words.iter().any(|word| word.len() > 600)) {
                let plan = Plan { voice: Voice::Words(words), policy: Policy::Truth, ..plan.clone() };
                let spoiled = self.run_plan(local, &plan)?;
                if spoiled.end == End::Failure(fail::INTERNAL) {
                    return Err(internal(&spoiled));
                }
                if spoiled.end == End::Success && !self.is_forgiven(&spoiled) {
                    let text = format!("SUCCESS although the exchange was spoiled, with {}", spoiled.last_words());
                    return Err(Fault::new("P4", text));
                }
            }
        }
        Ok(None)
    }

    /// Whether a success needs no unspoiled words: the world itself has compared the secret, or nobody needs one.
    pub(super) fn is_forgiven(&self, story: &Story) -> bool {
        self.traits.anonymous || self.traits.self_asserts || story.proof().is_some_and(|entry| entry.verified)
    }

    pub(super) fn decoys(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if self.traits.anonymous {
            return Ok(Some("ANONYMOUS grants no identity".into()));
        }
        let mut random = Random::new(self.job.seed);
        let seeds = explore::seeds(&self.traits);
        let until = self.until();
        for round in 0..DECOYS {
            let Some(Known { plan, story }) = known.get(round % known.len().max(1)) else { break };
            let mut words = story.words.clone();
            if round >= known.len()
                && let Some(word) = (!words.is_empty()).then(|| random.below(words.len()))
            {
                explore::mutate(&mut words[word], &mut random, &seeds, self.traits.message_octets_max);
            }
            let entropy = random.next();
            let plan = Plan { policy: Policy::Decoy, entropy, voice: Voice::Words(words), ..plan.clone() };
            self.run_plan(local, &plan)?.judge(&self.traits)?;
            if round > 4 * known.len() && round % 256 == 0 && Instant::now() > until {
                break;
            }
        }
        // A client that has the right password, but of somebody who does not exist.
        if let Some(kind) = Kind::of(&self.traits.name) {
            for entropy in 0..64 {
                let plan = Plan::client(self.traits.facts(), kind, self.person());
                let initial = !self.traits.server_first;
                let story = self.run_plan(local, &Plan { policy: Policy::Decoy, initial, entropy, ..plan })?;
                story.judge(&self.traits)?;
            }
        }
        if self.traits.self_asserts {
            let why = "it asserts identities itself: nothing that can be watched here proves them. What was tried came to \
                       no other success";
            return Ok(Some(why.into()));
        }
        Ok(None)
    }

    /// A client with the right password, on the connection as it is.
    pub(super) fn person(&self) -> Person {
        let gs2 = if self.traits.channel_bind { "p=tls-exporter" } else { "n" };
        let binding = if self.traits.channel_bind { self.world.binding.clone() } else { vec![] };
        Person { gs2: gs2.into(), binding, ..Person::user() }
    }

    pub(super) fn flips(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if self.declared.needs(action::BACKEND_CALL) {
            return Ok(Some("a back end of its own compares what the client sends".into()));
        }
        let kind = Kind::of(&self.traits.name);
        if self.traits.self_asserts {
            return Ok(Some(
                "SELF_ASSERTS: what proves the client is known to somebody outside, not to this kit".into(),
            ));
        }
        if self.traits.anonymous || kind == Some(Kind::External) {
            return Ok(Some("the client's messages prove nothing".into()));
        }
        let is_scram = matches!(kind, Some(Kind::Scram(..)));
        let mut flipped = 0;
        for Known { plan, story } in explore::successes(known) {
            let Some(word) = story.words.iter().rposition(|word| !word.is_empty()) else { continue };
            let octets = &story.words[word];
            let proof = match kind {
                // Whatever else a list of directives says is told apart by its own rules.
                Some(Kind::DigestMd5) => {
                    octets.windows(9).position(|w| w == b"response=").map_or(0, |at| at + 9)..octets.len()
                }
                _ => 0..octets.len(),
            };
            for at in proof {
                for bit in 0..8 {
                    let mut words = story.words.clone();
                    words[word][at] ^= 1 << bit;
                    // Schemes and hexadecimal digits mean the same in both cases.
                    if bit == 5 && octets[at].is_ascii_alphabetic() && !is_scram && self.case_may_differ(octets, at) {
                        continue;
                    }
                    flipped += 1;
                    let story = self.run_plan(local, &Plan { voice: Voice::Words(words), ..plan.clone() })?;
                    if story.end == End::Success {
                        let text = format!("SUCCESS with bit {bit} of octet {at} flipped: {}", story.last_words());
                        return Err(Fault::new("P5", text));
                    }
                }
            }
        }
        if flipped == 0 {
            return Ok(Some("no exchange succeeded: give sample exchanges with --vectors FILE".into()));
        }
        Ok(None)
    }

    pub(super) fn case_may_differ(&self, octets: &[u8], at: usize) -> bool {
        let hexadecimal = octets[at].is_ascii_hexdigit()
            && octets.len() >= 32
            && octets.split(|octet| !octet.is_ascii_hexdigit()).any(|run| run.len() >= 32);
        let scheme = octets.windows(6).position(|window| window.eq_ignore_ascii_case(b"Bearer"));
        hexadecimal || scheme.is_some_and(|start| (start..start + 6).contains(&at))
    }

    pub(super) fn decoys_look_real(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if !self.declared.needs(action::FETCH_KEY) {
            return Ok(Some("it fetches no key".into()));
        }
        let mut pairs = Vec::new();
        for Known { plan, story } in known.iter().filter(|known| known.plan.policy == Policy::Truth) {
            let fetched = story.ledger.iter().any(|entry| entry.effect == action::FETCH_KEY && !entry.doomed);
            if !fetched || story.end == End::Success {
                continue;
            }
            let decoy = Plan { policy: Policy::Decoy, ..plan.clone() };
            let other = self.run_plan(local, &decoy)?;
            if story.shape() != other.shape() {
                let names = |story: &Story| {
                    let shown =
                        |(_, answer): &(Moment, Answer)| format!("{} ({} octets)", answer.name(), answer.data.0.len());
                    story.steps.iter().map(shown).collect::<Vec<_>>().join(", ")
                };
                let text = format!("with a real key {}; with a made-up one {}", names(story), names(&other));
                return Err(Fault::new("P6", text));
            }
            pairs.push((plan, decoy));
        }
        if pairs.is_empty() {
            return Ok(Some("no exchange came to a key and failed".into()));
        }
        for (real, decoy) in pairs {
            let mut least = f64::INFINITY;
            for _ in 0..3 {
                let (real, decoy) = (self.run_plan(local, real)?, self.run_plan(local, &decoy)?);
                let mut samples = [Vec::new(), Vec::new()];
                for _ in 0..200 {
                    for (samples, story) in samples.iter_mut().zip([&real, &decoy]) {
                        samples.push(self.stepping_nanoseconds(local, story)?);
                    }
                }
                // The quick end of many turns says what the work costs; the slow one is the machine's.
                let [real, decoy] = samples.map(|mut samples| {
                    samples.sort_unstable();
                    samples[samples.len() / 10] as f64
                });
                let differs = if (real - decoy).abs() < 1000.0 { 1.0 } else { real.max(decoy) / real.min(decoy) };
                least = least.min(differs);
                if least <= 1.2 {
                    break;
                }
            }
            if least > 1.2 {
                return Err(Fault::new(
                    "P6",
                    format!("real and made-up keys differ by a factor of {least:.1} in time"),
                ));
            }
        }
        Ok(None)
    }

    pub(super) fn stepping_nanoseconds(&self, local: &mut Local<'_>, story: &Story) -> Result<u128, Fault> {
        local.begin()?;
        let facts = self.traits.facts();
        let begin = Instant::now();
        for (moment, _) in &story.steps {
            local.step(&facts, moment)?;
        }
        let taken = begin.elapsed().as_nanos();
        local.finish()?;
        Ok(taken)
    }

    pub(super) fn published(&self, local: &mut Local<'_>) -> Judged {
        let shipped = vectors::parse(vectors::PUBLISHED).map_err(|cause| Fault::new("P7", cause))?;
        let mut count = 0;
        for vector in shipped.iter().chain(&self.vectors).filter(|vector| vector.mech == self.traits.name) {
            vector.check(local, &self.traits)?;
            count += 1;
        }
        Ok((count == 0).then(|| "nothing is published: give your own exchanges with --vectors FILE".to_owned()))
    }

    pub(super) fn bindings(&self, local: &mut Local<'_>) -> Judged {
        let facts = self.traits.facts();
        let Some(kind) = Kind::of(&self.traits.name) else { return Ok(Some("its messages are not known here".into())) };
        let mut expect = |what: &str, facts: Facts, gs2: &str, binding: &[u8], good: bool| {
            let person = Person { gs2: gs2.into(), binding: binding.to_vec(), ..Person::user() };
            let story = self.run_plan(local, &Plan::client(facts, kind, person))?;
            if (story.end == End::Success) != good || story.end == End::Failure(fail::INTERNAL) {
                return Err(Fault::new("P8", format!("{what}: {}", in_words(&story.end))));
            }
            Ok(())
        };
        let right = &self.world.binding;
        match kind {
            Kind::Scram(_, true) => {
                let only = |kind: u32| Facts { cb_types: 1 << kind, ..facts.clone() };
                for name in ["p=tls-exporter", "p=tls-server-end-point"] {
                    expect(&format!("the right binding with {name}"), facts.clone(), name, right, true)?;
                    let mut wrong = right.clone();
                    wrong[0] ^= 1;
                    expect(&format!("another connection's binding with {name}"), facts.clone(), name, &wrong, false)?;
                    expect(&format!("no binding with {name}"), facts.clone(), name, b"", false)?;
                }
                expect("p=tls-unique", facts.clone(), "p=tls-unique", right, false)?;
                expect(
                    "a binding that this connection lacks",
                    only(binding::TLS_SERVER_END_POINT),
                    "p=tls-exporter",
                    right,
                    false,
                )?;
                expect("the flag n", facts.clone(), "n", b"", false)?;
                expect("the flag y", facts, "y", b"", false)?;
                Ok(None)
            }
            Kind::Scram(_, false) => {
                expect("the flag n", facts.clone(), "n", b"", true)?;
                expect("y where the -PLUS sibling was not offered", facts.clone(), "y", b"", true)?;
                expect("y where the -PLUS sibling was offered", with_sibling(facts.clone()), "y", b"", false)?;
                let with = Facts { cb_types: 6, ..facts };
                expect("p=tls-exporter without -PLUS", with, "p=tls-exporter", right, false)?;
                Ok(None)
            }
            Kind::OauthBearer => {
                expect("p=tls-exporter, which OAUTHBEARER does not have", facts, "p=tls-exporter", right, false)?;
                Ok(None)
            }
            _ => Ok(Some("it has no channel binding".into())),
        }
    }

    /// The words of a plan with one of them spoiled.
    pub(super) fn variants(&self, plan: &Plan, few: bool) -> Vec<Vec<Vec<u8>>> {
        let Voice::Words(words) = &plan.voice else { return vec![] };
        let mut all = Vec::new();
        for at in 0..words.len() {
            let spoiled = explore::spoiled(&words[at], &self.traits);
            let step = if few { spoiled.len() / 60 + 1 } else { 1 };
            for spoiled in spoiled.into_iter().step_by(step) {
                let mut words = words.clone();
                words[at] = spoiled;
                all.push(words);
            }
        }
        all
    }
}

/// Exchanges of users who do not exist.
const DECOYS: usize = 10_000;
/// Failure classes that fit a status.
fn allowed(status: u32, effect: u32) -> &'static [u32] {
    match (status, effect) {
        (status::DENIED, action::CHANNEL_BINDING) => &[fail::CREDENTIALS, fail::CBINDING],
        (status::DENIED, _) => &[fail::CREDENTIALS, fail::AUTHZ],
        (status::TEMPFAIL, _) => &[fail::TEMPORARY],
        (status::UNSUPPORTED, action::CHANNEL_BINDING) => &[fail::TEMPORARY, fail::CBINDING],
        (status::UNSUPPORTED, _) => &[fail::TEMPORARY],
        (status::TRANSITION, _) => &[fail::TRANSITION, fail::CREDENTIALS],
        (status::EXPIRED, _) => &[fail::EXPIRED, fail::CREDENTIALS],
        _ => &[fail::INTERNAL, fail::TEMPORARY],
    }
}
