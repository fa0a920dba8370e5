//! The route `mx`: mail goes straight to the hosts that the recipient's domain names in the DNS (RFC 5321 §5.1).
//!
//! ```text
//! recipients ─ by domain ─► plan: MX ─► order, without us ─► addresses, without inner ones ─► MTA-STS policy
//!                             └ no such domain, null MX, loop: Never      └ no answer: Later, for all who ask
//! plan ─► host after host, address after address ─► the ordinary client, one `NextHops` for each address
//! ```
//!
//! - Connections, back-off and idle connections belong to an address of a host, whoever's mail it takes.
//! - A policy in force (RFC 8461) turns opportunistic TLS into TLS with a verified certificate; a host that it does
//!   not name counts as one that cannot be reached (§8.4).
//! - What the DNS says comes from strangers: answers are bounded, and lead into no network that is not public unless
//!   the operator has opened it.

mod dns;
mod exchanges;
mod guard;
mod https;
mod plan;
mod policies;
mod sts;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::Mutex;
use smtp::client::{Enhanced, Protocol};
use smtp::envelope::Recipient;
use tls::ClientTls;

use self::dns::Dns;
use self::guard::Guard;
use self::plan::{Host, NoPlan, Plan};
use self::policies::{Kept, Policies};
use crate::connection::{Ending, Place};
use crate::event::Events;
use crate::next_hop::{Fared, HopSettings, IdleRoom, NextHops, Security};
use crate::retry::Retry;
use crate::route::{Destination, Mail, Route, Trouble, Verdict};

/// What the operator chose for direct delivery.
pub struct MxSettings {
    /// Our own name in EHLO.
    pub hostname: String,
    /// All names by which we are known: never a next hop.
    pub own_names: Vec<String>,
    /// Where this server listens: never a next hop.
    pub own: Vec<SocketAddr>,
    /// Of next hops; 25 but in tests.
    pub port: u16,
    /// Whether TLS is used where no policy asks for it; never [`Security::Implicit`].
    pub security: Security,
    /// With any certificate.
    pub tls_any: ClientTls,
    /// With a certificate that verifies.
    pub tls_verified: ClientTls,
    /// MTA-STS; `None`: policies are not asked for.
    pub sts: Option<StsSettings>,
    /// Name servers; empty: those of the system.
    pub resolver: Vec<SocketAddr>,
    /// Longest wait for one answer of a name server.
    pub dns_patience: Duration,
    /// Networks that are not public and may be sent to all the same.
    pub allowed: Vec<IpNet>,
    /// Connections at the same time.
    pub connections: usize,
    /// Of these, to one host.
    pub connections_per_host: usize,
    /// Longest wait for one reply.
    pub patience: Duration,
    /// How long a host that fails is left alone, and a domain whose name servers do.
    pub backoff: Retry,
    /// Hears of policies that cannot be fetched.
    pub events: Arc<dyn Events>,
}

/// How MTA-STS policies are fetched and kept.
pub struct StsSettings {
    /// Of policy hosts; 443 but in tests.
    pub port: u16,
    /// Where they are kept; `None`: in memory only.
    pub folder: Option<PathBuf>,
}

/// Direct delivery.
pub struct MxRoute {
    settings: MxSettings,
    dns: Dns,
    guard: Guard,
    policies: Option<Policies>,
    ending: Ending,
    idle: IdleRoom,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Attempts under way.
    in_use: usize,
    /// By host.
    by_host: HashMap<Destination, usize>,
    /// Domains that are looked up just now.
    looking: HashSet<Destination>,
    hops: HashMap<Hop, Arc<NextHops>>,
    /// Domains whose name servers gave no answer: how often, not before when, what happened last.
    unanswered: HashMap<String, (u32, Instant, Trouble)>,
}

/// An address of a host, and whether its certificate is verified: connections are no more alike than that.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Hop {
    host: String,
    address: SocketAddr,
    verified: bool,
}

/// Addresses that are tried for one message and domain (RFC 5321 §5.1: at least two).
const ADDRESSES_MAX: usize = 8;
/// Domains of one message that are served at the same time.
const DOMAINS_AT_ONCE: usize = 4;
/// Hosts that are remembered, with their connections and troubles.
const HOPS_MAX: usize = 4096;
/// Domains without an answer that are remembered.
const UNANSWERED_MAX: usize = 4096;

