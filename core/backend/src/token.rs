//! Bearer tokens (RFC 6750): whose is this one, until when, and is it meant for us?
//!
//! ```text
//! token ─ cache ─┬─ jwt         RFC 7519: checked here, with keys that `keys` fetches beside the questions
//!                ├─ introspect  RFC 7662: asked of the server that issued it
//!                └─ list        a file, for tests and for machines that have no issuer
//! ```
//!
//! The answer is a name, not a user: whether somebody here has that name is the users file's to say, each time,
//! so that a cached token is worth nothing the moment its user is disabled. What the client claims beside the
//! token never decides who it is. Everything here may wait for a network, so it runs in threads of its own.
//!
//! A token is a secret: it is kept as its SHA-256, written nowhere, and no message repeats a part of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::event::{Event, Report};

mod cache;
mod http;
mod introspect;
mod jwt;
mod keys;
mod list;
#[cfg(test)]
mod tests;

pub use http::MAX_OCTETS;
pub use jwt::{ALGORITHMS, parse_keys};

/// Clocks that differ by more are wrong.
pub const SKEW_MAX: Duration = Duration::from_secs(60);
/// A verified token is believed so long without asking again, if it does not end before.
pub const CACHE_MAX: Duration = Duration::from_secs(300);

/// Somebody whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// For messages.
    pub name: String,
    /// How tokens are checked.
    pub kind: Kind,
    /// `iss` must be this.
    pub issuer: Option<String>,
    /// `aud` must hold one of these; empty: whatever it is for.
    pub audience: Vec<String>,
    /// Which claim names the user.
    pub claim: String,
    /// What the token must be good for; told to the client when it is not.
    pub scope: Option<String>,
    /// Where clients find out how to get a token (RFC 7628 §3.2.2).
    pub openid_configuration: Option<String>,
    /// How much clocks may differ; at most [`SKEW_MAX`].
    pub skew: Duration,
    /// Who vouches for its server: PEM, and the file's name for messages.
    pub authorities: Option<(String, Vec<u8>)>,
    /// For one answer of its server.
    pub timeout: Duration,
}

/// How an issuer's tokens are checked.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// They are signed (RFC 7519).
    Jwt {
        /// Where its keys (RFC 7517) are.
        keys: KeySource,
        /// Names of signature algorithms (RFC 7518 §3.1) that may be used: some of [`ALGORITHMS`].
        algorithms: Vec<String>,
    },
    /// Its server knows them (RFC 7662).
    Introspection {
        /// Its endpoint.
        url: String,
        /// Who we are there: id and secret.
        client: Option<(String, zeroize::Zeroizing<String>)>,
    },
    /// They stand in a file.
    List(PathBuf),
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jwt { keys, algorithms } => write!(f, "Jwt({keys:?}, {algorithms:?})"),
            Self::Introspection { url, .. } => write!(f, "Introspection({url:?})"),
            Self::List(path) => write!(f, "List({path:?})"),
        }
    }
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file; read again when it has changed.
    File(PathBuf),
    /// A URL; fetched again now and then, and for a key that is new.
    Url(String),
}

/// What a token says, once it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Proof {
    /// The user as the issuer names them.
    user: String,
    /// When it ends, seconds since 1970.
    ends: Option<u64>,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Forged, expired, unknown, somebody else's, or for nobody here (RFC 6750 §3.1); the words are for the log.
    Invalid(&'static str),
    /// Good, but not for this.
    Scope,
}

/// What one issuer says of a token.
enum Verdict {
    Good(Proof),
    Bad(Refusal),
    /// It cannot be said now.
    Trouble,
    /// Not one of its tokens: another issuer may know it.
    Foreign,
}

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is this user's, by the issuer's name for them.
    Good(String),
    /// Told to the client.
    Bad(Refusal),
    /// 454.
    Trouble,
}

/// All issuers, and what is remembered of their tokens. Dropping it ends its threads.
pub struct Tokens {
    issuers: Vec<Source>,
    cache: cache::Cache,
    report: Report,
    /// When a refusal was last told, so that nobody fills the log with them.
    told: parking_lot::Mutex<Option<std::time::Instant>>,
}

struct Source {
    issuer: Arc<Issuer>,
    check: Check,
}

enum Check {
    Jwt(jwt::Jwt),
    Introspection(introspect::Introspection),
    List(list::List),
}

impl Tokens {
    /// `Err` says which issuer cannot be used, why, and what to do.
    pub fn new(issuers: Vec<Issuer>, report: Report) -> Result<Self, String> {
        tls::provide_for_others();
        let mut sources = Vec::new();
        for issuer in issuers {
            let issuer = Arc::new(issuer);
            let told = |why: String| format!("token issuer {:?}: {why}", issuer.name);
            let check = match &issuer.kind {
                Kind::Jwt { keys, algorithms } => {
                    Check::Jwt(jwt::Jwt::new(&issuer, keys, algorithms, &report).map_err(told)?)
                }
                Kind::Introspection { url, client } => {
                    let client = client.as_ref().map(|(id, secret)| (id.as_str(), secret.as_str()));
                    Check::Introspection(introspect::Introspection::new(&issuer, url, client, &report).map_err(told)?)
                }
                Kind::List(path) => Check::List(list::List::new(path)),
            };
            sources.push(Source { issuer, check });
        }
        Ok(Self { issuers: sources, cache: cache::Cache::default(), report, told: parking_lot::Mutex::default() })
    }

