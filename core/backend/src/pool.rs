//! Threads that check passwords and tokens: bounded in number, with a bounded queue, never the loop's own thread.
//!
//! A full queue answers "temporary" at once, and so does a question that waited too long: its client has
//! gone or will come again, and the work would only delay the others (CONTRACT C47). When the queue is half
//! full, a source that holds a quarter of it gets no more.
//!
//! A password that is being checked for somebody is not checked again for the next one who says the same: a phone that
//! comes back with a hundred sessions after a restart costs one hash. That is so for every name alike, also for those of
//! nobody, and ends with the answer: nothing is remembered here.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use hmac::{Hmac, KeyInit as _, Mac as _};
use link::directory::Question;
use rustix::event::{EventfdFlags, eventfd};
use sasl::Secret;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::directory::{Directory, temporary};
use crate::event::{Event, Report};

pub(crate) const NICE: i32 = 5;

/// Which question of which link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The link.
    pub link: u64,
    /// The question's id.
    pub id: u64,
}

struct Job {
    ticket: Ticket,
    source: IpAddr,
    since: Instant,
    /// The encoded question.
    question: Secret,
    likeness: Option<Likeness>,
}

struct Done {
    ticket: Ticket,
    source: IpAddr,
    likeness: Option<Likeness>,
    answer: Zeroizing<Vec<u8>>,
}

/// What questions with the same answer have in common, under a key of this pool.
type Likeness = [u8; 32];

/// See the module.
pub struct Pool {
    directory: Arc<Directory>,
    key: Hmac<Sha256>,
    /// Who else waits for the answer to a question that is queued or being worked on.
    alike: HashMap<Likeness, Vec<(Ticket, IpAddr)>>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
    held: HashMap<IpAddr, usize>,
    queued: usize,
    queue_max: usize,
}

/// Wakes the loop; many rings between two looks are one.
struct Bell {
    fd: OwnedFd,
    rung: AtomicBool,
}

impl Pool {
    /// Starts threads of this name.
    pub fn start(
        name: &str,
        directory: &Arc<Directory>,
        threads: usize,
        queue_max: usize,
        wait_max: Duration,
        report: &Report,
    ) -> io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(queue_max.max(1));
        let (finished, done) = unbounded();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { fd, rung: AtomicBool::new(false) });
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(io::Error::other)?;
        let mut pool = Self {
            directory: directory.clone(),
            key: Hmac::new_from_slice(&*key).expect("HMAC takes keys of any length"),
            alike: HashMap::new(),
            jobs: Some(jobs),
            done,
            bell,
            threads: Vec::new(),
            held: HashMap::new(),
            queued: 0,
            queue_max: queue_max.max(1),
        };
        for n in 0..threads.max(1) {
            let (queue, finished, bell) = (queue.clone(), finished.clone(), pool.bell.clone());
            let (directory, report) = (directory.clone(), report.clone());
            let thread = std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                // Where cores are short, sessions go before passwords (CONTRACT C47). Lower is always allowed.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
                while let Ok(job) = queue.recv() {
                    let answer = work(&directory, &job, wait_max, &report);
                    // Hash functions keep their keys on the stack, and their frames stay where they were.
                    zeroize::zeroize_stack::<STACK_OCTETS>();
                    let Job { ticket, source, likeness, .. } = job;
                    if finished.send(Done { ticket, source, likeness, answer }).is_err() {
                        return;
                    }
                    bell.ring();
                }
            })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Takes a question; `false` when there is no room for it.
    pub fn offer(&mut self, ticket: Ticket, client: IpAddr, question: &[u8]) -> bool {
        let source = source(client);
        let held = self.held.get(&source).copied().unwrap_or(0);
        if self.queued > self.queue_max / 2 && held > self.queue_max / 4 {
            return false;
        }
        let likeness = self.likeness(question);
        // A hash function's state is on the stack, and its frames stay where they were.
        zeroize::zeroize_stack::<LIKENESS_STACK_OCTETS>();
        let taken = match likeness.and_then(|likeness| self.alike.get_mut(&likeness)) {
            Some(others) if self.queued < self.queue_max => {
                others.push((ticket, source));
                true
            }
            Some(_) => false,
            None => {
                let question = Secret::new(question.to_vec());
                let job = Job { ticket, source, since: Instant::now(), question, likeness };
                let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok());
                self.alike.extend(likeness.filter(|_| taken).map(|likeness| (likeness, Vec::new())));
                taken
            }
        };
        if taken {
            self.queued += 1;
            *self.held.entry(source).or_insert(0) += 1;
        }
        taken
    }

    /// Of a password: everything that its answer depends on. The epoch is part of it, so that nobody is told what was
    /// so before the users changed.
    #[inline(never)]
    fn likeness(&self, question: &[u8]) -> Option<Likeness> {
        let Ok(Question::VerifyPassword { mechanism, authcid, authzid, password, .. }) = Question::decode(question)
        else {
            return None;
        };
        let mut mac = self.key.clone();
        mac.update(&self.directory.epoch_now().to_le_bytes());
        for part in [mechanism.as_bytes(), authcid, authzid, password] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        Some(mac.finalize().into_bytes().into())
    }

    /// Hands over all answers that are ready.
    pub fn collect(&mut self, mut take: impl FnMut(Ticket, &[u8])) {
        self.bell.clear();
        while let Ok(Done { ticket, source, likeness, answer }) = self.done.try_recv() {
            let others = likeness.and_then(|likeness| self.alike.remove(&likeness)).unwrap_or_default();
            for (ticket, source) in std::iter::once((ticket, source)).chain(others) {
                self.queued -= 1;
                if let Some(held) = self.held.get_mut(&source) {
                    *held -= 1;
                    if *held == 0 {
                        self.held.remove(&source);
                    }
                }
                take(ticket, &answer);
            }
        }
    }

    /// Questions taken and not collected.
    pub fn queued(&self) -> usize {
        self.queued
    }
}

