//! What the loop shares: with its threads, with routes, and with the process around.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use link::Link;
use parking_lot::Mutex;
use smtp::envelope::Recipient;
use smtp::id::QueueId;
use spool::{Disk, Doorbell, Floors, Hooks, Message, MessageKey, Options, Writer};

use crate::attempt::Attempted;
use crate::event::{Event, Events};
use crate::notice::{self, Fate, Postbox};
use crate::pass::Passing;
use crate::queue::{Answer, Request};
use crate::route::{Mail, Routes};

/// Numbers for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Recipients that got their mail since the start.
    pub delivered: u64,
    /// Recipients that will not get it, since the start.
    pub failed: u64,
    /// Attempts that failed, per recipient, since the start.
    pub deferred: u64,
    /// Messages being handed on now.
    pub in_flight: u64,
    /// Messages that wait for another attempt.
    pub waiting: u64,
    /// Messages set aside as damaged since the start.
    pub set_aside: u64,
}

/// What the process around gives to a service that runs.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

/// What every thread of delivery sees.
pub(crate) struct Shared {
    pub(crate) routes: Routes,
    /// Messages whose clients wait.
    pub(crate) passing: Passing,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) expire: Duration,
    pub(crate) delay_notice: Option<Duration>,
    pub(super) hostname: String,
    pub(super) floors: Floors,
    pub(super) disk: Arc<dyn Disk>,
    /// Made when the first notice is written.
    pub(super) postbox: Mutex<Option<Arc<Postbox>>>,
    pub(super) inbox: Mutex<Inbox>,
    /// Somebody has put something into the inbox since the loop looked.
    pub(super) rung: AtomicBool,
    pub(super) wake: OwnedFd,
    pub(crate) counts: Counts,
}

/// What the loop takes at the beginning of a turn.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(super) links: Vec<Link>,
    pub(super) bells: Vec<Doorbell>,
    /// Who has the message of an attempt that goes on: of how many, and who.
    pub(crate) settled: Vec<(MessageKey, u32, Vec<u32>)>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) requests: Vec<(Request, Sender<Answer>)>,
    pub(super) stop: bool,
}

/// What [`Stats`] are read from.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) delivered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(super) deferred: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) set_aside: AtomicU64,
}

/// A message and how its attempt ended.
pub(crate) struct Outcome {
    pub(super) message: Message,
    pub(super) attempted: Attempted,
}

/// Notices are few.
const NOTICE_SEGMENT_OCTETS: u64 = 1 << 20;
/// How long somebody who asks about the queue is kept waiting.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

impl Handle {
    /// Doorbells of a worker arrive on this link; when it closes, its spool is looked at.
    pub fn follow(&self, link: Link) {
        self.shared.tell(|inbox| inbox.links.push(link));
    }

    /// A doorbell that came another way.
    pub fn ring(&self, bell: Doorbell) {
        self.shared.tell(|inbox| inbox.bells.push(bell));
    }

    /// Begin nothing new, end what is under way; then [`Service::run`](crate::Service::run) returns.
    pub fn stop(&self) {
        self.shared.tell(|inbox| inbox.stop = true);
    }

    /// What the operator asks about the queue, or wants done with it; `None` when the service has ended or
    /// does not answer.
    pub fn queue(&self, request: Request) -> Option<Answer> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.shared.tell(|inbox| inbox.requests.push((request, answer)));
        answered.recv_timeout(ANSWER_PATIENCE).ok()
    }

    /// Numbers now.
    pub fn stats(&self) -> Stats {
        let counts = &self.shared.counts;
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            delivered: now(&counts.delivered),
            failed: now(&counts.failed),
            deferred: now(&counts.deferred),
            in_flight: now(&counts.in_flight),
            waiting: now(&counts.waiting),
            set_aside: now(&counts.set_aside),
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Shared {
    /// Where notices are written.
    pub(crate) fn postbox(self: &Arc<Self>) -> io::Result<Arc<Postbox>> {
        let mut postbox = self.postbox.lock();
        if let Some(postbox) = &*postbox {
            return Ok(postbox.clone());
        }
        let (bells, trouble) = (Arc::downgrade(self), Arc::downgrade(self));
        let hooks = Hooks {
            doorbell: Box::new(move |bell| {
                if let Some(shared) = bells.upgrade() {
                    shared.tell(|inbox| inbox.bells.push(bell));
                }
            }),
            trouble: Box::new(move |reason| {
                if let Some(shared) = trouble.upgrade() {
                    shared.events.event(&Event::Link { reason });
                }
            }),
        };
        let options = Options {
            segment_octets: NOTICE_SEGMENT_OCTETS,
            pool_octets: 8 << 20,
            floors: self.floors,
            ..Options::default()
        };
        let made = Arc::new(Postbox::new(Writer::open(self.disk.clone(), options, hooks)?));
        *postbox = Some(made.clone());
        Ok(made)
    }

    /// Tells the sender what became of these recipients; well when it is durable.
    pub(crate) fn notify(
        self: &Arc<Self>,
        mail: &Mail<'_>,
        about: &[(Recipient<'_>, Fate)],
    ) -> Result<QueueId, String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let now = unix_ms();
        let id = QueueId::new(now, u128::from_le_bytes(random));
        let (envelope, message) =
            notice::make(mail, about, &self.hostname, id, now).map_err(|error| error.to_string())?;
        let postbox = self.postbox().map_err(|error| error.to_string())?;
        postbox.post(id, &envelope, &message)?;
        Ok(id)
    }

    pub(crate) fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        what(&mut self.inbox.lock());
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Full means that it is rung.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}
