//! How a process that runs strangers' code locks itself up: resource limits, Landlock, seccomp.
//!
//! ```text
//! load     before the library is opened   limits; files: read-only, system libraries; no network, no exec, no
//!                                         other process, no new one
//! serve    before the first step          memory, its own sockets, the clock, exit. Whatever else is asked is
//!                                         answered EPERM; what only an attacker would ask ends the process
//! ```
//!
//! What the operator granted ([`Grants`]) is left open in both parts: files by Landlock, which alone knows one path
//! from another, connections by the filter. Filters add up and cannot be taken back. What a kernel lacks is left out
//! and named, or, with [`Demand::Require`], an error.

use std::io;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getpid, getrlimit, setrlimit};

use crate::grant::Grants;
use crate::sys::{self, Access};

/// What to do when the kernel cannot do all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Do the rest.
    BestEffort,
    /// Refuse.
    Require,
}

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Mechanisms: pure functions.
    Mechanisms,
    /// Back ends: they may have threads, sleep, and need more memory (hashing passwords).
    BackEnds,
}

/// Memory that a library may add to the process, octets.
const MEMORY_OCTETS: u64 = 256 << 20;
/// The same for back ends: the stacks of their threads, and what Argon2 takes in some of them at once.
const MEMORY_OCTETS_BACK_ENDS: u64 = 1 << 30;
/// Open descriptors: one link per shard of each worker, and a few.
const DESCRIPTORS: u64 = 1024;
/// Processor seconds in a whole life.
const CPU_SECONDS: u64 = 24 * 3600;

/// Largest file that may be written where any may be.
const FILE_OCTETS: u64 = 64 << 20;

/// Where the dynamic linker looks. Nothing else can be opened.
const READABLE: [&str; 6] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];
/// What comes with the grant of the network: finding a host by its name takes these.
const RESOLVER: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
];

/// First part; returns what is in force. `threads` starts the threads that this process will ever have, inside of the
/// limits on files but before new threads are forbidden.
pub fn load(
    demand: Demand,
    guest: Guest,
    grants: &Grants,
    threads: impl FnOnce() -> Result<(), String>,
) -> Result<String, String> {
    let limit = |what, octets| {
        let octets = getrlimit(what).maximum.map_or(octets, |most| most.min(octets));
        let limit = Rlimit { current: Some(octets), maximum: Some(octets) };
        setrlimit(what, limit).map_err(|error| format!("sandbox: a resource limit was refused: {error}"))
    };
    let mut in_force = vec!["limits".to_owned()];
    let mut lacking = Vec::new();
    // Read before files are out of reach, and again what it says when the threads are there.
    let statm = std::fs::File::open("/proc/self/statm");
    match sys::landlock(&rules(grants), grants.net) {
        Ok((version, absent)) => {
            in_force.push(format!("landlock {version}"));
            let granted = |path: &&&Path| grants.read.iter().chain(&grants.write).any(|granted| granted == **path);
            in_force
                .extend(absent.iter().filter(granted).map(|path| format!("granted but absent: {}", path.display())));
        }
        Err(error) => lacking.push(format!("no Landlock: {error}")),
    }
    sys::one_heap();
    threads()?;
    let memory = if guest == Guest::BackEnds { MEMORY_OCTETS_BACK_ENDS } else { MEMORY_OCTETS };
    match statm.ok().and_then(|statm| pages(&statm)) {
        Some(pages) => limit(Resource::As, pages * rustix::param::page_size() as u64 + memory)?,
        None => lacking.push("no limit of memory: /proc/self/statm cannot be read".to_owned()),
    }
    limit(Resource::Nofile, DESCRIPTORS)?;
    // Threads count as processes; the filter below refuses real ones.
    if guest == Guest::Mechanisms {
        limit(Resource::Nproc, 0)?;
    }
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Fsize, if grants.write.is_empty() { 0 } else { FILE_OCTETS })?;
    sys::default_signals();
    match filter(&forbidden(guest, grants), Action::Allow).and_then(|program| sys::seccomp(&program)) {
        Ok(()) => in_force.push("seccomp".to_owned()),
        Err(error) => lacking.push(format!("no seccomp: {error}")),
    }
    if demand == Demand::Require && !lacking.is_empty() {
        let remedy = "run on a kernel that has it, or set process.sandbox = \"best-effort\"";
        return Err(format!("sandbox: {}; {remedy}", lacking.join("; ")));
    }
    in_force.extend(lacking);
    if !grants.is_empty() {
        in_force.push(format!("granted {grants}"));
    }
    Ok(in_force.join(", "))
}

