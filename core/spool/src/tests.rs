//! What the spool promises, on a simulated disk and on a real one.

mod bells;
mod damage;
mod faults;
mod handed;
mod planted;
mod real;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use smtp::id::QueueId;

use self::damage::small_spool;
use crate::sim::{Act, Image, SimDisk};
use crate::{
    Completions, Disk, Doorbell, Durability, Entry, Floors, Follower, Handed, Hooks, Message, Notice, Options, Port,
    Trouble, Watch, Writer, WriterId,
};

#[derive(Default)]
struct Inbox {
    results: Mutex<HashMap<u64, Result<(), Trouble>>>,
    arrived: Condvar,
    rooms: AtomicUsize,
    handed: Mutex<HashMap<u64, Result<Handed, Trouble>>>,
}

impl Completions for Inbox {
    fn done(&self, ticket: u64, result: Result<(), Trouble>) {
        let before = self.results.lock().insert(ticket, result);
        assert!(before.is_none(), "ticket {ticket} was completed twice");
        self.arrived.notify_all();
    }

    fn handed(&self, ticket: u64, result: Result<Handed, Trouble>) {
        let _results = self.results.lock();
        assert!(self.handed.lock().insert(ticket, result).is_none());
        self.arrived.notify_all();
    }

    fn room(&self) {
        // Under the lock: who waits has looked before.
        let _results = self.results.lock();
        self.rooms.fetch_add(1, Ordering::SeqCst);
        self.arrived.notify_all();
    }
}

impl Inbox {
    fn wait(&self, ticket: u64) -> Result<(), Trouble> {
        let mut results = self.results.lock();
        loop {
            if let Some(&result) = results.get(&ticket) {
                return result;
            }
            let timeout = self.arrived.wait_for(&mut results, Duration::from_secs(30));
            assert!(!timeout.timed_out(), "ticket {ticket} is never completed");
        }
    }

    fn wait_handed(&self, ticket: u64) -> Result<Handed, Trouble> {
        let mut results = self.results.lock();
        loop {
            if let Some(result) = self.handed.lock().remove(&ticket) {
                return result;
            }
            let timeout = self.arrived.wait_for(&mut results, Duration::from_secs(30));
            assert!(!timeout.timed_out(), "ticket {ticket} is never handed over");
        }
    }

    fn wait_for_room(&self, seen: usize) {
        let mut results = self.results.lock();
        while self.rooms.load(Ordering::SeqCst) == seen {
            let timeout = self.arrived.wait_for(&mut results, Duration::from_secs(30));
            assert!(!timeout.timed_out(), "room is never announced");
        }
    }
}

/// As an event loop does it: offers the rest again when there is room.
fn append_all(inbox: &Inbox, entry: &mut Entry, mut octets: &[u8]) {
    while !octets.is_empty() {
        let seen = inbox.rooms.load(Ordering::SeqCst);
        let taken = entry.append(octets);
        octets = &octets[taken..];
        if !octets.is_empty() {
            inbox.wait_for_room(seen);
        }
    }
}

