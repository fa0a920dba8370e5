//! What a run does: from flags or from a TOML file, checked, and handed to the processes that do it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dialogue::Spec;
use crate::permission::{Permission, resolve};
use crate::places::Places;
use crate::transport::TlsConfig;

mod scenario;

pub use scenario::{ChannelBinding, Kind, Pipelining, Scenario, Tls};

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Host and port of the server, where a scenario names none.
    pub target: String,
    /// Load processes.
    pub processes: u32,
    /// Open loop: sessions that begin per second, whatever the server does.
    pub rate: Option<f64>,
    /// How they follow each other.
    pub arrivals: Arrivals,
    /// Sessions at a time: as many as there are in a closed loop (16), at most in an open one (10,000).
    pub concurrency: Option<usize>,
    /// Sessions in all.
    pub count: Option<u64>,
    /// Seconds after the warm-up.
    pub duration: Option<f64>,
    /// Seconds before anything is counted.
    pub warm_up: f64,
    /// The run ends after so many seconds at the latest.
    pub time_max: f64,
    /// Seconds that a server may leave us without octets.
    pub patience: f64,
    /// Seconds that a run of idle sessions alone holds them.
    pub hold: f64,
    /// Idle sessions that are begun per second at most.
    pub gather_rate: f64,
    /// NOOPs per second, to idle sessions picked at random.
    pub noop_rate: f64,
    /// Source addresses from 127.0.1.1 on, in turn.
    pub sources: u32,
    /// Source addresses, in turn.
    pub source_addresses: Vec<IpAddr>,
    /// The same seed gives the same sequence of scenarios, sizes and arrivals.
    pub seed: u64,
    /// What sessions do.
    #[serde(rename = "scenario")]
    pub scenarios: Vec<Scenario>,
    /// Where it was read.
    #[serde(skip)]
    pub places: Places,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            target: String::new(),
            processes: 1,
            rate: None,
            arrivals: Arrivals::Even,
            concurrency: None,
            count: None,
            duration: None,
            warm_up: 0.0,
            time_max: 300.0,
            patience: 30.0,
            hold: 5.0,
            gather_rate: 20_000.0,
            noop_rate: 0.0,
            sources: 0,
            source_addresses: Vec::new(),
            seed: 1,
            scenarios: Vec::new(),
            places: Places::default(),
        }
    }
}

/// Sessions of a run that is told neither a number nor a duration.
const COUNT_DEFAULT: u64 = 10_000;
/// Sessions at a time of a closed loop, and at most of an open one, unless told otherwise.
const CONCURRENCY_DEFAULT: [usize; 2] = [16, 10_000];
/// More of them would only wait for each other.
const PROCESSES_MAX: u32 = 256;
/// Longest time that is taken: a year.
const SECONDS_MAX: f64 = 31_536_000.0;
/// Rates that are taken: from one in a quarter of an hour to what no machine does.
const RATES: [f64; 2] = [0.001, 1e9];
/// Source addresses from 127.0.1.1 on; more have more ports than a machine has memory for.
const SOURCES_MAX: u32 = 65_536;
/// Users, and recipients of a message: each takes memory before the run begins.
const MANY_MAX: u32 = 1_000_000;

/// How arrivals of an open loop follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// At equal distances.
    Even,
    /// At random, as many independent clients would.
    Poisson,
}

