//! Whether a mechanism may be offered: its faults are counted, and too many, or one that no login may survive,
//! take it out of service.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sasl::MechanismName;

use crate::ffi;

/// More time than this in one step is told and counted (SASL steps are budgeted at 50 µs).
pub const STEP_TOLD: Duration = Duration::from_millis(1);
/// More than this is a fault. High: a busy machine may take a thread away for a while.
const STEP_FAULT: Duration = Duration::from_millis(50);
/// So many faults …
const FAULTS_MAX: usize = 10;
/// … within this are the end.
const FAULTS_WITHIN: Duration = Duration::from_secs(60);

/// What a mechanism did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A step took so long.
    Slow(Duration),
    /// It panicked, or answered what the contract forbids.
    Broken,
    /// It let somebody in who cannot have proven anything: who does not exist, or whom it asserted without consent.
    Bypass,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow(time) => write!(f, "a step took {} µs", time.as_micros()),
            Self::Broken => f.write_str("it panicked or broke its contract"),
            Self::Bypass => f.write_str("it let somebody in who cannot have proven anything"),
        }
    }
}

/// A fault of a mechanism, told on the thread where it happened: be quick.
pub struct Complaint<'a> {
    /// Whose.
    pub mechanism: &'a MechanismName,
    /// What.
    pub fault: Fault,
    /// It was the one too many: the mechanism is in quarantine.
    pub quarantined: bool,
}

/// Who is told.
pub type Complain = Arc<dyn Fn(&Complaint<'_>) + Send + Sync>;

/// No counter of a processor is slower than 500 MHz: fewer ticks are less than [`STEP_TOLD`], and need no clock.
pub(crate) const TICKS_LOOKED_AT: u64 = 500_000;

/// Ties ticks to time: what a tick is worth follows from how many there were since this process has mechanisms.
struct Epoch {
    ticks: u64,
    at: Instant,
}

impl Epoch {
    fn get() -> &'static Self {
        static EPOCH: OnceLock<Epoch> = OnceLock::new();
        EPOCH.get_or_init(|| Epoch { ticks: ffi::ticks(), at: Instant::now() })
    }

    fn time_of(&self, ticks: u64) -> Duration {
        let since = ffi::ticks().wrapping_sub(self.ticks).max(1);
        // A thread that has moved to a processor with another counter says nothing.
        if ticks > since { Duration::ZERO } else { self.at.elapsed().mul_f64(ticks as f64 / since as f64) }
    }
}

/// One mechanism's record.
pub(crate) struct Gate {
    closed: AtomicBool,
    faults: Mutex<Vec<Instant>>,
    complain: Option<Complain>,
}

impl Gate {
    pub fn new(complain: Option<Complain>) -> Self {
        Epoch::get();
        Self { closed: AtomicBool::new(false), faults: Mutex::default(), complain }
    }

    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    pub fn set_open(&self, open: bool) {
        self.closed.store(!open, Ordering::Relaxed);
        self.faults().clear();
    }

    /// After each step, which began at `started`.
    #[inline]
    pub fn stepped(&self, mechanism: &MechanismName, started: u64) {
        let ticks = ffi::ticks().wrapping_sub(started);
        if ticks > TICKS_LOOKED_AT {
            self.took(mechanism, Epoch::get().time_of(ticks));
        }
    }

    /// A step took so long.
    #[cold]
    fn took(&self, mechanism: &MechanismName, time: Duration) {
        if time > STEP_TOLD {
            self.fault(mechanism, Fault::Slow(time));
        }
    }

    pub fn fault(&self, mechanism: &MechanismName, fault: Fault) {
        let one_too_many = match fault {
            Fault::Slow(time) if time <= STEP_FAULT => false,
            Fault::Bypass => true,
            Fault::Slow(_) | Fault::Broken => {
                let now = Instant::now();
                let mut faults = self.faults();
                faults.retain(|then| now.duration_since(*then) < FAULTS_WITHIN);
                faults.push(now);
                faults.len() >= FAULTS_MAX
            }
        };
        let quarantined = one_too_many && !self.closed.swap(true, Ordering::Relaxed);
        if let Some(complain) = &self.complain {
            complain(&Complaint { mechanism, fault, quarantined });
        }
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_fault_in_a_minute_or_one_bypass_closes() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = told.clone();
        let gate = Gate::new(Some(Arc::new(move |complaint: &Complaint<'_>| {
            to.lock().unwrap().push((complaint.fault, complaint.quarantined));
        })));
        let name = MechanismName::parse(b"X-A").unwrap();
        gate.stepped(&name, ffi::ticks());
        gate.took(&name, Duration::from_micros(900));
        assert!(told.lock().unwrap().is_empty());
        (0..50).for_each(|_| gate.took(&name, Duration::from_millis(2)));
        assert!(gate.is_open() && told.lock().unwrap().len() == 50, "slow, but not slow enough");
        (0..9).for_each(|_| gate.fault(&name, Fault::Broken));
        assert!(gate.is_open());
        gate.took(&name, Duration::from_millis(60));
        assert!(!gate.is_open());
        gate.fault(&name, Fault::Broken);
        let quarantined = told.lock().unwrap().iter().filter(|(_, quarantined)| *quarantined).count();
        assert_eq!(quarantined, 1, "told once");
        gate.set_open(true);
        assert!(gate.is_open());
        gate.fault(&name, Fault::Bypass);
        assert!(!gate.is_open());
    }

    #[test]
    fn ticks_are_time() {
        let epoch = Epoch::get();
        let (ticks, started) = (ffi::ticks(), Instant::now());
        while started.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        // The bounds are for a thread that was taken off its processor between two looks.
        let (ticks, elapsed) = (ffi::ticks() - ticks, started.elapsed());
        let time = epoch.time_of(ticks);
        assert!(time > elapsed / 2 && time < elapsed * 2 + Duration::from_millis(500), "{time:?}, {elapsed:?}");
        assert!(Duration::from_millis(1) <= epoch.time_of(ticks / 2) && ticks > TICKS_LOOKED_AT);
        assert_eq!(epoch.time_of(u64::MAX), Duration::ZERO, "the counter of another processor");
    }
}
