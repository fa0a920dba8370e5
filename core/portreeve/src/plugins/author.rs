//! What the author of a mechanism does with it: the conformance kit on the command line.

use std::collections::BTreeMap;
use std::io::{BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use conformance::check::{self, Told};
use conformance::fuzz::fuzz;
use conformance::job::{Job, Task};
use conformance::process::Served;
use conformance::rules::rule;
use conformance::scaffold;
use conformance::script::Run;
use conformance::trace::{Trace, replay, replay_in};
use conformance::vectors::{self, Vector};
use conformance::wire::{self, Came};
use portreeve_plugin_abi as abi;

use crate::cli::{Language, PluginCommand, ReplayRunner, exit};
use crate::runners::{self, Hosted, Inline};
use crate::terminal;

/// Whether all was well, or why it could not be tried.
type Tried = Result<bool, String>;

pub fn command(command: &PluginCommand) -> ExitCode {
    let tried = match command {
        PluginCommand::Check { file, mech, config, vectors, seconds, seed, json } => {
            check_library(file, mech.as_ref(), config.as_ref(), vectors.as_deref(), (*seconds, *seed), *json)
        }
        PluginCommand::Run { file, mech, script, config, record, seed } => {
            let job = Job { seed: *seed, ..job(file, mech, config.as_ref()) };
            run(&job, script.as_deref(), record.as_deref())
        }
        PluginCommand::Fuzz { file, mech, seconds, seed, exchanges, config, vectors } => {
            let job = Job {
                seed: *seed,
                exchanges: exchanges.unwrap_or(0),
                budget_ms: milliseconds(*seconds),
                ..job(file, mech, config.as_ref())
            };
            text_of(vectors.as_deref()).and_then(|vectors| fuzz_mechanism(&Job { vectors, ..job }))
        }
        PluginCommand::Replay { trace, plugin, runner } => replay_trace(trace, plugin.clone(), *runner),
        PluginCommand::Vectors { file, plugin, smtp, exact, mech } => {
            run_vectors(file, plugin, smtp.as_deref(), *exact, mech.as_deref())
        }
        PluginCommand::New { name, lang, dir } => new(name, *lang, dir.as_deref()),
        PluginCommand::Abi { json: true } => say(&format!("{:#}\n", abi_as_json())),
        PluginCommand::Abi { json: false } => say(&abi_as_text()),
        PluginCommand::List { .. } | PluginCommand::Inspect { .. } => Err("not a command for authors".into()),
    };
    match tried {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(exit::FAILURE),
        Err(cause) => terminal::fail(exit::UNTRIED, cause),
    }
}

/// Prints; a reader that went away is no failure.
fn say(text: &str) -> Tried {
    terminal::print(text);
    Ok(true)
}

/// The program that children of the kit are: this one.
fn program() -> Result<PathBuf, String> {
    // The file may have been replaced since; the running one is still there under this name.
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Ok(running) } else { std::env::current_exe().map_err(|error| error.to_string()) }
}

fn milliseconds(seconds: f64) -> u64 {
    (seconds.clamp(0.0, 86_400.0) * 1000.0) as u64
}

fn job(file: &Path, mech: &str, config: Option<&String>) -> Job {
    Job {
        task: Task::Serve,
        file: absolute(file),
        mech: mech.to_ascii_uppercase(),
        settings: config.cloned(),
        vectors: None,
        budget_ms: 0,
        seed: 1,
        exchanges: 0,
    }
}

/// The dynamic linker looks for a bare name elsewhere.
fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

fn text_of(file: Option<&Path>) -> Result<Option<String>, String> {
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
    file.map(read).transpose()
}

fn check_library(
    file: &Path,
    mech: Option<&String>,
    config: Option<&String>,
    vectors: Option<&Path>,
    (seconds, seed): (f64, u64),
    json: bool,
) -> Tried {
    let options = check::Options {
        program: program()?,
        file: absolute(file),
        mech: mech.map(|mech| mech.to_ascii_uppercase()),
        settings: config.cloned(),
        vectors: text_of(vectors)?,
        seconds,
        seed,
    };
    if let Some(vectors) = &options.vectors {
        vectors::parse(vectors)?;
    }
    if let Some(settings) = &options.settings {
        plugin_host::flatten(settings)?;
    }
    let all = std::io::stdout().is_terminal();
    let mut tell = |told: Told| {
        let text = if json { Some(format!("{}\n", told.to_json())) } else { told.to_text(all) };
        if let Some(text) = text {
            terminal::print(&text);
        }
    };
    let summary = check::check(&options, &mut tell)?;
    let good = summary.failed == 0;
    if json {
        let line = serde_json::json!({"passed": summary.passed, "failed": summary.failed, "skipped": summary.skipped});
        terminal::print(&format!("{line}\n"));
    } else {
        let verdict = if good { "good" } else { "broken" };
        let (passed, failed, skipped) = (summary.passed, summary.failed, summary.skipped);
        terminal::print(&format!("{verdict}: {passed} passed, {failed} failed, {skipped} skipped\n"));
    }
    Ok(good)
}

