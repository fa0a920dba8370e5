//! Questions to the name servers: typed, bounded answers out of hickory's resolver, kept for as long as they are good.
//!
//! ```text
//! delivery thread ─ ask ─► kept and still good? ─► it
//!                              └► hickory, on a runtime of one thread: UDP, and TCP for what is truncated
//! ```
//!
//! Only records of the name that was asked for count, or of the one that its CNAMEs lead to; what else an answer holds
//! is nothing that we asked. The hosts file is not looked at: MX is a matter of the DNS alone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

/// Where the system says which name servers it has.
const SYSTEM: &str = "/etc/resolv.conf";
/// Records of one answer that are looked at.
const RECORDS_MAX: usize = 256;
/// Octets of a TXT record; a longer one is good for nothing here.
const TEXT_OCTETS_MAX: usize = 2048;
/// CNAMEs from a name to its records.
const ALIASES_MAX: usize = 8;
/// Answers that are kept.
const KEPT_MAX: usize = 4096;
/// However long a name server would have us keep an answer.
const KEEP_MAX: Duration = Duration::from_secs(3600);
/// The same for "there is nothing".
const KEEP_NOTHING_MAX: Duration = Duration::from_secs(300);
/// Times that a question is asked.
const ATTEMPTS: usize = 2;

/// Why there is no answer, or no use in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// NXDOMAIN.
    NoName,
    /// The name exists, and has nothing of this kind.
    Nothing,
    /// Not now; which answer, in words.
    NotNow(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str("the name does not exist (NXDOMAIN)"),
            Self::Nothing => f.write_str("there is no such record"),
            Self::NotNow(why) => f.write_str(why),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    /// Preference and host; the root is the empty text.
    Exchange(u16, String),
    Address(IpAddr),
    Text(Vec<u8>),
}

type Answer = Result<Arc<[Found]>, NoAnswer>;

/// The resolver.
pub(crate) struct Dns {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    inner: Arc<Inner>,
    stop: watch::Sender<bool>,
}

struct Inner {
    resolver: Mutex<Resolver>,
    /// Name servers of the operator; empty: the system's.
    servers: Vec<SocketAddr>,
    patience: Duration,
    kept: Mutex<HashMap<(String, RecordType), (Instant, Answer)>>,
}

struct Resolver {
    hickory: Arc<TokioResolver>,
    /// The system's settings that it was made from.
    made_from: Vec<u8>,
}

impl Dns {
    /// Asks these name servers, or the system's when there is none; `patience` is for one attempt.
    pub(crate) fn new(servers: &[SocketAddr], patience: Duration) -> Result<Self, String> {
        let thread = |error: io::Error| format!("no thread for the resolver: {error}");
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("dns").enable_all().build();
        let inner = Inner {
            resolver: Mutex::new(make(servers, patience)?),
            servers: servers.to_vec(),
            patience,
            kept: Mutex::default(),
        };
        Ok(Self { runtime: Some(runtime.map_err(thread)?), inner: Arc::new(inner), stop: watch::Sender::new(false) })
    }

    /// Whoever waits for an answer goes without.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The system's settings are read again when they have changed.
    pub(crate) fn tidy(&self) {
        self.inner.tidy();
    }

    /// The MX records of a domain.
    pub(crate) fn exchanges(&self, domain: &str) -> Result<Vec<(u16, String)>, NoAnswer> {
        let found = self.wait(Inner::ask(self.inner.clone(), domain.to_owned(), RecordType::MX))?;
        Ok(found
            .iter()
            .filter_map(|found| match found {
                Found::Exchange(preference, host) => Some((*preference, host.clone())),
                _ => None,
            })
            .collect())
    }

