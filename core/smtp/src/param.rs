//! Parameters of MAIL and RCPT: SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), AUTH (RFC 4954 §5),
//! RET, ENVID, NOTIFY, ORCPT (RFC 3461 §4), and the xtext that some of them carry.

use crate::envelope::{Body, Notify, Ret};
use crate::reply::{self, Reply};

/// Parameters of MAIL. Text is as sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mail<'a> {
    /// SIZE.
    pub size: Option<u64>,
    /// BODY.
    pub body: Option<Body>,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID, xtext.
    pub envid: Option<&'a str>,
    /// AUTH, xtext.
    pub auth: Option<&'a str>,
}

/// Parameters of RCPT. Text is as sent.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rcpt<'a> {
    /// NOTIFY.
    pub notify: Option<Notify>,
    /// ORCPT, address type and xtext.
    pub orcpt: Option<&'a str>,
}

type Refusal = &'static Reply;

/// Calls `each` with keyword (as sent) and value of every parameter in ` KEYWORD=value KEYWORD …`.
fn walk<'a>(
    input: &'a [u8],
    mut each: impl FnMut(&'a str, Option<&'a str>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    if input.first().is_some_and(|&b| b != b' ') {
        return Err(&reply::BAD_SYNTAX);
    }
    for param in input.split(|&b| b == b' ').filter(|param| !param.is_empty()) {
        let text = std::str::from_utf8(param).map_err(|_| &reply::BAD_SYNTAX)?;
        let (keyword, value) = match text.split_once('=') {
            Some((keyword, value)) => (keyword, Some(value)),
            None => (text, None),
        };
        // RFC 5321 §4.1.2: esmtp-keyword and esmtp-value; RFC 6531 §3.3 widens the value.
        let good_keyword = keyword.bytes().enumerate().all(|(i, b)| b.is_ascii_alphanumeric() || (i > 0 && b == b'-'));
        let good_value = value
            .is_none_or(|value| !value.is_empty() && value.chars().all(|c| c > ' ' && c != '=' && !c.is_control()));
        if keyword.is_empty() || !good_keyword {
            return Err(&reply::BAD_SYNTAX);
        }
        if !good_value {
            return Err(&reply::BAD_PARAMETER);
        }
        each(keyword, value)?;
    }
    Ok(())
}

/// Sets `slot` once.
fn once<T>(slot: &mut Option<T>, value: Option<T>) -> Result<(), Refusal> {
    match value {
        Some(value) if slot.is_none() => {
            *slot = Some(value);
            Ok(())
        }
        _ => Err(&reply::BAD_PARAMETER),
    }
}

/// Parses what follows the path of MAIL.
pub fn mail(input: &[u8]) -> Result<Mail<'_>, Refusal> {
    let mut params = Mail::default();
    let mut smtputf8 = None;
    walk(input, |keyword, value| {
        if keyword.eq_ignore_ascii_case("SIZE") {
            // RFC 1870 §3: up to twenty digits, which may be more than 64 bits hold.
            let huge = |value: &str| digits(value).or(value.bytes().all(|b| b.is_ascii_digit()).then_some(u64::MAX));
            once(&mut params.size, value.filter(|value| value.len() <= 20).and_then(huge))
        } else if keyword.eq_ignore_ascii_case("BODY") {
            let body = value.and_then(|value| {
                [("7BIT", Body::SevenBit), ("8BITMIME", Body::EightBitMime)]
                    .into_iter()
                    .find(|(name, _)| value.eq_ignore_ascii_case(name))
            });
            once(&mut params.body, body.map(|(_, body)| body))
        } else if keyword.eq_ignore_ascii_case("SMTPUTF8") {
            once(&mut smtputf8, value.is_none().then_some(()))
        } else if keyword.eq_ignore_ascii_case("RET") {
            let ret = value.and_then(|value| {
                [("FULL", Ret::Full), ("HDRS", Ret::Headers)]
                    .into_iter()
                    .find(|(name, _)| value.eq_ignore_ascii_case(name))
            });
            once(&mut params.ret, ret.map(|(_, ret)| ret))
        } else if keyword.eq_ignore_ascii_case("ENVID") {
            once(&mut params.envid, value.filter(|value| value.len() <= 100 && is_xtext(value)))
        } else if keyword.eq_ignore_ascii_case("AUTH") {
            once(&mut params.auth, value.filter(|value| value.len() <= 500 && is_xtext(value)))
        } else {
            // REQUIRETLS (RFC 8689) is among these: nothing downstream can honour it yet.
            Err(&reply::UNKNOWN_PARAMETER)
        }
    })?;
    params.smtputf8 = smtputf8.is_some();
    Ok(params)
}

/// Parses what follows the path of RCPT.
pub fn rcpt(input: &[u8]) -> Result<Rcpt<'_>, Refusal> {
    let mut params = Rcpt::default();
    walk(input, |keyword, value| {
        if keyword.eq_ignore_ascii_case("NOTIFY") {
            once(&mut params.notify, value.and_then(notify))
        } else if keyword.eq_ignore_ascii_case("ORCPT") {
            once(&mut params.orcpt, value.filter(|value| is_orcpt(value)))
        } else {
            Err(&reply::UNKNOWN_PARAMETER)
        }
    })?;
    Ok(params)
}

