//! One attempt to hand a message on: from its recipients to routes, from verdicts to what is settled, told and left.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smtp::client::Enhanced;
use smtp::envelope::{Envelope, Recipient};
use smtp::id::QueueId;
use spool::{BodyTrouble, Message};

use crate::event::Event;
use crate::notice::{self, Fate, NotTold};
use crate::route::{Destination, Mail, Trouble, Verdict};
use crate::service::{Shared, unix_ms};

/// One attempt's end.
#[derive(Default)]
pub(crate) struct Attempted {
    pub(crate) recipients: u32,
    pub(crate) settled: Vec<u32>,
    pub(crate) deferred: Vec<Deferred>,
    /// Of those: whose sender was told so now.
    pub(crate) told: Vec<u32>,
    /// A route had no connection for it: its place, and to where.
    pub(crate) busy: Option<(usize, Destination)>,
    /// No attempt was made for any that is deferred, and none should be for so long.
    pub(crate) postponed: Option<Duration>,
    pub(crate) sender: Option<Box<str>>,
    pub(crate) damage: Option<Damage>,
    /// If it came again nobody could tell: its outcome need not be durable.
    pub(crate) may_repeat: bool,
}

pub(crate) struct Deferred {
    pub(crate) recipient: String,
    /// Place of the route.
    pub(crate) route: Option<usize>,
    pub(crate) reason: String,
}

pub(crate) enum Damage {
    /// Its octets are not those that were accepted.
    Body,
    /// Cannot be tried by this program.
    Stuck(String),
}

/// A panic in a route is that message's trouble and nobody else's.
pub(crate) fn attempt_contained(shared: &Arc<Shared>, message: &Message) -> Attempted {
    std::panic::catch_unwind(AssertUnwindSafe(|| attempt(shared, message))).unwrap_or_else(|_| {
        let damage = Damage::Stuck("its route panicked; this is a bug".to_owned());
        Attempted { damage: Some(damage), ..Attempted::default() }
    })
}

