//! What the program tells the supervisor.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use link::Role;
use link::ids::Ids;
use telemetry::Event;

use crate::sockets::Bound;

/// What to run. A reload brings a new one.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The resolved configuration as JSON; every child gets it.
    pub configuration: Vec<u8>,
    /// Where clients come in.
    pub listeners: Vec<Listener>,
    /// Vetted mechanism libraries, for workers or for processes of their own.
    pub plugins: Vec<Plugin>,
    /// Certificates and keys in the program's own form, for workers.
    pub certificates: Vec<u8>,
    /// Session-ticket keys, newest first, for workers.
    pub ticket_keys: Vec<u8>,
    /// What the nodes of a fleet share, for everybody but control. Processes that a reload leaves running keep
    /// the old ones.
    pub secrets: Vec<u8>,
    /// Worker processes.
    pub workers: usize,
    /// Event loops in each.
    pub shards: usize,
    /// A draining worker closes idle sessions after so long …
    pub drain_seconds: u32,
    /// … and is stopped after so long.
    pub drain_seconds_max: u32,
}

/// A listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name in the configuration.
    pub name: String,
    /// Port 0: the system chooses one, and it stays the same as long as the supervisor lives.
    pub address: SocketAddr,
}

/// A mechanism library that was found good.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Its id in the configuration.
    pub id: String,
    /// Where it came from.
    pub origin: String,
    /// Its content, a sealed memfd ([`link::sealed`]): what was vetted is what is loaded.
    pub library: Arc<OwnedFd>,
    /// It runs in a process of its own, not in workers.
    pub process: bool,
    /// The mechanisms that it offers.
    pub mechanisms: Vec<String>,
    /// What the configuration says of it, in the program's own words: under other terms it is another edition.
    pub terms: String,
    /// Its back ends: they run in a process of their own in any case.
    pub backends: Vec<String>,
    /// Their settings, in the program's own form, for that process only. May hold secrets.
    pub settings: Vec<u8>,
}

impl Plugin {
    /// The processes that it has of its own.
    pub(crate) fn roles(&self) -> Vec<Role> {
        let mechanisms = (self.process && !self.mechanisms.is_empty()).then_some(Role::MechanismHost);
        let backends = (!self.backends.is_empty()).then_some(Role::BackendHost);
        mechanisms.into_iter().chain(backends).collect()
    }

    /// Whether `other` is the same library, on the same terms: one process does for both.
    pub(crate) fn same(&self, other: &Plugin) -> bool {
        let content = |plugin: &Plugin| link::sealed::read(plugin.library.as_fd()).ok();
        let about = |plugin: &Plugin| (plugin.id.clone(), plugin.origin.clone(), plugin.process, plugin.terms.clone());
        let about = |plugin: &Plugin| (about(plugin), plugin.settings.clone());
        about(self) == about(other) && content(self) == content(other)
    }

    /// Whether workers have nothing of it, and its successor offers the same: they need not know that it changes.
    fn is_nothing_to_workers(&self, next: &Plugin) -> bool {
        let offers = |plugin: &Plugin| (plugin.id.clone(), plugin.mechanisms.clone(), plugin.backends.clone());
        let apart = |plugin: &Plugin| plugin.process || plugin.mechanisms.is_empty();
        offers(self) == offers(next) && apart(self) && apart(next)
    }
}

/// What a reload has to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Certificates, and perhaps ticket keys: workers take them while they run.
    Certificates,
    /// The content of libraries that have processes of their own, and perhaps certificates: workers go on.
    Libraries,
    /// Anything else, or nothing: a new generation of workers.
    Workers,
}

impl Plan {
    /// What has to be exchanged when this plan ends and `next` begins.
    pub(crate) fn difference(&self, next: &Plan) -> Difference {
        let frame = |plan: &Plan| (plan.workers, plan.shards, plan.plugins.len());
        let workers_stay = self.configuration == next.configuration
            && self.listeners == next.listeners
            && self.secrets == next.secrets
            && frame(self) == frame(next);
        if !workers_stay {
            return Difference::Workers;
        }
        let pairs = self.plugins.iter().zip(&next.plugins);
        let changed: Vec<_> = pairs.filter(|(ours, theirs)| !ours.same(theirs)).collect();
        match changed.is_empty() {
            true if self.certificates != next.certificates => Difference::Certificates,
            true => Difference::Workers,
            false if changed.iter().all(|(ours, theirs)| ours.is_nothing_to_workers(theirs)) => Difference::Libraries,
            false => Difference::Workers,
        }
    }

    /// What `next` has that workers exchange while they run.
    pub(crate) fn changes_to(&self, next: &Plan) -> Changes {
        Changes {
            certificates: (next.certificates != self.certificates).then(|| next.certificates.clone()),
            ticket_keys: (next.ticket_keys != self.ticket_keys).then(|| next.ticket_keys.clone()),
        }
    }

    /// The same plan from now on, with what changed by itself.
    pub(crate) fn take(&mut self, changes: &Changes) {
        if let Some(certificates) = &changes.certificates {
            self.certificates.clone_from(certificates);
        }
        if let Some(ticket_keys) = &changes.ticket_keys {
            self.ticket_keys.clone_from(ticket_keys);
        }
    }

