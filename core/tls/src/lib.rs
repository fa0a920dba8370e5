//! TLS (RFC 8446, RFC 5246) for connections that are driven by an event loop: octets in, octets out.
//!
//! ```text
//! octets off the wire → TlsSession::receive → plaintext for the SMTP session
//!                                           └→ octets for the wire (flights, tickets, alerts)
//! plaintext replies   → TlsSession::send    → octets for the wire
//! ```
//!
//! A listener has one [`ServerTls`], made from [`Settings`], a [`CertificateStore`] and [`TicketKeys`]; the
//! last two may be replaced while connections run. A connection has one [`TlsSession`], which holds no
//! buffer while it is idle.
//!
//! Absent on purpose: sockets, threads, files. Certificates arrive as octets, so that the process that
//! reads keys need not be the one that talks to strangers.
//!
//! This is the only crate that imports rustls, and [`TlsSession`] the only type in it that knows how rustls
//! is fed. Of TLS 1.3 rustls does the handshake only; the records behind it are ours (`record.rs`). rustls' buffered connection is not used there, since it keeps 4 KiB for input per connection;
//! delivery's few outbound connections ([`ClientSession`]) use it.
//!
//! ```
//! use std::sync::Arc;
//! use tls::{Certificate, CertificateSet, CertificateStore, Pem, ServerTls, Settings, TicketKeys, TlsSession};
//!
//! let made = tls::self_signed(&["mail.example"], 30)?;
//! let certificate = Certificate::from_pem(
//!     Pem { file: "cert.pem", octets: made.certificate_pem.as_bytes() },
//!     Pem { file: "key.pem", octets: made.key_pem.as_bytes() },
//! )?;
//! let store = Arc::new(CertificateStore::new(CertificateSet::new(vec![certificate])?));
//! let server = Arc::new(ServerTls::new(&Settings::default(), store, Arc::new(TicketKeys::new(&[])))?);
//!
//! let mut session = TlsSession::accept(&server)?;
//! let (mut plain, mut out) = (Vec::new(), Vec::new());
//! // Somebody took the port for a web server: an alert, no reply in clear, no waiting.
//! let error = session.receive(&mut b"GET / HTTP/1.1\r\n\r\n".to_owned(), &mut plain, &mut out).unwrap_err();
//! assert_eq!(error, tls::TlsError::NotTls);
//! assert_eq!(out[0], 21, "an alert record");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(all(feature = "aws-lc", feature = "ring"))]
compile_error!(
    "crate tls: features `aws-lc` and `ring` exclude each other; build with `--no-default-features --features ring` for ring"
);
#[cfg(not(any(feature = "aws-lc", feature = "ring")))]
compile_error!("crate tls: choose the cryptography, feature `aws-lc` (default) or `ring`");

mod certificate;
mod channel_binding;
mod client;
mod client_certificate;
mod error;
mod facts;
mod fuzz;
mod noted;
mod record;
mod secret;
mod self_signed;
mod server;
mod session;
mod store;
mod ticket;

#[cfg(test)]
mod test_peer;

pub use certificate::{Certificate, CertificateSet, Pem};
pub use channel_binding::{ChannelBinding, server_end_point_of};
pub use client::{ClientError, ClientSession, ClientTls, Trust};
pub use client_certificate::{ClientIdentity, check_authorities};
pub use error::{CertificateError, TlsError};
pub use facts::Facts;
pub use fuzz::{fuzz_receive, fuzz_records};
pub use record::RECORD_PLAINTEXT_MAX;
pub use self_signed::{SelfSigned, self_signed};
pub use server::{ClientAuth, ServerTls, Settings, Version};
pub use session::{Received, State, TlsSession};
pub use store::CertificateStore;
pub use ticket::TicketKeys;

/// For libraries that speak TLS with rustls themselves and take what the process has chosen: the same
/// cryptography as everywhere here. May be called again.
pub fn provide_for_others() {
    // `Err` only says that it is there already.
    let _ = provider::default_provider().install_default();
}

/// The library that does the cryptography; both offer the same interface for what is used here.
mod provider {
    #[cfg(feature = "aws-lc")]
    pub use aws_lc_rs::{aead, digest, hkdf, rand};
    #[cfg(feature = "ring")]
    pub use ring::{aead, digest, hkdf, rand};
    #[cfg(feature = "aws-lc")]
    pub use rustls::crypto::aws_lc_rs::default_provider;
    #[cfg(feature = "ring")]
    pub use rustls::crypto::ring::default_provider;
}
