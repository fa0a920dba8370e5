//! Those that ask a host of a library: a link to each, and what is still to be sent on it.

use std::os::fd::AsFd as _;
use std::time::Duration;

use link::{Link, Outbox, PACKET_OCTETS_MAX, Received};

use crate::watch::{Ready, Watch};

/// Packets read from one before the others have their turn.
const PACKETS_PER_TURN: usize = 16;

/// All of them, and the waiting for them.
pub(crate) struct Peers<T> {
    watch: Watch,
    peers: Vec<Peer<T>>,
    /// Peers so far.
    numbers: u64,
    outbox_octets_max: usize,
    /// Those that have sent something.
    heard: Vec<u64>,
    packet: Vec<u8>,
    /// There is nothing to wait with any more.
    lost: bool,
}

/// One of them; `T` is what the host keeps for it.
pub(crate) struct Peer<T> {
    pub number: u64,
    pub outbox: Outbox,
    pub kept: T,
    /// It is left at the end of the turn.
    pub closed: bool,
    link: Link,
    /// The watch waits until it takes something.
    unsent: bool,
}

/// What a wait has found beside those that have sent something.
#[derive(Clone, Copy, Default)]
pub(crate) struct Woken {
    pub outside: bool,
    pub bell: bool,
}

impl<T> Peers<T> {
    /// None yet. Each may have so many octets unsent.
    pub fn new(watch: Watch, outbox_octets_max: usize) -> Self {
        let (heard, packet) = (Vec::new(), Vec::new());
        Self { watch, peers: Vec::new(), numbers: 0, outbox_octets_max, heard, packet, lost: false }
    }

    /// One more, which is told something at once.
    pub fn add(&mut self, link: Link, kept: T, kind: u16, greeting: &[u8]) {
        self.numbers += 1;
        let (number, outbox) = (self.numbers, Outbox::new(self.outbox_octets_max));
        let mut peer = Peer { number, outbox, kept, closed: false, link, unsent: false };
        let said = peer.outbox.push(kind, 0, |to| to.extend_from_slice(greeting));
        if said.is_ok() && self.watch.add_peer(peer.link.as_fd(), number).is_ok() {
            peer.flush(&self.watch);
            self.peers.push(peer);
        }
    }

    /// Whether nothing can be heard of any of them any more: a library has closed descriptors that are not its own.
    pub fn are_lost(&self) -> bool {
        self.lost
    }

    /// Whether there is none any more.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut Peer<T>> {
        self.peers.iter_mut().find(|peer| peer.number == number)
    }

    /// Anybody.
    pub fn first_mut(&mut self) -> Option<&mut Peer<T>> {
        self.peers.first_mut()
    }

    /// Waits until somebody has something to say, at most so long.
    pub fn wait(&mut self, patience: Duration) -> Woken {
        let mut woken = Woken::default();
        self.heard.clear();
        for ready in self.watch.wait(patience) {
            match ready {
                Ready::Outside => woken.outside = true,
                Ready::Bell => woken.bell = true,
                Ready::Peer(number) => self.heard.push(number),
                Ready::Lost => {
                    self.peers.clear();
                    (woken.outside, self.lost) = (true, true);
                }
            }
        }
        woken
    }

    /// Hands out the packets of those that the wait has found.
    pub fn receive(&mut self, mut hear: impl FnMut(&mut Peer<T>, &[u8])) {
        for number in &self.heard {
            let Some(peer) = self.peers.iter_mut().find(|peer| peer.number == *number) else { continue };
            for _ in 0..PACKETS_PER_TURN {
                match peer.link.receive(&mut self.packet) {
                    Ok(Received::Packet { .. }) => hear(peer, &self.packet),
                    Ok(Received::WouldBlock) => break,
                    Ok(Received::Closed) | Err(_) => {
                        peer.closed = true;
                        break;
                    }
                }
                // Whoever has more to say fills its packets. If there is another one all the same, the next wait
                // finds it, and nobody has to ask for what is mostly not there.
                let last = self.packet.len() < PACKET_OCTETS_MAX / 2;
                link::wipe(&mut self.packet);
                if last || peer.closed {
                    break;
                }
            }
        }
    }

    /// Sends what is to be sent, and leaves those that are gone; `gone` has what was kept for them.
    pub fn flush(&mut self, mut gone: impl FnMut(&mut T)) {
        let watch = &self.watch;
        self.peers.retain_mut(|peer| {
            peer.flush(watch);
            if peer.closed {
                gone(&mut peer.kept);
            }
            !peer.closed
        });
    }
}

impl<T> Peer<T> {
    fn flush(&mut self, watch: &Watch) {
        match self.outbox.flush(&self.link) {
            Ok(all) if all != self.unsent => {}
            Ok(all) => {
                self.unsent = !all;
                watch.unsent(self.link.as_fd(), self.number, self.unsent);
            }
            Err(_) => self.closed = true,
        }
    }
}
