//! Takes users and aliases over from other servers' files.
//!
//! A line that cannot be taken is named with its cause and the next one is tried; nothing is written before
//! all lines were looked at, and then in one go. Importing the same file again changes nothing.

use std::collections::{BTreeMap, HashMap};

use zeroize::Zeroizing;

use super::{Document, EditError, Line, UsersFile};
use crate::scheme::StoredSecret;
use crate::users::Options;
use crate::users::line::{self, escape, secrets_end};

/// Aliases of aliases that are followed.
const HOPS_MAX: usize = 16;

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Users or aliases that are new.
    pub added: usize,
    /// Users whose secret is another one now.
    pub changed: usize,
    /// What was there already.
    pub unchanged: usize,
    /// Lines that were not taken.
    pub refused: Vec<Refused>,
}

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its number, from 1.
    pub line: usize,
    /// Why.
    pub cause: String,
}

impl UsersFile {
    /// Imports a passwd-file as Dovecot and Postfix installations have it: `user:{SCHEME}hash[:…]`. Of the
    /// further fields only `nologin` and `nopassword` mean something here.
    pub fn import(&self, text: &[u8]) -> Result<Imported, EditError> {
        let mut imported = Imported::default();
        let mut wanted: Vec<(usize, Line)> = Vec::new();
        let mut seen = HashMap::new();
        for (number, line) in numbered(text) {
            match passwd_line(line, &self.options) {
                Ok(None) => {}
                Ok(Some(line)) => match seen.insert(line.name.clone(), number) {
                    None => wanted.push((number, line)),
                    Some(first) => {
                        let cause = format!("user '{}' is on line {first} already", line.name);
                        imported.refused.push(Refused { line: number, cause });
                    }
                },
                Err(cause) => imported.refused.push(Refused { line: number, cause }),
            }
        }
        self.change(true, |document| {
            let at = positions(document);
            for (number, new) in wanted {
                let Some(&at) = at.get(&new.name) else {
                    if let Some(owner) =
                        document.users.mailbox(&new.name).filter(|user| user.aliases.contains(&new.name))
                    {
                        let cause = format!("'{}' is an alias of '{}' here", new.name, owner.name);
                        imported.refused.push(Refused { line: number, cause });
                        continue;
                    }
                    imported.added += 1;
                    document.push(&new);
                    continue;
                };
                let mut line = document.line(at);
                let mut fields: Vec<_> = line.fields.split(' ').filter(|field| !field.is_empty()).collect();
                if new.fields == "disabled" && !fields.contains(&"disabled") {
                    fields.push("disabled");
                }
                let fields = fields.join(" ");
                if line.secrets == new.secrets && line.fields == fields {
                    imported.unchanged += 1;
                } else {
                    (line.secrets, line.fields) = (new.secrets, fields);
                    document.lines[at] = line.to_text();
                    imported.changed += 1;
                }
            }
            imported.refused.sort_by_key(|refused| refused.line);
            Ok(imported)
        })
    }

    /// Imports a Postfix `virtual` map: `alias@domain target`, `@domain target`. The target must be a user of
    /// this file, or an alias in the same map that leads to one; mail for elsewhere and lists of targets are
    /// refused line by line.
    pub fn import_aliases(&self, text: &[u8]) -> Result<Imported, EditError> {
        let mut imported = Imported::default();
        // What each alias stands for, in the map's order of keys, with its line.
        let mut map: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for (number, entry) in entries(text) {
            match virtual_entry(&entry, &self.options) {
                Ok(None) => {}
                Ok(Some((alias, _))) if map.contains_key(&alias) => {
                    imported.refused.push(Refused { line: number, cause: format!("'{alias}' for the second time") });
                }
                Ok(Some((alias, target))) => {
                    map.insert(alias, (number, target));
                }
                Err(cause) => imported.refused.push(Refused { line: number, cause }),
            }
        }
        self.change(false, |document| {
            let at = positions(document);
            let mut additions: BTreeMap<usize, Vec<String>> = BTreeMap::new();
            for (alias, (number, target)) in &map {
                let mut refuse = |cause| imported.refused.push(Refused { line: *number, cause });
                let mut owner = target;
                for _ in 0..HOPS_MAX {
                    match map.get(owner) {
                        Some((_, next)) if !at.contains_key(owner) => owner = next,
                        _ => break,
                    }
                }
                let Some(&line) = at.get(owner) else {
                    refuse(format!("'{owner}' is no user of this file; add it, or forward it from its own server"));
                    continue;
                };
                if alias == owner {
                    imported.unchanged += 1;
                } else if at.contains_key(alias) {
                    refuse(format!("'{alias}' is a user, and a user's own mailbox goes before aliases"));
                } else {
                    let exact = |user: &crate::users::User| user.aliases.iter().any(|own| own == alias);
                    match document.users.mailbox(alias).filter(exact) {
                        Some(user) if user.name == *owner => imported.unchanged += 1,
                        Some(user) => refuse(format!("'{alias}' belongs to '{}' already", user.name)),
                        None => {
                            imported.added += 1;
                            additions.entry(line).or_default().push(escape(alias).into_owned());
                        }
                    }
                }
            }
            for (at, aliases) in additions {
                let mut line = document.line(at);
                let aliases = aliases.join(",");
                let fields: Vec<_> = line.fields.split(' ').filter(|field| !field.is_empty()).collect();
                let mut fields: Vec<String> = fields.into_iter().map(str::to_owned).collect();
                match fields.iter_mut().find(|field| field.starts_with("aliases=")) {
                    Some(field) => *field = format!("{field},{aliases}"),
                    None => fields.insert(0, format!("aliases={aliases}")),
                }
                line.fields = fields.join(" ");
                document.lines[at] = line.to_text();
            }
            imported.refused.sort_by_key(|refused| refused.line);
            Ok(imported)
        })
    }
}

