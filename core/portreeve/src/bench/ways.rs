//! Ways to make a message durable, and the time that they take.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use smtp::id::QueueId;
use spool::{
    Completions, Disk, Entry, File as SpoolFile, Floors, Follower, Guard, Hooks, Message, Notice, Options, Port,
    RealDisk, Room, Trouble, Writer,
};

use super::{BODY_OCTETS, Progress};

/// As long as real ones.
const ENVELOPE: &[u8] = &[0; 120];
const PREPEND: &[u8] = &[b'x'; 180];
/// As much as a segment.
const FILLED_OCTETS: u64 = 64 << 20;

/// How a message becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A file each, synced and given its name, as many queues do.
    Files,
    /// The same, and the name is durable, too.
    FilesAndFolder,
    /// One file for all, synced by each writer for itself.
    Log,
    /// The same, and the file's octets are there already: one write and one flush of the disk, nothing else.
    Filled,
    /// Ours.
    Spool,
}

/// How long, how many.
pub struct Limits<'a> {
    /// Threads.
    pub writers: usize,
    /// So long.
    pub time: Duration,
    /// No more than this, or the disk fills.
    pub messages_max: u64,
    /// Somebody wants us to end.
    pub stop: &'a AtomicBool,
}

/// What was measured.
pub struct Figures {
    /// From the first to the last.
    pub elapsed: Duration,
    /// Of the whole process.
    pub cpu: Duration,
    /// One for each message: until it was durable.
    pub micros: Vec<u32>,
    /// fsync, fdatasync.
    pub syncs: u64,
}

impl Way {
    /// All, the one that the others are compared with first.
    pub const ALL: [Self; 5] = [Self::Files, Self::FilesAndFolder, Self::Log, Self::Filled, Self::Spool];

    /// As the table says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "file + fsync + rename",
            Self::FilesAndFolder => "file + fsync + rename + fsync of folder",
            Self::Log => "one log, fdatasync per message",
            Self::Filled => "the same, zero-filled: the bare disk",
            Self::Spool => "spool",
        }
    }

    /// Measures it in an empty folder.
    pub fn run(self, dir: &Path, limits: &Limits<'_>, progress: &Progress) -> io::Result<Figures> {
        match self {
            Self::Files => files(dir, limits, progress, false),
            Self::FilesAndFolder => files(dir, limits, progress, true),
            Self::Log => log(dir, limits, progress, None),
            Self::Filled => log(dir, limits, progress, Some(FILLED_OCTETS)),
            Self::Spool => through_spool(dir, limits, progress),
        }
    }
}

/// Runs `work` again and again on so many threads; it is given the number of the message.
fn measure<W: FnMut(u64) -> io::Result<()>>(
    limits: &Limits<'_>,
    progress: &Progress,
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
        while started.elapsed() < limits.time && !limits.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            if number >= limits.messages_max {
                break;
            }
            work(number)?;
            micros.push(begun.elapsed().as_micros() as u32);
            progress.show(number);
        }
        Ok(micros)
    };
    let mut micros = Vec::new();
    thread::scope(|scope| -> io::Result<()> {
        let threads: Vec<_> = (0..limits.writers)
            .map(|_| thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, one))
            .collect::<io::Result<_>>()?;
        for thread in threads {
            micros.extend(thread.join().map_err(|_| io::Error::other("a writer panicked"))??);
        }
        Ok(())
    })?;
    if micros.is_empty() && !limits.stop.load(Ordering::Relaxed) {
        return Err(io::Error::other("not a single message within the time; make --seconds longer"));
    }
    Ok(Figures { elapsed: started.elapsed(), cpu: cpu() - cpu_before, micros, syncs: 0 })
}

fn files(dir: &Path, limits: &Limits<'_>, progress: &Progress, sync_folder: bool) -> io::Result<Figures> {
    let message = [ENVELOPE, PREPEND, &[b'b'; BODY_OCTETS]].concat();
    let figures = measure(limits, progress, || {
        let message = &message;
        move |number| {
            let tmp = dir.join(format!("{number}.tmp"));
            let mut file = File::create_new(&tmp)?;
            file.write_all(message)?;
            file.sync_all()?;
            std::fs::rename(&tmp, dir.join(format!("{number}.msg")))?;
            if sync_folder { File::open(dir)?.sync_all() } else { Ok(()) }
        }
    })?;
    let each = if sync_folder { 2 } else { 1 };
    Ok(Figures { syncs: figures.micros.len() as u64 * each, ..figures })
}