/// One attempt for all recipients that are not settled.
fn attempt(shared: &Arc<Shared>, message: &Message) -> Attempted {
    let mut outcome = Attempted::default();
    let envelope = match Envelope::decode(message.envelope()) {
        Ok(envelope) => envelope,
        Err(bad) => {
            outcome.damage = Some(Damage::Stuck(format!("its envelope is {bad}")));
            return outcome;
        }
    };
    match message.verify() {
        Ok(()) => {}
        Err(BodyTrouble::Damaged) => {
            outcome.damage = Some(Damage::Body);
            return outcome;
        }
        Err(BodyTrouble::Unreadable(error)) => {
            outcome.damage = Some(Damage::Stuck(format!("its body cannot be read: {error}")));
            return outcome;
        }
    }
    outcome.recipients = envelope.recipients().len() as u32;
    outcome.may_repeat = true;
    let open: Vec<(u32, Recipient<'_>)> =
        (0..).zip(envelope.recipients()).filter(|&(index, _)| !message.is_settled(index)).collect();
    let recipients = outcome.recipients;
    let note = |to: &[Recipient<'_>], verdicts: &[Verdict]| {
        let settled: Vec<u32> = (to.iter().zip(verdicts))
            .filter(|(to, verdict)| is_over(&envelope, to, verdict))
            .filter_map(|(to, _)| open.iter().find(|(_, known)| std::ptr::eq(known.address, to.address)))
            .map(|&(index, _)| index)
            .collect();
        if !settled.is_empty() && settled.len() < open.len() {
            shared.tell(|inbox| inbox.settled.push((message.key(), recipients, settled)));
        }
    };
    let mail = Mail::new(&envelope, message).heard_by(&note);
    let places: Vec<Option<usize>> = open.iter().map(|(_, recipient)| shared.routes.find(recipient)).collect();
    let mut ends: Vec<End<'_>> = Vec::with_capacity(open.len());
    for place in places.iter().copied().collect::<BTreeSet<_>>() {
        let here: Vec<&(u32, Recipient<'_>)> =
            open.iter().zip(&places).filter(|&(_, at)| *at == place).map(|(recipient, _)| recipient).collect();
        let recipients: Vec<Recipient<'_>> = here.iter().map(|&&(_, recipient)| recipient).collect();
        let route = place.and_then(|place| shared.routes.get(place));
        outcome.may_repeat &= route.is_some_and(|route| route.may_repeat());
        let verdicts = match route {
            Some(route) => route.deliver(&mail, &recipients),
            None => {
                let none = "its domain has no route and there is no default one; add a route";
                vec![Verdict::Later(Trouble::own(Enhanced::new(4, 3, 5), none)); recipients.len()]
            }
        };
        if ends.len() + here.len() < open.len() {
            mail.ended(&recipients, &verdicts);
        }
        let mut verdicts = verdicts.into_iter();
        for &&(index, recipient) in &here {
            let verdict = verdicts.next().unwrap_or_else(|| Verdict::later("the route gave no verdict"));
            ends.push(End { index, recipient, place, verdict });
        }
    }
    conclude(shared, &mail, ends, &mut outcome);
    if !outcome.deferred.is_empty() {
        outcome.sender = envelope.reverse_path().map(Box::from);
    }
    outcome
}

/// Whether nothing is left to do for a recipient: it has the message, and nobody wants to hear of that.
pub(crate) fn is_over(envelope: &Envelope, to: &Recipient<'_>, verdict: &Verdict) -> bool {
    let fate = match verdict {
        Verdict::Delivered => Fate::Delivered,
        Verdict::Relayed { notifies: true, .. } => return true,
        Verdict::Relayed { host, .. } => Fate::Relayed(host.clone()),
        _ => return false,
    };
    notice::wanted(envelope, to.notify, &fate).is_err()
}

/// How an attempt ended for one recipient.
pub(crate) struct End<'a> {
    pub(crate) index: u32,
    pub(crate) recipient: Recipient<'a>,
    pub(crate) place: Option<usize>,
    pub(crate) verdict: Verdict,
}

/// From verdicts to what is settled, who is told, and what waits.
pub(crate) fn conclude(shared: &Arc<Shared>, mail: &Mail<'_>, ends: Vec<End<'_>>, outcome: &mut Attempted) {
    let age = Duration::from_millis(unix_ms().saturating_sub(mail.unix_ms()));
    let expired = age >= shared.expire;
    let id = mail.id();
    let mut about: Vec<(Recipient<'_>, Fate)> = Vec::new();
    // Failures that are settled once the notice is durable.
    let mut failures: Vec<(End<'_>, Trouble)> = Vec::new();
    let wait = |outcome: &mut Attempted, end: &End<'_>, reason: String| {
        outcome.deferred.push(Deferred { recipient: end.recipient.address.to_owned(), route: end.place, reason });
    };
    // Whose sender hears now that they wait.
    let mut told: Vec<u32> = Vec::new();
    let mut tried = false;
    let mut failed = false;
    let mut postponed: Option<Duration> = None;
    for end in ends {
        let route = end.place.and_then(|place| shared.routes.get(place)).map_or("none", |route| route.name());
        let recipient = end.recipient.address;
        let fate = match &end.verdict {
            Verdict::Delivered => Some(Fate::Delivered),
            Verdict::Relayed { host, notifies: false } => Some(Fate::Relayed(host.clone())),
            Verdict::Relayed { notifies: true, .. } => None,
            Verdict::Busy(to) => {
                outcome.busy = outcome.busy.or(end.place.map(|place| (place, *to)));
                wait(outcome, &end, "waits for a free connection to its next hop".to_owned());
                continue;
            }
            Verdict::Later(trouble) | Verdict::Postponed(_, trouble) | Verdict::Never(trouble) => {
                let never = matches!(end.verdict, Verdict::Never(_));
                if let Verdict::Postponed(time, _) = end.verdict {
                    postponed = Some(postponed.map_or(time, |least| least.min(time)));
                } else {
                    tried = true;
                }
                let mut trouble = trouble.clone();
                if !never && !expired {
                    failed |= !matches!(end.verdict, Verdict::Postponed(..));
                    let late = shared.delay_notice.is_some_and(|after| age >= after) && !mail.is_told(end.index);
                    let until_ms = mail.unix_ms().saturating_add(shared.expire.as_millis() as u64);
                    let fate = Fate::Delayed(trouble.clone(), until_ms);
                    if late && notice::wanted(mail.envelope, end.recipient.notify, &fate).is_ok() {
                        about.push((end.recipient, fate));
                        told.push(end.index);
                    }
                    wait(outcome, &end, trouble.text);
                    continue;
                }
                if !never {
                    let days = shared.expire.as_secs_f64() / 86_400.0;
                    (trouble.status, trouble.text) =
                        (Enhanced::new(4, 4, 7), format!("not delivered within {days:.1} days: {}", trouble.text));
                }
                let fate = Fate::Failed(trouble.clone());
                match notice::wanted(mail.envelope, end.recipient.notify, &fate) {
                    Ok(()) => {
                        about.push((end.recipient, fate));
                        failures.push((end, trouble));
                    }
                    // Nobody may be told, so it is not dropped before its time: the operator sees it in the queue.
                    Err(NotTold::NullSender | NotTold::Stranger) if !expired => {
                        failed = true;
                        wait(
                            outcome,
                            &end,
                            format!("refused for good, and its sender may not be told: {}", trouble.text),
                        );
                    }
                    Err(_) => {
                        outcome.settled.push(end.index);
                        shared.failed(id, recipient, route, &trouble.text, None);
                    }
                }
                continue;
            }
        };
        tried = true;
        outcome.settled.push(end.index);
        shared.counts.delivered.fetch_add(1, Ordering::Relaxed);
        shared.events.event(&Event::Delivered { id, recipient, route });
        if let Some(fate) = fate.filter(|fate| notice::wanted(mail.envelope, end.recipient.notify, fate).is_ok()) {
            about.push((end.recipient, fate));
        }
    }
    outcome.postponed = postponed.filter(|_| !tried);
    // Who waits for a connection only would take those along, too soon, who were refused for now.
    outcome.busy = outcome.busy.filter(|_| !failed);
    if about.is_empty() {
        return;
    }
    // Its sender would hear twice.
    outcome.may_repeat = false;
    match shared.notify(mail, &about) {
        Ok(notice) => {
            if !told.is_empty() {
                shared.events.event(&Event::Delayed { id, recipients: told.len(), notice });
            }
            outcome.told = told;
            for (end, trouble) in failures {
                outcome.settled.push(end.index);
                let route = end.place.and_then(|place| shared.routes.get(place)).map_or("none", |route| route.name());
                shared.failed(id, end.recipient.address, route, &trouble.text, Some(notice));
            }
        }
        Err(why) => {
            shared.events.event(&Event::Stuck { id, reason: &format!("no notice could be written: {why}") });
            for (end, trouble) in failures {
                wait(outcome, &end, format!("{}; the notice could not be written: {why}", trouble.text));
            }
        }
    }
}

impl Shared {
    fn failed(&self, id: QueueId, recipient: &str, route: &str, reason: &str, notice: Option<QueueId>) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        self.events.event(&Event::Failed { id, recipient, route, reason, notice });
    }
}