    /// Whether there is no issuer at all.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Whose the token is, and whose issuer says so; without one, nobody knows the token. May wait for a network.
    pub fn verify(&self, token: &[u8]) -> (Answer, Option<&Issuer>) {
        let key: [u8; 32] = Sha256::digest(token).into();
        let now = unix_seconds();
        let named = |at: usize| self.issuers.get(at).map(|source| &*source.issuer);
        if let Some((user, at)) = self.cache.find(&key, now) {
            return (Answer::Good(user), named(at));
        }
        let mut refused = None;
        let mut trouble = false;
        for (at, source) in self.issuers.iter().enumerate() {
            match source.verify(token, now) {
                Verdict::Good(proof) => {
                    let until = now + CACHE_MAX.as_secs();
                    self.cache.keep(key, (&proof.user, at), proof.ends.map_or(until, |ends| ends.min(until)), now);
                    return (Answer::Good(proof.user), named(at));
                }
                Verdict::Bad(refusal) => {
                    self.tell(&source.issuer.name, refusal);
                    // A server that is asked says no to tokens of others, too: who knows the token goes before it.
                    let knows = refusal == Refusal::Scope || !matches!(source.check, Check::Introspection(_));
                    if knows || refused.is_none() {
                        refused = Some((refusal, at));
                    }
                }
                Verdict::Trouble => trouble = true,
                Verdict::Foreign => {}
            }
        }
        // While one of them cannot say, nobody must throw the token away.
        match refused {
            _ if trouble => (Answer::Trouble, None),
            None => (Answer::Bad(Refusal::Invalid("no issuer knows it")), None),
            Some((refusal, at)) => (Answer::Bad(refusal), named(at)),
        }
    }

    /// What a client is told of a refusal, in the form of its mechanism (RFC 7628 §3.2.2; the vendors' documents
    /// for XOAUTH2): what a token of this issuer must be good for. Of a token that nobody knows it is the first
    /// issuer's: a list of all is not recommended there.
    pub fn error(&self, mechanism: &str, refusal: Refusal, issuer: Option<&Issuer>) -> String {
        let issuer = issuer.or_else(|| self.issuers.first().map(|source| &*source.issuer));
        let mut error = Map::new();
        if mechanism == "XOAUTH2" {
            let status = if refusal == Refusal::Scope { "403" } else { "401" };
            error.insert("status".into(), json!(status));
            error.insert("schemes".into(), json!("bearer"));
        } else {
            let status = if refusal == Refusal::Scope { "insufficient_scope" } else { "invalid_token" };
            error.insert("status".into(), json!(status));
        }
        if let Some(scope) = issuer.and_then(|issuer| issuer.scope.as_deref()) {
            error.insert("scope".into(), json!(scope));
        }
        if let Some(url) = issuer.and_then(|issuer| issuer.openid_configuration.as_deref())
            && mechanism != "XOAUTH2"
        {
            error.insert("openid-configuration".into(), json!(url));
        }
        Value::Object(error).to_string()
    }

    fn tell(&self, issuer: &str, refusal: Refusal) {
        const BETWEEN: Duration = Duration::from_secs(1);
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() >= BETWEEN) {
            *told = Some(std::time::Instant::now());
            let why = match refusal {
                Refusal::Invalid(why) => why,
                Refusal::Scope => "not good for the scope that is asked for",
            };
            (self.report)(&Event::TokenRefused { issuer: issuer.to_owned(), why });
        }
    }
}

impl Source {
    fn verify(&self, token: &[u8], now: u64) -> Verdict {
        let claims = match &self.check {
            Check::Jwt(jwt) => jwt.claims(token, &self.issuer),
            Check::Introspection(server) => server.claims(token),
            Check::List(list) => list.claims(token),
        };
        match claims {
            Claims::Are(claims) => match judge(&claims, &self.issuer, now) {
                Ok(proof) => Verdict::Good(proof),
                Err(refusal) => Verdict::Bad(refusal),
            },
            Claims::Not(why) => Verdict::Bad(Refusal::Invalid(why)),
            Claims::Foreign => Verdict::Foreign,
            Claims::Trouble => Verdict::Trouble,
        }
    }
}

