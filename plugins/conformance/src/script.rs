//! `plugin run`: exchanges by hand or by a script, without a server.
//!
//! ```text
//! user alice secret            alice exists, and this is her password (`user` with `pencil` does anyway)
//! token abc123 alice           whose token it is
//! start                        AUTH without an initial response
//! start "\0user\0pencil"       AUTH with one; "" is the empty one
//! say "two words\x0a"          the client's next message
//! answer TEMPFAIL              the next effect ends with this instead of the truth
//! plus                         from the next exchange on the -PLUS sibling was offered, and bindings are usable
//! expect challenge "Password:" what must have come; without octets any challenge does
//! expect effect VERIFY_PASSWORD
//! expect success
//! expect fail MALFORMED
//! ```
//!
//! A message stands in quotes, with `\\ \" \n \r \t \0 \xNN`, or as `base64:…`, or is the rest of the line.
//! Effects are performed by a small world of its own; what the mechanism asks for and gets is printed.

use std::io::{BufRead, Write};

use portreeve_plugin_abi::{action, conn, out_flag};

use crate::event::{Answer, Event, Facts, Moment, Octets, STATUSES, unbase64};
use crate::sandbox::Fault;
use crate::trace::{self, Trace};
use crate::world::{self, End, Policy, Stepper, Story, Traits, World};

/// A run of exchanges.
pub struct Run<'a> {
    stepper: &'a mut dyn Stepper,
    traits: Traits,
    world: World,
    facts: Facts,
    seed: u64,
    out: &'a mut dyn Write,
    trace: Option<&'a mut Trace>,
    story: Story,
    seen: Vec<Answer>,
    forced: Option<u32>,
    open: bool,
    failed: bool,
}

fn empty_story() -> Story {
    Story { steps: vec![], words: vec![], ledger: vec![], end: End::Left }
}

impl<'a> Run<'a> {
    /// Of a mechanism; what happens goes to `out` and to `trace`.
    pub fn new(
        stepper: &'a mut dyn Stepper,
        traits: Traits,
        seed: u64,
        out: &'a mut dyn Write,
        trace: Option<&'a mut Trace>,
    ) -> Self {
        let facts = traits.facts();
        let (world, story) = (World::default(), empty_story());
        Self {
            stepper,
            traits,
            world,
            facts,
            seed,
            out,
            trace,
            story,
            seen: vec![],
            forced: None,
            open: false,
            failed: false,
        }
    }

    /// Follows a script or a person; true when all that was expected came. `prompt` is for a person.
    pub fn follow(mut self, lines: impl BufRead, prompt: bool) -> Result<bool, String> {
        for (number, line) in lines.lines().enumerate() {
            let line = line.map_err(|error| error.to_string())?;
            match self.line(line.trim()) {
                Ok(()) => {}
                // A person may try again.
                Err(cause) if prompt => self.print(&format!("  ? {cause}"))?,
                Err(cause) => return Err(format!("line {}: {cause}", number + 1)),
            }
            if prompt {
                write!(self.out, "> ").and_then(|()| self.out.flush()).map_err(|error| error.to_string())?;
            }
        }
        self.close()?;
        Ok(!self.failed)
    }

    fn print(&mut self, text: &str) -> Result<(), String> {
        writeln!(self.out, "{text}").map_err(|error| error.to_string())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').map_or((line, ""), |(word, rest)| (word, rest.trim_start()));
        match word {
            "" => Ok(()),
            _ if word.starts_with('#') => Ok(()),
            "start" => {
                self.close()?;
                let initial = if rest.is_empty() { None } else { Some(Octets(octets(rest)?)) };
                self.stepper.begin().map_err(words)?;
                (self.story, self.open, self.failed) = (empty_story(), true, self.failed);
                self.seen.clear();
                let facts = self.facts.clone();
                if let Some(trace) = &mut self.trace {
                    trace.entries.push(trace::Entry::Begin(facts));
                }
                self.event(Event::Start(initial))
            }
            "say" => {
                let waiting = self.seen.last().is_some_and(|answer| answer.action == action::CHALLENGE);
                if !self.open || !waiting {
                    return Err("nothing waits for the client: begin with `start`".into());
                }
                let message = Octets(octets(rest)?);
                self.event(Event::Message(message))
            }
            "user" | "token" => {
                let (first, second) = rest.split_once(' ').ok_or_else(|| format!("{word} wants two words"))?;
                let known = if word == "user" { &mut self.world.users } else { &mut self.world.tokens };
                known.insert(octets(first)?, String::from_utf8_lossy(&octets(second.trim())?).into_owned());
                Ok(())
            }
            "answer" => {
                let known = STATUSES.iter().find(|(name, _)| *name == rest);
                let names = STATUSES.map(|(name, _)| name).join(", ");
                let (_, status) = known.ok_or_else(|| format!("{rest:?} is no status: {names}"))?;
                self.forced = Some(*status);
                Ok(())
            }
            "plus" => {
                self.facts.conn_flags |= conn::CB_SIBLING;
                self.facts.cb_types = 6;
                Ok(())
            }
            "expect" => self.expect(rest),
            _ => Err(format!("{word:?}: known are start, say, user, token, answer, plus, expect, and # for a comment")),
        }
    }

