//! EHLO and HELO (RFC 5321 §4.1.1.1): who speaks, and what this connection can use now.

use std::io::Write as _;

use super::Session;
use super::pipelining::Place;
use crate::auth;
use crate::command::Verb;
use crate::host::Context;
use crate::listener::Tls;
use crate::reply;

/// How the client has said hello.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Hello {
    #[default]
    None,
    Helo,
    Ehlo,
}

impl Session {
    pub(super) fn hello(&mut self, verb: Verb, args: &[u8], place: Place, cx: &mut Context<'_>) {
        let name = match std::str::from_utf8(args) {
            Ok(name) if !name.is_empty() && name.len() <= 255 && name.is_ascii() && !args.contains(&b' ') => name,
            _ => return self.reply(&reply::HELLO_NEEDS_NAME, cx),
        };
        if verb == Verb::Ehlo && self.is_too_early(place, cx) {
            return self.spoke_too_early(cx);
        }
        // RFC 5321 §4.1.4: as RSET.
        self.leave("reset", cx);
        if self.name.as_deref() != Some(name) {
            self.name = Some(name.into());
        }
        if verb == Verb::Helo {
            self.hello = Hello::Helo;
            cx.out.extend_from_slice(b"250 ");
            cx.out.extend_from_slice(cx.listener.hostname.as_bytes());
            cx.out.extend_from_slice(b"\r\n");
        } else {
            self.hello = Hello::Ehlo;
            self.list_extensions(cx);
        }
        self.replied(250, "hello", cx);
    }

    /// The EHLO reply: only what this connection can use now (PROTOCOL §2.1).
    fn list_extensions(&self, cx: &mut Context<'_>) {
        let listener = cx.listener;
        let inside = cx.tls.is_some() || !listener.require_tls || cx.peer.cleartext_auth;
        cx.out.extend_from_slice(b"250-");
        cx.out.extend_from_slice(listener.hostname.as_bytes());
        cx.out.extend_from_slice(b"\r\n250-PIPELINING\r\n250-SIZE ");
        let size = self.octets_max(cx);
        // Writing to a Vec cannot fail.
        let _ = write!(cx.out, "{size}");
        if listener.tls == Tls::StartTls && cx.tls.is_none() {
            cx.out.extend_from_slice(b"\r\n250-STARTTLS");
        }
        let mut lead = "\r\n250-AUTH";
        for mechanism in &listener.mechanisms {
            if auth::is_offered(&**mechanism, cx) {
                cx.out.extend_from_slice(lead.as_bytes());
                cx.out.push(b' ');
                cx.out.extend_from_slice(mechanism.name().as_str().as_bytes());
                lead = "";
            }
        }
        if inside {
            cx.out.extend_from_slice(b"\r\n250-DSN");
            if listener.chunking {
                cx.out.extend_from_slice(b"\r\n250-CHUNKING");
            }
        }
        if listener.smtputf8 {
            cx.out.extend_from_slice(b"\r\n250-SMTPUTF8");
        }
        if listener.data_loss {
            cx.out.extend_from_slice(b"\r\n250-XDATALOSS accepted mail is not kept");
        }
        cx.out.extend_from_slice(b"\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n");
    }
}
