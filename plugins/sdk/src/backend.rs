//! Credential back ends: who says whether a password is right, hands out keys, or answers a mechanism's own
//! questions. Unlike a mechanism a back end may block, allocate and keep what it likes.

use std::fmt;
use std::net::IpAddr;

use crate::abi::status;
use crate::cx::{EffectKind, KeyKind};
use crate::settings::Settings;

/// One credential back end. It runs in a process of its own; the host decides how long it waits.
pub trait Backend: Send + Sync + Sized + 'static {
    /// What it declares about itself.
    const META: BackendMeta;
    /// Takes the operator's settings; called once, before any request. The error is shown to the operator.
    fn configure(settings: &Settings<'_>) -> Result<Self, String>;
    /// Answers one request. A panic is caught and becomes a temporary failure.
    fn handle(&self, request: &Request<'_>) -> Reply;
}

/// What a back end declares about itself. Checked when the library is compiled.
#[derive(Clone, Copy, Debug)]
pub struct BackendMeta {
    /// 1 to 32 of `a-z 0-9 - _`; what the configuration calls it. Not `users`.
    pub name: &'static std::ffi::CStr,
    /// JSON Schema of the settings.
    pub config_schema: Option<&'static std::ffi::CStr>,
    /// The effects that it serves; the host asks for no other.
    pub provides: &'static [EffectKind],
    /// Whether a request may wait for something. Otherwise one thread calls it.
    pub blocking: bool,
    /// Most requests at a time, when it blocks.
    pub parallel_max: u32,
}

impl BackendMeta {
    /// To start from: `BackendMeta { name: c"…", ..BackendMeta::NONE }`. It does not pass the checks by itself.
    pub const NONE: BackendMeta =
        BackendMeta { name: c"", config_schema: None, provides: &[], blocking: true, parallel_max: 8 };
}

/// What is asked, and on which connection. No `Debug`: it may hold a password.
pub struct Request<'a> {
    /// What is asked.
    pub asked: Asked<'a>,
    /// When nobody wants the answer any more, milliseconds since 1970.
    pub deadline_ms: u64,
    /// The session in the host's logs.
    pub session_id: u64,
    /// SASL name.
    pub mechanism: &'a str,
    /// The listener's name in the configuration.
    pub listener: &'a str,
    /// What the client called the server in TLS; empty when it did not.
    pub sni: &'a str,
    /// The client.
    pub client_ip: Option<IpAddr>,
    /// As on the wire: 0x0303, 0x0304; 0 outside TLS.
    pub tls_version: u32,
}

/// What is asked. Names and passwords are what the client sent: any octets, and never part of a query's text.
pub enum Asked<'a> {
    /// Is this the user's password? [`Reply::granted`], [`Reply::denied`] or [`Reply::unknown`].
    Password {
        /// Whose.
        authcid: &'a [u8],
        /// Whom they want to act as; the host decides about that.
        authzid: &'a [u8],
        /// The claimed password.
        password: &'a [u8],
    },
    /// The user's key. [`Reply::scram`], [`Reply::key`] or [`Reply::unknown`].
    Key {
        /// Which.
        kind: KeyKind,
        /// Whose.
        authcid: &'a [u8],
        /// Whom they want to act as.
        authzid: &'a [u8],
        /// DIGEST-MD5's realm.
        realm: &'a [u8],
    },
    /// Is the token good, and whose is it?
    Token {
        /// The token.
        token: &'a [u8],
        /// A hint.
        authzid: &'a [u8],
        /// `key=value` pairs beside it, separated by 0x01.
        fields: &'a [u8],
    },
    /// Whom does a verified client certificate stand for?
    External {
        /// Whom they want to act as.
        authzid: &'a [u8],
        /// SHA-256 of the certificate's SubjectPublicKeyInfo.
        spki_sha256: &'a [u8],
        /// `mail=…`, `uri=…`, `cn=…`, each ended by 0x01.
        names: &'a [u8],
    },
    /// A question of a mechanism of this library, in whatever form both know. [`Reply::data`].
    Call {
        /// The back end's name, as the mechanism wrote it.
        service: &'a [u8],
        /// The question.
        request: &'a [u8],
    },
    /// Something of a later time. [`Reply::unsupported`].
    Other,
}

/// SCRAM keys of a user.
pub struct ScramKeys {
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt.
    pub salt: Vec<u8>,
    /// StoredKey.
    pub stored_key: Vec<u8>,
    /// ServerKey.
    pub server_key: Vec<u8>,
}

/// The answer. `Debug` shows no key.
pub struct Reply {
    pub(crate) status: u32,
    pub(crate) found: bool,
    pub(crate) iterations: u32,
    pub(crate) identity: String,
    pub(crate) data: Vec<u8>,
    pub(crate) salt: Vec<u8>,
    pub(crate) stored_key: Vec<u8>,
    pub(crate) server_key: Vec<u8>,
    pub(crate) reason: String,
}

impl Reply {
    fn new(status: u32, found: bool) -> Self {
        let (identity, reason) = (String::new(), String::new());
        let (data, salt, stored_key, server_key) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { status, found, iterations: 0, identity, data, salt, stored_key, server_key, reason }
    }

    /// The credential is right, and this is whose it is.
    pub fn granted(identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), ..Self::new(status::OK, true) }
    }

    /// There is such a user, and the credential is wrong.
    pub fn denied() -> Self {
        Self::new(status::DENIED, true)
    }

    /// There is no such user, or no such key. The host makes a decoy of it; do not hurry, or the time tells.
    pub fn unknown() -> Self {
        Self::new(status::DENIED, false)
    }

    /// The credential was right once.
    pub fn expired() -> Self {
        Self::new(status::EXPIRED, true)
    }

    /// Nobody can say now; `reason` is for the log.
    pub fn temporary(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::new(status::TEMPFAIL, false) }
    }

    /// It does not do that, for nobody.
    pub fn unsupported() -> Self {
        Self::new(status::UNSUPPORTED, false)
    }

    /// The SCRAM keys of this user.
    pub fn scram(identity: impl Into<String>, keys: ScramKeys) -> Self {
        let ScramKeys { iterations, salt, stored_key, server_key } = keys;
        Self { iterations, salt, stored_key, server_key, ..Self::granted(identity) }
    }

    /// Another key of this user.
    pub fn key(identity: impl Into<String>, key: impl Into<Vec<u8>>) -> Self {
        Self { data: key.into(), ..Self::granted(identity) }
    }

    /// To a mechanism of this library. It proves nothing; beside [`Reply::proving`] it does.
    pub fn data(data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..Self::new(status::OK, true) }
    }

    /// The mechanism may succeed with this answer, as `identity`.
    pub fn proving(self, identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), ..self }
    }

    /// With octets for the mechanism (the error beside a refused token).
    pub fn with(self, data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..self }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut to = f.debug_struct("Reply");
        to.field("status", &self.status).field("found", &self.found).field("identity", &self.identity);
        to.field("reason", &self.reason).finish_non_exhaustive()
    }
}
