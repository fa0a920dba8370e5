//! Messages that could not be handed on at once: until when they wait, or for what.
//!
//! ```text
//! defer ─┬─► At(time) ── due ──────────────┐
//!        ├─► Parked(route, destination) ───┼─► Ready, then Trying (next_due) ─► settled: forget; or defer again
//!        └─► Held ── the operator's word ──┘
//! ```

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::time::Instant;

use smtp::envelope::Envelope;
use smtp::id::QueueId;
use spool::{Message, MessageKey};

use super::Service;
use crate::attempt::{Attempted, Deferred};
use crate::event::Event;
use crate::route::Destination;

/// A message that could not be handed on at once.
pub(crate) struct Waiting {
    pub(crate) id: QueueId,
    pub(crate) unix_ms: u64,
    pub(crate) octets: u64,
    pub(crate) sender: Option<Box<str>>,
    pub(crate) recipients: Vec<Deferred>,
    pub(crate) attempts: u32,
    pub(crate) next: Next,
    pub(crate) wish: Option<Wish>,
}

/// What happens next to a message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is with a thread.
    Trying,
    /// It is tried at this time.
    At(Instant),
    /// It waits for a connection of this route to this destination.
    Parked(usize, Destination),
    /// It is tried as soon as a thread is free.
    Ready,
    /// Nothing, until the operator says so.
    Held,
}

/// What the operator wants of a message that is being tried just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Hold,
    Retry,
    Remove,
}

impl Waiting {
    fn of(message: &Message, sender: Option<Box<str>>) -> Self {
        Self {
            id: message.id(),
            unix_ms: message.unix_ms(),
            octets: message.prepend().len() as u64 + message.body_octets(),
            sender,
            recipients: Vec::new(),
            attempts: 0,
            next: Next::Trying,
            wish: None,
        }
    }
}

impl Service {
    /// A message whose time has come again.
    pub(super) fn next_due(&mut self, message: &mut Message) -> bool {
        let now = Instant::now();
        loop {
            let (key, next) = match self.ready.pop_front() {
                Some(key) => (key, Next::Ready),
                None => match self.due.peek() {
                    Some(&Reverse((at, key))) if at <= now => {
                        self.due.pop();
                        (key, Next::At(at))
                    }
                    _ => return false,
                },
            };
            // It may have been moved, held or removed meanwhile.
            let Some(waiting) = self.waiting.get_mut(&key).filter(|waiting| waiting.next == next) else { continue };
            match self.follower.read(key, message) {
                Ok(()) => {
                    waiting.next = Next::Trying;
                    return true;
                }
                Err(spool::ReadTrouble::Unknown) => drop(self.waiting.remove(&key)),
                Err(spool::ReadTrouble::Unreadable) => {
                    let reason = "its record in the spool cannot be read now";
                    self.shared.events.event(&Event::Stuck { id: waiting.id, reason });
                    let at = now + self.retry.max;
                    waiting.next = Next::At(at);
                    self.due.push(Reverse((at, key)));
                }
            }
        }
    }

    pub(crate) fn forget(&mut self, key: MessageKey) {
        if let Some(waiting) = self.waiting.remove(&key) {
            self.let_go(waiting.id);
        }
    }

    /// It is no longer held; when that cannot be written, a later start holds a message that is not there.
    pub(crate) fn let_go(&mut self, id: QueueId) {
        if let Err(error) = self.held.remove(id) {
            self.shared.events.event(&Event::Stuck { id, reason: &format!("list of held messages: {error}") });
        }
    }

    pub(super) fn defer(&mut self, key: MessageKey, message: &Message, attempted: Attempted) {
        let Attempted { deferred, busy, postponed, sender, .. } = attempted;
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting::of(message, sender));
        let tried = busy.is_none() && postponed.is_none();
        waiting.attempts = waiting.attempts.saturating_add(u32::from(tried));
        let mut chance = [0; 4];
        // Without random numbers there is no spreading; nothing else depends on it.
        let _ = getrandom::fill(&mut chance);
        let chance = u32::from_le_bytes(chance);
        let after = match postponed {
            // A little later than the first who may try, and not all at once.
            Some(wait) => wait + self.retry.first.mul_f64(f64::from(chance) / f64::from(u32::MAX)),
            None => self.retry.after(waiting.attempts, chance),
        };
        let events = &self.shared.events;
        let (attempts, next_seconds) = (waiting.attempts, after.as_secs());
        if busy.is_none() {
            for Deferred { recipient, route, reason } in &deferred {
                self.shared.counts.deferred.fetch_add(1, Ordering::Relaxed);
                let route = route.and_then(|place| self.shared.routes.get(place)).map(|route| route.name());
                let (id, reason) = (message.id(), reason.as_str());
                events.event(&Event::Deferred { id, recipient, route, reason, attempts, next_seconds });
            }
        }
        waiting.recipients = deferred;
        let wish = waiting.wish.take();
        waiting.next = match (wish, busy) {
            (Some(Wish::Hold), _) => Next::Held,
            (Some(Wish::Retry), _) => Next::Ready,
            (_, Some((route, to))) => Next::Parked(route, to),
            (_, None) => Next::At(Instant::now() + after),
        };
        match waiting.next {
            Next::At(at) => self.due.push(Reverse((at, key))),
            Next::Ready => self.ready.push_back(key),
            Next::Parked(route, to) => self.parked.entry((route, to)).or_default().push_back(key),
            Next::Trying | Next::Held => {}
        }
        if wish == Some(Wish::Remove) {
            self.remove(key);
        }
    }

    /// A held message of an earlier life.
    pub(super) fn keep_held(&mut self, message: &Message) {
        let envelope = Envelope::decode(message.envelope()).unwrap_or_default();
        let sender = envelope.reverse_path().map(Box::from);
        let mut waiting = Waiting::of(message, sender);
        waiting.next = Next::Held;
        waiting.recipients = (0..)
            .zip(envelope.recipients())
            .filter(|&(index, _)| !message.is_settled(index))
            .map(|(_, recipient)| Deferred {
                recipient: recipient.address.to_owned(),
                route: self.shared.routes.find(&recipient),
                reason: "held".to_owned(),
            })
            .collect();
        self.waiting.insert(message.key(), waiting);
    }

    /// Routes that have connections again get what waits for them.
    pub(super) fn unpark(&mut self) {
        let Self { parked, shared, ready, waiting, .. } = self;
        parked.retain(|&(route, to), keys| {
            let mut room = shared.routes.get(route).map_or(usize::MAX, |route| route.room(to));
            while room > 0
                && let Some(key) = keys.pop_front()
            {
                if let Some(waiting) = waiting.get_mut(&key)
                    && waiting.next == Next::Parked(route, to)
                {
                    waiting.next = Next::Ready;
                    ready.push_back(key);
                    room -= 1;
                }
            }
            !keys.is_empty()
        });
    }

    /// Settles every recipient of a message without a word to anybody.
    pub(crate) fn remove(&mut self, key: MessageKey) {
        let mut message = Message::default();
        let recipients = match self.follower.read(key, &mut message) {
            Ok(()) => Envelope::decode(message.envelope()).ok().map(|envelope| envelope.recipients().len() as u32),
            Err(_) => None,
        };
        match recipients {
            Some(recipients) => self.follower.acknowledge(key, recipients.max(1), 0..recipients.max(1)),
            // What cannot be read goes where the operator can look at it.
            None => self.follower.set_aside(key),
        }
        self.pace.must_last();
        if let Some(waiting) = self.waiting.get(&key) {
            self.shared.events.event(&Event::Removed { id: waiting.id });
        }
        self.forget(key);
    }
}