/// Second part.
pub fn serve(demand: Demand, guest: Guest, grants: &Grants) -> Result<(), String> {
    match filter(&serving(guest, grants), Action::Refuse).and_then(|program| sys::seccomp(&program)) {
        Err(error) if demand == Demand::Require => Err(format!("sandbox: no seccomp: {error}")),
        _ => Ok(()),
    }
}

fn rules(grants: &Grants) -> Vec<(&Path, Access)> {
    let resolver = RESOLVER.iter().filter(|_| grants.net);
    let libraries = READABLE.iter().map(|path| (Path::new(*path), Access::Library));
    let read = resolver.map(Path::new).chain(grants.read.iter().map(AsRef::as_ref));
    let write = grants.write.iter().map(|path| (path.as_ref(), Access::Write));
    libraries.chain(read.map(|path| (path, Access::Read))).chain(write).collect()
}

fn pages(mut statm: &std::fs::File) -> Option<u64> {
    let mut text = String::new();
    io::Read::read_to_string(&mut statm, &mut text).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// What the kernel does about a call.
#[derive(Clone, Copy)]
enum Action {
    Allow,
    /// EPERM.
    Refuse,
    /// ENOSYS: the C library falls back to an older call.
    Unknown,
    /// SIGSYS for the whole process.
    Kill,
    /// Allow it when the first argument is our own process id, else kill.
    OnlyUs,
    /// Refuse it when the third argument asks for executable memory.
    NotExecutable,
    /// Allow it when the first two arguments ask for TCP or UDP, else refuse it.
    OnlyInternet,
    /// Allow it when the first argument asks for a thread, else refuse.
    OnlyThreads,
}

type Rule = (libc::c_long, Action);

/// What no mechanism could want: other processes, programs, the network, the kernel's insides.
const FORBIDDEN: &[Rule] = &[
    (libc::SYS_socket, Action::Kill),
    (libc::SYS_socketpair, Action::Kill),
    (libc::SYS_connect, Action::Kill),
    (libc::SYS_bind, Action::Kill),
    (libc::SYS_listen, Action::Kill),
    (libc::SYS_accept, Action::Kill),
    (libc::SYS_accept4, Action::Kill),
    (libc::SYS_execve, Action::Kill),
    (libc::SYS_execveat, Action::Kill),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_fork, Action::Kill),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_vfork, Action::Kill),
    (libc::SYS_ptrace, Action::Kill),
    (libc::SYS_process_vm_readv, Action::Kill),
    (libc::SYS_process_vm_writev, Action::Kill),
    (libc::SYS_pidfd_open, Action::Kill),
    (libc::SYS_pidfd_getfd, Action::Kill),
    (libc::SYS_pidfd_send_signal, Action::Kill),
    (libc::SYS_kill, Action::Kill),
    (libc::SYS_tkill, Action::Kill),
    (libc::SYS_rt_sigqueueinfo, Action::Kill),
    (libc::SYS_rt_tgsigqueueinfo, Action::Kill),
    (libc::SYS_tgkill, Action::OnlyUs),
    (libc::SYS_bpf, Action::Kill),
    (libc::SYS_perf_event_open, Action::Kill),
    (libc::SYS_userfaultfd, Action::Kill),
    (libc::SYS_io_uring_setup, Action::Kill),
    (libc::SYS_mount, Action::Kill),
    (libc::SYS_umount2, Action::Kill),
    (libc::SYS_unshare, Action::Kill),
    (libc::SYS_setns, Action::Kill),
    (libc::SYS_init_module, Action::Kill),
    (libc::SYS_finit_module, Action::Kill),
    (libc::SYS_kexec_load, Action::Kill),
    (libc::SYS_keyctl, Action::Kill),
    (libc::SYS_add_key, Action::Kill),
    (libc::SYS_request_key, Action::Kill),
    // Landlock does not know of these.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, Action::Refuse),
    (libc::SYS_fchmod, Action::Refuse),
    (libc::SYS_fchmodat, Action::Refuse),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, Action::Refuse),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, Action::Refuse),
    (libc::SYS_fchown, Action::Refuse),
    (libc::SYS_fchownat, Action::Refuse),
    (libc::SYS_setxattr, Action::Refuse),
    (libc::SYS_lsetxattr, Action::Refuse),
    (libc::SYS_fsetxattr, Action::Refuse),
    (libc::SYS_utimensat, Action::Refuse),
    // Threads are refused, not punished: constructors of good libraries may try.
    (libc::SYS_clone, Action::Refuse),
    (libc::SYS_clone3, Action::Unknown),
];

