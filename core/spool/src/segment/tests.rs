use super::*;

const SALT: [u8; 16] = *b"0123456789abcdef";

/// A segment with one record of each kind, as this version writes it.
fn sample() -> Vec<u8> {
    let header = SegmentHeader { salt: SALT, writer: WriterId(0x0123_4567_89ab_cdef), sequence: 7, octets: 65536 };
    let key = Key::new(&SALT);
    let mut image = vec![0; RECORDS_START as usize];
    for copy in HEADER_COPIES {
        image[copy as usize..copy as usize + SEGMENT_HEADER_OCTETS].copy_from_slice(&header.encode());
    }
    let record = |kind, id, parts: [usize; 3]| RecordHeader {
        kind,
        offset: 0,
        id: QueueId(id),
        unix_ms: 1_700_000_000_000,
        envelope_octets: parts[0] as u32,
        prepend_octets: parts[1] as u32,
        body_octets: parts[2] as u64,
        payload_sum: 0,
        body_sum: 0,
    };
    let mut put = |header: RecordHeader, parts: &[&[u8]]| {
        let header = RecordHeader { offset: image.len() as u64, ..header };
        key.append_record(&mut image, header, parts.iter().copied());
    };
    put(record(Kind::Seal, 0, [16, 0, 0]), &[&encode_seal(6, 12_345)]);
    put(record(Kind::Message, 1, [3, 4, 5]), &[b"env", b"pre\n", b"body\n"]);
    let large = RecordHeader { body_sum: 0xdead_beef, ..record(Kind::Large, 2, [3, 0, 1 << 20]) };
    put(large, &[b"big"]);
    put(record(Kind::Message, 3, [0, 0, 0]), &[]);
    image.resize(image.len() + 64, 0);
    image
}

/// Lines of 32 octets that are not all zero: `offset: hex`.
fn text(image: &[u8]) -> String {
    let line = |(index, line): (usize, &[u8])| {
        let hex: String = line.iter().map(|octet| format!("{octet:02x}")).collect();
        line.iter().any(|&octet| octet != 0).then(|| format!("{:06}: {hex}\n", index * 32))
    };
    image.chunks(32).enumerate().filter_map(line).collect()
}

fn image_of(text: &str, octets: usize) -> Vec<u8> {
    let mut image = vec![0; octets];
    for line in text.lines() {
        let (offset, hex) = line.split_once(": ").unwrap();
        let offset: usize = offset.parse().unwrap();
        for (place, pair) in hex.as_bytes().chunks(2).enumerate() {
            image[offset + place] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
    }
    image
}

fn items(image: &Vec<u8>, closed: bool) -> Vec<Item> {
    let (mut scan, mut window, key) = (Scan::default(), Window::default(), Key::new(&SALT));
    std::iter::from_fn(|| scan.next(image, &mut window, &key, image.len() as u64, closed)).collect()
}

/// The format is a promise to later versions: a change here needs a new version number and a reader for this one.
#[test]
fn golden_file() {
    let golden = include_str!("golden-v1.txt");
    assert_eq!(text(&sample()), golden, "what is written has changed");
    let image = image_of(golden, sample().len());
    let header = SegmentHeader::decode(&image).unwrap();
    assert_eq!((header.salt, header.writer.0, header.sequence, header.octets), (SALT, 0x0123_4567_89ab_cdef, 7, 65536));
    assert_eq!(SegmentHeader::decode(&image[4096..]), Ok(header));
    let found: Vec<_> = items(&image, true)
        .into_iter()
        .map(|item| match item {
            Item::Record(header) => (header.kind, header.id.0, header.body_octets, header.body_sum),
            other => panic!("{other:?}"),
        })
        .collect();
    let expect = [
        (Kind::Seal, 0, 0, 0),
        (Kind::Message, 1, 5, 0),
        (Kind::Large, 2, 1 << 20, 0xdead_beef),
        (Kind::Message, 3, 0, 0),
    ];
    assert_eq!(found, expect);
    assert_eq!(decode_seal(&image[8192 + RECORD_HEADER_OCTETS..][..16]), Some((6, 12_345)));
}

#[test]
fn a_later_version_is_told_from_damage() {
    let image = sample();
    let mut later = image[..64].to_vec();
    later[7] = 2;
    assert_eq!(SegmentHeader::decode(&later), Err(BadHeader::Damaged), "its checksum is wrong");
    later[12..16].fill(0);
    let sum = crc32c::crc32c(&later).to_le_bytes();
    later[12..16].copy_from_slice(&sum);
    assert_eq!(SegmentHeader::decode(&later), Err(BadHeader::Version(2)));
}

#[test]
fn a_scan_of_a_living_segment_waits_for_what_is_cut() {
    let image = sample();
    let all = items(&image, true);
    for length in RECORDS_START as usize..image.len() {
        let cut = image[..length].to_vec();
        let found = items(&cut, false);
        assert!(all.starts_with(&found), "cut at {length}: {found:?}");
    }
    // One scan, fed in steps, finds the same.
    let (mut scan, mut window, key) = (Scan::default(), Window::default(), Key::new(&SALT));
    let mut found = Vec::new();
    for limit in RECORDS_START..=image.len() as u64 {
        while let Some(item) = scan.next(&image, &mut window, &key, limit, false) {
            found.push(item);
        }
    }
    assert_eq!(found, all);
}

#[test]
fn a_scan_of_a_living_segment_finds_the_record_behind_damage_when_it_comes() {
    let mut image = sample();
    let all = items(&image, true);
    let Item::Record(second) = all[1] else { panic!() };
    image[second.offset as usize + 20] ^= 1;
    let (mut scan, mut window, key) = (Scan::default(), Window::default(), Key::new(&SALT));
    let mut found = Vec::new();
    for limit in RECORDS_START..=image.len() as u64 {
        while let Some(item) = scan.next(&image, &mut window, &key, limit, false) {
            found.push(item);
        }
    }
    let damage = Item::Damage { from: second.offset, to: second.end() };
    assert_eq!(found, [all[0], damage, all[2], all[3]]);
}

#[test]
fn fuzz_entry_survives_chance() {
    let sample = sample();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    fuzz_segment(&sample);
    // The longest lengths there are.
    let mut extreme = [0xff; 80];
    extreme[0] = b'R';
    fuzz_segment(&extreme);
    extreme[12] = 2;
    fuzz_segment(&extreme);
    for round in 0..2000 {
        let octets: Vec<u8> = match round % 3 {
            0 => (0..next() % 600).map(|_| next() as u8).collect(),
            // Headers whose fields are extreme.
            1 => (0..400).map(|place| if place % 72 == 0 { b'R' } else { [0, 1, 0xff][next() as usize % 3] }).collect(),
            _ => {
                let mut octets = sample[8000..].to_vec();
                for _ in 0..=next() % 8 {
                    let place = next() as usize % octets.len();
                    octets[place] = next() as u8;
                }
                octets
            }
        };
        fuzz_segment(&octets);
    }
}
