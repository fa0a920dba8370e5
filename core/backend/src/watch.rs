//! Notices that the users file changed, checks the new content, and only then puts it in service.
//!
//! A rename brings a whole file at once, so a new inode is read at once. A file written in place may be
//! half there: it is read when it looks the same twice in a row. A bad file changes nothing but the log.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::directory::Directory;
use crate::event::{Event, Report};
use crate::users::{BadUsers, Options, Users, WhyBad};

/// How often the file is looked at.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

/// What [`Watch::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing new.
    Same,
    /// It is being written in place.
    Unsettled,
    /// New content is in service.
    Replaced,
    /// New content was refused.
    Refused,
}

/// Watches one file.
pub struct Watch {
    path: PathBuf,
    options: Arc<Options>,
    report: Report,
    seen: Option<Stamp>,
    unsettled: Option<Stamp>,
    complaint: Option<String>,
}

impl Watch {
    /// Reads the file for the first time.
    pub fn open(path: PathBuf, options: Arc<Options>, report: Report) -> Result<(Self, Users), BadUsers> {
        let mut watch = Self { path, options, report, seen: None, unsettled: None, complaint: None };
        watch.seen = watch.stamp().ok();
        let users = Users::load(&watch.path, &watch.options)?;
        watch.warn_if_loose();
        Ok((watch, users))
    }

    /// Looks once; replaces the directory's users if there is something new and good.
    pub fn check(&mut self, directory: &Directory) -> Found {
        let stamp = match self.stamp() {
            Ok(stamp) => stamp,
            Err(error) => {
                // What comes next is a new file, even if it gets the old one's inode number.
                self.seen = None;
                self.complain(BadUsers { path: self.path.clone(), why: WhyBad::Io(error) });
                return Found::Refused;
            }
        };
        if self.seen == Some(stamp) {
            self.unsettled = None;
            return Found::Same;
        }
        let in_place = self.seen.is_some_and(|seen| (seen.device, seen.inode) == (stamp.device, stamp.inode));
        if in_place && self.unsettled != Some(stamp) {
            self.unsettled = Some(stamp);
            return Found::Unsettled;
        }
        let started = Instant::now();
        match Users::load(&self.path, &self.options) {
            Ok(users) => {
                // The stamp from before reading: what changed meanwhile is seen the next time.
                (self.seen, self.unsettled, self.complaint) = (Some(stamp), None, None);
                let (count, aliases) = (users.len(), users.aliases());
                let epoch = directory.replace(users);
                (self.report)(&Event::Loaded {
                    path: self.path.clone(),
                    users: count,
                    aliases,
                    ms: started.elapsed().as_millis() as u64,
                    epoch,
                });
                self.warn_if_loose();
                Found::Replaced
            }
            Err(bad) => {
                // Trouble with reading may pass without a change of the file; bad content does not.
                if !matches!(bad.why, WhyBad::Io(_)) {
                    self.seen = Some(stamp);
                }
                self.complain(bad);
                Found::Refused
            }
        }
    }

    fn stamp(&self) -> std::io::Result<Stamp> {
        let facts = fs::metadata(&self.path)?;
        Ok(Stamp {
            device: facts.dev(),
            inode: facts.ino(),
            size: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
            mode: facts.mode(),
        })
    }

    /// Says each thing once, not once a second.
    fn complain(&mut self, bad: BadUsers) {
        let text = bad.to_string();
        if self.complaint.as_ref() != Some(&text) {
            (self.report)(&Event::ReloadFailed(bad));
            self.complaint = Some(text);
        }
    }

    fn warn_if_loose(&self) {
        let mode = self.seen.map_or(0, |seen| seen.mode & 0o777);
        if mode & 0o007 != 0 {
            (self.report)(&Event::LooseMode { path: self.path.clone(), mode });
        }
    }
}
