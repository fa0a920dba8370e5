//! Words that several processes see: counters, gauges, limits. Atomics only, no locks, so that a process
//! that dies in the middle leaves nothing behind that another would wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};

use crate::sys;

/// Most words of one area: 1 GiB.
pub const WORDS_MAX: usize = 1 << 27;

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// A memfd of atomic words, mapped. Zeroed at creation; its size can never change (a process that could
/// shrink it would kill the others with SIGBUS).
#[derive(Debug)]
pub struct SharedWords {
    fd: OwnedFd,
    map: sys::Mapping,
}

impl SharedWords {
    /// Makes an area of `words` words.
    pub fn create(name: &str, words: usize) -> io::Result<SharedWords> {
        if words == 0 || words > WORDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "link: impossible size of a shared area"));
        }
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, words as u64 * 8)?;
        fcntl_add_seals(&fd, SEALS)?;
        let map = sys::Mapping::new(fd.as_fd(), words)?;
        Ok(SharedWords { fd, map })
    }

    /// Maps an area that another process made. Refused unless its size is sealed.
    pub fn attach(fd: OwnedFd) -> io::Result<SharedWords> {
        if !fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SEALS)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "link: the size of the shared area is not sealed"));
        }
        let octets = usize::try_from(fstat(&fd)?.st_size).unwrap_or(usize::MAX);
        if octets == 0 || octets % 8 != 0 || octets / 8 > WORDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "link: impossible size of a shared area"));
        }
        let map = sys::Mapping::new(fd.as_fd(), octets / 8)?;
        Ok(SharedWords { fd, map })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        self.map.words()
    }

    /// The memfd, to be sent to other processes.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn both_sides_see_the_same_words() {
        let here = SharedWords::create("test", 1000).unwrap();
        let there = SharedWords::attach(here.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(there.words().len(), 1000);
        assert!(there.words().iter().all(|word| word.load(Relaxed) == 0));
        here.words()[999].store(42, Relaxed);
        assert_eq!(there.words()[999].fetch_add(1, Relaxed), 42);
        drop(there);
        assert_eq!(here.words()[999].load(Relaxed), 43);
        assert!(ftruncate(here.as_fd(), 8).is_err());
    }

    #[test]
    fn an_area_that_could_shrink_is_refused() {
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&open, 4096).unwrap();
        assert!(SharedWords::attach(open).is_err());
        let odd = memfd_create("odd", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&odd, 4097).unwrap();
        fcntl_add_seals(&odd, SEALS).unwrap();
        assert!(SharedWords::attach(odd).is_err());
        assert!(SharedWords::create("none", 0).is_err());
    }
}
