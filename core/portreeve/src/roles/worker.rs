//! A worker: SMTP sessions. What it needs has arrived over the link; it opens nothing but its spool.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{Bounds, Deadlines, Handle, Notice, Passes, Port, Setup, Socket, Worker};
use link::mechanism::{DESCRIPTION, Description};
use link::{Link, Outbox, Received, Role, frames, sys};
use plugin_host::{Complain, Complaint, Fault, RemoteLibrary, Terms};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use sasl::{Secret, flag};
use smtp::envelope::Recipient;
use smtp::listener::Tls;
use spool::{Doorbell, Durability, Hooks, Options, RealDisk, Writer};
use supervisor::child::{Later, Peer, Startup};
use telemetry::{Counter, Event, EventSender, Level, Slot};
use tls::{CertificateStore, ClientAuth, Pem, ServerTls, Settings, TicketKeys, Version};

use super::mechanism_host::LOAD_MS_MAX;
use super::{Secrets, Told, events, flush_at_end, give_up, level_at_start, tell};
use crate::certificates;
use crate::cli::exit;
use crate::config::{ClientCert, Config, Listener, RouteKind};
use crate::{listeners, plugins};

/// How long transactions may go on in a draining worker (DECISIONS C17).
const DRAIN_HARD: Duration = Duration::from_secs(300);
/// How long sessions may go on in a worker that is not well.
const DRAIN_SICK: Duration = Duration::from_secs(5);

/// How long a mechanism-host may take to say what it offers before the doors open without it.
const DESCRIBE_MAX: Duration = Duration::from_secs(10);

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let level = level_at_start(&startup);
    let events = events(&mut startup).at_level(level);
    let worker = match Running::start(&mut startup, &events) {
        Ok(worker) => worker,
        Err(why) => {
            flush_at_end(&events);
            return give_up(&startup.supervisor, &why);
        }
    };
    if startup.supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let mut sick: Option<String> = None;
    loop {
        worker.wait(&startup.supervisor);
        startup.slot.heartbeat(crate::control::unix_ms());
        worker.doorbell.flush();
        events.flush();
        for later in startup.supervisor.receive() {
            match later {
                Later::Peer(Peer { role: Role::Directory, shard, link, .. }) => {
                    worker.handle.connect_directory(shard, link)
                }
                Later::Peer(Peer { role: Role::Control, link, .. }) => events.connect(link),
                Later::Peer(Peer { role: Role::Delivery, shard, link, .. }) => {
                    // One bell is enough; questions are each shard's own.
                    if let Some(link) = (shard == 0).then(|| link.try_clone().ok()).flatten() {
                        worker.doorbell.connect(link, worker.handle.spool().and_then(Writer::position));
                    }
                    worker.handle.connect_delivery(shard, link);
                }
                Later::Runner(runner) => {
                    if let Some(library) = worker.runners.iter().find(|library| library.id == runner.id) {
                        let supervisor::child::Runner { shard, generation, link, .. } = runner;
                        worker.handle.connect_runner(library, shard, generation, link, false);
                    }
                }
                Later::Quarantine { mechanism, over } => {
                    let named = |one: &&Arc<dyn sasl::Mechanism>| one.name().as_str() == mechanism;
                    worker.mechanisms.iter().filter(named).for_each(|one| one.set_available(over));
                }
                Later::Certificates(octets) => worker.new_certificates(&octets, &events),
                Later::TicketKeys(octets) => worker.ticket_keys.replace(&ticket_keys(&octets)),
                Later::Drain { seconds } => {
                    worker.handle.drain(Duration::from_secs(u64::from(seconds)), DRAIN_HARD);
                }
                Later::Stop => {
                    worker.handle.stop();
                    worker.handle.join();
                    flush_at_end(&events);
                    return ExitCode::SUCCESS;
                }
                _ => {}
            }
        }
        while let Ok((mechanism, cause)) = worker.condemned.try_recv() {
            // Without a supervisor there is nobody else to be told.
            let _ = startup.supervisor.quarantine(&mechanism, &cause);
        }
        while let Ok(notice) = worker.notices.try_recv() {
            match notice {
                Notice::RunnerStuck { runner, generation } => {
                    if let Some(library) = worker.runners.get(usize::from(runner)) {
                        let _ = startup.supervisor.stuck(&library.id, generation);
                    }
                }
                // A new link comes from the supervisor.
                Notice::DirectoryLost { .. } => {}
                Notice::Panicking => {
                    sick = Some("more than ten sessions panicked within a minute".into());
                    worker.handle.drain(Duration::ZERO, DRAIN_SICK);
                }
                Notice::Failed { shard } => {
                    sick = Some(format!("event loop {shard} ended by a panic"));
                    worker.handle.drain(Duration::ZERO, DRAIN_SICK);
                }
                Notice::Drained => {
                    // Everything that was committed is on disk when this returns.
                    worker.handle.join();
                    flush_at_end(&events);
                    return match sick {
                        Some(why) => give_up(&startup.supervisor, &why),
                        None if startup.supervisor.drained().is_ok() => ExitCode::SUCCESS,
                        None => ExitCode::from(exit::FAILURE),
                    };
                }
            }
        }
        if sick.is_none() && worker.handle.spool().is_some_and(Writer::is_stopped) {
            let why = "the spool's disk failed; every commit fails until this worker is replaced";
            tell(&events, "spool.stopped", Level::Error, why);
            sick = Some(why.into());
            worker.handle.drain(Duration::ZERO, DRAIN_SICK);
        }
    }
}

