//! Which mechanisms this connection may use: those of its EHLO reply. All others are answered 504.

use std::sync::Arc;

use sasl::{Mechanism, MechanismName, flag};

use crate::host::Context;
use crate::listener::AuthOffer;

/// Whether `mechanism` can be used on this connection.
pub(crate) fn is_offered(mechanism: &dyn Mechanism, cx: &Context<'_>) -> bool {
    let flags = mechanism.traits().flags;
    let certificate = cx.tls.is_some_and(|tls| tls.client_certificate);
    let in_clear = cx.tls.is_none() && cx.peer.cleartext_auth && flags & flag::NEEDS_TLS == 0;
    cx.listener.auth != AuthOffer::Off
        && mechanism.is_available()
        && (cx.tls.is_some() || in_clear)
        && (flags & flag::ANONYMOUS == 0 || cx.listener.anonymous)
        && (flags & flag::NEEDS_CERT == 0 || certificate)
        && (flags & flag::CHANNEL_BIND == 0 || cx.tls.is_some_and(|tls| tls.channel_bindings != 0))
}

/// Whether the sibling of `mechanism` with channel binding is listed, too.
pub(super) fn is_plus_offered(mechanism: &dyn Mechanism, cx: &Context<'_>) -> bool {
    let is_sibling = |other: &dyn Mechanism| other.traits().plus_of.as_ref() == Some(mechanism.name());
    cx.listener.mechanisms.iter().any(|other| is_sibling(&**other) && is_offered(&**other, cx))
}

/// The mechanism of that name, where it is offered.
pub(super) fn find(name: &[u8], cx: &Context<'_>) -> Option<Arc<dyn Mechanism>> {
    let name = MechanismName::parse(name)?;
    let mechanism = cx.listener.mechanisms.iter().find(|mechanism| *mechanism.name() == name)?;
    is_offered(&**mechanism, cx).then(|| Arc::clone(mechanism))
}
