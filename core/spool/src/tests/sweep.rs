//! CONTRACT C1, C3: the machine stops before every operation of a workload, and of a recovery, and of the
//! recovery after that; each time the disk comes back in many forms.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use smtp::id::QueueId;

use super::{After, Ledger, check, long, quiet, recover_watched, run_workload, small_options};
use crate::sim::{Image, Lie, SimDisk};
use crate::{Follower, Message, Notice, Options, Watch};

/// How thorough a sweep is.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) messages: u64,
    /// Images of each kind that chance decides.
    pub(super) seeds: u64,
    /// With so many pending changes and writes at the most, every subset of them is tried.
    pub(super) exact_max: usize,
}

impl Plan {
    pub(super) fn here() -> Self {
        if long() {
            Self { messages: 50, seeds: 900, exact_max: 12 }
        } else {
            Self { messages: 16, seeds: 200, exact_max: 8 }
        }
    }

    /// For planted bugs: they are found soon.
    pub(super) fn small() -> Self {
        Self { messages: 16, seeds: 20, exact_max: 5 }
    }
}

/// Images of a crash now; those by chance with several seeds.
pub(super) fn images(disk: &SimDisk, salt: u64, seeds: u64) -> impl Iterator<Item = (Image, u64, SimDisk)> + '_ {
    Image::ALL.into_iter().flat_map(move |image| {
        let seeds = if image.is_random() { seeds } else { 1 };
        (0..seeds).map(move |seed| (image, seed, disk.image(image, salt * 10_000 + seed)))
    })
}

/// Every subset of what is pending, when there are not too many.
fn subsets(disk: &SimDisk, exact_max: usize) -> impl Iterator<Item = (Image, u64, SimDisk)> + '_ {
    let pending = disk.pending();
    let subsets = if pending <= exact_max { 1 << pending } else { 0 };
    (0..subsets).map(|bits| (Image::Exact(bits), 0, disk.image(Image::Exact(bits), 0)))
}

/// Crashes before every n-th operation; the number of images, or the first violation.
pub(super) fn crash_sweep(options: &Options, plan: Plan) -> Result<usize, String> {
    crash_sweep_with(options, plan, None)
}

/// The same on a disk that may lie.
pub(super) fn crash_sweep_with(options: &Options, plan: Plan, lie: Option<Lie>) -> Result<usize, String> {
    let disk = SimDisk::new();
    run_workload(&disk, options.clone(), plan.messages);
    // Threads take turns differently each time; a few more than this run had.
    let operations = disk.operations() + 8;
    let mut checked = 0;
    for operation in 0..operations {
        let disk = SimDisk::new();
        disk.crash_at(operation);
        lie.into_iter().for_each(|lie| disk.lie(lie));
        let ledger = run_workload(&disk, options.clone(), plan.messages);
        for (image, seed, after) in images(&disk, operation, plan.seeds).chain(subsets(&disk, plan.exact_max)) {
            checked += 1;
            check(&after, &ledger, After::Crash).map_err(|violation| {
                format!("crash before operation {operation}, image {image:?}, seed {seed}: {violation}")
            })?;
        }
    }
    Ok(checked)
}

#[test]
fn a_crash_before_any_operation_loses_nothing_and_invents_nothing() {
    let started = Instant::now();
    let images = crash_sweep(&small_options(), Plan::here()).unwrap();
    println!("{images} crash images in {:?}", started.elapsed());
    let least = if long() { 1_000_000 } else { 50_000 };
    assert!(images >= least, "only {images} images");
}

/// What a delivery that may be stopped has done.
#[derive(Clone, Default)]
pub(super) struct Handed {
    pub(super) on: BTreeSet<QueueId>,
    /// Of these: durably acknowledged.
    durably: BTreeSet<QueueId>,
    /// Handed on although it was durably acknowledged in an earlier life.
    again: Option<QueueId>,
}

/// Hands all on. Each message is noted, every third time with a sync.
pub(super) fn deliver(disk: &SimDisk, handed: &mut Handed) {
    let mut noted = Vec::new();
    let mut message = Message::default();
    let Ok(mut follower) = Follower::open(Arc::new(disk.clone()), quiet()) else { return };
    while follower.next(&mut message) {
        if message.verify().is_err() {
            continue;
        }
        if handed.durably.contains(&message.id()) {
            handed.again = Some(message.id());
        }
        handed.on.insert(message.id());
        follower.acknowledge(message.key(), 1, std::iter::once(0));
        noted.push(message.id());
        if noted.len() < 3 {
            follower.write();
        } else {
            follower.sync();
            if !follower.has_unlogged() {
                handed.durably.extend(noted.drain(..));
            }
        }
    }
    follower.sync();
    if !follower.has_unlogged() {
        handed.durably.extend(noted);
    }
}

/// Notes the messages that come without their bodies.
fn missing_bodies() -> (Arc<Mutex<Vec<QueueId>>>, Arc<dyn Watch>) {
    let missing = Arc::new(Mutex::new(Vec::new()));
    let noted = missing.clone();
    let watch = move |notice: &Notice| {
        if let Notice::BodyMissing { id } = notice {
            noted.lock().push(*id);
        }
    };
    (missing, Arc::new(watch))
}

