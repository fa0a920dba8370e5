//! The operator's view of what waits, and hand in it.
//!
//! Everything here happens between two turns of the service's loop, so it cannot meet a message halfway: one
//! that is with a thread just now gets the operator's wish when that attempt is over.
//!
//! Listed is what could not be handed on at once. Messages on their first way out, and those that are still
//! unread behind them in the spool, are only counted ([`Summary`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use smtp::id::QueueId;
use spool::{Message, MessageKey};

use crate::service::{Next, Service, Waiting, Wish, unix_ms};

/// Which messages; what is not set does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these.
    pub ids: Vec<QueueId>,
    /// From this address, any case; empty for the null sender.
    pub sender: Option<String>,
    /// For this address, any case.
    pub recipient: Option<String>,
    /// For somebody in this domain.
    pub domain: Option<String>,
    /// Accepted at least so long ago.
    pub older_ms: Option<u64>,
}

impl Filter {
    fn fits(&self, waiting: &Waiting, now_ms: u64) -> bool {
        let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
        let any = |test: &dyn Fn(&str) -> bool| waiting.recipients.iter().any(|to| test(&to.recipient));
        let domain_of = |address: &str| address.rsplit_once('@').map(|(_, domain)| domain.to_owned());
        (self.ids.is_empty() || self.ids.contains(&waiting.id))
            && self.sender.as_ref().is_none_or(|sender| same(sender, waiting.sender.as_deref().unwrap_or_default()))
            && self.recipient.as_ref().is_none_or(|recipient| any(&|address| same(recipient, address)))
            && self
                .domain
                .as_ref()
                .is_none_or(|domain| any(&|address| domain_of(address).is_some_and(|its| same(domain, &its))))
            && self.older_ms.is_none_or(|age| now_ms.saturating_sub(waiting.unix_ms) >= age)
    }
}

/// What the operator asks or wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The oldest of these, at most so many.
    List(Filter, usize),
    /// One message with its header.
    Show(QueueId),
    /// Leave these alone until they are released, also after a restart.
    Hold(Filter),
    /// Go on with these that are held, at once.
    Release(Filter),
    /// Try these now, held ones not.
    Retry(Filter),
    /// Take these out; nobody is told.
    Remove(Filter),
    /// Numbers.
    Stats,
}

/// What the operator is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Messages, and how many fitted in all.
    Entries(Vec<Entry>, usize),
    /// One message and its header (what we added, then the beginning of what the client sent).
    Shown(Box<Entry>, Vec<u8>),
    /// No such message waits.
    Unknown,
    /// So many were changed.
    Changed(usize),
    /// It did not work, for this reason, after so many.
    Failed(usize, String),
    /// Numbers.
    Stats(Summary),
}

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: QueueId,
    /// When it was accepted, milliseconds since 1970.
    pub unix_ms: u64,
    /// Its length.
    pub octets: u64,
    /// `None` is the null sender.
    pub sender: Option<String>,
    /// Attempts so far, since this process began.
    pub attempts: u32,
    /// What happens next.
    pub state: EntryState,
    /// Who does not have it yet, and why.
    pub recipients: Vec<WaitingRecipient>,
}

/// What happens next to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It is being tried, or will be as soon as a thread is free.
    Trying,
    /// It is tried again in so many seconds.
    Waiting(u64),
    /// It waits for a connection to its next hop.
    Queued,
    /// The operator holds it.
    Held,
}

/// Somebody who does not have the message yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRecipient {
    /// The address; empty when the envelope cannot be read.
    pub address: String,
    /// The route's name; `None`: there is none.
    pub route: Option<String>,
    /// Why the last attempt failed.
    pub reason: String,
}

/// Numbers about the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages in the spool that are not settled.
    pub messages: usize,
    /// Of these: with a thread, or about to be.
    pub trying: usize,
    /// Wait for their next attempt.
    pub waiting: usize,
    /// Wait for a connection.
    pub queued: usize,
    /// Held.
    pub held: usize,
    /// When the oldest that waits was accepted, milliseconds since 1970.
    pub oldest_unix_ms: Option<u64>,
    /// Octets of those that wait.
    pub octets: u64,
    /// Recipients that wait, by domain.
    pub domains: BTreeMap<String, usize>,
}