fn run(job: &Job, script: Option<&Path>, record: Option<&Path>) -> Tried {
    let mut trace = record.map(|_| Trace::new(job)).transpose()?;
    let mut served = Served::start(&program()?, job)?;
    let traits = served.traits.clone();
    let mut out = std::io::stdout();
    let run = Run::new(&mut served, traits, job.seed, &mut out, trace.as_mut());
    let good = match script {
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            run.follow(BufReader::new(file), false).map_err(|cause| format!("{}: {cause}", path.display()))?
        }
        None => {
            let prompt = std::io::stdin().is_terminal();
            if prompt {
                print!("start, start \"…\", say \"…\", answer STATUS, user NAME PASSWORD; Ctrl-D ends\n> ");
                let _ = std::io::stdout().flush();
            }
            run.follow(std::io::stdin().lock(), prompt)?
        }
    };
    if let (Some(trace), Some(path)) = (trace, record) {
        trace.write(path)?;
        terminal::print(&format!("recorded {} lines in {}\n", trace.entries.len() + 1, path.display()));
    }
    Ok(good)
}

fn fuzz_mechanism(job: &Job) -> Tried {
    let terminal = std::io::stderr().is_terminal();
    let fuzzed = fuzz(&program()?, job, &mut |count| {
        if terminal {
            eprint!("\r{count} exchanges");
        }
    })?;
    if terminal {
        eprintln!();
    }
    let Some(finding) = fuzzed.finding else {
        return say(&format!("{}: {} exchanges, nothing found (seed {})\n", job.mech, fuzzed.exchanges, job.seed));
    };
    let remedy = rule(&finding.rule).map_or("", |rule| rule.remedy);
    terminal::print(&format!("FAIL  {} {}: {}\n      mend: {remedy}\n", finding.rule, finding.mech, finding.text));
    Ok(false)
}

fn replay_trace(path: &Path, plugin: Option<PathBuf>, runner: ReplayRunner) -> Tried {
    let trace = Trace::read(path)?;
    let plugin = plugin.map(|file| absolute(&file));
    let file = plugin.as_ref().unwrap_or(&trace.header.file);
    let found = plugin_host::inspect(file).map_err(|error| error.to_string())?;
    if super::hex(&found.sha256) != trace.header.sha256 {
        terminal::warn(format!("{}: not the library that the trace was recorded with", file.display()));
    }
    let mech = trace.header.mech.clone();
    let replayed = match runner {
        ReplayRunner::Check => replay(&program()?, &trace, plugin)?,
        ReplayRunner::Inline => {
            let settings = trace.header.settings.as_deref().unwrap_or_default();
            replay_in(&mut Inline::new(&runners::vet(file)?, &mech, settings)?, &trace)?
        }
        ReplayRunner::Process => {
            let settings = trace.header.settings.as_deref();
            replay_in(&mut Hosted::start(&program()?, &runners::vet(file)?, &mech, settings)?, &trace)?
        }
    };
    match replayed.difference {
        None => say(&format!("{} steps in {} exchanges: the same\n", replayed.steps, replayed.exchanges)),
        Some(difference) => {
            terminal::print(&format!("{}: {difference}\n", path.display()));
            Ok(false)
        }
    }
}

fn run_vectors(file: &Path, plugins: &[PathBuf], smtp: Option<&str>, exact: bool, mech: Option<&str>) -> Tried {
    let mut vectors = vectors::read(file)?;
    vectors.retain(|vector| mech.is_none_or(|mech| vector.mech.eq_ignore_ascii_case(mech)));
    if vectors.is_empty() {
        return Err(format!("{}: no exchange in it", file.display()));
    }
    let mut come = Vec::new();
    if let Some(server) = smtp {
        for vector in &vectors {
            come.push(wire::run(server, vector, exact).unwrap_or_else(Came::Wrong));
        }
    } else {
        let libraries = libraries(plugins)?;
        let mut served: BTreeMap<String, Served> = BTreeMap::new();
        for vector in &vectors {
            come.push(in_process(vector, &libraries, &mut served)?);
        }
    }
    let (mut right, mut wrong, mut skipped) = (0, 0, 0);
    for (vector, came) in vectors.iter().zip(come) {
        let what = format!("{} ({})", vector.mech, vector.source);
        match came {
            Came::Right => right += 1,
            Came::Skipped(why) => {
                skipped += 1;
                terminal::print(&format!("  skip  {what}: {why}\n"));
            }
            Came::Wrong(why) => {
                wrong += 1;
                terminal::print(&format!("  FAIL  {what}: {why}\n"));
            }
        }
    }
    terminal::print(&format!("{right} as published, {wrong} otherwise, {skipped} skipped\n"));
    Ok(wrong == 0 && right > 0)
}

