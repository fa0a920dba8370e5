//! What the operator hears of delivery.

use std::fmt;

use smtp::id::QueueId;

/// Something worth a line in the log. Addresses are what clients sent: text, but not to be trusted.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A recipient has the message.
    Delivered {
        /// The message.
        id: QueueId,
        /// The recipient's address.
        recipient: &'a str,
        /// The route's name.
        route: &'a str,
    },
    /// A recipient's message was not taken by the next hop, and the client that waits is told.
    Refused {
        /// The message.
        id: QueueId,
        /// The recipient's address.
        recipient: &'a str,
        /// The route's name.
        route: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The next hop has taken a message for so many, but the client will not hear so: it may send it again.
    InDoubt {
        /// The message.
        id: QueueId,
        /// Recipients that have it.
        recipients: u32,
        /// Why the client does not hear it.
        reason: &'a str,
    },
    /// A recipient has to wait.
    Deferred {
        /// The message.
        id: QueueId,
        /// The recipient's address.
        recipient: &'a str,
        /// The route's name; `None`: there is no route.
        route: Option<&'a str>,
        /// Why.
        reason: &'a str,
        /// Attempts so far.
        attempts: u32,
        /// Seconds until the next one.
        next_seconds: u64,
    },
    /// The sender was told that recipients have to wait.
    Delayed {
        /// The message.
        id: QueueId,
        /// How many.
        recipients: usize,
        /// The notice to the sender.
        notice: QueueId,
    },
    /// A recipient will not get the message.
    Failed {
        /// The message.
        id: QueueId,
        /// The recipient's address.
        recipient: &'a str,
        /// The route's name.
        route: &'a str,
        /// Why.
        reason: &'a str,
        /// The notice to the sender; `None`: the sender is not told.
        notice: Option<QueueId>,
    },
    /// The operator has taken a message out of the queue.
    Removed {
        /// The message.
        id: QueueId,
    },
    /// A message cannot be handed on by this program: it stays in the spool.
    Stuck {
        /// The message.
        id: QueueId,
        /// Why.
        reason: &'a str,
    },
    /// A domain's MTA-STS policy could not be fetched or kept.
    Policy {
        /// The domain.
        domain: &'a str,
        /// Why, and what follows.
        reason: &'a str,
    },
    /// The spool has something to say.
    Spool(&'a spool::Notice),
    /// A link from a worker broke or said what it should not.
    Link {
        /// What.
        reason: &'a str,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered { id, recipient, route } => {
                write!(f, "{id}: delivered to <{}> by {route}", recipient.escape_debug())
            }
            Self::Refused { id, recipient, route, reason } => {
                write!(f, "{id}: not taken for <{}> by {route}: {reason}; the client is told", recipient.escape_debug())
            }
            Self::InDoubt { id, recipients, reason } => {
                write!(f, "{id}: {recipients} recipients may get it twice: {reason}")
            }
            Self::Deferred { id, recipient, route, reason, attempts, next_seconds } => {
                let route = route.unwrap_or("no route");
                write!(f, "{id}: <{}> waits ({route}): {reason}; ", recipient.escape_debug())?;
                write!(f, "attempt {attempts}, next in {next_seconds} s")
            }
            Self::Failed { id, recipient, route, reason, notice } => {
                write!(f, "{id}: <{}> failed ({route}): {reason}; ", recipient.escape_debug())?;
                match notice {
                    Some(notice) => write!(f, "sender is told by {notice}"),
                    None => f.write_str("sender is not told"),
                }
            }
            Self::Delayed { id, recipients, notice } => {
                write!(f, "{id}: {recipients} recipients wait for long; sender is told by {notice}")
            }
            Self::Removed { id } => write!(f, "{id}: removed by the operator"),
            Self::Stuck { id, reason } => write!(f, "{id}: stays in the spool: {reason}"),
            Self::Policy { domain, reason } => write!(f, "MTA-STS policy of {domain}: {reason}"),
            Self::Spool(notice) => notice.fmt(f),
            Self::Link { reason } => write!(f, "link from a worker: {reason}"),
        }
    }
}

/// Takes events; called on any of delivery's threads, must not block for long.
pub trait Events: Send + Sync {
    /// One event.
    fn event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync> Events for F {
    fn event(&self, event: &Event<'_>) {
        self(event);
    }
}