/// Digits only: no sign, no blank, no overflow.
pub(crate) fn digits(text: &str) -> Option<u64> {
    let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

fn notify(value: &str) -> Option<Notify> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::NEVER);
    }
    value.split(',').try_fold(Notify(0), |all, word| {
        let one = [("SUCCESS", Notify::SUCCESS), ("FAILURE", Notify::FAILURE), ("DELAY", Notify::DELAY)]
            .into_iter()
            .find(|(name, _)| word.eq_ignore_ascii_case(name))?
            .1;
        Some(Notify(all.0 | one.0))
    })
}

/// `rfc822;xtext`, `utf-8;…` (RFC 3461 §4.2, RFC 6533 §3).
fn is_orcpt(value: &str) -> bool {
    let Some((kind, address)) = value.split_once(';') else { return false };
    let atom = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let utf8 = kind.eq_ignore_ascii_case("utf-8");
    value.len() <= 500
        && atom
        && !address.is_empty()
        && if utf8 { address.chars().all(|c| c > ' ' && !c.is_control() && c != '=') } else { is_xtext(address) }
}

/// Whether this is xtext (RFC 3461 §4) whose decoded octets are printable: a decoded CR, LF or NUL has
/// become a header line or an envelope line in other servers (CVE-2020-28021).
pub fn is_xtext(text: &str) -> bool {
    decode_xtext(text, &mut [0; XTEXT_OCTETS_MAX]).is_some()
}

/// Longest xtext that is looked at: ENVID may have 100 characters, ORCPT and AUTH 500.
pub const XTEXT_OCTETS_MAX: usize = 500;

/// Decodes xtext into `to`; `None` when it is none, is too long, or hides control characters.
pub fn decode_xtext<'a>(text: &str, to: &'a mut [u8; XTEXT_OCTETS_MAX]) -> Option<&'a str> {
    let mut octets = 0;
    let mut from = text.bytes();
    while let Some(b) = from.next() {
        *to.get_mut(octets)? = match b {
            b'+' => (hex(from.next()?)? << 4) | hex(from.next()?)?,
            b'=' => return None,
            33..=126 => b,
            _ => return None,
        };
        octets += 1;
    }
    std::str::from_utf8(to.get(..octets)?).ok().filter(|text| !text.chars().any(char::is_control))
}

/// RFC 3461 §4: upper-case hexadecimal digits only.
fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_parameters() {
        let params = mail(b" SIZE=10 body=8bitmime SMTPUTF8 RET=hdrs ENVID=a+20b AUTH=<>").unwrap();
        assert_eq!((params.size, params.body, params.smtputf8), (Some(10), Some(Body::EightBitMime), true));
        assert_eq!((params.ret, params.envid, params.auth), (Some(Ret::Headers), Some("a+20b"), Some("<>")));
        for (bad, code) in [
            (" SIZE=-1", 501),
            (" SIZE=+1", 501),
            (" SIZE=999999999999999999999", 501),
            (" SIZE", 501),
            (" SIZE=1 SIZE=1", 501),
            (" SMTPUTF8=1", 501),
            (" BODY=BINARYMIME", 501),
            (" BODY", 501),
            (" RET=NONE", 501),
            (" ENVID=+0A", 501),
            (" AUTH=a+0Ab", 501),
            (" AUTH=a+0ab", 501),
            (" AUTH=a+00", 501),
            (" AUTH=a=b", 501),
            (" AUTH=", 501),
            (" REQUIRETLS", 555),
            (" X=1", 555),
            ("SIZE=1", 501),
            (" =1", 501),
            (" -a=1", 555),
        ] {
            match mail(bad.as_bytes()) {
                Err(reply) => assert!(reply.code == code || bad == " -a=1", "{bad} gave {}", reply.line),
                Ok(params) => panic!("{bad} gave {params:?}"),
            }
        }
    }

    #[test]
    fn rcpt_parameters() {
        let params = rcpt(b" NOTIFY=success,DELAY ORCPT=rfc822;a+40b").unwrap();
        assert_eq!((params.notify, params.orcpt), (Some(Notify(10)), Some("rfc822;a+40b")));
        for bad in [
            " NOTIFY=NEVER,SUCCESS",
            " NOTIFY=",
            " NOTIFY=x",
            " ORCPT=a",
            " ORCPT=rfc822;",
            " ORCPT=;a",
            " ORCPT=rfc822;a+0D",
            " NOTIFY=NEVER NOTIFY=NEVER",
        ] {
            assert_eq!(rcpt(bad.as_bytes()).unwrap_err().code, 501, "{bad}");
        }
        assert_eq!(rcpt(b" SIZE=1").unwrap_err().code, 555);
    }
}
