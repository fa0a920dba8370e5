//! The child: loads the library inside of the sandbox and does one job with it.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_plugin_abi::{action, binding, fail, mech_flag, status};

use crate::client::{Kind, Person};
use crate::event::{Answer, Facts, Moment, STATUSES, effect_name, shown};
use crate::explore::{self, Known};
use crate::job::{FaultLine, Job, Line, Pipe, Request, Task};
use crate::rules::Verdict;
use crate::sandbox::{self, Bound, Declared, Edge, Fault, Library, Room};
use crate::schema;
use crate::vectors::{self, Vector};
use crate::world::{
    End, Local, Plan, Policy, Random, Stepper, Story, Traits, Voice, World, in_words, run, with_sibling,
};

/// The argument by which the program knows that it is a child.
pub const ARGUMENT: &str = "plugin-check-child";

/// Whether this process was started as a child of the kit. To be asked before anything else is done.
pub fn requested() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// Does one job and ends the process.
pub fn main() -> ! {
    if let Err(error) = work() {
        eprintln!("{ARGUMENT}: {error}");
        std::process::exit(1);
    }
    sandbox::leave()
}

fn work() -> Result<(), String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    let job: Job = serde_json::from_str(&line).map_err(|error| error.to_string())?;
    // What the library prints must not look like an answer of ours.
    let pipe = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 16).map_err(|error| error.to_string())?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| error.to_string())?;
    bound_resources();
    sandbox::catch_faults(pipe.as_fd());
    let pipe = Pipe(pipe);
    // The handshake is the host's own: it copies the file into a sealed memfd first.
    let sealed = if job.task == Task::Handshake { Some(seal(&job)) } else { None };
    let threads = if job.task == Task::Threads { Some(Threads::start()) } else { None };
    sandbox::enter_loading().map_err(|error| format!("seccomp: {error}; the kernel must allow filters"))?;
    if let Some(sealed) = sealed {
        handshake(&pipe, &job, sealed);
    } else {
        match Library::open(&job.file) {
            Ok((library, faults)) => with_library(&pipe, &job, Box::leak(Box::new(library)), &faults, threads)?,
            Err(fault) => pipe.fault("", &fault),
        }
    }
    pipe.send(&Line::Done);
    Ok(())
}

/// A stranger's library may not eat the machine.
fn bound_resources() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    for (resource, most) in [(Resource::As, 4 << 30), (Resource::Core, 0), (Resource::Cpu, 600), (Resource::Nofile, 256)] {
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
}

fn with_library(
    pipe: &Pipe,
    job: &Job,
    library: &'static Library,
    faults: &[Fault],
    threads: Option<Threads>,
) -> Result<(), String> {
    let about = &library.about;
    if job.task == Task::Describe {
        faults.iter().for_each(|fault| pipe.fault("", fault));
        let broken: BTreeSet<&str> = faults.iter().map(|fault| fault.rule).collect();
        for rule in job.task.rules().iter().filter(|rule| !broken.contains(**rule)) {
            pipe.finding(rule, "", Verdict::Pass, "");
        }
        let mechanisms = about.mechanisms.iter().map(Traits::of).collect();
        pipe.send(&Line::Library { id: about.id.clone(), version: about.version.clone(), mechanisms });
        return Ok(());
    }
    let known = about.mechanisms.iter().find(|declared| declared.name == job.mech);
    let declared: &'static Declared = known.ok_or_else(|| format!("no mechanism {}", job.mech))?;
    let described = schema::read(declared.schema.as_deref());
    if job.task == Task::Settings {
        settings(pipe, job, library, declared, &described);
        return Ok(());
    }
    let settings = job.settings.clone().unwrap_or_else(|| described.map_or("{}".into(), |schema| schema.working()));
    let bound = match Bound::new(library, declared, &settings) {
        Ok(bound) => Box::leak(Box::new(bound)),
        Err(cause) => {
            let text = format!("configure() refuses {settings}: {cause}; give settings with --config");
            pipe.finding("D1", &job.mech, Verdict::Fail, text);
            return Ok(());
        }
    };
    let vectors = job.vectors.as_deref().map_or(Ok(vec![]), vectors::parse)?;
    let trial = Trial { pipe, job, declared, bound, traits: Traits::of(declared), world: world_of(&vectors, declared), vectors };
    trial.enter(threads)
}

/// The world knows whom the samples speak of.
fn world_of(vectors: &[Vector], declared: &Declared) -> World {
    let mut world = World::default();
    let traits = Traits::of(declared);
    for vector in vectors.iter().filter(|vector| vector.mech == traits.name && vector.outcome() == "success") {
        let (other, _) = vector.world(&traits);
        world.users.extend(other.users);
        world.tokens.extend(other.tokens);
        world.proxies.extend(other.proxies);
    }
    world
}

// ---------------------------------------------------------------- A7, D1

