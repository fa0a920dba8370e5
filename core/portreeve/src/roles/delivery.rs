//! The delivery process: hands on what the spool holds.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use delivery::{Discard, LineEnd, Maildir, Retry, Route, Routes, Service, Settings, Stats};
use link::Role;
use spool::{Disk, RealDisk};
use supervisor::LAST_ONES_MAX;
use supervisor::child::{Later, Peer, Startup};
use telemetry::{Counter, Event, Gauge, Level, Slot};
use zeroize::Zeroizing;

use super::{Told, events, flush_at_end, give_up, level_at_start};
use crate::cli::exit;
use crate::config::{self, Config, Queue, RouteKind};
use crate::{next_hop, queue};

/// Runs it.
pub fn run(mut startup: Startup) -> ExitCode {
    let level = level_at_start(&startup);
    let events = events(&mut startup).at_level(level);
    let log = events.clone();
    let tell = move |event: &delivery::Event<'_>| {
        let delivered = matches!(event, delivery::Event::Delivered { .. });
        if delivered && !log.wants(Level::Info) {
            return;
        }
        // A log record is dropped and counted when there is no room.
        let _ = log.send(&record(event));
        // What went well can wait for the next second and for others of its kind.
        if !delivered {
            log.flush();
        }
    };
    let tell: Arc<dyn delivery::Events> = Arc::new(tell);
    let opened = Told::decode(&startup.configuration).and_then(|told| {
        let config = told.config;
        let disk = RealDisk::open(&config.spool.path).map_err(|error| format!("spool: {error}"))?;
        let settings = Settings {
            retry: Retry { first: config.queue.retry, max: config.queue.retry_max.max(config.queue.retry) },
            expire: config.queue.expire,
            delay_notice: Some(config.queue.delay_notice).filter(|after| !after.is_zero()),
            hostname: config.hostname.clone().unwrap_or_else(config::system_hostname),
            floors: super::floors(&config),
            held: Some(config.process.state_dir.join("run/held")),
            ..Settings::new(routes(&config, &tell)?)
        };
        let disk = Arc::new(disk);
        wait_for_the_last_one(&*disk).map_err(|error| format!("spool: {error}"))?;
        let service = Service::open(disk, settings, tell);
        let service = service.map_err(|error| format!("spool: {}: {error}", config.spool.path.display()))?;
        let door = super::control::unix_door(&queue::socket(&config))?;
        Ok((config, door, service))
    });
    let (config, door, (service, handle)) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            flush_at_end(&events);
            return give_up(&startup.supervisor, &why);
        }
    };
    for peer in std::mem::take(&mut startup.peers) {
        if peer.role == Role::Worker {
            handle.follow(peer.link);
        }
    }
    let running = match std::thread::Builder::new().name("delivery".into()).spawn(move || service.run()) {
        Ok(running) => running,
        Err(error) => return give_up(&startup.supervisor, &format!("delivery: no thread: {error}")),
    };
    // Ends with the process.
    let asked = handle.clone();
    let answers = std::thread::Builder::new().name("queue".into()).spawn(move || queue::serve(&door, &asked));
    if let Err(error) = answers {
        return give_up(&startup.supervisor, &format!("delivery: no thread: {error}"));
    }
    if startup.supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let made_from = basis(&config);
    let mut told = Stats::default();
    let mut drained = false;
    let mut over = false;
    while !over && !running.is_finished() {
        for later in startup.supervisor.next(Some(Duration::from_secs(1))) {
            match later {
                Later::Peer(Peer { role: Role::Worker, link, .. }) => handle.follow(link),
                Later::Peer(Peer { role: Role::Control, link, .. }) => events.connect(link),
                // What we were started with is no longer what is wanted: the supervisor starts us again.
                Later::Configuration(octets) => {
                    over |= Told::decode(&octets).is_ok_and(|next| basis(&next.config) != made_from);
                }
                Later::Drain { .. } => (over, drained) = (true, true),
                Later::Stop => over = true,
                _ => {}
            }
        }
        startup.slot.heartbeat(crate::control::unix_ms());
        told = count(&startup.slot, told, handle.stats());
        events.flush();
    }
    // Ends what is under way; the rest stays in the spool.
    handle.stop();
    let outcome = running.join();
    count(&startup.slot, told, handle.stats());
    flush_at_end(&events);
    match outcome {
        Ok(Ok(())) => {
            if drained && startup.supervisor.drained().is_err() {
                return ExitCode::from(exit::FAILURE);
            }
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => give_up(&startup.supervisor, &format!("delivery: {error}")),
        Err(_) => give_up(&startup.supervisor, "delivery: panicked"),
    }
}

