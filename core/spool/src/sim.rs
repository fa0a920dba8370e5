//! A disk in memory that can lose, tear, reorder and fail: for tests of whoever writes through [`Disk`].
//!
//! It keeps what is durable apart from what is only cached. [`SimDisk::crash_at`] stops everything before
//! the n-th operation; [`SimDisk::image`] then makes a disk as it might look after power is back.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::storage::{Disk, File, Guard, Room};

/// The disk; clones are the same one.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What becomes of octets and names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// All of it is lost.
    Lost,
    /// All of it got through.
    Kept,
    /// Each write and each change of a name is lost or kept by chance.
    Subset,
    /// Names got through, octets did not: a rename before the data.
    NamesOnly,
    /// Each sector of so many octets is lost or kept by chance.
    Torn(usize),
    /// Files have their new length, and zeros where the octets are lost.
    ZeroTail,
    /// Files have their new length, and rubbish where the octets are lost.
    GarbageTail,
}

impl Image {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::Kept,
        Self::Subset,
        Self::NamesOnly,
        Self::Torn(512),
        Self::Torn(4096),
        Self::ZeroTail,
        Self::GarbageTail,
    ];
}

/// What a broken program would do; the tests must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Syncs of files succeed and do nothing.
    Files,
    /// Syncs of folders succeed and do nothing.
    Folders,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    /// Path to inode, as programs see it; folders too.
    names: BTreeMap<String, usize>,
    /// What of it is durable.
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    operations: u64,
    crash_at: Option<u64>,
    syncs: u64,
    fail_syncs: Vec<u64>,
    writes: u64,
    fail_writes: Vec<u64>,
    lie: Option<Lie>,
    capacity: Option<u64>,
    unreadable: Option<(String, u64)>,
}

#[derive(Clone, Default)]
struct Inode {
    folder: bool,
    cached: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
    /// Failed syncs so far; every open file hears of each one once.
    errors: u64,
    locked: bool,
}

#[derive(Clone)]
struct Write {
    offset: usize,
    octets: Vec<u8>,
    /// A sync failed while this was dirty: later syncs pass it over.
    doomed: bool,
}

/// A change of names that is not durable; `folders` are those whose sync makes it so.
#[derive(Clone)]
struct Change {
    folders: [String; 2],
    remove: Option<String>,
    insert: Option<(String, usize)>,
}

fn folder_of(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned())
}

fn crashed() -> io::Error {
    io::Error::other("simulated crash")
}

/// As Linux reports a broken disk.
fn broken() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations that change something, so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Before this operation (from 0) the machine stops: it and all later ones fail.
    pub fn crash_at(&self, operation: u64) {
        self.state.lock().crash_at = Some(operation);
    }

    /// The n-th sync of a file (from 0) fails.
    pub fn fail_sync(&self, sync: u64) {
        self.state.lock().fail_syncs.push(sync);
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The n-th write (from 0) fails half-way.
    pub fn fail_write(&self, write: u64) {
        self.state.lock().fail_writes.push(write);
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// From now on something is a lie.
    pub fn lie(&self, lie: Lie) {
        self.state.lock().lie = Some(lie);
    }

    /// Octets that all files together may have; `None`: no bound.
    pub fn limit(&self, octets: Option<u64>) {
        self.state.lock().capacity = octets;
    }

    /// Reading the page of 4096 octets at this offset of a file fails.
    pub fn make_unreadable(&self, path: &str, offset: u64) {
        self.state.lock().unreadable = Some((path.to_owned(), offset / 4096 * 4096));
    }

    /// All files with their content, as programs see them.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.state.lock();
        let files = state.names.iter().filter(|&(_, &inode)| !state.inodes[inode].folder);
        files.map(|(name, &inode)| (name.clone(), state.inodes[inode].cached.clone())).collect()
    }

    /// Puts a file there, durably, whatever was there before; makes its folder.
    pub fn put(&self, path: &str, octets: &[u8]) {
        let state = &mut *self.state.lock();
        let folder = folder_of(path);
        if !folder.is_empty() && !state.names.contains_key(&folder) {
            let inode = state.add(Inode { folder: true, ..Inode::default() });
            state.names.insert(folder.clone(), inode);
            state.durable_names.insert(folder, inode);
        }
        let inode = state.add(Inode { cached: octets.to_vec(), durable: octets.to_vec(), ..Inode::default() });
        state.names.insert(path.to_owned(), inode);
        state.durable_names.insert(path.to_owned(), inode);
    }

    /// The disk as it may be after a crash now; chance is decided by `seed`.
    pub fn image(&self, image: Image, seed: u64) -> Self {
        let state = self.state.lock();
        let mut chance = Chance(seed.wrapping_mul(2).wrapping_add(1));
        let mut after = State { names: state.durable_names.clone(), ..State::default() };
        for change in &state.changes {
            let kept = match image {
                Image::Lost => false,
                Image::Kept | Image::NamesOnly => true,
                _ => chance.flip(),
            };
            if kept {
                change.apply(&mut after.names);
            }
        }
        // A name in a folder that is not there leads nowhere.
        let folders: Vec<String> = after.names.keys().cloned().collect();
        after
            .names
            .retain(|path, _| path.rsplit_once('/').is_none_or(|(folder, _)| folders.iter().any(|f| f == folder)));
        after.inodes = state.inodes.iter().map(|inode| inode.after(image, &mut chance)).collect();
        after.durable_names = after.names.clone();
        Self { state: Arc::new(Mutex::new(after)) }
    }

    fn operate<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.state.lock();
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            return Err(crashed());
        }
        state.operations += 1;
        act(state)
    }

    fn look<T>(&self, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.state.lock();
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            return Err(crashed());
        }
        act(state)
    }
}

