//! The parent's side: starts children, hears what they find, and says what killed them.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use portreeve_plugin_abi::event;

use crate::child;
use crate::event::{Answer, Facts, Moment, shown};
use crate::job::{Died, Job, Line, Request, Task};
use crate::rules;
use crate::sandbox::Fault;
use crate::world::{Stepper, Traits};

/// Longest line from a child, octets.
const LINE_OCTETS_MAX: u64 = 1 << 20;
/// Most lines of one child.
const LINES_MAX: usize = 100_000;
/// How long a child that was asked to end may take.
const GRACE: Duration = Duration::from_secs(1);

/// A running child.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
}

/// How a child ended.
#[derive(Debug)]
pub enum Ended {
    /// It did its job.
    Done,
    /// A fault, in its own last words.
    Died(Died),
    /// Without a word.
    Silent(ExitStatus),
    /// Its time was up.
    TimedOut(Option<Died>),
}

/// Starts `program` as a child for a job.
pub fn start(program: &PathBuf, job: &Job) -> Result<Running, String> {
    let cannot = |error: std::io::Error| format!("{}: cannot be started as a child: {error}", program.display());
    let mut child = Command::new(program)
        .arg(child::ARGUMENT)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What a library prints is noise to whoever reads the report.
        .stderr(Stdio::null())
        .spawn()
        .map_err(cannot)?;
    let mut stdin = child.stdin.take().ok_or("no pipe to the child")?;
    let stdout = child.stdout.take().ok_or("no pipe from the child")?;
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        for _ in 0..LINES_MAX {
            let mut line = Vec::new();
            match reader.by_ref().take(LINE_OCTETS_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                // What is no line of ours is the library's: it may have found the pipe.
                Ok(_) => {
                    if let Ok(line) = serde_json::from_slice(&line)
                        && to.send(line).is_err()
                    {
                        return;
                    }
                }
            }
        }
    });
    let mut text = serde_json::to_vec(job).map_err(|error| error.to_string())?;
    text.push(b'\n');
    stdin.write_all(&text).map_err(cannot)?;
    Ok(Running { child, stdin: Some(stdin), lines })
}