/// Which file has a mechanism.
fn libraries(plugins: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut files: Vec<PathBuf> = plugins.iter().map(|file| absolute(file)).collect();
    if files.is_empty() {
        for id in ["standard", "legacy"] {
            files.push(plugin_host::resolve(id, &[]).map_err(|error| error.to_string())?.path);
        }
    }
    let mut libraries = BTreeMap::new();
    for file in files {
        let found = plugin_host::inspect(&file).map_err(|error| error.to_string())?;
        libraries.extend(found.note.mechanisms.keys().map(|name| (name.as_str().to_owned(), file.clone())));
    }
    Ok(libraries)
}

fn in_process(
    vector: &Vector,
    libraries: &BTreeMap<String, PathBuf>,
    served: &mut BTreeMap<String, Served>,
) -> Result<Came, String> {
    let Some(file) = libraries.get(&vector.mech) else {
        return Ok(Came::Skipped("no library has it".into()));
    };
    if !served.contains_key(&vector.mech) {
        served.insert(vector.mech.clone(), Served::start(&program()?, &job(file, &vector.mech, None))?);
    }
    let Some(served) = served.get_mut(&vector.mech) else { return Err("no child".into()) };
    let traits = served.traits.clone();
    Ok(match vector.check(served, &traits) {
        Ok(()) => Came::Right,
        Err(fault) => Came::Wrong(format!("{}: {}", fault.rule, fault.text)),
    })
}

fn new(name: &str, lang: Language, dir: Option<&Path>) -> Tried {
    let language = match lang {
        Language::Rust => scaffold::Language::Rust,
        Language::C => scaffold::Language::C,
    };
    let made = scaffold::new(name, language, dir)?;
    let (folder, mech, library) = (made.folder.display(), &made.mech, &made.library);
    say(&format!(
        "{folder}: the mechanism {mech}, in a library with the id {}\n\nNext:\n  cd {folder}\n  {}\n  \
         portreeve plugin check {library} --vectors vectors.json\n  \
         portreeve plugin run {library} {mech} --script login.script\n",
        made.id, made.build
    ))
}

fn abi_as_json() -> serde_json::Value {
    let structs: serde_json::Map<_, _> = abi::LAYOUT
        .iter()
        .map(|(name, size, fields)| {
            let offsets: serde_json::Map<_, _> =
                fields.iter().map(|(field, at)| (field.trim_start_matches("r#").to_owned(), (*at).into())).collect();
            ((*name).to_owned(), serde_json::json!({"size": size, "offsets": offsets}))
        })
        .collect();
    serde_json::json!({"abi": format!("{}.{}", abi::ABI_MAJOR, abi::ABI_MINOR), "structs": structs})
}

/// As `layout-1.0.txt` of the ABI's source has them.
fn abi_as_text() -> String {
    let mut text = String::new();
    for (name, size, fields) in abi::LAYOUT {
        text += &format!("{name} {size}\n");
        for (field, at) in *fields {
            text += &format!("{name}.{} {at}\n", field.trim_start_matches("r#"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: what the golden file says of a struct, this program says, too.
    #[test]
    fn the_abi_is_that_of_the_golden_file() {
        let golden = include_str!("../../../../plugins/abi/layout-1.0.txt");
        let (text, json) = (abi_as_text(), abi_as_json());
        let mut count = 0;
        for line in golden.lines().filter(|line| line.starts_with("prv_")) {
            assert!(text.lines().any(|now| now == line), "{line}");
            let (name, number) = line.split_once(' ').unwrap();
            let found = match name.split_once('.') {
                Some((name, field)) => &json["structs"][name]["offsets"][field],
                None => &json["structs"][name]["size"],
            };
            assert_eq!(found.as_u64().unwrap().to_string(), number, "{name}");
            count += 1;
        }
        assert!(count > 120, "{count}");
    }

    #[test]
    fn seconds() {
        assert_eq!((milliseconds(0.5), milliseconds(-1.0), milliseconds(1e99)), (500, 0, 86_400_000));
    }
}
