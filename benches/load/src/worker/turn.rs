//! The turn of one session: what came is read, what the dialogue wants is done, and its end is counted.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::{Alarm, Session, Worker};
use crate::dialogue::{Notes, Then, Trouble};
use crate::doubts::{NO_DESCRIPTOR, NO_PORT};
use crate::plan::{Kind, Tls};

/// Characters of a greeting that are kept.
const GREETING_MAX: usize = 200;
/// Reads and pieces of a message in one turn: neither a server that floods nor one that takes as fast as we send may
/// keep the others waiting.
const STEPS_MAX: usize = 32;
/// Octets that a server may send without anything that the dialogue can take. A whole handshake, and the longest reply
/// that is waited for, are less than half of it.
const UNTAKEN_OCTETS_MAX: usize = 256 * 1024;

impl Worker {
    pub(super) fn turn(&mut self, slot: usize) {
        let Some(mut session) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        let mut notes = Notes::default();
        let outcome = self.advance(slot, &mut session, &mut notes);
        let now = Instant::now();
        let scenario = usize::from(session.scenario);
        if !session.warm {
            let counts = &mut self.interval.counts[scenario];
            counts.messages += notes.messages;
            counts.message_octets += notes.message_octets;
            for (measure, micros) in notes.times {
                self.interval.part(scenario, measure, micros);
            }
        }
        session.spoiled |= !notes.troubles.is_empty();
        for trouble in &notes.troubles {
            self.count_trouble(scenario, trouble, session.warm);
        }
        match outcome {
            Ok(false) => self.slots[slot] = Some(session),
            Ok(true) => self.close(slot, *session, now, None),
            Err(trouble) => self.close(slot, *session, now, Some(trouble)),
        }
    }

