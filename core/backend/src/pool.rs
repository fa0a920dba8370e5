//! Threads that check passwords and tokens: bounded in number, with a bounded queue, never the loop's own thread.
//!
//! A full queue answers "temporary" at once, and so does a question that waited too long: its client has
//! gone or will come again, and the work would only delay the others (CONTRACT C47). When the queue is half
//! full, a source that holds a quarter of it gets no more.

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
use link::directory::Question;
use rustix::event::{EventfdFlags, eventfd};
use sasl::Secret;
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
}

struct Done {
    ticket: Ticket,
    source: IpAddr,
    answer: Zeroizing<Vec<u8>>,
}

/// See the module.
pub struct Pool {
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
        let mut pool = Self {
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
                    if finished.send(Done { ticket: job.ticket, source: job.source, answer }).is_err() {
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
        let job = Job { ticket, source, since: Instant::now(), question: Secret::new(question.to_vec()) };
        let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok());
        if taken {
            self.queued += 1;
            *self.held.entry(source).or_insert(0) += 1;
        }
        taken
    }

    /// Hands over all answers that are ready.
    pub fn collect(&mut self, mut take: impl FnMut(Ticket, &[u8])) {
        self.bell.clear();
        while let Ok(done) = self.done.try_recv() {
            self.queued -= 1;
            if let Some(held) = self.held.get_mut(&done.source) {
                *held -= 1;
                if *held == 0 {
                    self.held.remove(&done.source);
                }
            }
            take(done.ticket, &done.answer);
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
            let (listener, mechanism) = ("submission", "PLAIN");
            let mut octets = Vec::new();
            Question::VerifyPassword { listener, client_ip, mechanism, authcid: b"x", authzid: b"", password: b"x" }
                .encode(&mut octets);
            (client_ip, octets)
        };
        let mut next = 0;
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
}