fn seal(job: &Job) -> Result<(String, std::os::fd::OwnedFd), String> {
    let inspection = plugin_host::inspect(&job.file).map_err(|error| error.to_string())?;
    let octets = std::fs::read(&job.file).map_err(|error| error.to_string())?;
    let fd = link::sealed::create("portreeve-check", &octets).map_err(|error| error.to_string())?;
    Ok((inspection.note.id, fd))
}

/// As a worker does it: what is refused there is refused here.
fn handshake(pipe: &Pipe, job: &Job, sealed: Result<(String, std::os::fd::OwnedFd), String>) {
    let loaded = sealed.and_then(|(id, fd)| {
        plugin_host::Registry::new().load(&id, fd, &job.file).map_err(|error| error.to_string())
    });
    match loaded {
        Ok(()) => pipe.finding("A7", "", Verdict::Pass, ""),
        Err(cause) => pipe.finding("A7", "", Verdict::Fail, cause),
    }
}

fn settings(pipe: &Pipe, job: &Job, library: &Library, declared: &Declared, described: &Result<schema::Schema, String>) {
    let mech = job.mech.as_str();
    let judged = match described {
        Err(cause) => Err(format!("config_schema {cause}")),
        Ok(schema) if !declared.is_configured() && !schema.is_empty() => Err("a config_schema, but configure is NULL".into()),
        Ok(schema) => schema.try_out(job.settings.as_deref(), &mut |settings| {
            Bound::new(library, declared, settings).map(drop)
        }),
    };
    match judged {
        Ok(()) => pipe.finding("D1", mech, Verdict::Pass, ""),
        Err(cause) => pipe.finding("D1", mech, Verdict::Fail, cause),
    }
}

// ---------------------------------------------------------------- one mechanism

struct Trial<'a> {
    pipe: &'a Pipe,
    job: &'a Job,
    declared: &'static Declared,
    bound: &'static Bound,
    traits: Traits,
    world: World,
    vectors: Vec<Vector>,
}

/// What a rule came to: nothing to say, or why it does not apply.
type Judged = Result<Option<String>, Fault>;