/// The last delivery process, killed or left behind by a supervisor that was, may not have gone yet. If it is there for
/// longer than it is waited for, opening the spool says so.
fn wait_for_the_last_one(disk: &dyn Disk) -> io::Result<()> {
    let until = Instant::now() + LAST_ONES_MAX;
    while disk.lock_dir("")?.is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn routes(config: &Config, events: &Arc<dyn delivery::Events>) -> Result<Routes, String> {
    let default = config.routes.iter().find(|route| route.domain == "*");
    let mut routes = Routes::new(default.map(|all| route(config, all, events)).transpose()?);
    for named in config.routes.iter().filter(|route| route.domain != "*") {
        routes = routes.domain(&named.domain, route(config, named, events)?);
    }
    Ok(routes)
}

fn route(config: &Config, from: &config::Route, events: &Arc<dyn delivery::Events>) -> Result<Arc<dyn Route>, String> {
    Ok(match &from.kind {
        RouteKind::Maildir(template) => {
            Arc::new(Maildir::new(template, LineEnd::Lf).map_err(|bad| format!("route {:?}: {bad}", from.domain))?)
        }
        RouteKind::NextHop(hop) => {
            let made = next_hop::make(config, hop);
            Arc::new(made.map_err(|(option, why)| format!("route {:?}: {option}: {why}", from.domain))?)
        }
        RouteKind::Mx(mx) => {
            let folder = config.process.state_dir.join("sts");
            let made = next_hop::make_mx(config, mx, Some(folder), events.clone());
            made.map_err(|(option, why)| format!("route {:?}: {option}: {why}", from.domain))?
        }
        RouteKind::Discard => Arc::new(Discard),
    })
}

/// What a delivery process is made from.
type Basis = (Vec<(String, RouteKind)>, Vec<NextHopFile>, Queue, (u64, u8), Option<String>, Level);

/// A file that a route is made from, and what it held.
type NextHopFile = (PathBuf, Option<Zeroizing<Vec<u8>>>);

fn basis(config: &Config) -> Basis {
    let routes = config.routes.iter().map(|route| (route.domain.clone(), route.kind.clone())).collect();
    let files = config.routes.iter().flat_map(|route| match &route.kind {
        RouteKind::NextHop(hop) => next_hop::files(hop),
        RouteKind::Mx(mx) => next_hop::files_mx(mx),
        _ => Vec::new(),
    });
    let floors = (config.spool.min_free, config.spool.min_free_percent);
    (routes, files.collect(), config.queue.clone(), floors, config.hostname.clone(), config.log.level)
}

/// Adds what is new since `before` to the process' numbers.
fn count(slot: &Slot, before: Stats, now: Stats) -> Stats {
    slot.add(Counter::Delivered, now.delivered - before.delivered);
    slot.add(Counter::Deferred, now.deferred - before.deferred);
    slot.add(Counter::SpoolCorrupt, now.set_aside - before.set_aside);
    slot.gauge_set(Gauge::Queued, (now.in_flight + now.waiting) as i64);
    now
}

fn record<'a>(event: &'a delivery::Event<'a>) -> Event<'a> {
    let now = crate::control::unix_ms();
    match event {
        delivery::Event::Delivered { id, recipient, route } => Event::log("delivered", Level::Info, now)
            .word("id", id.to_string())
            .untrusted("recipient", recipient.as_bytes())
            .word("route", *route),
        delivery::Event::Deferred { id, recipient, route, reason, attempts, next_seconds } => {
            Event::log("deferred", Level::Warning, now)
                .word("id", id.to_string())
                .untrusted("recipient", recipient.as_bytes())
                .word("route", route.unwrap_or("none"))
                .untrusted("reason", reason.as_bytes())
                .number("attempts", u64::from(*attempts))
                .number("next_seconds", *next_seconds)
        }
        delivery::Event::Failed { id, recipient, route, reason, notice } => {
            let event = Event::log("failed", if notice.is_some() { Level::Warning } else { Level::Error }, now)
                .word("id", id.to_string())
                .untrusted("recipient", recipient.as_bytes())
                .word("route", *route)
                .untrusted("reason", reason.as_bytes());
            match notice {
                Some(notice) => event.word("notice", notice.to_string()),
                None => event.word("notice", "none"),
            }
        }
        delivery::Event::Refused { id, recipient, route, reason } => Event::log("passed.refused", Level::Info, now)
            .word("id", id.to_string())
            .untrusted("recipient", recipient.as_bytes())
            .word("route", *route)
            .untrusted("reason", reason.as_bytes()),
        delivery::Event::InDoubt { id, recipients, reason } => Event::log("passed.doubt", Level::Warning, now)
            .word("id", id.to_string())
            .number("recipients", u64::from(*recipients))
            .word("text", *reason),
        delivery::Event::Delayed { id, recipients, notice } => Event::log("delayed", Level::Info, now)
            .word("id", id.to_string())
            .number("recipients", *recipients as u64)
            .word("notice", notice.to_string()),
        delivery::Event::Removed { id } => Event::log("removed", Level::Warning, now).word("id", id.to_string()),
        other => {
            let (name, level) = match other {
                delivery::Event::Stuck { .. } => ("stuck", Level::Error),
                delivery::Event::Link { .. } => ("link.broken", Level::Warning),
                delivery::Event::Policy { .. } => ("policy", Level::Warning),
                // The ordinary end of each worker.
                delivery::Event::Spool(spool::Notice::WriterGone { .. }) => ("spool", Level::Info),
                _ => ("spool", Level::Warning),
            };
            Event::log(name, level, now).untrusted("text", other.to_string().into_bytes())
        }
    }
}