impl MxRoute {
    /// Makes the route; fails when our name is none, or there is no name server.
    pub fn new(settings: MxSettings) -> Result<Self, String> {
        let dns = Dns::new(&settings.resolver, settings.dns_patience)?;
        let policies = settings.sts.as_ref().map(|sts| {
            Policies::open(sts.folder.clone(), sts.port, settings.tls_verified.clone(), settings.events.clone())
        });
        let made = Self {
            dns,
            guard: Guard(settings.allowed.clone()),
            policies,
            ending: Ending::default(),
            idle: IdleRoom::new(settings.connections),
            state: Mutex::default(),
            settings,
        };
        // Our name is tried now, not at the first message.
        made.next_hop(&Hop { host: "localhost".to_owned(), address: ([0, 0, 0, 0], 25).into(), verified: false })?;
        Ok(made)
    }

    fn next_hop(&self, hop: &Hop) -> Result<NextHops, String> {
        let settings = &self.settings;
        let security = if hop.verified { Security::Required } else { settings.security };
        let made = NextHops::new(HopSettings {
            places: vec![Place::Found(hop.host.clone(), hop.address)],
            protocol: Protocol::Smtp,
            hostname: settings.hostname.clone(),
            security,
            tls: match security {
                Security::Off => None,
                Security::Opportunistic => Some(settings.tls_any.clone()),
                Security::Required | Security::Implicit => Some(settings.tls_verified.clone()),
            },
            tls_name: None,
            credentials: None,
            connections: settings.connections_per_host,
            patience: settings.patience,
            backoff: settings.backoff,
            own: settings.own.clone(),
            pass_through: false,
            idle: self.idle.clone(),
        });
        Ok(made?.ends_with(&self.ending))
    }

    fn hop(&self, hop: Hop) -> Result<Arc<NextHops>, String> {
        if let Some(known) = self.state.lock().hops.get(&hop) {
            return Ok(known.clone());
        }
        let made = Arc::new(self.next_hop(&hop)?);
        let mut state = self.state.lock();
        if state.hops.len() >= HOPS_MAX {
            state.hops.retain(|_, hop| Arc::strong_count(hop) > 1 || !hop.is_forgettable());
        }
        // A table full of hosts that are all down: this one's trouble is not remembered.
        if state.hops.len() < HOPS_MAX {
            return Ok(state.hops.entry(hop).or_insert(made).clone());
        }
        Ok(made)
    }

