//! Pass-through: a client waits until the next hop has said what it thinks of the message.
//!
//! ```text
//! worker ──question + file (link)──► queue ─► pass thread ─► Route.deliver ─► one reply for all recipients
//!                                   └ somebody has it, others not: "keeping", the rest into the spool, then 250
//! ```
//!
//! - The client hears what the next hop said, as long as nobody has the message: then nothing is kept.
//! - As soon as one recipient has it (the next hop took it, or another recipient's route is an ordinary one), a
//!   refusal would make a twin. So the message is kept for those who are left, or its sender is told about them, and
//!   the reply is 250. The worker hears before that this begins: as with any commit, the answer is then the sync's,
//!   however late (DECISIONS H12), and nobody is told "try again" about what is kept.
//! - After the client's time nothing is kept any more; a next hop that takes the message then is a twin in the
//!   making, and said to be one.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use link::pass::{ANSWER, Answer, KEEPING, Question};
use link::{Link, Outbox};
use parking_lot::{Condvar, Mutex};
use rustix::event::PollFlags;
use smtp::client::Enhanced;
use smtp::envelope::{Envelope, Recipient};
use smtp::id::QueueId;
use spool::{Entry, Handed, Message, Trouble as SpoolTrouble};

use crate::attempt::{Attempted, End, conclude, is_over};
use crate::event::Event;
use crate::notice::Postbox;
use crate::route::{Destination, Mail, Routes, Trouble, Verdict};
use crate::service::Shared;

/// Messages whose clients wait.
#[derive(Default)]
pub(crate) struct Passing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: VecDeque<Asked>,
    over: bool,
}

/// A message whose client waits.
struct Asked {
    way: Way,
    message: Message,
    envelope: Envelope,
    until: Instant,
    /// Place of the first route that it takes.
    first: Option<usize>,
}

/// Where the answer goes.
struct Way {
    link: Arc<Link>,
    question: u64,
    id: QueueId,
}

/// What the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    code: u16,
    text: String,
    /// Recipients that have the message.
    taken: u32,
}

/// Messages that may wait for a thread.
const ASKED_MAX: usize = 4096;
/// A route may have a connection again without a word to us: messages of the queue use it too.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a worker is waited for that does not read its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// And of one that does not read that its message is being kept: what it has not heard by then may come too late for it.
const KEEPING_PATIENCE: Duration = Duration::from_secs(2);
/// Octets of a next hop's words that the client gets.
const TEXT_OCTETS_MAX: usize = 400;

impl Passing {
    /// A worker asks.
    pub(crate) fn ask(
        &self,
        shared: &Shared,
        link: &Arc<Link>,
        question_id: u64,
        question: Question,
        file: OwnedFd,
    ) -> Result<(), String> {
        let Question { id, unix_ms, until_ms, body_octets, envelope_octets, prepend_octets } = question;
        let id = QueueId(id);
        let way = Way { link: link.clone(), question: question_id, id };
        let left = Duration::from_millis(until_ms.saturating_sub(link::monotonic_ms()));
        let message = Message::handed(Handed { file, id, body_octets, envelope_octets, prepend_octets }, unix_ms)
            .map_err(|error| format!("{id}: {error}"))?;
        let envelope = Envelope::decode(message.envelope()).map_err(|bad| format!("{id}: its envelope is {bad}"))?;
        let passes = |place: &usize| shared.routes.get(*place).is_some_and(|route| route.passes());
        let first = envelope.recipients().filter_map(|to| shared.routes.find(&to)).find(passes);
        let asked = Asked { way, message, envelope, until: Instant::now() + left, first };
        let mut state = self.state.lock();
        if state.over || state.asked.len() >= ASKED_MAX {
            drop(state);
            asked.way.answer(shared, &Reply::own(451, "4.3.2 Too busy; please try again later"));
            return Ok(());
        }
        state.asked.push_back(asked);
        self.changed.notify_one();
        Ok(())
    }

