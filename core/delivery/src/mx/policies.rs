//! MTA-STS (RFC 8461), the part around the pure one: policies are found, fetched and kept.
//!
//! ```text
//! domain ─ TXT at _mta-sts ─► id as kept, younger than a day? ─► the kept one
//!                               └► HTTPS from mta-sts.{domain} ─► kept, in memory and in a file
//!                                     └ fails: the kept one as long as it has not expired, else none (§3.3)
//! ```
//!
//! The files are what makes a policy worth something: who can cut off DNS or HTTPS after a restart must not be able to
//! talk us out of TLS (§10).

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use smtp::path::is_domain;
use tls::ClientTls;

use super::dns::{Dns, NoAnswer};
use super::sts::{Mode, Policy, announced};
use super::{Guard, https};
use crate::connection::Ending;
use crate::event::{Event, Events};

/// Domains whose policies are kept; the one that expires first makes room.
const KEPT_MAX: usize = 4096;
/// A policy is looked at again after a day (§3.3), so that it does not expire unseen.
const REFRESH_SECONDS: u64 = 24 * 3600;
/// Between two fetches of one version that fail (§3.3).
const FETCH_AGAIN: Duration = Duration::from_secs(300);
const FETCH_PATIENCE: Duration = Duration::from_secs(30);
const FAILURES_MAX: usize = 4096;
/// Octets of a file of ours.
const FILE_OCTETS_MAX: u64 = 128 << 10;

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// From the TXT record; for the operator, and to see a change.
    pub(crate) id: String,
    /// Seconds since 1970.
    fetched: u64,
    pub(crate) policy: Policy,
}

/// Finds, fetches and keeps.
pub(crate) struct Policies {
    /// One file for each domain; `None`: they are in memory only.
    folder: Option<PathBuf>,
    /// Of policy hosts.
    port: u16,
    tls: ClientTls,
    kept: Mutex<HashMap<String, Arc<Kept>>>,
    /// Fetches that failed: when, of which version.
    failures: Mutex<HashMap<String, (Instant, String)>>,
    events: Arc<dyn Events>,
}

impl Policies {
    /// With what earlier processes kept in this folder.
    pub(crate) fn open(folder: Option<PathBuf>, port: u16, tls: ClientTls, events: Arc<dyn Events>) -> Self {
        let kept = folder.as_ref().map(|folder| load(folder, now())).unwrap_or_default();
        Self { folder, port, tls, kept: Mutex::new(kept), failures: Mutex::default(), events }
    }

    /// The policy that mail for this domain has to follow; `None` is none, or one that asks for nothing.
    pub(crate) fn find(&self, domain: &str, dns: &Dns, guard: &Guard, ending: &Ending) -> Option<Arc<Kept>> {
        let now = now();
        let kept = self.kept.lock().get(domain).filter(|kept| !kept.has_expired(now)).cloned();
        // §3.1: without a usable record a kept policy goes on.
        let record = match dns.texts(&format!("_mta-sts.{domain}")) {
            Ok(texts) => announced(texts.iter().map(|text| &**text)),
            Err(_) => None,
        };
        let fresh =
            |kept: &Arc<Kept>, id: &String| kept.id == *id && now.saturating_sub(kept.fetched) < REFRESH_SECONDS;
        let current = match record {
            Some(id) if !kept.as_ref().is_some_and(|kept| fresh(kept, &id)) && self.may_fetch(domain, &id) => {
                match self.fetch(domain, dns, guard, ending) {
                    Ok(policy) => {
                        self.failures.lock().remove(domain);
                        Some(self.keep(domain, Kept { id, fetched: now, policy }))
                    }
                    Err(why) => {
                        self.has_failed(domain, id, &why, kept.as_deref());
                        kept
                    }
                }
            }
            _ => kept,
        };
        current.filter(|kept| kept.policy.mode == Mode::Enforce)
    }

    fn may_fetch(&self, domain: &str, id: &str) -> bool {
        let failures = self.failures.lock();
        failures.get(domain).is_none_or(|(when, version)| version != id || when.elapsed() >= FETCH_AGAIN)
    }

    fn has_failed(&self, domain: &str, id: String, why: &str, kept: Option<&Kept>) {
        let mut failures = self.failures.lock();
        if failures.len() >= FAILURES_MAX {
            failures.retain(|_, (when, _)| when.elapsed() < FETCH_AGAIN);
        }
        if failures.len() >= FAILURES_MAX {
            failures.clear();
        }
        failures.insert(domain.to_owned(), (Instant::now(), id));
        drop(failures);
        // §3.3: operators of either side learn of it from nobody else.
        let then = match kept.map(|kept| kept.policy.mode) {
            Some(Mode::None) => return,
            Some(_) => "the kept one goes on",
            None => "its mail is handed on without",
        };
        self.events.event(&Event::Policy { domain, reason: &format!("{why}; {then}") });
    }

