//! Hands events to the log writer without ever waiting for it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use link::message::Message;
use link::{Full, Link, Outbox};

use crate::board::Slot;
use crate::event::{Event, Level};
use crate::table::Counter;

/// A process' way to the log writer; clones share one bounded queue.
///
/// When the writer is slow or dead, log records are dropped and counted; audit records may use the rest of
/// the queue, and when that is full, too, the caller is told and must refuse what it would have recorded
/// (454 for AUTH, 451 for MAIL): nothing is done that leaves no trace.
#[derive(Clone)]
pub struct EventSender {
    queue: Arc<Mutex<Queue>>,
    slot: Slot,
    /// Log records below it are not even sent.
    level: Level,
}

struct Queue {
    link: Option<Link>,
    outbox: Outbox,
    /// Log records are taken up to here, audit records up to the end of the outbox.
    log_octets_max: usize,
    octets_max: usize,
}

/// What an audit record needs at most; room for so much is kept before work that ends in one begins.
const AUDIT_RESERVE: usize = 4 * 1024;

impl EventSender {
    /// A queue of at most `octets_max`, half of it for log records; sends once a link is [given](Self::connect).
    pub fn new(octets_max: usize, slot: Slot) -> EventSender {
        let queue = Queue { link: None, outbox: Outbox::new(octets_max), log_octets_max: octets_max / 2, octets_max };
        EventSender { queue: Arc::new(Mutex::new(queue)), slot, level: Level::Debug }
    }

    /// Without log records below `level`, which the log writer would throw away.
    pub fn at_level(mut self, level: Level) -> EventSender {
        self.level = level;
        self
    }

    /// Whether a log record of this level goes anywhere: asked before an expensive one is made.
    pub fn wants(&self, level: Level) -> bool {
        level >= self.level
    }

    /// Uses this link from now on: at start-up, and when the log writer was replaced. What waits stays.
    pub fn connect(&self, link: Link) {
        let mut queue = self.queue();
        queue.link = Some(link);
        queue.flush();
    }

    /// Hands an event over. [`Full`] only for audit records: the caller must not go on as if it were recorded.
    pub fn send(&self, event: &Event<'_>) -> Result<(), Full> {
        if !event.audit && !self.wants(event.level) {
            return Ok(());
        }
        let mut payload = Vec::with_capacity(256);
        event.encode(&mut payload);
        let message = Message::Event(&payload);
        let mut queue = self.queue();
        let room = event.audit || queue.outbox.len() + payload.len() < queue.log_octets_max;
        let pushed = if room { queue.outbox.push(message.kind(), 0, |to| message.encode(to)) } else { Err(Full) };
        match pushed {
            Ok(()) => Ok(()),
            Err(full) if event.audit => {
                self.slot.add(Counter::AuditFull, 1);
                Err(full)
            }
            Err(_) => {
                self.slot.add(Counter::LogDropped, 1);
                Ok(())
            }
        }
    }

    /// Whether work that will need an audit record may begin.
    pub fn audit_ready(&self) -> bool {
        let queue = self.queue();
        queue.outbox.len() + AUDIT_RESERVE <= queue.octets_max
    }

    /// Sends what waits, as far as the socket takes it: once per turn of a loop. `true` when nothing waits
    /// any more.
    pub fn flush(&self) -> bool {
        self.queue().flush()
    }

    /// The lock is held for a copy or a send that does not block; a panic under it cannot leave the queue
    /// half changed in a way that matters more than the record itself.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn flush(&mut self) -> bool {
        let Some(link) = &self.link else { return self.outbox.is_empty() };
        match self.outbox.flush(link) {
            Ok(sent) => sent,
            // The writer is gone; the supervisor brings a new one and then a new link.
            Err(error) => {
                debug_assert_ne!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
                self.link = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use link::{Received, Role, message::messages};

    fn names(link: &Link) -> Vec<String> {
        let (mut names, mut packet) = (Vec::new(), Vec::new());
        while let Received::Packet { fds } = link.receive(&mut packet).unwrap() {
            for item in messages(&packet, fds) {
                let (_, Message::Event(payload), _) = item.unwrap() else { panic!("only events are sent") };
                names.push(Event::decode(payload).unwrap().name.into_owned());
            }
        }
        names
    }

    #[test]
    fn logs_are_dropped_and_counted_audit_records_are_refused_aloud() {
        let board = Board::create(1).unwrap();
        let slot = board.claim(0, Role::Worker, 1, 0).unwrap();
        let sender = EventSender::new(16 * 1024, slot);
        let long = vec![b'x'; 1000];
        for _ in 0..100 {
            sender.send(&Event::log("log", crate::Level::Info, 0).untrusted("x", long.clone())).unwrap();
        }
        let dropped = board.counter(Counter::LogDropped);
        assert!(dropped > 80, "{dropped}");
        assert!(sender.audit_ready());
        let audits =
            (0..100).take_while(|_| sender.send(&Event::audit("audit", 0).untrusted("x", long.clone())).is_ok());
        let audits = audits.count();
        assert!((4..=10).contains(&audits), "{audits}");
        assert!(!sender.audit_ready());
        assert_eq!(board.counter(Counter::AuditFull), 1);

        // The writer comes, dies, comes again: what waits arrives once and in order.
        let (here, there) = Link::pair().unwrap();
        drop(there);
        sender.connect(here);
        assert!(!sender.flush());
        let (here, there) = Link::pair().unwrap();
        sender.connect(here);
        assert!(sender.flush() && sender.audit_ready());
        let names = names(&there);
        assert_eq!(names.iter().filter(|name| *name == "audit").count(), audits);
        assert_eq!(names.len() as u64, 100 - dropped + audits as u64);
    }
}
