//! M6: exchanges in turn on one thread, then at once on eight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use super::{Judged, Trial, event_name};
use crate::event::{Answer, Moment};
use crate::explore::Known;
use crate::sandbox::{Bound, Edge, Fault, Room};
use crate::world::{Local, Stepper as _};

impl Trial<'_> {
    pub(super) fn threads<'t>(
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
}

/// Exchanges on eight threads.
const AT_ONCE: usize = 10_000;
/// Beyond the given time.
const LATE_MAX: Duration = Duration::from_secs(1);

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
    let text = format!("step {step} ({event}) answers {} alone, and {} {when}", expected.in_full(), found.in_full());
    Fault::new("M6", text)
}

struct Work {
    bound: &'static Bound,
    room: Room,
    known: Arc<Vec<Known>>,
    first: usize,
    until: Instant,
    begin: Arc<Barrier>,
    over: Arc<AtomicBool>,
}

/// Threads that exist before the filter, which lets none begin.
pub(crate) struct Threads {
    work: Vec<mpsc::Sender<Work>>,
    results: mpsc::Receiver<Result<usize, Fault>>,
}

const THREADS: usize = 8;

impl Threads {
    pub fn start() -> Self {
        let (result, results) = mpsc::channel();
        let (ready, all_ready) = mpsc::channel();
        let work: Vec<_> = (0..THREADS)
            .map(|_| {
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
            })
            .collect();
        // A thread that is still beginning makes calls that the filter would not let through.
        for _ in 0..THREADS {
            let _ = all_ready.recv();
        }
        Self { work, results }
    }

    pub fn rooms(&self, bound: &Bound) -> std::io::Result<Vec<Room>> {
        (0..THREADS).map(|_| Room::new(bound)).collect()
    }

    fn run(self, bound: &'static Bound, rooms: Vec<Room>, known: &Arc<Vec<Known>>, until: Instant) -> Judged {
        let (begin, over) = (Arc::new(Barrier::new(THREADS)), Arc::new(AtomicBool::new(false)));
        for (at, (to, room)) in self.work.iter().zip(rooms).enumerate() {
            let first = at * known.len() / THREADS;
            let _ = to.send(Work {
                bound,
                room,
                known: known.clone(),
                first,
                until,
                begin: begin.clone(),
                over: over.clone(),
            });
        }
        let mut exchanges = 0;
        for _ in 0..THREADS {
            exchanges +=
                self.results.recv().unwrap_or_else(|_| Err(Fault::new("M6", "a thread of the check ended")))?;
        }
        assert!(exchanges > 0, "nothing was run");
        Ok(None)
    }
}

impl Work {
    fn run(self) -> Result<usize, Fault> {
        let mut local = Local { bound: self.bound, room: self.room, edge: Edge::End, fill: 0 };
        let mut count = 0;
        self.begin.wait();
        for known in self.known.iter().cycle().skip(self.first) {
            // As many as were promised, and as long as was given; but not for ever where steps are slow.
            if count % 16 == 0 && count > 0 {
                let late = Instant::now().checked_duration_since(self.until);
                let enough = count >= AT_ONCE / THREADS || late.is_some_and(|late| late > LATE_MAX);
                if (late.is_some() && enough) || self.over.load(Ordering::Relaxed) {
                    break;
                }
            }
            local.begin()?;
            for (at, (moment, expected)) in known.story.steps.iter().enumerate() {
                let answer = local.step(&known.plan.facts, moment)?;
                if answer != *expected {
                    self.over.store(true, Ordering::Relaxed);
                    return Err(differs("beside other threads", at, moment, expected, &answer));
                }
            }
            local.finish()?;
            count += 1;
        }
        Ok(count)
    }
}
