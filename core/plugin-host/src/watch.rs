//! What a host of a library waits for: its supervisor, those that ask it, and a bell that its own threads ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// Waits for all of them at once.
pub struct Watch {
    epoll: OwnedFd,
    bell: Bell,
    events: Vec<Event>,
}

/// Who has something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Whoever stands outside of this crate: the supervisor.
    Outside,
    /// A thread has rung.
    Bell,
    /// The peer with this number.
    Peer(u64),
    /// Nobody any more: what there was to wait with is gone.
    Lost,
}

/// Wakes a host; any thread may ring.
#[derive(Clone)]
pub(crate) struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn ring(&self) {
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Watch {
    /// Waits for `outside`, too, where there is somebody: its owner reads from it when a turn of the host says so.
    pub fn new(outside: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let this = Self { epoll, bell: Bell(Arc::new(bell)), events: Vec::with_capacity(EVENTS_MAX) };
        this.add(this.bell.0.as_fd(), BELL)?;
        outside.map_or(Ok(()), |outside| this.add(outside, OUTSIDE))?;
        Ok(this)
    }

    pub(crate) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Waits for this peer from now on, until its descriptor is closed.
    pub(crate) fn add_peer(&self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        self.add(fd, number)
    }

    fn add(&self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(number), EventFlags::IN)?)
    }

    /// Whether to wait also until the peer takes something.
    pub(crate) fn unsent(&self, fd: BorrowedFd<'_>, number: u64, unsent: bool) {
        let out = if unsent { EventFlags::OUT } else { EventFlags::empty() };
        // Without it the peer gets the rest in some later turn.
        let _ = epoll::modify(&self.epoll, fd, EventData::new_u64(number), EventFlags::IN | out);
    }

    /// Waits until there is somebody, at most so long. Those who find no room are here the next time.
    pub(crate) fn wait(&mut self, patience: Duration) -> impl Iterator<Item = Ready> + '_ {
        self.events.clear();
        // Rounded up: waking a moment too early would only mean to wait again.
        let patience = patience.as_nanos().div_ceil(1_000_000).min(60_000) as u64;
        let patience = Timespec::try_from(Duration::from_millis(patience)).ok();
        let waited = epoll::wait(&self.epoll, spare_capacity(&mut self.events), patience.as_ref());
        // A signal is one turn without anybody. Else a library has closed what is not its own.
        let lost = waited.is_err_and(|error| error != rustix::io::Errno::INTR).then_some(Ready::Lost);
        let bell = &self.bell;
        let ready = self.events.iter().map(move |event| match event.data.u64() {
            OUTSIDE => Ready::Outside,
            BELL => {
                // Rung once, however often.
                let _ = rustix::io::read(&*bell.0, &mut [0; 8]);
                Ready::Bell
            }
            number => Ready::Peer(number),
        });
        lost.into_iter().chain(ready)
    }
}

/// Taken from one wait.
const EVENTS_MAX: usize = 64;
const OUTSIDE: u64 = 0;
const BELL: u64 = u64::MAX;