/// [`FORBIDDEN`], save for what is granted: the first rule for a call counts.
fn forbidden(guest: Guest, grants: &Grants) -> Vec<Rule> {
    let net = if grants.net { NETWORK } else { &[] };
    let threads = if guest == Guest::BackEnds { THREADS } else { &[] };
    net.iter().chain(threads).chain(FORBIDDEN).copied().collect()
}

/// Everything that the second part has a word for.
fn serving(guest: Guest, grants: &Grants) -> Vec<Rule> {
    let mut rules = forbidden(guest, grants);
    rules.extend(SERVING);
    // What the resolver reads are files, too.
    for (granted, more) in [(grants.files() || grants.net, READING), (!grants.write.is_empty(), WRITING)] {
        rules.extend(more.iter().filter(|_| granted));
    }
    rules
}

/// Of back ends: threads, and waiting for something.
const THREADS: &[Rule] = &[
    (libc::SYS_clone, Action::OnlyThreads),
    (libc::SYS_set_robust_list, Action::Allow),
    (libc::SYS_rseq, Action::Allow),
    (libc::SYS_nanosleep, Action::Allow),
    (libc::SYS_clock_nanosleep, Action::Allow),
    (libc::SYS_sched_getaffinity, Action::Allow),
];

/// With `net`. No socket of the machine's own (their owners trust who can reach them), no service of ours.
const NETWORK: &[Rule] = &[
    (libc::SYS_socket, Action::OnlyInternet),
    (libc::SYS_connect, Action::Allow),
    (libc::SYS_bind, Action::Refuse),
    (libc::SYS_getsockname, Action::Allow),
    (libc::SYS_getpeername, Action::Allow),
    (libc::SYS_setsockopt, Action::Allow),
    (libc::SYS_shutdown, Action::Allow),
    (libc::SYS_sendmmsg, Action::Allow),
    (libc::SYS_recvmmsg, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, Action::Allow),
    (libc::SYS_pselect6, Action::Allow),
    (libc::SYS_epoll_create1, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, Action::Allow),
    (libc::SYS_eventfd2, Action::Allow),
    (libc::SYS_pipe2, Action::Allow),
    (libc::SYS_uname, Action::Allow),
];

/// With files to be read. Which ones is Landlock's affair; that a file is there, and its size, is no secret then.
const READING: &[Rule] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, Action::Allow),
    (libc::SYS_openat, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, Action::Allow),
    (libc::SYS_fstat, Action::Allow),
    (libc::SYS_newfstatat, Action::Allow),
    (libc::SYS_statx, Action::Allow),
    (libc::SYS_statfs, Action::Allow),
    (libc::SYS_fstatfs, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, Action::Allow),
    (libc::SYS_faccessat, Action::Allow),
    (libc::SYS_faccessat2, Action::Allow),
    (libc::SYS_getdents64, Action::Allow),
    (libc::SYS_getcwd, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, Action::Allow),
    (libc::SYS_readlinkat, Action::Allow),
    (libc::SYS_lseek, Action::Allow),
    (libc::SYS_pread64, Action::Allow),
    (libc::SYS_dup, Action::Allow),
    (libc::SYS_flock, Action::Allow),
    (libc::SYS_getuid, Action::Allow),
    (libc::SYS_geteuid, Action::Allow),
    (libc::SYS_getgid, Action::Allow),
    (libc::SYS_getegid, Action::Allow),
];