fn id(number: u64) -> QueueId {
    QueueId::new(1_700_000_000_000 + number, u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A body that says whose it is in every octet's place.
fn body(number: u64, octets: usize) -> Vec<u8> {
    (0..octets).map(|place| (number as usize * 31 + place * 7 + place / 256) as u8).collect()
}

const SMALL: u64 = 32 << 10;

fn small_options() -> Options {
    let floors = Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 };
    Options { segment_octets: SMALL, pool_octets: 1 << 20, floors, ..Options::default() }
}

/// Envelope, prepend, body.
type Whole = (Vec<u8>, Vec<u8>, Vec<u8>);

/// What was handed over, and what became of it.
#[derive(Default)]
struct Ledger {
    submitted: BTreeMap<QueueId, Whole>,
    acknowledged: BTreeSet<QueueId>,
    refused: BTreeMap<QueueId, Trouble>,
    stopped: bool,
}

/// Sizes at every kind of border: nothing, one octet, around a chunk, own file, more than a segment in all.
const SIZES: [usize; 16] = [0, 1, 4095, 4096, 4097, 7000, 20_000, 100, 8192, 9000, 3, 5000, 6000, 70_000, 50, 4096];

/// So many messages, some given up, some committed alone and some in a group.
fn run_workload(disk: &SimDisk, options: Options, messages: u64) -> Ledger {
    let mut ledger = Ledger::default();
    let Ok(writer) = Writer::open(Arc::new(disk.clone()), options, Hooks::default()) else { return ledger };
    let inbox = Arc::new(Inbox::default());
    let port = writer.port(inbox.clone());
    let mut tickets = Vec::new();
    for number in 0..messages {
        let octets = SIZES[number as usize % SIZES.len()];
        let Ok(mut entry) = port.begin(id(number), None) else { continue };
        let body = body(number, octets);
        // In parts, as they come off a socket.
        body.chunks(3000).for_each(|part| append_all(&inbox, &mut entry, part));
        if number % 5 == 3 {
            drop(entry);
            continue;
        }
        let envelope = format!("envelope {number}").into_bytes();
        let prepend = format!("Received: {number}\r\n").into_bytes();
        // Beside an event loop's messages, one of a caller that blocks.
        if number % 7 == 2 {
            match port.commit_now(entry, &envelope, &prepend) {
                Ok(()) => drop(ledger.acknowledged.insert(id(number))),
                Err(trouble) => drop(ledger.refused.insert(id(number), trouble)),
            }
            ledger.submitted.insert(id(number), (envelope, prepend, body));
            continue;
        }
        port.commit(entry, &envelope, &prepend, number);
        ledger.submitted.insert(id(number), (envelope, prepend, body));
        tickets.push(number);
        if !number.is_multiple_of(3) {
            tickets.drain(..).for_each(|ticket| note(&mut ledger, &inbox, ticket));
        }
    }
    tickets.drain(..).for_each(|ticket| note(&mut ledger, &inbox, ticket));
    ledger.stopped = writer.is_stopped();
    drop((port, writer));
    ledger
}

fn note(ledger: &mut Ledger, inbox: &Inbox, ticket: u64) {
    match inbox.wait(ticket) {
        Ok(()) => drop(ledger.acknowledged.insert(id(ticket))),
        Err(trouble) => drop(ledger.refused.insert(id(ticket), trouble)),
    }
}

fn quiet() -> Arc<dyn crate::Watch> {
    Arc::new(|_: &Notice| {})
}

fn whole(message: &Message) -> Whole {
    let mut body = Vec::new();
    let mut keep = |part: &[u8]| {
        body.extend_from_slice(part);
        Ok(())
    };
    message.body(&mut keep).unwrap();
    (message.envelope().to_vec(), message.prepend().to_vec(), body)
}

/// All messages of a spool whose writers are gone.
fn recover(disk: Arc<dyn Disk>) -> Result<BTreeMap<QueueId, Whole>, String> {
    recover_watched(disk, quiet())
}

fn recover_watched(disk: Arc<dyn Disk>, watch: Arc<dyn Watch>) -> Result<BTreeMap<QueueId, Whole>, String> {
    let mut follower = Follower::open(disk, watch).map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    let mut message = Message::default();
    while follower.next(&mut message) {
        if message.verify().is_err() {
            follower.set_aside(message.key());
        } else if found.insert(message.id(), whole(&message)).is_some() {
            return Err(format!("{} was found twice", message.id()));
        }
    }
    Ok(found)
}

/// What came over a disk before it is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Nothing worked any more at some moment.
    Crash,
    /// Something failed, then things worked again.
    Faults,
}

