//! The other side of the dialogue: an SMTP (RFC 5321) and LMTP (RFC 2033) client as a machine without
//! sockets, for delivery, the load tool and tests.
//!
//! ```text
//! receive(octets) → reply line → reply → state → next commands → out
//! deliver(message) ───────────────────────┘        └→ Next: Read │ Write │ StartTls │ Ready │ Delivered │ Closed
//! body(octets) → one encoder → out
//! ```
//!
//! A driver does what [`Next`] says, and before that sends what was appended to `out`:
//!
//! - It connects (and shakes hands, where TLS is implicit), makes a [`Client`], and reads. After a handshake it may
//!   tell what the connection can be [bound](Client::bind) by.
//! - [`Client::receive`] takes what was read. After `Ready` come [`Client::deliver`] or [`Client::quit`], or
//!   nothing: an idle connection is watched by reading, and [`Client::lost`] tells that it ended.
//! - On `Write` it hands message octets to [`Client::body`], in pieces as large as it likes to buffer.
//! - When a message has begun and `Delivered` or `Closed` comes, [`Client::results`] knows every recipient's
//!   end: taken by the peer, or [`Failure`] with class, stage, codes and text.
//! - Deadlines are the driver's: [`Client::stage`] tells for what, and how long at least.
//!
//! What a peer cannot do to us: no reply of any length or number takes more than a constant of memory; a
//! reply that nobody asked for ends the connection, also when it came in one read with one that was asked
//! for, so nothing said in clear is heard inside TLS; no octets of a message, an address or a parameter
//! become a command. A message goes out without bare CR or LF, or not at all.
//!
//! Never here: retries, next hops, address families, certificates, who gets a notice. Those are the driver's.
//!
//! ```
//! use std::sync::Arc;
//! use smtp::client::{Channel, Client, Message, Next, RecipientResult, Settings, StartTls};
//! use smtp::envelope::{Envelope, Notify, Recipient};
//! use smtp::{Session, testing};
//!
//! let (listener, mut world) = (testing::listener(smtp::Role::Mx), testing::World::new());
//! let mut server = Session::new();
//! server.greet(&mut world.context(&listener));
//!
//! let mut settings = Settings::new("client.example")?;
//! settings.starttls = StartTls::Never;
//! let mut client = Client::new(Arc::new(settings), Channel::Clear, [7; 24]);
//! let mut envelope = Envelope::default();
//! envelope.set_reverse_path(Some("a@client.example"));
//! let to = Recipient { address: "b@mx.example", mailbox: "", orcpt: None, notify: Notify(0) };
//! let body = b"Subject: hello\r\n\r\n.\r\n";
//! let message = Message { envelope: &envelope, recipients: &[to], octets: body.len() as u64 };
//!
//! let mut next = Next::Read;
//! loop {
//!     let mut out = Vec::new();
//!     next = match next {
//!         Next::Read => {
//!             let replies = world.text();
//!             world.clear();
//!             client.receive(replies.as_bytes(), &mut out).1
//!         }
//!         Next::Write => client.body(body, &mut out),
//!         Next::Ready => client.deliver(&message, &mut out),
//!         Next::Delivered => client.quit(&mut out),
//!         Next::StartTls | Next::Closed => break,
//!     };
//!     server.receive(&out, &mut world.context(&listener));
//! }
//! assert!(matches!(client.results().next(), Some(RecipientResult::Taken(answer)) if answer.code == 250));
//! # Ok::<(), smtp::client::BadName>(())
//! ```

mod body;
mod credentials;
mod extensions;
mod failure;
mod fuzz;
mod machine;
mod reply;
mod sasl;
mod scram;
mod settings;
mod transaction;

pub use credentials::{BadCredentials, Credentials};
pub use extensions::Extensions;
pub use failure::{Class, Failure, Stage};
pub use fuzz::fuzz_server;
pub use machine::{Channel, Client, Next};
pub use reply::Enhanced;
pub use sasl::{ChannelBindings, Mechanism};
pub use settings::{BadName, Cleartext, EightBit, Login, Protocol, Settings, StartTls, Use};
pub use transaction::{Answer, Message, RecipientResult};

#[cfg(test)]
mod tests;