impl State {
    fn add(&mut self, inode: Inode) -> usize {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn make(&mut self, path: &str, inode: Inode) -> io::Result<usize> {
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !folder_of(path).is_empty() {
            self.find(&folder_of(path))?;
        }
        let inode = self.add(inode);
        let folder = folder_of(path);
        let folders = [folder.clone(), folder];
        self.change(Change { folders, remove: None, insert: Some((path.to_owned(), inode)) });
        Ok(inode)
    }

    fn used(&self) -> u64 {
        self.names.values().map(|&inode| self.inodes[inode].cached.len() as u64).sum()
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(path) = &self.remove {
            names.remove(path);
        }
        if let Some((path, inode)) = &self.insert {
            names.insert(path.clone(), *inode);
        }
    }
}

impl Inode {
    fn after(&self, image: Image, chance: &mut Chance) -> Self {
        let mut octets = self.durable.clone();
        for write in &self.pending {
            let end = write.offset + write.octets.len();
            let mut put = |from: usize, part: &[u8]| {
                if octets.len() < from + part.len() {
                    octets.resize(from + part.len(), 0);
                }
                octets[from..from + part.len()].copy_from_slice(part);
            };
            match image {
                Image::Lost | Image::NamesOnly => {}
                Image::Kept => put(write.offset, &write.octets),
                Image::Subset if chance.flip() => put(write.offset, &write.octets),
                Image::Subset => {}
                Image::Torn(sector) => {
                    let mut from = write.offset;
                    while from < end {
                        let to = ((from / sector + 1) * sector).min(end);
                        if chance.flip() {
                            put(from, &write.octets[from - write.offset..to - write.offset]);
                        }
                        from = to;
                    }
                }
                Image::ZeroTail | Image::GarbageTail => {
                    if chance.flip() {
                        put(write.offset, &write.octets);
                    } else if end > octets.len() {
                        let old = octets.len();
                        octets.resize(end, 0);
                        if image == Image::GarbageTail {
                            octets[old..].iter_mut().for_each(|octet| *octet = chance.next() as u8);
                        }
                    }
                }
            }
        }
        Self { folder: self.folder, cached: octets.clone(), durable: octets, ..Self::default() }
    }
}

/// xorshift64*: small, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 0
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
    path: String,
    heard: Mutex<u64>,
    holds: Mutex<bool>,
}

