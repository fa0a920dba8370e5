//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use backend::scheme::NewScheme;
use clap::{Args, Parser, Subcommand};

/// Exit codes beside 0, as documented in `--help`. 2 is clap's, 130 the supervisor's.
pub mod exit {
    /// It did not work.
    pub const FAILURE: u8 = 1;
    /// A check could not be made at all.
    pub const UNTRIED: u8 = 2;
    /// A file that is no plugin.
    pub const NO_PLUGIN: u8 = 3;
    /// The configuration is wrong (`EX_CONFIG` of sysexits).
    pub const CONFIGURATION: u8 = 78;
    /// Ended by Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

const EXAMPLES: &str = "\
Examples:
  portreeve demo                              try it: three listeners, two users, nothing leaves this machine
  portreeve init /etc/portreeve               write a configuration for this host
  portreeve check                             explain what is wrong with it
  portreeve serve                             run it
  portreeve user add alice@example.org        asks for the password
  portreeve status                            what the running server does
  portreeve queue list                        which mail waits, why, and until when

Without --config FILE a command takes ./portreeve.toml, then /etc/portreeve/portreeve.toml.

Exit codes: 0 fine, 1 failure, 2 wrong usage, 78 mistake in the configuration, 130 ended by a second Ctrl-C.";

/// An SMTP listener: mail on 25, 587 and 465.
#[derive(Parser)]
#[command(name = "portreeve", version, about, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// Tell how this binary was built.
    #[arg(long, exclusive = true)]
    pub build_info: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Which configuration.
#[derive(Args, Clone, Debug)]
pub struct ConfigArg {
    /// The configuration file.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigArg {
    /// The file that is meant.
    pub fn file(&self) -> PathBuf {
        let here = PathBuf::from("portreeve.toml");
        match &self.config {
            Some(file) => file.clone(),
            None if here.is_file() => here,
            None => PathBuf::from("/etc/portreeve/portreeve.toml"),
        }
    }
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run the server.
    #[command(after_help = "\
Examples:
  portreeve serve --config /etc/portreeve/portreeve.toml

Signals: SIGHUP reloads, SIGTERM and SIGINT drain (a second one ends at once).
Started as root it binds its ports, then every process that meets a client becomes `process.user`.")]
    Serve {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Try it: three listeners on this machine, two users, mail in Maildirs; nothing leaves the machine.
    #[command(after_help = "\
Examples:
  portreeve demo                    folder ./portreeve-demo, kept between runs
  portreeve demo --dir /tmp/mail

Ctrl-C ends it.")]
    Demo {
        /// Where certificate, users and mail are kept.
        #[arg(long, value_name = "DIR", default_value = "portreeve-demo")]
        dir: PathBuf,
    },
    /// Write a commented configuration, folders and a self-signed certificate for this host.
    #[command(after_help = "\
Examples:
  portreeve init                                         into the current folder
  portreeve init /etc/portreeve --hostname mail.example.org --domain example.org")]
    Init {
        /// Where to.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// The host's name in mail; the system's name otherwise.
        #[arg(long, value_name = "NAME")]
        hostname: Option<String>,
        /// A domain to take mail for; the host name without its first part otherwise.
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
    },
    /// Explain what is wrong with a configuration; the same code runs before `serve` and `reload`.
    #[command(after_help = "\
Examples:
  portreeve check
  portreeve check --config new.toml
  portreeve check --print-ehlo submission    what its clients are offered

Exit codes: 0 fine (perhaps with warnings), 78 with mistakes.")]
    Check {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// Print the EHLO reply of this listener, in clear and inside TLS.
        #[arg(long, value_name = "LISTENER")]
        print_ehlo: Option<String>,
    },
    /// Make the running server take its configuration again; nothing changes when it has a mistake.
    #[command(after_help = "\
Examples:
  portreeve reload
  portreeve reload --config /etc/portreeve/portreeve.toml

Exit codes: 0 done, 1 no server answers, 78 mistake in the configuration (the old one stays).")]
    Reload {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// What the running server does.
    #[command(after_help = "\
Examples:
  portreeve status
  portreeve status --json | jq .counters")]
    Status {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Mail that waits: why, until when, and what you want done with it.
    #[command(
        subcommand,
        after_help = "\
Examples:
  portreeve queue list --domain far.example
  portreeve queue show 01JD3Q2R8VXK4M6Z0P5T7W9B1C
  portreeve queue retry --all
  portreeve queue remove --from spammer@example.org --older-than 1h

Listed is what could not be handed on at once; `portreeve queue stats` counts the rest, too."
    )]
    Queue(QueueCommand),
    /// Who may log in. Edits the users file; a running server sees the change within seconds.
    #[command(
        subcommand,
        after_help = "\
Examples:
  portreeve user add alice@example.org
  printf %s \"$PASSWORD\" | portreeve user add bob@example.org --password-stdin
  portreeve user list
  portreeve user import --from /etc/dovecot/users

Passwords are asked for or read from standard input, never taken from the command line."
    )]
    User(UserCommand),
    /// Mechanism libraries.
    #[command(
        subcommand,
        after_help = "\
Examples:
  portreeve plugin list
  portreeve plugin inspect ./libportreeve_legacy.so
  portreeve plugin new acme-token --lang c
  portreeve plugin check ./portreeve_acme_token.so

docs/mechanisms.md is the way to a mechanism of your own, docs/plugin-abi.md the reference."
    )]
    Plugin(PluginCommand),
    /// What this machine can do.
    #[command(
        subcommand,
        after_help = "\
Examples:
  portreeve bench spool --dir /var/lib/portreeve
  portreeve bench sasl --json"
    )]
    Bench(BenchCommand),
    /// The configuration's vocabulary.
    #[command(
        subcommand,
        after_help = "\
Examples:
  portreeve config sample > portreeve.toml
  portreeve config reference | less"
    )]
    Config(ConfigCommand),
}

