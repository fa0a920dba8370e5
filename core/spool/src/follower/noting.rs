//! What delivery has done: into the log of acknowledgements, and to the disk.

use std::collections::BTreeSet;
use std::{io, mem};

use super::Follower;
use crate::ack::{Ack, AckFile, Recipients, What};
use crate::bug::{Bug, planted};
use crate::segment::WriterId;
use crate::{MessageKey, names};

/// How far entries go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Into the log: the end of this process does not undo them.
    File,
    /// The end of the machine does not, either.
    Disk,
}

impl Follower {
    /// These recipients (of so many) need nothing more. It is in the log after the next [`Follower::sync`].
    pub fn acknowledge(&mut self, key: MessageKey, recipients: u32, settled: impl Iterator<Item = u32>) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        let recipients = recipients.max(1);
        let mut now = Recipients::default();
        settled.filter(|&index| index < recipients).for_each(|index| now.insert(index));
        progress.settled.add(&now);
        if progress.settled.count() >= recipients {
            let large = progress.large;
            segment.open.remove(&key.offset);
            segment.bodies_done.extend(large);
        }
        segment.unlogged.push(Ack { offset: key.offset, recipients, what: What::Settled, whom: now });
        self.unlogged.insert((key.writer, key.segment));
    }

    /// The sender was told that these recipients (of so many) have to wait. It is in the log after the next
    /// [`Follower::sync`].
    pub fn note_told(&mut self, key: MessageKey, recipients: u32, told: impl Iterator<Item = u32>) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        let mut now = Recipients::default();
        told.filter(|&index| index < recipients).for_each(|index| now.insert(index));
        progress.told.add(&now);
        segment.unlogged.push(Ack { offset: key.offset, recipients, what: What::Told, whom: now });
        self.unlogged.insert((key.writer, key.segment));
    }

    /// Makes the acknowledgements durable and frees what is done with. Entries that could not be written are
    /// tried again next time.
    pub fn sync(&mut self) {
        let mut segments = mem::take(&mut self.unsynced);
        segments.append(&mut self.unlogged);
        self.log_all(segments, Reach::Disk);
    }

    /// The same without waiting for the disk, for messages that may be handed on twice: what the end of this
    /// process leaves alone may be undone by the end of the machine, until the next [`Follower::sync`].
    pub fn write(&mut self) {
        let segments = mem::take(&mut self.unlogged);
        self.log_all(segments, Reach::File);
    }

    fn log_all(&mut self, segments: BTreeSet<(WriterId, u64)>, reach: Reach) {
        for (writer, sequence) in segments {
            // A segment that goes as a whole needs no log.
            self.free(writer);
            if let Err(error) = self.log(writer, sequence, reach) {
                self.trouble(format!("{}: acknowledgements", names::segment(writer, sequence)), error);
                self.unlogged.insert((writer, sequence));
            }
        }
    }

    /// Entries that [`Follower::sync`] or [`Follower::write`] have still to write.
    pub fn has_unlogged(&self) -> bool {
        !self.unlogged.is_empty()
    }

    fn log(&mut self, writer: WriterId, sequence: u64, reach: Reach) -> io::Result<()> {
        let disk = self.disk.clone();
        let Some(segment) = self.segment_mut(writer, sequence) else { return Ok(()) };
        if segment.acks.is_none() && segment.unlogged.is_empty() {
            // What was in its log failed with it.
            return Ok(());
        }
        if segment.acks.is_none() {
            let path = names::acks(writer, sequence, segment.acks_generation);
            segment.acks_generation += 1;
            segment.acks = Some(AckFile::create(&*disk, &writer.to_string(), &path)?);
        }
        // A body may go only when its message cannot come back without it.
        let body_goes = !segment.bodies_done.is_empty() && !planted(Bug::BodyFirst);
        let reach = if body_goes { Reach::Disk } else { reach };
        if let Some(acks) = &mut segment.acks
            && let Err(error) = acks.append(&segment.unlogged).and_then(|()| match reach {
                Reach::File => Ok(()),
                Reach::Disk => acks.sync(),
            })
        {
            // Final for this file; what it had before is durable, or may come twice. The rest goes to the next one.
            segment.acks = None;
            return Err(error);
        }
        segment.unlogged.clear();
        let bodies = mem::take(&mut segment.bodies_done);
        match reach {
            Reach::File => self.unsynced.insert((writer, sequence)),
            Reach::Disk => self.unsynced.remove(&(writer, sequence)),
        };
        for id in bodies {
            if let Err(error) = disk.remove(&names::body(writer, id)) {
                self.trouble(names::body(writer, id), error);
            }
        }
        Ok(())
    }
}
