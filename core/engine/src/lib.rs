//! The worker's event loops: sockets, clocks, TLS and waiting, around sessions that know none of that.
//!
//! ```text
//! Worker::start(Setup) → Handle        drain, stop, a new link to the directory, numbers
//!   shard × N      one thread, one epoll: `shard` (the loop; its front page lists its parts)
//!     doors        listening sockets; what happens when descriptors run out
//!     connection   the slot of a connection, ≤ 192 octets with its session; what it holds only while needed
//!     slab, wheel  tokens with a generation; deadlines whose lists run through the slab
//!     shared, local, now   what all shards have, what each has, when it is
//!     host         what a session asks for, performed (logins, messages, limits, notes: files beside it):
//!       cache        verified passwords, known addresses, under the directory's epoch
//!       questions    the directory process, over a link in the shard's own poll
//!       (spool)      commits; their results come back through the `inbox`
//!     watch        counters and records, handed on once per turn and a few times per second
//!   budget         octets that all sessions hold between two turns
//! ```
//!
//! Rules that everything here serves:
//! - A connection costs accept4, send, epoll_ctl, and one read and one write per batch; nothing is asked of
//!   the kernel that it need not be asked (ENGINEERING §6).
//! - While output is unsent nothing is read; while an effect is pending nothing is parsed; a full spool
//!   stops reading, too. So each connection's memory is bounded, and all of them together by the budget.
//! - No session waits for another: shares of a turn, a run queue, caps on handshakes and accepts, panics
//!   that end one session.
//! - Nothing blocks: what takes time is the directory's, the spool's, or the wheel's.
//!
//! ```
//! use std::io::{BufRead, BufReader};
//! use std::sync::Arc;
//! use engine::{Bounds, Deadlines, Port, Setup, Socket, Worker};
//! use smtp::{Role, testing};
//!
//! let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
//! socket.set_nonblocking(true)?;
//! let address = socket.local_addr()?;
//! let folder = tempfile::tempdir()?;
//! let disk = Arc::new(spool::RealDisk::open(folder.path())?);
//! let board = telemetry::Board::create(1)?;
//! let counts = board.claim(0, link::Role::Worker, std::process::id(), 0).unwrap();
//!
//! let worker = Worker::start(Setup {
//!     shards: 1,
//!     ports: vec![Port {
//!         listener: Arc::new(smtp::Listener { tls: smtp::listener::Tls::Off, ..testing::listener(Role::Mx) }),
//!         sockets: vec![Socket { shard: 0, fd: socket.into() }],
//!         tls: None,
//!         backend: None,
//!         exempt_nets: Vec::new(),
//!         cleartext_nets: Vec::new(),
//!         limits: limits::Config::mx(),
//!         deadlines: Deadlines::of(Role::Mx),
//!     }],
//!     sessions_max: 1000,
//!     directory: Vec::new(),
//!     delivery: Vec::new(),
//!     passes: None,
//!     spool: spool::Writer::open(disk, spool::Options::default(), spool::Hooks::default())?,
//!     limits: Arc::new(limits::Table::create(1)?),
//!     account_key: sasl::Secret::new(vec![7; 32]),
//!     events: telemetry::EventSender::new(1 << 16, counts.clone()),
//!     counts,
//!     notify: Box::new(|_| {}),
//!     bounds: Bounds::default(),
//! })?;
//!
//! let mut greeting = String::new();
//! BufReader::new(std::net::TcpStream::connect(address)?).read_line(&mut greeting)?;
//! assert_eq!(greeting, "220 mx.example ESMTP Portreeve\r\n");
//! worker.stop();
//! worker.join();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod budget;
mod cache;
mod connection;
mod doors;
mod entropy;
mod host;
mod inbox;
mod local;
mod now;
mod passing;
mod questions;
mod setup;
mod shard;
mod shared;
mod slab;
mod steps;
mod watch;
mod wheel;
mod worker;

#[cfg(test)]
mod tests;

pub use setup::{Bounds, Deadlines, Notice, Passes, Port, Setup, Socket};
pub use worker::{Handle, StartError, Stats, Worker};