    /// The texts at a name.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<Vec<u8>>, NoAnswer> {
        let found = self.wait(Inner::ask(self.inner.clone(), name.to_owned(), RecordType::TXT))?;
        Ok(found
            .iter()
            .filter_map(|found| match found {
                Found::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect())
    }

    /// The addresses of each of these hosts: IPv6 and IPv4 by turns, so that a host of a network without one of
    /// them does not use up its tries.
    pub(crate) fn addresses(&self, hosts: &[String]) -> Vec<Result<Vec<IpAddr>, NoAnswer>> {
        let Some(runtime) = &self.runtime else { return Vec::new() };
        let questions: Vec<_> = hosts
            .iter()
            .map(|host| {
                [RecordType::AAAA, RecordType::A]
                    .map(|kind| runtime.spawn(Inner::ask(self.inner.clone(), host.clone(), kind)))
            })
            .collect();
        let mut answers = Vec::with_capacity(hosts.len());
        for [six, four] in questions {
            let both = self.wait(async {
                let ended = |_| Err(NoAnswer::NotNow("the lookup ended without an answer".to_owned()));
                Ok([six.await.unwrap_or_else(ended), four.await.unwrap_or_else(ended)])
            });
            answers.push(both.and_then(|both| all_addresses(&both)));
        }
        answers
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, NoAnswer>>) -> Result<T, NoAnswer> {
        let Some(runtime) = &self.runtime else { return Err(NoAnswer::NotNow("delivery ends".to_owned())) };
        let mut stop = self.stop.subscribe();
        runtime.block_on(async {
            tokio::select! {
                biased;
                answer = answer => answer,
                _ = stop.wait_for(|stop| *stop) => Err(NoAnswer::NotNow("delivery ends".to_owned())),
            }
        })
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Questions that are still out are nobody's any more.
            runtime.shutdown_background();
        }
    }
}

/// One kind of address is enough, whatever became of the question for the other.
fn all_addresses(both: &[Answer; 2]) -> Result<Vec<IpAddr>, NoAnswer> {
    let [six, four] = both.each_ref().map(|answer| {
        let found = answer.iter().flat_map(|found| found.iter());
        found.filter_map(|found| match found {
            Found::Address(address) => Some(*address),
            _ => None,
        })
    });
    let addresses = by_turns(six, four);
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let troubles = || both.iter().filter_map(|answer| answer.as_ref().err());
    let not_now = troubles().find(|trouble| matches!(trouble, NoAnswer::NotNow(_)));
    Err(not_now
        .or_else(|| troubles().find(|trouble| **trouble == NoAnswer::NoName))
        .unwrap_or(&NoAnswer::Nothing)
        .clone())
}

fn by_turns(mut one: impl Iterator<Item = IpAddr>, mut other: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(one.next());
        all.extend(other.next());
        if all.len() == before {
            return all;
        }
    }
}

impl Inner {
    fn tidy(&self) {
        let now = Instant::now();
        self.kept.lock().retain(|_, (until, _)| *until > now);
        if self.servers.is_empty()
            && std::fs::read(SYSTEM).is_ok_and(|now| now != self.resolver.lock().made_from)
            // While the file is half written the old name servers are good enough.
            && let Ok(made) = make(&self.servers, self.patience)
        {
            *self.resolver.lock() = made;
        }
    }

    async fn ask(self: Arc<Self>, name: String, kind: RecordType) -> Answer {
        let key = (name, kind);
        if let Some((until, answer)) = self.kept.lock().get(&key)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let (answer, keep) = self.ask_servers(&key.0, kind).await;
        if let Some(keep) = keep.filter(|keep| !keep.is_zero()) {
            let now = Instant::now();
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT_MAX {
                kept.retain(|_, (until, _)| *until > now);
            }
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            kept.insert(key, (now + keep, answer.clone()));
        }
        answer
    }