impl Trial<'_> {
    fn enter(&self, threads: Option<Threads>) -> Result<(), String> {
        let task = self.job.task;
        // All memory is taken before the filter: a memfd is no memory to it.
        let local = Local::new(self.bound).map_err(|fault| fault.text)?;
        let other = Local::new(self.bound).map_err(|fault| fault.text)?;
        let rooms: Vec<Room> = match &threads {
            Some(threads) => threads.rooms(self.bound).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        // A step that may block or ask the system by its own declaration is not held to M5.
        let free = self.declared.has(mech_flag::OFFLOAD_ALL) || self.declared.has(mech_flag::SELF_ASSERTS);
        if !free {
            let clock = matches!(task, Task::Time | Task::Proof | Task::Threads | Task::Fuzz);
            sandbox::enter_stepping(task == Task::Serve, clock).map_err(|error| format!("seccomp: {error}"))?;
        }
        self.run(local, other, threads.map(|threads| (threads, rooms)), free);
        Ok(())
    }

    fn run<'t>(&self, mut local: Local<'t>, mut other: Local<'t>, threads: Option<(Threads, Vec<Room>)>, free: bool) {
        let task = self.job.task;
        // A second free is found where it happens, and not when the heap falls to pieces.
        sandbox::track(!matches!(task, Task::Time | Task::Threads | Task::Serve));
        if task == Task::Serve {
            return self.serve(&mut local);
        }
        let known = match explore::explore(&mut local, &self.traits, &self.world, &self.vectors) {
            Ok(known) => known,
            Err(fault) => return self.pipe.fault(&self.traits.name, &fault),
        };
        match task {
            Task::Memory => {
                let judged = self.memory(&mut local, &known);
                self.say("M2", judged);
                let free = free.then(|| "OFFLOAD_ALL or SELF_ASSERTS: it may ask the system".to_owned());
                self.say("M5", Ok(free));
                let (count, reached) = (known.len(), explore::reached(&known));
                self.pipe.send(&Line::Note(format!("{}: {count} kinds of exchanges, reached {reached}", self.traits.name)));
                if !known.iter().any(|known| known.story.end == End::Success) {
                    let text = "no exchange got as far as SUCCESS: give sample exchanges with --vectors FILE";
                    self.pipe.send(&Line::Note(format!("{}: {text}", self.traits.name)));
                }
            }
            Task::Purity => self.say("M1", self.purity(&mut local, &known)),
            Task::Allocations => self.say("M3", self.allocations(&mut local, &known)),
            Task::Drop => self.say("M4", self.drop_state(&mut local, &known)),
            Task::Threads => {
                if let Some((threads, rooms)) = threads {
                    let judged = self.threads(&mut local, &mut other, threads, rooms, &known);
                    self.say("M6", judged);
                }
            }
            Task::Time => {
                self.say("M7", self.time(&mut local, &known));
                self.say("P6", self.decoys_look_real(&mut local, &known));
            }
            Task::Protocol => {
                self.say("P1", self.initial_responses(&mut local));
                self.say("P2", self.statuses(&mut local, &known));
                self.say("P4", self.spoiled(&mut local, &known));
            }
            Task::Proof => {
                self.say("P3", self.decoys(&mut local, &known));
                self.say("P5", self.flips(&mut local, &known));
            }
            Task::Published => {
                self.say("P7", self.published(&mut local));
                self.say("P8", self.bindings(&mut local));
            }
            Task::Fuzz => self.fuzz(&mut local, &known),
            Task::Describe | Task::Handshake | Task::Settings | Task::Serve => {}
        }
    }

    fn say(&self, rule: &str, judged: Judged) {
        let mech = &self.traits.name;
        match judged {
            Ok(None) => self.pipe.finding(rule, mech, Verdict::Pass, ""),
            Ok(Some(why)) => self.pipe.finding(rule, mech, Verdict::Skip, why),
            Err(fault) => {
                self.pipe.fault(mech, &fault);
                if fault.rule != rule {
                    self.pipe.finding(rule, mech, Verdict::Skip, format!("not decided: {} came first", fault.rule));
                }
            }
        }
    }

    fn run_plan(&self, local: &mut Local<'_>, plan: &Plan) -> Result<Story, Fault> {
        run(local, &self.traits, &self.world, plan)
    }

    /// For so long may a repeated part go on.
    fn until(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.job.budget_ms)
    }

    // ------------------------------------------------------------ M

    fn memory(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        for Known { plan, .. } in known {
            for (edge, fill) in [(Edge::End, 0xa5), (Edge::Start, 0), (Edge::Start, 0xff)] {
                (local.edge, local.fill) = (edge, fill);
                self.run_plan(local, plan)?;
            }
            for words in self.variants(plan, true) {
                for edge in [Edge::End, Edge::Start] {
                    local.edge = edge;
                    self.run_plan(local, &Plan { voice: Voice::Words(words.clone()), ..plan.clone() })?;
                }
            }
        }
        Ok(None)
    }

    fn purity(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        for (fill, backwards) in [(0x5a, false), (0xff, true), (4, false)] {
            local.fill = fill;
            local.edge = if backwards { Edge::Start } else { Edge::End };
            let mut order: Vec<&Known> = known.iter().collect();
            if backwards {
                order.reverse();
            }
            for Known { plan, story } in order {
                let again = self.run_plan(local, plan)?;
                same("M1", "a second time", story, &again)?;
            }
        }
        Ok(None)
    }

    fn allocations(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if self.declared.drops_state() {
            return Ok(Some("it has drop_state: its states may own memory, which M4 looks at".into()));
        }
        for Known { plan, .. } in known {
            let before = sandbox::allocations();
            let story = self.run_plan(local, plan)?;
            let taken = sandbox::allocations() - before;
            if taken > 0 {
                let after = story.last_words();
                return Err(Fault::new("M3", format!("{taken} allocations in an exchange of {} steps with {after}", story.steps.len())));
            }
        }
        Ok(None)
    }

    fn drop_state(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        for Known { plan, story } in known {
            for steps in 1..=story.steps.len() as u32 {
                for _ in 0..3 {
                    sandbox::track(true);
                    let story = self.run_plan(local, &Plan { steps_max: steps, ..plan.clone() })?;
                    let lost = sandbox::outstanding();
                    if lost > 0 {
                        let text = format!("{lost} allocations are left when an exchange is over after step {steps}, {}", story.last_words());
                        return Err(Fault::new("M4", text));
                    }
                }
            }
        }
        Ok(None)
    }

    fn threads<'t>(
        &self,
        local: &mut Local<'t>,
        other: &mut Local<'t>,
        threads: Threads,
        rooms: Vec<Room>,
        known: &[Known],
    ) -> Judged {
        // Two exchanges, step by step in turn.
        for (at, one) in known.iter().enumerate() {
            for two in known.iter().cycle().skip(at).take(4) {
                interleave(local, other, one, two)?;
            }
        }
        let known: Arc<Vec<Known>> = Arc::new(known.to_vec());
        threads.run(self.bound, rooms, &known, self.until())
    }

    fn time(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if self.declared.has(mech_flag::OFFLOAD_ALL) || self.declared.has(mech_flag::MAY_OFFLOAD) {
            return Ok(Some("it declares OFFLOAD".into()));
        }
        let mut best: Option<(u128, String)> = None;
        // A busy machine may spoil one round, and rarely three.
        for _ in 0..3 {
            let mut samples: Vec<(u128, usize)> = Vec::new();
            let until = Instant::now() + Duration::from_millis(self.job.budget_ms.min(2000) / 4);
            while samples.len() < 2000 || (samples.len() < 50_000 && Instant::now() < until) {
                for (at, Known { plan, story }) in known.iter().enumerate() {
                    local.begin()?;
                    for (moment, _) in &story.steps {
                        let begin = Instant::now();
                        local.step(&plan.facts, moment)?;
                        samples.push((begin.elapsed().as_nanos(), at));
                    }
                    local.finish()?;
                }
                if samples.len() < 200 && Instant::now() > until + Duration::from_millis(500) {
                    break;
                }
            }
            samples.sort_unstable();
            let (p99, at) = samples[(samples.len() - 1) * 99 / 100];
            let words = known.get(at).map(|known| known.story.last_words()).unwrap_or_default();
            if best.as_ref().is_none_or(|(least, _)| p99 < *least) {
                best = Some((p99, words));
            }
            if p99 <= STEP_NANOSECONDS_MAX {
                return Ok(None);
            }
        }
        let (p99, words) = best.unwrap_or_default();
        Err(Fault::new("M7", format!("the slowest of 100 steps takes {} µs, in an exchange with {words}", p99 / 1000)))
    }

    // ------------------------------------------------------------ P

    fn initial_responses(&self, local: &mut Local<'_>) -> Judged {
        let facts = self.traits.facts();
        let without = self.run_plan(local, &Plan::words(facts.clone(), false, vec![]))?;
        let first = without.steps.first().map(|(_, answer)| answer.clone()).unwrap_or_default();
        if first.action != action::CHALLENGE {
            let text = format!("START without an initial response gives {}, not CHALLENGE", first.name());
            return Err(Fault::new("P1", text));
        }
        // LOGIN is no client-first mechanism, but clients treat it as one.
        if self.traits.client_first && !first.data.0.is_empty() && self.traits.name != "LOGIN" {
            let text = format!("CLIENT_FIRST, but without an initial response the challenge is {}", first.data);
            return Err(Fault::new("P1", text));
        }
        if self.traits.server_first {
            return Ok(None);
        }
        let empty = self.run_plan(local, &Plan::words(facts, true, vec![vec![]]))?;
        match empty.steps.first() {
            Some((_, answer)) if answer.action == action::CHALLENGE && *answer == first => {
                let text = format!("an empty initial response (`=`) gives CHALLENGE {}, as if there were none", answer.data);
                Err(Fault::new("P1", text))
            }
            _ => Ok(None),
        }
    }

    fn statuses(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        let mut tried = BTreeSet::new();
        for Known { plan, story } in known.iter().filter(|known| !known.story.ledger.is_empty()) {
            for (at, entry) in story.ledger.iter().enumerate() {
                if !tried.insert((at, entry.effect, plan.initial, story.steps.len())) {
                    continue;
                }
                for (name, status) in STATUSES.into_iter().chain([("77, which is none", 77)]).filter(|(_, status)| *status != 0) {
                    // The client has two more lines, should the mechanism want to hear them.
                    let words = [story.words.clone(), vec![vec![], vec![]]].concat();
                    let plan = Plan { policy: Policy::At(at, status), voice: Voice::Words(words), ..plan.clone() };
                    let story = self.run_plan(local, &plan)?;
                    if story.ledger.len() <= at {
                        continue;
                    }
                    let effect = effect_name(entry.effect);
                    let good = match story.end {
                        End::Failure(class) => allowed(status, entry.effect).contains(&class),
                        End::Success => false,
                        _ => true,
                    };
                    if !good {
                        let text = format!("{effect} ends with {name}, and the exchange with {}", in_words(&story.end));
                        return Err(Fault::new("P2", text));
                    }
                }
            }
        }
        if tried.is_empty() { Ok(Some("no exchange came to an effect".into())) } else { Ok(None) }
    }

    /// The words of a plan with one of them spoiled.
    fn variants(&self, plan: &Plan, few: bool) -> Vec<Vec<Vec<u8>>> {
        let Voice::Words(words) = &plan.voice else { return vec![] };
        let mut all = Vec::new();
        for at in 0..words.len() {
            let spoiled = explore::spoiled(&words[at], &self.traits);
            let step = if few { spoiled.len() / 60 + 1 } else { 1 };
            for spoiled in spoiled.into_iter().step_by(step) {
                let mut words = words.clone();
                words[at] = spoiled;
                all.push(words);
            }
        }
        all
    }

    fn spoiled(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        for Known { plan, story } in known.iter() {
            if let End::Failure(fail::INTERNAL) = story.end
                && plan.policy == Policy::Truth
            {
                return Err(internal(story));
            }
            for words in self.variants(plan, story.words.iter().any(|word| word.len() > 600)) {
                let plan = Plan { voice: Voice::Words(words), policy: Policy::Truth, ..plan.clone() };
                let spoiled = self.run_plan(local, &plan)?;
                if spoiled.end == End::Failure(fail::INTERNAL) {
                    return Err(internal(&spoiled));
                }
                if spoiled.end == End::Success && !self.is_forgiven(&spoiled) {
                    let text = format!("SUCCESS although the exchange was spoiled, with {}", spoiled.last_words());
                    return Err(Fault::new("P4", text));
                }
            }
        }
        Ok(None)
    }

    /// Whether a success needs no unspoiled words: the world itself has compared the secret, or nobody needs one.
    fn is_forgiven(&self, story: &Story) -> bool {
        self.traits.anonymous || self.traits.self_asserts || story.proof().is_some_and(|entry| entry.verified)
    }

    fn decoys(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if self.traits.anonymous {
            return Ok(Some("ANONYMOUS grants no identity".into()));
        }
        let mut random = Random::new(self.job.seed);
        let seeds = explore::seeds(&self.traits);
        let until = self.until();
        for round in 0..DECOYS {
            let Some(Known { plan, story }) = known.get(round % known.len().max(1)) else { break };
            let mut words = story.words.clone();
            if round >= known.len()
                && let Some(word) = (!words.is_empty()).then(|| random.below(words.len()))
            {
                explore::mutate(&mut words[word], &mut random, &seeds, self.traits.message_octets_max);
            }
            let entropy = random.next();
            let plan = Plan { policy: Policy::Decoy, entropy, voice: Voice::Words(words), ..plan.clone() };
            self.run_plan(local, &plan)?.judge(&self.traits)?;
            if round > 4 * known.len() && round % 256 == 0 && Instant::now() > until {
                break;
            }
        }
        // A client that has the right password, but of somebody who does not exist.
        if let Some(kind) = Kind::of(&self.traits.name) {
            for entropy in 0..64 {
                let plan = Plan::client(self.traits.facts(), kind, self.person());
                let initial = !self.traits.server_first;
                let story = self.run_plan(local, &Plan { policy: Policy::Decoy, initial, entropy, ..plan })?;
                story.judge(&self.traits)?;
            }
        }
        Ok(None)
    }

    /// A client with the right password, on the connection as it is.
    fn person(&self) -> Person {
        let gs2 = if self.traits.channel_bind { "p=tls-exporter" } else { "n" };
        let binding = if self.traits.channel_bind { self.world.binding.clone() } else { vec![] };
        Person { gs2: gs2.into(), binding, ..Person::user() }
    }

    fn flips(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        let kind = Kind::of(&self.traits.name);
        if self.traits.anonymous || self.traits.self_asserts || kind == Some(Kind::External) {
            return Ok(Some("the client's messages prove nothing".into()));
        }
        let is_scram = matches!(kind, Some(Kind::Scram(..)));
        let mut flipped = 0;
        for Known { plan, story } in explore::successes(known) {
            let Some(word) = story.words.iter().rposition(|word| !word.is_empty()) else { continue };
            let octets = &story.words[word];
            let proof = match kind {
                // Whatever else a list of directives says is told apart by its own rules.
                Some(Kind::DigestMd5) => octets.windows(9).position(|w| w == b"response=").map_or(0, |at| at + 9)..octets.len(),
                _ => 0..octets.len(),
            };
            for at in proof {
                for bit in 0..8 {
                    let mut words = story.words.clone();
                    words[word][at] ^= 1 << bit;
                    // Schemes and hexadecimal digits mean the same in both cases.
                    if bit == 5 && octets[at].is_ascii_alphabetic() && !is_scram && self.case_may_differ(octets, at) {
                        continue;
                    }
                    flipped += 1;
                    let story = self.run_plan(local, &Plan { voice: Voice::Words(words), ..plan.clone() })?;
                    if story.end == End::Success {
                        let text = format!("SUCCESS with bit {bit} of octet {at} flipped: {}", story.last_words());
                        return Err(Fault::new("P5", text));
                    }
                }
            }
        }
        if flipped == 0 {
            return Ok(Some("no exchange succeeded: give sample exchanges with --vectors FILE".into()));
        }
        Ok(None)
    }

    fn case_may_differ(&self, octets: &[u8], at: usize) -> bool {
        let hexadecimal = octets[at].is_ascii_hexdigit()
            && octets.len() >= 32
            && octets.split(|octet| !octet.is_ascii_hexdigit()).any(|run| run.len() >= 32);
        let scheme = octets.windows(6).position(|window| window.eq_ignore_ascii_case(b"Bearer"));
        hexadecimal || scheme.is_some_and(|start| (start..start + 6).contains(&at))
    }

    fn decoys_look_real(&self, local: &mut Local<'_>, known: &[Known]) -> Judged {
        if !self.declared.needs(action::FETCH_KEY) {
            return Ok(Some("it fetches no key".into()));
        }
        let mut pairs = Vec::new();
        for Known { plan, story } in known.iter().filter(|known| known.plan.policy == Policy::Truth) {
            let fetched = story.ledger.iter().any(|entry| entry.effect == action::FETCH_KEY && !entry.doomed);
            if !fetched || story.end == End::Success {
                continue;
            }
            let decoy = Plan { policy: Policy::Decoy, ..plan.clone() };
            let other = self.run_plan(local, &decoy)?;
            if story.shape() != other.shape() {
                let names = |story: &Story| {
                    let shown = |(_, answer): &(Moment, Answer)| format!("{} ({} octets)", answer.name(), answer.data.0.len());
                    story.steps.iter().map(shown).collect::<Vec<_>>().join(", ")
                };
                let text = format!("with a real key {}; with a made-up one {}", names(story), names(&other));
                return Err(Fault::new("P6", text));
            }
            pairs.push((plan, decoy));
        }
        if pairs.is_empty() {
            return Ok(Some("no exchange came to a key and failed".into()));
        }
        for (real, decoy) in pairs {
            let mut least = f64::INFINITY;
            for _ in 0..3 {
                let (real, decoy) = (self.run_plan(local, real)?, self.run_plan(local, &decoy)?);
                let mut samples = [Vec::new(), Vec::new()];
                for _ in 0..200 {
                    for (samples, story) in samples.iter_mut().zip([&real, &decoy]) {
                        samples.push(self.stepping_nanoseconds(local, story)?);
                    }
                }
                // The quick end of many turns says what the work costs; the slow one is the machine's.
                let [real, decoy] = samples.map(|mut samples| {
                    samples.sort_unstable();
                    samples[samples.len() / 10] as f64
                });
                let differs = if (real - decoy).abs() < 1000.0 { 1.0 } else { real.max(decoy) / real.min(decoy) };
                least = least.min(differs);
                if least <= 1.2 {
                    break;
                }
            }
            if least > 1.2 {
                return Err(Fault::new("P6", format!("real and made-up keys differ by a factor of {least:.1} in time")));
            }
        }
        Ok(None)
    }

    fn stepping_nanoseconds(&self, local: &mut Local<'_>, story: &Story) -> Result<u128, Fault> {
        local.begin()?;
        let facts = self.traits.facts();
        let begin = Instant::now();
        for (moment, _) in &story.steps {
            local.step(&facts, moment)?;
        }
        let taken = begin.elapsed().as_nanos();
        local.finish()?;
        Ok(taken)
    }

    fn published(&self, local: &mut Local<'_>) -> Judged {
        let shipped = vectors::parse(vectors::PUBLISHED).map_err(|cause| Fault::new("P7", cause))?;
        let mut count = 0;
        for vector in shipped.iter().chain(&self.vectors).filter(|vector| vector.mech == self.traits.name) {
            vector.check(local, &self.traits)?;
            count += 1;
        }
        Ok((count == 0).then(|| "nothing is published: give your own exchanges with --vectors FILE".to_owned()))
    }

    fn bindings(&self, local: &mut Local<'_>) -> Judged {
        let facts = self.traits.facts();
        let Some(kind) = Kind::of(&self.traits.name) else { return Ok(Some("its messages are not known here".into())) };
        let mut expect = |what: &str, facts: Facts, gs2: &str, binding: &[u8], good: bool| {
            let person = Person { gs2: gs2.into(), binding: binding.to_vec(), ..Person::user() };
            let story = self.run_plan(local, &Plan::client(facts, kind, person))?;
            if (story.end == End::Success) != good || story.end == End::Failure(fail::INTERNAL) {
                return Err(Fault::new("P8", format!("{what}: {}", in_words(&story.end))));
            }
            Ok(())
        };
        let right = &self.world.binding;
        match kind {
            Kind::Scram(_, true) => {
                let only = |kind: u32| Facts { cb_types: 1 << kind, ..facts.clone() };
                for name in ["p=tls-exporter", "p=tls-server-end-point"] {
                    expect(&format!("the right binding with {name}"), facts.clone(), name, right, true)?;
                    let mut wrong = right.clone();
                    wrong[0] ^= 1;
                    expect(&format!("another connection's binding with {name}"), facts.clone(), name, &wrong, false)?;
                    expect(&format!("no binding with {name}"), facts.clone(), name, b"", false)?;
                }
                expect("p=tls-unique", facts.clone(), "p=tls-unique", right, false)?;
                expect("a binding that this connection lacks", only(binding::TLS_SERVER_END_POINT), "p=tls-exporter", right, false)?;
                expect("the flag n", facts.clone(), "n", b"", false)?;
                expect("the flag y", facts, "y", b"", false)?;
                Ok(None)
            }
            Kind::Scram(_, false) => {
                expect("the flag n", facts.clone(), "n", b"", true)?;
                expect("y where the -PLUS sibling was not offered", facts.clone(), "y", b"", true)?;
                expect("y where the -PLUS sibling was offered", with_sibling(facts.clone()), "y", b"", false)?;
                let with = Facts { cb_types: 6, ..facts };
                expect("p=tls-exporter without -PLUS", with, "p=tls-exporter", right, false)?;
                Ok(None)
            }
            Kind::OauthBearer => {
                expect("p=tls-exporter, which OAUTHBEARER does not have", facts, "p=tls-exporter", right, false)?;
                Ok(None)
            }
            _ => Ok(Some("it has no channel binding".into())),
        }
    }

    // ------------------------------------------------------------ fuzz, serve

    fn fuzz(&self, local: &mut Local<'_>, known: &[Known]) {
        let seeds = explore::seeds(&self.traits);
        let (mut count, until) = (0, self.until());
        while if self.job.exchanges == 0 { count % 64 != 0 || Instant::now() < until } else { count < self.job.exchanges } {
            let seed = self.job.seed.wrapping_add(count);
            if let Err(fault) = self.fuzz_one(local, known, &seeds, seed) {
                let text = format!("{} (again: --seed {seed} --exchanges 1)", fault.text);
                return self.pipe.finding(fault.rule, &self.traits.name, Verdict::Fail, text);
            }
            count += 1;
            if count % 1000 == 0 {
                self.pipe.send(&Line::Progress(count));
            }
        }
        self.pipe.send(&Line::Progress(count));
    }

    fn fuzz_one(&self, local: &mut Local<'_>, known: &[Known], seeds: &[Vec<u8>], seed: u64) -> Result<(), Fault> {
        let mut random = Random::new(seed);
        let Some(base) = known.get(random.below(known.len())) else { return Ok(()) };
        let mut words = base.story.words.clone();
        if words.is_empty() {
            words.push(seeds[random.below(seeds.len())].clone());
        }
        for _ in 0..random.below(4) {
            let word = random.below(words.len());
            explore::mutate(&mut words[word], &mut random, seeds, self.traits.message_octets_max);
        }
        let changed = words != base.story.words;
        let mut facts = base.plan.facts.clone();
        if random.below(4) == 0 {
            facts.conn_flags ^= random.next() as u32 & 7;
            facts.cb_types = random.next() as u32 & 6;
        }
        let policy = match random.below(6) {
            0 => Policy::Decoy,
            1 => Policy::At(random.below(2), STATUSES[random.below(6)].1),
            2 => Policy::Force(status::OK),
            _ => Policy::Truth,
        };
        let damage = (random.below(4) == 0).then(|| random.next());
        let plan = Plan {
            facts,
            entropy: random.next(),
            initial: random.below(4) != 0 && !self.traits.server_first,
            voice: Voice::Words(words),
            policy,
            steps_max: u32::MAX,
            damage,
        };
        (local.edge, local.fill) = (if random.below(2) == 0 { Edge::End } else { Edge::Start }, random.next() as u8);
        let story = self.run_plan(local, &plan)?;
        if damage.is_none() {
            story.judge(&self.traits)?;
            if story.end == End::Failure(fail::INTERNAL) {
                return Err(internal(&story));
            }
            let strict = !matches!(Kind::of(&self.traits.name), Some(Kind::DigestMd5 | Kind::CramMd5));
            let helped = matches!(policy, Policy::Force(_) | Policy::At(..));
            if story.end == End::Success && changed && strict && !helped && !self.is_forgiven(&story) {
                // The sample itself may have been arrived at by another way.
                let is_known = known.iter().any(|known| known.story.end == End::Success && known.story.words == story.words);
                if !is_known {
                    return Err(Fault::new("P5", format!("SUCCESS although the exchange was altered, with {}", story.last_words())));
                }
            }
        }
        local.fill = random.next() as u8;
        let again = self.run_plan(local, &plan)?;
        same("M1", "a second time", &story, &again)
    }

    fn serve(&self, local: &mut Local<'_>) {
        self.pipe.send(&Line::Ready(self.traits.clone()));
        let mut line = String::new();
        let mut stdin = std::io::stdin().lock();
        loop {
            line.clear();
            match stdin.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let answered = match serde_json::from_str(&line) {
                Ok(Request::Begin) => local.begin().map(|()| Answer::default()),
                Ok(Request::Finish) => local.finish().map(|()| Answer::default()),
                Ok(Request::Step(facts, moment)) => local.step(&facts, &moment),
                Err(error) => Err(Fault::new("M2", format!("a request that is none: {error}"))),
            };
            self.pipe.send(&match answered {
                Ok(answer) => Line::Answer(answer),
                Err(fault) => Line::Fault(FaultLine { rule: fault.rule.into(), text: fault.text }),
            });
        }
    }
}

