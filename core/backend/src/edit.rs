//! Changes the users file: what `portreeve user …` does.
//!
//! Each change takes the lock beside the file (`users.lock`), reads the file, changes lines, checks the
//! whole result as a server would, writes it to a temporary file, syncs it and renames it over the old one.
//! So a running server sees the old content or the new, and two administrators at once lose nothing.
//! Comments, blank lines and the order stay. Owner and group stay too: an administrator is root, the
//! directory process is not.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, flock};
use zeroize::Zeroizing;

use crate::prep;
use crate::scheme::{self, NewScheme, PASSWORD_OCTETS_MAX};
use crate::users::line::{self, escape, escape_secret};
use crate::users::{BadUsers, Options, User, Users};

mod import;
#[cfg(test)]
mod tests;

pub use import::{Imported, Refused, fuzz_import};

/// A users file that may be changed.
pub struct UsersFile {
    path: PathBuf,
    options: Arc<Options>,
}

/// A user to be added.
#[derive(Default)]
pub struct NewUser<'a> {
    /// Name, in any form.
    pub name: &'a str,
    /// Without one nobody can log in.
    pub password: Option<&'a [u8]>,
    /// What the password is stored as; empty: SCRAM-SHA-256 keys.
    pub schemes: &'a [NewScheme],
    /// Addresses, or `@domain`.
    pub aliases: &'a [&'a str],
    /// Addresses, `@domain` or `*`.
    pub senders: &'a [&'a str],
    /// Largest message, octets.
    pub message_octets_max: Option<u64>,
    /// Most recipients of a message.
    pub recipients_max: Option<u32>,
}

/// What is shown of a user. No secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name.
    pub name: String,
    /// The schemes of the secrets.
    pub schemes: Vec<&'static str>,
    /// Further addresses.
    pub aliases: Vec<String>,
    /// What they may send as beside those.
    pub senders: Vec<String>,
    /// May not log in.
    pub disabled: bool,
}

/// The result of [`UsersFile::verify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The password is right.
    Right,
    /// The password is right and the account disabled.
    Disabled,
    /// The password is wrong.
    Wrong,
    /// There is no such user.
    Unknown,
}

/// Why the file was not changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum EditError {
    /// The file, or what it would have become, is not right.
    Users(BadUsers),
    /// Reading, locking or writing failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The name can be nobody's.
    BadName(String),
    /// An alias or sender is neither an address nor a domain.
    BadAddress(String),
    /// There is such a user already.
    Exists(String),
    /// There is no such user.
    Unknown(String),
    /// Empty, longer than 1,024 octets, or with a NUL.
    BadPassword,
    /// No random octets for the salt.
    NoEntropy,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Users(bad) => bad.fmt(f),
            Self::Io { doing, path, error } => {
                write!(f, "{}: {doing}: {error}; run this as the file's owner or as root", path.display())
            }
            Self::BadName(name) => {
                write!(f, "{name:?}: not a user name; it has the form local@domain, without spaces, '/' and controls")
            }
            Self::BadAddress(text) => write!(f, "{text:?}: neither an address (a@b) nor a domain (@b)"),
            Self::Exists(name) => write!(f, "{name}: exists already; change its password with 'portreeve user passwd'"),
            Self::Unknown(name) => write!(f, "{name:?}: no such user; 'portreeve user list' shows all"),
            Self::BadPassword => f.write_str("password: must have 1 to 1,024 octets and no NUL"),
            Self::NoEntropy => f.write_str("the system gave no random octets; try again"),
        }
    }
}

impl std::error::Error for EditError {}

impl From<BadUsers> for EditError {
    fn from(bad: BadUsers) -> Self {
        Self::Users(bad)
    }
}

impl UsersFile {
    /// The file at `path`; it need not exist.
    pub fn new(path: impl Into<PathBuf>, options: Options) -> Self {
        Self { path: path.into(), options: Arc::new(options) }
    }

    /// Adds a user; makes the file when there is none. Returns the name as it was written.
    pub fn add(&self, new: &NewUser<'_>) -> Result<String, EditError> {
        // Hashing before the lock is taken: it is slow.
        let mut line = Line { name: self.name(new.name)?, ..Line::default() };
        if let Some(password) = new.password {
            line.secrets = secrets(&line.name, password, new.schemes)?;
        }
        let mut fields = Vec::new();
        for (key, addresses) in [("aliases", new.aliases), ("senders", new.senders)] {
            if !addresses.is_empty() {
                fields.push(format!("{key}={}", self.addresses(key, addresses)?.join(",")));
            }
        }
        fields.extend(new.message_octets_max.map(|octets| format!("size={octets}")));
        fields.extend(new.recipients_max.map(|count| format!("recipients={count}")));
        line.fields = fields.join(" ");
        self.change(true, |document| {
            if document.users.named(&line.name).is_some() {
                return Err(EditError::Exists(line.name.clone()));
            }
            document.push(&line);
            Ok(line.name.clone())
        })
    }

