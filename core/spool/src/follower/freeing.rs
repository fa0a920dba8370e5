//! What is done with goes: whole segments, bodies that nobody names, the folders of writers that are gone.

use std::collections::BTreeSet;
use std::io;

use smtp::id::QueueId;

use super::{Followed, Follower};
use crate::bug::{Bug, planted};
use crate::names;
use crate::segment::WriterId;

impl Follower {
    /// Removes what is done with.
    pub(super) fn free(&mut self, writer: WriterId) {
        // Freeing a sealed segment lets the one with its seal go.
        while let Some(sequence) = self.writers.get(&writer).and_then(Followed::freeable) {
            if let Err(error) = self.free_segment(writer, sequence) {
                self.trouble(names::segment(writer, sequence), error);
                break;
            }
        }
        let Some(followed) = self.writers.get(&writer) else { return };
        let known = followed.complete && followed.segments.values().all(|segment| segment.read_out);
        if followed.guard.is_some() && known {
            if !followed.swept {
                self.sweep_bodies(writer);
            }
            if self.writers.get(&writer).is_some_and(|followed| followed.segments.is_empty()) {
                self.free_writer(writer);
            }
        }
    }

    fn free_segment(&mut self, writer: WriterId, sequence: u64) -> io::Result<()> {
        let disk = self.disk.clone();
        let folder = writer.to_string();
        let keep = self.segment_mut(writer, sequence).is_some_and(|segment| segment.keep);
        if planted(Bug::AcksFirst) {
            for generation in 0..self.segment_mut(writer, sequence).map_or(0, |segment| segment.acks_generation) {
                disk.remove(&names::acks(writer, sequence, generation))?;
            }
            disk.sync_dir(&folder)?;
        }
        if keep {
            self.move_segment(writer, sequence, "parts of it could not be read")?;
        } else {
            disk.remove(&names::segment(writer, sequence))?;
        }
        // Gone for good before its log: a segment without one would be delivered again.
        disk.sync_dir(&folder)?;
        let Some(followed) = self.writers.get_mut(&writer) else { return Ok(()) };
        followed.ignored.insert(sequence);
        let Some(segment) = followed.segments.remove(&sequence) else { return Ok(()) };
        self.unsynced.remove(&(writer, sequence));
        for generation in 0..segment.acks_generation {
            let _ = disk.remove(&names::acks(writer, sequence, generation));
        }
        for id in segment.bodies_done {
            let _ = disk.remove(&names::body(writer, id));
        }
        Ok(())
    }

    /// Body files of a writer that is gone, for which no record was found: the message was never accepted.
    fn sweep_bodies(&mut self, writer: WriterId) {
        // What an earlier life has set aside counts, too.
        let of_writer = format!("{writer}-");
        let set_aside = match self.disk.list(names::CORRUPT) {
            Ok(names) => names.iter().any(|name| name.starts_with(&of_writer)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // The next look tries again.
            Err(error) => return self.trouble(names::CORRUPT.to_owned(), error),
        };
        let Some(followed) = self.writers.get_mut(&writer) else { return };
        followed.swept = true;
        if followed.later {
            return;
        }
        let damaged = followed.damaged || set_aside;
        let open: BTreeSet<QueueId> = followed
            .segments
            .values()
            .flat_map(|segment| {
                segment.open.values().filter_map(|progress| progress.large).chain(segment.bodies_done.iter().copied())
            })
            .collect();
        let names = self.disk.list(&writer.to_string()).unwrap_or_default();
        for id in names.iter().filter_map(|name| names::parse_body(name)).filter(|id| !open.contains(id)) {
            if damaged {
                self.move_body(writer, id, "no record names it, and a record is damaged");
            } else if let Err(error) = self.disk.remove(&names::body(writer, id)) {
                self.trouble(names::body(writer, id), error);
            }
        }
    }

    fn free_writer(&mut self, writer: WriterId) {
        let folder = writer.to_string();
        let mut empty = true;
        for name in self.disk.list(&folder).unwrap_or_default() {
            if name.ends_with(".new") || names::parse_acks(&name).is_some() {
                let _ = self.disk.remove(&format!("{folder}/{name}"));
            } else {
                empty = false;
            }
        }
        if empty && self.disk.remove_dir(&folder).is_ok() {
            self.writers.remove(&writer);
        }
    }
}

impl Followed {
    /// A segment with nothing left in it that nobody needs.
    fn freeable(&self) -> Option<u64> {
        let mut segments = self.segments.iter();
        let done = segments.find(|(_, segment)| {
            segment.closed
                && segment.read_out
                && segment.open.is_empty()
                && segment.seals.iter().all(|sealed| !self.segments.contains_key(sealed))
        });
        done.map(|(&sequence, _)| sequence)
    }
}
