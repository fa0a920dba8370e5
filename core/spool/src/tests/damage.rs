//! CONTRACT C2: octets change, files are cut, pages cannot be read, bodies lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use smtp::id::QueueId;

use super::{Whole, append_all, commit, id, port, recover, small_options};
use crate::segment::{Key, Kind, RECORD_HEADER_OCTETS, RECORDS_START, RecordHeader, SegmentHeader};
use crate::sim::{Image, SimDisk};
use crate::{Hooks, Options, Writer};

/// A spool of 63 small messages and a large one in one segment; path and octets of the segment.
pub(super) fn small_spool() -> (SimDisk, String, Vec<u8>, BTreeMap<QueueId, Whole>) {
    let disk = SimDisk::new();
    let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    for number in 0..63 {
        commit(&inbox, &port, number, number as usize * 13 % 200).unwrap();
    }
    commit(&inbox, &port, 63, 20_000).unwrap();
    drop((port, writer));
    let (path, octets) = disk.files().into_iter().find(|(path, _)| path.ends_with(".seg")).unwrap();
    let found = recover(Arc::new(disk.clone())).unwrap();
    assert_eq!(found.len(), 64);
    (disk, path, octets, found)
}

/// CONTRACT C2: every octet of a segment, flipped.
pub(super) fn flip_every_octet(step: usize) -> Result<usize, String> {
    let (disk, path, octets, good) = small_spool();
    let used = octets.iter().rposition(|&octet| octet != 0).unwrap() + 1;
    let mut checked = 0;
    for place in (0..used).step_by(step) {
        checked += 1;
        let disk = disk.image(Image::Kept, 0);
        let mut bad = octets.clone();
        bad[place] ^= 1 << (place % 8);
        disk.put(&path, &bad);
        let found = recover(Arc::new(disk.clone()))?;
        if found.iter().any(|(id, whole)| good.get(id) != Some(whole)) {
            return Err(format!("octet {place} changed a message"));
        }
        if found.len() < good.len() - 1 {
            return Err(format!("octet {place} cost {} messages", good.len() - found.len()));
        }
        if found.len() < good.len() {
            let kept = disk.files().iter().any(|(name, _)| name.starts_with("corrupt/") && name.ends_with(".part"));
            assert!(kept, "octet {place}: nothing was kept aside");
        }
    }
    Ok(checked)
}

#[test]
fn any_flipped_octet_costs_at_most_its_own_message_which_is_kept_aside() {
    // The octets before the first record are mostly zeros that nobody reads; each of them is flipped nevertheless.
    let flipped = flip_every_octet(1).unwrap();
    println!("{flipped} octets flipped");
    assert!(flipped > 20_000);
    // The large body's own file.
    let (disk, ..) = small_spool();
    for place in [0, 5000, 19_999] {
        let disk = disk.image(Image::Kept, 0);
        let (name, mut bad) = disk.files().into_iter().find(|(name, _)| name.ends_with(".body")).unwrap();
        bad[place] ^= 1;
        disk.put(&name, &bad);
        assert_eq!(recover(Arc::new(disk.clone())).unwrap().len(), 63);
        assert!(disk.files().iter().any(|(name, _)| name.starts_with("corrupt/") && name.ends_with(".body")));
    }
}