    /// The next message that can be tried, or whose time is over; `None` at the end of everything.
    fn next(&self, routes: &Routes) -> Option<Asked> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let over = state.over;
            let room = |place: Option<usize>| {
                place.and_then(|place| routes.get(place)).is_none_or(|to| to.room(Destination::default()) > 0)
            };
            let may = |asked: &Asked| over || asked.until <= now || room(asked.first);
            if let Some(at) = state.asked.iter().position(may) {
                return state.asked.remove(at);
            }
            if over {
                return None;
            }
            if state.asked.is_empty() {
                self.changed.wait(&mut state);
            } else {
                self.changed.wait_for(&mut state, LOOK_EVERY);
            }
        }
    }

    /// What waits is answered "try again"; then its threads end.
    pub(crate) fn stop(&self) {
        self.state.lock().over = true;
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }
}

/// A thread's work.
pub(crate) fn run(shared: &Arc<Shared>) {
    while let Some(asked) = shared.passing.next(&shared.routes) {
        let reply = std::panic::catch_unwind(AssertUnwindSafe(|| pass(shared, &asked))).unwrap_or_else(|_| {
            let reason = "its route panicked while a client waited; this is a bug";
            shared.events.event(&Event::Stuck { id: asked.way.id, reason });
            Reply::own(451, "4.3.0 Local trouble; please try again later")
        });
        asked.way.answer(shared, &reply);
    }
}

impl Way {
    fn answer(&self, shared: &Shared, reply: &Reply) {
        let answer = Answer { code: reply.code, text: &reply.text, taken: reply.taken };
        if !self.say(ANSWER, ANSWER_PATIENCE, |to| answer.encode(to)) && reply.taken > 0 {
            let reason = "the worker whose client waited is gone";
            shared.events.event(&Event::InDoubt { id: self.id, recipients: reply.taken, reason });
        }
    }

    /// Whether the worker has it.
    fn say(&self, kind: u16, patience: Duration, payload: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut outbox = Outbox::new(1 << 16);
        if outbox.push(kind, self.question, payload).is_err() {
            return false;
        }
        let until = Instant::now() + patience;
        loop {
            match outbox.flush(&self.link) {
                Ok(true) => return true,
                Ok(false) if Instant::now() < until => {
                    let _ = self.link.wait(PollFlags::OUT, Some(Duration::from_millis(200)));
                }
                _ => return false,
            }
        }
    }
}

impl Reply {
    fn own(code: u16, text: &str) -> Self {
        Self { code, text: text.to_owned(), taken: 0 }
    }

    fn late(taken: u32) -> Self {
        Self { taken, ..Self::own(451, "4.4.5 Next hop did not answer in time; please send it again") }
    }

    /// What a next hop says when it refuses, as the end of our DATA.
    fn refusal(verdict: &Verdict) -> Self {
        let (class, trouble) = match verdict {
            Verdict::Never(trouble) => (5, trouble),
            Verdict::Later(trouble) | Verdict::Postponed(_, trouble) => (4, trouble),
            _ => return Self::own(451, "4.3.2 Too busy; please try again later"),
        };
        let said = trouble.said.as_deref().and_then(|said| {
            let (code, text) = said.split_once(' ')?;
            Some((code.parse::<u16>().ok()?, text))
        });
        // Only what is meant for the message: a refused login is not our client's (and comes as "later").
        match said.filter(|&(code, _)| code / 100 == class) {
            // It closes its connection, not ours.
            Some((421, _)) => Self::own(451, "4.4.2 Next hop closed the connection; please try again later"),
            Some((code, text)) => {
                // RFC 5321 §4.2.1: only x5z is about mail; anything else would be taken for our own state.
                let code = if code / 10 % 10 == 5 { code } else { class * 100 + if class == 5 { 54 } else { 51 } };
                let own = Enhanced::first_in(text.as_bytes()).is_some_and(|(own, _)| u16::from(own.class) == class);
                let status = if own { String::new() } else { format!("{} ", trouble.status) };
                let clean = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
                let text: String = text.chars().take(TEXT_OCTETS_MAX).map(clean).collect();
                Self { code, text: format!("{status}{text}").trim_end().to_owned(), taken: 0 }
            }
            // What is wrong between us and the next hop is the operator's to know, and in the log.
            None if class == 5 => Self::own(554, &format!("{} Next hop cannot take this message", trouble.status)),
            None => Self::own(451, &format!("{} Next hop cannot take it now; please try again later", trouble.status)),
        }
    }
}