    fn fetch(&self, domain: &str, dns: &Dns, guard: &Guard, ending: &Ending) -> Result<Policy, String> {
        let host = format!("mta-sts.{domain}");
        let named = |why: String| format!("https://{host}/.well-known/mta-sts.txt: {why}");
        let found = dns.addresses(std::slice::from_ref(&host)).pop().unwrap_or(Err(NoAnswer::Nothing));
        let found = found.map_err(|why| named(why.to_string()))?;
        let allowed = found.into_iter().filter(|&address| guard.refuses(address).is_none());
        let addresses: Vec<SocketAddr> = allowed.map(|address| (address, self.port).into()).collect();
        if addresses.is_empty() {
            return Err(named("none of its addresses is in the public network".to_owned()));
        }
        let until = Instant::now() + FETCH_PATIENCE;
        let octets =
            https::get(&host, "/.well-known/mta-sts.txt", &addresses, &self.tls, until, ending).map_err(named)?;
        Policy::parse(&octets).map_err(|why| named(format!("no valid policy: {why}")))
    }

    fn keep(&self, domain: &str, kept: Kept) -> Arc<Kept> {
        // A policy that is not on disk protects until the next start at least.
        if let Some(folder) = &self.folder
            && let Err(error) = write(folder, domain, &kept)
        {
            let reason = format!("{}: {error}; the policy is kept until delivery ends only", folder.display());
            self.events.event(&Event::Policy { domain, reason: &reason });
        }
        let kept = Arc::new(kept);
        let mut all = self.kept.lock();
        all.insert(domain.to_owned(), kept.clone());
        if all.len() > KEPT_MAX {
            let first = all.iter().filter(|(other, _)| *other != domain).min_by_key(|(_, kept)| kept.expires());
            if let Some(first) = first.map(|(first, _)| first.clone()) {
                all.remove(&first);
                let _ = self.folder.as_ref().map(|folder| std::fs::remove_file(folder.join(first)));
            }
        }
        kept
    }
}

impl Kept {
    fn expires(&self) -> u64 {
        self.fetched.saturating_add(self.policy.max_age_seconds)
    }

    fn has_expired(&self, now: u64) -> bool {
        now >= self.expires()
    }

    fn encode(&self) -> String {
        format!("id: {}\nfetched: {}\n{}", self.id, self.fetched, self.policy.text())
    }

    pub(crate) fn decode(octets: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(octets).ok()?;
        let (id, rest) = text.strip_prefix("id: ")?.split_once('\n')?;
        let (fetched, policy) = rest.strip_prefix("fetched: ")?.split_once('\n')?;
        let policy = Policy::parse(policy.as_bytes()).ok()?;
        Some(Self { id: id.to_owned(), fetched: fetched.parse().ok()?, policy })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What is in the folder; files that have expired, or are none of ours, go.
fn load(folder: &Path, now: u64) -> HashMap<String, Arc<Kept>> {
    let mut all = HashMap::new();
    for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let domain = file.file_name().to_string_lossy().into_owned();
        let small = file.metadata().is_ok_and(|about| about.is_file() && about.len() <= FILE_OCTETS_MAX);
        let kept = small.then(|| std::fs::read(file.path()).ok()).flatten().and_then(|octets| Kept::decode(&octets));
        match kept.filter(|kept| !kept.has_expired(now) && is_domain(&domain) && all.len() < KEPT_MAX) {
            Some(kept) => drop(all.insert(domain, Arc::new(kept))),
            None => drop(std::fs::remove_file(file.path())),
        }
    }
    all
}

/// A new file in the old one's place, durably. A domain is a safe name: letters, digits, `-`, `_`, and dots between.
fn write(folder: &Path, domain: &str, kept: &Kept) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // No domain begins with a dot.
    let new = folder.join(format!(".{domain}"));
    let mut file = std::fs::File::create(&new)?;
    file.write_all(kept.encode().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, folder.join(domain))?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(fetched: u64, max_age: u64) -> Kept {
        let text = format!("version: STSv1\nmode: enforce\nmax_age: {max_age}\nmx: *.far.example\n");
        Kept { id: "7".to_owned(), fetched, policy: Policy::parse(text.as_bytes()).unwrap() }
    }

    #[test]
    fn files_are_read_back_and_what_is_old_or_strange_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sts");
        assert!(load(&folder, 0).is_empty());
        write(&folder, "far.example", &kept(100, 50)).unwrap();
        write(&folder, "old.example", &kept(100, 10)).unwrap();
        std::fs::write(folder.join("bad.example"), "id: 7\nfetched: x\n").unwrap();
        std::fs::write(folder.join(".half.example"), "id").unwrap();
        let all = load(&folder, 120);
        assert_eq!(all.len(), 1);
        assert_eq!(*all["far.example"], kept(100, 50));
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["far.example"]);
        // A clock that goes back makes nothing expire.
        assert!(!kept(100, 50).has_expired(0));
    }
}
