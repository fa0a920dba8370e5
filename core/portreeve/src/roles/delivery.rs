//! The delivery process: hands on what the spool holds.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use delivery::{Discard, LineEnd, Maildir, Route, Routes, Service, Settings, Stats};
use link::Role;
use spool::RealDisk;
use supervisor::child::{Later, Peer, Startup};
use telemetry::{Counter, Event, Gauge, Level, Slot};

use super::{Told, events, flush_at_end, give_up, level_at_start};
use crate::cli::exit;
use crate::config::{self, Config, RouteKind};

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
    let opened = Told::decode(&startup.configuration).and_then(|told| {
        let config = told.config;
        let disk = RealDisk::open(&config.spool.path).map_err(|error| format!("spool: {error}"))?;
        let settings = Settings::new(routes(&config)?);
        let service = Service::open(Arc::new(disk), settings, Arc::new(tell));
        let service = service.map_err(|error| format!("spool: {}: {error}", config.spool.path.display()))?;
        Ok((config, service))
    });
    let (config, (service, handle)) = match opened {
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
    if startup.supervisor.ready().is_err() {
        return ExitCode::from(exit::FAILURE);
    }
    let mut told = Stats::default();
    let mut drained = false;
    let mut over = false;
    while !over && !running.is_finished() {
        for later in startup.supervisor.next(Some(Duration::from_secs(1))) {
            match later {
                Later::Peer(Peer { role: Role::Worker, link, .. }) => handle.follow(link),
                Later::Peer(Peer { role: Role::Control, link, .. }) => events.connect(link),
                // What we were started with is no longer what is wanted: the supervisor starts us again.
                Later::Configuration(octets) => over |= is_changed(&config, &octets),
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

fn routes(config: &Config) -> Result<Routes, String> {
    let mut routes = Routes::new(config.routes.iter().find(|route| route.domain == "*").map(route).transpose()?);
    for named in config.routes.iter().filter(|route| route.domain != "*") {
        routes = routes.domain(&named.domain, route(named)?);
    }
    Ok(routes)
}

fn route(from: &config::Route) -> Result<Arc<dyn Route>, String> {
    Ok(match &from.kind {
        RouteKind::Maildir(template) => {
            Arc::new(Maildir::new(template, LineEnd::Lf).map_err(|bad| format!("route {:?}: {bad}", from.domain))?)
        }
        RouteKind::Discard => Arc::new(Discard),
    })
}

fn is_changed(config: &Config, octets: &[u8]) -> bool {
    let routes = |config: &Config| {
        let routes = config.routes.iter().map(|route| (route.domain.clone(), route.kind.clone()));
        routes.collect::<Vec<_>>()
    };
    Told::decode(octets)
        .is_ok_and(|next| routes(&next.config) != routes(config) || next.config.log.level != config.log.level)
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
        other => {
            let (name, level) = match other {
                delivery::Event::Stuck { .. } => ("stuck", Level::Error),
                delivery::Event::Link { .. } => ("link.broken", Level::Warning),
                // The ordinary end of each worker.
                delivery::Event::Spool(spool::Notice::WriterGone { .. }) => ("spool", Level::Info),
                _ => ("spool", Level::Warning),
            };
            Event::log(name, level, now).untrusted("text", other.to_string().into_bytes())
        }
    }
}
