//! Signed tokens (RFC 7519), checked here: nothing in one is believed before its signature is, except for which
//! of the keys to try.
//!
//! What decides how the signature is checked stands in the configuration, not in the token: an algorithm that is
//! not named there is none (so no `none`), and symmetric ones cannot be named, so that nobody signs with a public
//! key as if it were a password (RFC 8725 §2.1). `kid` is looked up in a table and used for nothing else; `jku`,
//! `jwk` and `x5u` are not looked at.

use std::collections::HashMap;
use std::str::FromStr as _;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::keys::{Found, Keys, Pace};
use super::{Claims, Issuer, KeySource};
use crate::event::Report;

/// What signatures may be made with (RFC 7518 §3.1).
pub const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// Keys that are kept of a set.
const KEYS_MAX: usize = 100;

/// An issuer's signatures.
pub(super) struct Jwt {
    keys: Keys,
    algorithms: Vec<Algorithm>,
}

impl Jwt {
    pub(super) fn new(
        issuer: &Issuer,
        source: &KeySource,
        algorithms: &[String],
        report: &Report,
    ) -> Result<Self, String> {
        let known = |name: &String| match ALGORITHMS.contains(&name.as_str()) {
            true => Algorithm::from_str(name).map_err(|error| error.to_string()),
            false => Err(format!("{name:?} is none of {}; write another algorithm", ALGORITHMS.join(", "))),
        };
        let algorithms = algorithms.iter().map(known).collect::<Result<_, _>>()?;
        Ok(Self { keys: Keys::start(issuer, source, Pace::default(), report)?, algorithms })
    }

    pub(super) fn claims(&self, token: &[u8], issuer: &Issuer) -> Claims {
        let Ok(header) = jsonwebtoken::decode_header(token) else { return Claims::Foreign };
        // Not believed, only to find out whose keys to try.
        let says = jsonwebtoken::dangerous::insecure_decode_claims::<Map<String, Value>>(token);
        let Ok(says) = says else { return Claims::Foreign };
        if issuer.issuer.is_some() && says.get("iss").and_then(Value::as_str) != issuer.issuer.as_deref() {
            return Claims::Foreign;
        }
        if !self.algorithms.contains(&header.alg) {
            return Claims::Not("signed with an algorithm that is not permitted");
        }
        // RFC 7515 §4.1.11: what must be understood and is not makes it invalid.
        if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Claims::Not("its header demands what is not known here");
        }
        let keys = match self.keys.find(header.kid.as_deref()) {
            Found::Keys(keys) => keys,
            Found::Unknown => return Claims::Not("its issuer has no such key"),
            Found::Unavailable => return Claims::Trouble,
        };
        // Times and names are judged with those of all other tokens, once the signature is right.
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_aud) = (false, false);
        let fitting = keys.iter().filter(|key| key.algorithm.is_none_or(|only| only == header.alg));
        for key in fitting.filter(|key| key.key.family() == header.alg.family()) {
            if let Ok(verified) = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
                // One that never ends could not be taken back.
                return match verified.claims.contains_key("exp") {
                    true => Claims::Are(verified.claims),
                    false => Claims::Not("has no end (exp)"),
                };
            }
        }
        Claims::Not("its signature is wrong")
    }
}

/// A key of an issuer.
pub struct Key {
    /// The only algorithm that it is for.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Keys by their id; those without one stand under "".
pub type KeyMap = HashMap<String, Vec<Key>>;

/// Reads a key set (RFC 7517 §5). Keys that cannot be used here are passed over, as it asks for.
pub fn parse_keys(text: &[u8]) -> Result<KeyMap, String> {
    let set: Value = serde_json::from_slice(text).map_err(|_| "the key set is no JSON".to_owned())?;
    let all = set.get("keys").and_then(Value::as_array).ok_or("the key set has no list `keys` (RFC 7517 §5)")?;
    let mut keys = KeyMap::new();
    for one in all.iter().take(KEYS_MAX) {
        let Ok(jwk) = serde_json::from_value::<Jwk>(one.clone()) else { continue };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|to| *to == PublicKeyUse::Signature);
        // A secret that everybody may fetch is none.
        let public = !matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
        let algorithm = match jwk.common.key_algorithm {
            None => None,
            Some(named) => match Algorithm::from_str(&named.to_string()) {
                Ok(algorithm) => Some(algorithm),
                Err(_) => continue,
            },
        };
        if let (true, Ok(key)) = (signs && public, DecodingKey::from_jwk(&jwk)) {
            keys.entry(jwk.common.key_id.unwrap_or_default()).or_default().push(Key { algorithm, key });
        }
    }
    if keys.is_empty() {
        return Err("the key set has no public key for signatures that is known here".to_owned());
    }
    Ok(keys)
}
