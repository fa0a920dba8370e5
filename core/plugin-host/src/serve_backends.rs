//! The work of a backend-host: it answers the effects that the directory sends it, each on a thread that may block.
//!
//! There is a pool per back end with as many threads as it wants calls at a time, at most [`PARALLEL_MAX`]. How long
//! a call may take is the directory's business: it answers without us, and has us ended.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use link::backend::{CALL, Call, DESCRIPTION, Described, Description, REPLY, Reply, WORDS};
use link::{Link, Outbox, Received, frames};
use portreeve_plugin_abi::{REPLY_MAX, status};
use sasl::Secret;

use crate::backend::Backend;
use crate::{LoadError, Registry};

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
    peers: Vec<Peer>,
    peers_so_far: u64,
    done: Receiver<Done>,
    bell: Arc<OwnedFd>,
    packet: Vec<u8>,
    busy: usize,
}

/// A directory.
struct Peer {
    key: u64,
    link: Link,
    outbox: Outbox,
    closed: bool,
}

struct Job {
    peer: u64,
    id: u64,
    call: Secret,
}

struct Done {
    peer: u64,
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
    pub fn new(registry: Registry, settings: &serde_json::Value, bell: OwnedFd) -> Result<Self, LoadError> {
        let (finished, done) = channel();
        let bell = Arc::new(bell);
        let (mut pools, mut described) = (Vec::new(), Vec::new());
        for (name, provides, parallel) in registry.backend_names() {
            let settings = settings.get(&name).map(ToString::to_string).unwrap_or_default();
            let backend = Arc::new(registry.backend(&name, &settings)?);
            let parallel = parallel.clamp(1, PARALLEL_MAX);
            let queue = Arc::new(Queue::default());
            for number in 0..parallel {
                let (queue, backend) = (Arc::clone(&queue), Arc::clone(&backend));
                let (finished, bell) = (finished.clone(), Arc::clone(&bell));
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
        let (peers, packet) = (Vec::new(), Vec::new());
        Ok(Self { registry, pools, description, peers, peers_so_far: 0, done, bell, packet, busy: 0 })
    }

    /// A directory is there; it is told what there is.
    pub fn add(&mut self, link: Link) {
        self.peers_so_far += 1;
        let mut peer = Peer { key: self.peers_so_far, link, outbox: Outbox::new(OUTBOX_OCTETS_MAX), closed: false };
        let description = &self.description;
        let said = peer.outbox.push(DESCRIPTION, 0, |to| to.extend_from_slice(description));
        peer.flush();
        if said.is_ok() {
            self.peers.push(peer);
        }
    }

    /// What to wait for; `true` where there is something to be sent, too.
    pub fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let peers = self.peers.iter().map(|peer| (peer.link.as_fd(), !peer.outbox.is_empty()));
        peers.chain([(self.bell.as_fd(), false)])
    }

    /// Whether nobody is there any more.
    pub fn is_left(&self) -> bool {
        self.peers.is_empty()
    }

    /// Takes what has come, hands it to threads, sends what they have done.
    pub fn turn(&mut self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        while let Ok(Done { peer, id, reply }) = self.done.try_recv() {
            self.busy = self.busy.saturating_sub(1);
            if let Some(peer) = self.peers.iter_mut().find(|one| one.key == peer) {
                // Without room the directory's deadline answers.
                let _ = peer.outbox.push(REPLY, id, |to| to.extend_from_slice(reply.expose()));
            }
        }
        let mut packet = std::mem::take(&mut self.packet);
        for mut peer in std::mem::take(&mut self.peers) {
            loop {
                match peer.link.receive(&mut packet) {
                    Ok(Received::Packet { .. }) => self.packet(&mut peer, &packet),
                    Ok(Received::WouldBlock) => break,
                    Ok(Received::Closed) | Err(_) => {
                        peer.closed = true;
                        break;
                    }
                }
                zeroize::Zeroize::zeroize(packet.as_mut_slice());
            }
            for (_, line) in self.registry.take_log() {
                let _ = peer.outbox.push(WORDS, line.level.unsigned_abs().into(), |to| {
                    to.extend_from_slice(line.text.as_bytes());
                });
            }
            peer.flush();
            if !peer.closed {
                self.peers.push(peer);
            }
        }
        self.packet = packet;
    }

    fn packet(&mut self, peer: &mut Peer, packet: &[u8]) {
        for frame in frames(packet) {
            let call = match frame {
                Ok(frame) if frame.kind == CALL => Call::decode(frame.payload).map(|call| (frame, call)),
                Ok(_) => continue,
                Err(bad) => Err(bad),
            };
            // The directory is one of ours: nonsense from there is a bug.
            let Ok((frame, call)) = call else {
                peer.closed = true;
                return;
            };
            let queue = self.pools.iter().find(|(name, _)| name == call.backend).map(|(_, queue)| queue);
            let job = Job { peer: peer.key, id: frame.id, call: Secret::new(frame.payload.to_vec()) };
            if queue.is_some_and(|queue| queue.put(job)) {
                self.busy += 1;
            } else {
                let refused = Reply { diagnosis: b"the host has no room", ..Reply::of(status::TEMPFAIL) };
                let _ = peer.outbox.push(REPLY, frame.id, |to| refused.encode(to));
            }
        }
    }
}

impl Peer {
    fn flush(&mut self) {
        if self.outbox.flush(&self.link).is_err() {
            self.closed = true;
        }
    }
}

/// A thread: one call after the other.
fn work(backend: &Backend, queue: &Queue, finished: &Sender<Done>, bell: &OwnedFd) {
    let mut scratch = Secret::new(vec![0; REPLY_MAX as usize]);
    loop {
        let Job { peer, id, call } = queue.take();
        let mut reply = Secret::default();
        match Call::decode(call.expose()) {
            Ok(call) => backend.handle(&call, scratch.buffer(), |said| said.encode(reply.buffer())),
            Err(_) => Reply::of(status::TEMPFAIL).encode(reply.buffer()),
        }
        scratch.buffer().fill(0);
        drop(call);
        if finished.send(Done { peer, id, reply }).is_err() {
            return;
        }
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }
}
