//! Where mail goes: routes, and which one a recipient takes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smtp::client::Enhanced;
use smtp::envelope::{Envelope, Recipient};
use smtp::id::QueueId;
use spool::Message;

/// A message on its way out.
pub struct Mail<'a> {
    /// Who it is from and for.
    pub envelope: &'a Envelope,
    message: &'a Message,
    until: Option<Instant>,
    listener: Option<&'a Ended<'a>>,
}

/// Hears how an attempt ended for some of its recipients while it goes on for others.
type Ended<'a> = dyn Fn(&[Recipient<'_>], &[Verdict]) + Sync + 'a;

impl<'a> Mail<'a> {
    pub(crate) fn new(envelope: &'a Envelope, message: &'a Message) -> Self {
        Self { envelope, message, until: None, listener: None }
    }

    /// The same, for a client that waits until then.
    pub(crate) fn awaited(self, until: Instant) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The same; `listener` is told of early ends.
    pub(crate) fn heard_by(self, listener: &'a Ended<'a>) -> Self {
        Self { listener: Some(listener), ..self }
    }

    /// This is over for these recipients, with one verdict for each. A route that goes on for others, elsewhere, says so:
    /// who has the message is then noted, and a crash before the whole attempt's end makes no twin of it (CONTRACT C4).
    pub fn ended(&self, recipients: &[Recipient<'_>], verdicts: &[Verdict]) {
        if let Some(listener) = self.listener {
            listener(recipients, verdicts);
        }
    }

    /// Its id.
    pub fn id(&self) -> QueueId {
        self.message.id()
    }

    /// A client waits for the end of this attempt until then; nobody does otherwise.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the sender knows that this recipient has to wait.
    pub(crate) fn is_told(&self, recipient: u32) -> bool {
        self.message.is_told(recipient)
    }

    /// When it was accepted, milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.message.unix_ms()
    }

    /// Header lines that go before the body, CRLF line ends.
    pub fn prepend(&self) -> &[u8] {
        self.message.prepend()
    }

    /// Length of the body.
    pub fn body_octets(&self) -> u64 {
        self.message.body_octets()
    }

    /// Gives the body (header and all, as the client sent it, no dot stuffing, CRLF line ends) to `each`, part
    /// by part.
    pub fn body(&self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.message.body(each)
    }
}

/// How an attempt ended for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the mailbox, durably.
    Delivered,
    /// The next hop has taken it, and all that is left to do.
    Relayed {
        /// Whom it was given to.
        host: Box<str>,
        /// Whether that one tells the sender about success when it was asked for (RFC 3461 §5.2.1).
        notifies: bool,
    },
    /// Not now.
    Later(Trouble),
    /// Trying again will not help.
    Never(Trouble),
    /// Nothing was tried: every connection that this route may have to this destination is in use.
    Busy(Destination),
    /// Nothing was tried: this route's next hops did not answer others a moment ago. So long must pass.
    Postponed(Duration, Trouble),
}

/// What a route counts its connections by; its own affair. A route that counts them all together has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Destination(pub u64);

impl Verdict {
    /// Not now, for a reason of this host.
    pub fn later(text: impl Into<String>) -> Self {
        Self::Later(Trouble::own(Enhanced::new(4, 3, 0), text))
    }

    /// Never, for a reason of this host.
    pub fn never(text: impl Into<String>) -> Self {
        Self::Never(Trouble::own(Enhanced::new(5, 3, 0), text))
    }
}

/// Why a recipient does not have its mail: for the operator, and for a notice to the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// RFC 3463.
    pub status: Enhanced,
    /// One line.
    pub text: String,
    /// The host that said so.
    pub remote: Option<Box<str>>,
    /// What it said, with its code; one line.
    pub said: Option<String>,
}

impl Trouble {
    /// This host's own.
    pub fn own(status: Enhanced, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), remote: None, said: None }
    }
}

/// A way for mail to leave the spool.
pub trait Route: Send + Sync {
    /// As it is called in the configuration and in events.
    fn name(&self) -> &str;

    /// One attempt for these recipients of a message; one verdict for each, in their order. Runs on a delivery
    /// thread and may block there.
    fn deliver(&self, mail: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict>;

    /// Whether the client that sends a message waits for this route's answer (`pass_through`).
    fn passes(&self) -> bool {
        false
    }

    /// Attempts that may begin now; with none, `deliver` says [`Verdict::Busy`] with this destination.
    fn room(&self, _: Destination) -> usize {
        usize::MAX
    }

    /// Attempts that may run at the same time and block for long; each gets a thread.
    fn slow_attempts(&self) -> usize {
        0
    }

    /// The service ends: what waits for somebody else ends soon, with [`Verdict::Later`].
    fn stop(&self) {}

    /// Called now and then: connections that have been idle for long are ended.
    fn tidy(&self) {}

    /// Whether `deliver` may take its time. One that never blocks runs without a change of thread when no
    /// other route is in use.
    fn blocks(&self) -> bool {
        true
    }

    /// Whether nobody can tell that a message went this way twice: then no sync is spent on remembering that it did.
    fn may_repeat(&self) -> bool {
        false
    }
}

/// Takes everything and keeps nothing: for benches.
pub struct Discard;

impl Route for Discard {
    fn name(&self) -> &str {
        "discard"
    }

    fn deliver(&self, _: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        vec![Verdict::Delivered; recipients.len()]
    }

    fn blocks(&self) -> bool {
        false
    }

    fn may_repeat(&self) -> bool {
        true
    }
}

/// Which route a recipient takes.
#[derive(Default)]
pub struct Routes {
    all: Vec<Arc<dyn Route>>,
    /// Domain in lower case, to place in `all`.
    domains: HashMap<String, usize>,
    default: Option<usize>,
}

impl Routes {
    /// With a route for every domain that has none of its own.
    pub fn new(default: Option<Arc<dyn Route>>) -> Self {
        let mut routes = Self::default();
        routes.default = default.map(|route| routes.place(route));
        routes
    }

    /// Sends mail for a domain this way.
    pub fn domain(mut self, domain: &str, route: Arc<dyn Route>) -> Self {
        let place = self.place(route);
        self.domains.insert(domain.to_lowercase(), place);
        self
    }

    fn place(&mut self, route: Arc<dyn Route>) -> usize {
        let place = self.all.iter().position(|known| Arc::ptr_eq(known, &route));
        place.unwrap_or_else(|| {
            self.all.push(route);
            self.all.len() - 1
        })
    }

    /// Place of the route for an address. One without a domain (`postmaster`) goes where its mailbox's would.
    pub(crate) fn find(&self, recipient: &Recipient<'_>) -> Option<usize> {
        let domain = recipient.route_domain();
        domain.and_then(|domain| self.domains.get(&domain).copied()).or(self.default)
    }

    pub(crate) fn get(&self, place: usize) -> Option<&dyn Route> {
        self.all.get(place).map(|route| &**route)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Route> {
        self.all.iter().map(|route| &**route)
    }

    /// Whether any attempt may block.
    pub(crate) fn block(&self) -> bool {
        self.all.iter().any(|route| route.blocks())
    }
}
