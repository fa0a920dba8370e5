//! Portreeve: an SMTP listener for 25, 587 and 465. This is the program; DESIGN.md §3 has its processes.
//!
//! ```text
//! cli → check (options → values → config → this host) → serve ─ supervisor ─┬─ roles: worker, directory,
//!       init, demo, user, plugin, status                                    └─        delivery, control
//! ```
//!
//! `options/` is the table of every setting; `check.rs` decides whether a configuration is good, for
//! `check`, start and reload alike; `roles/` is what each process does; everything else is a command.
#![forbid(unsafe_code)]

mod backends;
mod bench;
mod certificates;
mod check;
mod cli;
mod config;
mod control;
mod demo;
mod ehlo;
mod files;
mod init;
mod listeners;
mod next_hop;
mod options;
mod plugins;
mod queue;
mod report;
mod rights;
mod roles;
mod runners;
mod serve;
mod terminal;
mod tokens;
mod users;
mod values;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{BenchCommand, Cli, Command, ConfigCommand, exit};

fn main() -> ExitCode {
    // Before the command line proper: a child has given up its rights when it reads anything else.
    if let Some(requested) = supervisor::child::requested(std::env::args_os()) {
        return roles::run(requested);
    }
    if conformance::child::requested() {
        conformance::child::main();
    }
    let cli = Cli::parse();
    if cli.build_info {
        return terminal::print(&build_info());
    }
    match cli.command {
        None => ExitCode::from(2),
        Some(Command::Serve { config }) => serve::serve(&config.file()),
        Some(Command::Demo { dir }) => demo::run(&dir),
        Some(Command::Init { dir, hostname, domain }) => init::run(&init::Wish { dir, hostname, domain }),
        Some(Command::Check { config, print_ehlo }) => check::command(&config, print_ehlo.as_deref()),
        Some(Command::Reload { config }) => reload(&config),
        Some(Command::Status { config, json }) => status(&config, json),
        Some(Command::Queue(command)) => queue::command(&command),
        Some(Command::User(command)) => users::run(&command),
        Some(Command::Plugin(command)) => plugins::command(&command),
        Some(Command::Bench(BenchCommand::Spool(wish))) => bench::spool(&wish),
        Some(Command::Bench(BenchCommand::Sasl { seconds, json })) => bench::sasl::command(seconds, json),
        Some(Command::Config(ConfigCommand::Sample)) => terminal::print(&options::sample()),
        Some(Command::Config(ConfigCommand::Reference)) => terminal::print(&options::reference()),
    }
}

/// How this binary was built.
fn build_info() -> String {
    let cryptography = if cfg!(feature = "ring") { "ring" } else { "aws-lc" };
    let hooks = if cfg!(feature = "test-hooks") { "yes (never run this as root)" } else { "no" };
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!(
        "portreeve {}\ncryptography {cryptography}\ntest-hooks {hooks}\nprofile {profile}\nlink {}\n",
        env!("CARGO_PKG_VERSION"),
        link::LINK_VERSION
    )
}

/// The admin socket of a configuration.
fn socket(arg: &cli::ConfigArg) -> Result<std::path::PathBuf, ExitCode> {
    let (config, report) = config::load(&arg.file());
    match config {
        Some(config) => Ok(config.admin.socket),
        None => {
            eprint!("{}", report.render(terminal::color()));
            Err(ExitCode::from(exit::CONFIGURATION))
        }
    }
}

fn reload(arg: &cli::ConfigArg) -> ExitCode {
    let socket = match socket(arg) {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match control::client::ask(&socket, "reload") {
        Ok(answer) if answer["ok"] == true => {
            terminal::print(&format!("{}\n", answer["text"].as_str().unwrap_or("reloaded")))
        }
        Ok(answer) => {
            // The server's own report: the same lines as `check` prints.
            eprintln!("{}", answer["error"].as_str().unwrap_or("the server did not say why").trim_end());
            terminal::fail(exit::CONFIGURATION, "not reloaded; the old configuration stays in service")
        }
        Err(error) => terminal::fail(exit::FAILURE, error),
    }
}

fn status(arg: &cli::ConfigArg, json: bool) -> ExitCode {
    let socket = match socket(arg) {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match control::client::ask(&socket, "status") {
        Ok(answer) if json => terminal::print(&format!("{answer:#}\n")),
        Ok(answer) => terminal::print(&control::client::render_status(&answer)),
        Err(error) => terminal::fail(exit::FAILURE, error),
    }
}
