//! Large bodies: each in a file of its own, written by threads, so that neither an event loop nor the log
//! waits for a long upload.
//!
//! On commit the file and its folder are synced first; then a small record goes through the log like any
//! message. A body file without a record is of no message: removed at once when the writer lives, by
//! delivery when it died.
//!
//! A message that is handed over instead of kept takes the same way in: its file loses its name, and the
//! descriptor goes to whoever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use smtp::id::QueueId;

use crate::bug::{Bug, planted};
use crate::pool::{CHUNK_OCTETS_MIN, CLASS_MAX, Chunk};
use crate::storage::File;
use crate::writer::{Durability, Pending, PendingBody, Shared};
use crate::{Handed, Trouble, names};

/// Threads that write bodies; one body stays with one thread.
const LANES: usize = 2;
/// Octets of one body on their way to the disk, beyond which its sender waits.
const IN_FLIGHT_OCTETS_MAX: usize = 4 * (CHUNK_OCTETS_MIN << CLASS_MAX);

/// Ways to the threads.
pub(crate) struct Bodies {
    lanes: Vec<Sender<Job>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) enum Job {
    Begin(Arc<Filing>),
    Write(Arc<Filing>, Chunk),
    Commit(Arc<Filing>, Box<Pending>),
    HandOver(Arc<Filing>, Box<Pending>),
    Abort(Arc<Filing>),
    /// The commit failed after the body was durable.
    Discard(QueueId),
    Stop,
}

/// A body that goes to a file.
pub(crate) struct Filing {
    id: QueueId,
    way: Sender<Job>,
    in_flight: AtomicUsize,
    trouble: AtomicU8,
    /// Only the lane's thread looks inside.
    body: Mutex<OpenBody>,
}

#[derive(Default)]
struct OpenBody {
    file: Option<Box<dyn File>>,
    octets: u64,
    sum: u32,
}

impl Bodies {
    pub(crate) fn new() -> (Self, Vec<Receiver<Job>>) {
        let (lanes, jobs) = (0..LANES).map(|_| unbounded()).unzip();
        (Self { lanes, threads: Mutex::default() }, jobs)
    }

    pub(crate) fn keep(&self, thread: JoinHandle<()>) {
        self.threads.lock().push(thread);
    }

    /// Ends the threads after what they were given.
    pub(crate) fn stop(&self) {
        self.lanes.iter().for_each(|lane| drop(lane.send(Job::Stop)));
        let threads = std::mem::take(&mut *self.threads.lock());
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }

    fn lane(&self, id: QueueId) -> &Sender<Job> {
        &self.lanes[id.0 as usize % LANES]
    }

    pub(crate) fn begin(&self, id: QueueId) -> Arc<Filing> {
        let way = self.lane(id).clone();
        let filing = Arc::new(Filing {
            id,
            way,
            in_flight: AtomicUsize::new(0),
            trouble: AtomicU8::new(0),
            body: Mutex::default(),
        });
        let _ = filing.way.send(Job::Begin(filing.clone()));
        filing
    }

    pub(crate) fn commit(&self, filing: Arc<Filing>, pending: Pending) {
        let way = filing.way.clone();
        if let Err(unsent) = way.send(Job::Commit(filing, Box::new(pending)))
            && let Job::Commit(_, pending) = unsent.into_inner()
        {
            pending.listener.completions.done(pending.ticket, Err(Trouble::Temporary));
        }
    }

    pub(crate) fn hand_over(&self, filing: Arc<Filing>, pending: Pending) {
        let way = filing.way.clone();
        if let Err(unsent) = way.send(Job::HandOver(filing, Box::new(pending)))
            && let Job::HandOver(_, pending) = unsent.into_inner()
        {
            pending.listener.completions.handed(pending.ticket, Err(Trouble::Temporary));
        }
    }

    pub(crate) fn abort(&self, filing: Arc<Filing>) {
        let way = filing.way.clone();
        let _ = way.send(Job::Abort(filing));
    }

    pub(crate) fn discard(&self, id: QueueId) {
        let _ = self.lane(id).send(Job::Discard(id));
    }
}

impl Filing {
    /// Hands a chunk to the thread.
    pub(crate) fn write(self: &Arc<Self>, shared: &Shared, chunk: Chunk) {
        let octets = chunk.capacity();
        self.in_flight.fetch_add(octets, Ordering::SeqCst);
        shared.pool.leave(octets);
        if let Err(unsent) = self.way.send(Job::Write(self.clone(), chunk))
            && let Job::Write(_, chunk) = unsent.into_inner()
        {
            self.written(shared, chunk);
        }
    }

