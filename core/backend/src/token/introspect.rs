//! Introspection (RFC 7662): the server that issued a token is asked about it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::http::Http;
use super::{Claims, Issuer};
use crate::event::Report;

/// One server.
pub(super) struct Introspection {
    http: Http,
    /// The header field that says who we are.
    authorization: Option<Zeroizing<String>>,
}

impl Introspection {
    pub(super) fn new(
        issuer: &Issuer,
        url: &str,
        client: Option<(&str, &str)>,
        report: &Report,
    ) -> Result<Self, String> {
        // RFC 6749 §2.3.1: both are encoded as in a form, then as for Basic.
        let authorization = client.map(|(id, secret)| {
            let mut pair = Zeroizing::new(Vec::new());
            encode(id.as_bytes(), &mut pair);
            pair.push(b':');
            encode(secret.as_bytes(), &mut pair);
            Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair)))
        });
        Ok(Self { http: Http::new(issuer, url, report)?, authorization })
    }

    pub(super) fn claims(&self, token: &[u8]) -> Claims {
        let mut form = Zeroizing::new(Vec::with_capacity(64 + 3 * token.len()));
        form.extend_from_slice(b"token=");
        encode(token, &mut form);
        form.extend_from_slice(b"&token_type_hint=access_token");
        let authorization = self.authorization.as_ref().map(|text| text.as_str());
        self.http.post(authorization, &form, read).unwrap_or(Claims::Trouble)
    }
}

/// RFC 7662 §2.2: `active` is the one member that must be there.
pub(super) fn read(body: &[u8]) -> Result<Claims, String> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(claims)) => match claims.get("active") {
            Some(Value::Bool(true)) => Ok(Claims::Are(claims)),
            Some(Value::Bool(false)) => Ok(Claims::Not("its server says that it is not active")),
            _ => Err("its server's answer is not one of RFC 7662".to_owned()),
        },
        _ => Err("its server's answer is no JSON object".to_owned()),
    }
}

/// `application/x-www-form-urlencoded`.
fn encode(octets: &[u8], to: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &octet in octets {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => to.push(octet),
            b' ' => to.push(b'+'),
            _ => to.extend([b'%', DIGITS[usize::from(octet >> 4)], DIGITS[usize::from(octet & 15)]]),
        }
    }
}
