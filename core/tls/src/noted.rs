//! What the callbacks of a handshake learn about the connection that they are called for.
//!
//! rustls' unbuffered connection does not tell the server name that was asked for, and its callbacks
//! (choice of certificate, check of a client certificate, sealing of a ticket, secrets) are not told which
//! connection calls. All run inside `process_tls_records` on the caller's thread: a thread-local slot
//! holds the connection's notes for as long as that call lasts.

use std::cell::RefCell;
use std::mem;

use crate::channel_binding::Bindings;
use crate::secret::Traffic;

/// Notes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// The name that the client asked for, lower case.
    pub(crate) sni: Option<Box<str>>,
    /// The client presented a certificate and proved that it holds the key.
    pub(crate) certificate_presented: bool,
    /// The certificate leads to one of the configured authorities.
    pub(crate) certificate_verified: bool,
    /// Channel bindings, on listeners that want them.
    pub(crate) bindings: Option<Box<Bindings>>,
    /// Secrets of TLS 1.3, until the record layer takes them.
    pub(crate) traffic: Option<Box<Traffic>>,
}

thread_local! {
    static CURRENT: RefCell<Noted> = RefCell::default();
}

/// Runs `handshake` with `noted` as the notes of the current connection.
pub(crate) fn during<R>(noted: &mut Noted, handshake: impl FnOnce() -> R) -> R {
    CURRENT.replace(mem::take(noted));
    let result = handshake();
    *noted = CURRENT.take();
    result
}

/// Reads or changes the notes of the current connection.
pub(crate) fn current<R>(note: impl FnOnce(&mut Noted) -> R) -> R {
    CURRENT.with_borrow_mut(note)
}