impl Plan {
    /// Reads a TOML file; relative paths in it start at its folder.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut plan: Self = toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        plan.places = Places::of(path, &text);
        let folder = path.parent().unwrap_or(Path::new(""));
        for scenario in &mut plan.scenarios {
            let files = [&mut scenario.password_file, &mut scenario.client_cert, &mut scenario.client_key];
            for file in files.into_iter().flatten() {
                *file = folder.join(&*file);
            }
        }
        Ok(plan)
    }

    /// Fills in what is derived, and refuses what cannot work or may not be done.
    pub fn check(&mut self, permission: &Permission) -> Result<(), String> {
        if self.scenarios.is_empty() {
            return Err("nothing to do: --scenario KIND, or [[scenario]] in the file".to_owned());
        }
        if self.processes == 0 || self.processes > PROCESSES_MAX {
            return self.wrong("processes", &format!("{} is not between 1 and {PROCESSES_MAX}", self.processes));
        }
        if self.sources > SOURCES_MAX {
            return self.wrong("sources", &format!("{} is more than {SOURCES_MAX}", self.sources));
        }
        let [rate_min, rate_max] = RATES;
        let numbers = [
            ("time_max", Some(self.time_max), 0.001, SECONDS_MAX),
            ("patience", Some(self.patience), 0.001, SECONDS_MAX),
            ("duration", self.duration, 0.001, SECONDS_MAX),
            ("warm_up", Some(self.warm_up), 0.0, SECONDS_MAX),
            ("hold", Some(self.hold), 0.0, SECONDS_MAX),
            ("rate", self.rate, rate_min, rate_max),
            ("gather_rate", Some(self.gather_rate), rate_min, rate_max),
            ("noop_rate", Some(self.noop_rate).filter(|rate| *rate != 0.0), rate_min, rate_max),
        ];
        for (name, value, low, high) in numbers {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return self.wrong(name, &format!("{value} is not between {low} and {high}"));
            }
        }
        if self.concurrency == Some(0) || self.count == Some(0) {
            let name = if self.count == Some(0) { "count" } else { "concurrency" };
            return self.wrong(name, "0 sessions do nothing; leave it out or say how many");
        }
        let [closed, open] = CONCURRENCY_DEFAULT;
        let processes = self.processes as usize;
        let at_a_time = *self.concurrency.get_or_insert(if self.rate.is_some() { open } else { closed.max(processes) });
        if at_a_time < processes {
            return self.wrong("concurrency", &format!("{at_a_time} at a time are too few for {processes} processes"));
        }
        self.source_addresses
            .extend((0..self.sources).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x7f00_0101_u32.wrapping_add(n)))));
        self.sources = 0;
        let mut names = BTreeSet::new();
        for index in 0..self.scenarios.len() {
            let target = self.scenarios[index].target.clone().unwrap_or_else(|| self.target.clone());
            let place = self.places.before(self.places.scenarios.get(index));
            let address = resolve(&target, permission).map_err(|error| format!("{place}{error}"))?;
            let scenario = &mut self.scenarios[index];
            scenario.target = Some(address.to_string());
            if scenario.name.is_empty() {
                scenario.name = scenario.kind.name().to_owned();
            }
            while !names.insert(scenario.name.clone()) {
                scenario.name.push('\'');
            }
            let name = scenario.name.clone();
            let wrong = |what: &str| Err(format!("{place}scenario {name:?}: {what}"));
            if let Some(path) = &scenario.password_file {
                match std::fs::read_to_string(path) {
                    Ok(text) => scenario.password = text.lines().next().unwrap_or_default().to_owned(),
                    Err(error) => return wrong(&format!("password file {}: {error}", path.display())),
                }
            }
            let needs_login = matches!(scenario.kind, Kind::Login | Kind::WrongPassword);
            let external = scenario.mechanism.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("EXTERNAL"));
            if needs_login && scenario.user.is_none() && !external {
                return wrong("needs a user (--user, and --password-file)");
            }
            if scenario.user.is_some() && scenario.password.is_empty() && !external {
                return wrong("has a user and no password (--password-file)");
            }
            if !(scenario.weight.is_finite() && scenario.weight >= 0.0) {
                return wrong("weight is a number of at least 0");
            }
            if scenario.mechanism.as_deref().is_some_and(|name| name.to_ascii_uppercase().ends_with("-PLUS"))
                && scenario.tls == Tls::None
            {
                return wrong("a mechanism with -PLUS needs TLS to be bound to (--tls or --starttls)");
            }
            if !(0.0..=1.0).contains(&scenario.resume) {
                return wrong("resume is a share between 0 and 1");
            }
            let few = 1..=MANY_MAX;
            if ![scenario.users, scenario.recipients, scenario.per_connection].iter().all(|many| few.contains(many)) {
                return wrong(&format!("users, recipients and per_connection are between 1 and {MANY_MAX}"));
            }
            if !(0.0..=SECONDS_MAX).contains(&scenario.hold) {
                return wrong(&format!("hold is between 0 and {SECONDS_MAX} seconds"));
            }
            if let Some(source) = self.source_addresses.iter().find(|from| from.is_ipv4() != address.is_ipv4()) {
                return wrong(&format!(
                    "{address} cannot be reached from {source}: one is IPv4, the other IPv6; name source addresses \
                     of the target's kind"
                ));
            }
            if scenario.count > 0 && scenario.kind != Kind::Idle {
                return wrong("count is for idle; the others have weights");
            }
            if scenario.kind == Kind::Slow && scenario.octets_per_second == 0 {
                scenario.octets_per_second = 100;
            }
            if scenario.pipelining == Pipelining::Stream && (scenario.bdat || scenario.lmtp || scenario.smtputf8) {
                return wrong("pipelining = \"stream\" goes with neither bdat, lmtp nor smtputf8");
            }
            // What a load process would make of it is made here once: what is wrong is told before anything begins.
            let made = Spec::new(scenario).map(drop).and_then(|()| TlsConfig::new(scenario).map(drop));
            if let Err(error) = made {
                return wrong(&error);
            }
        }
        if self.has_mix() && self.mix_weight() <= 0.0 {
            return Err("all scenarios have weight 0".to_owned());
        }
        if self.count.is_none() && self.duration.is_none() {
            self.count = Some(COUNT_DEFAULT);
        }
        Ok(())
    }

    /// What is wrong with something that is said once for all scenarios.
    fn wrong(&self, key: &str, what: &str) -> Result<(), String> {
        Err(format!("{}{key}: {what}", self.places.before(self.places.keys.get(key))))
    }

    /// Sessions at a time.
    pub fn at_a_time(&self) -> usize {
        self.concurrency.unwrap_or(CONCURRENCY_DEFAULT[0])
    }

    /// Whether there is more than idle sessions.
    pub fn has_mix(&self) -> bool {
        self.scenarios.iter().any(|scenario| scenario.kind != Kind::Idle)
    }

    /// Sum of the weights.
    pub fn mix_weight(&self) -> f64 {
        self.scenarios.iter().filter(|scenario| scenario.kind != Kind::Idle).map(|scenario| scenario.weight).sum()
    }

    /// Idle sessions.
    pub fn crowd(&self) -> u64 {
        self.scenarios.iter().map(|scenario| scenario.count).sum()
    }

    /// What process `index` does of it.
    pub fn share(&self, index: u32) -> Self {
        let (index, of) = (u64::from(index), u64::from(self.processes));
        let part = |whole: u64| whole / of + u64::from(index < whole % of);
        let mut share = self.clone();
        share.count = self.count.map(part);
        share.rate = self.rate.map(|rate| rate / of as f64);
        share.gather_rate = self.gather_rate / of as f64;
        share.noop_rate = self.noop_rate / of as f64;
        share.concurrency = Some(part(self.at_a_time() as u64) as usize);
        share.seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index);
        for scenario in &mut share.scenarios {
            scenario.count = part(scenario.count);
        }
        // A process of its own range of source addresses never fights with another for a port.
        if self.source_addresses.len() as u64 >= of {
            share.source_addresses =
                self.source_addresses.iter().skip(index as usize).step_by(of as usize).copied().collect();
        }
        share
    }

    /// Without secrets, for the result.
    pub fn public(&self) -> Self {
        let mut public = self.clone();
        public.scenarios.iter_mut().for_each(|scenario| scenario.password.clear());
        public
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Plan, String> {
        let mut plan: Plan = toml::from_str(text).map_err(|error| error.to_string())?;
        plan.check(&Permission::default()).map(|()| plan)
    }

    #[test]
    fn files_are_checked() {
        let good = plan(
            "target = \"127.0.0.1:25\"\nrate = 10\n[[scenario]]\nkind = \"submit\"\nsize = \"1k-2k\"\n\
             [[scenario]]\nkind = \"slow\"\ntarget = \"[::1]:26\"\n[[scenario]]\nkind = \"idle\"\ncount = 10",
        );
        let good = good.unwrap();
        assert_eq!(good.scenarios[1].address().unwrap().port(), 26);
        assert_eq!(good.scenarios[1].octets_per_second, 100);
        assert_eq!((good.crowd(), good.count), (10, Some(COUNT_DEFAULT)));
        let head = "target = \"127.0.0.1:25\"\n";
        for (text, expect) in [
            (format!("{head}[[scenario]]\nkind = \"login\""), "needs a user"),
            (format!("{head}[[scenario]]\nkind = \"login\"\nuser = \"a\""), "no password"),
            (format!("{head}[[scenario]]\nkind = \"idle\"\nwieght = 3"), "wieght"),
            (format!("{head}rate = 0\n[[scenario]]\nkind = \"connect\""), "rate: 0"),
            (format!("{head}[[scenario]]\nkind = \"connect\"\nweight = 0"), "weight 0"),
            (format!("{head}[[scenario]]\nkind = \"submit\"\nsize = \"9z\""), "9z"),
            ("[[scenario]]\nkind = \"connect\"".to_owned(), "no target"),
            (head.to_owned(), "nothing to do"),
        ] {
            let error = plan(&text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }

    #[test]
    fn shares_add_up() {
        let mut whole = plan("target = \"127.0.0.1:25\"\nprocesses = 3\ncount = 10\nsources = 6\n[[scenario]]\nkind = \"idle\"\ncount = 8").unwrap();
        whole.rate = Some(9.0);
        let shares: Vec<Plan> = (0..3).map(|index| whole.share(index)).collect();
        assert_eq!(shares.iter().map(|share| share.count.unwrap()).sum::<u64>(), 10);
        assert_eq!(shares.iter().map(Plan::crowd).sum::<u64>(), 8);
        assert!((shares.iter().map(|share| share.rate.unwrap()).sum::<f64>() - 9.0).abs() < 1e-9);
        let sources: BTreeSet<IpAddr> = shares.iter().flat_map(|share| share.source_addresses.clone()).collect();
        assert_eq!(sources.len(), 6);
    }
}
