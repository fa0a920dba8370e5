//! Routes that hand mail to another server: `smtp` (a smarthost, or several) and `lmtp` (RFC 2033).
//!
//! ```text
//! deliver ─ slot? ─► first next hop that is not down ─► idle connection, or a new one ─► one transaction
//!                         │ it fails before anything is settled: down for a while, the next one
//!                         └ all are down: Postponed, for everybody, until one may be tried again
//! ```
//!
//! What the peer says about a recipient or the message counts; what it says about the connection (a refused
//! login, a certificate of another name) never fails a message for good: the operator can mend that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smtp::client::{
    self, Class, Credentials, Enhanced, Failure, Login, Next, Protocol, RecipientResult, Stage, StartTls,
};
use smtp::envelope::Recipient;
use tls::ClientTls;

use crate::connection::{Begin, Connection, Ending, Place, connect};
use crate::retry::Retry;
use crate::route::{Destination, Mail, Route, Trouble, Verdict};

/// Whether TLS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// No.
    Off,
    /// When it is offered, with any certificate; in clear otherwise (RFC 7435).
    Opportunistic,
    /// STARTTLS, with a certificate that verifies; nothing is sent otherwise.
    Required,
    /// From the first octet, with a certificate that verifies.
    Implicit,
}

/// What the operator chose for a route to next hops.
pub struct HopSettings {
    /// In this order: the first one that works is used.
    pub places: Vec<Place>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Our own name.
    pub hostname: String,
    /// Whether TLS is used.
    pub security: Security,
    /// How; `Anybody` for opportunistic TLS.
    pub tls: Option<ClientTls>,
    /// The name that must be in the certificate; `None`: the host's.
    pub tls_name: Option<String>,
    /// Who we are to the next hop.
    pub credentials: Option<Arc<Credentials>>,
    /// Connections at the same time.
    pub connections: usize,
    /// Longest wait for one reply.
    pub patience: Duration,
    /// How long a next hop that fails is left alone.
    pub backoff: Retry,
    /// Where this server listens: never a next hop.
    pub own: Vec<SocketAddr>,
    /// Clients wait for the next hop's answer; nothing is kept meanwhile.
    pub pass_through: bool,
    /// Connections that may stay open unused.
    pub idle: IdleRoom,
}

/// How many connections may stay open between messages, of one route or of several that share it.
#[derive(Clone)]
pub struct IdleRoom(Arc<AtomicUsize>);

impl IdleRoom {
    /// For so many.
    pub fn new(connections: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(connections)))
    }

    fn take(&self) -> Option<IdlePlace> {
        let less = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok().map(|_| IdlePlace(self.0.clone()))
    }
}

/// One connection's part of an [`IdleRoom`], given back when dropped.
struct IdlePlace(Arc<AtomicUsize>);

impl Drop for IdlePlace {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A route to next hops.
pub struct NextHops {
    settings: HopSettings,
    /// For the machine: with TLS as chosen, and without.
    client: Arc<client::Settings>,
    client_clear: Arc<client::Settings>,
    ending: Ending,
    state: Mutex<State>,
    /// A connection may be used again.
    freed: Condvar,
}

struct State {
    in_use: usize,
    hops: Vec<Hop>,
}

#[derive(Default)]
struct Hop {
    failures: u32,
    /// Not before; with what happened last.
    down: Option<(Instant, Trouble)>,
    idle: Vec<(Connection, IdlePlace)>,
}

/// Idle connections are kept so long. Servers end them after five minutes at the least (RFC 5321 §4.5.3.2.7),
/// but many are in a hurry.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// How a message fared with one next hop.
pub(crate) enum Fared {
    /// Decided for this attempt.
    Over(Vec<Verdict>),
    /// Nothing was settled: another next hop may be tried.
    Lost(Trouble),
    /// Nothing was tried: it did not answer others a moment ago. So long it is left alone.
    #[cfg_attr(not(feature = "mx"), expect(dead_code, reason = "only the route mx asks one next hop alone"))]
    Down(Duration, Trouble),
}

impl NextHops {
    /// Makes the route; fails when our name is none.
    pub fn new(settings: HopSettings) -> Result<Self, String> {
        let mut client = client::Settings::new(&settings.hostname)
            .map_err(|error| format!("hostname {:?}: {error}", settings.hostname))?;
        client.protocol = settings.protocol;
        client.login = settings.credentials.clone().map(Login::new);
        let mut clear = client.clone();
        clear.starttls = StartTls::Never;
        client.starttls = match settings.security {
            Security::Off | Security::Implicit => StartTls::Never,
            Security::Opportunistic => StartTls::IfOffered,
            Security::Required => StartTls::Required,
        };
        let hops = settings.places.iter().map(|_| Hop::default()).collect();
        Ok(Self {
            client: Arc::new(client),
            client_clear: Arc::new(clear),
            ending: Ending::default(),
            state: Mutex::new(State { in_use: 0, hops }),
            freed: Condvar::new(),
            settings,
        })
    }

