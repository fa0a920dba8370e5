//! A disk in memory that can lose, tear, reorder and fail: for tests of whoever writes through [`Disk`].
//!
//! It keeps what is durable apart from what is only cached. [`SimDisk::crash_at`] stops everything before
//! the n-th operation; [`SimDisk::image`] then makes a disk as it might look after power is back.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

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
    /// Files have their new length, and where the octets are lost those of another file at the same place:
    /// blocks that were freed and given out again.
    OldTail,
    /// Names and lengths got through, no octet did.
    LengthOnly,
    /// Of everything that is pending (changes of names first, then writes), what has its bit set.
    Exact(u64),
}

impl Image {
    /// All kinds but [`Image::Exact`].
    pub const ALL: [Self; 10] = [
        Self::Lost,
        Self::Kept,
        Self::Subset,
        Self::NamesOnly,
        Self::Torn(512),
        Self::Torn(4096),
        Self::ZeroTail,
        Self::GarbageTail,
        Self::OldTail,
        Self::LengthOnly,
    ];

    /// Whether chance decides something in it.
    pub fn is_random(self) -> bool {
        !matches!(self, Self::Lost | Self::Kept | Self::NamesOnly | Self::LengthOnly | Self::Exact(_))
    }
}

/// Kinds of operations, for [`SimDisk::fail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A file is made.
    Create,
    /// A folder is made.
    MakeDir,
    /// Octets are written.
    Write,
    /// A file is synced.
    Sync,
    /// A file gets another name.
    Rename,
    /// A file or folder is removed.
    Remove,
    /// A folder is synced.
    SyncDir,
    /// A file is opened.
    Open,
    /// Octets are read.
    Read,
    /// A folder is listed.
    List,
}

impl Act {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::MakeDir,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::Open,
        Self::Read,
        Self::List,
    ];
}

/// What of a failing write is in the file nevertheless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Nothing,
    /// The first octet.
    One,
    /// The first half.
    #[default]
    Half,
    /// All but the last octet.
    AllButOne,
}

impl Written {
    fn of(self, octets: &[u8]) -> &[u8] {
        let length = match self {
            Self::Nothing => 0,
            Self::One => octets.len().min(1),
            Self::Half => octets.len() / 2,
            Self::AllButOne => octets.len().saturating_sub(1),
        };
        &octets[..length]
    }
}

