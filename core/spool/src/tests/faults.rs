//! CONTRACT C6, C11, C12, C13: the disk fails, is full, and works again.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::io::Errno;

use super::damage::small_spool;
use super::sweep::{Handed, check_handed, deliver, images};
use super::{After, SMALL, check, commit, id, long, port, quiet, recover, run_workload, small_options};
use crate::sim::{Act, Image, SimDisk, Written};
use crate::{Floors, Follower, Hooks, Message, Trouble, Writer};

/// How a disk says no.
const ERRNOS: [Errno; 3] = [Errno::IO, Errno::NOSPC, Errno::DQUOT];

/// Operations of a writer that can fail.
const WRITERS_ACTS: [Act; 6] = [Act::Create, Act::MakeDir, Act::Write, Act::Sync, Act::Rename, Act::SyncDir];

/// Every n-th operation of each kind fails in every way, once or several times in a row, and leaves any part of what
/// was written: what was acknowledged is there, what was refused is not, and the writer goes on.
pub(super) fn fault_sweep(seeds: u64, step: u64) -> Result<usize, String> {
    let rehearsal = SimDisk::new();
    run_workload(&rehearsal, small_options(), 16);
    let (mut checked, mut refusals, mut full) = (0, 0, 0);
    for act in WRITERS_ACTS {
        let leaves: &[Written] = match act {
            Act::Write => &[Written::Nothing, Written::One, Written::Half, Written::AllButOne],
            _ => &[Written::Half],
        };
        assert!(rehearsal.count(act) > 0, "the workload has no {act:?}");
        for number in (0..rehearsal.count(act)).step_by(step as usize) {
            for (errno, times) in ERRNOS.into_iter().flat_map(|errno| [(errno, 1), (errno, 3)]) {
                for &written in leaves {
                    let disk = SimDisk::new();
                    disk.leave(written);
                    disk.fail(act, number, times, errno);
                    let ledger = run_workload(&disk, small_options(), 16);
                    refusals += ledger.refused.len();
                    full += ledger.refused.values().filter(|&&trouble| trouble == Trouble::NoSpace).count();
                    let context = format!("{act:?} {number} fails {times} times with {errno:?}, {written:?} written");
                    if times == 1 && ledger.stopped {
                        return Err(format!("{context}: the writer stopped"));
                    }
                    for (image, seed, after) in images(&disk, number, seeds) {
                        checked += 1;
                        check(&after, &ledger, After::Faults)
                            .map_err(|violation| format!("{context}; image {image:?}, seed {seed}: {violation}"))?;
                    }
                }
            }
        }
    }
    assert!(refusals > 0 && full > 0, "{refusals} refusals, {full} for want of room");
    Ok(checked)
}

#[test]
fn whatever_fails_nothing_is_lost_and_what_was_refused_stays_away() {
    let (seeds, step) = if long() { (20, 1) } else { (2, 2) };
    let images = fault_sweep(seeds, step).unwrap();
    println!("{images} images after faults");
    assert!(images >= 5_000, "only {images} images");
}

#[test]
fn two_failed_syncs_may_stop_the_writer_and_still_lose_nothing() {
    let rehearsal = SimDisk::new();
    run_workload(&rehearsal, small_options(), 16);
    let (mut stops, mut went_on) = (0, 0);
    for first in 0..rehearsal.count(Act::Sync) {
        for second in first + 1..first + 4 {
            let disk = SimDisk::new();
            disk.fail(Act::Sync, first, 1, Errno::IO);
            disk.fail(Act::Sync, second, 1, Errno::IO);
            let ledger = run_workload(&disk, small_options(), 16);
            // Without a durable seal nothing more is accepted.
            stops += usize::from(ledger.stopped);
            went_on += usize::from(!ledger.stopped);
            for (image, seed, after) in images(&disk, first, 2) {
                let context = format!("failures {first} and {second}, image {image:?}, seed {seed}");
                check(&after, &ledger, After::Faults).unwrap_or_else(|violation| panic!("{context}: {violation}"));
            }
        }
    }
    assert!(stops > 0 && went_on > 0, "{stops} stopped, {went_on} went on");
}