    /// Removes a user. Comments above the line stay.
    pub fn remove(&self, name: &str) -> Result<(), EditError> {
        let name = self.name(name)?;
        self.change(false, |document| {
            let at = document.find(&name)?;
            document.lines.remove(at);
            Ok(())
        })
    }

    /// Replaces all secrets of a user by those of a new password. Without `schemes`, mechanisms that were possible
    /// stay so.
    pub fn passwd(&self, name: &str, password: &[u8], schemes: &[NewScheme]) -> Result<(), EditError> {
        let name = self.name(name)?;
        // All that may be needed, before the lock is taken: it is slow.
        let usual = [NewScheme::ALL[0].1];
        let all = if schemes.is_empty() { NewScheme::ALL.map(|(_, scheme)| scheme).to_vec() } else { schemes.to_vec() };
        let made = secrets(&name, password, &all)?;
        self.change(false, |document| {
            let at = document.find(&name)?;
            let user = document.users.named(&name).unwrap_or_default();
            let had = |scheme: &NewScheme| {
                let named = |(word, one): &&(&str, NewScheme)| {
                    one == scheme && user.secrets.iter().any(|s| s.scheme() == *word)
                };
                NewScheme::ALL.iter().any(|row| named(&row))
            };
            let keeps = |scheme: &NewScheme| !schemes.is_empty() || usual.contains(scheme) || had(scheme);
            let mut line = document.line(at);
            line.secrets = all.iter().zip(made).filter(|(scheme, _)| keeps(scheme)).map(|(_, secret)| secret).collect();
            document.lines[at] = line.to_text();
            Ok(())
        })
    }

    /// Lets a user log in, or not.
    pub fn set_disabled(&self, name: &str, disabled: bool) -> Result<(), EditError> {
        let name = self.name(name)?;
        self.change(false, |document| {
            let at = document.find(&name)?;
            let mut line = document.line(at);
            let mut fields: Vec<_> = line.fields.split(' ').filter(|f| !f.is_empty() && *f != "disabled").collect();
            if disabled {
                fields.push("disabled");
            }
            line.fields = fields.join(" ");
            document.lines[at] = line.to_text();
            Ok(())
        })
    }

    /// All users, in the file's order.
    pub fn list(&self) -> Result<Vec<Listed>, EditError> {
        let users = Users::load(&self.path, &self.options)?;
        Ok(users.iter().map(listed).collect())
    }

    /// How the SCRAM keys are distributed; for the configuration of decoys.
    pub fn profiles(&self) -> Result<Vec<crate::decoy::Profile>, EditError> {
        Ok(Users::load(&self.path, &self.options)?.profiles())
    }

    /// Whether the password is right. For the administrator, who may know whether a user exists.
    pub fn verify(&self, name: &str, password: &[u8]) -> Result<Verified, EditError> {
        let users = Users::load(&self.path, &self.options)?;
        let Some(user) = users.user(name) else { return Ok(Verified::Unknown) };
        Ok(match (user.verify(password), user.disabled) {
            (false, _) => Verified::Wrong,
            (true, true) => Verified::Disabled,
            (true, false) => Verified::Right,
        })
    }

    fn name(&self, raw: &str) -> Result<String, EditError> {
        let escaped = escape(raw);
        let columns = line::Columns { name: &escaped, secrets: (0, ""), fields: (0, "") };
        line::name(&columns, &self.options).map_err(|_| EditError::BadName(raw.chars().take(80).collect()))
    }

    fn addresses(&self, key: &str, raw: &[&str]) -> Result<Vec<String>, EditError> {
        let one = |raw: &&str| {
            let address = match *raw {
                "*" if key == "senders" => Some("*".to_owned()),
                raw => line::address(raw, &self.options),
            };
            let address = address.ok_or_else(|| EditError::BadAddress(raw.chars().take(80).collect()))?;
            Ok(escape(&address).into_owned())
        };
        raw.iter().map(one).collect()
    }