    /// Receives and sends what is possible in one turn; true when the session is over.
    fn advance(&mut self, slot: usize, session: &mut Session, notes: &mut Notes) -> Result<bool, Trouble> {
        // A server that answers at once is read several times in one turn: the clock is read as often.
        let mut now = Instant::now();
        for _ in 0..STEPS_MAX {
            let sent = session.transport.octets_sent;
            if let Err(error) = session.transport.flush() {
                // What the server said before it closed is still to be read.
                if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
                    return self.lost(session, &error);
                }
            }
            if session.transport.octets_sent > sent {
                session.moved = now;
            }
            if session.more && session.transport.waiting() == 0 {
                session.more = false;
                self.out.clear();
                let then = session.dialogue.send_more(&mut self.out, &mut self.random, now, notes)?;
                if self.follow(slot, session, then, now)? {
                    return Ok(true);
                }
                continue;
            }
            let octets = match session.transport.read(&mut self.buffer, &mut session.received) {
                Ok(None) => return Ok(false),
                Ok(Some(0)) => {
                    let ended = io::Error::new(ErrorKind::UnexpectedEof, "closed by the server");
                    return self.lost(session, &ended);
                }
                Ok(Some(octets)) => octets,
                Err(error) => return self.lost(session, &error),
            };
            debug_assert!(octets > 0);
            now = Instant::now();
            session.moved = now;
            session.untaken += octets;
            if session.untaken > UNTAKEN_OCTETS_MAX {
                let why = format!("more than {} KiB, and no reply in them", UNTAKEN_OCTETS_MAX / 1024);
                return session.given_up("protocol", &why).map_or(Ok(true), Err);
            }
            if session.transport.is_handshaking() {
                continue;
            }
            if self.greeting.is_none() {
                self.greeting = greeting(&session.received);
            }
            if !session.secured
                && let Some((words, resumed)) = session.transport.tls_words()
            {
                session.secured = true;
                let scenario = usize::from(session.scenario);
                if !session.warm {
                    *self.interval.tls.entry(words).or_default() += 1;
                    self.interval.counts[scenario].resumed += u64::from(resumed);
                }
                if self.specs[scenario].may_bind() {
                    let wanted = self.plan.scenarios[scenario].channel_binding;
                    let failed = |error: io::Error| Trouble::new("TLS handshake", "no binding", error.to_string());
                    session.dialogue.bind(session.transport.bindings(wanted).map_err(failed)?);
                }
                if self.plan.scenarios[scenario].tls == Tls::Starttls {
                    self.out.clear();
                    let then = session.dialogue.tls_started(&mut self.out, &mut self.random, now, notes)?;
                    if self.follow(slot, session, then, now)? {
                        return Ok(true);
                    }
                }
            }
            while !session.received.is_empty() {
                self.out.clear();
                let unsent = session.transport.waiting();
                let (used, then) = session
                    .dialogue
                    .receive(&session.received, unsent, &mut self.out, &mut self.random, now, notes)
                    .inspect_err(|_| {
                        let _ = session.transport.queue(&self.out);
                        let _ = session.transport.flush();
                    })?;
                session.received.drain(..used);
                if used > 0 {
                    session.untaken = 0;
                }
                if self.follow(slot, session, then, now)? {
                    return Ok(true);
                }
                if used == 0 || then == Then::StartTls {
                    break;
                }
            }
            if session.received.is_empty() {
                // An idle connection holds no buffer.
                session.received = Vec::new();
            }
        }
        self.again.push(slot);
        Ok(false)
    }

    /// Does what the dialogue wants; true when the session is over.
    fn follow(&mut self, slot: usize, session: &mut Session, then: Then, now: Instant) -> Result<bool, Trouble> {
        let failed = |error: io::Error| Trouble::new("send", &kind(&error), error.to_string());
        session.transport.queue(&self.out).map_err(failed)?;
        match then {
            Then::Going => {}
            Then::More => session.more = true,
            Then::StartTls => {
                let scenario = usize::from(session.scenario);
                let resume = self.random.share() < self.plan.scenarios[scenario].resume;
                session.transport.start_tls(&self.tls[scenario], resume).map_err(failed)?;
            }
            Then::Held(seconds) if !session.held => {
                session.held = true;
                match seconds {
                    // Idle sessions belong to the crowd, others go after a while.
                    None => {
                        session.place = self.held.len();
                        self.held.push(slot);
                        self.interval.counts[usize::from(session.scenario)].done += 1;
                        let micros = now.saturating_duration_since(session.intended).as_micros() as u64;
                        self.interval.session(usize::from(session.scenario), micros);
                    }
                    Some(seconds) => {
                        let at = std::cmp::Reverse(now + Duration::from_secs_f64(seconds));
                        self.alarms.push((at, Alarm::Leave, slot, self.generations[slot]));
                    }
                }
            }
            Then::Held(_) => {}
            Then::Done => {
                let _ = session.transport.flush();
                return Ok(true);
            }
            Then::Reset => {
                let _ = session.transport.flush();
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lost(&mut self, session: &mut Session, error: &io::Error) -> Result<bool, Trouble> {
        if matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        ) {
            return Err(Trouble::new("connect", &kind(error), error.to_string()));
        }
        if session.transport.is_handshaking() {
            return Err(Trouble::new("TLS handshake", &kind(error), error.to_string()));
        }
        let code = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "lost",
            _ => &kind(error),
        };
        session.dialogue.lost(code, &error.to_string()).map(|()| true)
    }

    pub(super) fn close(&mut self, slot: usize, session: Session, now: Instant, trouble: Option<Trouble>) {
        let scenario = usize::from(session.scenario);
        let is_idle = self.plan.scenarios[scenario].kind == Kind::Idle;
        let was_held = is_idle && session.held;
        let good = trouble.is_none() && !session.spoiled;
        if let Some(trouble) = &trouble {
            self.count_trouble(scenario, trouble, session.warm);
        }
        if was_held {
            // The last of them takes its place: a whole crowd may be lost at once.
            self.held.swap_remove(session.place);
            if let Some(last) = self.held.get(session.place).and_then(|&slot| self.slots[slot].as_mut()) {
                last.place = session.place;
            }
            self.crowd_lost += 1;
        } else if is_idle {
            self.crowd_lost += 1;
        } else {
            self.active -= 1;
        }
        if !session.warm {
            let counts = &mut self.interval.counts[scenario];
            match good {
                true if !was_held => {
                    counts.done += 1;
                    counts.writes += session.transport.writes;
                    counts.octets_sent += session.transport.octets_sent;
                    let micros = now.saturating_duration_since(session.intended).as_micros() as u64;
                    self.interval.session(scenario, micros);
                }
                _ => counts.failed += 1,
            }
        }
        if self.plan.scenarios[scenario].kind == Kind::Rude {
            session.transport.reset();
        }
        // Dropping closes; the registration goes with the descriptor.
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        self.free.push(slot);
    }
}

/// The words of a whole greeting: mostly they name the program and its version.
fn greeting(received: &[u8]) -> Option<String> {
    let line = received.split(|&octet| octet == b'\n').next().filter(|line| line.len() < received.len())?;
    let words = String::from_utf8_lossy(line.strip_prefix(b"220")?.get(1..)?).into_owned();
    Some(words.chars().filter(|c| !c.is_control()).take(GREETING_MAX).collect())
}

/// A short name of an error.
pub(super) fn kind(error: &io::Error) -> String {
    let is = |errno: rustix::io::Errno| error.raw_os_error() == Some(errno.raw_os_error());
    match error.kind() {
        _ if is(rustix::io::Errno::MFILE) || is(rustix::io::Errno::NFILE) => NO_DESCRIPTOR.to_owned(),
        ErrorKind::AddrNotAvailable => NO_PORT.to_owned(),
        ErrorKind::Other => error.to_string(),
        kind => kind.to_string(),
    }
}
