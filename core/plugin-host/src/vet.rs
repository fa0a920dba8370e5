//! Whether a file may be loaded, decided without executing anything of it, and its sealed copy.
//!
//! What was looked at is what is loaded: the file is read once, and the copy cannot change any more. So
//! replacing or overwriting the file in the meantime does nothing, and each reload is an instance of its own.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::note::{self, Note, PanicStrategy};
use crate::{LoadError, resolve};

/// Larger libraries are refused.
const FILE_OCTETS_MAX: u64 = 64 << 20;

/// How strictly owners and permissions are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// File and all directories above belong to root or to us, and nobody else may write to them.
    Strict,
    /// The file belongs to root or to us and is not world-writable. Directories that are sticky, or writable
    /// for a group of ours, or somebody else's, are accepted with a remark: a fresh clone in a temporary
    /// folder or under umask 002 must work.
    Relaxed,
}

/// What is demanded of a file.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// Owners and permissions.
    pub ownership: Ownership,
    /// Pinned content; see [`parse_sha256`].
    pub sha256: Option<[u8; 32]>,
}

/// A library that may be loaded.
#[derive(Debug)]
pub struct Vetted {
    /// The sealed copy, for [`Registry::load`](crate::Registry::load) here or in another process.
    pub fd: OwnedFd,
    /// What it says of itself.
    pub note: Note,
    /// Of its content.
    pub sha256: [u8; 32],
    /// The file.
    pub path: PathBuf,
    /// What was accepted but is worth a line in the log, once.
    pub remarks: Vec<String>,
}

/// What [`inspect`] found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What it says of itself.
    pub note: Note,
    /// Of its content.
    pub sha256: [u8; 32],
    /// Size of the file.
    pub octets: u64,
    /// Libraries that it needs.
    pub needed: Vec<String>,
}

/// Vets a file and makes its sealed copy.
pub fn vet(path: &Path, demands: &Demands) -> Result<Vetted, LoadError> {
    let (file, metadata) = open(path)?;
    let remarks = check_owners(path, &metadata, demands.ownership)?;
    let content = read(path, file)?;
    let sha256: [u8; 32] = Sha256::digest(&content).into();
    if let Some(pinned) = demands.sha256.filter(|pinned| *pinned != sha256) {
        let (expected, found) = (hex(&pinned), hex(&sha256));
        return Err(LoadError::Checksum { path: path.to_owned(), expected, found });
    }
    let note = note::read(&content, path)?.note;
    if note.panic == PanicStrategy::Abort {
        return Err(LoadError::Aborts { path: path.to_owned() });
    }
    if !resolve::is_id(&note.id) {
        return Err(LoadError::NotAPlugin {
            path: path.to_owned(),
            cause: format!("its note has the id {:?}", note.id),
        });
    }
    let fd = link::sealed::create(&format!("portreeve_{}", note.id), &content)
        .map_err(|error| LoadError::Seal { path: path.to_owned(), error })?;
    Ok(Vetted { fd, note, sha256, path: path.to_owned(), remarks })
}

/// Reads what a file says of itself; executes nothing and demands nothing of its owner.
pub fn inspect(path: &Path) -> Result<Inspection, LoadError> {
    let (file, metadata) = open(path)?;
    let content = read(path, file)?;
    let note::Facts { note, needed } = note::read(&content, path)?;
    Ok(Inspection { note, sha256: Sha256::digest(&content).into(), octets: metadata.len(), needed })
}

/// A pin as people write it: 64 hexadecimal digits.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let mut octets = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, octet) in octets.iter_mut().enumerate() {
        *octet = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(octets)
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn open(path: &Path) -> Result<(File, Metadata), LoadError> {
    let unreadable = |error| LoadError::Unreadable { path: path.to_owned(), error };
    // Non-blocking: a FIFO of that name must not hold the supervisor up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(LoadError::NotAPlugin { path: path.to_owned(), cause: "not a regular file".into() });
    }
    if metadata.len() > FILE_OCTETS_MAX {
        return Err(LoadError::NotAPlugin { path: path.to_owned(), cause: "larger than 64 MiB".into() });
    }
    Ok((file, metadata))
}