/// Budget of a step, at the 99th of 100.
const STEP_NANOSECONDS_MAX: u128 = 50_000;
/// Exchanges of users who do not exist.
const DECOYS: usize = 10_000;
/// Exchanges on eight threads.
const AT_ONCE: usize = 10_000;

fn internal(story: &Story) -> Fault {
    let diag = story.steps.last().map(|(_, answer)| shown(&answer.diag.0)).unwrap_or_default();
    Fault::new("P4", format!("FAIL INTERNAL ({diag}) after {}", story.last_words()))
}

/// Failure classes that fit a status.
fn allowed(status: u32, effect: u32) -> &'static [u32] {
    match (status, effect) {
        (status::DENIED, action::CHANNEL_BINDING) => &[fail::CREDENTIALS, fail::CBINDING],
        (status::DENIED, _) => &[fail::CREDENTIALS, fail::AUTHZ],
        (status::TEMPFAIL, _) => &[fail::TEMPORARY],
        (status::UNSUPPORTED, action::CHANNEL_BINDING) => &[fail::TEMPORARY, fail::CBINDING],
        (status::UNSUPPORTED, _) => &[fail::TEMPORARY],
        (status::TRANSITION, _) => &[fail::TRANSITION, fail::CREDENTIALS],
        (status::EXPIRED, _) => &[fail::EXPIRED, fail::CREDENTIALS],
        _ => &[fail::INTERNAL, fail::TEMPORARY],
    }
}