/// A worker that serves.
struct Running {
    /// Libraries in processes of their own.
    runners: Vec<Arc<RemoteLibrary>>,
    /// Of all listeners.
    mechanisms: Vec<Arc<dyn sasl::Mechanism>>,
    /// Mechanisms that this worker does not trust any more, and why.
    condemned: Receiver<(String, String)>,
    handle: Handle,
    stores: Vec<Option<Arc<CertificateStore>>>,
    ticket_keys: Arc<TicketKeys>,
    doorbell: Arc<Door>,
    notices: Receiver<Notice>,
    bell: Arc<OwnedFd>,
}

impl Running {
    fn start(startup: &mut Startup, events: &EventSender) -> Result<Running, String> {
        let Told { config, client_authorities, runners: hosted, backends, .. } = Told::decode(&startup.configuration)?;
        let secrets = Secrets::decode(&startup.secrets)?;
        let libraries = std::mem::take(&mut startup.plugins);
        let bell = Arc::new(
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
                .map_err(io::Error::from)
                .map_err(|error| format!("no descriptor for notices: {error}; raise the limit of open files"))?,
        );
        let (condemn, condemned) = channel();
        let complain = complainer(condemn, bell.clone(), events.clone(), startup.slot.clone());
        let libraries = libraries.into_iter().map(|p| {
            let terms = Terms { process: false, self_asserts: config.plugins.self_asserts(&p.id) };
            (p.id, p.library, PathBuf::from(p.origin), terms)
        });
        let registry = in_time(|| plugins::load(libraries, Some(complain.clone())))?;
        let runners: Vec<Arc<RemoteLibrary>> = hosted
            .iter()
            .zip(0..)
            .map(|((id, names), number)| {
                let believed = config.plugins.self_asserts(id);
                Arc::new(RemoteLibrary::new(id, sasl::Runner(number), names, believed, Some(complain.clone())))
            })
            .collect();
        // What they offer is known before the doors open.
        let mut links = Vec::new();
        for runner in std::mem::take(&mut startup.runners) {
            if let Some(library) = runners.iter().find(|library| library.id == runner.id) {
                let described = describe(library, &runner.link);
                links.push((Arc::clone(library), runner, described));
            }
        }
        let ticket_keys = Arc::new(TicketKeys::new(&ticket_keys(&startup.ticket_keys)));
        let sets = certificates::decode(&startup.certificates)?;
        wipe(&mut startup.certificates);
        wipe(&mut startup.ticket_keys);
        wipe(&mut startup.secrets);
        let stores: Vec<_> = sets.into_iter().map(|set| set.map(|set| Arc::new(CertificateStore::new(set)))).collect();

        let mut ports = Vec::new();
        for (index, listener) in config.listeners.iter().enumerate() {
            let built = in_time(|| listeners::build(&config, listener, &registry, &runners, &backends));
            let built = Arc::new(built?);
            let tls = match (listener.tls, stores.get(index).cloned().flatten()) {
                (Tls::Off, _) | (_, None) => None,
                (_, Some(store)) => {
                    let authorities = client_authorities.get(index).and_then(Option::as_deref);
                    Some(Arc::new(server_tls(&config, listener, &built, authorities, store, &ticket_keys)?))
                }
            };
            ports.push(Port {
                listener: built,
                sockets: Vec::new(),
                tls,
                backend: (listener.backend != plugin_host::OWN_BACKEND).then(|| listener.backend.as_str().into()),
                exempt_nets: listener.exempt_nets.clone(),
                cleartext_nets: listener.cleartext_auth_nets.clone(),
                limits: limits_of(&config, index, listener),
                deadlines: deadlines(&config, listener),
            });
        }
        // The supervisor numbers addresses; a listener has one or more of them, in the same order.
        let owners: Vec<usize> =
            config.listeners.iter().enumerate().flat_map(|(index, l)| l.bind.iter().map(move |_| index)).collect();
        let mut shards = 1;
        for listener in std::mem::take(&mut startup.listeners) {
            shards = shards.max(listener.shard + 1);
            let port = owners.get(listener.listener).and_then(|&index| ports.get_mut(index));
            let port = port.ok_or("the supervisor sent a socket of an unknown listener")?;
            port.sockets.push(Socket { shard: listener.shard, fd: listener.socket.into() });
        }

        let doorbell = Arc::new(Door::default());
        let mut directory: Vec<(usize, Link)> = Vec::new();
        let mut delivery: Vec<(usize, Link)> = Vec::new();
        for peer in std::mem::take(&mut startup.peers) {
            match peer.role {
                Role::Directory => directory.push((peer.shard, peer.link)),
                Role::Delivery => {
                    if let Some(link) = (peer.shard == 0).then(|| peer.link.try_clone().ok()).flatten() {
                        doorbell.connect(link, None);
                    }
                    delivery.push((peer.shard, peer.link));
                }
                _ => {}
            }
        }
        directory.sort_by_key(|(shard, _)| *shard);
        delivery.sort_by_key(|(shard, _)| *shard);
        shards = shards.max(directory.last().map_or(0, |(shard, _)| shard + 1));

        let spool = open_spool(&config, &doorbell, events)?;
        let limits = startup.limits.take().ok_or("the supervisor sent no table of limits")?;
        let limits = limits::Table::attach(limits.0, limits.1).map_err(|error| error.to_string())?;
        let mechanisms = (ports.iter())
            .flat_map(|port: &Port| port.listener.mechanisms.iter().cloned())
            .collect::<Vec<Arc<dyn sasl::Mechanism>>>();
        for mechanism in &mechanisms {
            let quarantined = startup.quarantine.iter().any(|name| name == mechanism.name().as_str());
            mechanism.set_available(!quarantined);
        }
        let (notify, notices) = channel();
        let handle = Worker::start(Setup {
            shards,
            ports,
            sessions_max: config.limits.max_sessions as usize,
            directory: directory.into_iter().map(|(_, link)| link).collect(),
            delivery: delivery.into_iter().map(|(_, link)| link).collect(),
            passes: passes(&config),
            spool,
            limits: Arc::new(limits),
            account_key: Secret::new(secrets.accounts.to_vec()),
            counts: startup.slot.clone(),
            events: events.clone(),
            notify: Box::new(notifier(notify, bell.clone())),
            bounds: Bounds { password_cache_ms: config.users.password_cache.as_millis() as u64, ..Bounds::default() },
        })
        .map_err(|error| error.to_string())?;
        for (id, line) in registry.take_log() {
            tell(events, "plugin.log", Level::Info, &format!("{id}: {line:?}"));
        }
        for (library, runner, described) in links {
            handle.connect_runner(&library, runner.shard, runner.generation, runner.link, described);
        }
        Ok(Running { runners, mechanisms, condemned, handle, stores, ticket_keys, doorbell, notices, bell })
    }

