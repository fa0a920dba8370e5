//! What the spool promises, on a simulated disk and on a real one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smtp::id::QueueId;

use crate::sim::{Image, Lie, SimDisk};
use crate::{
    Completions, Disk, Doorbell, Durability, Entry, Floors, Follower, Hooks, Message, Notice, Options, Port, RealDisk,
    Trouble, Writer, WriterId,
};

#[derive(Default)]
struct Inbox {
    results: Mutex<HashMap<u64, Result<(), Trouble>>>,
    arrived: Condvar,
    rooms: AtomicUsize,
}

impl Completions for Inbox {
    fn done(&self, ticket: u64, result: Result<(), Trouble>) {
        let before = self.results.lock().insert(ticket, result);
        assert!(before.is_none(), "ticket {ticket} was completed twice");
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

/// Makes the n-th operation of a kind fail.
type Fault = fn(&SimDisk, u64);

/// Envelope, prepend, body.
type Whole = (Vec<u8>, Vec<u8>, Vec<u8>);

/// What was handed over, and what became of it.
#[derive(Default)]
struct Ledger {
    submitted: BTreeMap<QueueId, Whole>,
    acknowledged: BTreeSet<QueueId>,
    refused: BTreeSet<QueueId>,
    stopped: bool,
}

/// Sizes at every kind of border: nothing, one octet, around a chunk, own file, more than a segment in all.
const SIZES: [usize; 16] = [0, 1, 4095, 4096, 4097, 7000, 20_000, 100, 8192, 9000, 3, 5000, 6000, 70_000, 50, 4096];

fn run_workload(disk: &SimDisk, options: Options) -> Ledger {
    let mut ledger = Ledger::default();
    let Ok(writer) = Writer::open(Arc::new(disk.clone()), options, Hooks::default()) else { return ledger };
    let inbox = Arc::new(Inbox::default());
    let port = writer.port(inbox.clone());
    let mut tickets = Vec::new();
    for (number, &octets) in SIZES.iter().enumerate() {
        let number = number as u64;
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
        port.commit(entry, &envelope, &prepend, number);
        ledger.submitted.insert(id(number), (envelope, prepend, body));
        tickets.push(number);
        // Some alone, some in a group.
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
        Ok(()) => ledger.acknowledged.insert(id(ticket)),
        Err(_) => ledger.refused.insert(id(ticket)),
    };
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
    let mut follower = Follower::open(disk, quiet()).map_err(|error| error.to_string())?;
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

/// C1, C2: what was acknowledged is there, whole; nothing else but what was submitted, whole. C3: again the same.
fn check(disk: &SimDisk, ledger: &Ledger) -> Result<(), String> {
    let found = recover(Arc::new(disk.clone()))?;
    for id in &ledger.acknowledged {
        if !found.contains_key(id) {
            return Err(format!("{id} was acknowledged and is lost"));
        }
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

/// Seeds per kind of image in the sweep; more of them in a long run.
fn sweep_seeds() -> u64 {
    std::env::var("PORTREEVE_SWEEP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(200)
}

/// Seeds where other faults multiply them.
const FEW_SEEDS: u64 = 10;

/// Images of a crash now; those by chance with several seeds.
fn images(disk: &SimDisk, salt: u64, seeds: u64) -> impl Iterator<Item = (Image, u64, SimDisk)> + '_ {
    Image::ALL.into_iter().flat_map(move |image| {
        let fixed = matches!(image, Image::Lost | Image::Kept | Image::NamesOnly);
        let seeds = if fixed { 1 } else { seeds };
        (0..seeds).map(move |seed| (image, seed, disk.image(image, salt * 10_000 + seed)))
    })
}

/// Crashes before every n-th operation; gives the number of images and the first violation.
fn sweep(options: &Options, lie: Option<Lie>) -> (usize, Option<String>) {
    let disk = SimDisk::new();
    run_workload(&disk, options.clone());
    // Threads take turns differently each time; a few more than this run had.
    let operations = disk.operations() + 8;
    let mut checked = 0;
    for operation in 0..operations {
        let disk = SimDisk::new();
        disk.crash_at(operation);
        lie.into_iter().for_each(|lie| disk.lie(lie));
        let ledger = run_workload(&disk, options.clone());
        for (image, seed, after) in images(&disk, operation, sweep_seeds()) {
            checked += 1;
            if let Err(violation) = check(&after, &ledger) {
                let found = format!("crash before operation {operation}, image {image:?}, seed {seed}: {violation}");
                return (checked, Some(found));
            }
        }
    }
    (checked, None)
}

#[test]
fn a_crash_before_any_operation_loses_nothing_and_invents_nothing() {
    let started = Instant::now();
    let (images, violation) = sweep(&small_options(), None);
    println!("{images} crash images in {:?}", started.elapsed());
    assert_eq!(violation, None);
    assert!(images > 1000, "only {images} images");
}

#[test]
fn the_sweep_notices_planted_bugs() {
    let early = Options { durability: Durability::None, ..small_options() };
    for (what, options, lie) in [
        ("acknowledged before the sync", early, None),
        ("syncs of files skipped", small_options(), Some(Lie::Files)),
        ("syncs of folders skipped", small_options(), Some(Lie::Folders)),
    ] {
        let (_, violation) = sweep(&options, lie);
        assert!(violation.is_some(), "not noticed: {what}");
    }
}

#[test]
fn a_crash_inside_recovery_loses_nothing_and_repeats_nothing_acknowledged() {
    let disk = SimDisk::new();
    let ledger = run_workload(&disk, small_options());
    assert_eq!(ledger.acknowledged.len(), ledger.submitted.len());
    // Hands all on, one sync for every two messages; gives what was handed on, and of that what was durably
    // acknowledged before the crash.
    let deliver = |disk: &SimDisk| {
        let (mut handed_on, mut durable, mut noted) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut message = Message::default();
        let Ok(mut follower) = Follower::open(Arc::new(disk.clone()), quiet()) else { return (handed_on, durable) };
        while follower.next(&mut message) {
            handed_on.insert(message.id());
            follower.acknowledge(message.key(), 1, std::iter::once(0));
            noted.push(message.id());
            if noted.len() == 2 {
                follower.sync();
                if !follower.has_unlogged() {
                    durable.extend(noted.drain(..));
                }
            }
        }
        follower.sync();
        if !follower.has_unlogged() {
            durable.extend(noted);
        }
        (handed_on, durable)
    };
    let rehearsal = disk.image(Image::Kept, 0);
    assert_eq!(deliver(&rehearsal).1, ledger.acknowledged);
    assert_eq!(rehearsal.files(), [], "everything is freed");
    for operation in 0..rehearsal.operations() {
        let second = disk.image(Image::Kept, 0);
        second.crash_at(operation);
        let (handed_on, durable) = deliver(&second);
        for (image, seed, third) in images(&second, operation, FEW_SEEDS) {
            let found = recover(Arc::new(third)).unwrap();
            for id in &ledger.acknowledged {
                let there = found.get(id);
                let context = format!("crash before {operation}, {image:?}, seed {seed}, message {id}");
                assert!(handed_on.contains(id) || there.is_some(), "lost: {context}");
                assert!(!(durable.contains(id) && there.is_some()), "repeated: {context}");
                assert!(there.is_none_or(|there| ledger.submitted.get(id) == Some(there)), "changed: {context}");
            }
        }
    }
}

#[test]
fn a_failed_sync_or_write_is_final_for_its_segment() {
    let disk = SimDisk::new();
    run_workload(&disk, small_options());
    let (mut refusals, mut stops) = (0, 0);
    let ways: [(u64, Fault); 2] = [(disk.syncs(), SimDisk::fail_sync), (disk.writes(), SimDisk::fail_write)];
    for (count, fail) in ways {
        for number in 0..count {
            let disk = SimDisk::new();
            fail(&disk, number);
            let ledger = run_workload(&disk, small_options());
            refusals += ledger.refused.len();
            stops += usize::from(ledger.stopped);
            for (image, seed, after) in images(&disk, number, FEW_SEEDS) {
                let context = format!("failure {number}, image {image:?}, seed {seed}");
                check(&after, &ledger).unwrap_or_else(|violation| panic!("{context}: {violation}"));
                let found = recover(Arc::new(after)).unwrap();
                let back = ledger.refused.iter().find(|id| found.contains_key(id));
                assert!(ledger.stopped || back.is_none(), "{context}: {back:?} was refused and turned up");
            }
        }
    }
    assert!(refusals > 0 && stops == 0, "{refusals} refusals, {stops} stops");
}

#[test]
fn two_failed_syncs_may_stop_the_writer_and_still_lose_nothing() {
    let disk = SimDisk::new();
    run_workload(&disk, small_options());
    let (mut stops, mut after) = (0, 0);
    for first in 0..disk.syncs() {
        for second in first + 1..first + 4 {
            let disk = SimDisk::new();
            disk.fail_sync(first);
            disk.fail_sync(second);
            let ledger = run_workload(&disk, small_options());
            // Without a durable seal nothing more is accepted.
            stops += usize::from(ledger.stopped);
            after += usize::from(!ledger.stopped);
            for (image, seed, after) in images(&disk, first, 2) {
                let context = format!("failures {first} and {second}, image {image:?}, seed {seed}");
                check(&after, &ledger).unwrap_or_else(|violation| panic!("{context}: {violation}"));
                let found = recover(Arc::new(after)).unwrap();
                let back = ledger.refused.iter().find(|id| found.contains_key(id));
                assert!(ledger.stopped || back.is_none(), "{context}: {back:?} was refused and turned up");
            }
        }
    }
    assert!(stops > 0 && after > 0, "{stops} stopped, {after} went on");
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

#[test]
fn a_full_disk_is_said_and_forgotten_when_there_is_room_again() {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 0, 100).unwrap();
    disk.limit(Some(SMALL * 2));
    let mut good = BTreeSet::from([id(0)]);
    let mut refused = 0;
    for number in 1..40 {
        match commit(&inbox, &port, number, if number % 4 == 0 { 20_000 } else { 5000 }) {
            Ok(()) => drop(good.insert(id(number))),
            Err(trouble) => {
                assert_eq!(trouble, Trouble::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "only {refused} refused");
    disk.limit(None);
    for number in 40..50 {
        commit(&inbox, &port, number, 5000).unwrap();
        good.insert(id(number));
    }
    assert!(!writer.is_stopped());
    drop((port, writer));
    assert_eq!(recover(Arc::new(disk)).unwrap().into_keys().collect::<BTreeSet<_>>(), good);
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
fn the_floors_refuse_before_data() {
    let disk = SimDisk::new();
    disk.limit(Some(1000));
    for (floors, size, expect) in [
        (Floors { octets_percent: 10, octets_min: 0, inodes_percent: 0 }, 0, Ok(())),
        (Floors { octets_percent: 10, octets_min: 0, inodes_percent: 0 }, 400, Err(Trouble::NoSpace)),
        (Floors { octets_percent: 0, octets_min: 1001, inodes_percent: 0 }, 0, Err(Trouble::NoSpace)),
        (Floors { octets_percent: 0, octets_min: 0, inodes_percent: 100 }, 0, Ok(())),
    ] {
        let options = Options { floors, ..small_options() };
        let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
        let (_, port) = port(&writer);
        assert_eq!(port.begin(id(1), Some(size)).map(drop), expect, "{floors:?} {size}");
    }
}

#[test]
fn aborts_leave_nothing() {
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
    let files = disk.files();
    assert!(
        files.iter().all(|(name, _)| !name.ends_with(".body")),
        "{:?}",
        files.iter().map(|f| &f.0).collect::<Vec<_>>()
    );
    assert!(shared <= 1 << 20);
    assert_eq!(recover(Arc::new(disk)).unwrap().len(), 1);
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

/// A spool of 24 small messages and a large one in one segment; path and octets of the segment.
fn small_spool() -> (SimDisk, String, Vec<u8>, BTreeMap<QueueId, Whole>) {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    for number in 0..24 {
        commit(&inbox, &port, number, number as usize * 13 % 200).unwrap();
    }
    commit(&inbox, &port, 24, 20_000).unwrap();
    drop((port, writer));
    let (path, octets) = disk.files().into_iter().find(|(path, _)| path.ends_with(".seg")).unwrap();
    let found = recover(Arc::new(disk.clone())).unwrap();
    assert_eq!(found.len(), 25);
    (disk, path, octets, found)
}

#[test]
fn any_flipped_octet_costs_at_most_its_own_message_which_is_kept_aside() {
    let (disk, path, octets, good) = small_spool();
    let used = octets.iter().rposition(|&octet| octet != 0).unwrap() + 1;
    let headers = (0..64).chain(4096..4160).chain([100, 8191]);
    for place in headers.chain(8192..used) {
        let disk = disk.image(Image::Kept, 0);
        let mut bad = octets.clone();
        bad[place] ^= 1 << (place % 8);
        disk.put(&path, &bad);
        let found = recover(Arc::new(disk.clone())).unwrap();
        assert!(found.iter().all(|(id, whole)| good.get(id) == Some(whole)), "octet {place} changed a message");
        assert!(found.len() >= 24, "octet {place} cost {} messages", 25 - found.len());
        if found.len() < 25 {
            let kept = disk.files().iter().any(|(name, _)| name.starts_with("corrupt/") && name.ends_with(".part"));
            assert!(kept, "octet {place}: nothing was kept aside");
        }
    }
    // The large body's own file.
    for place in [0, 5000, 19_999] {
        let disk = disk.image(Image::Kept, 0);
        let (name, mut bad) = disk.files().into_iter().find(|(name, _)| name.ends_with(".body")).unwrap();
        bad[place] ^= 1;
        disk.put(&name, &bad);
        assert_eq!(recover(Arc::new(disk.clone())).unwrap().len(), 24);
        assert!(disk.files().iter().any(|(name, _)| name.starts_with("corrupt/") && name.ends_with(".body")));
    }
}

#[test]
fn a_segment_that_is_cut_anywhere_gives_what_is_whole() {
    let (disk, path, octets, good) = small_spool();
    let used = octets.iter().rposition(|&octet| octet != 0).unwrap() + 1;
    for length in (0..200).chain(4090..4200).chain(8100..used) {
        let disk = disk.image(Image::Kept, 0);
        disk.put(&path, &octets[..length]);
        let found = recover(Arc::new(disk)).unwrap();
        assert!(found.iter().all(|(id, whole)| good.get(id) == Some(whole)), "length {length}");
        assert!(length < used || found.len() == 25);
    }
}

#[test]
fn a_page_that_cannot_be_read_costs_only_what_is_on_it() {
    let (disk, path, _, good) = small_spool();
    disk.make_unreadable(&path, 8192);
    let found = recover(Arc::new(disk)).unwrap();
    assert!(found.iter().all(|(id, whole)| good.get(id) == Some(whole)));
    assert!(!found.is_empty() && found.len() < good.len(), "{} found", found.len());
}

#[test]
fn a_body_that_imitates_a_record_is_never_one() {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 1, 64).unwrap();
    // More than any client can know: the real octets of the real segment, header and first record.
    let (path, octets) = disk.files().into_iter().find(|(path, _)| path.ends_with(".seg")).unwrap();
    for (number, shift) in (2..).zip(0..8) {
        let mut hostile = vec![b'x'; shift];
        hostile.extend_from_slice(&octets[..64]);
        hostile.extend_from_slice(&octets[8192..8192 + 150]);
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, &hostile);
        port.commit(entry, b"e", b"p", number);
        inbox.wait(number).unwrap();
    }
    drop((port, writer));
    assert_eq!(recover(Arc::new(disk.clone())).unwrap().len(), 9);
    // Every header but the last one spoilt: the search goes over all those bodies.
    let (_, mut octets) = disk.files().into_iter().find(|(name, _)| *name == path).unwrap();
    let mark: [u8; 8] = octets[16..24].try_into().unwrap();
    let heads: Vec<usize> = (8192..octets.len() - 24).step_by(8).filter(|&at| octets[at..at + 8] == mark).collect();
    let real: Vec<usize> =
        heads.into_iter().filter(|&at| octets[at + 16..at + 24] == (at as u64).to_le_bytes()).collect();
    assert_eq!(real.len(), 9);
    real[..8].iter().for_each(|&at| octets[at + 9] ^= 1);
    disk.put(&path, &octets);
    let found = recover(Arc::new(disk)).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [id(9)]);
}

#[test]
fn delivery_reads_a_living_writer_only_below_its_doorbell() {
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
        assert!(!follower.next(&mut message), "message {number} was read before the bell");
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
    assert_eq!(std::iter::from_fn(|| follower.next(&mut message).then_some(())).count(), 25);
    assert_eq!(Doorbell::decode(&[0; 31]), None);
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

#[test]
fn a_log_of_acknowledgements_that_fails_is_followed_by_another() {
    let (disk, ..) = small_spool();
    let settle_all_but_one = |follower: &mut Follower| {
        let mut message = Message::default();
        while follower.next(&mut message) {
            if message.id() != id(3) {
                follower.acknowledge(message.key(), 1, std::iter::once(0));
            }
            follower.sync();
        }
    };
    let (first, writes, syncs) = (disk.image(Image::Kept, 0), disk.writes(), disk.syncs());
    assert!(writes > 0 && syncs > 0);
    settle_all_but_one(&mut Follower::open(Arc::new(first.clone()), quiet()).unwrap());
    let ways: [(u64, Fault); 2] = [(first.syncs(), SimDisk::fail_sync), (first.writes(), SimDisk::fail_write)];
    for (count, fail) in ways {
        for number in 0..count {
            let disk = disk.image(Image::Kept, 0);
            fail(&disk, number);
            {
                let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
                settle_all_but_one(&mut follower);
                follower.sync();
                assert!(!follower.has_unlogged(), "failure {number}");
            }
            for image in [Image::Lost, Image::Kept] {
                let found = recover(Arc::new(disk.image(image, 0))).unwrap();
                assert_eq!(found.into_keys().collect::<Vec<_>>(), [id(3)], "failure {number}, {image:?}");
            }
        }
    }
}

#[test]
fn one_delivery_process_per_spool() {
    let folder = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(folder.path()).unwrap());
    let first = Follower::open(disk(), quiet()).unwrap();
    let second = Follower::open(disk(), quiet()).map(drop).unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    Follower::open(disk(), quiet()).unwrap();
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("spool");
    let writer = Writer::open(Arc::new(RealDisk::open(&root).unwrap()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 1, 20_000).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    let home = std::fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&home), 0o700);
    for file in std::fs::read_dir(home).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
}

/// Prints; what the machine can do is not for a test to judge.
#[test]
fn throughput_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(folder.path()).unwrap());
    let options =
        Options { floors: Floors { octets_percent: 0, octets_min: 0, inodes_percent: 0 }, ..Options::default() };
    let writer = Writer::open(disk.clone(), options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let (messages, window, body) = (20_000, 256, body(1, 4096));
    let started = Instant::now();
    for ticket in 0..messages {
        let mut entry = port.begin(id(ticket), None).unwrap();
        append_all(&inbox, &mut entry, &body);
        port.commit(entry, b"envelope", b"prepend", ticket);
        if ticket >= window {
            inbox.wait(ticket - window).unwrap();
        }
    }
    (messages - window..messages).for_each(|ticket| inbox.wait(ticket).unwrap());
    println!("{:.0} durable 4 KiB messages/s, {window} waiting", messages as f64 / started.elapsed().as_secs_f64());
    drop((port, writer));
    let started = Instant::now();
    let mut follower = Follower::open(disk, quiet()).unwrap();
    let mut message = Message::default();
    let mut found = 0;
    while follower.next(&mut message) {
        found += 1;
    }
    println!("{found} messages recovered in {:?}", started.elapsed());
    assert_eq!(found, messages);
}

const KILL_FOLDER: &str = "PORTREEVE_SPOOL_KILL_FOLDER";
const KILL_ROUND: &str = "PORTREEVE_SPOOL_KILL_ROUND";

/// The process that is killed below: writes, and says on its standard output what was acknowledged.
#[test]
fn child_that_is_killed() {
    let (Ok(folder), Ok(round)) = (std::env::var(KILL_FOLDER), std::env::var(KILL_ROUND)) else { return };
    let disk = Arc::new(RealDisk::open(folder.as_ref()).unwrap());
    let options = Options { segment_octets: 1 << 20, ..small_options() };
    let writer = Writer::open(disk, options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let first = round.parse::<u64>().unwrap() * 1_000_000;
    for number in first.. {
        let mut entry = port.begin(id(number), None).unwrap();
        let octets = if number % 50 == 0 { 300_000 } else { 1000 };
        append_all(&inbox, &mut entry, &body(number, octets));
        port.commit(entry, b"envelope", b"prepend", number);
        // Eight are always under way.
        if number >= first + 8 {
            inbox.wait(number - 8).unwrap();
            // Past the test harness's own capture.
            let line = format!("\nACK {}\n", number - 8);
            if std::io::stdout().write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    }
}

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for (round, until) in [1, 40, 333, 1000, 77].into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child_that_is_killed", "--nocapture"])
            .env(KILL_FOLDER, folder.path())
            .env(KILL_ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ack = |line: std::io::Result<String>| line.ok()?.strip_prefix("ACK ")?.parse::<u64>().ok();
        let mut heard = 0;
        while heard < until {
            let line = lines.next().expect("the child ended by itself");
            if let Some(number) = ack(line) {
                acknowledged.insert(id(number));
                heard += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died counts.
        acknowledged.extend(lines.filter_map(ack).map(id));
    }
    let found = recover(Arc::new(RealDisk::open(folder.path()).unwrap())).unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains_key(id)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    assert!(acknowledged.len() >= 1451);
}
