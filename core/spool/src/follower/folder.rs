//! A writer's folder: is it alive, which segments are there, which are closed, how far may they be read?
//!
//! A segment is closed when its lock is free, or when the writer has rung for a later one. Before that, all
//! segments are known and their seals are read: one of them may say that this one is good only so far.

use std::collections::HashMap;
use std::io;

use super::{Follower, Segment, enqueue};
use crate::ack::{self, Recipients, What};
use crate::segment::{
    BadHeader, HEADER_COPIES, Key, Kind, RECORD_HEADER_OCTETS, RECORDS_START, SEGMENT_HEADER_OCTETS, Scan,
    SegmentHeader, Window, WriterId, decode_seal,
};
use crate::storage::File;
use crate::{Notice, names};

impl Follower {
    /// Looks at a writer's folder: is it alive, are there new segments, which ones are closed?
    pub(super) fn refresh(&mut self, writer: WriterId) {
        let folder = writer.to_string();
        let followed = self.writers.entry(writer).or_default();
        let mut gone = false;
        if followed.guard.is_none() {
            match self.disk.lock_dir(&folder) {
                Ok(guard) => {
                    gone = guard.is_some();
                    followed.guard = guard;
                }
                Err(error) => return self.trouble(format!("{folder}: cannot be locked"), error),
            }
        }
        if !self.load_segments(writer) {
            return;
        }
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        let rung = followed.bell.map_or(0, |bell| bell.segment);
        let mut closing = Vec::new();
        for (&sequence, segment) in &mut followed.segments {
            if segment.closed {
                // Its file could not be opened last time, perhaps.
                enqueue(&mut self.work, writer, sequence, segment);
                continue;
            }
            let file = self.disk.open(&names::segment(writer, sequence));
            if sequence < rung || file.and_then(|file| file.try_lock()).unwrap_or(false) {
                closing.push(sequence);
            }
        }
        if gone && !followed.segments.is_empty() {
            self.watch.notice(&Notice::WriterGone { writer, segments: followed.segments.len() });
        }
        if closing.is_empty() {
            return;
        }
        // A seal is durable before the sealed segment is given up; so now, and not before, it can be seen.
        if !self.load_segments(writer) {
            return;
        }
        if !self.load_seals(writer) {
            return;
        }
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        for sequence in closing {
            let sealed = followed.seals.get(&sequence).copied();
            let Some(segment) = followed.segments.get_mut(&sequence) else { continue };
            let octets = self.disk.open(&names::segment(writer, sequence)).and_then(|file| file.octets());
            match octets {
                Ok(octets) => segment.limit = octets.min(sealed.unwrap_or(u64::MAX)),
                // The next look at the folder tries again.
                Err(error) => {
                    let what = names::segment(writer, sequence);
                    self.watch.notice(&Notice::Trouble { what, error });
                    continue;
                }
            }
            segment.closed = true;
            enqueue(&mut self.work, writer, sequence, segment);
        }
    }

