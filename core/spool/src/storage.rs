//! The few file operations that the spool needs, so that a simulated disk ([`crate::sim`]) can take the
//! real one's place and lose, tear, reorder and refuse.
//!
//! Paths are relative to the spool's folder, at most two components long, and made by us from numbers:
//! no octet of a client is ever part of one.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

/// An open file. Writes are at offsets, so that a file needs no lock of its own.
pub trait File: Send + Sync {
    /// Reads up to `into.len()` octets; fewer only at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `octets`, or fails; after a failure any part of them may be in the file.
    fn write_at(&self, offset: u64, octets: &[u8]) -> io::Result<()>;
    /// Makes the content durable (fdatasync). After an error nothing that was written since the last
    /// success may be trusted, whatever a later call says.
    fn sync(&self) -> io::Result<()>;
    /// Length.
    fn octets(&self) -> io::Result<u64>;
    /// Takes the file's lock (flock) for as long as the file stays open; false when somebody has it.
    fn try_lock(&self) -> io::Result<bool>;
    /// The descriptor, for another process; `None` where there is none.
    fn into_fd(self: Box<Self>) -> Option<OwnedFd> {
        None
    }
}

/// Keeps a folder's lock until dropped.
pub type Guard = Box<dyn Any + Send + Sync>;

/// A folder with files in it.
pub trait Disk: Send + Sync {
    /// Makes a file that must not exist yet, for reading and writing by its owner only.
    fn create(&self, path: &str) -> io::Result<Box<dyn File>>;
    /// Opens a file for reading.
    fn open(&self, path: &str) -> io::Result<Box<dyn File>>;
    /// Makes a folder that must not exist yet.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Names in a folder; the empty path is the spool's own folder.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// Makes the names in a folder durable (fsync of the folder).
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Takes the folder's lock; `None` when somebody has it, or the folder is gone meanwhile.
    fn lock_dir(&self, path: &str) -> io::Result<Option<Guard>>;
    /// What is left on the file system.
    fn room(&self) -> io::Result<Room>;
}

/// What is left on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Octets that we may still write.
    pub octets_free: u64,
    /// Octets in all.
    pub octets: u64,
    /// Inodes that we may still make.
    pub inodes_free: u64,
    /// Inodes in all; 0 on file systems that do not count them.
    pub inodes: u64,
}

/// A folder of the operating system.
pub struct RealDisk {
    root: OwnedFd,
    path: PathBuf,
}

impl RealDisk {
    /// Opens the folder, making it (and its parents) with mode 0700 when it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if !path.is_dir() {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(path).map_err(named)?;
            // The folder's own name must outlive a crash, or everything in it goes too.
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(named)?;
            }
        }
        let root = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| named(error.into()))?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens below the root and never through a link (CONTRACT C10).
    fn open_at(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            return match rustix::fs::openat2(&self.root, path, flags, mode, resolve) {
                Ok(fd) => Ok(fd),
                Err(Errno::INTR | Errno::AGAIN) => continue,
                // Kernels before 5.6 and some sandboxes do not know the call; the last component is still safe.
                Err(Errno::NOSYS) => Ok(rustix::fs::openat(&self.root, path, flags, mode)?),
                Err(error) => Err(error.into()),
            };
        }
    }

    fn open_dir(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(self.open_at(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(self.open_at(path, OFlags::RDONLY)?)))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, path, Mode::RWXU)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.open_dir(path)?)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR)?)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open_dir(path)?)?)
    }

    fn lock_dir(&self, path: &str) -> io::Result<Option<Guard>> {
        let dir = match self.open_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir?,
        };
        if !try_flock(&dir)? {
            return Ok(None);
        }
        // Between our open and our lock its owner may have removed it.
        let there = rustix::fs::fstat(&dir)?.st_nlink > 0;
        Ok(there.then(|| Box::new(dir) as Guard))
    }

    fn room(&self) -> io::Result<Room> {
        let room = rustix::fs::fstatvfs(&self.root)?;
        Ok(Room {
            octets_free: room.f_bavail.saturating_mul(room.f_frsize),
            octets: room.f_blocks.saturating_mul(room.f_frsize),
            inodes_free: room.f_favail,
            inodes: room.f_files,
        })
    }
}

pub(crate) struct RealFile(pub(crate) OwnedFd);

impl File for RealFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while let Some(rest) = into.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.0, rest, offset + read as u64) {
                Ok(0) => break,
                Ok(octets) => read += octets,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }

    fn write_at(&self, mut offset: u64, mut octets: &[u8]) -> io::Result<()> {
        while !octets.is_empty() {
            match rustix::io::pwrite(&self.0, octets, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    octets = octets.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // EINTR too is an error here: which pages it reached is unknown.
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn octets(&self) -> io::Result<u64> {
        // Not fstat: whoever reads a file's times makes its next write note finer ones (kernels since 6.13), and the
        // writer's next fdatasync then writes the inode, too.
        Ok(rustix::fs::seek(&self.0, SeekFrom::End(0))?)
    }

    fn try_lock(&self) -> io::Result<bool> {
        try_flock(&self.0)
    }

    fn into_fd(self: Box<Self>) -> Option<OwnedFd> {
        Some(self.0)
    }
}

fn try_flock(fd: &OwnedFd) -> io::Result<bool> {
    loop {
        return match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}