/// Which messages.
#[derive(Args, Clone, Debug)]
pub struct FilterArg {
    /// From this sender; `<>` is the null sender of reports.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<String>,
    /// For this recipient.
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<String>,
    /// For a recipient in this domain.
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Accepted at least so long ago: `90s`, `30m`, `2h`, `3d`.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub older_than: Option<Duration>,
}

/// Which messages, for commands that change them.
#[derive(Args, Clone, Debug)]
pub struct WhichArg {
    /// Which configuration.
    #[command(flatten)]
    pub config: ConfigArg,
    /// Message ids.
    pub ids: Vec<String>,
    /// Which messages.
    #[command(flatten)]
    pub filter: FilterArg,
    /// Every message that waits.
    #[arg(long)]
    pub all: bool,
    /// For programs.
    #[arg(long)]
    pub json: bool,
}

/// `portreeve bench …`
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Durable messages per second on a disk of yours: our spool beside a file for each message and a plain log.
    #[command(after_help = "\
Examples:
  portreeve bench spool --dir /var/lib/portreeve
  portreeve bench spool --dir /srv --seconds 5 --writers 1,16,256
  portreeve bench spool --dir /srv --json > disk.json

Each writer waits until its message is durable before it sends the next one, as a client does. `p50` and `p99` are
the time of that wait; `CPU us` is processor time of this program for each message; `ratio` compares with
`file + fsync + rename` and as many writers in the same run. The last line is the time that a start after a crash
takes to find 100,000 messages. It writes into a folder of its own below --dir, about 1 GiB a second on a fast disk,
and removes it at the end, also after Ctrl-C.

Whether a disk that says `synced` has kept it is the disk's affair: this cannot be measured here.

Exit codes: 0 measured, 1 it could not be (no room, an error of the disk), 130 ended by Ctrl-C.")]
    Spool(BenchSpool),
    /// What an exchange of each mechanism costs inline, and of PLAIN through a process of its own.
    #[command(after_help = "\
Examples:
  portreeve bench sasl
  portreeve bench sasl --json --seconds 5

Times are medians, with the best round beside them; process times count both sides, from the first octet sent to
the last answer read.

Exit codes: 0 all bars are met, 1 one is missed, 2 it could not be measured.")]
    Sasl {
        /// How long each figure is measured.
        #[arg(long, value_name = "N", default_value_t = 1.0)]
        seconds: f64,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct BenchSpool {
    /// A folder on the disk.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How long each line of the table takes.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Writers at the same time, one group of lines each.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = [1, 16, 256], value_parser = writers)]
    pub writers: Vec<usize>,
    /// For programs.
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number between 0.05 and 600".to_owned()),
    }
}

fn writers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(writers) if (1..=4096).contains(&writers) => Ok(writers),
        _ => Err("write numbers between 1 and 4096, separated by commas".to_owned()),
    }
}

fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number and s, m, h or d: 30m".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

