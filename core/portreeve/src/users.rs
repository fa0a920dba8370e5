//! `portreeve user …`: changes the users file, beside a running server or without one.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use backend::edit::{EditError, NewUser, UsersFile, Verified};
use backend::scheme::{Hash, NewScheme};
use zeroize::Zeroizing;

use crate::cli::{ConfigArg, UserCommand, exit};
use crate::config::{self, Config};
use crate::{files, terminal};

/// How the users file is read, everywhere.
pub fn options(config: &Config) -> backend::users::Options {
    backend::users::Options {
        tag_delimiter: config.users.tag,
        postmaster: config.users.postmaster.clone(),
        names: config.users.names.clone(),
        secrets: config.users.secrets.clone(),
    }
}

/// Runs the command.
pub fn run(command: &UserCommand) -> ExitCode {
    let outcome = match command {
        UserCommand::Add { config, name, password_stdin, cram_md5, scheme, alias } => {
            open(config).and_then(|file| add(&file, name, *password_stdin, &schemes(scheme, *cram_md5), alias))
        }
        UserCommand::List { config } => open(config).and_then(|file| list(&file)),
        UserCommand::Remove { config, name } => {
            open(config).and_then(|file| done(file.remove(name), &format!("removed {name}; mail stays where it is")))
        }
        UserCommand::Passwd { config, name, password_stdin, cram_md5, scheme } => open(config).and_then(|file| {
            let password = terminal::password(*password_stdin, true)?;
            done(
                file.passwd(name, password.as_bytes(), &schemes(scheme, *cram_md5)),
                &format!("changed the password of {name}"),
            )
        }),
        UserCommand::Verify { config, name, password_stdin } => {
            open(config).and_then(|file| verify(&file, name, *password_stdin))
        }
        UserCommand::Import { config, from, domain } => {
            open(config).and_then(|file| import(&file, from.as_deref(), domain.as_deref()))
        }
    };
    outcome.unwrap_or_else(|code| code)
}

type Outcome = Result<ExitCode, ExitCode>;

/// The users file of a configuration; its folder is made when it is missing.
fn open(arg: &ConfigArg) -> Result<UsersFile, ExitCode> {
    let (config, report) = config::load(&arg.file());
    let Some(config) = config else {
        eprint!("{}", report.render(terminal::color()));
        return Err(ExitCode::from(exit::CONFIGURATION));
    };
    file_of(&config).map_err(|error| terminal::fail(exit::FAILURE, error))
}

/// The users file of a configuration that is good.
pub fn file_of(config: &Config) -> Result<UsersFile, String> {
    if let Some(folder) = config.users.file.parent().filter(|folder| !folder.exists()) {
        files::state_folder(config)?;
        // A server that runs as somebody else must be able to read what is put there.
        files::folder_of_children(folder, crate::rights::ids(config).unwrap_or(None).as_ref())?;
    }
    Ok(UsersFile::new(&config.users.file, options(config)))
}

fn failed(error: &EditError) -> ExitCode {
    terminal::fail(exit::FAILURE, error)
}

fn done<T>(outcome: Result<T, EditError>, text: &str) -> Outcome {
    outcome.map_err(|error| failed(&error))?;
    Ok(terminal::print(&format!("{text}\n")))
}

fn add(file: &UsersFile, name: &str, from_stdin: bool, schemes: &[NewScheme], aliases: &[String]) -> Outcome {
    let password = terminal::password(from_stdin, true)?;
    let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
    let new = NewUser { name, password: Some(password.as_bytes()), schemes, aliases: &aliases, ..NewUser::default() };
    let name = file.add(&new).map_err(|error| failed(&error))?;
    Ok(terminal::print(&format!("added {name}\n")))
}

/// What a password is to be stored as: what was named; `--cram-md5` says: beside the usual, or what was named.
fn schemes(named: &[NewScheme], cram_md5: bool) -> Vec<NewScheme> {
    let mut schemes = named.to_vec();
    if cram_md5 && !schemes.contains(&NewScheme::CramMd5) {
        if schemes.is_empty() {
            schemes.push(NewScheme::Scram(Hash::Sha256));
        }
        schemes.push(NewScheme::CramMd5);
    }
    schemes
}