/// C1, C2: what was acknowledged is there, whole; nothing else but what was submitted, whole. C3: again the same.
/// C6: what was refused stays away, when the disk went on working after the refusal.
fn check(disk: &SimDisk, ledger: &Ledger, after: After) -> Result<(), String> {
    let found = recover(Arc::new(disk.clone()))?;
    for id in &ledger.acknowledged {
        if !found.contains_key(id) {
            return Err(format!("{id} was acknowledged and is lost"));
        }
    }
    // Refused is refused, unless not even that could be written down: then the writer has stopped.
    if let Some(id) = ledger.refused.keys().find(|id| found.contains_key(id))
        && after == After::Faults
        && !ledger.stopped
    {
        return Err(format!("{id} was refused and turned up"));
    }
    for (id, whole) in &found {
        if ledger.submitted.get(id) != Some(whole) {
            return Err(format!("{id} is not what was submitted"));
        }
    }
    if recover(Arc::new(disk.clone()))? != found {
        return Err("a second recovery finds something else".to_owned());
    }
    Ok(())
}

fn port(writer: &Writer) -> (Arc<Inbox>, Port) {
    let inbox = Arc::new(Inbox::default());
    let port = writer.port(inbox.clone());
    (inbox, port)
}

fn commit(inbox: &Inbox, port: &Port, number: u64, octets: usize) -> Result<(), Trouble> {
    let mut entry = port.begin(id(number), None)?;
    append_all(inbox, &mut entry, &body(number, octets));
    port.commit(entry, b"envelope", b"prepend", number);
    inbox.wait(number)
}

/// The long form of a test is wanted.
fn long() -> bool {
    std::env::var_os("PORTREEVE_LONG").is_some_and(|value| !value.is_empty())
}

#[test]
fn an_envelope_that_fits_nowhere_is_refused_alone() {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    for (number, envelope_octets, octets, expect) in [
        (1, SMALL as usize, 10, false),
        (2, SMALL as usize, 20_000, false),
        (3, 20_000, 20_000, true),
        (4, 10, 10, true),
    ] {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, &body(number, octets));
        port.commit(entry, &vec![b'e'; envelope_octets], b"", number);
        assert_eq!(inbox.wait(number).is_ok(), expect, "message {number}");
    }
    drop((port, writer));
    assert_eq!(recover(Arc::new(disk)).unwrap().into_keys().collect::<Vec<_>>(), [id(3), id(4)]);
}

#[test]
fn aborts_leave_nothing() {
    abort_many().unwrap();
}

fn abort_many() -> Result<(), String> {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    for number in 0..1000 {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, &body(number, (number as usize * 7919) % 40_000));
        if number % 7 == 0 {
            entry.spill();
        }
    }
    commit(&inbox, &port, 2000, 10).unwrap();
    let shared = writer.pool_used();
    drop((port, writer));
    // Body threads have ended with the writer, so what they had to remove is gone.
    if let Some((name, _)) = disk.files().iter().find(|(name, _)| name.ends_with(".body")) {
        return Err(format!("{name} stayed"));
    }
    assert!(shared <= 1 << 20);
    assert_eq!(recover(Arc::new(disk))?.len(), 1);
    Ok(())
}

#[test]
fn messages_that_fill_the_memory_make_room_by_going_to_files() {
    let disk = SimDisk::new();
    let options = Options { segment_octets: 1 << 20, pool_octets: 256 << 10, ..small_options() };
    let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let mut entries: Vec<Entry> = (0..64).map(|number| port.begin(id(number), None).unwrap()).collect();
    // All grow together, and none is committed before all are whole: 2 MiB through 256 KiB of memory.
    for step in 0..8 {
        for (number, entry) in entries.iter_mut().enumerate() {
            append_all(&inbox, entry, &body(number as u64, 32 << 10)[step * 4096..(step + 1) * 4096]);
            assert!(writer.pool_used() <= 256 << 10);
            // What the loop's timer does for those who do not fill what they hold.
            if step > 0 {
                entry.spill();
            }
        }
    }
    for (number, entry) in entries.into_iter().enumerate() {
        port.commit(entry, b"e", b"p", number as u64);
    }
    (0..64).for_each(|ticket| inbox.wait(ticket).unwrap());
    assert_eq!(writer.pool_used(), 0);
    drop((port, writer));
    let found = recover(Arc::new(disk)).unwrap();
    assert_eq!(found.len(), 64);
    for number in 0..64 {
        assert!(found[&id(number)].2 == body(number, 32 << 10), "message {number}");
    }
}