    /// All that is done for the recipients of one domain.
    fn to_domain(&self, mail: &Mail<'_>, domain: &str, to: &[Recipient<'_>]) -> Vec<Verdict> {
        if self.ending.has_begun() {
            return vec![Verdict::later("delivery ends; tried again after its start"); to.len()];
        }
        let verdict = match self.plan(domain) {
            Ok(plan) => match self.follow(&plan, mail, to) {
                Ok(verdicts) => return verdicts,
                Err(verdict) => verdict,
            },
            Err(verdict) => verdict,
        };
        vec![verdict; to.len()]
    }

    /// What the DNS says about a domain, asked by one message at a time.
    fn plan(&self, domain: &str) -> Result<Plan, Verdict> {
        let now = Instant::now();
        let destination = destination("domain", domain);
        let _looking = {
            let mut state = self.state.lock();
            if let Some((_, until, trouble)) = state.unanswered.get(domain)
                && *until > now
            {
                return Err(Verdict::Postponed(*until - now, trouble.clone()));
            }
            if !state.looking.insert(destination) {
                return Err(Verdict::Busy(destination));
            }
            Looking(self, destination)
        };
        let made = Plan::make(domain, &self.dns, &self.guard, &self.settings, self.policies.as_ref(), &self.ending);
        let mut state = self.state.lock();
        match made {
            Ok(plan) => {
                state.unanswered.remove(domain);
                Ok(plan)
            }
            Err(NoPlan::Never(trouble)) => {
                state.unanswered.remove(domain);
                Err(Verdict::Never(trouble))
            }
            Err(NoPlan::Later(trouble)) => {
                if state.unanswered.len() >= UNANSWERED_MAX {
                    state.unanswered.retain(|_, (_, until, _)| *until > now);
                }
                if state.unanswered.len() < UNANSWERED_MAX || state.unanswered.contains_key(domain) {
                    let failures = state.unanswered.get(domain).map_or(0, |(failures, ..)| *failures) + 1;
                    let until = Instant::now() + self.settings.backoff.after(failures, chance());
                    state.unanswered.insert(domain.to_owned(), (failures, until, trouble.clone()));
                }
                Err(Verdict::Later(trouble))
            }
        }
    }

    /// Host after host, until one has decided; otherwise one verdict for all.
    fn follow(&self, plan: &Plan, mail: &Mail<'_>, to: &[Recipient<'_>]) -> Result<Vec<Verdict>, Verdict> {
        let mut tried = 0;
        let mut last: Option<Trouble> = None;
        let mut soonest: Option<(Duration, Trouble)> = None;
        for Host { name, addresses } in &plan.hosts {
            let addresses = match addresses {
                Ok(addresses) => addresses,
                Err(trouble) => {
                    last = Some(trouble.clone());
                    continue;
                }
            };
            if let Some(kept) = &plan.policy
                && !kept.policy.names(name)
            {
                let text = format!("{name} is not among the hosts that {} permits", in_words(&plan.domain, kept));
                last = Some(Trouble::own(Enhanced::new(4, 7, 0), text));
                continue;
            }
            for address in addresses {
                if tried == ADDRESSES_MAX {
                    break;
                }
                let address = SocketAddr::new(*address, self.settings.port);
                let host = destination("host", name);
                let Some(_slot) = self.slot(host) else { return Err(Verdict::Busy(host)) };
                let hop = Hop { host: name.clone(), address, verified: plan.policy.is_some() };
                match self.hop(hop).map_err(Verdict::later)?.attempt_only(mail, to) {
                    Fared::Over(verdicts) => return Ok(verdicts),
                    Fared::Lost(trouble) => {
                        tried += 1;
                        last = Some(self.explained(plan, trouble));
                    }
                    Fared::Down(wait, trouble) => {
                        if soonest.as_ref().is_none_or(|(least, _)| wait < *least) {
                            soonest = Some((wait, self.explained(plan, trouble)));
                        }
                    }
                }
            }
        }
        Err(match (tried, soonest, last) {
            (0, Some((wait, trouble)), _) => Verdict::Postponed(wait, trouble),
            (_, _, Some(trouble)) | (_, Some((_, trouble)), None) => Verdict::Later(trouble),
            (_, None, None) => {
                Verdict::Later(Trouble::own(Enhanced::new(4, 4, 1), format!("{}: no host could be tried", plan.domain)))
            }
        })
    }

    /// Where a policy is in force the operator should know that TLS was not our own wish.
    fn explained(&self, plan: &Plan, trouble: Trouble) -> Trouble {
        match &plan.policy {
            Some(kept) => {
                let text = format!("{} ({} demands verified TLS)", trouble.text, in_words(&plan.domain, kept));
                Trouble { text, ..trouble }
            }
            None => trouble,
        }
    }

    fn slot(&self, host: Destination) -> Option<Slot<'_>> {
        let mut state = self.state.lock();
        let in_use = state.by_host.entry(host).or_default();
        if *in_use >= self.settings.connections_per_host {
            return None;
        }
        *in_use += 1;
        Some(Slot(self, host))
    }

    fn attempt_slot(&self) -> Option<AttemptSlot<'_>> {
        let mut state = self.state.lock();
        if state.in_use >= self.settings.connections {
            return None;
        }
        state.in_use += 1;
        Some(AttemptSlot(self))
    }
}

fn in_words(domain: &str, kept: &Kept) -> String {
    format!("the MTA-STS policy of {domain} (mode {}, id {})", kept.policy.mode.word(), kept.id)
}

fn destination(kind: &str, name: &str) -> Destination {
    let mut hasher = DefaultHasher::new();
    (kind, name).hash(&mut hasher);
    // 0 stands for the route as a whole.
    Destination(hasher.finish().max(1))
}

fn chance() -> u32 {
    let mut chance = [0; 4];
    // Without randomness nothing is spread; nothing else depends on it.
    let _ = getrandom::fill(&mut chance);
    u32::from_le_bytes(chance)
}

/// The domain's lookup is over, also when a thread panics.
struct Looking<'a>(&'a MxRoute, Destination);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.state.lock().looking.remove(&self.1);
    }
}

/// One connection to a host.
struct Slot<'a>(&'a MxRoute, Destination);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if let Some(in_use) = state.by_host.get_mut(&self.1) {
            *in_use -= 1;
            if *in_use == 0 {
                state.by_host.remove(&self.1);
            }
        }
    }
}

