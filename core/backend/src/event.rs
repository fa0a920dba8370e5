//! What the operator should hear of. Never a secret.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::users::BadUsers;

/// Takes events to the log.
pub type Report = Arc<dyn Fn(&Event) + Send + Sync>;

/// Something worth a log line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A users file is in service.
    Loaded {
        /// The file.
        path: PathBuf,
        /// How many users.
        users: usize,
        /// How many aliases.
        aliases: usize,
        /// Milliseconds that reading and checking took.
        ms: u64,
        /// The epoch from here on.
        epoch: u64,
    },
    /// The file changed and cannot be used; what was read before stays in service.
    ReloadFailed(BadUsers),
    /// Others may read the file.
    LooseMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A link ended because of what came over it, or because it could not be written.
    LinkBroken {
        /// Why.
        why: String,
    },
    /// A worker does not take its answers; its deadline will answer the client with 454 or 451.
    AnswersDropped {
        /// How many so far.
        total: u64,
    },
    /// A back end of a library has failed too often in a row: its users are answered "temporary" at once.
    BackendDown {
        /// The back end.
        name: String,
    },
    /// It answers again.
    BackendWell {
        /// The back end.
        name: String,
    },
    /// A back end could not answer, or answered what it must not.
    BackendTrouble {
        /// The back end.
        name: String,
        /// In the library's words, escaped, or ours.
        text: String,
    },
    /// The process of a library is ended.
    BackendCondemned {
        /// The library.
        library: String,
        /// Why.
        why: &'static str,
    },
    /// A library logged something.
    BackendWords {
        /// The library.
        library: String,
        /// `PRV_LOG_*`.
        level: u64,
        /// Its words, escaped.
        text: String,
    },
    /// Checking a secret panicked: a bug. The question was answered "temporary".
    Panicked,
    /// A bearer token was refused; told once a second at most.
    TokenRefused {
        /// Whose token it would have been.
        issuer: String,
        /// Why; never a part of the token.
        why: &'static str,
    },
    /// Tokens of an issuer cannot be checked; told when it begins.
    TokenTrouble {
        /// Which issuer.
        issuer: String,
        /// Why.
        why: String,
    },
    /// They can be checked again.
    TokensBack {
        /// Which issuer's.
        issuer: String,
    },
}

impl Event {
    /// Whether somebody has to act.
    pub fn is_error(&self) -> bool {
        let quiet = matches!(
            self,
            Self::Loaded { .. }
                | Self::TokenRefused { .. }
                | Self::TokensBack { .. }
                | Self::BackendWell { .. }
                | Self::BackendWords { .. }
        );
        !quiet
    }

    /// A stable id for filters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loaded { .. } => "users.loaded",
            Self::ReloadFailed(_) => "users.reload-failed",
            Self::LooseMode { .. } => "users.loose-mode",
            Self::LinkBroken { .. } => "directory.link-broken",
            Self::AnswersDropped { .. } => "directory.answers-dropped",
            Self::BackendDown { .. } => "backend.down",
            Self::BackendWell { .. } => "backend.well",
            Self::BackendTrouble { .. } => "backend.trouble",
            Self::BackendCondemned { .. } => "backend.condemned",
            Self::BackendWords { .. } => "plugin.log",
            Self::Panicked => "directory.panicked",
            Self::TokenRefused { .. } => "tokens.refused",
            Self::TokenTrouble { .. } => "tokens.trouble",
            Self::TokensBack { .. } => "tokens.back",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded { path, users, aliases, ms, .. } => {
                write!(f, "{}: {users} users and {aliases} aliases in service ({ms} ms)", path.display())
            }
            Self::ReloadFailed(bad) => {
                let bad = bad.to_string().replace('\n', " | ");
                write!(f, "{bad}; until then the content read before stays in service")
            }
            Self::LooseMode { path, mode } => {
                let path = path.display();
                write!(f, "{path}: others may read it (mode {mode:03o}); remedy: chmod 600 {path}")
            }
            Self::LinkBroken { why } => write!(f, "link to a worker ended: {why}"),
            Self::AnswersDropped { total } => write!(f, "a worker does not read its answers; {total} dropped so far"),
            Self::TokenRefused { issuer, why } => write!(f, "token issuer {issuer:?}: refused: {why}"),
            Self::TokenTrouble { issuer, why } => {
                write!(f, "token issuer {issuer:?}: {why}; until that ends, its users are told 454")
            }
            Self::TokensBack { issuer } => write!(f, "token issuer {issuer:?}: its tokens are checked again"),
            Self::BackendDown { name } => {
                write!(f, "back end {name} fails again and again: logins through it are answered 454 until it is well")
            }
            Self::BackendWell { name } => write!(f, "back end {name} answers again"),
            Self::BackendTrouble { name, text } => write!(f, "back end {name}: {text}"),
            Self::BackendCondemned { library, why } => {
                write!(f, "the process of the back ends of {library} is ended: {why}")
            }
            Self::BackendWords { library, level, text } => write!(f, "{library}: level {level}: {text}"),
            Self::Panicked => f.write_str("checking a secret panicked; please report this with the lines before it"),
        }
    }
}