/// What an issuer's check makes of a token.
enum Claims {
    Are(Map<String, Value>),
    Not(&'static str),
    Foreign,
    Trouble,
}

/// Holds claims against what is wanted: the same for a JWT (whose signature was checked) and for an answer of
/// RFC 7662, whose members have the same names.
fn judge(claims: &Map<String, Value>, issuer: &Issuer, now: u64) -> Result<Proof, Refusal> {
    let skew = issuer.skew.min(SKEW_MAX).as_secs();
    let time = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        // RFC 7519 §2: a NumericDate may have a fraction.
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_f64().filter(|&seconds| (0.0..4e15).contains(&seconds)).map(|seconds| seconds as u64))
            .map(Some)
            .ok_or(Refusal::Invalid("exp or nbf is no time")),
    };
    let ends = time("exp")?;
    if ends.is_some_and(|ends| ends.saturating_add(skew) <= now) {
        return Err(Refusal::Invalid("expired"));
    }
    if time("nbf")?.is_some_and(|begins| begins > now + skew) {
        return Err(Refusal::Invalid("not valid yet"));
    }
    if let Some(wanted) = &issuer.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(wanted)
    {
        return Err(Refusal::Invalid("another issuer"));
    }
    if !issuer.audience.is_empty() {
        // RFC 7519 §4.1.3: one text or a list.
        let meant = |value: &Value| value.as_str().is_some_and(|text| issuer.audience.iter().any(|own| own == text));
        let fits = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(meant),
            Some(one) => meant(one),
            None => false,
        };
        if !fits {
            return Err(Refusal::Invalid("meant for somebody else"));
        }
    }
    if let Some(wanted) = &issuer.scope
        && !wanted.split(' ').filter(|word| !word.is_empty()).all(|word| has_scope(claims, word))
    {
        return Err(Refusal::Scope);
    }
    let user = claims.get(&issuer.claim).and_then(Value::as_str).filter(|user| !user.is_empty());
    let user = user.ok_or(Refusal::Invalid("the claim that names the user is missing"))?;
    // An address that nobody has looked at could be anybody's (OpenID Connect Core §5.7).
    if issuer.claim == "email" && claims.get("email_verified").is_some_and(is_false) {
        return Err(Refusal::Invalid("the issuer has not verified the address"));
    }
    Ok(Proof { user: user.to_owned(), ends })
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false) || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("false"))
}

/// `scope` is a text of words (RFC 8693 §4.2, RFC 7662 §2.2); some issuers write `scp`, also as a list.
fn has_scope(claims: &Map<String, Value>, wanted: &str) -> bool {
    let holds = |value: &Value| match value {
        Value::String(words) => words.split(' ').any(|word| word == wanted),
        Value::Array(words) => words.iter().any(|word| word.as_str() == Some(wanted)),
        _ => false,
    };
    ["scope", "scp"].iter().filter_map(|name| claims.get(*name)).any(holds)
}

/// Fuzz entry: `octets` as what an issuer's servers say, a key set (RFC 7517 §5) and an answer about a token (RFC 7662
/// §2.2). Neither panics; only public keys are taken, no more than there is room for; and who is believed to be
/// somebody is so by an answer that says each of the things that are wanted.
pub fn fuzz_json(octets: &[u8]) {
    let value: Option<Value> = serde_json::from_slice(octets).ok();
    let has = |value: &Value, name: &str, wanted: &str| value.get(name).and_then(Value::as_str) == Some(wanted);
    if let Ok(keys) = parse_keys(octets) {
        let all =
            value.as_ref().and_then(|set| set.get("keys")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let public = all.iter().filter(|key| !has(key, "kty", "oct") && key.get("kty").is_some()).count();
        let taken: usize = keys.values().map(Vec::len).sum();
        assert!((1..=public).contains(&taken), "{taken} keys of {public}");
        for id in keys.keys().filter(|id| !id.is_empty()) {
            assert!(all.iter().any(|key| has(key, "kid", id)), "{id:?} stands nowhere");
        }
    }
    let issuer = Issuer {
        name: String::new(),
        kind: Kind::List(PathBuf::new()),
        issuer: Some("https://login.example".into()),
        audience: vec!["smtp.example".into()],
        claim: "email".into(),
        scope: Some("mail".into()),
        openid_configuration: None,
        skew: Duration::ZERO,
        authorities: None,
        timeout: Duration::ZERO,
    };
    const NOW: u64 = 1_800_000_000;
    if let Ok(Claims::Are(claims)) = introspect::read(octets) {
        let value = value.expect("read as JSON a moment ago");
        assert_eq!(value["active"], json!(true));
        if let Ok(proof) = judge(&claims, &issuer, NOW) {
            assert!(has(&value, "iss", "https://login.example") && has(&value, "email", &proof.user), "{value}");
            assert!(!proof.user.is_empty() && proof.ends.is_none_or(|ends| ends > NOW), "{value}");
            let own = json!("smtp.example");
            assert!(value["aud"] == own || value["aud"].as_array().is_some_and(|all| all.contains(&own)), "{value}");
            let scope = [&value["scope"], &value["scp"]].map(Value::to_string).concat();
            assert!(scope.contains("mail") && value["email_verified"] != json!(false), "{value}");
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