/// Every n-th operation of a recovery fails: it goes on with the rest, and the next one finds what is left.
#[test]
fn a_recovery_that_meets_errors_loses_nothing() {
    let disk = SimDisk::new();
    let ledger = run_workload(&disk, small_options(), 16);
    let rehearsal = disk.image(Image::Kept, 0);
    deliver(&rehearsal, &mut Handed::default());
    let mut found_later = 0;
    for act in Act::ALL {
        for number in 0..rehearsal.count(act) {
            for (errno, times) in [(Errno::IO, 1), (Errno::IO, 4), (Errno::NOSPC, 2)] {
                let disk = disk.image(Image::Kept, 0);
                disk.fail(act, number, times, errno);
                let mut handed = Handed::default();
                deliver(&disk, &mut handed);
                disk.mend();
                let context = format!("{act:?} {number} fails {times} times with {errno:?}");
                found_later += usize::from(handed.on.len() < ledger.acknowledged.len());
                check_handed(&disk, &ledger, &handed, act == Act::Read)
                    .unwrap_or_else(|violation| panic!("{context}: {violation}"));
            }
        }
    }
    assert!(found_later > 0, "no error had any effect");
}

/// CONTRACT C12: as many files and folders as there may be.
#[test]
fn a_disk_without_inodes_is_said_and_forgotten() {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    commit(&inbox, &port, 0, 100).unwrap();
    disk.limit_inodes(Some(2));
    let mut good = BTreeSet::from([id(0)]);
    let mut refused = 0;
    for number in 1..40 {
        // Small ones need a new segment now and then, large ones a file each.
        match commit(&inbox, &port, number, if number % 4 == 0 { 20_000 } else { 5000 }) {
            Ok(()) => drop(good.insert(id(number))),
            Err(trouble) => {
                assert_eq!(trouble, Trouble::NoSpace);
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "only {refused} refused");
    disk.limit_inodes(None);
    for number in 40..50 {
        commit(&inbox, &port, number, 5000).unwrap();
        good.insert(id(number));
    }
    assert!(!writer.is_stopped());
    drop((port, writer));
    assert_eq!(recover(Arc::new(disk)).unwrap().into_keys().collect::<BTreeSet<_>>(), good);
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
fn the_floors_refuse_before_data() {
    let disk = SimDisk::new();
    disk.limit(Some(1000));
    disk.limit_inodes(Some(100));
    // Nine of the hundred are taken.
    (0..8).for_each(|number| disk.put(&format!("others/{number}"), b""));
    for (floors, size, expect) in [
        (Floors { octets_percent: 10, octets_min: 0, inodes_percent: 0 }, 0, Ok(())),
        (Floors { octets_percent: 10, octets_min: 0, inodes_percent: 0 }, 400, Err(Trouble::NoSpace)),
        (Floors { octets_percent: 0, octets_min: 1001, inodes_percent: 0 }, 0, Err(Trouble::NoSpace)),
        (Floors { octets_percent: 0, octets_min: 0, inodes_percent: 91 }, 0, Ok(())),
        (Floors { octets_percent: 0, octets_min: 0, inodes_percent: 92 }, 0, Err(Trouble::NoSpace)),
    ] {
        let options = crate::Options { floors, ..small_options() };
        let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
        let (_, port) = port(&writer);
        assert_eq!(port.begin(id(1), Some(size)).map(drop), expect, "{floors:?} {size}");
    }
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
    let first = disk.image(Image::Kept, 0);
    settle_all_but_one(&mut Follower::open(Arc::new(first.clone()), quiet()).unwrap());
    for act in [Act::Sync, Act::Write, Act::Create, Act::SyncDir] {
        for number in 0..first.count(act) {
            let disk = disk.image(Image::Kept, 0);
            disk.fail(act, number, 1, Errno::IO);
            {
                let mut follower = Follower::open(Arc::new(disk.clone()), quiet()).unwrap();
                settle_all_but_one(&mut follower);
                follower.sync();
                assert!(!follower.has_unlogged(), "{act:?} {number}");
            }
            for image in [Image::Lost, Image::Kept] {
                let found = recover(Arc::new(disk.image(image, 0))).unwrap();
                assert_eq!(found.into_keys().collect::<Vec<_>>(), [id(3)], "{act:?} {number}, {image:?}");
            }
        }
    }
}