    /// Until the supervisor says something, the engine does, or a second has passed.
    fn wait(&self, supervisor: &supervisor::child::Supervisor) {
        let mut fds = [PollFd::new(supervisor, PollFlags::IN), PollFd::new(&*self.bell, PollFlags::IN)];
        let millis = if self.doorbell.is_behind() { 20 } else { 1000 };
        let timeout = Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 };
        let _ = poll(&mut fds, Some(&timeout));
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.bell, &mut counter);
    }

    fn new_certificates(&self, octets: &[u8], events: &EventSender) {
        match certificates::decode(octets) {
            Ok(sets) => {
                for (store, set) in self.stores.iter().zip(sets) {
                    if let (Some(store), Some(set)) = (store, set) {
                        store.replace(set);
                    }
                }
            }
            Err(why) => tell(events, "certificates.refused", Level::Error, &why),
        }
    }
}

/// Does what runs code of libraries while they are loaded. If it does not come to an end, the process does: the
/// supervisor says so within seconds, instead of waiting for a worker that will never be ready.
fn in_time<T>(load: impl FnOnce() -> T) -> T {
    sys::end_after_ms(LOAD_MS_MAX);
    let loaded = load();
    sys::end_after_ms(0);
    loaded
}

fn wipe(octets: &mut Vec<u8>) {
    zeroize::Zeroize::zeroize(octets);
}