    /// Whether the thread keeps up.
    pub(crate) fn may_write(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) < IN_FLIGHT_OCTETS_MAX
    }

    /// Why the commit will fail.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        match self.trouble.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Trouble::NoSpace),
            _ => Some(Trouble::Temporary),
        }
    }

    fn written(&self, shared: &Shared, chunk: Chunk) {
        let octets = chunk.capacity();
        shared.pool.give(chunk);
        shared.pool.left(octets);
        self.in_flight.fetch_sub(octets, Ordering::SeqCst);
    }

    /// The file is of no use any more.
    fn fail(&self, shared: &Shared, error: &std::io::Error) {
        let trouble = Trouble::of(error);
        (shared.hooks.trouble)(&format!("spool: body of {}: {error}", self.id));
        self.trouble.store(if trouble == Trouble::NoSpace { 1 } else { 2 }, Ordering::SeqCst);
        self.remove(shared);
    }

    fn remove(&self, shared: &Shared) {
        if self.body.lock().file.take().is_some() {
            remove(shared, self.id);
        }
    }
}

fn remove(shared: &Shared, id: QueueId) {
    let removed = shared.home().and_then(|home| shared.disk.remove(&names::body(home.id, id)));
    if let Err(error) = removed {
        (shared.hooks.trouble)(&format!("spool: body of {id} cannot be removed: {error}"));
    }
}

/// One lane's thread.
pub(crate) fn run(shared: &Shared, jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Begin(filing) => {
                let made = shared.home().and_then(|home| shared.disk.create(&names::body(home.id, filing.id)));
                match made {
                    Ok(file) => filing.body.lock().file = Some(file),
                    Err(error) => filing.fail(shared, &error),
                }
            }
            Job::Write(filing, chunk) => {
                let mut result = Ok(());
                if filing.trouble().is_none() {
                    let body = &mut *filing.body.lock();
                    if let Some(file) = &body.file {
                        result = file.write_at(body.octets, &chunk);
                        body.octets += chunk.len() as u64;
                        body.sum = crc32c::crc32c_append(body.sum, &chunk);
                    }
                }
                if let Err(error) = result {
                    filing.fail(shared, &error);
                }
                filing.written(shared, chunk);
                shared.pool.wake();
            }
            Job::Commit(filing, mut pending) => match make_durable(shared, &filing) {
                Ok((octets, sum)) => {
                    pending.body = PendingBody::Filed { octets, sum };
                    shared.enqueue(*pending, 1);
                }
                Err(trouble) => pending.listener.completions.done(pending.ticket, Err(trouble)),
            },
            Job::HandOver(filing, mut pending) => {
                let handed = take_out(shared, &filing, &pending);
                pending.listener.completions.handed(pending.ticket, handed);
                shared.keep_meta(std::mem::take(&mut pending.meta));
            }
            Job::Abort(filing) => filing.remove(shared),
            Job::Discard(id) => remove(shared, id),
            Job::Stop => return,
        }
    }
}

/// Writes envelope and prepend behind the body and takes the file's name away.
fn take_out(shared: &Shared, filing: &Filing, pending: &Pending) -> Result<Handed, Trouble> {
    if let Some(trouble) = filing.trouble() {
        return Err(trouble);
    }
    let mut body = filing.body.lock();
    let (octets, file) = (body.octets, body.file.take().ok_or(Trouble::Temporary)?);
    drop(body);
    remove(shared, filing.id);
    if let Err(error) = file.write_at(octets, &pending.meta) {
        (shared.hooks.trouble)(&format!("spool: body of {}: {error}", filing.id));
        return Err(Trouble::of(&error));
    }
    Ok(Handed {
        file: file.into_fd().ok_or(Trouble::Temporary)?,
        id: filing.id,
        body_octets: octets,
        envelope_octets: pending.envelope_octets,
        prepend_octets: (pending.meta.len() as u32).saturating_sub(pending.envelope_octets),
    })
}

/// Syncs a whole body and its name. On failure nothing remains of it.
fn make_durable(shared: &Shared, filing: &Filing) -> Result<(u64, u32), Trouble> {
    if let Some(trouble) = filing.trouble() {
        return Err(trouble);
    }
    let synced = {
        let body = filing.body.lock();
        match (&body.file, shared.options.durability) {
            (Some(file), Durability::GroupFsync) => {
                let synced = if planted(Bug::NoBodySync) { Ok(()) } else { file.sync() };
                synced.and_then(|()| {
                    if !planted(Bug::NoBodyName) {
                        shared.disk.sync_dir(&shared.home()?.id.to_string())?;
                    }
                    Ok((body.octets, body.sum))
                })
            }
            _ => Ok((body.octets, body.sum)),
        }
    };
    synced.map_err(|error| {
        filing.fail(shared, &error);
        Trouble::of(&error)
    })
}