    /// Ends when its caller does.
    #[cfg(feature = "mx")]
    pub(crate) fn ends_with(mut self, ending: &Ending) -> Self {
        self.ending = ending.clone();
        self
    }

    /// Next hops that may be tried now, in order; otherwise when, and what happened last. One that has failed
    /// is tried by one message at a time.
    fn choose(&self) -> Result<Vec<usize>, (Duration, Trouble)> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let mut order = Vec::new();
        let mut soonest: Option<(Duration, Trouble)> = None;
        for (at, hop) in state.hops.iter_mut().enumerate() {
            match &mut hop.down {
                Some((until, trouble)) if *until > now => {
                    let wait = *until - now;
                    if soonest.as_ref().is_none_or(|(least, _)| wait < *least) {
                        soonest = Some((wait, trouble.clone()));
                    }
                }
                down => {
                    if let Some((until, _)) = down {
                        *until = now + self.settings.patience.min(self.settings.backoff.first);
                    }
                    order.push(at);
                }
            }
        }
        if order.is_empty() {
            let nowhere = || (self.settings.backoff.max, Trouble::own(Enhanced::new(4, 4, 0), "route has no next hop"));
            return Err(soonest.unwrap_or_else(nowhere));
        }
        Ok(order)
    }

    fn works(&self, at: usize) {
        if let Some(hop) = self.state.lock().hops.get_mut(at) {
            (hop.failures, hop.down) = (0, None);
        }
    }

    fn fails(&self, at: usize, trouble: &Trouble) {
        let mut chance = [0; 4];
        let _ = getrandom::fill(&mut chance);
        if let Some(hop) = self.state.lock().hops.get_mut(at) {
            hop.failures = hop.failures.saturating_add(1);
            let wait = self.settings.backoff.after(hop.failures, u32::from_le_bytes(chance));
            hop.down = Some((Instant::now() + wait, trouble.clone()));
        }
    }

    fn take_idle(&self, at: usize) -> Option<Connection> {
        loop {
            let (mut connection, _) = self.state.lock().hops.get_mut(at)?.idle.pop()?;
            if connection.idle_since.elapsed() < IDLE_MAX && connection.is_alive() {
                return Some(connection);
            }
        }
    }

    fn open(&self, place: &Place, cut: Option<Instant>) -> Result<Connection, Trouble> {
        let name = self.settings.tls_name.as_deref().unwrap_or(place.host());
        let wire = || {
            let left = cut.map_or(Duration::MAX, |cut| cut.saturating_duration_since(Instant::now()));
            let patience = self.settings.patience.min(left.max(Duration::from_millis(1)));
            connect(place, patience, &|local, peer| is_own(&self.settings.own, local, peer)).map_err(|why| {
                let status = if why.contains("this server itself") { 6 } else { 1 };
                Trouble::own(Enhanced::new(4, 4, status), format!("{place}: {why}"))
            })
        };
        let begin = match (self.settings.security, &self.settings.tls) {
            (Security::Implicit, Some(tls)) => Begin::Tls(tls, name),
            (Security::Implicit, None) => {
                return Err(Trouble::own(Enhanced::new(4, 7, 4), "implicit TLS has no settings"));
            }
            _ => Begin::Clear,
        };
        let starttls = self.settings.tls.clone().map(|tls| (tls, name.to_owned()));
        let (connection, next) =
            Connection::begin(wire()?, self.client.clone(), begin, starttls, self.settings.patience, cut, &self.ending);
        if next == Next::Ready {
            return Ok(connection);
        }
        let trouble = self.trouble(place, connection.client().failure());
        let shaky = connection.client().failure().is_some_and(|failure| failure.stage == Stage::StartTls);
        if self.settings.security == Security::Opportunistic && shaky {
            // Nothing is lost by going on without: whoever could listen could also have refused TLS.
            let (connection, next) = Connection::begin(
                wire()?,
                self.client_clear.clone(),
                Begin::Clear,
                None,
                self.settings.patience,
                cut,
                &self.ending,
            );
            return if next == Next::Ready { Ok(connection) } else { Err(trouble) };
        }
        Err(trouble)
    }