    /// The exchange is over, for whatever reason.
    fn close(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.open) { self.stepper.finish().map_err(words) } else { Ok(()) }
    }

    fn event(&mut self, mut event: Event) -> Result<(), String> {
        loop {
            self.print(&match &event {
                Event::Start(None) => "> START".to_owned(),
                Event::Start(Some(message)) => format!("> START {message}"),
                Event::Message(message) => format!("> MESSAGE {message}"),
                Event::Resume => "> RESUME".into(),
                Event::Result(outcome) => {
                    let status = STATUSES.iter().find(|(_, number)| *number == outcome.status);
                    let keys = if outcome.scram.is_some() { " with SCRAM keys" } else { "" };
                    let data = if outcome.data.0.is_empty() { String::new() } else { format!(" {}", outcome.data) };
                    format!("> RESULT {}{keys}{data}", status.map_or("?", |(name, _)| name))
                }
            })?;
            if let Some(why) = self.traits.refuses(&event) {
                self.print(&format!("< the host refuses this before the mechanism sees it: {why}"))?;
                self.seen.push(Answer { action: action::FAIL, arg: 2, ..Answer::default() });
                return Ok(());
            }
            let at = self.story.steps.len();
            let entropy = if self.traits.entropy { world::entropy(self.seed, at) } else { vec![] };
            let moment = Moment { event, entropy: Octets(entropy) };
            let answer = self.stepper.step(&self.facts, &moment).map_err(words)?;
            if let Some(trace) = &mut self.trace {
                trace.entries.push(trace::Entry::Step(moment.clone(), answer.clone()));
            }
            self.story.steps.push((moment, answer.clone()));
            self.seen.push(answer.clone());
            self.print(&format!("< {}", described(&answer)))?;
            let ended = matches!(answer.action, action::SUCCESS | action::FAIL);
            if !ended && at as u32 + 1 >= self.traits.steps_max {
                return Err(format!("A5: still {} after max_steps", answer.name()));
            }
            event = match answer.action {
                action::CHALLENGE => return Ok(()),
                action::OFFLOAD => Event::Resume,
                action::SUCCESS | action::FAIL => return self.ended(&answer),
                _ => {
                    let policy = self.forced.take().map_or(Policy::Truth, Policy::Force);
                    let (outcome, entry) = self.world.perform(&answer, policy, 41 + at as u32);
                    self.story.ledger.push(entry);
                    Event::Result(outcome)
                }
            };
        }
    }

    fn ended(&mut self, answer: &Answer) -> Result<(), String> {
        if answer.action == action::FAIL {
            return Ok(());
        }
        match self.story.judge(&self.traits) {
            Ok(()) if self.story.proof().is_some_and(|entry| !entry.authorized) => {
                self.failed = true;
                self.print("  the host does not accept it: 535, may not act as that authzid")
            }
            Ok(()) => self.print("  the host accepts it: 235"),
            Err(fault) => {
                self.failed = true;
                self.print(&format!("  the host does not accept it: {}: {}", fault.rule, fault.text))
            }
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        let (kind, rest) = what.split_once(' ').map_or((what, ""), |(kind, rest)| (kind, rest.trim()));
        let last = self.seen.last().cloned().ok_or("nothing has come yet: begin with `start`")?;
        let good = match kind {
            "challenge" => last.action == action::CHALLENGE && (rest.is_empty() || octets(rest)? == last.data.0),
            "success" => last.action == action::SUCCESS && self.story.judge(&self.traits).is_ok(),
            "fail" => last.action == action::FAIL && (rest.is_empty() || last.name() == format!("FAIL {rest}")),
            // The world has answered it already, so it is not the last.
            "effect" => {
                self.seen.iter().rev().find(|answer| answer.is_effect()).is_some_and(|answer| answer.name() == rest)
            }
            _ => return Err(format!("{kind:?}: expect challenge, effect, success or fail")),
        };
        if !good {
            self.failed = true;
            self.print(&format!("  expected {what}, but got {}", described(&last)))?;
        }
        Ok(())
    }
}