#[test]
fn delivery_reads_a_living_writer_only_below_its_doorbell() {
    follow_a_living_writer().unwrap();
}

fn follow_a_living_writer() -> Result<(), String> {
    let disk = SimDisk::new();
    let bells = Arc::new(Mutex::new(Vec::new()));
    let heard = bells.clone();
    let hooks = Hooks { doorbell: Box::new(move |bell| heard.lock().push(bell)), ..Hooks::default() };
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), hooks).unwrap();
    let (inbox, port) = port(&writer);
    let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
    let mut message = Message::default();
    let mut found = BTreeSet::new();
    for number in 0..60 {
        commit(&inbox, &port, number, 3000).unwrap();
        follower.scan();
        if follower.next(&mut message) {
            return Err(format!("message {number} was read before the bell"));
        }
        // The committer rings after it has told the event loop.
        let bell = loop {
            if let Some(bell) = bells.lock().pop() {
                break bell;
            }
            std::thread::yield_now();
        };
        follower.ring(Doorbell::decode(&bell.encode()).unwrap());
        while follower.next(&mut message) {
            assert!(found.insert(message.id()));
            let mut again = Message::default();
            follower.read(message.key(), &mut again).unwrap();
            assert!(whole(&again) == whole(&message) && again.id() == message.id());
            follower.acknowledge(message.key(), 1, std::iter::once(0));
        }
        assert!(found.contains(&id(number)), "message {number}");
        follower.sync();
    }
    assert_eq!(found.len(), 60);
    assert!(writer.position().is_some());
    // Full segments have gone while the writer lives; the rest goes when it does not.
    let segments = |disk: &SimDisk| disk.files().iter().filter(|(name, _)| name.ends_with(".seg")).count();
    assert!(segments(&disk) <= 3, "{} segments", segments(&disk));
    drop((port, writer));
    follower.scan();
    assert!(!follower.next(&mut message));
    assert_eq!(disk.files(), []);
    assert_eq!(disk.list("").unwrap(), Vec::<String>::new());
    Ok(())
}

/// One alone, whose own thread writes, and eight beside each other and beside an event loop.
#[test]
fn who_waits_hears_when_it_is_durable() {
    let disk = SimDisk::new();
    let bells = Arc::new(Mutex::new(Vec::new()));
    let heard = bells.clone();
    let hooks = Hooks { doorbell: Box::new(move |bell| heard.lock().push(bell)), ..Hooks::default() };
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), hooks).unwrap();
    let (inbox, port) = port(&writer);
    let post = |number: u64| {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, &body(number, 3000));
        port.commit_now(entry, b"envelope", b"p").unwrap();
        let found = recover(Arc::new(disk.image(Image::Lost, 0))).unwrap();
        assert!(
            found[&id(number)].2 == body(number, 3000),
            "message {number} was lost after it was said to be durable"
        );
    };
    (0..10).for_each(post);
    // Nobody else would ring later.
    assert_eq!(bells.lock().last().copied(), writer.position());
    std::thread::scope(|scope| {
        for thread in 1..9 {
            scope.spawn(move || (thread * 100..thread * 100 + 20).for_each(post));
        }
        for number in 0..40 {
            commit(&inbox, &port, 2000 + number, 100).unwrap();
        }
    });
    drop(port);
    drop(writer);
    assert_eq!(recover(Arc::new(disk)).unwrap().len(), 10 + 8 * 20 + 40);
}