/// What a mechanism-host says first. `false` when it says nothing: then it is heard later, or replaced.
fn describe(library: &RemoteLibrary, link: &Link) -> bool {
    let mut packet = Vec::new();
    let until = Instant::now() + DESCRIBE_MAX;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let received = link.wait(PollFlags::IN, Some(left)).and_then(|_| link.receive(&mut packet));
        match received {
            Ok(Received::Packet { .. }) => {
                let frame = frames(&packet).flatten().find(|frame| frame.kind == DESCRIPTION);
                let description = frame.and_then(|frame| Description::decode(frame.payload).ok());
                return description.map(|description| library.describe(&description)).is_some();
            }
            Ok(Received::WouldBlock) => {}
            Ok(Received::Closed) | Err(_) => return false,
        }
    }
    false
}

/// Hears about faults of mechanisms, on the threads of shards.
fn complainer(to: Sender<(String, String)>, bell: Arc<OwnedFd>, events: EventSender, slot: Slot) -> Complain {
    let to = Mutex::new(to);
    Arc::new(move |complaint: &Complaint<'_>| {
        slot.add(Counter::PluginStepBreaches, 1);
        let name = if complaint.fault == Fault::Bypass { "plugin.bypass" } else { "plugin.fault" };
        let level = if complaint.fault == Fault::Bypass { Level::Error } else { Level::Warning };
        let event = Event::log(name, level, crate::control::unix_ms());
        let event = event.word("mechanism", complaint.mechanism.as_str()).word("cause", complaint.fault.to_string());
        // A record that finds no room is dropped and counted there.
        let _ = events.send(&event);
        if complaint.quarantined {
            let condemned = (complaint.mechanism.as_str().to_owned(), complaint.fault.to_string());
            let _ = to.lock().unwrap_or_else(PoisonError::into_inner).send(condemned);
            let _ = rustix::io::write(bell.as_fd(), &1u64.to_ne_bytes());
        }
    })
}