/// With files to be written, beside [`READING`].
const WRITING: &[Rule] = &[
    (libc::SYS_pwrite64, Action::Allow),
    (libc::SYS_pwritev, Action::Allow),
    (libc::SYS_ftruncate, Action::Allow),
    (libc::SYS_fsync, Action::Allow),
    (libc::SYS_fdatasync, Action::Allow),
    (libc::SYS_umask, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, Action::Allow),
    (libc::SYS_unlinkat, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, Action::Allow),
    (libc::SYS_renameat, Action::Allow),
    (libc::SYS_renameat2, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, Action::Allow),
    (libc::SYS_mkdirat, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, Action::Allow),
];

/// Everything that serving takes.
const SERVING: &[Rule] = &[
    (libc::SYS_read, Action::Allow),
    (libc::SYS_readv, Action::Allow),
    (libc::SYS_write, Action::Allow),
    (libc::SYS_writev, Action::Allow),
    (libc::SYS_recvmsg, Action::Allow),
    (libc::SYS_sendmsg, Action::Allow),
    (libc::SYS_recvfrom, Action::Allow),
    (libc::SYS_sendto, Action::Allow),
    (libc::SYS_getsockopt, Action::Allow),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Action::Allow),
    (libc::SYS_ppoll, Action::Allow),
    (libc::SYS_epoll_ctl, Action::Allow),
    (libc::SYS_epoll_pwait, Action::Allow),
    (libc::SYS_close, Action::Allow),
    (libc::SYS_fcntl, Action::Allow),
    (libc::SYS_ioctl, Action::Allow),
    (libc::SYS_mmap, Action::NotExecutable),
    (libc::SYS_mprotect, Action::NotExecutable),
    (libc::SYS_munmap, Action::Allow),
    (libc::SYS_mremap, Action::Allow),
    (libc::SYS_madvise, Action::Allow),
    (libc::SYS_brk, Action::Allow),
    (libc::SYS_futex, Action::Allow),
    (libc::SYS_rt_sigreturn, Action::Allow),
    (libc::SYS_rt_sigprocmask, Action::Allow),
    (libc::SYS_sigaltstack, Action::Allow),
    (libc::SYS_clock_gettime, Action::Allow),
    (libc::SYS_gettimeofday, Action::Allow),
    (libc::SYS_setitimer, Action::Allow),
    (libc::SYS_getrandom, Action::Allow),
    (libc::SYS_getpid, Action::Allow),
    (libc::SYS_gettid, Action::Allow),
    (libc::SYS_sched_yield, Action::Allow),
    (libc::SYS_restart_syscall, Action::Allow),
    (libc::SYS_exit, Action::Allow),
    (libc::SYS_exit_group, Action::Allow),
];

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Places in `struct seccomp_data`: number, architecture, low halves of three arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;
const THIRD_ARGUMENT: u32 = 32;

#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const OURS: u32 = 0;

/// Calls of another calling convention (x32) have numbers from here on.
const FOREIGN: u32 = 0x4000_0000;