/// Where each user's line is.
fn positions(document: &Document) -> HashMap<String, usize> {
    let name = |line: &Zeroizing<String>| {
        let columns = line::columns(line.as_bytes()).ok()??;
        line::name(&columns, &document.options).ok()
    };
    document.lines.iter().enumerate().filter_map(|(at, line)| Some((name(line)?, at))).collect()
}

fn numbered(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (1..).zip(text.split(|octet| *octet == b'\n')).map(|(n, line)| (n, line.strip_suffix(b"\r").unwrap_or(line)))
}

fn passwd_line(line: &[u8], options: &Options) -> Result<Option<Line>, String> {
    if line.trim_ascii().is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    if line.len() > line::LINE_OCTETS_MAX {
        return Err("the line is longer than 65,536 octets".to_owned());
    }
    let line = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
    let (name, rest) = line.split_once(':').ok_or("no colon after the name")?;
    // Taken literally: a backslash means nothing in these files.
    let escaped = escape(name);
    let columns = line::Columns { name: &escaped, secrets: (0, ""), fields: (0, "") };
    let name = line::name(&columns, options).map_err(|fault| fault.cause)?;
    let (secret, extra) = rest.split_at(secrets_end_of_passwd(rest));
    let mut fields = "";
    for field in extra.split([':', ' ']) {
        match field.split_once('=').map_or(field, |(key, _)| key) {
            "nopassword" => return Err("'nopassword' would let everybody in".to_owned()),
            "nologin" => fields = "disabled",
            _ => {}
        }
    }
    if secret.is_empty() || secret.starts_with(['!', '*']) {
        return Err("the account has no password, or is locked".to_owned());
    }
    let secret = StoredSecret::canonical(secret, &options.secrets).map_err(|bad| format!("{bad}; {}", bad.remedy()))?;
    Ok(Some(Line { name, secrets: vec![Zeroizing::new(secret)], fields: fields.to_owned() }))
}

/// As in our own file, except that a space does not separate secrets there.
fn secrets_end_of_passwd(rest: &str) -> usize {
    if rest.contains("SCRAM-SHA-") { secrets_end(rest) } else { rest.find(':').unwrap_or(rest.len()) }
}

/// Entries of a Postfix map: a line that begins with white space goes on with the one before.
fn entries(text: &[u8]) -> Vec<(usize, String)> {
    let mut entries: Vec<(usize, String)> = Vec::new();
    for (number, line) in numbered(text) {
        let line = String::from_utf8_lossy(line);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match entries.last_mut() {
            Some((_, entry)) if line.starts_with([' ', '\t']) => {
                if entry.len() + line.len() <= line::LINE_OCTETS_MAX {
                    entry.push_str(&line);
                }
            }
            _ => entries.push((number, line.into_owned())),
        }
    }
    entries
}

fn virtual_entry(entry: &str, options: &Options) -> Result<Option<(String, String)>, String> {
    let (alias, targets) = entry.trim_start().split_once([' ', '\t']).ok_or("no target after the alias")?;
    // `example.com anything` only says that the domain is virtual.
    if !alias.contains('@') && alias.contains('.') {
        return Ok(None);
    }
    let alias = line::address(alias, options).ok_or_else(|| format!("{alias:?} is no address"))?;
    let mut targets = targets.split([' ', '\t', ',']).filter(|target| !target.is_empty());
    let (Some(target), more) = (targets.next(), targets.next()) else { return Err("no target".to_owned()) };
    if more.is_some() {
        return Err(format!("'{alias}' has several targets, and a mailbox has one owner"));
    }
    let target = options.names.name(target.as_bytes()).ok_or_else(|| format!("{target:?} is no address"))?;
    Ok(Some((alias, target)))
}

/// Fuzz entry: both kinds of import, without a file. The lines that [`UsersFile::import`] would refuse.
pub fn fuzz_import(text: &[u8]) -> Vec<usize> {
    let options = Options::default();
    for (_, entry) in entries(text) {
        let _ = virtual_entry(&entry, &options);
    }
    numbered(text).filter(|(_, line)| passwd_line(line, &options).is_err()).map(|(number, _)| number).collect()
}
