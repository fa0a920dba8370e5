//! The child: loads the library inside of the sandbox and does one job with it.

use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::back_end::{self, Asking};
use crate::job::{Job, Line, Pipe, Task};
use crate::rules::Verdict;
use crate::sandbox::{self, Bound, Declared, Fault, Library};
use crate::schema;
use crate::trial::{Threads, Trial};
use crate::vectors::{self, Vector};
use crate::world::{Traits, World};

/// The argument by which the program knows that it is a child.
pub const ARGUMENT: &str = "plugin-check-child";

/// Whether this process was started as a child of the kit. To be asked before anything else is done.
pub fn requested() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT)
}

/// Does one job and ends the process.
pub fn main() -> ! {
    if let Err(error) = work() {
        eprintln!("{ARGUMENT}: {error}");
        std::process::exit(1);
    }
    sandbox::leave()
}

fn work() -> Result<(), String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    let job: Job = serde_json::from_str(&line).map_err(|error| error.to_string())?;
    // What the library prints must not look like an answer of ours.
    let pipe = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 16).map_err(|error| error.to_string())?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(|error| error.to_string())?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| error.to_string())?;
    bound_resources();
    sandbox::catch_faults(pipe.as_fd());
    let pipe = Pipe(pipe);
    // The handshake is the host's own: it copies the file into a sealed memfd first.
    let sealed = if matches!(job.task, Task::Handshake | Task::Backend) { Some(seal(&job)) } else { None };
    let asking = if job.task == Task::Backend { Some(Asking::start()) } else { None };
    let threads = if job.task == Task::Threads { Some(Threads::start()) } else { None };
    if threads.is_some() {
        sandbox::interrupt_others();
    }
    sandbox::enter_loading().map_err(|error| format!("seccomp: {error}; the kernel must allow filters"))?;
    if let (Some(sealed), Some(asking)) = (&sealed, asking) {
        let sealed = sealed.as_ref().map_err(Clone::clone);
        let copy = sealed.and_then(|(id, fd)| Ok((id.clone(), fd.try_clone().map_err(|error| error.to_string())?)));
        back_end::check(&pipe, &job, copy, asking);
    } else if let Some(sealed) = sealed {
        handshake(&pipe, &job, sealed);
    } else {
        match Library::open(&job.file) {
            Ok((library, faults)) => with_library(&pipe, &job, Box::leak(Box::new(library)), &faults, threads)?,
            Err(fault) => pipe.fault("", &fault),
        }
    }
    pipe.send(&Line::Done);
    Ok(())
}

/// A stranger's library may not eat the machine.
fn bound_resources() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    for (resource, most) in
        [(Resource::As, 4 << 30), (Resource::Core, 0), (Resource::Cpu, 600), (Resource::Nofile, 256)]
    {
        let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
}

fn with_library(
    pipe: &Pipe,
    job: &Job,
    library: &'static Library,
    faults: &[Fault],
    threads: Option<Threads>,
) -> Result<(), String> {
    let about = &library.about;
    if job.task == Task::Describe {
        faults.iter().for_each(|fault| pipe.fault("", fault));
        let broken: BTreeSet<&str> = faults.iter().map(|fault| fault.rule).collect();
        for rule in job.task.rules().iter().filter(|rule| !broken.contains(**rule)) {
            pipe.finding(rule, "", Verdict::Pass, "");
        }
        let mechanisms = about.mechanisms.iter().map(Traits::of).collect();
        pipe.send(&Line::Library { id: about.id.clone(), version: about.version.clone(), mechanisms });
        return Ok(());
    }
    let known = about.mechanisms.iter().find(|declared| declared.name == job.mech);
    let declared: &'static Declared = known.ok_or_else(|| format!("no mechanism {}", job.mech))?;
    let described = schema::read(declared.schema.as_deref());
    if job.task == Task::Settings {
        settings(pipe, job, library, declared, &described);
        return Ok(());
    }
    let settings = job.settings.clone().unwrap_or_else(|| described.map_or("{}".into(), |schema| schema.working()));
    let bound = match Bound::new(library, declared, &settings) {
        Ok(bound) => Box::leak(Box::new(bound)),
        Err(cause) => {
            let text = format!("configure() refuses {settings}: {cause}; give settings with --config");
            pipe.finding("D1", &job.mech, Verdict::Fail, text);
            return Ok(());
        }
    };
    let vectors = job.vectors.as_deref().map_or(Ok(vec![]), vectors::parse)?;
    let trial = Trial {
        pipe,
        job,
        declared,
        bound,
        traits: Traits::of(declared),
        world: world_of(&vectors, declared),
        vectors,
    };
    trial.enter(threads)
}

/// The world knows whom the samples speak of.
fn world_of(vectors: &[Vector], declared: &Declared) -> World {
    let mut world = World::default();
    let traits = Traits::of(declared);
    for vector in vectors.iter().filter(|vector| vector.mech == traits.name && vector.outcome() == "success") {
        let (other, _) = vector.world(&traits);
        world.users.extend(other.users);
        world.tokens.extend(other.tokens);
        world.proxies.extend(other.proxies);
    }
    world
}

// ---------------------------------------------------------------- A7, D1

fn seal(job: &Job) -> Result<(String, OwnedFd), String> {
    let inspection = plugin_host::inspect(&job.file).map_err(|error| error.to_string())?;
    let octets = std::fs::read(&job.file).map_err(|error| error.to_string())?;
    let fd = link::sealed::create("portreeve-check", &octets).map_err(|error| error.to_string())?;
    Ok((inspection.note.id, fd))
}

/// As a worker does it: what is refused there is refused here.
fn handshake(pipe: &Pipe, job: &Job, sealed: Result<(String, OwnedFd), String>) {
    let loaded = sealed.and_then(|(id, fd)| {
        plugin_host::Registry::new()
            .load(&id, fd, &job.file, plugin_host::Terms::default())
            .map_err(|error| error.to_string())
    });
    match loaded {
        Ok(()) => pipe.finding("A7", "", Verdict::Pass, ""),
        Err(cause) => pipe.finding("A7", "", Verdict::Fail, cause),
    }
}

fn settings(
    pipe: &Pipe,
    job: &Job,
    library: &Library,
    declared: &Declared,
    described: &Result<schema::Schema, String>,
) {
    let mech = job.mech.as_str();
    let judged = match described {
        Err(cause) => Err(format!("config_schema {cause}")),
        Ok(schema) if !declared.is_configured() && !schema.is_empty() => {
            Err("a config_schema, but configure is NULL".into())
        }
        Ok(schema) => {
            schema.try_out(job.settings.as_deref(), &mut |settings| Bound::new(library, declared, settings).map(drop))
        }
    };
    match judged {
        Ok(()) => pipe.finding("D1", mech, Verdict::Pass, ""),
        Err(cause) => pipe.finding("D1", mech, Verdict::Fail, cause),
    }
}
