//! What to say to a mechanism that nobody here has met: messages of all usual forms, tried in a tree, of which
//! the branches are kept that make it answer in a new way. And how to spoil a message.

use std::collections::BTreeSet;

use portreeve_plugin_abi::{action, status};

use crate::client::{Kind, Person};
use crate::event::{Event, Moment};
use crate::sandbox::Fault;
use crate::vectors::Vector;
use crate::world::{End, Plan, Policy, Random, Stepper, Story, Traits, Voice, World, run};

/// Exchanges tried at most.
const TRIES_MAX: usize = 700;

/// An exchange worth repeating: its words are fixed, whoever spoke first.
#[derive(Clone, Debug)]
pub struct Known {
    /// How to repeat it.
    pub plan: Plan,
    /// How it went.
    pub story: Story,
}

/// Messages of all usual forms.
pub fn seeds(traits: &Traits) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "",
        "user",
        "pencil",
        "token",
        "\0user\0pencil",
        "user\0user\0pencil",
        "user\0pencil",
        "user pencil",
        "user:pencil",
        "user,pencil",
        "user token",
        "user:token",
        "user\0token",
        "Bearer token",
        "user 00112233445566778899aabbccddeeff",
        "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "y,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "p=tls-exporter,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "c=biws,r=rOprNGfwEbeRWgbNEkqO,p=AAAA",
        "n,,\u{1}auth=Bearer token\u{1}\u{1}",
        "user=user\u{1}auth=Bearer token\u{1}\u{1}",
        "\u{1}",
        "{\"user\":\"user\",\"password\":\"pencil\",\"token\":\"token\"}",
        "username=\"user\",response=00",
        "0",
        "000000",
        "a",
        "\n",
        "j\u{fc}rgen",
        "\u{1f511}",
        "=",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    seeds.push(vec![0xff, 0xfe, 0x00, 0x80]);
    seeds.push(vec![b'A'; traits.message_octets_max]);
    seeds.push(vec![0; traits.message_octets_max.min(300)]);
    seeds.retain(|seed| seed.len() <= traits.message_octets_max);
    seeds
}

/// Tries; a fault of the mechanism ends it.
pub fn explore(
    stepper: &mut impl Stepper,
    traits: &Traits,
    world: &World,
    vectors: &[Vector],
) -> Result<Vec<Known>, Fault> {
    let seeds = seeds(traits);
    let facts = traits.facts();
    let mut todo: Vec<Plan> = Vec::new();
    // Later ones are tried first.
    if !traits.server_first {
        todo.extend(seeds.iter().rev().map(|seed| Plan::words(facts.clone(), true, vec![seed.clone()])));
    }
    todo.push(Plan::words(facts.clone(), false, vec![]));
    for vector in vectors.iter().filter(|vector| vector.mech == traits.name) {
        let words = vector.client_words();
        let spoken_first = !traits.server_first && vector.client_begins();
        todo.push(Plan::words(facts.clone(), spoken_first, words));
    }
    if let Some(kind) = Kind::of(&traits.name) {
        for password in ["wrong", "pencil"] {
            let gs2 = if traits.channel_bind { "p=tls-exporter" } else { "n" };
            let binding = if traits.channel_bind { world.binding.clone() } else { vec![] };
            let person = Person { password: password.into(), gs2: gs2.into(), binding, ..Person::user() };
            let person = if password == "wrong" { Person { token: "wrong".into(), ..person } } else { person };
            let plan = Plan::client(facts.clone(), kind, person);
            todo.push(Plan { initial: false, ..plan.clone() });
            todo.push(Plan { initial: !traits.server_first, ..plan });
        }
    }
    let mut seen = BTreeSet::new();
    let mut known = Vec::new();
    let mut tries = 0;
    while let Some(plan) = todo.pop() {
        tries += 1;
        if tries > TRIES_MAX {
            break;
        }
        let story = run(stepper, traits, world, &plan)?;
        story.judge(traits)?;
        let by_client = matches!(plan.voice, Voice::Client(_));
        let initial = matches!(story.steps.first(), Some((Moment { event: Event::Start(Some(_)), .. }, _)));
        let plan = Plan { voice: Voice::Words(story.words.clone()), initial, ..plan };
        let signature = (plan.initial, by_client, plan.policy == Policy::Truth, signature(&story));
        if !seen.insert(signature) {
            continue;
        }
        match story.end {
            End::Waiting => {
                for seed in seeds.iter().rev() {
                    let words = [story.words.clone(), vec![seed.clone()]].concat();
                    todo.push(Plan { voice: Voice::Words(words), ..plan.clone() });
                }
            }
            End::Failure(_) if plan.policy == Policy::Truth && !story.ledger.is_empty() => {
                todo.push(Plan { policy: Policy::Force(status::OK), ..plan.clone() });
            }
            _ => {}
        }
        if !story.steps.is_empty() {
            known.push(Known { plan, story });
        }
    }
    Ok(known)
}

