//! What stands against a command before its arguments are looked at: the first row that fits answers (PROTOCOL §2.9).
//!
//! ```text
//! 502  not offered on this listener                                       EXPN, ETRN and what is configured away
//! 530  TLS is required, and there is none                                 RFC 3207 §4
//! 530  a login is required, and there is none                             RFC 4954 §6
//! 502  BDAT where CHUNKING is not listed
//! 503  a BDAT has failed, and this is no command that mends it            RFC 3030 §2, DECISIONS C9
//! ```

use super::Session;
use super::state::State;
use crate::command::Verb;
use crate::host::Context;
use crate::listener::{AuthOffer, Tls};
use crate::reply::{self, Reply};

impl Session {
    pub(super) fn precedence(&self, verb: Verb, cx: &Context<'_>) -> Option<&'static Reply> {
        let (row, listener) = (verb.row(), cx.listener);
        let offered = match verb {
            Verb::StartTls => listener.tls != Tls::Off,
            Verb::Auth => listener.auth != AuthOffer::Off && !listener.mechanisms.is_empty(),
            Verb::Etrn => false,
            _ => true,
        };
        let in_clear = cx.tls.is_none() && !cx.peer.cleartext_auth;
        if !offered {
            Some(&reply::NOT_OFFERED)
        } else if row.needs_tls && listener.require_tls && in_clear {
            Some(&reply::TLS_FIRST)
        } else if row.needs_auth && listener.require_auth && !self.is_logged_in() {
            Some(&reply::AUTH_FIRST)
        } else if verb == Verb::Bdat && !listener.chunking {
            Some(&reply::NOT_OFFERED)
        } else if matches!(self.state, State::Broken) && !row.mends {
            Some(&reply::BROKEN)
        } else {
            None
        }
    }
}