struct Fault {
    act: Act,
    from: u64,
    times: u64,
    errno: Errno,
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
    /// Operations so far, by kind.
    acts: [u64; Act::ALL.len()],
    faults: Vec<Fault>,
    written: Written,
    lie: Option<Lie>,
    capacity: Option<u64>,
    inodes_max: Option<u64>,
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
    /// How the last of them failed.
    errno: Option<Errno>,
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

/// As Linux reports it.
fn failed(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
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

    /// Operations of this kind so far.
    pub fn count(&self, act: Act) -> u64 {
        self.state.lock().acts[act as usize]
    }

    /// Operations of this kind fail from the n-th (from 0) on, so many times.
    pub fn fail(&self, act: Act, from: u64, times: u64, errno: Errno) {
        self.state.lock().faults.push(Fault { act, from, times, errno });
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.state.lock().faults.clear();
    }

    /// What a failing write leaves behind.
    pub fn leave(&self, written: Written) {
        self.state.lock().written = written;
    }

    /// Changes of names and writes that are not durable.
    pub fn pending(&self) -> usize {
        let state = self.state.lock();
        state.changes.len() + state.inodes.iter().map(|inode| inode.pending.len()).sum::<usize>()
    }

    /// From now on something is a lie.
    pub fn lie(&self, lie: Lie) {
        self.state.lock().lie = Some(lie);
    }

    /// Octets that all files together may have; `None`: no bound.
    pub fn limit(&self, octets: Option<u64>) {
        self.state.lock().capacity = octets;
    }

    /// Files and folders that there may be; `None`: no bound.
    pub fn limit_inodes(&self, inodes: Option<u64>) {
        self.state.lock().inodes_max = inodes;
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
        let mut place = 0;
        for change in &state.changes {
            let kept = match image {
                Image::Lost => false,
                Image::Kept | Image::NamesOnly | Image::LengthOnly => true,
                Image::Exact(bits) => bit(bits, &mut place),
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
        after.inodes = Vec::with_capacity(state.inodes.len());
        for (number, inode) in state.inodes.iter().enumerate() {
            let old = number.checked_sub(1).and_then(|before| state.inodes.get(before));
            let old = old.map_or(&[][..], |old| &old.cached);
            after.inodes.push(inode.after(image, &mut chance, &mut place, old));
        }
        after.durable_names = after.names.clone();
        Self { state: Arc::new(Mutex::new(after)) }
    }

    /// An operation that changes something; `act` hears how it should fail.
    fn operate<T>(&self, kind: Act, act: impl FnOnce(&mut State, Option<Errno>) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.state.lock();
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            return Err(crashed());
        }
        state.operations += 1;
        let fault = state.fault(kind);
        act(state, fault)
    }

    /// The same for those that fail as a whole.
    fn change<T>(&self, kind: Act, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.operate(kind, |state, fault| fault.map_or_else(|| act(state), |errno| Err(failed(errno))))
    }

    /// One that only looks.
    fn look<T>(&self, kind: Option<Act>, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.state.lock();
        if state.crash_at.is_some_and(|at| state.operations >= at) {
            return Err(crashed());
        }
        match kind.and_then(|kind| state.fault(kind)) {
            Some(errno) => Err(failed(errno)),
            None => act(state),
        }
    }
}

fn bit(bits: u64, place: &mut u32) -> bool {
    let set = bits.checked_shr(*place).is_some_and(|bits| bits & 1 == 1);
    *place += 1;
    set
}

impl State {
    /// Counts an operation; how it fails, if it does.
    fn fault(&mut self, act: Act) -> Option<Errno> {
        let number = self.acts[act as usize];
        self.acts[act as usize] += 1;
        let hit = |fault: &&Fault| fault.act == act && number >= fault.from && number - fault.from < fault.times;
        self.faults.iter().find(hit).map(|fault| fault.errno)
    }

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
        if self.inodes_max.is_some_and(|most| self.names.len() as u64 >= most) {
            return Err(failed(Errno::NOSPC));
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
    /// `place`: of its first write among all that is pending; `old`: what another file has.
    fn after(&self, image: Image, chance: &mut Chance, place: &mut u32, old: &[u8]) -> Self {
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
                Image::Exact(bits) => {
                    if bit(bits, place) {
                        put(write.offset, &write.octets);
                    }
                }
                Image::LengthOnly => octets.resize(octets.len().max(end), 0),
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
                Image::ZeroTail | Image::GarbageTail | Image::OldTail => {
                    if chance.flip() {
                        put(write.offset, &write.octets);
                    } else if end > octets.len() {
                        let before = octets.len();
                        octets.resize(end, 0);
                        let tail = &mut octets[before..];
                        if image == Image::GarbageTail {
                            tail.iter_mut().for_each(|octet| *octet = chance.next() as u8);
                        } else if image == Image::OldTail {
                            let old = old.get(before..).unwrap_or_default();
                            tail.iter_mut().zip(old).for_each(|(octet, &old)| *octet = old);
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
        self.change(Act::Create, |state| {
            if state.capacity.is_some_and(|capacity| state.used() >= capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let inode = state.make(path, Inode::default())?;
            Ok(self.file(state, path, inode))
        })
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn File>> {
        self.look(Some(Act::Open), |state| {
            let inode = state.find(path)?;
            Ok(self.file(state, path, inode))
        })
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.change(Act::MakeDir, |state| state.make(path, Inode { folder: true, ..Inode::default() }).map(drop))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.look(Some(Act::List), |state| {
            if path.is_empty() {
                return Ok(state.names.keys().filter(|name| !name.contains('/')).cloned().collect());
            }
            state.find(path)?;
            let in_folder = |name: &String| name.strip_prefix(path)?.strip_prefix('/').map(str::to_owned);
            Ok(state.names.keys().filter_map(in_folder).collect())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Act::Rename, |state| {
            let inode = state.find(from)?;
            let folders = [folder_of(from), folder_of(to)];
            state.change(Change { folders, remove: Some(from.to_owned()), insert: Some((to.to_owned(), inode)) });
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.change(Act::Remove, |state| {
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
        self.change(Act::SyncDir, |state| {
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
        self.look(None, |state| {
            if path.is_empty() {
                return Ok(Some(Box::new(()) as Guard));
            }
            let Ok(inode) = state.find(path) else { return Ok(None) };
            let held = std::mem::replace(&mut state.inodes[inode].locked, true);
            Ok((!held).then(|| Box::new(Held { disk: self.clone(), inode }) as Guard))
        })
    }

    fn room(&self) -> io::Result<Room> {
        self.look(None, |state| {
            let octets = state.capacity.unwrap_or(1 << 40);
            let octets_free = octets.saturating_sub(state.used());
            let inodes = state.inodes_max.unwrap_or(1 << 20);
            let inodes_free = inodes.saturating_sub(state.names.len() as u64);
            Ok(Room { octets_free, octets, inodes_free, inodes })
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
        self.disk.look(Some(Act::Read), |state| {
            if let Some((path, page)) = &state.unreadable
                && *path == self.path
                && offset < page + 4096
                && offset + into.len() as u64 > *page
            {
                return Err(failed(Errno::IO));
            }
            let cached = &state.inodes[self.inode].cached;
            let rest = cached.get(offset as usize..).unwrap_or_default();
            let octets = rest.len().min(into.len());
            into[..octets].copy_from_slice(&rest[..octets]);
            Ok(octets)
        })
    }

    fn write_at(&self, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.disk.operate(Act::Write, |state, fault| {
            let offset = offset as usize;
            let grows = (offset + octets.len()).saturating_sub(state.inodes[self.inode].cached.len()) as u64;
            let result = if let Some(errno) = fault {
                Err(failed(errno))
            } else if grows > 0 && state.capacity.is_some_and(|capacity| state.used() + grows > capacity) {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            };
            let octets = if result.is_ok() { octets } else { state.written.of(octets) };
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
        self.disk.operate(Act::Sync, |state, fault| {
            if state.lie == Some(Lie::Files) {
                return Ok(());
            }
            let inode = &mut state.inodes[self.inode];
            if let Some(errno) = fault {
                inode.errors += 1;
                inode.errno = Some(errno);
                inode.pending.iter_mut().for_each(|write| write.doomed = true);
            }
            let mut heard = self.heard.lock();
            if *heard < inode.errors {
                *heard = inode.errors;
                return Err(failed(inode.errno.unwrap_or(Errno::IO)));
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
        self.disk.look(None, |state| Ok(state.inodes[self.inode].cached.len() as u64))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.disk.look(None, |state| {
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
