//! One mechanism on trial: each rule is a method that says nothing, why it does not apply, or what was seen.

mod fuzz;
mod memory;
mod protocol;
mod threads;

use std::io::BufRead as _;
use std::time::{Duration, Instant};

use portreeve_plugin_abi::mech_flag;

use crate::event::{Answer, Moment, shown};
use crate::explore;
use crate::job::{FaultLine, Job, Line, Pipe, Request, Task};
use crate::rules::Verdict;
use crate::sandbox::{self, Bound, Declared, Fault, Room};
use crate::vectors::Vector;
use crate::world::{End, Local, Plan, Stepper, Story, Traits, World, run};

pub(crate) use threads::Threads;
pub(crate) struct Trial<'a> {
    pub pipe: &'a Pipe,
    pub job: &'a Job,
    pub declared: &'static Declared,
    pub bound: &'static Bound,
    pub traits: Traits,
    pub world: World,
    pub vectors: Vec<Vector>,
}

/// What a rule came to: nothing to say, or why it does not apply.
type Judged = Result<Option<String>, Fault>;

impl Trial<'_> {
    /// Does the job's part of the trial.
    pub fn enter(&self, threads: Option<Threads>) -> Result<(), String> {
        let task = self.job.task;
        // All memory is taken before the filter: a memfd is no memory to it.
        let local = Local::new(self.bound).map_err(|fault| fault.text)?;
        let other = Local::new(self.bound).map_err(|fault| fault.text)?;
        let rooms: Vec<Room> = match &threads {
            Some(threads) => threads.rooms(self.bound).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        // A step that may block or ask the system by its own declaration is not held to M5.
        let free = self.asks_outside();
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
                self.pipe
                    .send(&Line::Note(format!("{}: {count} kinds of exchanges, reached {reached}", self.traits.name)));
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
            Task::Describe | Task::Handshake | Task::Settings | Task::Backend | Task::Serve => {}
        }
    }

    /// Whether a step may ask the system, by the mechanism's own declaration.
    fn asks_outside(&self) -> bool {
        self.declared.has(mech_flag::OFFLOAD_ALL) || self.declared.has(mech_flag::SELF_ASSERTS)
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
                Ok(Request::Step(step)) => local.step(&step.0, &step.1),
                Err(error) => Err(Fault::new("M2", format!("a request that is none: {error}"))),
            };
            self.pipe.send(&match answered {
                Ok(answer) => Line::Answer(answer),
                Err(fault) => Line::Fault(FaultLine { rule: fault.rule.into(), text: fault.text }),
            });
        }
    }
}

fn internal(story: &Story) -> Fault {
    let diag = story.steps.last().map(|(_, answer)| shown(&answer.diag.0)).unwrap_or_default();
    Fault::new("P4", format!("FAIL INTERNAL ({diag}) after {}", story.last_words()))
}

fn same(rule: &'static str, when: &str, story: &Story, again: &Story) -> Result<(), Fault> {
    for (at, ((moment, first), (_, second))) in story.steps.iter().zip(&again.steps).enumerate() {
        if first != second {
            let (step, event) = (at + 1, event_name(moment));
            let (first, second, last) = (first.in_full(), second.in_full(), story.last_words());
            let text = format!("step {step} ({event}) answers {first} at first and {second} {when}, with {last}");
            return Err(Fault::new(rule, text));
        }
    }
    if story.steps.len() == again.steps.len() {
        return Ok(());
    }
    Err(Fault::new(
        rule,
        format!("{} steps at first, {} {when}, with {}", story.steps.len(), again.steps.len(), story.last_words()),
    ))
}

fn event_name(moment: &Moment) -> &'static str {
    ["", "START", "MESSAGE", "RESULT", "RESUME"].get(moment.event.number() as usize).copied().unwrap_or_default()
}
