//! The acknowledgement log: what delivery has done with the messages of one segment.
//!
//! ```text
//! 0    "PRACKLG" version │ salt │ checksum │ zeros                          32 octets
//! 32   mark (4 octets of the salt) │ checksum │ record's offset in the segment │ recipients │ kind │ bitmap
//! ```
//!
//! Behind the last entry there may be zeros. An entry adds recipients that need no further delivery, or whose sender knows
//! that they wait; entries add up, so reading one twice does
//! no harm. A file is written by one life of the delivery process only: the next life begins a new
//! generation beside it. So a torn tail is never appended to.

use std::io;

use crate::bug::{Bug, planted};
use crate::storage::{Disk, File};

const MAGIC: [u8; 8] = *b"PRACKLG\x01";
const HEADER_OCTETS: usize = 32;
const ENTRY_HEAD_OCTETS: usize = 24;
const BORDER: usize = 8;
/// Zeros are written ahead up to multiples of this: a sync that changes no length costs the file system no journal.
const FILL_OCTETS: u64 = 32 << 10;
/// What an entry says of its recipients; a later program may say more, which is stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum What {
    /// They need nothing more.
    Settled = 1,
    /// Their sender was told that they have to wait.
    Told = 2,
}

/// More recipients than any session takes; bounds what a damaged count can claim.
const RECIPIENTS_MAX: u32 = 1 << 20;

/// A set of recipients, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recipients(Vec<u8>);

impl Recipients {
    pub(crate) fn insert(&mut self, index: u32) {
        let place = index as usize / 8;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        if let Some(bits) = self.0.get_mut(place) {
            *bits |= 1 << (index % 8);
        }
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.0.get(index as usize / 8).is_some_and(|bits| bits & (1 << (index % 8)) != 0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(bits, more)| *bits |= more);
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Where the message's record is in its segment.
    pub(crate) offset: u64,
    /// How many recipients the message has; a message without any counts as one.
    pub(crate) recipients: u32,
    /// What happened.
    pub(crate) what: What,
    /// To these.
    pub(crate) whom: Recipients,
}

impl Ack {
    fn encode(&self, salt: &[u8; 16], to: &mut Vec<u8>) {
        let start = to.len();
        to.extend_from_slice(&salt[..4]);
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(&self.offset.to_le_bytes());
        to.extend_from_slice(&self.recipients.to_le_bytes());
        to.extend_from_slice(&[self.what as u8, 0, 0, 0]);
        to.extend_from_slice(&self.whom.0);
        to.resize(start + entry_octets(self.recipients), 0);
        let sum = sum(salt, &to[start + 8..]).to_le_bytes();
        to[start + 4..start + 8].copy_from_slice(&sum);
    }
}

fn entry_octets(recipients: u32) -> usize {
    (ENTRY_HEAD_OCTETS + (recipients as usize).div_ceil(8)).next_multiple_of(BORDER)
}

fn sum(salt: &[u8; 16], octets: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(salt), octets)
}

/// All good entries of a log; what is torn or damaged is stepped over.
pub(crate) fn read(octets: &[u8]) -> Vec<Ack> {
    let mut acks = Vec::new();
    let Some((header, _)) = octets.split_first_chunk::<HEADER_OCTETS>() else { return acks };
    let mut salt = [0; 16];
    salt.copy_from_slice(&header[8..24]);
    if header[..8] != MAGIC || header[24..28] != crc32c::crc32c(&header[..24]).to_le_bytes() {
        return acks;
    }
    let mut place = HEADER_OCTETS;
    while let Some(head) = octets.get(place..place + ENTRY_HEAD_OCTETS) {
        let number = |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
        let recipients = number(16);
        let entry = (head[..4] == salt[..4] && recipients <= RECIPIENTS_MAX)
            .then(|| octets.get(place..place + entry_octets(recipients)))
            .flatten()
            .filter(|entry| sum(&salt, &entry[8..]) == number(4));
        let Some(entry) = entry else {
            place += BORDER;
            continue;
        };
        let what = [What::Settled, What::Told].into_iter().find(|what| *what as u8 == head[20]);
        if let Some(what) = what {
            let bitmap = &entry[ENTRY_HEAD_OCTETS..ENTRY_HEAD_OCTETS + (recipients as usize).div_ceil(8)];
            let offset = u64::from(number(8)) | (u64::from(number(12)) << 32);
            acks.push(Ack { offset, recipients, what, whom: Recipients(bitmap.to_vec()) });
        }
        place += entry.len();
    }
    acks
}

