//! What cannot be read or handed on goes to `corrupt/`, where the operator finds it.

use std::io;

use smtp::id::QueueId;

use super::Follower;
use crate::segment::{RECORD_HEADER_OCTETS, Window, WriterId};
use crate::storage::File;
use crate::{MessageKey, Notice, names};

impl Follower {
    /// Copies a message that cannot be handed on to `corrupt/`, its body file too, and settles it.
    pub fn set_aside(&mut self, key: MessageKey) {
        let Some(segment) = self.segment_mut(key.writer, key.segment) else { return };
        let Some(progress) = segment.open.get_mut(&key.offset) else { return };
        // Not through `bodies_done`: the body is moved, not removed.
        let large = progress.large.take();
        let opened = self.disk.open(&names::segment(key.writer, key.segment));
        let Ok(file) = opened else { return };
        let mut head = [0; RECORD_HEADER_OCTETS];
        let read = file.read_at(key.offset, &mut head).unwrap_or(0);
        let header = self
            .segment_mut(key.writer, key.segment)
            .and_then(|segment| head.get(..read).and_then(|head| segment.key.decode(head, key.offset)));
        let Some(header) = header else { return };
        self.keep_copy(key.writer, key.segment, (key.offset, header.end()), Some(header.id), &*file);
        if let Some(id) = large {
            self.move_body(key.writer, id, "its octets are not those that were accepted");
        }
        self.acknowledge(key, 1, std::iter::once(0));
        // However many recipients it has: it is gone from here.
        if let Some(segment) = self.segment_mut(key.writer, key.segment) {
            segment.open.remove(&key.offset);
        }
    }

    pub(super) fn damage(&mut self, writer: WriterId, sequence: u64, range: (u64, u64), id: Option<QueueId>) {
        if let Some(followed) = self.writers.get_mut(&writer) {
            followed.damaged = true;
        }
        match self.disk.open(&names::segment(writer, sequence)) {
            Ok(file) => self.keep_copy(writer, sequence, range, id, &*file),
            Err(error) => {
                self.trouble(names::segment(writer, sequence), error);
                if let Some(segment) = self.segment_mut(writer, sequence) {
                    segment.keep = true;
                }
            }
        }
    }

    /// Copies a part of a segment to `corrupt/`, unless an earlier life has.
    fn keep_copy(&mut self, writer: WriterId, sequence: u64, range: (u64, u64), id: Option<QueueId>, file: &dyn File) {
        let (from, to) = range;
        let kept = format!("{}/{writer}-{sequence:010}-{from:012}.part", names::CORRUPT);
        if self.disk.open(&kept).is_ok() {
            return;
        }
        match self.copy(file, from, to, &kept) {
            Ok(()) => self.watch.notice(&Notice::Damaged { writer, segment: sequence, from, to, id, kept }),
            Err(error) => {
                self.trouble(kept, error);
                if let Some(segment) = self.segment_mut(writer, sequence) {
                    segment.keep = true;
                }
            }
        }
    }

    fn copy(&self, file: &dyn File, from: u64, to: u64, kept: &str) -> io::Result<()> {
        self.make_corrupt()?;
        let unfinished = format!("{kept}.new");
        let _ = self.disk.remove(&unfinished);
        let copy = self.disk.create(&unfinished)?;
        let mut window = Window::default();
        let mut at = from;
        while at < to {
            let part = window.at(file, at, 1 << 20, to);
            if part.is_empty() {
                break;
            }
            copy.write_at(at - from, part)?;
            at += part.len() as u64;
        }
        copy.sync()?;
        self.disk.rename(&unfinished, kept)?;
        self.disk.sync_dir(names::CORRUPT)
    }

    fn make_corrupt(&self) -> io::Result<()> {
        match self.disk.make_dir(names::CORRUPT) {
            Ok(()) => self.disk.sync_dir(""),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn move_segment(&self, writer: WriterId, sequence: u64, why: &'static str) -> io::Result<()> {
        let file = names::segment(writer, sequence);
        self.set_file_aside(file, format!("{}/{writer}-{sequence:010}.seg", names::CORRUPT), why)
    }

    pub(super) fn move_body(&self, writer: WriterId, id: QueueId, why: &'static str) {
        let file = names::body(writer, id);
        match self.set_file_aside(file.clone(), format!("{}/{id}.body", names::CORRUPT), why) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.trouble(file, error),
            _ => {}
        }
    }

    fn set_file_aside(&self, file: String, kept: String, why: &'static str) -> io::Result<()> {
        self.make_corrupt()?;
        self.disk.rename(&file, &kept)?;
        self.disk.sync_dir(names::CORRUPT)?;
        self.watch.notice(&Notice::SetAside { file, kept, why });
        Ok(())
    }
}