/// The most of a header that is shown.
const HEADER_OCTETS_MAX: usize = 32 << 10;

impl Service {
    pub(crate) fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::List(filter, limit) => {
                let mut keys = self.fitting(&filter);
                let all = keys.len();
                keys.truncate(limit);
                Answer::Entries(keys.iter().filter_map(|key| self.entry(*key)).collect(), all)
            }
            Request::Show(id) => self.show(id),
            Request::Hold(filter) => self.each(&filter, Self::hold),
            Request::Release(filter) => self.each(&filter, Self::release),
            Request::Retry(filter) => self.each(&filter, |service, key| Ok(service.retry_now(key))),
            Request::Remove(filter) => self.each(&filter, |service, key| Ok(service.remove_one(key))),
            Request::Stats => Answer::Stats(self.summary()),
        }
    }

    /// Oldest first.
    fn fitting(&self, filter: &Filter) -> Vec<MessageKey> {
        let now = unix_ms();
        let fitting = self.waiting.iter().filter(|(_, waiting)| filter.fits(waiting, now));
        let mut keys: Vec<_> = fitting.map(|(&key, waiting)| (waiting.unix_ms, waiting.id, key)).collect();
        keys.sort_unstable_by_key(|&(unix_ms, id, _)| (unix_ms, id));
        keys.into_iter().map(|(.., key)| key).collect()
    }

    fn each(&mut self, filter: &Filter, mut act: impl FnMut(&mut Self, MessageKey) -> io::Result<bool>) -> Answer {
        let mut changed = 0;
        for key in self.fitting(filter) {
            match act(self, key) {
                Ok(did) => changed += usize::from(did),
                Err(error) => return Answer::Failed(changed, error.to_string()),
            }
        }
        Answer::Changed(changed)
    }

    fn hold(&mut self, key: MessageKey) -> io::Result<bool> {
        let Some(waiting) = self.waiting.get_mut(&key) else { return Ok(false) };
        self.held.add(waiting.id)?;
        match waiting.next {
            Next::Trying => waiting.wish = Some(Wish::Hold),
            _ => waiting.next = Next::Held,
        }
        Ok(true)
    }

    fn release(&mut self, key: MessageKey) -> io::Result<bool> {
        let Some(waiting) = self.waiting.get_mut(&key) else { return Ok(false) };
        let wished = waiting.wish == Some(Wish::Hold);
        if waiting.next != Next::Held && !wished {
            return Ok(false);
        }
        self.held.remove(waiting.id)?;
        if wished {
            waiting.wish = None;
        } else {
            waiting.next = Next::Ready;
            self.ready.push_back(key);
        }
        Ok(true)
    }

    fn retry_now(&mut self, key: MessageKey) -> bool {
        let Some(waiting) = self.waiting.get_mut(&key) else { return false };
        match waiting.next {
            Next::At(_) | Next::Parked(..) => {
                waiting.next = Next::Ready;
                self.ready.push_back(key);
            }
            Next::Trying if waiting.wish.is_none() => waiting.wish = Some(Wish::Retry),
            Next::Trying | Next::Ready | Next::Held => return false,
        }
        true
    }

    fn remove_one(&mut self, key: MessageKey) -> bool {
        match self.waiting.get_mut(&key) {
            None => return false,
            Some(waiting) if waiting.next == Next::Trying => waiting.wish = Some(Wish::Remove),
            Some(_) => self.remove(key),
        }
        true
    }

    fn entry(&self, key: MessageKey) -> Option<Entry> {
        let waiting = self.waiting.get(&key)?;
        let name = |place: usize| self.shared.routes.get(place).map(|route| route.name().to_owned());
        Some(Entry {
            id: waiting.id,
            unix_ms: waiting.unix_ms,
            octets: waiting.octets,
            sender: waiting.sender.as_deref().map(str::to_owned),
            attempts: waiting.attempts,
            state: match waiting.next {
                Next::Trying | Next::Ready => EntryState::Trying,
                Next::At(at) => EntryState::Waiting(at.saturating_duration_since(Instant::now()).as_secs()),
                Next::Parked(..) => EntryState::Queued,
                Next::Held => EntryState::Held,
            },
            recipients: waiting
                .recipients
                .iter()
                .map(|deferred| WaitingRecipient {
                    address: deferred.recipient.clone(),
                    route: deferred.route.and_then(name),
                    reason: deferred.reason.clone(),
                })
                .collect(),
        })
    }

    fn show(&mut self, id: QueueId) -> Answer {
        let filter = Filter { ids: vec![id], ..Filter::default() };
        let Some(key) = self.fitting(&filter).first().copied() else { return Answer::Unknown };
        let Some(entry) = self.entry(key) else { return Answer::Unknown };
        let mut message = Message::default();
        let mut header = Vec::new();
        if self.follower.read(key, &mut message).is_ok() {
            header.extend_from_slice(message.prepend());
            let most = header.len() + HEADER_OCTETS_MAX;
            // What cannot be read is not shown; the entry says that much.
            let _ = message.body(&mut |part| {
                let room = most.saturating_sub(header.len());
                header.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
                if room > part.len() { Ok(()) } else { Err(io::Error::other("enough")) }
            });
            let end = header.windows(4).position(|four| four == b"\r\n\r\n").map_or(header.len(), |at| at + 2);
            header.truncate(end);
        }
        Answer::Shown(Box::new(entry), header)
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary { messages: self.follower.open_messages(), ..Summary::default() };
        for waiting in self.waiting.values() {
            match waiting.next {
                Next::Ready => summary.trying += 1,
                // With a thread: counted below.
                Next::Trying => {}
                Next::At(_) => summary.waiting += 1,
                Next::Parked(..) => summary.queued += 1,
                Next::Held => summary.held += 1,
            }
            summary.octets += waiting.octets;
            let oldest = summary.oldest_unix_ms.map_or(waiting.unix_ms, |oldest| oldest.min(waiting.unix_ms));
            summary.oldest_unix_ms = Some(oldest);
            for to in &waiting.recipients {
                let domain = to.recipient.rsplit_once('@').map_or("", |(_, domain)| domain);
                *summary.domains.entry(domain.to_lowercase()).or_default() += 1;
            }
        }
        summary.trying += self.in_flight;
        summary
    }
}

