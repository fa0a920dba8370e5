//! How a process that runs strangers' code locks itself up: resource limits, Landlock, seccomp.
//!
//! ```text
//! load     before the library is opened   limits; files: read-only, system libraries; no network, no exec, no
//!                                         other process, no new one
//! serve    before the first step          memory, its own sockets, the clock, exit. Whatever else is asked is
//!                                         answered EPERM; what only an attacker would ask ends the process
//! ```
//!
//! Filters add up and cannot be taken back. What a kernel lacks is left out and named, or, with
//! [`Demand::Require`], an error.

use std::io;

use rustix::process::{Resource, Rlimit, getpid, getrlimit, setrlimit};

use crate::sys;

/// What to do when the kernel cannot do all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Do the rest.
    BestEffort,
    /// Refuse.
    Require,
}

/// Memory that a library may add to the process, octets.
const MEMORY_OCTETS: u64 = 256 << 20;
/// Open descriptors: one link per shard of each worker, and a few.
const DESCRIPTORS: u64 = 1024;
/// Processor seconds in a whole life.
const CPU_SECONDS: u64 = 24 * 3600;

/// Where the dynamic linker looks. Nothing else can be opened.
const READABLE: [&str; 6] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];

/// First part; returns what is in force.
pub fn load(demand: Demand) -> Result<String, String> {
    let limit = |what, octets| {
        let octets = getrlimit(what).maximum.map_or(octets, |most| most.min(octets));
        let limit = Rlimit { current: Some(octets), maximum: Some(octets) };
        setrlimit(what, limit).map_err(|error| format!("sandbox: a resource limit was refused: {error}"))
    };
    let mapped = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = mapped.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let mut in_force = vec!["limits".to_owned()];
    let mut lacking = Vec::new();
    match pages {
        Some(pages) => limit(Resource::As, pages * rustix::param::page_size() as u64 + MEMORY_OCTETS)?,
        None => lacking.push("no limit of memory: /proc/self/statm cannot be read".to_owned()),
    }
    limit(Resource::Nofile, DESCRIPTORS)?;
    limit(Resource::Nproc, 0)?;
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Fsize, 0)?;
    sys::default_signals();
    match sys::landlock(&READABLE) {
        Ok(version) => in_force.push(format!("landlock {version}")),
        Err(error) => lacking.push(format!("no Landlock: {error}")),
    }
    match filter(FORBIDDEN, &[], Action::Allow).and_then(|program| sys::seccomp(&program)) {
        Ok(()) => in_force.push("seccomp".to_owned()),
        Err(error) => lacking.push(format!("no seccomp: {error}")),
    }
    if demand == Demand::Require && !lacking.is_empty() {
        let remedy = "run on a kernel that has it, or set process.sandbox = \"best-effort\"";
        return Err(format!("sandbox: {}; {remedy}", lacking.join("; ")));
    }
    in_force.extend(lacking);
    Ok(in_force.join(", "))
}

/// Second part.
pub fn serve(demand: Demand) -> Result<(), String> {
    match filter(FORBIDDEN, SERVING, Action::Refuse).and_then(|program| sys::seccomp(&program)) {
        Err(error) if demand == Demand::Require => Err(format!("sandbox: no seccomp: {error}")),
        _ => Ok(()),
    }
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
    // Threads are refused, not punished: constructors of good libraries may try.
    (libc::SYS_clone, Action::Refuse),
    (libc::SYS_clone3, Action::Unknown),
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
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Places in `struct seccomp_data`: number, architecture, low halves of two arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
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
fn filter(first: &[Rule], then: &[Rule], otherwise: Action) -> io::Result<Vec<libc::sock_filter>> {
    if OURS == 0 {
        return Err(io::Error::other("this processor's calls are not known"));
    }
    let mut program = Vec::new();
    let mut say = |code, jt, jf, k| program.push(libc::sock_filter { code, jt, jf, k });
    let plain = |action| match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Refuse | Action::NotExecutable => libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
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
    for &(number, action) in first.iter().chain(then) {
        let number = u32::try_from(number).map_err(io::Error::other)?;
        match action {
            Action::OnlyUs => {
                say(EQUAL, 0, 4, number);
                say(LOAD, 0, 0, FIRST_ARGUMENT);
                say(EQUAL, 0, 1, getpid().as_raw_nonzero().get().cast_unsigned());
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
    fn verdict(program: &[libc::sock_filter], number: libc::c_long, first: u32, third: u32) -> u32 {
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
                        FIRST_ARGUMENT => first,
                        THIRD_ARGUMENT => third,
                        _ => panic!("a place nobody knows"),
                    }
                }
                EQUAL => at += jump(loaded == one.k),
                AT_LEAST => at += jump(loaded >= one.k),
                ANY_BIT => at += jump(loaded & one.k != 0),
                RETURN => return one.k,
                _ => panic!("an instruction nobody knows"),
            }
        }
    }

    #[test]
    fn the_filter_says_what_the_table_says() {
        let loading = filter(FORBIDDEN, &[], Action::Allow).unwrap();
        let serving = filter(FORBIDDEN, SERVING, Action::Refuse).unwrap();
        let us = std::process::id();
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let (allow, kill) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS);
        for (number, first, third, while_loading, while_serving) in [
            (libc::SYS_openat, 0, 0, allow, refuse),
            (libc::SYS_socket, 1, 0, kill, kill),
            (libc::SYS_execve, 0, 0, kill, kill),
            (libc::SYS_tgkill, us, 6, allow, allow),
            (libc::SYS_tgkill, us + 1, 6, kill, kill),
            (libc::SYS_mmap, 0, 3, allow, allow),
            (libc::SYS_mmap, 0, 5, allow, refuse),
            (libc::SYS_clone, 0, 0, refuse, refuse),
            (libc::SYS_setitimer, 0, 0, allow, allow),
            (libc::SYS_sendmsg, 0, 0, allow, allow),
            (libc::c_long::from(0x4000_0001), 0, 0, kill, kill),
        ] {
            assert_eq!(verdict(&loading, number, first, third), while_loading, "{number} while loading");
            assert_eq!(verdict(&serving, number, first, third), while_serving, "{number} while serving");
        }
    }
}
