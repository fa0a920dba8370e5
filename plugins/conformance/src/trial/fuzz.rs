//! Random exchanges.

use std::time::Instant;

use portreeve_plugin_abi::{fail, status};

use super::{Trial, internal, same};
use crate::client::Kind;
use crate::event::STATUSES;
use crate::explore::{self, Known};
use crate::job::Line;
use crate::rules::Verdict;
use crate::sandbox::{Edge, Fault};
use crate::world::{End, Local, Plan, Policy, Random, Voice};

impl Trial<'_> {
    pub(super) fn fuzz(&self, local: &mut Local<'_>, known: &[Known]) {
        let seeds = explore::seeds(&self.traits);
        let (mut count, until) = (0, self.until());
        while if self.job.exchanges == 0 {
            count % 64 != 0 || Instant::now() < until
        } else {
            count < self.job.exchanges
        } {
            let seed = self.job.seed.wrapping_add(count);
            if let Err(fault) = self.fuzz_one(local, known, &seeds, seed) {
                let text = format!("{} (again: --seed {seed} --exchanges 1)", fault.text);
                return self.pipe.finding(fault.rule, &self.traits.name, Verdict::Fail, text);
            }
            count += 1;
            if count % 1000 == 0 {
                self.pipe.send(&Line::Progress(count));
            }
        }
        self.pipe.send(&Line::Progress(count));
    }

    fn fuzz_one(&self, local: &mut Local<'_>, known: &[Known], seeds: &[Vec<u8>], seed: u64) -> Result<(), Fault> {
        let mut random = Random::new(seed);
        let Some(base) = known.get(random.below(known.len())) else { return Ok(()) };
        let mut words = base.story.words.clone();
        if words.is_empty() {
            words.push(seeds[random.below(seeds.len())].clone());
        }
        for _ in 0..random.below(4) {
            let word = random.below(words.len());
            explore::mutate(&mut words[word], &mut random, seeds, self.traits.message_octets_max);
        }
        let changed = words != base.story.words;
        let mut facts = base.plan.facts.clone();
        if random.below(4) == 0 {
            facts.conn_flags ^= random.next() as u32 & 7;
            facts.cb_types = random.next() as u32 & 6;
        }
        let policy = match random.below(6) {
            0 => Policy::Decoy,
            1 => Policy::At(random.below(2), STATUSES[random.below(6)].1),
            2 => Policy::Force(status::OK),
            _ => Policy::Truth,
        };
        let damage = (random.below(4) == 0).then(|| random.next());
        let plan = Plan {
            facts,
            entropy: random.next(),
            initial: random.below(4) != 0 && !self.traits.server_first,
            voice: Voice::Words(words),
            policy,
            steps_max: u32::MAX,
            damage,
        };
        (local.edge, local.fill) = (if random.below(2) == 0 { Edge::End } else { Edge::Start }, random.next() as u8);
        let story = self.run_plan(local, &plan)?;
        if damage.is_none() {
            story.judge(&self.traits)?;
            if story.end == End::Failure(fail::INTERNAL) {
                return Err(internal(&story));
            }
            let strict = !matches!(Kind::of(&self.traits.name), Some(Kind::DigestMd5 | Kind::CramMd5));
            let helped = matches!(policy, Policy::Force(_) | Policy::At(..));
            if story.end == End::Success && changed && strict && !helped && !self.is_forgiven(&story) {
                // The sample itself may have been arrived at by another way.
                let is_known =
                    known.iter().any(|known| known.story.end == End::Success && known.story.words == story.words);
                if !is_known {
                    return Err(Fault::new(
                        "P5",
                        format!("SUCCESS although the exchange was altered, with {}", story.last_words()),
                    ));
                }
            }
        }
        local.fill = random.next() as u8;
        let again = self.run_plan(local, &plan)?;
        same("M1", "a second time", &story, &again)
    }
}