    /// Reads the headers of segments that are not known yet; false when something could not be read.
    fn load_segments(&mut self, writer: WriterId) -> bool {
        let folder = writer.to_string();
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.complete = false;
        }
        let names = match self.disk.list(&folder) {
            Ok(names) => names,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.trouble(format!("{folder}: cannot be listed"), error);
                }
                return false;
            }
        };
        let Some(followed) = self.writers.get(&writer) else { return false };
        let new: Vec<u64> = names
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .filter(|sequence| !followed.segments.contains_key(sequence) && !followed.ignored.contains(sequence))
            .collect();
        let mut complete = true;
        for sequence in new {
            match self.load_segment(writer, sequence, &names) {
                Ok(Some(segment)) => {
                    if let Some(followed) = self.writers.get_mut(&writer) {
                        followed.segments.insert(sequence, segment);
                    }
                }
                Ok(None) => {
                    if let Some(followed) = self.writers.get_mut(&writer) {
                        followed.ignored.insert(sequence);
                    }
                }
                // It may hold a seal: nothing is closed before it could be read.
                Err(error) => {
                    self.trouble(names::segment(writer, sequence), error);
                    complete = false;
                }
            }
        }
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.complete = complete;
        }
        complete
    }

    /// `None`: it is not for us, and has been dealt with.
    fn load_segment(&mut self, writer: WriterId, sequence: u64, names: &[String]) -> io::Result<Option<Segment>> {
        let path = names::segment(writer, sequence);
        let file = self.disk.open(&path)?;
        let mut header = Err(BadHeader::Damaged);
        for copy in HEADER_COPIES {
            let mut octets = [0; SEGMENT_HEADER_OCTETS];
            file.read_at(copy, &mut octets)?;
            header = SegmentHeader::decode(&octets);
            if header.is_ok_and(|header| (header.writer, header.sequence) != (writer, sequence)) {
                header = Err(BadHeader::Damaged);
            }
            if header != Err(BadHeader::Damaged) {
                break;
            }
        }
        let header = match header {
            Ok(header) => header,
            Err(BadHeader::Version(version)) => {
                if let Some(followed) = self.writers.get_mut(&writer) {
                    followed.later = true;
                }
                self.watch.notice(&Notice::LaterVersion { file: path, version });
                return Ok(None);
            }
            Err(BadHeader::Damaged) => {
                drop(file);
                self.move_segment(writer, sequence, "no segment header in it can be read")?;
                return Ok(None);
            }
        };
        let mut segment = Segment {
            key: Key::new(&header.salt),
            file: None,
            scan: Scan::default(),
            limit: 0,
            closed: false,
            in_work: false,
            read_out: false,
            seals_known: false,
            seals: Vec::new(),
            keep: false,
            settled: HashMap::new(),
            told: HashMap::new(),
            open: HashMap::new(),
            acks: None,
            acks_generation: 0,
            unlogged: Vec::new(),
            bodies_done: Vec::new(),
        };
        for (of, generation) in names.iter().filter_map(|name| names::parse_acks(name)) {
            if of == sequence {
                segment.acks_generation = segment.acks_generation.max(generation + 1);
                let log = read_whole(&*self.disk.open(&names::acks(writer, sequence, generation))?)?;
                for ack in ack::read(&log) {
                    if ack.what == What::Told {
                        segment.told.entry(ack.offset).or_default().add(&ack.whom);
                        continue;
                    }
                    let settled = segment.settled.entry(ack.offset).or_insert_with(|| Some(Recipients::default()));
                    if let Some(some) = settled {
                        some.add(&ack.whom);
                        if some.count() >= ack.recipients {
                            *settled = None;
                        }
                    }
                }
            }
        }
        Ok(Some(segment))
    }

    /// Reads the seals at the heads of a writer's segments; false when one cannot be opened.
    fn load_seals(&mut self, writer: WriterId) -> bool {
        let Some(followed) = self.writers.get_mut(&writer) else { return false };
        for (&sequence, segment) in followed.segments.iter_mut().filter(|(_, segment)| !segment.seals_known) {
            let file = match self.disk.open(&names::segment(writer, sequence)) {
                Ok(file) => file,
                Err(error) => {
                    self.trouble(names::segment(writer, sequence), error);
                    return false;
                }
            };
            let mut window = Window::default();
            let mut at = RECORDS_START;
            loop {
                let limit = at + RECORD_HEADER_OCTETS as u64 + 16;
                let record = window.at(&*file, at, limit - at, limit);
                let Some(header) = segment.key.decode(record, at).filter(|header| header.kind == Kind::Seal) else {
                    break;
                };
                let payload = record.get(RECORD_HEADER_OCTETS..).unwrap_or_default();
                if segment.key.sum(payload) != header.payload_sum {
                    break;
                }
                if let Some((sealed, good)) = decode_seal(payload) {
                    followed.seals.insert(sealed, good);
                    segment.seals.push(sealed);
                }
                at = header.end();
                window.clear();
            }
            // Seals come first; with a record there can be no more of them.
            segment.seals_known = segment.closed || !segment.seals.is_empty();
        }
        true
    }
}

fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut octets = vec![0; usize::try_from(file.octets()?).unwrap_or(0)];
    let read = file.read_at(0, &mut octets)?;
    octets.truncate(read);
    Ok(octets)
}
