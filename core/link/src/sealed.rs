//! A memfd that can no longer change: configuration, certificates, vetted libraries on their way to the
//! process that uses them. The receiver reads exactly what the supervisor wrote, whoever else holds it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{pread, write};

/// Largest content that [`read`] takes into memory.
pub const OCTETS_MAX: u64 = 256 << 20;

/// How often sealing is tried again; each time takes a fifth of a second.
const SEAL_AGAIN_MAX: usize = 10;

const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Makes a sealed memfd with this content. `name` is shown in `/proc/<pid>/fd`.
pub fn create(name: &str, octets: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = octets;
    while !rest.is_empty() {
        let written = match write(&fd, rest) {
            Err(rustix::io::Errno::INTR) => 0,
            result => result?,
        };
        rest = &rest[written..];
    }
    // The kernel waits a moment for pages that it is moving about, and says that they are busy when it takes longer.
    let mut sealed = fcntl_add_seals(&fd, SEALS);
    for _ in 0..SEAL_AGAIN_MAX {
        if sealed != Err(rustix::io::Errno::BUSY) {
            break;
        }
        sealed = fcntl_add_seals(&fd, SEALS);
    }
    sealed?;
    Ok(fd)
}

/// The content; refused when the descriptor is not sealed (then it could change while it is used).
pub fn read(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let octets = check(fd)?;
    let mut content = vec![0; octets];
    let mut filled = 0;
    while filled < octets {
        match pread(fd, &mut content[filled..], filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(content)
}

/// Checks seals and size, returns the size.
pub fn check(fd: BorrowedFd<'_>) -> io::Result<usize> {
    // EINVAL: no memfd at all.
    if !fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SEALS)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "link: the descriptor is no sealed memfd"));
    }
    let octets = u64::try_from(fstat(fd)?.st_size).unwrap_or(u64::MAX);
    match usize::try_from(octets) {
        Ok(size) if octets <= OCTETS_MAX => Ok(size),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "link: sealed memfd larger than 256 MiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn content_returns_and_cannot_change() {
        let content: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let fd = create("content", &content).unwrap();
        assert_eq!(read(fd.as_fd()).unwrap(), content);
        assert!(write(&fd, b"x").is_err());
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert_eq!(read(create("empty", b"").unwrap().as_fd()).unwrap(), b"");
    }

    #[test]
    fn what_could_still_change_is_refused() {
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read(open.as_fd()).is_err());
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(read(file.as_fd()).is_err());
    }
}