impl Running {
    /// Hears it out, at most until `deadline`.
    pub fn listen(mut self, deadline: Instant, hear: &mut dyn FnMut(Line)) -> Ended {
        let mut asked = false;
        let mut deadline = deadline;
        let mut died = None;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Done) => {
                    self.end();
                    return Ended::Done;
                }
                Ok(Line::Died(words)) => died = Some(words),
                Ok(line) => hear(line),
                Err(RecvTimeoutError::Timeout) if !asked => {
                    // Its handler says where it is.
                    asked = true;
                    deadline = Instant::now() + GRACE;
                    self.ask_to_end();
                }
                Err(error) => {
                    if error == RecvTimeoutError::Timeout {
                        let _ = self.child.kill();
                    }
                    let status = self.child.wait();
                    return match (asked, died, status) {
                        (true, died, _) => Ended::TimedOut(died),
                        (false, Some(died), _) => Ended::Died(died),
                        (false, None, Ok(status)) => Ended::Silent(status),
                        (false, None, Err(_)) => Ended::TimedOut(None),
                    };
                }
            }
        }
    }

    fn ask_to_end(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    fn end(&mut self) {
        self.stdin = None;
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rule that an end broke, and what was seen.
pub fn explain(task: Task, ended: &Ended) -> Option<(&'static str, String)> {
    let (rule, text) = match ended {
        Ended::Done => return None,
        Ended::Silent(status) => (task.rule_of_a_crash(), format!("the process ended without a word ({status})")),
        Ended::TimedOut(died) => {
            let step = died.as_ref().map_or(String::new(), at_step);
            match task {
                Task::Describe => ("M7", "loading it did not come to an end".into()),
                Task::Handshake | Task::Settings => (task.rule_of_a_crash(), "it did not come to an end".into()),
                Task::Backend => ("B4", "it did not come to an end".into()),
                _ => ("M7", format!("it did not come to an end{step}")),
            }
        }
        Ended::Died(died) => died_of(task, died),
    };
    // A child's word names no rule; ours are all in the table.
    rules::rule(rule).map(|rule| (rule.id, text))
}

fn died_of(task: Task, died: &Died) -> (&'static str, String) {
    let step = at_step(died);
    let loading = matches!(task, Task::Describe | Task::Handshake | Task::Settings);
    match died.place.as_str() {
        "abort" | "assert" => {
            ("A7", format!("it calls {}(){step}", if died.place == "abort" { "abort" } else { "assert" }))
        }
        // It may do what a mechanism may not; what ends it is what it was asked.
        "stack" | "NULL" | "elsewhere" | "signal" if task == Task::Backend && died.signal != 6 => (
            task.rule_of_a_crash(),
            format!("it dies ({}) of a name that somebody could send", signal_name(died.signal)),
        ),
        "exit" if loading => (task.rule_of_a_crash(), "it ends the process".into()),
        "exit" => ("M5", format!("it ends the process by exit(){step}")),
        "double free" => ("M4", format!("it frees what it has freed before{step}")),
        "system call" => {
            let (name, argument) = (call_name(died.call), died.argument);
            let writes = matches!(name, "write" | "writev");
            match (task, writes, argument) {
                // The C library complains about a broken heap before it gives up.
                (Task::Drop, true, 2) => ("M4", format!("the C library finds the heap broken{step}")),
                (_, true, 1) => ("M5", format!("it writes to standard output{step}")),
                (_, true, 2) => ("M5", format!("it writes to standard error, or the C library complains there{step}")),
                _ if matches!(name, "clone" | "clone3" | "fork" | "vfork") => {
                    ("M5", format!("it starts a thread or a process ({name}){step}"))
                }
                _ => ("M5", format!("system call {name}{step}")),
            }
        }
        "timeout" => ("M7", format!("it did not come to an end{step}")),
        "signal" => {
            let name = signal_name(died.signal);
            let rule = if died.signal == 6 { "A7" } else { task.rule_of_a_crash() };
            (rule, format!("{name}{step}"))
        }
        "stack" => ("M2", format!("its stack overflows, or it touches what is near it{step}")),
        "NULL" => (task.rule_of_a_crash(), format!("it uses a NULL pointer{step}")),
        "elsewhere" => {
            (task.rule_of_a_crash(), format!("{}: it touches memory that is nobody's{step}", signal_name(died.signal)))
        }
        wrote @ ("wrote to the message" | "wrote to prv_in") => ("M2", format!("it {wrote}, which is read-only{step}")),
        place => ("M2", format!("it reads or writes {place}{step}")),
    }
}

fn at_step(died: &Died) -> String {
    let name = match died.event {
        event::START => "START",
        event::MESSAGE => "MESSAGE",
        event::RESULT => "RESULT",
        event::RESUME => "RESUME",
        _ => return String::new(),
    };
    let octets: Vec<u8> = (0..died.message.len() / 2)
        .filter_map(|at| u8::from_str_radix(died.message.get(2 * at..2 * at + 2)?, 16).ok())
        .collect();
    let cut = if (octets.len() as u64) < died.message_octets { "…" } else { "" };
    format!(", at event {name} with the message {}{cut}", shown(&octets))
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        31 => "SIGSYS",
        _ => "a signal",
    }
}

/// The calls that a plugin is likely to make, by their numbers on this machine.
fn call_name(number: i64) -> &'static str {
    macro_rules! names {
        ($($constant:ident $name:literal),* $(,)?) => {
            [$((libc::$constant, $name)),*]
        };
    }
    let names = names![
        SYS_read "read", SYS_write "write", SYS_writev "writev", SYS_openat "open", SYS_close "close",
        SYS_socket "socket", SYS_connect "connect", SYS_bind "bind", SYS_sendto "sendto", SYS_recvfrom "recvfrom",
        SYS_clone "clone", SYS_clone3 "clone3", SYS_execve "execve", SYS_exit_group "exit", SYS_kill "kill",
        SYS_tgkill "kill", SYS_nanosleep "sleep", SYS_clock_nanosleep "sleep", SYS_getrandom "getrandom",
        SYS_clock_gettime "clock_gettime", SYS_gettid "gettid", SYS_getpid "getpid", SYS_getuid "getuid", SYS_ioctl "ioctl",
        SYS_fcntl "fcntl", SYS_newfstatat "stat", SYS_fstat "fstat", SYS_ppoll "poll", SYS_umask "umask", SYS_chdir "chdir",
        SYS_rt_sigaction "sigaction", SYS_setitimer "setitimer", SYS_prlimit64 "setrlimit", SYS_uname "uname",
        SYS_sysinfo "sysinfo", SYS_memfd_create "memfd_create", SYS_pipe2 "pipe", SYS_unlinkat "unlink",
    ];
    #[cfg(target_arch = "x86_64")]
    let older = names![
        SYS_open "open", SYS_fork "fork", SYS_vfork "vfork", SYS_poll "poll", SYS_select "select", SYS_time "time",
        SYS_gettimeofday "gettimeofday", SYS_pause "pause", SYS_alarm "alarm", SYS_access "access", SYS_unlink "unlink",
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let older: [(i64, &str); 0] = [];
    let known = names.iter().chain(&older).find(|(known, _)| *known == number);
    known.map_or("of another kind", |(_, name)| name)
}

// ---------------------------------------------------------------- steps in a child

/// A mechanism in a child, stepped on request.
pub struct Served {
    running: Running,
    /// What it declares.
    pub traits: Traits,
}

/// How long one step may take before it counts as endless.
const STEP_TIME_MAX: Duration = Duration::from_secs(5);

impl Served {
    /// Loads and configures.
    pub fn start(program: &PathBuf, job: &Job) -> Result<Self, String> {
        let running = start(program, &Job { task: Task::Serve, ..job.clone() })?;
        let deadline = Instant::now() + STEP_TIME_MAX;
        loop {
            match running.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Ready(traits)) => return Ok(Self { running, traits }),
                Ok(Line::Finding(finding)) => return Err(format!("{}: {}", finding.rule, finding.text)),
                Ok(Line::Died(died)) => {
                    let (rule, text) = died_of(Task::Describe, &died);
                    return Err(format!("{rule}: {text}"));
                }
                Ok(_) => {}
                Err(_) => {
                    let (file, mech) = (job.file.display(), &job.mech);
                    return Err(format!(
                        "{file}: {mech} is not in it, or it cannot be loaded; `plugin check` tells more"
                    ));
                }
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, Fault> {
        let gone = |rule: &'static str, text: &str| Fault::new(rule, text.to_owned());
        let mut line = serde_json::to_vec(request).map_err(|error| gone("M2", &error.to_string()))?;
        line.push(b'\n');
        let stdin = self.running.stdin.as_mut().ok_or_else(|| gone("M2", "the child is gone"))?;
        let sent = stdin.write_all(&line).and_then(|()| stdin.flush());
        let deadline = Instant::now() + STEP_TIME_MAX;
        loop {
            match self.running.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Line::Answer(answer)) => return Ok(answer),
                Ok(Line::Fault(fault)) => {
                    let rule = rules::rule(&fault.rule).map_or("M2", |rule| rule.id);
                    return Err(Fault::new(rule, fault.text));
                }
                Ok(Line::Died(died)) => {
                    let (rule, text) = died_of(Task::Serve, &died);
                    return Err(Fault::new(rule, text));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(gone("M7", "it did not come to an end")),
                Err(RecvTimeoutError::Disconnected) => {
                    let why = if sent.is_err() { "the child is gone" } else { "the process ended without a word" };
                    return Err(gone("M2", why));
                }
            }
        }
    }
}

impl Stepper for Served {
    fn begin(&mut self) -> Result<(), Fault> {
        self.ask(&Request::Begin).map(drop)
    }

    fn step(&mut self, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        self.ask(&Request::Step(Box::new((facts.clone(), moment.clone()))))
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.ask(&Request::Finish).map(drop)
    }
}
