//! Delivery: hands on what the spool holds, and is the only one who frees it.
//!
//! ```text
//! worker ──doorbell (link)──┐
//! own start, worker's death ┴─► Service.run ─ Follower.next ─► job ─► delivery threads ─► Route.deliver
//!                                   ▲  retry heap ◄── Later ──────────── outcome ◄──────────┘
//!                                   └─ acknowledge, sync, free segments ◄── Delivered
//! ```
//!
//! - A message is handed on at least once; twice only when a crash falls between a route's success and our
//!   durable note of it, and not even then into a Maildir (see [`maildir`]).
//! - What fails now is tried again, later and later, and stays in the spool meanwhile, five days at the most: a
//!   recipient without a route waits too, and an event says why.
//! - What fails for good, or for too long, is told to the sender (RFC 3464), when the sender is one that we know
//!   (`notice.rs`); other mail that is refused for good stays in the queue until its time is over.
//! - Routes are chosen by the recipient's domain; a new kind of route is an implementation of [`Route`]:
//!   [`Maildir`], [`NextHops`] (SMTP and LMTP), `MxRoute` (direct delivery), [`Discard`].
//! - A next hop that stalls holds its own connections and their threads, nobody else's; one that does not answer
//!   is left alone for a while by all messages together.
//! - [`Handle::queue`] is the operator's view of what waits, and hand in it.
//!
//! The process around it gives it links from workers and the word to stop, through [`Handle`]:
//!
//! ```no_run
//! use std::sync::Arc;
//! use delivery::{Event, LineEnd, Maildir, Routes, Service, Settings};
//!
//! let disk = Arc::new(spool::RealDisk::open("spool".as_ref())?);
//! let maildir = Maildir::new("mail/%d/%n", LineEnd::Lf)?;
//! let settings = Settings::new(Routes::new(Some(Arc::new(maildir))));
//! let (service, handle) = Service::open(disk, settings, Arc::new(|event: &Event<'_>| println!("{event}")))?;
//! let running = std::thread::spawn(|| service.run());
//! // handle.follow(link from a worker) …
//! handle.stop();
//! running.join().unwrap()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod attempt;
mod connection;
mod event;
pub mod maildir;
#[cfg(feature = "mx")]
mod mx;
mod next_hop;
mod notice;
mod pass;
mod queue;
mod retry;
mod route;
mod service;

pub use connection::Place;
pub use event::{Event, Events};
pub use maildir::{BadTemplate, LineEnd, Maildir};
#[cfg(feature = "mx")]
pub use mx::{MxRoute, MxSettings, StsSettings, fuzz_mx};
pub use next_hop::{HopSettings, IdleRoom, NextHops, Security};
pub use queue::{Answer, Entry, EntryState, Filter, Request, Summary, WaitingRecipient};
pub use retry::Retry;
pub use route::{Destination, Discard, Mail, Route, Routes, Trouble, Verdict};
pub use service::{Handle, Service, Settings, Stats};

#[cfg(test)]
mod tests;