/// The kind of answers, without their content.
fn signature(story: &Story) -> Vec<(u32, u32)> {
    story.steps.iter().map(|(_, answer)| (answer.action, answer.arg)).collect()
}

/// Exchanges that succeeded without help.
pub fn successes(known: &[Known]) -> impl Iterator<Item = &Known> {
    known.iter().filter(|known| known.story.end == End::Success && known.plan.policy == Policy::Truth)
}

/// What was reached, for people.
pub fn reached(known: &[Known]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (_, answer) in known.iter().flat_map(|known| &known.story.steps) {
        let name = if answer.action == action::FAIL { answer.name() } else { answer.name().to_owned() };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    names.join(", ")
}

/// P4: this message cut, doubled, with an octet too many.
pub fn spoiled(message: &[u8], traits: &Traits) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    // Each octet of a short message, and a sample of a long one.
    let step = message.len() / 300 + 1;
    for at in (0..message.len()).step_by(step) {
        let (before, after) = message.split_at(at);
        all.push(before.to_vec());
        all.push([before, &[0], after].concat());
        all.push([before, &[0xff], after].concat());
        all.push([before, after.get(1..).unwrap_or_default()].concat());
    }
    all.push([message, message].concat());
    let mut long = message.to_vec();
    long.resize(traits.message_octets_max, b'A');
    all.push(long);
    all.push(vec![b','; traits.message_octets_max]);
    all.retain(|spoiled| spoiled != message);
    all
}

/// One random change.
pub fn mutate(message: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>], octets_max: usize) {
    let at = random.below(message.len() + 1);
    let octet = random.next() as u8;
    match random.below(9) {
        0 | 1 if at < message.len() => message[at] ^= 1 << random.below(8),
        2 => message.insert(at, octet),
        3 if at < message.len() => drop(message.remove(at)),
        4 => message.truncate(at),
        5 => {
            let other = &seeds[random.below(seeds.len())];
            message.truncate(at);
            message.extend(other.iter().skip(random.below(other.len() + 1)));
        }
        6 => message.extend_from_within(at..),
        7 => {
            for _ in 0..random.below(64) {
                message.insert(at, b",=\0\x01 :\"A"[usize::from(octet) % 8]);
            }
        }
        _ => message.clone_from(&seeds[random.below(seeds.len())]),
    }
    // Now and then too long for the host to hand on: that is refused before the step.
    message.truncate(octets_max + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spoiled_messages_are_all_different_from_the_message() {
        let traits = crate::vectors::tests_traits("X");
        let all = spoiled(b"ab", &traits);
        assert!(all.contains(&vec![]) && all.contains(&b"a".to_vec()) && all.contains(&b"abab".to_vec()));
        assert!(all.contains(&b"a\0b".to_vec()) && all.contains(&b"b".to_vec()));
        assert!(!all.contains(&b"ab".to_vec()));
        let mut random = Random::new(1);
        let seeds = seeds(&traits);
        for _ in 0..10_000 {
            let mut message = b"user\0pencil".to_vec();
            mutate(&mut message, &mut random, &seeds, traits.message_octets_max);
            assert!(message.len() <= traits.message_octets_max + 1);
        }
    }
}
