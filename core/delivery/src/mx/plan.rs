//! From a domain to hosts and addresses, or to the reason why there are none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use smtp::client::Enhanced;

use super::dns::{Dns, NoAnswer};
use super::exchanges::{Exchange, Exchanges, order};
use super::guard::Guard;
use super::policies::{Kept, Policies};
use super::{MxSettings, chance};
use crate::connection::Ending;
use crate::next_hop::is_own;
use crate::route::Trouble;

/// Hosts of one domain that are looked at.
const HOSTS_MAX: usize = 10;
/// Addresses of one host.
const ADDRESSES_PER_HOST_MAX: usize = 8;

/// Where mail for a domain may go.
#[derive(Debug)]
pub(crate) struct Plan {
    /// As the DNS knows it.
    pub(crate) domain: String,
    /// In this order.
    pub(crate) hosts: Vec<Host>,
    /// In force.
    pub(crate) policy: Option<Arc<Kept>>,
}

/// A host that may be tried.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    /// Never empty; or why they are not known now.
    pub(crate) addresses: Result<Vec<IpAddr>, Trouble>,
}

/// Why nothing can be tried.
#[derive(Debug)]
pub(crate) enum NoPlan {
    Later(Trouble),
    Never(Trouble),
}

fn never(subject: u16, detail: u16, text: String) -> NoPlan {
    NoPlan::Never(Trouble::own(Enhanced::new(5, subject, detail), text))
}

impl Plan {
    /// Asks the DNS.
    pub(crate) fn make(
        domain: &str,
        dns: &Dns,
        guard: &Guard,
        settings: &MxSettings,
        policies: Option<&Policies>,
        ending: &Ending,
    ) -> Result<Self, NoPlan> {
        if domain.starts_with('[') {
            return literal(domain, guard, settings);
        }
        // Only A-labels are in the DNS.
        let name = idna::domain_to_ascii(domain).ok().filter(|name| smtp::path::is_domain(name));
        let Some(name) = name else {
            return Err(never(1, 2, format!("{domain:?} is no domain that can be looked up")));
        };
        let records = match dns.exchanges(&name) {
            Ok(records) => records,
            Err(NoAnswer::Nothing) => Vec::new(),
            Err(NoAnswer::NoName) => return Err(never(1, 2, format!("{name}: {} (MX lookup)", NoAnswer::NoName))),
            Err(NoAnswer::NotNow(why)) => {
                let text = format!("{name}: its MX records are not known now: {why}");
                return Err(NoPlan::Later(Trouble::own(Enhanced::new(4, 4, 3), text)));
            }
        };
        let implicit = records.is_empty();
        let exchanges = match order(&name, &records, &settings.own_names, &mut chance) {
            Exchanges::Hosts(mut hosts) => {
                hosts.truncate(HOSTS_MAX);
                hosts
            }
            Exchanges::Null => {
                let text = format!("{name} accepts no mail: its only MX record is the null MX (RFC 7505)");
                return Err(never(1, 10, text));
            }
            Exchanges::Ours => return Err(ours(&name)),
            Exchanges::Unusable => return Err(never(4, 4, format!("{name}: none of its MX records names a host"))),
        };
        let names: Vec<String> = exchanges.iter().map(|exchange| exchange.host.clone()).collect();
        let answers = dns.addresses(&names);
        let hosts = usable(&name, implicit, &exchanges, answers, guard, settings)?;
        let policy = policies.and_then(|policies| policies.find(&name, dns, guard, ending));
        Ok(Self { domain: name, hosts, policy })
    }
}

/// The hosts that have addresses which may be used; and none as good as we are, or worse.
fn usable(
    domain: &str,
    implicit: bool,
    exchanges: &[Exchange],
    answers: Vec<Result<Vec<IpAddr>, NoAnswer>>,
    guard: &Guard,
    settings: &MxSettings,
) -> Result<Vec<Host>, NoPlan> {
    let mut hosts: Vec<(u16, Host)> = Vec::new();
    // For the operator, when nothing is left.
    let mut passed_over: Vec<String> = Vec::new();
    let mut refused = false;
    for (Exchange { preference, host }, answer) in exchanges.iter().zip(answers) {
        let name = host.clone();
        let addresses = match answer {
            Ok(addresses) => addresses,
            Err(NoAnswer::NotNow(why)) => {
                let text = format!("{name} (MX of {domain}): its addresses are not known now: {why}");
                let trouble = Trouble::own(Enhanced::new(4, 4, 3), text);
                hosts.push((*preference, Host { name, addresses: Err(trouble) }));
                continue;
            }
            Err(none) => {
                passed_over.push(format!("{name}: no address: {none}"));
                continue;
            }
        };
        if addresses.iter().any(|&address| is_ours(address, settings)) {
            hosts.retain(|(better, _)| better < preference);
            if hosts.is_empty() {
                return Err(ours(domain));
            }
            break;
        }
        let mut allowed = Vec::new();
        for address in addresses.into_iter().take(ADDRESSES_PER_HOST_MAX) {
            match guard.refuses(address) {
                None => allowed.push(address),
                Some(kind) => {
                    refused = true;
                    passed_over.push(format!("{name}: {address} is {kind}"));
                }
            }
        }
        if !allowed.is_empty() {
            hosts.push((*preference, Host { name, addresses: Ok(allowed) }));
        }
    }
    if hosts.is_empty() {
        let why = passed_over.join(", ");
        // Neither MX nor address: nobody can mean this domain.
        return Err(if implicit && !refused {
            never(1, 2, format!("{domain} has no MX record and no address"))
        } else {
            never(4, 4, format!("no host of {domain} can be used: {why}"))
        });
    }
    Ok(hosts.into_iter().map(|(_, host)| host).collect())
}

fn ours(domain: &str) -> NoPlan {
    let text = format!(
        "mail for {domain} would come back: the best MX of {domain} is this server, which has no mailboxes for it; \
         add a route for {domain}, or mend its MX records"
    );
    never(4, 6, text)
}

/// `user@[192.0.2.1]` names its host itself.
fn literal(domain: &str, guard: &Guard, settings: &MxSettings) -> Result<Plan, NoPlan> {
    let inner = domain.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or_default();
    let six = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("ipv6:")).and_then(|_| inner.get(5..));
    let address = match six {
        Some(six) => six.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => inner.parse::<Ipv4Addr>().map(IpAddr::V4),
    };
    let Ok(address) = address else {
        return Err(never(1, 2, format!("{domain} is no address of a host")));
    };
    if is_ours(address, settings) {
        return Err(ours(domain));
    }
    if let Some(kind) = guard.refuses(address) {
        return Err(never(4, 4, format!("{address} is {kind}: mail does not go there")));
    }
    let host = Host { name: address.to_string(), addresses: Ok(vec![address]) };
    // No policy is defined for literals (RFC 8461 §3.4).
    Ok(Plan { domain: domain.to_owned(), hosts: vec![host], policy: None })
}

/// Whether our own listeners are behind an address.
fn is_ours(address: IpAddr, settings: &MxSettings) -> bool {
    let peer = SocketAddr::new(address, settings.port);
    // Connected in name only: nothing is sent, and the kernel tells from where it would be.
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let local = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    // Without a way to it it is not ours.
    let local = local.unwrap_or(SocketAddr::new(any, 0));
    is_own(&settings.own, local, peer)
}