/// One attempt of this route.
struct AttemptSlot<'a>(&'a MxRoute);

impl Drop for AttemptSlot<'_> {
    fn drop(&mut self) {
        self.0.state.lock().in_use -= 1;
    }
}

impl Route for MxRoute {
    fn name(&self) -> &str {
        "mx"
    }

    fn deliver(&self, mail: &Mail<'_>, recipients: &[Recipient<'_>]) -> Vec<Verdict> {
        let Some(slot) = self.attempt_slot() else {
            return vec![Verdict::Busy(Destination::default()); recipients.len()];
        };
        // Per domain: who they are, by their places.
        let mut domains: Vec<(String, Vec<usize>)> = Vec::new();
        for (place, recipient) in recipients.iter().enumerate() {
            let domain = domain_of(recipient).to_lowercase();
            match domains.iter_mut().find(|(known, _)| *known == domain) {
                Some((_, places)) => places.push(place),
                None => domains.push((domain, vec![place])),
            }
        }
        let next = AtomicUsize::new(0);
        let verdicts = Mutex::new(vec![None; recipients.len()]);
        let serve = |_slot: AttemptSlot<'_>| {
            while let Some((domain, places)) = domains.get(next.fetch_add(1, Ordering::SeqCst)) {
                let to: Vec<Recipient<'_>> =
                    places.iter().filter_map(|&place| recipients.get(place).copied()).collect();
                let ends = self.to_domain(mail, domain, &to);
                mail.ended(&to, &ends);
                let mut verdicts = verdicts.lock();
                for (&place, end) in places.iter().zip(ends) {
                    if let Some(verdict) = verdicts.get_mut(place) {
                        *verdict = Some(end);
                    }
                }
            }
        };
        // A domain that stalls does not hold up the others of the same message.
        std::thread::scope(|scope| {
            for _ in 1..domains.len().min(DOMAINS_AT_ONCE) {
                let Some(slot) = self.attempt_slot() else { break };
                // Without another thread this one does it all.
                let _ = std::thread::Builder::new().name("mx".to_owned()).spawn_scoped(scope, || serve(slot));
            }
            serve(slot);
        });
        let none = || Verdict::later("its domain was not tried");
        verdicts.into_inner().into_iter().map(|verdict| verdict.unwrap_or_else(none)).collect()
    }

    fn room(&self, to: Destination) -> usize {
        let state = self.state.lock();
        let room = self.settings.connections.saturating_sub(state.in_use);
        if to == Destination::default() {
            room
        } else if state.looking.contains(&to) {
            0
        } else {
            let here = state.by_host.get(&to).copied().unwrap_or_default();
            room.min(self.settings.connections_per_host.saturating_sub(here))
        }
    }

    fn slow_attempts(&self) -> usize {
        self.settings.connections
    }

    fn stop(&self) {
        self.ending.begin();
        self.dns.stop();
    }

    fn tidy(&self) {
        self.dns.tidy();
        let now = Instant::now();
        let hops: Vec<Arc<NextHops>> = {
            let mut state = self.state.lock();
            state.unanswered.retain(|_, (_, until, _)| now < *until + self.settings.backoff.max);
            state.hops.retain(|_, hop| Arc::strong_count(hop) > 1 || !hop.is_forgettable());
            state.hops.values().cloned().collect()
        };
        hops.iter().for_each(|hop| hop.tidy());
    }
}

/// Without a domain of its own (`postmaster`) a recipient belongs where its mailbox does.
fn domain_of<'a>(recipient: &Recipient<'a>) -> &'a str {
    let domain = |address: &'a str| address.rsplit_once('@').map(|(_, domain)| domain);
    domain(recipient.address).or_else(|| domain(recipient.mailbox)).unwrap_or_default()
}

/// Anything may come from name servers and policy hosts: no octets make these parsers panic.
pub fn fuzz_mx(octets: &[u8]) {
    let _ = sts::announced(octets.split(|&octet| octet == b'\n'));
    if let Ok(policy) = sts::Policy::parse(octets) {
        assert_eq!(sts::Policy::parse(policy.text().as_bytes()).as_ref(), Ok(&policy), "what is kept is what was read");
        let _ = policy.names("mail.far.example");
    }
    let _ = Kept::decode(octets);
    for closed in [false, true] {
        let _ = https::read_answer(octets, closed);
    }
}