fn same(rule: &'static str, when: &str, story: &Story, again: &Story) -> Result<(), Fault> {
    for (at, ((moment, first), (_, second))) in story.steps.iter().zip(&again.steps).enumerate() {
        if first != second {
            let (step, event) = (at + 1, event_name(moment));
            let (first, second, last) = (in_full(first), in_full(second), story.last_words());
            let text = format!("step {step} ({event}) answers {first} at first and {second} {when}, with {last}");
            return Err(Fault::new(rule, text));
        }
    }
    if story.steps.len() == again.steps.len() {
        return Ok(());
    }
    Err(Fault::new(rule, format!("{} steps at first, {} {when}, with {}", story.steps.len(), again.steps.len(), story.last_words())))
}

fn event_name(moment: &Moment) -> &'static str {
    ["", "START", "MESSAGE", "RESULT", "RESUME"].get(moment.event.number() as usize).copied().unwrap_or_default()
}

fn interleave<'a>(one: &mut Local<'a>, two: &mut Local<'a>, first: &Known, second: &Known) -> Result<(), Fault> {
    one.begin()?;
    two.begin()?;
    for at in 0..first.story.steps.len().max(second.story.steps.len()) {
        for (local, known) in [(&mut *one, first), (&mut *two, second)] {
            let Some((moment, expected)) = known.story.steps.get(at) else { continue };
            let answer = local.step(&known.plan.facts, moment)?;
            if answer != *expected {
                return Err(differs("interleaved with another exchange", at, moment, expected, &answer));
            }
        }
    }
    one.finish()?;
    two.finish()
}