    /// The answer, and how long it is good.
    async fn ask_servers(&self, name: &str, kind: RecordType) -> (Answer, Option<Duration>) {
        // With the dot at the end no search list applies: names in mail are whole (RFC 5321 §5.1).
        let Ok(name) = Name::from_ascii(format!("{name}.")) else { return (Err(NoAnswer::NoName), None) };
        let resolver = self.resolver.lock().hickory.clone();
        // Some servers, some attempts, CNAMEs: together they have an end as well.
        let patience = self.patience * (2 * ATTEMPTS as u32) + Duration::from_secs(1);
        let Ok(answer) = tokio::time::timeout(patience, resolver.lookup(name.clone(), kind)).await else {
            return (Err(NoAnswer::NotNow("the name servers did not answer in time".to_owned())), None);
        };
        match answer {
            Ok(lookup) => {
                let (found, ttl) = select(lookup.answers(), name, kind);
                let keep = Duration::from_secs(ttl.into());
                match found {
                    Some(found) => (Ok(found), Some(keep.min(KEEP_MAX))),
                    None => (Err(NoAnswer::Nothing), None),
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let keep = none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()).min(KEEP_NOTHING_MAX));
                match none.response_code {
                    ResponseCode::NXDomain => (Err(NoAnswer::NoName), keep),
                    ResponseCode::NoError => (Err(NoAnswer::Nothing), keep),
                    code => (Err(answered(code)), None),
                }
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => (Err(answered(code)), None),
            Err(NetError::Timeout) => {
                (Err(NoAnswer::NotNow("the name servers did not answer in time".to_owned())), None)
            }
            Err(other) => {
                let why: String = other.to_string().chars().filter(|c| !c.is_control()).take(200).collect();
                (Err(NoAnswer::NotNow(format!("the lookup failed: {why}"))), None)
            }
        }
    }
}

fn answered(code: ResponseCode) -> NoAnswer {
    let word = match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => other.to_string(),
    };
    NoAnswer::NotNow(format!("the name server answered {word}"))
}

/// Records of this kind at the name, or where its CNAMEs lead, and the least of their times; `None` without any.
fn select(records: &[Record], name: Name, kind: RecordType) -> (Option<Arc<[Found]>>, u32) {
    let (mut owner, mut ttl) = (name, u32::MAX);
    for _ in 0..ALIASES_MAX {
        let here = || records.iter().filter(|record| record.name == owner);
        let mut found: Vec<Found> = Vec::new();
        for record in here().filter(|record| record.record_type() == kind) {
            ttl = ttl.min(record.ttl);
            found.extend(read(&record.data));
        }
        if !found.is_empty() {
            if kind == RecordType::MX {
                // The best ones are those that a bound must leave.
                found.sort_unstable();
            }
            found.truncate(RECORDS_MAX);
            return (Some(found.into()), ttl);
        }
        let alias = here().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((target.0.clone(), record.ttl)),
            _ => None,
        });
        let Some((target, of_alias)) = alias else { break };
        (owner, ttl) = (target, ttl.min(of_alias));
    }
    (None, 0)
}

fn read(data: &RData) -> Option<Found> {
    match data {
        RData::MX(mx) => {
            let host = mx.exchange.to_ascii().to_ascii_lowercase();
            Some(Found::Exchange(mx.preference, host.trim_end_matches('.').to_owned()))
        }
        RData::A(a) => Some(Found::Address(a.0.into())),
        RData::AAAA(aaaa) => Some(Found::Address(aaaa.0.into())),
        RData::TXT(txt) => {
            let text = txt.txt_data.concat();
            Some(Found::Text(if text.len() <= TEXT_OCTETS_MAX { text } else { text[..8].to_vec() }))
        }
        _ => None,
    }
}

fn make(servers: &[SocketAddr], patience: Duration) -> Result<Resolver, String> {
    let (config, mut options, made_from) = if servers.is_empty() {
        let octets = std::fs::read(SYSTEM).map_err(|error| format!("{SYSTEM}: {error}"))?;
        let read = hickory_resolver::system_conf::parse_resolv_conf(&octets);
        let (config, options) = read.map_err(|error| format!("{SYSTEM}: {error}"))?;
        (config, options, octets)
    } else {
        let servers = servers.iter().map(|server| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            connections.iter_mut().for_each(|connection| connection.port = server.port());
            NameServerConfig::new(server.ip(), true, connections)
        });
        (ResolverConfig::from_parts(None, Vec::new(), servers.collect()), ResolverOpts::default(), Vec::new())
    };
    options.timeout = patience;
    options.attempts = ATTEMPTS;
    options.edns0 = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    options.preserve_intermediates = true;
    // Kept here, in fewer octets.
    options.cache_size = 0;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    let hickory = builder.build().map_err(|error| format!("the resolver cannot be made: {error}"))?;
    Ok(Resolver { hickory: Arc::new(hickory), made_from })
}
