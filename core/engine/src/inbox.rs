//! How other threads reach a shard: a queue, and one wake-up for everything that queued since the last look.
//!
//! A lone hop between threads costs 48 µs of CPU, mostly for two sleeps; under load one wake-up serves
//! dozens of messages (ENGINEERING §4). The flag says that a wake-up is already on its way.
//!
//! The queue has no bound of its own: every session has at most one effect outstanding, so it never holds
//! more than sessions plus a few commands. A bounded one would make the committer wait for the loop that
//! waits for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::SegQueue;

/// The sending side; cheap to clone.
pub struct Inbox<M>(Arc<Shared<M>>);

struct Shared<M> {
    queue: SegQueue<M>,
    waking: AtomicBool,
    waker: mio::Waker,
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Inbox<M> {
    /// An inbox whose owner polls `registry` and sees `token` when there is something.
    pub fn new(registry: &mio::Registry, token: mio::Token) -> io::Result<Self> {
        let waker = mio::Waker::new(registry, token)?;
        Ok(Self(Arc::new(Shared { queue: SegQueue::new(), waking: AtomicBool::new(false), waker })))
    }

    /// Puts `message` in and wakes the owner unless somebody just did.
    pub fn send(&self, message: M) {
        self.0.queue.push(message);
        if !self.0.waking.swap(true, Ordering::AcqRel) {
            // The eventfd can only fail when its counter is full, and then the owner is awake anyway.
            let _ = self.0.waker.wake();
        }
    }

    /// Says that the wake-up has arrived; call it before taking messages out.
    pub fn woken(&self) {
        // A swap and not a store: it acquires what a sender pushed who just saw `true` and did not wake us.
        self.0.waking.swap(false, Ordering::AcqRel);
    }

    /// The oldest message.
    pub fn take(&self) -> Option<M> {
        self.0.queue.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_slept_over() {
        let mut poll = mio::Poll::new().unwrap();
        let inbox = Inbox::new(poll.registry(), mio::Token(7)).unwrap();
        let senders: Vec<_> = (0..4)
            .map(|_| {
                let inbox = inbox.clone();
                std::thread::spawn(move || (0..20_000).for_each(|n| inbox.send(n)))
            })
            .collect();
        let (mut taken, mut wakes) = (0, 0);
        let mut events = mio::Events::with_capacity(8);
        while taken < 80_000 {
            poll.poll(&mut events, Some(std::time::Duration::from_secs(20))).unwrap();
            assert!(!events.is_empty(), "slept with {taken} taken");
            wakes += 1;
            inbox.woken();
            while inbox.take().is_some() {
                taken += 1;
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert!(wakes <= 80_000);
    }
}
