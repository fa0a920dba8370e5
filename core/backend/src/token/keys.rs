//! Keys of an issuer: fetched by a thread of their own, never by who asks for one.
//!
//! Whoever needs a key that is there has it at once, however the issuer's server is doing. A key that is not
//! there may be new: then the set is fetched again, by that one thread for all who wait, and not more often than
//! [`Pace::gap`] allows, so that made-up key ids cost the issuer next to nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use sha2::{Digest as _, Sha256};

use super::http::{Http, MAX_OCTETS};
use super::jwt::{Key, KeyMap, parse_keys};
use super::{Issuer, KeySource};
use crate::event::{Event, Report};

/// Ids that are remembered as unknown.
const UNKNOWN_MAX: usize = 1024;

/// How often things happen.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Between two fetches.
    pub gap: Duration,
    /// Between two fetches for which nobody asks.
    pub refresh: Duration,
    /// So long a set is used without being fetched again.
    pub stale: Duration,
    /// So long an id that was not in a set is taken to be none.
    pub unknown: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gap: Duration::from_secs(5),
            refresh: Duration::from_secs(600),
            stale: Duration::from_secs(24 * 3600),
            unknown: Duration::from_secs(60),
        }
    }
}

/// What is known of a key id.
pub(super) enum Found {
    Keys(Arc<Vec<Key>>),
    /// The issuer has no such key.
    Unknown,
    /// It could not be asked.
    Unavailable,
}

/// See the module.
pub(super) struct Keys {
    shared: Arc<Shared>,
    pace: Pace,
    patience: Duration,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    keys: HashMap<String, Arc<Vec<Key>>>,
    /// When the keys were fetched.
    fetched: Option<Instant>,
    /// When it was last tried, and whether it went well.
    tried: Option<(Instant, bool)>,
    /// Somebody waits for a new set.
    wanted: bool,
    fetching: bool,
    /// By SHA-256, since whoever makes them up chooses their length.
    unknown: HashMap<[u8; 32], Instant>,
}

impl Keys {
    pub(super) fn start(issuer: &Issuer, source: &KeySource, pace: Pace, report: &Report) -> Result<Self, String> {
        let mut fetch = match source {
            KeySource::Url(url) => {
                let http = Http::new(issuer, url, report)?;
                Fetch::Url(http)
            }
            KeySource::File(path) => {
                let (path, issuer, report) = (path.clone(), issuer.name.clone(), report.clone());
                Fetch::File { path, issuer, report, stamp: None, told: false }
            }
        };
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let theirs = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("token-keys".to_owned())
            .spawn(move || run(&theirs, &mut fetch, pace))
            .map_err(|error| format!("no thread to fetch keys: {error}; raise the limit on threads"))?;
        Ok(Self { shared, pace, patience: issuer.timeout })
    }

