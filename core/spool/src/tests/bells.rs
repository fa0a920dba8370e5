//! How often delivery is told: at most once every [`BELL_EVERY`], always with the newest, and never not at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::{append_all, body, commit, id, port, small_options};
use crate::bell::{BELL_EVERY, Bell};
use crate::sim::SimDisk;
use crate::{Doorbell, Hooks, Writer, WriterId};

fn at(durable: u64) -> Doorbell {
    Doorbell { writer: WriterId(1), segment: 1, durable }
}

#[test]
fn the_newest_is_told_when_its_time_has_come() {
    let start = Instant::now();
    let mut bell = Bell::default();
    assert_eq!((bell.due(), bell.take_if_due(start)), (None, None), "nothing is durable yet");
    bell.note(at(1));
    assert_eq!(bell.take_if_due(start), Some(at(1)), "the first one at once");
    assert_eq!(bell.due(), None, "nobody waits");
    let almost = start + BELL_EVERY - Duration::from_nanos(1);
    for durable in 2..5 {
        bell.note(at(durable));
        assert_eq!(bell.take_if_due(almost), None);
        assert_eq!(bell.due(), Some(start + BELL_EVERY));
    }
    assert_eq!(bell.take_if_due(start + BELL_EVERY), Some(at(4)), "one for three");
    assert_eq!(bell.take_if_due(start + 2 * BELL_EVERY), None, "once");
    // Nothing was told then: who has been quiet for long is told of at once.
    bell.note(at(5));
    assert_eq!(bell.take_if_due(start + 2 * BELL_EVERY), Some(at(5)));
    bell.note(at(6));
    assert_eq!(bell.take(start + 2 * BELL_EVERY), Some(at(6)), "whatever the time is");
    bell.note(at(7));
    assert_eq!(bell.due(), Some(start + 3 * BELL_EVERY), "that one counts, too");
}

/// A writer whose clock goes when it is told to, and its doorbells.
fn clocked() -> (Writer, Arc<Mutex<Instant>>, Receiver<Doorbell>) {
    let clock = Arc::new(Mutex::new(Instant::now()));
    let (heard, bells) = crossbeam_channel::unbounded();
    let hooks = Hooks { doorbell: Box::new(move |bell| heard.send(bell).unwrap()), ..Hooks::default() };
    let now = clock.clone();
    let disk = Arc::new(SimDisk::new());
    let writer = Writer::open_with(disk, small_options(), hooks, Box::new(move || *now.lock())).unwrap();
    (writer, clock, bells)
}

/// So long a bell that has to come may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The committer has looked at all that there is.
fn wait_until_asleep(writer: &Writer) {
    let late = Instant::now() + PATIENCE;
    while !writer.committer_sleeps() {
        assert!(Instant::now() < late, "the committer never sleeps");
        std::thread::yield_now();
    }
}

#[test]
fn a_busy_writer_does_not_ring_for_every_group() {
    let (writer, clock, bells) = clocked();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 0, 100).unwrap();
    assert_eq!(bells.recv_timeout(PATIENCE).unwrap(), writer.position().unwrap(), "the first one at once");
    // Whether it rings for a group is decided before the next one is begun.
    (1..20).for_each(|number| commit(&inbox, &port, number, 100).unwrap());
    *clock.lock() += BELL_EVERY - Duration::from_nanos(1);
    (20..30).for_each(|number| commit(&inbox, &port, number, 100).unwrap());
    wait_until_asleep(&writer);
    assert_eq!(bells.try_recv().ok(), None, "no time has passed");
    *clock.lock() += Duration::from_nanos(1);
    // Nothing is committed any more: the committer itself sees that it is time.
    assert_eq!(bells.recv_timeout(PATIENCE).unwrap(), writer.position().unwrap(), "one for all of them");
    drop((port, writer));
    assert_eq!(bells.try_recv().ok(), None, "all has been told");
}

#[test]
fn what_waits_to_be_told_is_told_at_the_end() {
    let (writer, _clock, bells) = clocked();
    let (inbox, port) = port(&writer);
    (0..5).for_each(|number| commit(&inbox, &port, number, 100).unwrap());
    // Who commits is told a moment before the position is.
    wait_until_asleep(&writer);
    let last = writer.position().unwrap();
    drop((port, writer));
    let bells: Vec<Doorbell> = bells.try_iter().collect();
    assert_eq!(bells.len(), 2);
    assert_eq!(bells[1], last);
}

/// Nobody else is awake to ring later.
#[test]
fn who_commits_on_its_own_thread_rings_at_once() {
    let (writer, _clock, bells) = clocked();
    let (inbox, port) = port(&writer);
    for number in 0..3 {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, &body(number, 100));
        // While it is still awake it may take the message itself.
        wait_until_asleep(&writer);
        port.commit_now(entry, b"envelope", b"p").unwrap();
        assert_eq!(bells.recv_timeout(PATIENCE).unwrap(), writer.position().unwrap());
    }
}
