//! `[users]`: who they are, and how their names and secrets are read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backend::prep::{NameRules, Prep};
use backend::scheme;

use super::Config;
use super::reader::{About, Reader};
use crate::report::Report;

/// `[users]`.
#[derive(Clone, Debug)]
pub struct Users {
    /// The users file.
    pub file: PathBuf,
    /// Who gets mail for postmaster.
    pub postmaster: Option<String>,
    /// What separates a tag from a name.
    pub tag: Option<char>,
    /// When two names are one.
    pub names: NameRules,
    /// How stored secrets are read.
    pub secrets: scheme::Options,
    /// How long a verified password is believed.
    pub password_cache: Duration,
}

impl Users {
    pub(super) fn read(top: &Reader<'_>, state_dir: &Path) -> Self {
        Self {
            file: top.path("users.file").unwrap_or_else(|| state_dir.join("auth/users")),
            postmaster: top.text("users.postmaster"),
            tag: top.word("users.tag").chars().next().filter(|&c| !c.is_alphabetic()),
            names: NameRules {
                default_domain: top.text("users.default_domain"),
                prep: match top.word("users.prep").as_str() {
                    "precis-casepreserved" => Prep::CasePreserved,
                    "saslprep" => Prep::Saslprep,
                    "none" => Prep::None,
                    _ => Prep::CaseMapped,
                },
            },
            secrets: scheme::Options {
                allow_cleartext: top.flag("users.allow_cleartext"),
                dialect: match top.text("users.dialect").as_deref() {
                    Some("dovecot") => Some(scheme::Dialect::Dovecot),
                    Some("openldap") => Some(scheme::Dialect::OpenLdap),
                    _ => None,
                },
                default_scheme: top.text("users.default_scheme"),
            },
            password_cache: top.time("users.password_cache"),
        }
    }
}

pub(super) fn check(config: &Config, report: &mut Report) {
    if config.users.secrets.allow_cleartext {
        About::new(&config.written, report).warning(
            "users.allow_cleartext",
            "whoever reads the users file, or a copy of it, has the passwords",
            "take it out unless a mechanism needs them: SCRAM, CRAM-MD5 and DIGEST-MD5 have stored forms of their own",
        );
    }
}