/// What lies in `corrupt/`.
fn set_aside(disk: &SimDisk) -> Vec<u8> {
    disk.files().into_iter().filter(|(name, _)| name.starts_with("corrupt/")).flat_map(|(_, octets)| octets).collect()
}

/// After a delivery was stopped: nothing is lost, nothing that was durably acknowledged comes again. `errors`:
/// something could not be read.
pub(super) fn check_handed(disk: &SimDisk, ledger: &Ledger, handed: &Handed, errors: bool) -> Result<(), String> {
    if let Some(id) = handed.again {
        return Err(format!("{id} was done with and was handed on again"));
    }
    let (missing, watch) = missing_bodies();
    let found = recover_watched(Arc::new(disk.clone()), watch)?;
    if let Some(id) = missing.lock().first().filter(|_| !errors) {
        return Err(format!("{id} is there and its body is gone"));
    }
    let aside = set_aside(disk);
    for id in &ledger.acknowledged {
        let (envelope, prepend, _) = &ledger.submitted[id];
        let meta = [&envelope[..], prepend].concat();
        // CONTRACT C13: what could not be read is kept for the operator.
        let is_aside = errors && memchr::memmem::find(&aside, &meta).is_some();
        let is_known = handed.on.contains(id) || found.contains_key(id);
        if !is_known && !is_aside {
            return Err(format!("{id} was acknowledged and is lost"));
        }
    }
    for (id, whole) in &found {
        if handed.durably.contains(id) {
            return Err(format!("{id} was done with and comes again"));
        }
        if ledger.submitted.get(id) != Some(whole) {
            return Err(format!("{id} is not what was submitted"));
        }
    }
    Ok(())
}

/// Crashes inside the recovery of this disk before every `step`-th operation; `deeper`: and inside the recovery
/// of what that leaves, at one operation for each of these seeds.
fn recovery_sweep(disk: &SimDisk, ledger: &Ledger, seeds: u64, step: u64, deeper: u64) -> Result<usize, String> {
    let rehearsal = disk.image(Image::Kept, 0);
    deliver(&rehearsal, &mut Handed::default());
    let mut checked = 0;
    for operation in (0..rehearsal.operations()).step_by(step as usize) {
        let second = disk.image(Image::Kept, 0);
        second.crash_at(operation);
        let mut handed = Handed::default();
        deliver(&second, &mut handed);
        for (image, seed, third) in images(&second, operation, seeds) {
            checked += 1;
            let context = |violation| format!("recovery stopped before {operation}, {image:?}, {seed}: {violation}");
            check_handed(&third, ledger, &handed, false).map_err(context)?;
        }
        for seed in 0..deeper {
            // The second stop is somewhere in the second recovery.
            let image = Image::ALL[((operation + seed) % Image::ALL.len() as u64) as usize];
            let third = second.image(image, seed);
            let at = (operation * 7 + seed * 3) % rehearsal.operations().max(1);
            third.crash_at(at);
            let mut handed = handed.clone();
            deliver(&third, &mut handed);
            for (last, seed, fourth) in images(&third, operation, 1) {
                checked += 1;
                check_handed(&fourth, ledger, &handed, false).map_err(|violation| {
                    format!("stopped before {operation}, {image:?}, again before {at}, {last:?}, {seed}: {violation}")
                })?;
            }
        }
    }
    Ok(checked)
}

/// A workload that ends well, then stops inside its recovery, and inside the recovery of that.
pub(super) fn crash_recovery(seeds: u64, deeper: u64) -> Result<usize, String> {
    let disk = SimDisk::new();
    let ledger = run_workload(&disk, small_options(), 16);
    assert_eq!(ledger.acknowledged.len(), ledger.submitted.len());
    let rehearsal = disk.image(Image::Kept, 0);
    let mut handed = Handed::default();
    deliver(&rehearsal, &mut handed);
    assert_eq!(handed.durably, ledger.acknowledged);
    assert_eq!(rehearsal.files(), [], "everything is freed");
    recovery_sweep(&disk, &ledger, seeds, 1, deeper)
}

#[test]
fn a_crash_inside_recovery_loses_nothing_and_repeats_nothing_acknowledged() {
    let (seeds, deeper) = if long() { (400, 60) } else { (40, 4) };
    let images = crash_recovery(seeds, deeper).unwrap();
    println!("{images} images of crashes inside recovery");
    assert!(images >= 5_000, "only {images} images");
}

/// The workload stops, its recovery stops, and the recovery of that stops.
#[test]
fn crashes_inside_the_recovery_of_crashes_lose_nothing() {
    let disk = SimDisk::new();
    run_workload(&disk, small_options(), 16);
    let (every, step, kinds) = if long() { (1, 1, Image::ALL.len() as u64) } else { (5, 3, 2) };
    let mut checked = 0;
    for operation in (0..disk.operations()).step_by(every) {
        let first = SimDisk::new();
        first.crash_at(operation);
        let ledger = run_workload(&first, small_options(), 16);
        for kind in 0..kinds {
            let image = Image::ALL[((operation + kind) % Image::ALL.len() as u64) as usize];
            let second = first.image(image, operation);
            checked += recovery_sweep(&second, &ledger, 1, step, 1)
                .unwrap_or_else(|violation| panic!("crash before {operation}, {image:?}: {violation}"));
        }
    }
    println!("{checked} images of crashes inside the recovery of crashes");
    assert!(checked >= 2_000, "only {checked} images");
}