fn differs(when: &str, at: usize, moment: &Moment, expected: &Answer, found: &Answer) -> Fault {
    let (step, event) = (at + 1, event_name(moment));
    let text = format!("step {step} ({event}) answers {} alone, and {} {when}", in_full(expected), in_full(found));
    Fault::new("M6", text)
}

/// An answer with all that it says.
fn in_full(answer: &Answer) -> String {
    let mut text = answer.name();
    for (name, octets) in [
        ("authcid", &answer.authcid),
        ("authzid", &answer.authzid),
        ("data", &answer.data),
        ("data2", &answer.data2),
        ("diag", &answer.diag),
    ] {
        if !octets.0.is_empty() {
            text += &format!(" {name} {octets}");
        }
    }
    text
}

// ---------------------------------------------------------------- M6

struct Work {
    bound: &'static Bound,
    room: Room,
    known: Arc<Vec<Known>>,
    first: usize,
    until: Instant,
}

/// Threads that exist before the filter, which lets none begin.
struct Threads {
    work: Vec<mpsc::Sender<Work>>,
    results: mpsc::Receiver<Result<usize, Fault>>,
}

const THREADS: usize = 8;

impl Threads {
    fn start() -> Self {
        let (result, results) = mpsc::channel();
        let (ready, all_ready) = mpsc::channel();
        let work: Vec<_> = (0..THREADS).map(|_| {
            let (to, work) = mpsc::channel::<Work>();
            let (result, ready) = (result.clone(), ready.clone());
            std::thread::spawn(move || {
                let _ = ready.send(());
                if let Ok(work) = work.recv() {
                    let _ = result.send(work.run());
                }
                // The process ends them; nothing of them may run on under the filter.
                std::thread::park();
            });
            to
        }).collect();
        // A thread that is still beginning makes calls that the filter would not let through.
        for _ in 0..THREADS {
            let _ = all_ready.recv();
        }
        Self { work, results }
    }