/// `portreeve queue …`
#[derive(Subcommand)]
pub enum QueueCommand {
    /// List messages that wait, oldest first.
    #[command(
        after_help = "Examples:\n  portreeve queue list --older-than 1h\n  portreeve queue list --json | jq .messages"
    )]
    List {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// Which messages.
        #[command(flatten)]
        filter: FilterArg,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Show one message: who, why, when, and its header.
    #[command(after_help = "Examples:\n  portreeve queue show 01JD3Q2R8VXK4M6Z0P5T7W9B1C")]
    Show {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// Its id.
        id: String,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Leave messages alone until they are released, also after a restart.
    #[command(after_help = "Examples:\n  portreeve queue hold --from alice@example.org")]
    Hold(WhichArg),
    /// Let held messages go.
    #[command(after_help = "Examples:\n  portreeve queue release --all")]
    Release(WhichArg),
    /// Try messages now. Held ones stay held.
    #[command(after_help = "Examples:\n  portreeve queue retry --domain far.example")]
    Retry(WhichArg),
    /// Take messages out of the queue for good. Nobody is told.
    #[command(after_help = "Examples:\n  portreeve queue remove 01JD3Q2R8VXK4M6Z0P5T7W9B1C")]
    Remove(WhichArg),
    /// Numbers about the queue.
    #[command(after_help = "Examples:\n  portreeve queue stats")]
    Stats {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

fn new_scheme(word: &str) -> Result<NewScheme, String> {
    NewScheme::named(word).ok_or_else(|| {
        let names: Vec<&str> = NewScheme::ALL.iter().map(|(name, _)| *name).collect();
        format!("write one of {}", names.join(", "))
    })
}

/// `portreeve user …`
#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user; asks for the password.
    #[command(after_help = "\
Examples:
  portreeve user add alice@example.org
  portreeve user add bob@example.org --alias robert@example.org --cram-md5 --password-stdin < secret")]
    Add {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// `local@domain`.
        name: String,
        /// Read the password from standard input (one line).
        #[arg(long)]
        password_stdin: bool,
        /// Keep a CRAM-MD5 context, too. Whoever reads the users file can log in with it.
        #[arg(long)]
        cram_md5: bool,
        /// What to store of the password: SCRAM-SHA-256 (as without this), SCRAM-SHA-512, SCRAM-SHA-1, CRAM-MD5,
        /// DIGEST-MD5, PLAIN (the password itself: needs users.allow_cleartext). May be repeated;
        /// each of them serves PLAIN and LOGIN, too.
        #[arg(long, value_name = "SCHEME", value_parser = new_scheme)]
        scheme: Vec<NewScheme>,
        /// Another address of this user: receives its mail and may be sent from. May be repeated.
        #[arg(long, value_name = "ADDRESS")]
        alias: Vec<String>,
    },
    /// List users, without secrets.
    #[command(after_help = "Examples:\n  portreeve user list")]
    List {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Remove a user. Mail stays.
    #[command(after_help = "Examples:\n  portreeve user remove alice@example.org")]
    Remove {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// `local@domain`.
        name: String,
    },
    /// Set a new password; asks for it.
    #[command(after_help = "Examples:\n  portreeve user passwd alice@example.org")]
    Passwd {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// `local@domain`.
        name: String,
        /// Read the password from standard input (one line).
        #[arg(long)]
        password_stdin: bool,
        /// Keep a CRAM-MD5 context, too.
        #[arg(long)]
        cram_md5: bool,
        /// What to store of the password, as with `user add`; without it what was possible before stays so.
        #[arg(long, value_name = "SCHEME", value_parser = new_scheme)]
        scheme: Vec<NewScheme>,
    },
    /// Test a password; exit code 0 when it is right.
    #[command(after_help = "Examples:\n  portreeve user verify alice@example.org")]
    Verify {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// `local@domain`.
        name: String,
        /// Read the password from standard input (one line).
        #[arg(long)]
        password_stdin: bool,
    },
    /// Take over users from lines of the form `user:{SCHEME}hash`, as Dovecot and Postfix keep them.
    #[command(after_help = "\
Examples:
  portreeve user import --from /etc/dovecot/users
  portreeve user import --domain example.org < users")]
    Import {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
        /// The file; standard input otherwise.
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Goes behind names that have no `@`.
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
    },
}

/// `portreeve plugin …`
#[derive(Subcommand)]
pub enum PluginCommand {
    /// The libraries that the configuration loads, with their mechanisms.
    #[command(after_help = "Examples:\n  portreeve plugin list")]
    List {
        /// Which configuration.
        #[command(flatten)]
        config: ConfigArg,
    },
    /// What a library says about itself, read without running it.
    #[command(after_help = "\
Examples:
  portreeve plugin inspect ./libportreeve_legacy.so
  portreeve plugin inspect ./libportreeve_legacy.so --json

Exit codes: 0 fine, 3 no plugin.")]
    Inspect {
        /// The library.
        file: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Test a library against every rule, in a sandboxed process; each failure says how to mend it.
    #[command(after_help = "\
Examples:
  portreeve plugin check ./portreeve_acme_token.so
  portreeve plugin check ./portreeve_acme_token.so --vectors vectors.json --json
  portreeve plugin check ./portreeve_acme_token.so --config '{\"prefix\": \"acme_\"}' --seconds 30

Exit codes: 0 every rule holds, 1 a rule is broken, 2 it could not be tried.")]
    Check {
        /// The library.
        file: PathBuf,
        /// Only this mechanism.
        #[arg(long, value_name = "NAME")]
        mech: Option<String>,
        /// Its settings; otherwise an example of its config_schema is taken.
        #[arg(long, value_name = "JSON")]
        config: Option<String>,
        /// Sample exchanges: where the mechanism is not a known one, they show the way to success.
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
        /// How long the repeated parts may take, for each mechanism.
        #[arg(long, value_name = "N", default_value_t = 4.0)]
        seconds: f64,
        /// Chance.
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// JSON Lines.
        #[arg(long)]
        json: bool,
    },
    /// Run exchanges by hand or by a script, without a server.
    #[command(after_help = "\
Examples:
  portreeve plugin run ./portreeve_acme_token.so X-ACME-TOKEN
  portreeve plugin run ./portreeve_acme_token.so X-ACME-TOKEN --script login.script
  portreeve plugin run ./portreeve_acme_token.so X-ACME-TOKEN --script login.script --record trace

By hand: `start` or `start \"user pencil\"` begins, `say ...` goes on, Ctrl-D ends; the user `user` has the
password `pencil`, `user NAME PASSWORD` makes another. A trace holds what was said: use no real password.

Exit codes: 0 all that was expected came, 1 something else, 2 it could not be tried.")]
    Run {
        /// The library.
        file: PathBuf,
        /// The mechanism.
        mech: String,
        /// The script; standard input otherwise.
        #[arg(long, value_name = "FILE")]
        script: Option<PathBuf>,
        /// Its settings.
        #[arg(long, value_name = "JSON")]
        config: Option<String>,
        /// Write every step and answer to a file, for `replay`.
        #[arg(long, value_name = "TRACE")]
        record: Option<PathBuf>,
        /// What the mechanism's entropy is drawn from.
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
    },
    /// Try random exchanges and damaged keys; the same seed gives the same ones.
    #[command(after_help = "\
Examples:
  portreeve plugin fuzz ./portreeve_acme_token.so X-ACME-TOKEN --seconds 60 --seed 1

Exit codes: 0 nothing found, 1 a rule is broken, 2 it could not be tried.")]
    Fuzz {
        /// The library.
        file: PathBuf,
        /// The mechanism.
        mech: String,
        /// How long.
        #[arg(long, value_name = "N", default_value_t = 10.0)]
        seconds: f64,
        /// Chance.
        #[arg(long, value_name = "S", default_value_t = 1)]
        seed: u64,
        /// So many, however long they take.
        #[arg(long, value_name = "N")]
        exchanges: Option<u64>,
        /// Its settings.
        #[arg(long, value_name = "JSON")]
        config: Option<String>,
        /// Sample exchanges to begin with.
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
    },
    /// Run a recorded trace again and compare every octet.
    #[command(after_help = "\
Examples:
  portreeve plugin replay trace
  portreeve plugin replay trace --plugin ./new/portreeve_acme_token.so
  portreeve plugin replay trace --runner process

`inline` runs the library's code in this process, as a worker does: for one that you trust so far.

Exit codes: 0 the same, 1 a difference, 2 it could not be tried.")]
    Replay {
        /// What `run --record` wrote.
        trace: PathBuf,
        /// Another build of the library.
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        /// Where: in the sandbox of `check`, in this process, or in a process as a server has for a stranger's library.
        #[arg(long, value_enum, default_value_t = ReplayRunner::Check)]
        runner: ReplayRunner,
    },
    /// Run published exchanges, in this process' own sandbox or against a server.
    #[command(after_help = "\
Examples:
  portreeve plugin vectors tests/vectors/sasl.json
  portreeve plugin vectors vectors.json --plugin ./portreeve_acme_token.so
  portreeve plugin vectors tests/vectors/sasl.json --smtp 127.0.0.1:587

Without --plugin the bundled libraries are used. A server must know the users of the file; it is spoken to with
STARTTLS, or with TLS from the start when the address is written smtps:HOST:PORT. Its nonces are its own, so SCRAM,
CRAM-MD5 and DIGEST-MD5 are compared by a client that computes along; with --exact they are compared octet by octet,
which is for a server that was given the nonces of the vectors (a test library; none that ships can do that).

Exit codes: 0 all as published, 1 something else, 2 it could not be tried.")]
    Vectors {
        /// The vectors.
        file: PathBuf,
        /// A library to take mechanisms from. May be repeated.
        #[arg(long, value_name = "FILE")]
        plugin: Vec<PathBuf>,
        /// A running server.
        #[arg(long, value_name = "HOST:PORT")]
        smtp: Option<String>,
        /// Every octet as published, those that follow from the server's nonce too.
        #[arg(long, requires = "smtp")]
        exact: bool,
        /// Only this mechanism.
        #[arg(long, value_name = "NAME")]
        mech: Option<String>,
    },
    /// Make a folder with a mechanism that builds and passes `check`: header, SDK and CI file included.
    #[command(after_help = "\
Examples:
  portreeve plugin new acme-token
  portreeve plugin new acme-token --lang c ~/src/acme")]
    New {
        /// Its name, in lower case; the mechanism is called X-NAME.
        name: String,
        /// What it is written in.
        #[arg(long, value_enum, default_value_t = Language::Rust)]
        lang: Language,
        /// Where to; otherwise a new folder of that name.
        dir: Option<PathBuf>,
    },
    /// Sizes and offsets of the plugin ABI, as this program knows them.
    #[command(after_help = "Examples:\n  portreeve plugin abi\n  portreeve plugin abi --json")]
    Abi {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

/// Where a trace is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReplayRunner {
    /// In the sandbox of `plugin check`.
    Check,
    /// In this process.
    Inline,
    /// In a mechanism-host.
    Process,
}

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Language {
    /// Rust, with the SDK.
    Rust,
    /// C, with the header.
    C,
}

/// `portreeve config …`
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print a configuration file with every option at its default.
    Sample,
    /// Print the reference of all options.
    Reference,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn walk(command: &clap::Command, path: &str, check: &mut impl FnMut(&str, &clap::Command)) {
        check(path, command);
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            walk(sub, &format!("{path} {}", sub.get_name()), check);
        }
    }

    #[test]
    fn every_command_has_help_and_examples() {
        Cli::command().debug_assert();
        let mut seen = Vec::new();
        walk(&Cli::command(), "portreeve", &mut |path, command| {
            seen.push(path.to_owned());
            let help = command.clone().render_long_help().to_string();
            assert!(command.get_about().is_some(), "{path}: no description");
            let whole = path.split(' ').count() == 2
                || path.starts_with("portreeve user ")
                || path.starts_with("portreeve plugin ");
            assert!(
                !whole || help.contains("Examples:\n  portreeve") || help.contains("Examples:\n  p"),
                "{path}: {help}"
            );
        });
        for path in [
            "serve",
            "demo",
            "init",
            "check",
            "reload",
            "status",
            "queue list",
            "queue show",
            "queue hold",
            "queue release",
            "queue retry",
            "queue remove",
            "queue stats",
            "user add",
            "user list",
            "user remove",
            "user passwd",
            "user verify",
            "user import",
            "plugin list",
            "plugin inspect",
            "plugin check",
            "plugin run",
            "plugin fuzz",
            "plugin replay",
            "plugin vectors",
            "plugin new",
            "plugin abi",
            "bench sasl",
            "config sample",
            "config reference",
        ] {
            assert!(seen.contains(&format!("portreeve {path}")), "{path}");
        }
        let top = Cli::command().render_long_help().to_string();
        assert!(top.contains("Exit codes: 0 fine, 1 failure, 2 wrong usage, 78"), "{top}");
    }

    #[test]
    fn no_command_takes_a_password_as_an_argument() {
        walk(&Cli::command(), "portreeve", &mut |path, command| {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(name == "password_stdin" || !name.contains("pass"), "{path} --{name}");
                if name == "password_stdin" {
                    assert!(!argument.get_action().takes_values(), "{path}");
                }
            }
        });
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for arguments in [&["portreeve", "frob"][..], &["portreeve", "serve", "--nope"], &["portreeve", "user", "add"]]
        {
            let error = Cli::try_parse_from(arguments).err().expect("refused");
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
        let error = Cli::try_parse_from(["portreeve", "serv"]).err().expect("refused");
        assert!(error.to_string().contains("'serve'"), "{error}");
    }
}