    /// Whether that many shards can share out the sockets that were opened at the start.
    pub(crate) fn fits(&self, sockets_per_address: usize) -> Result<(), String> {
        let (workers, shards) = (self.workers, self.shards);
        if workers == 0 || workers > WORKERS_MAX || shards == 0 || shards > SHARDS_MAX {
            return Err(format!(
                "workers = {workers}, shards = {shards}: between 1 and {WORKERS_MAX} workers with 1 to {SHARDS_MAX} \
                 shards each"
            ));
        }
        if workers * shards > sockets_per_address {
            return Err(format!(
                "workers = {workers}, shards = {shards}: more than the {sockets_per_address} sockets per address that \
                 were opened at the start; restart needed"
            ));
        }
        Ok(())
    }
}

/// Most worker processes of one generation.
pub(crate) const WORKERS_MAX: usize = 64;
/// Most event loops in each.
const SHARDS_MAX: usize = 1024;

/// What stays as it is while the supervisor lives.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the lock lies; made if missing.
    pub state_directory: PathBuf,
    /// The program that children run, `/proc/self/exe`.
    pub program: PathBuf,
    /// Arguments that come before the internal subcommand.
    pub arguments: Vec<OsString>,
    /// Whom children run as; `None`: as we do.
    pub ids: Option<Ids>,
    /// Compared with what children say they are.
    pub build_id: String,
    /// Connections that the kernel keeps ready per socket.
    pub backlog: i32,
    /// Obey SIGHUP, SIGTERM, SIGINT of this process.
    pub signals: bool,
}

impl Options {
    /// The usual ones: this executable, this build.
    pub fn new(state_directory: impl Into<PathBuf>, build_id: impl Into<String>) -> Options {
        Options {
            state_directory: state_directory.into(),
            program: PathBuf::from("/proc/self/exe"),
            arguments: Vec::new(),
            ids: None,
            build_id: build_id.into(),
            backlog: 4096,
            signals: true,
        }
    }
}

/// What changed by itself and workers take while they run.
#[derive(Debug, Default)]
pub struct Changes {
    /// New certificates, already found good.
    pub certificates: Option<Vec<u8>>,
    /// New session-ticket keys, newest first.
    pub ticket_keys: Option<Vec<u8>>,
}

/// The program's part. Called on the supervisor's only thread: be quick.
pub trait Hooks {
    /// Reads the configuration again: parses, vets plugins, reads certificates. An error leaves everything as
    /// it is.
    fn reload(&mut self) -> Result<Plan, String>;

    /// Answers an administrator's question that the supervisor does not know.
    fn admin(&mut self, request: &str) -> Result<String, String> {
        Err(format!("{request}: unknown request"))
    }

    /// Something happened to a process. The log writer is told as well, once it runs.
    fn event(&mut self, event: &Event<'_>) {
        let _ = event;
    }

    /// Every process is ready, for the first time or after a reload; these are the addresses.
    fn serving(&mut self, bound: &[Bound]) {
        let _ = bound;
    }

    /// Looks about once a second for renewed certificates and old ticket keys.
    fn every_second(&mut self) -> Changes {
        Changes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(content: &[u8], process: bool, mechanisms: &[&str], backends: &[&str]) -> Plugin {
        Plugin {
            id: "x".to_owned(),
            origin: "x.so".to_owned(),
            library: Arc::new(link::sealed::create("x", content).unwrap()),
            process,
            mechanisms: mechanisms.iter().map(|&name| name.to_owned()).collect(),
            terms: String::new(),
            backends: backends.iter().map(|&name| name.to_owned()).collect(),
            settings: Vec::new(),
        }
    }

    #[test]
    fn workers_are_exchanged_only_for_what_they_have() {
        type Change = fn(&mut Plan);
        let rows: [(&str, Change, Difference); 10] = [
            ("nothing", |_| {}, Difference::Workers),
            ("certificates", |plan| plan.certificates = b"new".to_vec(), Difference::Certificates),
            ("the drain's time", |plan| plan.drain_seconds += 1, Difference::Workers),
            ("configuration", |plan| plan.configuration = b"new".to_vec(), Difference::Workers),
            ("secrets", |plan| plan.secrets = b"new".to_vec(), Difference::Workers),
            ("shards", |plan| plan.shards += 1, Difference::Workers),
            ("a library outside", |plan| plan.plugins[0] = plugin(b"2", true, &["A"], &["b"]), Difference::Libraries),
            ("a library inside", |plan| plan.plugins[0] = plugin(b"1", false, &["A"], &["b"]), Difference::Workers),
            ("what it offers", |plan| plan.plugins[0] = plugin(b"2", true, &["B"], &["b"]), Difference::Workers),
            ("one more", |plan| plan.plugins.push(plugin(b"3", true, &[], &["c"])), Difference::Workers),
        ];
        let now = Plan { plugins: vec![plugin(b"1", true, &["A"], &["b"])], workers: 1, shards: 1, ..Plan::default() };
        for (what, change, expected) in rows {
            let mut next = now.clone();
            change(&mut next);
            assert_eq!(now.difference(&next), expected, "{what}");
            // With certificates beside it, it is what it is, and they come along.
            next.certificates = b"renewed".to_vec();
            let with =
                if what == "nothing" || what == "the drain's time" { Difference::Certificates } else { expected };
            assert_eq!(now.difference(&next), with, "{what}, and certificates");
            assert!(now.changes_to(&next).certificates.is_some());
        }
    }
}