/// Ids of held messages, in a file of one line each, so that a restart does not set them free.
pub(crate) struct Held {
    file: Option<PathBuf>,
    ids: BTreeSet<QueueId>,
}

impl Held {
    pub(crate) fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let named = |error: io::Error| match &file {
            Some(file) => io::Error::new(error.kind(), format!("{}: {error}", file.display())),
            None => error,
        };
        let text = match file.as_ref().map(std::fs::read_to_string) {
            None => String::new(),
            Some(Ok(text)) => text,
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Some(Err(error)) => return Err(named(error)),
        };
        Ok(Self { ids: text.lines().filter_map(QueueId::parse).collect(), file })
    }

    pub(crate) fn contains(&self, id: QueueId) -> bool {
        self.ids.contains(&id)
    }

    fn add(&mut self, id: QueueId) -> io::Result<()> {
        if self.ids.insert(id) {
            self.write().inspect_err(|_| {
                self.ids.remove(&id);
            })
        } else {
            Ok(())
        }
    }

    pub(crate) fn remove(&mut self, id: QueueId) -> io::Result<()> {
        if self.ids.remove(&id) { self.write() } else { Ok(()) }
    }

    /// A new file in the old one's place, durably.
    fn write(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let new = file.with_extension("new");
        let mut to = std::fs::File::create(&new)?;
        for id in &self.ids {
            writeln!(to, "{id}")?;
        }
        to.sync_all()?;
        std::fs::rename(&new, file)?;
        file.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
    }
}