fn read(path: &Path, file: File) -> Result<Vec<u8>, LoadError> {
    let mut content = Vec::new();
    match file.take(FILE_OCTETS_MAX).read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(error) => Err(LoadError::Unreadable { path: path.to_owned(), error }),
    }
}

/// The file, and each directory above it: as it was named, and where it is after all links.
fn check_owners(path: &Path, metadata: &Metadata, ownership: Ownership) -> Result<Vec<String>, LoadError> {
    let unreadable = |error: io::Error| LoadError::Unreadable { path: path.to_owned(), error };
    let us = Us::now();
    let mut remarks = Vec::new();
    let mut check = |at: &Path, owner: Owner, kind| match judge(owner, kind, ownership, &us) {
        Judgement::Good => Ok(()),
        Judgement::Remark(cause) => {
            let remark = format!("{}: {cause}", at.display());
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
            Ok(())
        }
        Judgement::Refuse(cause) => {
            Err(LoadError::Ownership { path: path.to_owned(), at: at.to_owned(), cause: cause.to_owned() })
        }
    };
    check(path, Owner::of(metadata), Kind::File)?;
    let named = std::path::absolute(path).map_err(unreadable)?;
    let real = path.canonicalize().map_err(unreadable)?;
    for directory in named.ancestors().skip(1).chain(real.ancestors().skip(1)) {
        let metadata = directory.metadata().map_err(unreadable)?;
        check(directory, Owner::of(&metadata), Kind::Directory)?;
    }
    Ok(remarks)
}

#[derive(Clone, Copy)]
enum Kind {
    File,
    Directory,
}

#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Owner {
    fn of(metadata: &Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() }
    }
}

/// Who asks.
struct Us {
    uid: u32,
    groups: Vec<u32>,
}

impl Us {
    fn now() -> Self {
        let mut groups: Vec<u32> =
            rustix::process::getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
        groups.push(rustix::process::getegid().as_raw());
        Self { uid: rustix::process::geteuid().as_raw(), groups }
    }
}

#[derive(Debug, PartialEq)]
enum Judgement {
    Good,
    Remark(&'static str),
    Refuse(&'static str),
}

fn judge(owner: Owner, kind: Kind, ownership: Ownership, us: &Us) -> Judgement {
    use Judgement::{Good, Refuse, Remark};
    let foreign = owner.uid != 0 && owner.uid != us.uid;
    let (world, group) = (owner.mode & 0o002 != 0, owner.mode & 0o020 != 0);
    let sticky = owner.mode & 0o1000 != 0;
    match (kind, ownership) {
        (Kind::File, _) if foreign => Refuse("belongs to neither root nor this user; chown it"),
        (Kind::File, _) if world => Refuse("is world-writable; chmod o-w it"),
        (Kind::File, Ownership::Strict) if group => Refuse("is group-writable; chmod g-w it"),
        (Kind::File, _) => Good,
        (Kind::Directory, Ownership::Strict) if foreign => Refuse("belongs to neither root nor this user; chown it"),
        (Kind::Directory, Ownership::Strict) if world || group => {
            Refuse("others may write to it; chmod go-w it, or install the plugin elsewhere")
        }
        (Kind::Directory, Ownership::Strict) => Good,
        (Kind::Directory, Ownership::Relaxed) => match (sticky, world, group) {
            (true, true, _) | (true, _, true) => Remark("others may write to it, but it is sticky"),
            (false, true, _) => Refuse("is world-writable; chmod o-w it"),
            (false, false, true) if us.groups.contains(&owner.gid) => Remark("is writable for a group of this user"),
            (false, false, true) => Refuse("is writable for a group that is not this user's; chmod g-w it"),
            _ if foreign => Remark("belongs to neither root nor this user"),
            _ => Good,
        },
    }
}

#[cfg(test)]
mod tests;
