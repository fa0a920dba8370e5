//! The tests are tested: each bug that somebody might make is planted, and must be found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::damage::{flip_every_octet, imitate_records};
use super::faults::fault_sweep;
use super::sweep::{Plan, crash_recovery, crash_sweep};
use super::{abort_many, follow_a_living_writer, small_options};
use crate::Options;
use crate::bug::{Bug, plant};
use crate::sim::Lie;

fn found(bug: Bug, proof: impl FnOnce() -> Result<(), String>) {
    plant(Some(bug));
    let outcome = catch_unwind(AssertUnwindSafe(proof));
    plant(None);
    match outcome {
        Ok(Ok(())) => panic!("not noticed: {bug:?}"),
        Ok(Err(violation)) => println!("{bug:?}: {violation}"),
        Err(_) => println!("{bug:?}: an assertion failed, as it should"),
    }
}

fn by_crashes(bug: Bug) {
    found(bug, || crash_sweep(&small_options(), Plan::small()).map(drop));
}

#[test]
fn acknowledging_early() {
    by_crashes(Bug::AcknowledgeEarly);
}

#[test]
fn names_that_are_not_synced() {
    [Bug::NoSegmentName, Bug::NoHomeName, Bug::NoBodyName].into_iter().for_each(by_crashes);
}

#[test]
fn bodies_that_are_not_synced() {
    by_crashes(Bug::NoBodySync);
}

#[test]
fn syncs_that_are_skipped_altogether() {
    for lie in [Lie::Files, Lie::Folders] {
        let outcome = super::sweep::crash_sweep_with(&small_options(), Plan::small(), Some(lie));
        assert!(outcome.is_err(), "not noticed: {lie:?}");
    }
    let unsynced = Options { durability: crate::Durability::None, ..small_options() };
    assert!(crash_sweep(&unsynced, Plan::small()).is_err());
}

#[test]
fn a_failed_segment_that_is_not_sealed() {
    found(Bug::NoSeal, || fault_sweep(2, 1).map(drop));
}

#[test]
fn a_sync_that_is_tried_again_and_believed() {
    found(Bug::RetrySync, || fault_sweep(2, 1).map(drop));
}

#[test]
fn lengths_that_are_trusted() {
    found(Bug::TrustLength, || flip_every_octet(1).map(drop));
}

#[test]
fn reading_that_ends_at_the_first_bad_record() {
    found(Bug::StopAtBad, || flip_every_octet(1).map(drop));
}

#[test]
fn records_that_count_anywhere() {
    found(Bug::AnyOffset, imitate_records);
}

#[test]
fn a_salt_that_can_be_guessed() {
    found(Bug::NoSalt, imitate_records);
}

#[test]
fn reading_what_is_not_durable() {
    found(Bug::ReadBeyondBell, follow_a_living_writer);
}

#[test]
fn acknowledgements_that_are_not_synced() {
    found(Bug::NoAckSync, || crash_recovery(3, 0).map(drop));
}

#[test]
fn bodies_that_go_before_their_acknowledgements_are_durable() {
    found(Bug::BodyFirst, || crash_recovery(3, 0).map(drop));
}

#[test]
fn acknowledgements_that_go_before_their_segment() {
    found(Bug::AcksFirst, || crash_recovery(3, 0).map(drop));
}

#[test]
fn abandoned_bodies_that_stay() {
    found(Bug::KeepAborted, abort_many);
}