/// Readable when there is something to collect.
impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // What waits is thrown away; what is being worked on ends.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        // After reading and before the queue is looked at: what comes later rings again.
        self.rung.store(false, Ordering::SeqCst);
    }
}

/// How deep a hash function goes.
const STACK_OCTETS: usize = 32 * 1024;
/// And HMAC with SHA-256.
const LIKENESS_STACK_OCTETS: usize = 8 * 1024;

#[inline(never)]
fn work(directory: &Directory, job: &Job, wait_max: Duration, report: &Report) -> Zeroizing<Vec<u8>> {
    // Room for any answer, so that growing leaves no copy of a key behind.
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    let Ok(question) = Question::decode(job.question.expose()) else { return answer };
    if job.since.elapsed() > wait_max {
        temporary(&question, &mut answer);
        return answer;
    }
    let done = catch_unwind(AssertUnwindSafe(|| directory.answer(&question, &mut answer)));
    if done.is_err() {
        report(&Event::Panicked);
        answer.clear();
        temporary(&question, &mut answer);
    }
    answer
}

/// Whoever has an IPv6 network has all its addresses.
pub(crate) fn source(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !0 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use link::directory::Answer;
    use sasl::Status;

    use super::*;
    use crate::decoy::Decoys;
    use crate::users::Users;

    #[test]
    fn one_source_cannot_fill_the_queue() {
        let users = Users::parse("users".as_ref(), Zeroizing::default(), &Arc::default()).unwrap();
        let decoys = Decoys::new([0; 32], Vec::new());
        let directory = Arc::new(Directory::new(users, decoys, None, Arc::new(AtomicU64::new(0))));
        let report: Report = Arc::new(|_: &Event| ());
        let mut pool = Pool::start("password", &directory, 1, 16, Duration::from_secs(60), &report).unwrap();
        let question = |ip: &str| {
            let client_ip = ip.parse().unwrap();
            (client_ip, asked(client_ip, "PLAIN", b"x", b"", b"x"))
        };
        let mut next = 0;
        // Whether they are alike makes no difference to how many a source may have.
        let mut offer = |pool: &mut Pool, ip: &str| {
            next += 1;
            let (client, octets) = question(ip);
            pool.offer(Ticket { link: 1, id: next }, client, &octets)
        };
        let taken = (0..100).filter(|_| offer(&mut pool, "2001:db8::1")).count();
        assert_eq!(taken, 9);
        // Another address of the same network is the same source, another network is not.
        assert!(!offer(&mut pool, "2001:db8::2"));
        assert!(offer(&mut pool, "192.0.2.1") && offer(&mut pool, "2001:db8:0:1::1"));
        let mut answers = 0;
        while answers < taken + 2 {
            let mut fds = [rustix::event::PollFd::new(&pool, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            pool.collect(|_, answer| answers += usize::from(!answer.is_empty()));
        }
        assert_eq!((pool.queued(), pool.held.len()), (0, 0));
        assert!(offer(&mut pool, "2001:db8::1"));
    }

    fn asked(client_ip: IpAddr, mechanism: &str, authcid: &[u8], authzid: &[u8], password: &[u8]) -> Vec<u8> {
        let mut octets = Vec::new();
        let listener = "submission";
        Question::VerifyPassword { listener, client_ip, mechanism, authcid, authzid, password }.encode(&mut octets);
        octets
    }

    #[test]
    fn a_password_that_is_being_checked_is_not_checked_again_for_the_next_one() {
        let secret = crate::scheme::NewScheme::named("SCRAM-SHA-256").unwrap().make("alice", b"right").unwrap();
        let line = format!("alice@demo.test:{}:authzids=@demo.test\nbob@demo.test:\n", *secret);
        let users = Users::parse("users".as_ref(), Zeroizing::new(line.into()), &Arc::default()).unwrap();
        let decoys = Decoys::new([0; 32], Vec::new());
        let directory = Arc::new(Directory::new(users, decoys, None, Arc::new(AtomicU64::new(0))));
        let report: Report = Arc::new(|_: &Event| ());
        let mut pool = Pool::start("password", &directory, 1, 400, Duration::from_secs(60), &report).unwrap();
        let ip = "192.0.2.1".parse().unwrap();
        let (alice, bob, mallory) = (&b"alice@demo.test"[..], &b"bob@demo.test"[..], &b"mallory@demo.test"[..]);
        // Whoever exists or not, and has the right password or not: one job.
        let kinds = [
            ("PLAIN", alice, &b""[..], &b"right"[..], Status::Ok),
            ("PLAIN", alice, b"", b"wrong", Status::Denied),
            ("PLAIN", mallory, b"", b"right", Status::Denied),
            ("LOGIN", alice, b"", b"right", Status::Ok),
            ("PLAIN", alice, bob, b"right", Status::Ok),
            ("PLAIN", alice, b"x", b"right", Status::Denied),
        ];
        let mut offered = 0;
        let mut offer = |pool: &mut Pool, times: usize| {
            for (kind, (mechanism, authcid, authzid, password, _)) in kinds.iter().enumerate() {
                for _ in 0..times {
                    offered += 1;
                    let ticket = Ticket { link: kind as u64, id: offered };
                    assert!(pool.offer(ticket, ip, &asked(ip, mechanism, authcid, authzid, password)));
                }
            }
        };
        offer(&mut pool, 10);
        assert_eq!((pool.alike.len(), pool.queued()), (kinds.len(), 60));
        let jobs = pool.jobs.as_ref().unwrap().len();
        assert!(jobs <= kinds.len(), "{jobs} jobs for {} passwords", kinds.len());
        // What was so before the users changed is nothing to those who ask afterwards.
        directory.forget();
        offer(&mut pool, 1);
        assert_eq!(pool.alike.len(), 2 * kinds.len());
        let mut answered = std::collections::BTreeSet::new();
        while answered.len() < 66 {
            let mut fds = [rustix::event::PollFd::new(&pool, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            pool.collect(|Ticket { link, id }, answer| {
                let Ok(Answer::Sasl { status, identity, .. }) = Answer::decode(answer) else { panic!("an answer") };
                let (.., authzid, _, expected) = kinds[link as usize];
                assert_eq!(status, expected as u32 as u8, "{link}");
                let whose = identity.map(|identity| identity.name.as_bytes().to_vec());
                let acting = if authzid.is_empty() { alice } else { authzid };
                assert_eq!(whose, (expected == Status::Ok).then(|| acting.to_vec()));
                assert!(answered.insert(id), "once");
            });
        }
        assert_eq!((pool.queued(), pool.held.len(), pool.alike.len()), (0, 0, 0));
    }
}
