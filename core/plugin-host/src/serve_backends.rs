//! The work of a backend-host: it answers the effects that the directory sends it, each on a thread that may block.
//!
//! There is a pool per back end with as many threads as it wants calls at a time, at most [`PARALLEL_MAX`]. How long
//! a call may take is the directory's business: it answers without us, and has us ended.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use link::backend::{CALL, Call, DESCRIPTION, Described, Description, REPLY, Reply, WORDS};
use link::{Link, frames};
use portreeve_plugin_abi::{REPLY_MAX, status};
use sasl::Secret;

use crate::backend::Backend;
use crate::peers::{Peer, Peers};
use crate::watch::Bell;
use crate::{LoadError, Registry, Watch};

/// Most threads of one back end.
pub const PARALLEL_MAX: u32 = 64;
/// Calls of one back end that wait for a thread; the directory sends no more than there are threads.
const QUEUE_MAX: usize = 1024;
/// Replies that a directory does not take.
const OUTBOX_OCTETS_MAX: usize = 16 << 20;
/// Stack of a thread.
const STACK_OCTETS: usize = 2 << 20;

/// The back ends of this process and who asks them.
pub struct BackendHost {
    registry: Registry,
    pools: Vec<(String, Arc<Queue>)>,
    description: Vec<u8>,
    directories: Peers<()>,
    done: Receiver<Done>,
}

struct Job {
    directory: u64,
    id: u64,
    call: Secret,
}

struct Done {
    directory: u64,
    id: u64,
    reply: Secret,
}

/// Calls that wait for a thread.
#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
}

impl Queue {
    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false`: there is no room.
    fn put(&self, job: Job) -> bool {
        let mut jobs = self.jobs();
        let room = jobs.len() < QUEUE_MAX;
        if room {
            jobs.push_back(job);
            self.more.notify_one();
        }
        room
    }

    fn take(&self) -> Job {
        let mut jobs = self.jobs();
        loop {
            match jobs.pop_front() {
                Some(job) => return job,
                None => jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl BackendHost {
    /// Configures every back end of the loaded libraries and starts its threads. `settings` has a JSON object for
    /// each name; none is none.
    pub fn new(registry: Registry, settings: &serde_json::Value, watch: Watch) -> Result<Self, LoadError> {
        let (finished, done) = channel();
        let (mut pools, mut described) = (Vec::new(), Vec::new());
        for (name, provides, parallel) in registry.backend_names() {
            let settings = settings.get(&name).map(ToString::to_string).unwrap_or_default();
            let backend = Arc::new(registry.backend(&name, &settings)?);
            let parallel = parallel.clamp(1, PARALLEL_MAX);
            let queue = Arc::new(Queue::default());
            for number in 0..parallel {
                let (queue, backend) = (Arc::clone(&queue), Arc::clone(&backend));
                let (finished, bell) = (finished.clone(), watch.bell());
                let thread = std::thread::Builder::new().name(format!("{name}-{number}")).stack_size(STACK_OCTETS);
                thread
                    .spawn(move || work(&backend, &queue, &finished, &bell))
                    .map_err(|error| registry.backend_fault(&name, format!("no thread: {error}")))?;
            }
            described.push((name.clone(), provides, parallel));
            pools.push((name, queue));
        }
        let mut description = Vec::new();
        let backends = described.iter().map(|(name, provides, parallel)| Described {
            name,
            provides: *provides,
            parallel: *parallel,
        });
        Description { backends: backends.collect() }.encode(&mut description);
        Ok(Self { registry, pools, description, directories: Peers::new(watch, OUTBOX_OCTETS_MAX), done })
    }

    /// A directory is there; it is told what there is.
    pub fn add(&mut self, link: Link) {
        self.directories.add(link, (), DESCRIPTION, &self.description);
    }

    /// Whether the library has closed what the host waits with: the process is of no more use.
    pub fn is_deaf(&self) -> bool {
        self.directories.are_lost()
    }

    /// Whether nobody is there any more.
    pub fn is_left(&self) -> bool {
        self.directories.is_empty()
    }

    /// Waits for something to do, at most so long; takes what has come, hands it to threads, sends what they have
    /// done. `true`: who was to be waited for outside of this crate has something to say.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let woken = self.directories.wait(patience);
        while let Ok(Done { directory, id, reply }) = self.done.try_recv() {
            if let Some(directory) = self.directories.get_mut(directory) {
                let octets = reply.expose();
                // Without room the directory's deadline answers.
                let _ = directory.outbox.push_sized(REPLY, id, octets.len(), |to| to.extend_from_slice(octets));
            }
        }
        let pools = &self.pools;
        self.directories.receive(|directory, packet| take(pools, directory, packet));
        if let Some(directory) = self.directories.first_mut() {
            for (_, line) in self.registry.take_log() {
                let _ = directory.outbox.push(WORDS, line.level.unsigned_abs().into(), |to| {
                    to.extend_from_slice(line.text.as_bytes());
                });
            }
        }
        self.directories.flush(|()| ());
        woken.outside
    }
}

fn take(pools: &[(String, Arc<Queue>)], directory: &mut Peer<()>, packet: &[u8]) {
    for frame in frames(packet) {
        let call = match frame {
            Ok(frame) if frame.kind == CALL => Call::decode(frame.payload).map(|call| (frame, call)),
            Ok(_) => continue,
            Err(bad) => Err(bad),
        };
        // The directory is one of ours: nonsense from there is a bug.
        let Ok((frame, call)) = call else {
            directory.closed = true;
            return;
        };
        let queue = pools.iter().find(|(name, _)| name == call.backend).map(|(_, queue)| queue);
        let job = Job { directory: directory.number, id: frame.id, call: Secret::new(frame.payload.to_vec()) };
        if !queue.is_some_and(|queue| queue.put(job)) {
            let refused = Reply { diagnosis: b"the host has no room", ..Reply::of(status::TEMPFAIL) };
            let _ = directory.outbox.push(REPLY, frame.id, |to| refused.encode(to));
        }
    }
}

/// A thread: one call after the other.
fn work(backend: &Backend, queue: &Queue, finished: &Sender<Done>, bell: &Bell) {
    let mut scratch = Secret::new(vec![0; REPLY_MAX as usize]);
    loop {
        let Job { directory, id, call } = queue.take();
        let mut reply = Secret::default();
        match Call::decode(call.expose()) {
            Ok(call) => backend.handle(&call, scratch.buffer(), |said| said.encode(reply.buffer())),
            Err(_) => Reply::of(status::TEMPFAIL).encode(reply.buffer()),
        }
        scratch.buffer().fill(0);
        drop(call);
        if finished.send(Done { directory, id, reply }).is_err() {
            return;
        }
        bell.ring();
    }
}
