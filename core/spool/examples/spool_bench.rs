//! What a disk gives: durable 4 KiB messages through the spool, beside a file for each message.
//!
//! ```text
//! cargo run --release -p spool --example spool_bench -- --dir /var/spool/portreeve-bench [--seconds 2]
//! ```
//!
//! Each writer is a thread that waits for its own message before it sends the next one, as a session does.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use smtp::id::QueueId;
use spool::{Completions, Floors, Follower, Hooks, Message, Notice, Options, RealDisk, Trouble, Writer};

const WRITERS: [usize; 3] = [1, 16, 256];
const BODY_OCTETS: usize = 4096;
const ENVELOPE: &[u8] = &[0; 120];
const PREPEND: &[u8] = &[b'x'; 180];

fn main() -> io::Result<()> {
    let mut dir = std::env::temp_dir().join("portreeve-spool-bench");
    let mut seconds = 2.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--dir" => dir = PathBuf::from(value),
            "--seconds" => seconds = value.parse().map_err(io::Error::other)?,
            _ => return Err(io::Error::other(format!("{argument}: unknown; use --dir and --seconds"))),
        }
    }
    let time = Duration::from_secs_f64(seconds);
    println!("4 KiB messages in {}, {seconds} s each", dir.display());
    println!("{:<40} {:>7} {:>10} {:>9} {:>9} {:>8}", "way", "writers", "messages/s", "p50 ms", "p99 ms", "CPU us");
    for writers in WRITERS {
        let way = |name, run: &dyn Fn() -> io::Result<Figures>| -> io::Result<()> {
            std::fs::create_dir_all(&dir)?;
            let figures = run()?;
            std::fs::remove_dir_all(&dir)?;
            figures.print(name, writers);
            Ok(())
        };
        way("spool, group commit", &|| through_spool(&dir, writers, time))?;
        way("file + fsync + rename", &|| files(&dir, writers, time, false))?;
        way("file + fsync + rename + fsync of folder", &|| files(&dir, writers, time, true))?;
    }
    recovery(&dir)
}

struct Figures {
    elapsed: Duration,
    cpu: Duration,
    micros: Vec<u32>,
}

impl Figures {
    fn print(mut self, way: &str, writers: usize) {
        self.micros.sort_unstable();
        let messages = self.micros.len() as f64;
        let rank = |share: f64| {
            let place = (messages * share) as usize;
            self.micros.get(place).map_or(0.0, |&micros| f64::from(micros) / 1000.0)
        };
        println!(
            "{way:<40} {writers:>7} {:>10.0} {:>9.2} {:>9.2} {:>8.1}",
            messages / self.elapsed.as_secs_f64(),
            rank(0.5),
            rank(0.99),
            self.cpu.as_micros() as f64 / messages,
        );
    }
}

/// Runs `work` again and again on so many threads; it is given the number of the message.
fn measure<W: FnMut(u64) -> io::Result<()>>(
    writers: usize,
    time: Duration,
    make: impl Fn() -> W + Sync,
) -> io::Result<Figures> {
    let numbers = AtomicU64::new(0);
    let cpu = || {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    };
    let (started, cpu_before) = (Instant::now(), cpu());
    let one = || -> io::Result<Vec<u32>> {
        let mut work = make();
        let mut micros = Vec::new();
        while started.elapsed() < time {
            let begun = Instant::now();
            work(numbers.fetch_add(1, Ordering::Relaxed))?;
            micros.push(begun.elapsed().as_micros() as u32);
        }
        Ok(micros)
    };
    let mut micros = Vec::new();
    thread::scope(|scope| -> io::Result<()> {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            micros.extend(thread.join().map_err(|_| io::Error::other("a writer panicked"))??);
        }
        Ok(())
    })?;
    Ok(Figures { elapsed: started.elapsed(), cpu: cpu() - cpu_before, micros })
}

/// A writer's thread, woken when its message is durable.
struct Wake {
    thread: Thread,
    /// 0: waits; 1: durable; 2: not.
    result: AtomicU8,
}

impl Completions for Wake {
    fn done(&self, _: u64, result: Result<(), Trouble>) {
        self.result.store(if result.is_ok() { 1 } else { 2 }, Ordering::Release);
        self.thread.unpark();
    }

    fn room(&self) {
        self.thread.unpark();
    }
}

fn through_spool(dir: &Path, writers: usize, time: Duration) -> io::Result<Figures> {
    let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
    let options = Options { floors, ..Options::default() };
    let writer = Writer::open(Arc::new(RealDisk::open(dir)?), options, Hooks::default())?;
    let body = [b'b'; BODY_OCTETS];
    measure(writers, time, || {
        let wake = Arc::new(Wake { thread: thread::current(), result: AtomicU8::new(0) });
        let port = writer.port(wake.clone());
        move |number| {
            let refused = |trouble| io::Error::other(format!("refused: {trouble:?}"));
            let mut entry = port.begin(id(number), None).map_err(refused)?;
            let mut taken = entry.append(&body);
            while taken < body.len() {
                thread::park_timeout(Duration::from_millis(1));
                taken += entry.append(&body[taken..]);
            }
            port.commit(entry, ENVELOPE, PREPEND, number);
            loop {
                match wake.result.swap(0, Ordering::Acquire) {
                    0 => thread::park(),
                    1 => return Ok(()),
                    _ => return Err(io::Error::other("not durable")),
                }
            }
        }
    })
}

fn files(dir: &Path, writers: usize, time: Duration, sync_folder: bool) -> io::Result<Figures> {
    let message = [ENVELOPE, PREPEND, &[b'b'; BODY_OCTETS]].concat();
    measure(writers, time, || {
        let message = &message;
        move |number| {
            let tmp = dir.join(format!("{number}.tmp"));
            let mut file = File::create_new(&tmp)?;
            file.write_all(message)?;
            file.sync_all()?;
            std::fs::rename(&tmp, dir.join(format!("{number}.msg")))?;
            if sync_folder { File::open(dir)?.sync_all() } else { Ok(()) }
        }
    })
}

/// How long a start after a crash takes.
fn recovery(dir: &Path) -> io::Result<()> {
    const MESSAGES: u64 = 100_000;
    std::fs::create_dir_all(dir)?;
    let numbers = AtomicU64::new(0);
    {
        let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
        let options = Options { floors, ..Options::default() };
        let writer = Writer::open(Arc::new(RealDisk::open(dir)?), options, Hooks::default())?;
        let wake = Arc::new(Wake { thread: thread::current(), result: AtomicU8::new(0) });
        let port = writer.port(wake);
        for _ in 0..MESSAGES {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let mut entry = port.begin(id(number), None).map_err(|trouble| io::Error::other(format!("{trouble:?}")))?;
            let body = [b'b'; BODY_OCTETS];
            let mut taken = entry.append(&body);
            while taken < body.len() {
                thread::park_timeout(Duration::from_millis(1));
                taken += entry.append(&body[taken..]);
            }
            port.commit(entry, ENVELOPE, PREPEND, number);
        }
    }
    let started = Instant::now();
    let mut follower = Follower::open(Arc::new(RealDisk::open(dir)?), Arc::new(|_: &Notice| {}))?;
    let (mut message, mut found) = (Message::default(), 0);
    while follower.next(&mut message) {
        found += 1;
    }
    println!("{found} messages recovered in {:.2} s", started.elapsed().as_secs_f64());
    std::fs::remove_dir_all(dir)
}

fn id(number: u64) -> QueueId {
    QueueId::new(1_700_000_000_000 + number, u128::from(number))
}