    fn rooms(&self, bound: &Bound) -> std::io::Result<Vec<Room>> {
        (0..THREADS).map(|_| Room::new(bound)).collect()
    }

    fn run(self, bound: &'static Bound, rooms: Vec<Room>, known: &Arc<Vec<Known>>, until: Instant) -> Judged {
        for (at, (to, room)) in self.work.iter().zip(rooms).enumerate() {
            let first = at * known.len() / THREADS;
            let _ = to.send(Work { bound, room, known: known.clone(), first, until });
        }
        let mut exchanges = 0;
        for _ in 0..THREADS {
            exchanges += self.results.recv().unwrap_or_else(|_| Err(Fault::new("M6", "a thread of the check ended")))?;
        }
        assert!(exchanges > 0, "nothing was run");
        Ok(None)
    }
}

impl Work {
    fn run(self) -> Result<usize, Fault> {
        let mut local = Local { bound: self.bound, room: self.room, edge: Edge::End, fill: 0 };
        let mut count = 0;
        for known in self.known.iter().cycle().skip(self.first) {
            if count >= AT_ONCE / THREADS || (count % 64 == 0 && count > 0 && Instant::now() > self.until) {
                break;
            }
            local.begin()?;
            for (at, (moment, expected)) in known.story.steps.iter().enumerate() {
                let answer = local.step(&known.plan.facts, moment)?;
                if answer != *expected {
                    return Err(differs("beside other threads", at, moment, expected, &answer));
                }
            }
            local.finish()?;
            count += 1;
        }
        Ok(count)
    }
}