/// A log that this process writes.
pub(crate) struct AckFile {
    file: Box<dyn File>,
    salt: [u8; 16],
    end: u64,
    filled: u64,
}

impl AckFile {
    /// Makes the file; the name is durable when this returns, the header with the first entries.
    pub(crate) fn create(disk: &dyn Disk, folder: &str, path: &str) -> io::Result<Self> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let mut header = [0; HEADER_OCTETS];
        header[..8].copy_from_slice(&MAGIC);
        header[8..24].copy_from_slice(&salt);
        let sum = crc32c::crc32c(&header[..24]).to_le_bytes();
        header[24..28].copy_from_slice(&sum);
        let file = disk.create(path)?;
        file.write_at(0, &header)?;
        disk.sync_dir(folder)?;
        Ok(Self { file, salt, end: HEADER_OCTETS as u64, filled: HEADER_OCTETS as u64 })
    }

    /// Appends entries. After an error the file must not be used again.
    pub(crate) fn append(&mut self, acks: &[Ack]) -> io::Result<()> {
        if acks.is_empty() {
            return Ok(());
        }
        let mut octets = Vec::with_capacity(acks.len() * 32);
        acks.iter().for_each(|ack| ack.encode(&self.salt, &mut octets));
        let at = self.end;
        self.end += octets.len() as u64;
        if self.end > self.filled {
            self.filled = self.end.next_multiple_of(FILL_OCTETS);
            octets.resize((self.filled - at) as usize, 0);
        }
        self.file.write_at(at, &octets)
    }

    /// Makes durable what was appended. After an error the file must not be used again.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if planted(Bug::NoAckSync) { Ok(()) } else { self.file.sync() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<u8>, Vec<Ack>) {
        let acks: Vec<Ack> = [(8192, 1), (9000, 3), (9096, 1000)]
            .map(|(offset, recipients)| {
                let mut whom = Recipients::default();
                whom.insert(recipients - 1);
                Ack { offset, recipients, what: if recipients == 3 { What::Told } else { What::Settled }, whom }
            })
            .into();
        let disk = crate::sim::SimDisk::new();
        let mut log = AckFile::create(&disk, "", "x.ack").unwrap();
        log.append(&acks[..1]).unwrap();
        log.append(&acks[1..]).unwrap();
        let file = disk.open("x.ack").unwrap();
        let mut octets = vec![0; file.octets().unwrap() as usize];
        file.read_at(0, &mut octets).unwrap();
        (octets, acks)
    }

    fn same(a: &Ack, b: &Ack) -> bool {
        let members = |ack: &Ack| (0..ack.recipients).filter(|&index| ack.whom.contains(index)).collect::<Vec<_>>();
        (a.offset, a.recipients, a.what) == (b.offset, b.recipients, b.what) && members(a) == members(b)
    }

    /// The format is a promise to later versions.
    #[test]
    fn golden_entry() {
        let mut whom = Recipients::default();
        [0, 9].into_iter().for_each(|recipient| whom.insert(recipient));
        let mut octets = Vec::new();
        Ack { offset: 0x1234, recipients: 10, what: What::Settled, whom }.encode(b"0123456789abcdef", &mut octets);
        let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, "30313233d16b1ef834120000000000000a000000010000000102000000000000");
    }

    #[test]
    fn entries_come_back() {
        let (octets, acks) = sample();
        let found = read(&octets);
        assert_eq!(found.len(), acks.len());
        assert!(found.iter().zip(&acks).all(|(a, b)| same(a, b)));
    }

    #[test]
    fn damage_and_cuts_never_invent_an_entry_and_cost_at_most_the_one_hit() {
        let (octets, acks) = sample();
        for place in 0..octets.len() {
            let mut bad = octets.clone();
            bad[place] ^= 0x41;
            let found = read(&bad);
            assert!(found.iter().all(|ack| acks.iter().any(|good| same(ack, good))), "octet {place}");
            // The file's own header has eight octets of padding at its end.
            let least = if place < HEADER_OCTETS { 0 } else { acks.len() - 1 };
            assert!(found.len() >= least, "octet {place}: {} entries", found.len());
            let found = read(&octets[..place]);
            assert!(found.iter().zip(&acks).all(|(a, b)| same(a, b)), "cut at {place}");
        }
    }
}