/// The program for the kernel's filter machine.
fn filter(rules: &[Rule], otherwise: Action) -> io::Result<Vec<libc::sock_filter>> {
    if OURS == 0 {
        return Err(io::Error::other("this processor's calls are not known"));
    }
    let mut program = Vec::new();
    let mut say = |code, jt, jf, k| program.push(libc::sock_filter { code, jt, jf, k });
    let plain = |action| match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Refuse | Action::NotExecutable | Action::OnlyInternet | Action::OnlyThreads => {
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32
        }
        Action::Unknown => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        Action::Kill | Action::OnlyUs => libc::SECCOMP_RET_KILL_PROCESS,
    };
    let kill = plain(Action::Kill);
    say(LOAD, 0, 0, ARCHITECTURE);
    say(EQUAL, 1, 0, OURS);
    say(RETURN, 0, 0, kill);
    say(LOAD, 0, 0, NUMBER);
    say(AT_LEAST, 0, 1, FOREIGN);
    say(RETURN, 0, 0, kill);
    for &(number, action) in rules {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        match action {
            Action::OnlyUs => {
                say(EQUAL, 0, 4, number);
                say(LOAD, 0, 0, FIRST_ARGUMENT);
                say(EQUAL, 0, 1, getpid().as_raw_nonzero().get().cast_unsigned());
                say(RETURN, 0, 0, plain(Action::Allow));
                say(RETURN, 0, 0, plain(action));
            }
            Action::OnlyThreads => {
                say(EQUAL, 0, 4, number);
                say(LOAD, 0, 0, FIRST_ARGUMENT);
                say(ANY_BIT, 0, 1, libc::CLONE_THREAD as u32);
                say(RETURN, 0, 0, plain(Action::Allow));
                say(RETURN, 0, 0, plain(action));
            }
            Action::NotExecutable => {
                say(EQUAL, 0, 4, number);
                say(LOAD, 0, 0, THIRD_ARGUMENT);
                say(ANY_BIT, 0, 1, libc::PROT_EXEC as u32);
                say(RETURN, 0, 0, plain(action));
                say(RETURN, 0, 0, plain(Action::Allow));
            }
            Action::OnlyInternet => {
                say(EQUAL, 0, 10, number);
                say(LOAD, 0, 0, FIRST_ARGUMENT);
                say(EQUAL, 2, 0, libc::AF_INET as u32);
                say(EQUAL, 1, 0, libc::AF_INET6 as u32);
                say(RETURN, 0, 0, plain(action));
                say(LOAD, 0, 0, SECOND_ARGUMENT);
                // Beside the kind of the socket there are flags.
                say(AND, 0, 0, 0xf);
                say(EQUAL, 1, 0, libc::SOCK_STREAM as u32);
                say(EQUAL, 0, 1, libc::SOCK_DGRAM as u32);
                say(RETURN, 0, 0, plain(Action::Allow));
                say(RETURN, 0, 0, plain(action));
            }
            _ => {
                say(EQUAL, 0, 1, number);
                say(RETURN, 0, 0, plain(action));
            }
        }
    }
    say(RETURN, 0, 0, plain(otherwise));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn verdict(program: &[libc::sock_filter], number: libc::c_long, arguments: [u32; 3]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let one = &program[at];
            at += 1;
            let jump = |met: bool| usize::from(if met { one.jt } else { one.jf });
            match one.code {
                LOAD => {
                    loaded = match one.k {
                        NUMBER => u32::try_from(number).unwrap(),
                        ARCHITECTURE => OURS,
                        FIRST_ARGUMENT => arguments[0],
                        SECOND_ARGUMENT => arguments[1],
                        THIRD_ARGUMENT => arguments[2],
                        _ => panic!("a place nobody knows"),
                    }
                }
                AND => loaded &= one.k,
                EQUAL => at += jump(loaded == one.k),
                AT_LEAST => at += jump(loaded >= one.k),
                ANY_BIT => at += jump(loaded & one.k != 0),
                RETURN => return one.k,
                _ => panic!("an instruction nobody knows"),
            }
        }
    }

    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

    #[test]
    fn the_filter_says_what_the_table_says() {
        let none = Grants::default();
        let loading = filter(&forbidden(Guest::Mechanisms, &none), Action::Allow).unwrap();
        let serving = filter(&serving(Guest::Mechanisms, &none), Action::Refuse).unwrap();
        let us = std::process::id();
        for (number, first, third, while_loading, while_serving) in [
            (libc::SYS_openat, 0, 0, ALLOW, REFUSE),
            (libc::SYS_socket, 1, 0, KILL, KILL),
            (libc::SYS_socket, 2, 0, KILL, KILL),
            (libc::SYS_execve, 0, 0, KILL, KILL),
            (libc::SYS_tgkill, us, 6, ALLOW, ALLOW),
            (libc::SYS_tgkill, us + 1, 6, KILL, KILL),
            (libc::SYS_mmap, 0, 3, ALLOW, ALLOW),
            (libc::SYS_mmap, 0, 5, ALLOW, REFUSE),
            (libc::SYS_clone, 0, 0, REFUSE, REFUSE),
            (libc::SYS_fchmodat, 0, 0, REFUSE, REFUSE),
            (libc::SYS_setitimer, 0, 0, ALLOW, ALLOW),
            (libc::SYS_sendmsg, 0, 0, ALLOW, ALLOW),
            (libc::c_long::from(0x4000_0001), 0, 0, KILL, KILL),
        ] {
            assert_eq!(verdict(&loading, number, [first, 1, third]), while_loading, "{number} while loading");
            assert_eq!(verdict(&serving, number, [first, 1, third]), while_serving, "{number} while serving");
        }
        let back_ends = filter(&super::serving(Guest::BackEnds, &none), Action::Refuse).unwrap();
        let thread = libc::CLONE_THREAD as u32 | 0x100;
        assert_eq!(verdict(&back_ends, libc::SYS_clone, [thread, 0, 0]), ALLOW, "a thread");
        assert_eq!(verdict(&back_ends, libc::SYS_clone, [libc::SIGCHLD as u32, 0, 0]), REFUSE, "a process");
        assert_eq!(verdict(&back_ends, libc::SYS_connect, [0; 3]), KILL);
        assert_eq!(verdict(&back_ends, libc::SYS_openat, [0; 3]), REFUSE);
        assert_eq!(verdict(&back_ends, libc::SYS_nanosleep, [0; 3]), ALLOW);
    }

    #[test]
    fn what_is_granted_is_left_open_and_nothing_beside_it() {
        let inet = libc::AF_INET as u32;
        let (stream, raw) = (libc::SOCK_STREAM as u32 | libc::SOCK_CLOEXEC as u32, libc::SOCK_RAW as u32);
        for (words, number, arguments, expected) in [
            (&["net"][..], libc::SYS_socket, [inet, stream, 0], ALLOW),
            (&["net"], libc::SYS_socket, [libc::AF_INET6 as u32, libc::SOCK_DGRAM as u32, 0], ALLOW),
            (&["net"], libc::SYS_socket, [inet, raw, 0], REFUSE),
            (&["net"], libc::SYS_socket, [libc::AF_UNIX as u32, stream, 0], REFUSE),
            (&["net"], libc::SYS_socket, [libc::AF_NETLINK as u32, raw, 0], REFUSE),
            (&["net"], libc::SYS_connect, [0; 3], ALLOW),
            (&["net"], libc::SYS_bind, [0; 3], REFUSE),
            (&["net"], libc::SYS_listen, [0; 3], KILL),
            (&["net"], libc::SYS_openat, [0; 3], ALLOW),
            (&["net"], libc::SYS_unlink, [0; 3], REFUSE),
            (&["read:/etc/x"], libc::SYS_openat, [0; 3], ALLOW),
            (&["read:/etc/x"], libc::SYS_socket, [inet, stream, 0], KILL),
            (&["read:/etc/x"], libc::SYS_unlinkat, [0; 3], REFUSE),
            (&["write:/var/x"], libc::SYS_unlinkat, [0; 3], ALLOW),
            (&["write:/var/x"], libc::SYS_pread64, [0; 3], ALLOW),
            (&["write:/var/x"], libc::SYS_connect, [0; 3], KILL),
            (&["write:/var/x", "net"], libc::SYS_execve, [0; 3], KILL),
            (&["write:/var/x", "net"], libc::SYS_chmod, [0; 3], REFUSE),
            (&["write:/var/x", "net"], libc::SYS_mmap, [0, 0, 5], REFUSE),
        ] {
            let grants = Grants::parse(words.iter().copied()).unwrap();
            let program = filter(&serving(Guest::Mechanisms, &grants), Action::Refuse).unwrap();
            assert_eq!(verdict(&program, number, arguments), expected, "{words:?}: call {number} with {arguments:?}");
        }
    }
}