fn words(fault: Fault) -> String {
    let remedy = crate::rules::rule(fault.rule).map_or("", |rule| rule.remedy);
    format!("{}: {}; mend: {remedy}", fault.rule, fault.text)
}

fn described(answer: &Answer) -> String {
    let last = if answer.flags & out_flag::FINAL_DATA != 0 { ", sent as the last challenge" } else { "" };
    answer.in_full() + last
}

/// Octets as a script has them.
fn octets(text: &str) -> Result<Vec<u8>, String> {
    if let Some(encoded) = text.strip_prefix("base64:") {
        return unbase64(encoded).ok_or_else(|| format!("{encoded:?} is not base64"));
    }
    let Some(quoted) = text.strip_prefix('"') else { return Ok(text.as_bytes().to_vec()) };
    let quoted = quoted.strip_suffix('"').ok_or("the quotation mark is not closed")?;
    let mut octets = Vec::new();
    let mut rest = quoted.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            octets.push(*first);
            continue;
        }
        let (escape, after) = rest.split_first().ok_or("a \\ at the end")?;
        rest = after;
        octets.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0' => 0,
            b'"' | b'\\' => *escape,
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let octet = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = rest.get(2..).unwrap_or_default();
                octet.ok_or("\\x wants two hexadecimal digits")?
            }
            other => return Err(format!("\\{} is no escape: \\\\ \\\" \\n \\r \\t \\0 \\xNN", char::from(*other))),
        });
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOGIN in ten lines.
    struct Toy(u32);

    impl Stepper for Toy {
        fn begin(&mut self) -> Result<(), Fault> {
            self.0 = 0;
            Ok(())
        }
        fn step(&mut self, _: &Facts, moment: &Moment) -> Result<Answer, Fault> {
            self.0 += 1;
            Ok(match (&moment.event, self.0) {
                (_, 1) => Answer { action: action::CHALLENGE, data: "?".into(), ..Answer::default() },
                (Event::Message(password), 2) => Answer {
                    action: action::VERIFY_PASSWORD,
                    authcid: "alice".into(),
                    data: password.clone(),
                    ..Answer::default()
                },
                (Event::Result(outcome), _) if outcome.status == 0 => {
                    Answer { action: action::SUCCESS, handle: outcome.handle, ..Answer::default() }
                }
                _ => Answer { action: action::FAIL, arg: 1, ..Answer::default() },
            })
        }
        fn finish(&mut self) -> Result<(), Fault> {
            Ok(())
        }
    }

    fn follow(script: &str) -> (Result<bool, String>, String) {
        let (mut toy, mut out) = (Toy(0), Vec::new());
        let traits = crate::vectors::tests_traits("X-TOY");
        let followed = Run::new(&mut toy, traits, 1, &mut out, None).follow(script.as_bytes(), false);
        (followed, String::from_utf8(out).unwrap())
    }

    #[test]
    fn scripts() {
        let script = "user alice secret\nstart\nexpect challenge \"?\"\nsay secret\nexpect effect VERIFY_PASSWORD\nexpect success\n\
                      start\nanswer TEMPFAIL\nsay secret\nexpect fail CREDENTIALS\n# the end\n";
        let (followed, out) = follow(script);
        assert_eq!(followed, Ok(true), "{out}");
        assert!(out.contains("< VERIFY_PASSWORD authcid \"alice\" data \"secret\"") && out.contains("235"), "{out}");
        let (followed, out) = follow("start\nexpect challenge \"!\"\n");
        assert_eq!(followed, Ok(false));
        assert!(out.contains("expected challenge \"!\", but got CHALLENGE data \"?\""), "{out}");
        for (script, why) in [
            ("say x\n", "line 1: nothing waits"),
            ("\nfrob\n", "line 2: \"frob\": known are"),
            ("answer MAYBE\n", "is no status"),
            ("start \"a\n", "not closed"),
            ("start \"\\y\"\n", "no escape"),
        ] {
            let (followed, _) = follow(script);
            assert!(followed.clone().unwrap_err().contains(why), "{followed:?}");
        }
    }

    #[test]
    fn messages() {
        assert_eq!(octets(r#""\0a\x00\"\\\n""#).unwrap(), b"\0a\0\"\\\n");
        assert_eq!(octets("base64:AGE=").unwrap(), b"\0a");
        assert_eq!(octets("two words").unwrap(), b"two words");
        assert_eq!(octets("\"\"").unwrap(), b"");
    }
}