fn notifier(to: Sender<Notice>, bell: Arc<OwnedFd>) -> impl Fn(Notice) + Send + Sync {
    move |notice| {
        let _ = to.send(notice);
        let _ = rustix::io::write(bell.as_fd(), &1u64.to_ne_bytes());
    }
}

/// Keys as the supervisor sends them: 32 octets each, newest first.
fn ticket_keys(octets: &[u8]) -> Vec<[u8; 32]> {
    octets.as_chunks().0.to_vec()
}

fn server_tls(
    config: &Config,
    listener: &Listener,
    built: &smtp::listener::Listener,
    client_authorities: Option<&str>,
    store: Arc<CertificateStore>,
    keys: &Arc<TicketKeys>,
) -> Result<ServerTls, String> {
    let service = format!("{} {}", listener.role.name(), listener.name);
    let file = listener.client_ca.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let authorities = client_authorities.map(|pem| Pem { file: &file, octets: pem.as_bytes() });
    let client_auth = match (listener.client_cert, authorities) {
        (ClientCert::Off, _) => ClientAuth::Off,
        (ClientCert::Request, authorities) => ClientAuth::Request { authorities },
        (ClientCert::Require, Some(authorities)) => ClientAuth::Require { authorities },
        (ClientCert::Require, None) => {
            return Err(format!("listener {:?}: the supervisor sent no client_ca", listener.name));
        }
    };
    let settings = Settings {
        service: &service,
        min_version: if config.tls_1_3_only { Version::Tls13 } else { Version::Tls12 },
        // A resumed session shows no certificate, and the authorities may have changed since.
        tickets: listener.tls_tickets && listener.client_cert == ClientCert::Off,
        client_auth,
        channel_binding: built.mechanisms.iter().any(|m| m.traits().flags & flag::CHANNEL_BIND != 0),
        ..Settings::default()
    };
    ServerTls::new(&settings, store, keys.clone()).map_err(|error| format!("listener {:?}: {error}", listener.name))
}

fn limits_of(config: &Config, index: usize, listener: &Listener) -> limits::Config {
    let limits = &config.limits;
    limits::Config {
        sessions_max: limits.max_sessions,
        per_prefix_max: listener.per_ip,
        // Each listener counts for itself; beyond 255 of them the last ones share.
        group: u8::try_from(index).unwrap_or(u8::MAX),
        connections_per_minute: limits.connect_rate,
        auth_per_minute: limits.auth_rate,
        messages_per_minute: limits.message_rate,
        anonymous_per_minute: limits.anonymous_rate,
        recipients_per_minute: limits.recipient_rate,
    }
}

fn deadlines(config: &Config, listener: &Listener) -> Deadlines {
    let ms = |time: Duration| time.as_millis() as u64;
    let timeouts = &config.timeouts;
    Deadlines {
        command_ms: ms(timeouts.command),
        crowded_ms: ms(timeouts.command_crowded),
        preauth_ms: listener.require_auth.then_some(ms(timeouts.pre_auth)),
        auth_ms: ms(timeouts.auth),
        data_grace_ms: ms(timeouts.data_grace),
        data_octets_per_second: timeouts.min_rate,
        data_deadline_ms: ms(listener.data_deadline),
        handshake_ms: ms(timeouts.handshake),
        session_ms: ms(timeouts.session),
        unread_ms: ms(timeouts.unread),
        effect_ms: ms(timeouts.directory),
        ..Deadlines::of(listener.role)
    }
}

/// Whose reply waits for the next hop. Delivery decides again, by routes that may be newer.
fn passes(config: &Config) -> Option<Passes> {
    let of = |kind: &RouteKind| matches!(kind, RouteKind::NextHop(hop) if hop.pass_through);
    let ways = config.routes.iter().map(|route| (route.domain.to_lowercase(), of(&route.kind)));
    let ways: HashMap<String, bool> = ways.collect();
    ways.values().any(|passes| *passes).then(|| {
        let passes = move |to: &Recipient<'_>| {
            let own = to.route_domain().and_then(|domain| ways.get(&domain));
            own.or_else(|| ways.get("*")).copied().unwrap_or(false)
        };
        Box::new(passes) as Passes
    })
}

