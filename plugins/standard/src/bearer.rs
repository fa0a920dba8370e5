//! What OAUTHBEARER and XOAUTH2 have in common: a bearer token, and how its refusal is told.

use portreeve_plugin_sdk::{Bad, Cx, Done, Outcome};

/// Room for the error that the host writes, and for names and fields that are not in the message as they are.
pub(crate) const OUTPUT_OCTETS_MAX: u32 = 1024;

/// `credentials = "Bearer" 1*SP b64token` (RFC 6750 §2.1); the scheme in any case (RFC 7235 §2.1).
pub(crate) fn token(credentials: &[u8]) -> Result<&[u8], Bad> {
    let (scheme, rest) = credentials.split_at_checked(6).unwrap_or_default();
    let (spaces, token) = rest.split_at(rest.iter().take_while(|octet| **octet == b' ').count());
    if !scheme.eq_ignore_ascii_case(b"Bearer") || spaces.is_empty() {
        return Err(Bad::MALFORMED.because("the credentials are not `Bearer` and a token"));
    }
    // b64token = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
    let padding = token.iter().rev().take_while(|octet| **octet == b'=').count();
    let body = token.get(..token.len() - padding).unwrap_or_default();
    let allowed = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._~+/".contains(octet);
    if body.is_empty() || !body.iter().all(allowed) {
        return Err(Bad::MALFORMED.because("the token has octets that no token has (RFC 6750 section 2.1)"));
    }
    Ok(token)
}

/// Success, or the failure with the JSON that the host wrote; with `plain` when it wrote none. Trouble that is
/// not the token's fault is told without JSON: the client must not fetch a new token.
pub(crate) fn conclude(outcome: &Outcome<'_>, plain: &[u8], mut cx: Cx<'_>) -> Result<Done, Bad> {
    let bad = match outcome.proof() {
        Ok(proof) => return cx.succeed(proof),
        Err(bad) => bad,
    };
    if bad != Bad::CREDENTIALS && bad != Bad::EXPIRED {
        return Err(bad);
    }
    let fits = 1..=OUTPUT_OCTETS_MAX as usize;
    let error = if fits.contains(&outcome.data().len()) { outcome.data() } else { plain };
    cx.put(error)?;
    cx.fail(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        for (credentials, expected) in [
            ("Bearer abc", "abc"),
            ("bearer  a-._~+/0==", "a-._~+/0=="),
            ("BEARER vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="),
        ] {
            assert_eq!(token(credentials.as_bytes()).unwrap(), expected.as_bytes());
        }
        for credentials in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer =",
            "Bearer a=b",
            "Bearer a b",
            "Bearer a ",
            "Bearer\ta",
            "Bearera",
            "Basic abc",
            "Bearer a,b",
            "Bearer ä",
            "Bearer \x01",
            "Bearer a\n",
            " Bearer a",
        ] {
            assert!(token(credentials.as_bytes()).is_err(), "{credentials:?}");
        }
    }
}
