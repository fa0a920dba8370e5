//! Messages that are written at the same time become durable together.
//!
//! ```text
//! thread ─ writes tmp/… ─┐
//! thread ─ writes tmp/… ─┼─► waiting ─► one of them: sync each file │ move each to new/ │ sync each folder once
//! thread ─ writes tmp/… ─┘                └─► and tells each how it went; meanwhile the next ones gather
//! ```
//!
//! Nothing is promised earlier than if each had synced for itself: a message is in its mailbox when its own file,
//! its own move and its folder are on disk. But the first sync of a group makes the file system write its journal
//! once for all of them, and finds little left to do for the rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Advice, CWD, RenameFlags};
use rustix::io::Errno;

use super::named;

/// A file in `tmp/` that is written and not durable.
pub(super) struct Fresh {
    pub(super) file: File,
    pub(super) tmp: PathBuf,
    pub(super) new: PathBuf,
}

/// Who waits for the next sync.
#[derive(Default)]
pub(super) struct Together {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Piece>,
    /// Somebody syncs.
    busy: bool,
}

struct Piece {
    /// `None`: the file has its name already, and only the folder is to be synced.
    fresh: Option<Fresh>,
    folder: PathBuf,
    turn: Arc<Turn>,
}

/// Of one thread that waits.
#[derive(Default)]
struct Turn {
    changed: Condvar,
    result: Mutex<Option<io::Result<()>>>,
}

impl Together {
    /// Returns when the file is in `new/`, durably. On failure nothing of it remains in `tmp/`.
    pub(super) fn settle(&self, fresh: Option<Fresh>, folder: PathBuf) -> io::Result<()> {
        if let Some(fresh) = &fresh {
            // Begins to write without waiting, so that who syncs finds the disk at work, and one journal entry for
            // all: several times as fast here. Only advice: what it says of keeping pages in memory does not touch
            // those that are being written.
            let _ = rustix::fs::fadvise(&fresh.file, 0, None, Advice::DontNeed);
        }
        let turn = Arc::new(Turn::default());
        let mut state = self.state.lock();
        state.waiting.push(Piece { fresh, folder, turn: turn.clone() });
        loop {
            if let Some(result) = turn.result.lock().take() {
                // Those who came meanwhile need somebody who syncs for them.
                if !state.busy
                    && let Some(next) = state.waiting.first()
                {
                    next.turn.changed.notify_one();
                }
                return result;
            }
            if state.busy {
                turn.changed.wait(&mut state);
                continue;
            }
            state.busy = true;
            let batch = mem::take(&mut state.waiting);
            drop(state);
            let ends = sync(batch);
            state = self.state.lock();
            state.busy = false;
            // Under the lock: who waits has looked for its result before.
            for (turn, end) in ends {
                *turn.result.lock() = Some(end);
                turn.changed.notify_one();
            }
        }
    }
}

/// Makes all durable; how it went for each.
fn sync(batch: Vec<Piece>) -> Vec<(Arc<Turn>, io::Result<()>)> {
    let mut ends = Vec::with_capacity(batch.len());
    let mut folders: BTreeMap<PathBuf, Vec<Arc<Turn>>> = BTreeMap::new();
    // Before any name is changed: the first sync writes the journal for all of them.
    let synced: Vec<io::Result<()>> =
        batch.iter().map(|piece| piece.fresh.as_ref().map_or(Ok(()), |fresh| fresh.file.sync_all())).collect();
    for (Piece { fresh, folder, turn }, synced) in batch.into_iter().zip(synced) {
        let moved = match &fresh {
            Some(Fresh { tmp, new, .. }) => {
                let moved = named(tmp, synced).and_then(|()| named(new, rename_new(tmp, new)));
                if moved.is_err() {
                    let _ = std::fs::remove_file(tmp);
                }
                moved
            }
            None => Ok(()),
        };
        match moved {
            Ok(()) => folders.entry(folder).or_default().push(turn),
            Err(error) => ends.push((turn, Err(error))),
        }
    }
    for (folder, turns) in folders {
        let synced = named(&folder, File::open(&folder).and_then(|folder| folder.sync_all()));
        ends.extend(turns.into_iter().map(|turn| (turn, again(&synced))));
    }
    ends
}

/// The same end for somebody else.
fn again(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// Never over another file.
fn rename_new(tmp: &Path, new: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, tmp, CWD, new, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => std::fs::remove_file(tmp),
        // File systems without that flag have links.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(tmp, new)?;
            std::fs::remove_file(tmp)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn fresh(maildir: &Path, name: &str) -> Fresh {
        let tmp = maildir.join("tmp").join(name);
        let mut file = File::create(&tmp).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        Fresh { file, tmp, new: maildir.join("new").join(name) }
    }

    /// Many threads, several mailboxes: each returns once, with its file in place and nothing left in `tmp/`.
    #[test]
    fn each_is_told_of_its_own_end() {
        let root = tempfile::tempdir().unwrap();
        let boxes: Vec<PathBuf> = (0..3).map(|number| root.path().join(number.to_string())).collect();
        for maildir in &boxes {
            ["tmp", "new"].iter().for_each(|name| std::fs::create_dir_all(maildir.join(name)).unwrap());
        }
        let together = Together::default();
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (together, boxes) = (&together, &boxes);
                scope.spawn(move || {
                    for number in 0..20 {
                        let (maildir, name) = (&boxes[(thread + number) % 3], format!("{thread}-{number}"));
                        let fresh = fresh(maildir, &name);
                        let new = fresh.new.clone();
                        match number % 10 {
                            // Its folder is gone: its own trouble, nobody else's.
                            7 => {
                                let lost = Fresh { new: root_of(maildir).join("nowhere/new/x"), ..fresh };
                                let tmp = lost.tmp.clone();
                                assert!(together.settle(Some(lost), maildir.join("new")).is_err());
                                assert!(!tmp.exists());
                            }
                            8 => {
                                let missing = maildir.join("nowhere");
                                assert!(together.settle(Some(fresh), missing).is_err());
                            }
                            9 => together.settle(None, maildir.join("new")).unwrap(),
                            _ => {
                                together.settle(Some(fresh), maildir.join("new")).unwrap();
                                assert_eq!(std::fs::read_to_string(new).unwrap(), name);
                            }
                        }
                    }
                });
            }
        });
        let state = together.state.lock();
        assert!(state.waiting.is_empty() && !state.busy);
    }

    fn root_of(maildir: &Path) -> &Path {
        maildir.parent().unwrap()
    }
}
