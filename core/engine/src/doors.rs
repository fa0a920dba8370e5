//! The listening sockets of one shard, and what happens when there are no descriptors left.
//!
//! A listening socket is edge-triggered: once readable, it is accepted from until it is empty, or it stays in
//! [`Door::ready`]. When descriptors or memory run out, all sockets leave the poll (a loop that spins takes
//! the CPU from those who could free something; one that only waits for the next edge starves the queue:
//! CONTRACT C14). They come back when a connection closes or a tenth of a second has passed. Coming back, the kernel reports what queues. When the
//! shortage lasts, one client per pause is told 421 on a descriptor kept for that.
//!
//! The sockets belong to the supervisor: they are left, never closed for others (DESIGN §3).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::slab::Token;

/// The doors of a shard.
pub struct Doors {
    doors: Vec<Door>,
    /// Kept free for telling one client that there is no room.
    reserve: Option<OwnedFd>,
    /// When accepting is tried again.
    paused_until: Option<u64>,
    /// Since when nobody could be accepted for want of a descriptor or memory.
    exhausted_since: Option<u64>,
    registered: bool,
}

struct Door {
    socket: OwnedFd,
    port: u16,
    ready: bool,
}

/// What a door had.
pub enum Arrival {
    /// A client.
    Client {
        /// Its connection: non-blocking, close-on-exec.
        fd: OwnedFd,
        /// Where from.
        address: SocketAddr,
        /// Which port it came to.
        port: u16,
    },
    /// A client that came when there was nothing left to serve it with; the doors are paused.
    Unserved {
        /// On the reserve descriptor: say so and close.
        fd: OwnedFd,
        /// Which port it came to.
        port: u16,
    },
    /// Nobody now.
    Nobody,
}

impl Doors {
    /// Watches `sockets`, each with the number of its port.
    pub fn open(registry: &Registry, sockets: Vec<(u16, OwnedFd)>) -> io::Result<Self> {
        let doors = sockets.into_iter().map(|(port, socket)| Door { socket, port, ready: false }).collect();
        let mut doors = Self { doors, reserve: None, paused_until: None, exhausted_since: None, registered: false };
        doors.reserve();
        doors.register(registry)?;
        Ok(doors)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.doors.len()
    }

    /// The poll reported door number `number`.
    pub fn knock(&mut self, number: usize) {
        if let Some(door) = self.doors.get_mut(number) {
            door.ready = true;
        }
    }

    /// Whether a door may have somebody waiting that no event will tell of.
    pub fn is_ready(&self) -> bool {
        self.registered && self.doors.iter().any(|door| door.ready)
    }

    /// Takes one client from door number `number`.
    pub fn accept(&mut self, number: usize, registry: &Registry, now_ms: u64) -> Arrival {
        let registered = self.registered;
        let Some(door) = self.doors.get_mut(number).filter(|door| registered && door.ready) else {
            return Arrival::Nobody;
        };
        // Each try takes something off the queue or ends it; the bound is for what cannot be.
        for _ in 0..TRIES_MAX {
            match accept_one(&door.socket) {
                Ok((fd, address)) => {
                    self.exhausted_since = None;
                    return Arrival::Client { fd, address, port: door.port };
                }
                Err(Errno::AGAIN) => {
                    door.ready = false;
                    return Arrival::Nobody;
                }
                // The client is already gone, or the network had something to say about it (accept(2)).
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::NETUNREACH
                    | Errno::PERM,
                ) => {}
                // EMFILE, ENFILE, ENOBUFS, ENOMEM; whatever else it may be, trying at once again helps nobody.
                Err(_) => {
                    let port = door.port;
                    let since = *self.exhausted_since.get_or_insert(now_ms);
                    let mut unserved = None;
                    if now_ms >= since + PATIENCE_MS {
                        self.reserve = None;
                        unserved = accept_one(&door.socket).ok();
                    }
                    self.pause(registry, now_ms);
                    return match unserved {
                        Some((fd, _)) => Arrival::Unserved { fd, port },
                        None => Arrival::Nobody,
                    };
                }
            }
        }
        Arrival::Nobody
    }

    /// The connection of [`Arrival::Unserved`] has been closed: its descriptor becomes the next reserve.
    pub fn told(&mut self) {
        self.reserve();
    }

    /// When accepting should be tried again.
    pub fn paused_until(&self) -> Option<u64> {
        self.paused_until
    }

    /// Ends a pause that is over, or at once when `closed` says that a descriptor came back.
    pub fn resume(&mut self, registry: &Registry, now_ms: u64, closed: bool) {
        if self.paused_until.is_some_and(|until| closed || now_ms >= until) {
            self.paused_until = None;
            self.reserve();
            if self.register(registry).is_err() {
                self.pause(registry, now_ms);
            }
        }
    }

    /// No more clients; the queues are left to others who have the sockets.
    pub fn close(&mut self, registry: &Registry) {
        self.deregister(registry);
        self.paused_until = None;
        self.doors.clear();
        self.reserve = None;
    }

    fn pause(&mut self, registry: &Registry, now_ms: u64) {
        self.deregister(registry);
        self.paused_until = Some(now_ms + PAUSE_MS);
    }

    /// Any descriptor will do, as long as it can be given up; opening a file would need a right.
    fn reserve(&mut self) {
        if self.reserve.is_none() {
            self.reserve = self.doors.first().and_then(|door| rustix::io::fcntl_dupfd_cloexec(&door.socket, 0).ok());
        }
    }

    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (number, door) in self.doors.iter_mut().enumerate() {
            let token = mio::Token(Token::outside(DOORS + number as u32).word() as usize);
            door.ready = false;
            match registry.register(&mut SourceFd(&door.socket.as_raw_fd()), token, Interest::READABLE) {
                // An earlier registration that ended halfway.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => door.ready = true,
                result => result?,
            }
        }
        self.registered = true;
        Ok(())
    }

    fn deregister(&mut self, registry: &Registry) {
        for door in &self.doors {
            // Not registered is what is wanted.
            let _ = registry.deregister(&mut SourceFd(&door.socket.as_raw_fd()));
        }
        self.registered = false;
    }
}

/// The first token number of the doors; smaller ones are the shard's own.
pub const DOORS: u32 = 16;
/// How long a pause lasts when nothing closes.
const PAUSE_MS: u64 = 100;
/// How long clients wait in the queue before one per pause is told to come back later. Most shortages are
/// shorter, and then everybody is served.
const PATIENCE_MS: u64 = 1000;
const TRIES_MAX: usize = 64;

fn accept_one(socket: impl AsFd) -> Result<(OwnedFd, SocketAddr), Errno> {
    let (fd, address) = acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    // Listening sockets are IPv4 or IPv6; an address that is neither cannot be limited or logged.
    let address = address.and_then(|address| SocketAddr::try_from(address).ok()).ok_or(Errno::CONNABORTED)?;
    Ok((fd, address))
}
