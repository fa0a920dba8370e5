//! What the safe libraries cannot do for us: receiving into fresh memory, mapping shared words, adopting
//! descriptor 3, preparing a child between fork and exec, giving up ids for the whole process. The only
//! unsafe code of the house beside the plugin edge.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use crate::ids::Ids;
use crate::socket::{FDS_MAX, Link, Received};
use crate::{BadPacket, PACKET_OCTETS_MAX};

/// The descriptor that a child finds its link on; the only one that it inherits beside standard I/O.
pub const INHERITED_FD: RawFd = 3;

/// Octets of control data for [`FDS_MAX`] descriptors, in words so that headers are aligned.
const CONTROL_WORDS: usize = (16 + FDS_MAX * 4 + 16) / 8 + 1;

/// Receives one packet with its descriptors into `into`, whose old content is lost.
pub(crate) fn receive_packet(socket: BorrowedFd<'_>, into: &mut Vec<u8>) -> io::Result<Received> {
    into.clear();
    into.reserve(PACKET_OCTETS_MAX);
    let mut control = [0u64; CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: PACKET_OCTETS_MAX };
    // SAFETY: msghdr is plain data for which all zeroes (null pointers, zero lengths) is a valid value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    let mut ended = false;
    let octets = loop {
        header.msg_controllen = mem::size_of_val(&control);
        // SAFETY:
        // - the iovec covers PACKET_OCTETS_MAX octets that were reserved above and belong to `into`;
        // - control data covers `control`, which outlives the call and is aligned for cmsghdr;
        // - the kernel keeps none of the pointers.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
        match usize::try_from(received) {
            // The kernel looks for a packet first and for the end then: what came in between is found by a second look.
            // It may have been an empty packet, too, which none of ours sends; its descriptors are closed.
            Ok(0) if !ended => {
                ended = true;
                drop(received_fds(&header));
            }
            Ok(octets) => break octets,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::WouldBlock),
                // The peer closed with octets of ours unread. That is told once, before its last words.
                error if error.raw_os_error() == Some(libc::ECONNRESET) => {}
                error => return Err(error),
            },
        }
    };
    // SAFETY: recvmsg wrote `octets` octets from the start; it cannot write more than iov_len.
    unsafe { into.set_len(octets.min(PACKET_OCTETS_MAX)) };
    let fds = received_fds(&header);
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(BadPacket::Descriptors.into());
    }
    if octets == 0 { Ok(Received::Closed) } else { Ok(Received::Packet { fds }) }
}

/// Takes over the descriptors that the kernel put into this process.
fn received_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `header` was filled by a successful recvmsg and its control buffer is still alive.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the CMSG functions return null or a pointer to a whole header inside the control buffer.
    while let Some(head) = unsafe { control.as_ref() } {
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: only arithmetic on the length of an empty control message.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = head.cmsg_len.saturating_sub(empty) / mem::size_of::<RawFd>();
            for i in 0..count {
                // SAFETY:
                // - the kernel wrote `count` descriptors behind this header (read unaligned to be sure);
                // - each was opened for this message and nobody else in the process knows its number.
                let fd = unsafe {
                    OwnedFd::from_raw_fd(ptr::read_unaligned(libc::CMSG_DATA(control).cast::<RawFd>().add(i)))
                };
                fds.push(fd);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `control` points into the same buffer.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    fds
}

/// Atomic words in memory that other processes map too.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is only ever read and written through atomics, and unmapped by its only owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `words` words of `fd`, whose size the caller has sealed.
    pub(crate) fn new(fd: BorrowedFd<'_>, words: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: address null lets the kernel choose free space, so nothing that exists is replaced.
        let start = unsafe { mmap(ptr::null_mut(), words * 8, protection, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY:
        // - `words` words are mapped from `start` until drop, page-aligned, zeroed by the kernel;
        // - the file cannot shrink (sealed), so no access meets SIGBUS;
        // - every process uses atomics only, and any bit pattern is a valid u64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; the slices of `words` borrow from self and are gone.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

/// Takes over descriptor 3, once per process.
pub fn inherited_link() -> io::Result<Link> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "link: descriptor 3 was already taken"));
    }
    // SAFETY: only asks about a number; it does not matter who owns it, or whether it is open.
    if unsafe { libc::fcntl(INHERITED_FD, libc::F_GETFD) } < 0 {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "link: descriptor 3 is not open; this subcommand is started by `portreeve serve`, not by hand",
        ));
    }
    // SAFETY: it is open, roles call this before they open anything, and the flag above makes us the only taker.
    Link::from_fd(unsafe { OwnedFd::from_raw_fd(INHERITED_FD) })
}