fn open_spool(config: &Config, doorbell: &Arc<Door>, events: &EventSender) -> Result<Writer, String> {
    let disk = RealDisk::open(&config.spool.path).map_err(|error| format!("spool: {error}"))?;
    let options = Options {
        segment_octets: config.spool.segment,
        pool_octets: config.spool.memory,
        durability: match config.spool.durable {
            true => Durability::GroupFsync,
            // What every route would throw away need not be written first.
            false if !config.routes.is_empty() && config.routes.iter().all(|to| to.kind == RouteKind::Discard) => {
                Durability::Discard
            }
            false => Durability::None,
        },
        floors: super::floors(config),
        ..Options::default()
    };
    let (door, log) = (doorbell.clone(), events.clone());
    let hooks = Hooks {
        doorbell: Box::new(move |ring| door.ring(ring)),
        trouble: Box::new(move |text| tell(&log, "spool.trouble", Level::Error, text)),
    };
    Writer::open(Arc::new(disk), options, hooks)
        .map_err(|error| format!("spool: {}: {error}", config.spool.path.display()))
}

/// The way to delivery. Only the newest doorbell counts: one that cannot be sent is kept, and replaced by
/// the next.
#[derive(Default)]
struct Door(Mutex<DoorState>);

#[derive(Default)]
struct DoorState {
    link: Option<Link>,
    waiting: Option<Doorbell>,
}

impl Door {
    fn ring(&self, ring: Doorbell) {
        let mut state = self.state();
        state.waiting = Some(ring);
        state.send();
    }

    /// A new delivery process: it is told where we are.
    fn connect(&self, link: Link, position: Option<Doorbell>) {
        let mut state = self.state();
        state.link = Some(link);
        state.waiting = state.waiting.or(position);
        state.send();
    }

    fn flush(&self) {
        self.state().send();
    }

    fn is_behind(&self) -> bool {
        let state = self.state();
        state.waiting.is_some() && state.link.is_some()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, DoorState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DoorState {
    fn send(&mut self) {
        let (Some(link), Some(ring)) = (&self.link, self.waiting) else { return };
        let mut outbox = Outbox::new(1024);
        let pushed = outbox.push(Doorbell::FRAME_KIND, 0, |to| to.extend_from_slice(&ring.encode()));
        match (pushed, outbox.flush(link)) {
            (Ok(()), Ok(true)) => self.waiting = None,
            (_, Ok(_)) => {}
            // Delivery is gone; the next one is told with its first link.
            (_, Err(_)) => self.link = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use link::{Received, frames};
    use spool::WriterId;

    fn rung(link: &Link) -> Vec<u64> {
        let (mut packet, mut durable) = (Vec::new(), Vec::new());
        while let Ok(Received::Packet { .. }) = link.receive(&mut packet) {
            for frame in frames(&packet) {
                let frame = frame.unwrap();
                assert_eq!(frame.kind, Doorbell::FRAME_KIND);
                durable.push(Doorbell::decode(frame.payload).unwrap().durable);
            }
        }
        durable
    }

    #[test]
    fn the_newest_doorbell_reaches_each_delivery_process() {
        let ring = |durable| Doorbell { writer: WriterId(7), segment: 1, durable };
        let door = Door::default();
        door.ring(ring(10));
        door.ring(ring(20));
        let (ours, theirs) = Link::pair().unwrap();
        door.connect(ours, Some(ring(5)));
        assert_eq!(rung(&theirs), [20]);
        drop(theirs);
        door.ring(ring(30));
        assert!(!door.is_behind());
        let (ours, theirs) = Link::pair().unwrap();
        door.connect(ours, None);
        assert_eq!(rung(&theirs), [30]);
    }
}