/// Asks the next hops of one message.
fn pass(shared: &Arc<Shared>, asked: &Asked) -> Reply {
    let Asked { message, envelope, until, .. } = asked;
    let until = *until;
    if shared.passing.is_over() {
        return Reply::own(451, "4.3.2 Service is closing; please try again");
    }
    if Instant::now() >= until {
        return Reply::late(0);
    }
    let mail = Mail::new(envelope, message).awaited(until);
    let all: Vec<(u32, Recipient<'_>, Option<usize>)> =
        (0..).zip(envelope.recipients()).map(|(at, to)| (at, to, shared.routes.find(&to))).collect();
    let passes = |place: Option<usize>| place.and_then(|place| shared.routes.get(place)).filter(|to| to.passes());
    let spooled = all.iter().filter(|(_, _, place)| passes(*place).is_none()).count();
    // Room for what may have to be kept is looked for before a next hop may take anything.
    let mut kept = None;
    if all.len() > 1 {
        match begin(shared, asked) {
            Ok(begun) => kept = Some(begun),
            Err(reply) => return reply,
        }
    }
    let mut ends: Vec<End<'_>> = Vec::with_capacity(all.len());
    for place in all.iter().map(|&(_, _, place)| place).collect::<BTreeSet<_>>() {
        let Some(route) = passes(place) else { continue };
        let here: Vec<&(u32, Recipient<'_>, _)> = all.iter().filter(|(_, _, at)| *at == place).collect();
        let recipients: Vec<Recipient<'_>> = here.iter().map(|(_, to, _)| *to).collect();
        let mut verdicts = route.deliver(&mail, &recipients).into_iter();
        for &&(index, recipient, place) in &here {
            let verdict = match verdicts.next() {
                Some(Verdict::Busy(_)) => {
                    let text = "every connection to its next hop is in use";
                    Verdict::Later(Trouble::own(Enhanced::new(4, 3, 2), text))
                }
                Some(verdict) => verdict,
                None => Verdict::later("the route gave no verdict"),
            };
            ends.push(End { index, recipient, place, verdict });
        }
    }
    let has = |end: &&End<'_>| matches!(end.verdict, Verdict::Delivered | Verdict::Relayed { .. });
    let taken = ends.iter().filter(has).count() as u32;
    if taken == 0 && spooled == 0 {
        let later = ends.iter().find(|end| !matches!(end.verdict, Verdict::Never(_)));
        refused(shared, mail.id(), &ends);
        return later.or(ends.first()).map_or_else(|| Reply::late(0), |end| Reply::refusal(&end.verdict));
    }
    let whole = taken as usize == all.len();
    // Something has to become durable: a report, or the message for the rest.
    let keeps = !whole || !ends.iter().all(|end| is_over(envelope, &end.recipient, &end.verdict));
    let in_time = || Instant::now() < until && asked.way.say(KEEPING, KEEPING_PATIENCE, |_| ());
    if keeps && !in_time() && !whole {
        // The client has given up, or its worker is gone: it sends the message to everybody again.
        refused(shared, mail.id(), &ends);
        return Reply::late(taken);
    }
    let mut outcome = Attempted::default();
    conclude(shared, &mail, ends, &mut outcome);
    let id = mail.id();
    for deferred in &outcome.deferred {
        let route = deferred.route.and_then(|place| shared.routes.get(place)).map(|route| route.name());
        let (recipient, reason) = (&*deferred.recipient, &*deferred.reason);
        shared.events.event(&Event::Deferred { id, recipient, route, reason, attempts: 1, next_seconds: 0 });
    }
    let settled: BTreeSet<u32> = outcome.settled.iter().copied().collect();
    if settled.len() == all.len() {
        return Reply { taken, ..Reply::own(250, &format!("2.0.0 Ok: passed on as {id}")) };
    }
    let rest = envelope.only(|place| !settled.contains(&place));
    match keep(&mail, kept, &rest) {
        Ok(()) => Reply { taken, ..Reply::own(250, &format!("2.0.0 Ok: queued as {id}")) },
        Err(reply) => Reply { taken, ..reply },
    }
}

fn refused(shared: &Shared, id: QueueId, ends: &[End<'_>]) {
    for End { recipient, place, verdict, .. } in ends {
        let route = place.and_then(|place| shared.routes.get(place)).map_or("none", |route| route.name());
        if let Verdict::Later(trouble) | Verdict::Never(trouble) | Verdict::Postponed(_, trouble) = verdict {
            shared.events.event(&Event::Refused { id, recipient: recipient.address, route, reason: &trouble.text });
        }
    }
}

/// Where the rest of a message goes.
type Kept = (Arc<Postbox>, Entry);

fn begin(shared: &Arc<Shared>, asked: &Asked) -> Result<Kept, Reply> {
    let octets = asked.message.prepend().len() as u64 + asked.message.body_octets();
    let postbox = shared.postbox().map_err(|error| {
        shared.events.event(&Event::Stuck { id: asked.way.id, reason: &format!("spool: {error}") });
        local(SpoolTrouble::Temporary)
    })?;
    let entry = postbox.begin(asked.way.id, octets).map_err(local)?;
    Ok((postbox, entry))
}

/// Makes a message durable for those who do not have it.
fn keep(mail: &Mail<'_>, kept: Option<Kept>, rest: &Envelope) -> Result<(), Reply> {
    let (postbox, mut entry) = kept.ok_or_else(|| local(SpoolTrouble::Temporary))?;
    let read = mail.body(&mut |part| {
        postbox.append(&mut entry, part);
        Ok(())
    });
    if read.is_err() || entry.octets() != mail.body_octets() {
        return Err(local(SpoolTrouble::Temporary));
    }
    postbox.commit(entry, rest, mail.prepend()).map_err(local)
}

fn local(trouble: SpoolTrouble) -> Reply {
    match trouble {
        SpoolTrouble::NoSpace => Reply::own(452, "4.3.1 Insufficient storage; please try again later"),
        SpoolTrouble::Temporary => Reply::own(451, "4.3.0 Local trouble; please try again later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_hears() {
        let said = |class, said: &str| Trouble {
            status: Enhanced::new(class, 1, 1),
            text: "10.0.0.1:24: RCPT: secret".into(),
            remote: Some("10.0.0.1".into()),
            said: Some(said.into()),
        };
        let own = |class| Trouble::own(Enhanced::new(class, 4, 1), "10.0.0.1:24: connect: refused");
        for (verdict, expect) in [
            (Verdict::Never(said(5, "550 5.1.1 no such user")), "550 5.1.1 no such user"),
            (Verdict::Never(said(5, "550 no such user")), "550 5.1.1 no such user"),
            (Verdict::Never(said(5, "530 5.7.0 log in")), "554 5.7.0 log in"),
            (Verdict::Never(said(5, "552 5.2.2 full \u{fc}\u{1b}")), "552 5.2.2 full ??"),
            (Verdict::Later(said(4, "452 4.2.2 full")), "452 4.2.2 full"),
            (
                Verdict::Later(said(4, "421 4.3.2 bye")),
                "451 4.4.2 Next hop closed the connection; please try again later",
            ),
            (Verdict::Later(said(4, "432 4.7.12 later")), "451 4.7.12 later"),
            // A login that the next hop refused.
            (
                Verdict::Later(said(4, "535 5.7.8 wrong password")),
                "451 4.1.1 Next hop cannot take it now; please try again later",
            ),
            (Verdict::Later(own(4)), "451 4.4.1 Next hop cannot take it now; please try again later"),
            (Verdict::Never(own(5)), "554 5.4.1 Next hop cannot take this message"),
            (Verdict::Busy(Destination::default()), "451 4.3.2 Too busy; please try again later"),
        ] {
            let reply = Reply::refusal(&verdict);
            assert_eq!(format!("{} {}", reply.code, reply.text), expect);
            let mut payload = Vec::new();
            Answer { code: reply.code, text: &reply.text, taken: 0 }.encode(&mut payload);
            assert!(Answer::decode(&payload).is_ok(), "{expect}");
        }
        let long = Reply::refusal(&Verdict::Never(said(5, &format!("550 {}", "x".repeat(5000)))));
        assert!(long.text.len() <= TEXT_OCTETS_MAX + 10);
    }
}