/// With `filled` octets written before, and written again and again.
fn log(dir: &Path, limits: &Limits<'_>, progress: &Progress, filled: Option<u64>) -> io::Result<Figures> {
    let message = [ENVELOPE, PREPEND, &[b'b'; BODY_OCTETS]].concat();
    let file = File::create_new(dir.join("log"))?;
    let zeros = vec![0; 1 << 20];
    for at in (0..filled.unwrap_or(0)).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    let octets = message.len() as u64;
    let places = filled.map_or(u64::MAX, |filled| filled / octets);
    let figures = measure(limits, progress, || {
        let (message, file) = (&message, &file);
        move |number| {
            file.write_all_at(message, number % places * octets)?;
            file.sync_data()
        }
    })?;
    Ok(Figures { syncs: figures.micros.len() as u64, ..figures })
}

/// A writer's thread, woken when there is room for more.
struct Wake(Thread);

impl Completions for Wake {
    fn done(&self, _: u64, _: Result<(), Trouble>) {}

    fn room(&self) {
        self.0.unpark();
    }
}

fn refused(trouble: Trouble) -> io::Error {
    match trouble {
        Trouble::NoSpace => io::ErrorKind::StorageFull.into(),
        Trouble::Temporary => io::Error::other("the spool refuses; the disk fails"),
    }
}

fn begin(port: &Port, number: u64, body: &[u8]) -> io::Result<Entry> {
    let mut entry = port.begin(id(number), None).map_err(refused)?;
    let mut taken = entry.append(body);
    while taken < body.len() {
        thread::park_timeout(Duration::from_millis(1));
        taken += entry.append(body.get(taken..).unwrap_or_default());
    }
    Ok(entry)
}

fn options() -> Options {
    // How much may be written is known here; the operator's floors are for mail.
    Options { floors: Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 }, ..Options::default() }
}

fn through_spool(dir: &Path, limits: &Limits<'_>, progress: &Progress) -> io::Result<Figures> {
    let syncs = Arc::new(AtomicU64::new(0));
    let disk = Counted { disk: RealDisk::open(dir)?, syncs: syncs.clone() };
    let writer = Writer::open(Arc::new(disk), options(), Hooks::default())?;
    let body = [b'b'; BODY_OCTETS];
    let figures = measure(limits, progress, || {
        let port = writer.port(Arc::new(Wake(thread::current())));
        move |number| {
            let entry = begin(&port, number, &body)?;
            port.commit_now(entry, ENVELOPE, PREPEND).map_err(refused)
        }
    })?;
    Ok(Figures { syncs: syncs.load(Ordering::Relaxed), ..figures })
}

/// How long it takes to find messages again after a crash.
pub fn recovery(dir: &Path, messages: u64, progress: &Progress) -> io::Result<Duration> {
    {
        let writer = Writer::open(Arc::new(RealDisk::open(dir)?), options(), Hooks::default())?;
        let port = writer.port(Arc::new(Wake(thread::current())));
        let body = [b'b'; BODY_OCTETS];
        for number in 0..messages {
            port.commit(begin(&port, number, &body)?, ENVELOPE, PREPEND, number);
            progress.show(number);
        }
    }
    let started = Instant::now();
    let mut follower = Follower::open(Arc::new(RealDisk::open(dir)?), Arc::new(|_: &Notice| {}))?;
    let (mut message, mut found) = (Message::default(), 0);
    while follower.next(&mut message) {
        found += 1;
    }
    let took = started.elapsed();
    if found == messages {
        Ok(took)
    } else {
        Err(io::Error::other(format!("{found} of {messages} messages were found again")))
    }
}

fn id(number: u64) -> QueueId {
    QueueId::new(1_700_000_000_000 + number, u128::from(number))
}

/// The real disk, and how often it was synced.
struct Counted {
    disk: RealDisk,
    syncs: Arc<AtomicU64>,
}

struct CountedFile {
    file: Box<dyn SpoolFile>,
    syncs: Arc<AtomicU64>,
}

impl Counted {
    fn counted(&self, file: io::Result<Box<dyn SpoolFile>>) -> io::Result<Box<dyn SpoolFile>> {
        Ok(Box::new(CountedFile { file: file?, syncs: self.syncs.clone() }))
    }
}

impl Disk for Counted {
    fn create(&self, path: &str) -> io::Result<Box<dyn SpoolFile>> {
        self.counted(self.disk.create(path))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn SpoolFile>> {
        self.counted(self.disk.open(path))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.disk.make_dir(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.disk.remove_dir(path)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.disk.sync_dir(path)
    }

    fn lock_dir(&self, path: &str) -> io::Result<Option<Guard>> {
        self.disk.lock_dir(path)
    }

    fn room(&self) -> io::Result<Room> {
        self.disk.room()
    }
}

impl SpoolFile for CountedFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, octets)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync()
    }

    fn octets(&self) -> io::Result<u64> {
        self.file.octets()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}