#[test]
fn a_segment_that_is_cut_anywhere_gives_what_is_whole() {
    let (disk, path, octets, good) = small_spool();
    let used = octets.iter().rposition(|&octet| octet != 0).unwrap() + 1;
    for length in 0..used {
        let disk = disk.image(Image::Kept, 0);
        disk.put(&path, &octets[..length]);
        let found = recover(Arc::new(disk)).unwrap();
        assert!(found.iter().all(|(id, whole)| good.get(id) == Some(whole)), "length {length}");
        let cut = good.len() - found.len();
        assert!(cut > 0 || length + 8 > used, "length {length}");
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

/// Where the records of a segment begin, and where the last one ends.
fn heads(octets: &[u8]) -> (Vec<u64>, u64) {
    let (key, mut at) = (Key::new(&SegmentHeader::decode(octets).unwrap().salt), RECORDS_START);
    let mut heads = Vec::new();
    while let Some(header) = key.decode(&octets[at as usize..], at) {
        heads.push(at);
        at = header.end();
    }
    (heads, at)
}

/// A record as somebody would make it who guesses the salt.
fn forged(salt: &[u8; 16], offset: u64, number: u64) -> Vec<u8> {
    let header = RecordHeader {
        kind: Kind::Message,
        offset,
        id: id(number),
        unix_ms: 1,
        envelope_octets: 1,
        prepend_octets: 1,
        body_octets: 1,
        payload_sum: 0,
        body_sum: 0,
    };
    let mut record = Vec::new();
    Key::new(salt).append_record(&mut record, header, std::iter::once(&b"epx"[..]));
    record
}

/// Hostile bodies: real octets of the real segment, which no client can know, at other places; and records for
/// the very place at which they will lie, made with salts that somebody may guess.
pub(super) fn imitate_records() -> Result<(), String> {
    let disk = SimDisk::new();
    let options = Options { segment_octets: 1 << 20, ..small_options() };
    let writer = Writer::open(Arc::new(disk.clone()), options, Hooks::default()).unwrap();
    let (inbox, port) = port(&writer);
    let mut submitted = BTreeMap::new();
    let mut send = |number: u64, octets: &[u8]| {
        let mut entry = port.begin(id(number), None).unwrap();
        append_all(&inbox, &mut entry, octets);
        port.commit(entry, b"e", b"p", number);
        inbox.wait(number).unwrap();
        submitted.insert(id(number), (b"e".to_vec(), b"p".to_vec(), octets.to_vec()));
    };
    let segment = || disk.files().into_iter().find(|(path, _)| path.ends_with(".seg")).unwrap();
    send(1, &[b'x'; 64]);
    let (path, octets) = segment();
    let start = RECORDS_START as usize;
    for (number, shift) in (2..).zip(0..8) {
        let mut hostile = vec![b'x'; shift];
        hostile.extend_from_slice(&octets[..64]);
        hostile.extend_from_slice(&octets[start..octets.len().min(start + 150)]);
        send(number, &hostile);
    }
    let salts: [[u8; 16]; 4] = [[0; 16], [7; 16], [0xff; 16], *b"0123456789abcdef"];
    for (number, salt) in (10..).zip(salts) {
        // The body begins behind the last record, its own header, and `ep`; filled up to a border.
        let body_at = heads(&segment().1).1 + RECORD_HEADER_OCTETS as u64 + 2;
        let mut hostile = vec![b' '; 6];
        for copy in 0..3 {
            let record = forged(&salt, body_at + hostile.len() as u64, 1000 + number * 10 + copy);
            hostile.extend_from_slice(&record);
        }
        send(number, &hostile);
    }
    send(100, b"the last one");
    drop((port, writer));
    if recover(Arc::new(disk.clone()))? != submitted {
        return Err("what was found is not what was submitted".to_owned());
    }
    // Every header but the last one spoilt: the search goes over all those bodies.
    let (_, mut octets) = disk.files().into_iter().find(|(name, _)| *name == path).unwrap();
    let (mut heads, _) = heads(&octets);
    assert_eq!(heads.len(), submitted.len());
    heads.pop();
    heads.into_iter().for_each(|at| octets[at as usize + 9] ^= 1);
    disk.put(&path, &octets);
    let found: Vec<_> = recover(Arc::new(disk))?.into_keys().collect();
    if found == [id(100)] { Ok(()) } else { Err(format!("among spoilt records {found:?} were found")) }
}

#[test]
fn a_body_that_imitates_a_record_is_never_one() {
    imitate_records().unwrap();
}

/// A segment whose header is gone: it and its large bodies are kept for the operator, wherever the first look at
/// them is interrupted.
#[test]
fn a_segment_without_a_header_is_kept_with_its_bodies() {
    let (disk, path, mut octets, _) = small_spool();
    octets[20] ^= 1;
    octets[4096 + 20] ^= 1;
    disk.put(&path, &octets);
    let rehearsal = disk.image(Image::Kept, 0);
    assert_eq!(recover(Arc::new(rehearsal.clone())).unwrap().len(), 0);
    for operation in 0..=rehearsal.operations() {
        let first = disk.image(Image::Kept, 0);
        first.crash_at(operation);
        let _ = recover(Arc::new(first.clone()));
        for image in [Image::Lost, Image::Kept] {
            let second = first.image(image, 0);
            recover(Arc::new(second.clone())).unwrap();
            for ending in [".seg", ".body"] {
                let kept = |(name, _): &(String, Vec<u8>)| name.starts_with("corrupt/") && name.ends_with(ending);
                assert!(second.files().iter().any(kept), "crash before {operation}, {image:?}: no {ending}");
            }
        }
    }
}