    /// What the machine says, as what we say. Never permanent: see the module.
    fn trouble(&self, place: &Place, failure: Option<Failure<'_>>) -> Trouble {
        match failure {
            Some(failure) => trouble(place, &failure, 4),
            None => Trouble::own(Enhanced::new(4, 4, 2), format!("{place}: connection ended")),
        }
    }

    fn transact(
        &self,
        at: usize,
        place: &Place,
        mut connection: Connection,
        mail: &Mail<'_>,
        to: &[Recipient<'_>],
    ) -> Fared {
        let octets = mail.prepend().len() as u64 + mail.body_octets();
        let message = client::Message { envelope: mail.envelope, recipients: to, octets };
        connection.send_message(&message, mail);
        let notifies = connection.client().peer().dsn;
        let verdicts: Vec<Verdict> = connection
            .client()
            .results()
            .map(|result| match result {
                RecipientResult::Taken(_) if self.settings.protocol == Protocol::Lmtp && !notifies => {
                    Verdict::Delivered
                }
                RecipientResult::Taken(_) => Verdict::Relayed { host: place.host().into(), notifies },
                RecipientResult::Failed(failure) if failure.is_permanent() => {
                    Verdict::Never(trouble(place, &failure, 5))
                }
                RecipientResult::Failed(failure) => Verdict::Later(trouble(place, &failure, 4)),
                RecipientResult::Pending => {
                    Verdict::Later(Trouble::own(Enhanced::new(4, 4, 2), format!("{place}: connection ended")))
                }
            })
            .collect();
        match connection.client().failure() {
            None => match self.settings.idle.take() {
                Some(room) => {
                    if let Some(hop) = self.state.lock().hops.get_mut(at) {
                        hop.idle.push((connection, room));
                    }
                }
                None => connection.quit(),
            },
            Some(failure) => {
                let unsettled = verdicts.iter().all(|verdict| matches!(verdict, Verdict::Later(_)));
                // After the end of the message nobody knows whether it was taken: another hop would make a twin.
                if unsettled && failure.class != Class::Permanent && failure.stage != Stage::Final {
                    return Fared::Lost(trouble(place, &failure, 4));
                }
            }
        }
        Fared::Over(verdicts)
    }

    /// With the only next hop that there is; its caller has more of them, and counts connections.
    #[cfg(feature = "mx")]
    pub(crate) fn attempt_only(&self, mail: &Mail<'_>, to: &[Recipient<'_>]) -> Fared {
        match (self.choose(), self.settings.places.first()) {
            (Ok(_), Some(place)) => self.attempt_at(0, place, mail, to),
            (Ok(_), None) => Fared::Lost(Trouble::own(Enhanced::new(4, 4, 0), "route has no next hop")),
            (Err((wait, trouble)), _) => Fared::Down(wait, trouble),
        }
    }

    /// Whether nothing would be lost without it: nobody waits for this next hop, and no connection is open.
    #[cfg(feature = "mx")]
    pub(crate) fn is_forgettable(&self) -> bool {
        let now = Instant::now();
        let down = |hop: &Hop| hop.down.as_ref().is_some_and(|(until, _)| *until > now);
        self.state.lock().hops.iter().all(|hop| hop.idle.is_empty() && !down(hop))
    }

    fn attempt_at(&self, at: usize, place: &Place, mail: &Mail<'_>, to: &[Recipient<'_>]) -> Fared {
        if self.ending.has_begun() {
            return Fared::Over(vec![Verdict::later("delivery ends; tried again after its start"); to.len()]);
        }
        while let Some(connection) = self.take_idle(at) {
            if let Fared::Over(verdicts) = self.transact(at, place, connection, mail, to) {
                return Fared::Over(verdicts);
            }
        }
        let fared = match self.open(place, mail.until()) {
            Ok(connection) => self.transact(at, place, connection, mail, to),
            Err(trouble) => Fared::Lost(trouble),
        };
        match &fared {
            Fared::Lost(trouble) => self.fails(at, trouble),
            _ => self.works(at),
        }
        fared
    }

    fn attempt(&self, mail: &Mail<'_>, to: &[Recipient<'_>]) -> Vec<Verdict> {
        let order = match self.choose() {
            Ok(order) => order,
            Err((wait, trouble)) => return vec![Verdict::Postponed(wait, trouble); to.len()],
        };
        let mut last = None;
        for at in order {
            let Some(place) = self.settings.places.get(at) else { continue };
            if mail.until().is_some_and(|until| Instant::now() >= until) {
                break;
            }
            match self.attempt_at(at, place, mail, to) {
                Fared::Over(verdicts) => return verdicts,
                Fared::Lost(trouble) | Fared::Down(_, trouble) => last = Some(trouble),
            }
        }
        let last = last.unwrap_or_else(|| Trouble::own(Enhanced::new(4, 4, 1), "no next hop could be tried"));
        vec![Verdict::Later(last); to.len()]
    }
}