/// An event loop's messages wait for its word, or for so many others that a sync is worth it.
#[test]
fn messages_that_queue_go_together() {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let queue = |number: u64| {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, b"x");
        port.queue(entry, b"envelope", b"p", number);
    };
    // The first one makes the segment.
    queue(0);
    port.go();
    inbox.wait(0).unwrap();
    (1..20).for_each(queue);
    assert_eq!(inbox.results.lock().len(), 1);
    port.go();
    (1..20).for_each(|number| inbox.wait(number).unwrap());
    (20..52).for_each(queue);
    (20..52).for_each(|number| inbox.wait(number).unwrap());
    // Nobody gives the word for this one; the writer's end does.
    queue(52);
    drop((port, writer));
    inbox.wait(52).unwrap();
    assert_eq!(recover(Arc::new(disk)).unwrap().len(), 53);
}

/// Filling ahead is for syncs to come; where none comes it would itself be one.
#[test]
fn without_durability_only_a_new_segment_is_synced() {
    let disk = SimDisk::new();
    let options = Options { durability: Durability::None, ..small_options() };
    let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    (0..60).for_each(|number| commit(&inbox, &port, number, 2000).unwrap());
    drop((port, writer));
    assert_eq!(disk.count(Act::Sync), disk.count(Act::Rename), "a segment gets its name once");
    assert_eq!(recover(Arc::new(disk)).unwrap().len(), 60);
}

#[test]
fn a_doorbell_from_nowhere_does_nothing() {
    let (disk, ..) = small_spool();
    let mut follower = Follower::open(Arc::new(disk), quiet()).unwrap();
    let mut message = Message::default();
    for bell in [
        Doorbell { writer: WriterId(7), segment: 1, durable: u64::MAX },
        Doorbell { writer: WriterId(u128::MAX), segment: u64::MAX, durable: 1 },
    ] {
        follower.ring(bell);
    }
    assert_eq!(std::iter::from_fn(|| follower.next(&mut message).then_some(())).count(), 64);
    assert_eq!(Doorbell::decode(&[0; 31]), None);
}

#[test]
fn who_was_told_is_known_after_a_restart_and_still_waits() {
    let (disk, ..) = small_spool();
    let first = |follower: &mut Follower| {
        let mut message = Message::default();
        assert!(follower.next(&mut message));
        message
    };
    let key = {
        let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
        let message = first(&mut follower);
        assert!(!message.is_told(0));
        follower.note_told(message.key(), 2, [1, 7].into_iter());
        follower.sync();
        let mut again = Message::default();
        follower.read(message.key(), &mut again).unwrap();
        assert!(again.is_told(1) && !again.is_told(0) && !again.is_told(7) && !again.is_settled(1));
        message.key()
    };
    for image in [Image::Lost, Image::Kept] {
        let disk = disk.image(image, 0);
        let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
        let message = first(&mut follower);
        assert_eq!(message.key(), key);
        assert!(message.is_told(1) && !message.is_told(0) && !message.is_settled(1), "{image:?}");
        follower.acknowledge(key, 2, 0..2);
        follower.sync();
        drop(follower);
        let mut follower = Follower::open(Arc::new(disk), quiet()).unwrap();
        assert_ne!(first(&mut follower).key(), key);
    }
}

#[test]
fn recipients_are_settled_one_by_one_and_remembered() {
    let (disk, ..) = small_spool();
    let mut message = Message::default();
    {
        let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
        while follower.next(&mut message) {
            if message.id() == id(5) {
                follower.acknowledge(message.key(), 3, [0, 2].into_iter());
            } else if message.id() != id(6) {
                follower.acknowledge(message.key(), 1, std::iter::once(0));
            }
        }
        follower.sync();
        assert_eq!(follower.open_messages(), 2);
    }
    let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
    let mut found = BTreeMap::new();
    while follower.next(&mut message) {
        found.insert(message.id(), [0, 1, 2].map(|recipient| message.is_settled(recipient)));
        follower.acknowledge(message.key(), 3, 0..3);
    }
    assert_eq!(found, BTreeMap::from([(id(5), [true, false, true]), (id(6), [false; 3])]));
    follower.sync();
    assert_eq!(disk.files(), []);
}
