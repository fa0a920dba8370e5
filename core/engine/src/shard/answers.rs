//! Answers of other processes (the directory, mechanism-hosts, delivery), handed out to the sessions that wait for them.

use std::io;
use std::os::fd::AsRawFd;

use link::Link;
use mio::Interest;
use mio::unix::SourceFd;
use telemetry::{Counter, Event, Level};

use super::{Shard, mio_token};
use crate::connection::{Pending, flag};
use crate::passing::Doubt;
use crate::questions::{Lost, Memory};
use crate::setup::Notice;
use crate::slab::Token;

impl Shard {
    /// The poll tells of a link that sessions share, under this number.
    pub(super) fn watch_link(&self, link: Option<&Link>, number: u32) -> io::Result<()> {
        let Some(link) = link else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&link.as_raw_fd()), mio_token(Token::outside(number)), interest)
    }

    /// Tells sessions what their next hops said, and the operator what may be delivered twice.
    pub(super) fn tell_news(&mut self) {
        self.local.passing.give_up(self.local.now.ms, &mut self.news);
        for token in std::mem::take(&mut self.news.keeping) {
            if let Some(slot) = self.slots.get_mut(token).filter(|slot| slot.pending == Pending::Passing) {
                slot.pending = Pending::Keeping;
                self.arm_effect(token);
            }
        }
        for (token, doubt) in std::mem::take(&mut self.news.unless_heard) {
            if self.slots.get_mut(token).is_some_and(|slot| slot.has(flag::READ_CLOSED)) {
                self.unheard.entry(token.word()).or_default().push(doubt);
            }
        }
        self.answers.append(&mut self.news.answers);
        let now = self.local.now;
        for Doubt { id, taken } in std::mem::take(&mut self.news.doubts) {
            self.local.watch.add(Counter::MessagesInDoubt, 1);
            let event = Event::log("passed.doubt", Level::Warning, now.unix_ms).word("id", id.to_string());
            let text = "a next hop has it, or may have, and the client was not told: it may come twice";
            let event = taken.into_iter().fold(event, |event, taken| event.number("recipients", taken.into()));
            self.local.watch.tell(&event.word("text", text), now.ms);
        }
        self.hand_out_answers();
    }

    pub(super) fn hear_directory(&mut self) {
        let passwords = &self.shared.passwords;
        let mut memory = Memory {
            passwords,
            addresses: &mut self.local.addresses,
            watch: &self.local.watch,
            now_ms: self.local.now.ms,
        };
        let heard = self.local.questions.receive(&mut memory, &mut self.answers);
        self.hand_out_answers();
        if let Err(Lost) = heard {
            self.directory_lost();
        }
    }

    pub(super) fn hear_runner(&mut self, number: u32) {
        self.local.steps.receive(number, &mut self.answers);
        self.hand_out_answers();
        let now = self.local.now;
        for words in self.local.steps.take_words() {
            let level = match words.level {
                1 => Level::Error,
                2 => Level::Warning,
                3 => Level::Info,
                _ => Level::Debug,
            };
            let event = Event::log("plugin.log", level, now.unix_ms);
            self.local.watch.tell(&event.word("plugin", words.id).untrusted("text", words.text), now.ms);
        }
    }

    pub(super) fn give_up_questions(&mut self) {
        if self.local.questions.give_up_at().is_some_and(|at| self.local.now.ms >= at) {
            self.local.questions.give_up(self.local.now.ms, &mut self.answers);
            self.local.watch.add(Counter::DirectoryTemporary, self.answers.len() as u64);
            self.hand_out_answers();
        }
    }

    /// What was asked in this round leaves, a packet for each process. Links that break answer by breaking, and who
    /// hears that may ask the directory; so its packet is the last.
    pub(super) fn send_questions(&mut self) {
        let _ = self.local.passing.flush(self.local.now.ms, &mut self.news);
        self.tell_news();
        self.local.steps.flush(&mut self.answers);
        while !self.answers.is_empty() {
            self.hand_out_answers();
            self.local.steps.flush(&mut self.answers);
        }
        if self.local.questions.flush(self.local.now.ms).is_err() {
            self.directory_lost();
        }
    }

    /// Sessions that still wait hear their answers.
    fn hand_out_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for (token, outcome) in answers.drain(..) {
            let waits = matches!(
                self.slots.get_mut(token).map(|slot| slot.pending),
                Some(Pending::Question | Pending::Step | Pending::Passing | Pending::Keeping)
            );
            if waits {
                self.guarded(token, |shard| shard.resume(token, outcome));
            }
        }
        self.answers = answers;
    }

    pub(super) fn directory_lost(&mut self) {
        (self.shared.notify)(Notice::DirectoryLost { shard: self.local.number });
    }
}