/// Starts `command` so that it inherits standard I/O and `link` as descriptor 3, nothing else. It gets a
/// process group of its own and ignores SIGINT, SIGTERM and SIGHUP (a terminal sends them to everybody, but
/// only the supervisor decides who stops when); it is killed when the calling *thread* ends, so call this
/// from one that lives as long as the process.
pub fn spawn(command: &mut Command, link: Link) -> io::Result<Child> {
    let fd = link.as_raw_fd();
    // The library reports a failed exec through a pipe of its own. Occupying 3, if it is free, keeps that
    // pipe from landing there, where the child's dup2 would close it.
    let _three_is_taken = rustix::io::fcntl_dupfd_cloexec(link.as_fd(), INHERITED_FD)?;
    let parent = rustix::process::getpid();
    let prepare = move || {
        // SAFETY: plain system calls on numbers, all of them allowed between fork and exec; `fd` stays open
        // in the parent until `spawn` has returned, and the child has its own copy of the table.
        unsafe {
            if fd == INHERITED_FD {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            } else {
                check(libc::dup2(fd, INHERITED_FD))?;
            }
            // Whatever our own parent left open stays here, too.
            let first = INHERITED_FD as libc::c_uint + 1;
            if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                for other in INHERITED_FD + 1..65_536 {
                    libc::fcntl(other, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
        // Nothing stays running that nobody supervises. Had the parent died before this call, the signal
        // would never come.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: `prepare` runs in the forked child before exec: it makes system calls only, allocates nothing,
    // takes no lock and touches no memory but its captures.
    unsafe { command.process_group(0).pre_exec(prepare) };
    command.spawn()
}

/// Gives up every id but `ids`, for all threads, and makes sure that there is no way back.
pub fn drop_privileges(ids: &Ids) -> io::Result<()> {
    if ids.uid == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "user: root would keep its rights; name another"));
    }
    // SAFETY: `groups` is a valid array of the given length for the duration of the call; the other calls
    // take numbers. glibc and musl apply each to every thread, which the bare system calls would not.
    unsafe {
        check(libc::setgroups(ids.groups.len(), ids.groups.as_ptr()))?;
        check(libc::setresgid(ids.gid, ids.gid, ids.gid))?;
        check(libc::setresuid(ids.uid, ids.uid, ids.uid))?;
    }
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: three valid places for the answer; then calls that take numbers and must fail.
    let regained = unsafe {
        check(libc::getresuid(&mut real, &mut effective, &mut saved))?;
        libc::setresuid(u32::MAX, 0, u32::MAX) == 0 || libc::setresgid(u32::MAX, 0, u32::MAX) == 0 && ids.gid != 0
    };
    if regained || [real, effective, saved] != [ids.uid; 3] {
        return Err(io::Error::other("user: rights could be regained after they were given up; refusing to run"));
    }
    // A change of ids clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// What every role does before it reads its first octet: no core file, no ptrace by equals, no new rights by
/// exec. Memory of these processes holds passwords. To be called before there are other threads: the last of
/// the three concerns the calling one and those that it starts.
pub fn harden() -> io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Gives the signals of a fault and of the timer back to the kernel: whoever faults dies at once, without a
/// handler that a sandbox would get in the way of.
pub fn default_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGALRM] {
        // SAFETY: the default action; no handler of ours is installed or called.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Ends the process (SIGALRM) after so many milliseconds, unless it is called again; 0: not at all.
pub fn end_after_ms(ms: u32) {
    let time =
        libc::timeval { tv_sec: libc::time_t::from(ms / 1000), tv_usec: libc::suseconds_t::from(ms % 1000) * 1000 };
    let timer = libc::itimerval { it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 }, it_value: time };
    // SAFETY: a valid value to read; the old one is not asked for.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
}

/// Installs a seccomp filter for this process and all that it starts. It stays.
pub(crate) fn seccomp(program: &[libc::sock_filter]) -> io::Result<()> {
    let octets = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: octets, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` names `len` instructions that live during the call; the kernel copies and checks them.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, &program)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a path may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To be read, and to be run: libraries.
    Library,
    /// To be read.
    Read,
    /// To be read, written, made and removed.
    Write,
}

impl Access {
    /// Bits of `LANDLOCK_ACCESS_FS_*`; a rule for a file knows fewer of them.
    fn bits(self, folder: bool) -> u64 {
        const EXECUTE: u64 = 1;
        const WRITE_FILE: u64 = 1 << 1;
        const READ_FILE: u64 = 1 << 2;
        const READ_DIR: u64 = 1 << 3;
        /// Directories and files removed and made; files moved to another folder.
        const CHANGE_DIR: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13;
        const TRUNCATE: u64 = 1 << 14;
        match (self, folder) {
            (Self::Library, true) => EXECUTE | READ_FILE | READ_DIR,
            (Self::Read, true) => READ_FILE | READ_DIR,
            (Self::Library | Self::Read, false) => READ_FILE,
            (Self::Write, true) => READ_FILE | READ_DIR | WRITE_FILE | CHANGE_DIR | TRUNCATE,
            (Self::Write, false) => READ_FILE | WRITE_FILE | TRUNCATE,
        }
    }
}

/// Takes all rights on files away but those that `rules` leave, and, where the kernel knows how, TCP (making
/// connections stays when `connect` says so) and signals to others. Concerns the calling thread and those that it
/// starts. Returns the version of Landlock that did it, and the paths that are not there.
pub(crate) fn landlock<'a>(rules: &[(&'a Path, Access)], connect: bool) -> io::Result<(i64, Vec<&'a Path>)> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`, `LANDLOCK_RULE_PATH_BENEATH`.
    const VERSION: libc::c_uint = 1;
    const PATH_BENEATH: libc::c_uint = 1;
    // SAFETY: with this flag nothing is read and nothing is made.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u64>(), 0usize, VERSION) };
    if version < 1 {
        return Err(io::Error::last_os_error());
    }
    let files: u64 = match version {
        1 => 0x1fff,
        2 => 0x3fff,
        3 | 4 => 0x7fff,
        _ => 0xffff,
    };
    // Files; TCP bind and connect; abstract sockets and signals.
    let handled: [u64; 3] = [files, if connect { 1 } else { 3 }, 3];
    let octets: usize = match version {
        ..4 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    // SAFETY: `octets` octets of `handled` are read, no more than it has.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, handled.as_ptr(), octets, 0) };
    let made = RawFd::try_from(made).ok().filter(|made| *made >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made it for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    let mut absent = Vec::new();
    for &(path, access) in rules {
        let Ok(open) =
            rustix::fs::open(path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
        else {
            absent.push(path);
            continue;
        };
        let folder = rustix::fs::fstat(&open)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let access = access.bits(folder) & files;
        // struct landlock_path_beneath_attr is packed: u64, then s32.
        let mut rule = [0u8; 12];
        let (head, tail) = rule.split_at_mut(8);
        head.copy_from_slice(&access.to_ne_bytes());
        tail.copy_from_slice(&open.as_raw_fd().to_ne_bytes());
        // SAFETY: the rule has the kernel's layout and lives during the call, as do both descriptors.
        let added =
            unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, rule.as_ptr(), 0) };
        if added != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: numbers only.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((version, absent))
}

/// One heap for all threads. The C library would reserve 128 MiB of addresses for each thread that allocates,
/// which a limit of memory counts.
pub(crate) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside of the C library, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