    /// The keys of an id, or the only ones when a token names none.
    pub(super) fn find(&self, kid: Option<&str>) -> Found {
        let hash: [u8; 32] = Sha256::digest(kid.unwrap_or_default()).into();
        let until = Instant::now() + self.patience;
        let mut state = self.shared.state.lock();
        loop {
            let now = Instant::now();
            let fresh = state.fetched.is_some_and(|fetched| now - fetched < self.pace.stale);
            if fresh && let Some(keys) = state.get(kid) {
                return Found::Keys(keys);
            }
            if fresh && state.unknown.get(&hash).is_some_and(|since| now - *since < self.pace.unknown) {
                return Found::Unknown;
            }
            match state.tried {
                // What was tried a moment ago is not tried again.
                Some((at, good)) if !state.fetching && now - at < self.pace.gap => {
                    if !(good && fresh) {
                        return Found::Unavailable;
                    }
                    state.remember(hash, now, self.pace.unknown);
                    return Found::Unknown;
                }
                _ => {
                    state.wanted = true;
                    self.shared.changed.notify_all();
                    if self.shared.changed.wait_until(&mut state, until).timed_out() {
                        return Found::Unavailable;
                    }
                }
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // The thread looks whether anybody is left.
        self.shared.changed.notify_all();
    }
}

impl State {
    fn get(&self, kid: Option<&str>) -> Option<Arc<Vec<Key>>> {
        match kid {
            Some(kid) => self.keys.get(kid).cloned(),
            // RFC 7515 §4.1.4: the id is optional. Without it there must be nothing to choose.
            None if self.keys.len() == 1 => self.keys.values().next().cloned(),
            None => self.keys.get("").cloned(),
        }
    }

    fn remember(&mut self, hash: [u8; 32], now: Instant, life: Duration) {
        if self.unknown.len() >= UNKNOWN_MAX {
            self.unknown.retain(|_, since| now - *since < life);
        }
        // Full of ids that somebody makes up: those beyond cost a look at the clock each, no more.
        if self.unknown.len() < UNKNOWN_MAX {
            self.unknown.insert(hash, now);
        }
    }
}

enum Fetch {
    Url(Http),
    File { path: std::path::PathBuf, issuer: String, report: Report, stamp: Option<(u64, SystemTime)>, told: bool },
}

impl Fetch {
    /// `Ok(None)`: nothing has changed.
    fn fetch(&mut self) -> Result<Option<KeyMap>, ()> {
        match self {
            Self::Url(http) => http.get(parse_keys).map(Some).ok_or(()),
            Self::File { path, issuer, report, stamp, told } => {
                let now = stamp_of(path);
                if now.is_some() && now == *stamp {
                    return Ok(None);
                }
                let keys = std::fs::read(&*path).map_err(|error| error.to_string());
                match keys.and_then(|text| parse_keys(&text)) {
                    Ok(keys) => {
                        (*stamp, *told) = (now, false);
                        Ok(Some(keys))
                    }
                    Err(why) => {
                        if !std::mem::replace(told, true) {
                            let why = format!("{}: {why}", path.display());
                            report(&Event::TokenTrouble { issuer: issuer.clone(), why });
                        }
                        Err(())
                    }
                }
            }
        }
    }

    /// How often to look without being asked.
    fn pause(&self, pace: Pace) -> Duration {
        match self {
            Self::Url(_) => pace.refresh,
            // That costs a look at the file's time.
            Self::File { .. } => pace.gap.min(Duration::from_secs(1)),
        }
    }
}

fn stamp_of(path: &Path) -> Option<(u64, SystemTime)> {
    let meta = std::fs::metadata(path).ok().filter(|meta| meta.len() <= MAX_OCTETS)?;
    Some((meta.len(), meta.modified().ok()?))
}

/// Fetches now, and then whenever it is time or somebody waits; until nobody is left.
fn run(shared: &Weak<Shared>, fetch: &mut Fetch, pace: Pace) {
    loop {
        let Some(ours) = shared.upgrade() else { return };
        ours.state.lock().fetching = true;
        let fetched = fetch.fetch();
        let mut state = ours.state.lock();
        let now = Instant::now();
        state.fetching = false;
        state.wanted = false;
        state.tried = Some((now, fetched.is_ok()));
        if let Ok(keys) = fetched {
            state.fetched = Some(now);
            if let Some(keys) = keys {
                state.keys = keys.into_iter().map(|(kid, keys)| (kid, Arc::new(keys))).collect();
                state.unknown.clear();
            }
        }
        ours.changed.notify_all();
        // A set that could not be fetched is tried again soon, so that nobody has to ask for it.
        let pause = if state.tried.is_some_and(|(_, good)| good) { fetch.pause(pace) } else { pace.gap };
        let until = now + pause;
        while Instant::now() < until && !(state.wanted && now.elapsed() >= pace.gap) {
            let soonest = if state.wanted { now + pace.gap } else { until };
            ours.changed.wait_until(&mut state, soonest.min(until));
            if Arc::strong_count(&ours) == 1 {
                return;
            }
        }
    }
}