impl SimDisk {
    fn file(&self, state: &State, path: &str, inode: usize) -> Box<dyn File> {
        let heard = Mutex::new(state.inodes[inode].errors);
        Box::new(SimFile { disk: self.clone(), inode, path: path.to_owned(), heard, holds: Mutex::new(false) })
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn File>> {
        self.operate(|state| {
            if state.capacity.is_some_and(|capacity| state.used() >= capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let inode = state.make(path, Inode::default())?;
            Ok(self.file(state, path, inode))
        })
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn File>> {
        self.look(|state| {
            let inode = state.find(path)?;
            Ok(self.file(state, path, inode))
        })
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.operate(|state| state.make(path, Inode { folder: true, ..Inode::default() }).map(drop))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.look(|state| {
            if path.is_empty() {
                return Ok(state.names.keys().filter(|name| !name.contains('/')).cloned().collect());
            }
            state.find(path)?;
            let in_folder = |name: &String| name.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
            Ok(state.names.keys().filter_map(in_folder).collect())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operate(|state| {
            let inode = state.find(from)?;
            let folders = [folder_of(from), folder_of(to)];
            state.change(Change { folders, remove: Some(from.to_owned()), insert: Some((to.to_owned(), inode)) });
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.operate(|state| {
            state.find(path)?;
            let folder = folder_of(path);
            state.change(Change { folders: [folder.clone(), folder], remove: Some(path.to_owned()), insert: None });
            Ok(())
        })
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let empty = self.list(path)?.is_empty();
        if empty { self.remove(path) } else { Err(io::ErrorKind::DirectoryNotEmpty.into()) }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.operate(|state| {
            if state.lie == Some(Lie::Folders) {
                return Ok(());
            }
            let State { changes, durable_names, .. } = state;
            changes.retain(|change| {
                let now = change.folders.iter().any(|folder| folder == path);
                if now {
                    change.apply(durable_names);
                }
                !now
            });
            Ok(())
        })
    }

    fn lock_dir(&self, path: &str) -> io::Result<Option<Guard>> {
        self.look(|state| {
            if path.is_empty() {
                return Ok(Some(Box::new(()) as Guard));
            }
            let Ok(inode) = state.find(path) else { return Ok(None) };
            let held = std::mem::replace(&mut state.inodes[inode].locked, true);
            Ok((!held).then(|| Box::new(Held { disk: self.clone(), inode }) as Guard))
        })
    }

    fn room(&self) -> io::Result<Room> {
        self.look(|state| {
            let octets = state.capacity.unwrap_or(1 << 40);
            let octets_free = octets.saturating_sub(state.used());
            Ok(Room { octets_free, octets, inodes_free: 1, inodes: 1 })
        })
    }
}

struct Held {
    disk: SimDisk,
    inode: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.disk.state.lock().inodes[self.inode].locked = false;
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.disk.look(|state| {
            if let Some((path, page)) = &state.unreadable
                && *path == self.path
                && offset < page + 4096
                && offset + into.len() as u64 > *page
            {
                return Err(broken());
            }
            let cached = &state.inodes[self.inode].cached;
            let rest = cached.get(offset as usize..).unwrap_or_default();
            let octets = rest.len().min(into.len());
            into[..octets].copy_from_slice(&rest[..octets]);
            Ok(octets)
        })
    }

    fn write_at(&self, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.disk.operate(|state| {
            let number = state.writes;
            state.writes += 1;
            let offset = offset as usize;
            let grows = (offset + octets.len()).saturating_sub(state.inodes[self.inode].cached.len()) as u64;
            let result = if state.fail_writes.contains(&number) {
                Err(broken())
            } else if grows > 0 && state.capacity.is_some_and(|capacity| state.used() + grows > capacity) {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            };
            let octets = if result.is_ok() { octets } else { &octets[..octets.len() / 2] };
            let inode = &mut state.inodes[self.inode];
            if inode.cached.len() < offset + octets.len() {
                inode.cached.resize(offset + octets.len(), 0);
            }
            inode.cached[offset..offset + octets.len()].copy_from_slice(octets);
            inode.pending.push(Write { offset, octets: octets.to_vec(), doomed: false });
            result
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.operate(|state| {
            let number = state.syncs;
            state.syncs += 1;
            if state.lie == Some(Lie::Files) {
                return Ok(());
            }
            let fails = state.fail_syncs.contains(&number);
            let inode = &mut state.inodes[self.inode];
            if fails {
                inode.errors += 1;
                inode.pending.iter_mut().for_each(|write| write.doomed = true);
            }
            let mut heard = self.heard.lock();
            if *heard < inode.errors {
                *heard = inode.errors;
                return Err(broken());
            }
            let Inode { pending, durable, .. } = inode;
            pending.retain(|write| {
                if !write.doomed {
                    if durable.len() < write.offset + write.octets.len() {
                        durable.resize(write.offset + write.octets.len(), 0);
                    }
                    durable[write.offset..write.offset + write.octets.len()].copy_from_slice(&write.octets);
                }
                write.doomed
            });
            Ok(())
        })
    }

    fn octets(&self) -> io::Result<u64> {
        self.disk.look(|state| Ok(state.inodes[self.inode].cached.len() as u64))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk.look(|state| {
            let mut holds = self.holds.lock();
            let taken = std::mem::replace(&mut state.inodes[self.inode].locked, true);
            *holds |= !taken;
            Ok(*holds)
        })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if *self.holds.lock() {
            self.disk.state.lock().inodes[self.inode].locked = false;
        }
    }
}