fn list(file: &UsersFile) -> Outcome {
    let users = file.list().map_err(|error| failed(&error))?;
    let mut to = String::new();
    for user in &users {
        let _ = write!(to, "{:<40} {}", user.name, user.schemes.join(" "));
        for (word, addresses) in [("aliases", &user.aliases), ("senders", &user.senders)] {
            if !addresses.is_empty() {
                let _ = write!(to, " {word}={}", addresses.join(","));
            }
        }
        to.push_str(if user.disabled { " disabled\n" } else { "\n" });
    }
    Ok(terminal::print(&to))
}

fn verify(file: &UsersFile, name: &str, from_stdin: bool) -> Outcome {
    let password = terminal::password(from_stdin, false)?;
    let text = match file.verify(name, password.as_bytes()).map_err(|error| failed(&error))? {
        Verified::Right => return Ok(terminal::print("right\n")),
        Verified::Disabled => format!("{name}: the password is right, but the account is disabled"),
        Verified::Wrong => format!("{name}: the password is wrong"),
        Verified::Unknown => format!("{name}: no such user"),
    };
    Err(terminal::fail(exit::FAILURE, text))
}

/// Largest file that is taken over, octets.
const IMPORT_OCTETS_MAX: u64 = 1 << 30;

fn import(file: &UsersFile, from: Option<&Path>, domain: Option<&str>) -> Outcome {
    let shown = from.map_or_else(|| "standard input".to_owned(), |from| from.display().to_string());
    let told = |error: std::io::Error| terminal::fail(exit::FAILURE, format!("{shown}: {error}"));
    let mut text = Zeroizing::new(Vec::new());
    match from {
        Some(from) => {
            let opened = std::fs::File::open(from).map_err(told)?;
            opened.take(IMPORT_OCTETS_MAX).read_to_end(&mut text).map_err(told)?;
        }
        None => {
            std::io::stdin().lock().take(IMPORT_OCTETS_MAX).read_to_end(&mut text).map_err(told)?;
        }
    }
    let text = match domain {
        Some(domain) => qualified(&text, domain),
        None => text,
    };
    let imported = file.import(&text).map_err(|error| failed(&error))?;
    for refused in &imported.refused {
        eprintln!("{shown}:{}: {}; this line was left out", refused.line, refused.cause);
    }
    let code = terminal::print(&format!(
        "{} added, {} changed, {} unchanged, {} refused\n",
        imported.added,
        imported.changed,
        imported.unchanged,
        imported.refused.len()
    ));
    if imported.refused.is_empty() { Ok(code) } else { Err(ExitCode::from(exit::FAILURE)) }
}

/// Puts `@domain` behind names that have none.
fn qualified(text: &[u8], domain: &str) -> Zeroizing<Vec<u8>> {
    let mut to = Zeroizing::new(Vec::with_capacity(text.len() * 2));
    for line in text.split_inclusive(|&c| c == b'\n') {
        match line.iter().position(|&c| c == b':') {
            Some(colon) if line.first() != Some(&b'#') && !line[..colon].contains(&b'@') => {
                to.extend_from_slice(&line[..colon]);
                to.push(b'@');
                to.extend_from_slice(domain.as_bytes());
                to.extend_from_slice(&line[colon..]);
            }
            _ => to.extend_from_slice(line),
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_goes_behind_bare_names_only() {
        let text = b"# x:y\nalice:{PLAIN}a@b\nbob@there.example:{PLAIN}x\n\nno colon\n";
        let wanted = "# x:y\nalice@here.example:{PLAIN}a@b\nbob@there.example:{PLAIN}x\n\nno colon\n";
        assert_eq!(std::str::from_utf8(&qualified(text, "here.example")).unwrap(), wanted);
    }
}
