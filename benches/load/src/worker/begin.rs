//! Beginnings: the idle crowd as fast as it gathers, and the sessions of the mix when they are due.

use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::turn::kind;
use super::{Alarm, PACE, Session, Worker};
use crate::dialogue::Trouble;
use crate::plan::{Arrivals, Kind, Tls};
use crate::transport::Transport;

/// Sockets that are opened in one turn: the loop must go on hearing.
const OPEN_MAX: usize = 256;
/// Idle sessions of all processes that may be on their way to being idle.
const GATHER_MAX: u64 = 512;

impl Worker {
    /// Begins idle sessions, no faster than was asked for.
    pub(super) fn gather(&mut self, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        let due = (now - self.start).as_secs_f64() * self.plan.gather_rate;
        // Nor faster than they get there: a crowd of handshakes would only wait for each other until they time out.
        let most = (GATHER_MAX / u64::from(self.plan.processes)).max(4);
        let mut room = (due as u64).saturating_sub(self.gathered).min(most.saturating_sub(self.under_way()));
        for scenario in 0..self.to_gather.len() {
            while room > 0 && self.to_gather[scenario] > 0 {
                self.to_gather[scenario] -= 1;
                self.gathered += 1;
                room -= 1;
                self.open(scenario, now, false);
            }
        }
    }

    /// Idle sessions on their way to being idle.
    pub(super) fn under_way(&self) -> u64 {
        self.gathered - self.held.len() as u64 - self.crowd_lost
    }

    pub(super) fn is_gathered(&self) -> bool {
        self.to_gather.iter().all(|&left| left == 0) && self.under_way() == 0
    }

    /// Whether a session with this intended start belongs to the run.
    pub(super) fn may_begin(&self, intended: Instant) -> bool {
        let Some(go) = self.go else { return false };
        self.stop.is_none()
            && self.plan.has_mix()
            && self.plan.count.is_none_or(|count| self.begun < count)
            && self
                .plan
                .duration
                .is_none_or(|duration| intended < go + Duration::from_secs_f64(self.plan.warm_up + duration))
    }

    /// Begins sessions of the mix.
    pub(super) fn begin(&mut self, now: Instant) {
        for _ in 0..OPEN_MAX {
            let intended = if self.plan.rate.is_some() { self.next } else { now };
            if !self.may_begin(intended) || self.active >= self.plan.at_a_time() || intended > now {
                return;
            }
            if let Some(rate) = self.plan.rate {
                let distance = match self.plan.arrivals {
                    Arrivals::Even => 1.0,
                    Arrivals::Poisson => -(1.0 - self.random.share()).ln(),
                };
                self.next += Duration::from_secs_f64(distance / rate);
            }
            self.begun += 1;
            let scenario = self.pick();
            let warm = intended < self.go.unwrap_or(now) + Duration::from_secs_f64(self.plan.warm_up);
            if self.plan.rate.is_some() && !warm {
                let late = now.saturating_duration_since(intended).as_micros() as u64;
                self.interval.late.saturating_record(late.max(1));
            }
            self.open(scenario, intended, warm);
        }
    }

    /// A scenario by weight.
    fn pick(&mut self) -> usize {
        let mut at = self.random.share() * self.plan.mix_weight();
        let mut last = 0;
        for (index, scenario) in self.plan.scenarios.iter().enumerate() {
            if scenario.kind == Kind::Idle || scenario.weight <= 0.0 {
                continue;
            }
            last = index;
            if at < scenario.weight {
                break;
            }
            at -= scenario.weight;
        }
        last
    }

    fn open(&mut self, scenario: usize, intended: Instant, warm: bool) {
        let number = self.interval_begun(scenario, warm);
        let told = &self.plan.scenarios[scenario];
        let is_idle = told.kind == Kind::Idle;
        let sources = &self.plan.source_addresses;
        let source = sources.get((self.begun + self.gathered) as usize % sources.len().max(1)).copied();
        let Some(target) = told.address() else { return };
        let is_paced = told.octets_per_second > 0;
        let resume = told.tls != Tls::None && self.random.share() < told.resume;
        let opened = Transport::connect(target, source).and_then(|mut transport| {
            if told.tls == Tls::Implicit {
                transport.start_tls(&self.tls[scenario], resume)?;
            }
            if told.octets_per_second > 0 {
                transport.allow(0);
            }
            Ok(transport)
        });
        let transport = match opened {
            Ok(transport) => transport,
            Err(error) => {
                let trouble = Trouble::new("connect", &kind(&error), error.to_string());
                self.count_trouble(scenario, &trouble, warm);
                if !warm {
                    self.interval.counts[scenario].failed += 1;
                }
                self.crowd_lost += u64::from(is_idle);
                return;
            }
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.generations.push(0);
            self.slots.len() - 1
        });
        let dialogue = self.specs[scenario].begin(number, &mut self.random, intended);
        let mut session = Box::new(Session {
            transport,
            dialogue,
            received: Vec::new(),
            scenario: scenario as u16,
            intended,
            moved: Instant::now(),
            untaken: 0,
            warm,
            spoiled: false,
            secured: false,
            held: false,
            place: 0,
            more: false,
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut session.transport.stream, Token(slot), interest) {
            let trouble = Trouble::new("connect", &kind(&error), error.to_string());
            self.count_trouble(scenario, &trouble, warm);
        }
        if is_paced {
            let at = std::cmp::Reverse(Instant::now() + PACE);
            self.alarms.push((at, Alarm::Pace, slot, self.generations[slot]));
        }
        self.active += usize::from(!is_idle);
        self.slots[slot] = Some(session);
    }

    fn interval_begun(&mut self, scenario: usize, warm: bool) -> u64 {
        if !warm {
            self.interval.counts[scenario].begun += 1;
        }
        self.begun + self.gathered
    }
}
