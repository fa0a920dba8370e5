//! Threads for steps that may take long (OFFLOAD), so that one that waits for a disk or a network stops nobody
//! else's exchange. An exchange travels to a thread and back with its answer; while it is away nothing else
//! touches it.
//!
//! The threads are started before the process locks itself up, because afterwards it can start none.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use link::mechanism as wire;
use sasl::{FailureClass, Secret};

use crate::exchange::{Exchange, Stepped, failure};
use crate::watch::{Bell, Watch};

/// Steps that take long at the same time.
pub const THREADS: usize = 8;
/// Steps that wait for a thread; more are refused.
const WAITING_MAX: usize = 1024;

/// A step on its way to a thread.
pub(crate) struct Job {
    /// Names it.
    pub ticket: u64,
    pub exchange: Box<Exchange>,
    /// The step as it came over the link.
    pub step: Secret,
    /// The mechanism has seen it, and asked for more time.
    pub resume: bool,
}

/// A step that has come back.
pub(crate) struct Done {
    pub ticket: u64,
    pub exchange: Box<Exchange>,
    /// The encoded answer.
    pub answer: Secret,
}

/// The threads. They end with the process: one that is stuck can be ended in no other way.
pub struct Pool(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    /// Rung when something has come back.
    bell: Bell,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    done: Vec<Done>,
}

impl Pool {
    /// Starts the threads, and waits until each has begun: what a thread asks of the system before that, a filter
    /// that comes meanwhile would refuse it. What they have done wakes whoever waits with `watch`.
    pub fn start(watch: &Watch) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), bell: watch.bell() });
        let (begun, all) = channel();
        for _ in 0..THREADS {
            let (shared, begun) = (Arc::clone(&shared), begun.clone());
            thread::Builder::new().name("offload".into()).spawn(move || {
                // Whoever waits for it is there.
                let _ = begun.send(());
                drop(begun);
                shared.work();
            })?;
        }
        for _ in 0..THREADS {
            all.recv().map_err(io::Error::other)?;
        }
        Ok(Self(shared))
    }

    /// Gives a step to the next thread that is free; `false` when too many wait: the exchange is over then.
    pub(crate) fn take(&self, job: Job) -> bool {
        let mut queue = self.0.lock();
        if queue.waiting.len() >= WAITING_MAX {
            return false;
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.0.more.notify_one();
        true
    }

    /// Takes a step back that no thread has begun; `None`: one has.
    pub(crate) fn withdraw(&self, ticket: u64) -> Option<Box<Exchange>> {
        let mut queue = self.0.lock();
        let at = queue.waiting.iter().position(|job| job.ticket == ticket)?;
        queue.waiting.remove(at).map(|job| job.exchange)
    }

    /// What has come back.
    pub(crate) fn done(&self) -> Vec<Done> {
        std::mem::take(&mut self.0.lock().done)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does for all its life.
    fn work(&self) {
        let mut scratch = Secret::default();
        loop {
            let mut queue = self.lock();
            let job = loop {
                match queue.waiting.pop_front() {
                    Some(job) => break job,
                    None => queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            let done = run(job, &mut scratch);
            self.lock().done.push(done);
            self.bell.ring();
        }
    }
}

fn run(job: Job, scratch: &mut Secret) -> Done {
    let Job { ticket, mut exchange, step, resume } = job;
    let octets = exchange.traits().output_octets_max;
    scratch.buffer().resize(octets, 0);
    let mut encoded = Secret::default();
    let mut answer = |answer: &wire::Answer<'_>| {
        // A buffer that grows leaves copies of a password behind.
        encoded = Secret::new(Vec::with_capacity(answer.octets()));
        answer.encode(encoded.buffer());
    };
    match wire::Step::decode(step.expose()) {
        Ok(step) => {
            let mut stepped = exchange.step(&step, resume, scratch.buffer(), &mut answer);
            if matches!(stepped, Stepped::Offload) && !resume {
                // It wants to be where it is already.
                stepped = exchange.step(&step, true, scratch.buffer(), &mut answer);
            }
            if matches!(stepped, Stepped::Offload) {
                answer(&failure(FailureClass::Internal, b"the mechanism answered RESUME with OFFLOAD"));
            }
        }
        Err(_) => answer(&failure(FailureClass::Internal, b"a step that is none")),
    }
    Done { ticket, exchange, answer: encoded }
}