    /// Runs `edit` on the file's lines under the lock, and writes them if they are still a good file.
    fn change<T>(
        &self,
        create: bool,
        edit: impl FnOnce(&mut Document) -> Result<T, EditError>,
    ) -> Result<T, EditError> {
        // A link to the file stays a link: what it points to is replaced.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| EditError::Io { doing, path, error }
        };
        let lock_path = beside(&path, ".lock");
        let lock = open_lock(&lock_path).map_err(failed("opening the lock", &lock_path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed("locking", &lock_path)(error.into()))?;

        let text = match fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                Zeroizing::new(FIRST_LINES.as_bytes().to_vec())
            }
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        let users = Users::parse(&path, text.clone(), &self.options)?;
        let text = std::str::from_utf8(&text).expect("a good users file is UTF-8");
        let lines = text.lines().map(|line| Zeroizing::new(line.to_owned())).collect();
        let mut document = Document { lines, users, options: self.options.clone() };
        let result = edit(&mut document)?;

        let octets = document.lines.iter().map(|line| line.len() + 1).sum();
        let mut text = Zeroizing::new(Vec::with_capacity(octets));
        for line in &document.lines {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        Users::parse(&path, text.clone(), &self.options)?;
        replace(&path, &text).map_err(failed("writing", &path))?;
        Ok(result)
    }
}

/// The file's lines, and what they mean.
struct Document {
    lines: Vec<Zeroizing<String>>,
    /// As they were read.
    users: Users,
    options: Arc<Options>,
}

impl Document {
    fn find(&self, name: &str) -> Result<usize, EditError> {
        let is_it = |line: &Zeroizing<String>| {
            let columns = line::columns(line.as_bytes()).ok().flatten();
            columns.and_then(|columns| line::name(&columns, &self.options).ok()).is_some_and(|found| found == name)
        };
        self.lines.iter().position(is_it).ok_or_else(|| EditError::Unknown(name.to_owned()))
    }

    fn push(&mut self, line: &Line) {
        self.lines.push(line.to_text());
    }

    /// The columns of a line that holds a user.
    fn line(&self, at: usize) -> Line {
        let columns = line::columns(self.lines[at].as_bytes()).ok().flatten();
        let columns = columns.expect("the line of a user that was found");
        let secrets = line::secrets(&columns).filter_map(|secret| secret.ok());
        Line {
            name: line::name(&columns, &self.options).expect("the name that was found"),
            secrets: secrets.map(|(_, text)| Zeroizing::new(text.into_owned())).collect(),
            fields: columns.fields.1.to_owned(),
        }
    }
}

/// A line in parts; fields stay as they were written.
#[derive(Default)]
struct Line {
    name: String,
    secrets: Vec<Zeroizing<String>>,
    fields: String,
}

impl Line {
    fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str(&escape(&self.name));
        text.push(':');
        for (i, secret) in self.secrets.iter().enumerate() {
            if i > 0 {
                text.push(' ');
            }
            text.push_str(&escape_secret(secret));
        }
        if !self.fields.is_empty() {
            text.push(':');
            text.push_str(&self.fields);
        }
        text
    }
}

fn secrets(name: &str, password: &[u8], schemes: &[NewScheme]) -> Result<Vec<Zeroizing<String>>, EditError> {
    if password.is_empty() || password.len() > PASSWORD_OCTETS_MAX || password.contains(&0) {
        return Err(EditError::BadPassword);
    }
    let password = prep::enrolled(password);
    let schemes = if schemes.is_empty() { &[NewScheme::ALL[0].1] } else { schemes };
    schemes
        .iter()
        .map(|scheme| {
            scheme.make(name, &password).ok_or(if *scheme == NewScheme::Plain {
                EditError::BadPassword
            } else {
                EditError::NoEntropy
            })
        })
        .collect()
}

fn listed(user: User) -> Listed {
    Listed {
        schemes: user.secrets.iter().map(scheme::StoredSecret::scheme).collect(),
        name: user.name,
        aliases: user.aliases,
        senders: user.senders,
        disabled: user.disabled,
    }
}

/// Opens the lock, or makes it. Root may be working in a folder that belongs to another user, so no symbolic
/// link is followed, and only what was just made changes its owner.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    match options.clone().create_new(true).open(path) {
        Ok(lock) => {
            own_like(&lock, &fs::metadata(folder(path))?)?;
            Ok(lock)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

fn own_like(file: &File, model: &fs::Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (model.uid(), model.gid()) != (own.uid(), own.gid()) {
        std::os::unix::fs::fchown(file, Some(model.uid()), Some(model.gid()))?;
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Puts `text` in the place of the file, whole or not at all.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = beside(path, ".new");
    // Left behind by somebody who was killed; we hold the lock.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        own_like(&file, &fs::metadata(path).or_else(|_| fs::metadata(folder(path)))?)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder(path))?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

const FIRST_LINES: &str = "\
# Users of Portreeve: name:secret[ secret...][:field[ field...]]
# Change it with 'portreeve user add|remove|passwd'. A running server takes it up by itself.
";