/// Whether a connection from `local` to `peer` reaches one of our listeners.
pub(crate) fn is_own(own: &[SocketAddr], local: SocketAddr, peer: SocketAddr) -> bool {
    let same_host = local.ip() == peer.ip();
    own.iter()
        .any(|own| own.port() == peer.port() && (own.ip() == peer.ip() || (own.ip().is_unspecified() && same_host)))
}

fn trouble(place: &Place, failure: &Failure<'_>, class: u8) -> Trouble {
    let said = failure.code.map(|code| {
        let enhanced = failure.enhanced.map(|enhanced| format!("{enhanced} ")).unwrap_or_default();
        format!("{code} {enhanced}{}", failure.text)
    });
    Trouble {
        status: Enhanced { class, ..failure.status() },
        text: format!("{place}: {failure}"),
        remote: Some(place.host().into()),
        said,
    }
}

/// Gives the slot back, also when a thread panics.
struct Slot<'a>(&'a NextHops);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.state.lock().in_use -= 1;
        self.0.freed.notify_one();
    }
}

impl Route for NextHops {
    fn name(&self) -> &str {
        match self.settings.protocol {
            Protocol::Smtp => "smtp",
            Protocol::Lmtp => "lmtp",
        }
    }

    fn deliver(&self, mail: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        {
            let mut state = self.state.lock();
            while state.in_use >= self.settings.connections {
                // A message of the queue comes again by itself; a client is here now.
                let waits = mail.until().filter(|_| !self.ending.has_begun());
                if waits.is_none_or(|until| self.freed.wait_until(&mut state, until).timed_out()) {
                    return vec![Verdict::Busy(Destination::default()); recipients.len()];
                }
            }
            state.in_use += 1;
        }
        let _slot = Slot(self);
        if self.settings.protocol == Protocol::Smtp {
            return self.attempt(mail, recipients);
        }
        // LMTP is for mailboxes: aliases are resolved, and of two names for one mailbox one is enough.
        let mut mailboxes: Vec<Recipient<'_>> = Vec::new();
        let places: Vec<usize> = recipients
            .iter()
            .map(|recipient| {
                let address = if recipient.mailbox.contains('@') { recipient.mailbox } else { recipient.address };
                let known = mailboxes.iter().position(|known| known.address == address);
                known.unwrap_or_else(|| {
                    mailboxes.push(Recipient { address, ..*recipient });
                    mailboxes.len() - 1
                })
            })
            .collect();
        let verdicts = self.attempt(mail, &mailboxes);
        places.iter().filter_map(|&place| verdicts.get(place).cloned()).collect()
    }

    fn passes(&self) -> bool {
        self.settings.pass_through
    }

    fn room(&self, _: Destination) -> usize {
        self.settings.connections.saturating_sub(self.state.lock().in_use)
    }

    fn slow_attempts(&self) -> usize {
        self.settings.connections
    }

    fn stop(&self) {
        self.ending.begin();
        self.freed.notify_all();
    }

    fn tidy(&self) {
        let old: Vec<Connection> = {
            let mut state = self.state.lock();
            state
                .hops
                .iter_mut()
                .flat_map(|hop| hop.idle.extract_if(.., |(idle, _)| idle.idle_since.elapsed() >= IDLE_MAX))
                .map(|(idle, _)| idle)
                .collect()
        };
        old.into_iter().for_each(Connection::quit);
    }
}

impl Drop for NextHops {
    fn drop(&mut self) {
        let idle = self.state.get_mut().hops.iter_mut().flat_map(|hop| std::mem::take(&mut hop.idle));
        idle.for_each(|(connection, _)| connection.quit());
    }
}
