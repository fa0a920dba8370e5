//! The header that SCRAM and OAUTHBEARER begin with, and the names in it (RFC 5801 §4, RFC 5802 §7).
//!
//! ```text
//! gs2-header     = gs2-cbind-flag "," [ "a=" saslname ] ","
//! gs2-cbind-flag = ("p=" cb-name) / "n" / "y"
//! saslname       = 1*(value-safe-char / "=2C" / "=3D")
//! ```

use portreeve_plugin_sdk::{Bad, Cx, Part};

/// Longest name, octets with its escapes: an address has at most 320 (RFC 5321 §4.5.3.1).
pub(crate) const NAME_OCTETS_MAX: usize = 512;

/// What the client says about channel binding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flag<'a> {
    /// `n`: it cannot.
    Unsupported,
    /// `y`: it can, and thinks that we cannot.
    NotOffered,
    /// `p=`: it does, with this one.
    Required(&'a [u8]),
}

pub(crate) struct Header<'a> {
    pub flag: Flag<'a>,
    /// A checked saslname, or empty when there is none.
    pub authzid: &'a [u8],
    /// The header itself, with the comma that ends it.
    pub octets: &'a [u8],
}

/// The header and what comes after it.
pub(crate) fn header(message: &[u8]) -> Result<(Header<'_>, &[u8]), Bad> {
    const FAULT: Bad = Bad::MALFORMED.because("no GS2 header (RFC 5801 section 4)");
    let (flag, rest) = until_comma(message).ok_or(FAULT)?;
    let (authzid, rest) = until_comma(rest).ok_or(FAULT)?;
    let flag = match flag {
        b"n" => Flag::Unsupported,
        b"y" => Flag::NotOffered,
        _ => match flag.strip_prefix(b"p=") {
            Some(name) if is_binding_name(name) => Flag::Required(name),
            _ => return Err(FAULT),
        },
    };
    let authzid = match authzid {
        b"" => authzid,
        _ => checked_name(authzid.strip_prefix(b"a=").ok_or(FAULT)?)?,
    };
    let octets = message.get(..message.len() - rest.len()).unwrap_or_default();
    Ok((Header { flag, authzid, octets }, rest))
}

fn until_comma(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = octets.iter().position(|octet| *octet == b',')?;
    Some((octets.get(..at)?, octets.get(at + 1..)?))
}

fn is_binding_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|octet| matches!(octet, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

/// The same octets, if they are a saslname: no comma, no NUL, `=` only in `=2C` and `=3D`, in upper case.
pub(crate) fn checked_name(raw: &[u8]) -> Result<&[u8], Bad> {
    if raw.is_empty() {
        return Err(Bad::MALFORMED.because("an empty name"));
    }
    if raw.len() > NAME_OCTETS_MAX {
        return Err(Bad::MALFORMED.because("a name longer than 512 octets"));
    }
    if raw.contains(&0) || raw.contains(&b',') {
        return Err(Bad::MALFORMED.because("a name with NUL or comma"));
    }
    let mut escapes = raw.split(|octet| *octet == b'=').skip(1);
    if !escapes.all(|after| after.starts_with(b"2C") || after.starts_with(b"3D")) {
        return Err(Bad::MALFORMED.because("a name with = that is neither =2C nor =3D (RFC 5802 section 5.1)"));
    }
    Ok(raw)
}

/// Names a checked saslname, or nothing, to the host; only one with escapes must be copied.
pub(crate) fn name_part(cx: &mut Cx<'_>, raw: &[u8]) -> Result<Part, Bad> {
    if !raw.contains(&b'=') {
        return cx.part(raw);
    }
    let mut name = [0; NAME_OCTETS_MAX];
    let mut length = 0;
    let mut rest = raw;
    while let Some((octet, after)) = rest.split_first() {
        (name[length], rest) = match (octet, after.split_at_checked(2)) {
            (b'=', Some((b"2C", after))) => (b',', after),
            (b'=', Some((b"3D", after))) => (b'=', after),
            _ => (*octet, after),
        };
        length += 1;
    }
    cx.put_part(name.get(..length).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        for (message, flag, authzid, rest) in [
            ("n,,n=user", Flag::Unsupported, "", "n=user"),
            ("y,,", Flag::NotOffered, "", ""),
            ("p=tls-exporter,a=ad=2Cmin,x", Flag::Required(b"tls-exporter"), "ad=2Cmin", "x"),
            ("n,a=ä,,", Flag::Unsupported, "ä", ","),
        ] {
            let (header, after) = header(message.as_bytes()).unwrap();
            assert_eq!((header.flag, header.authzid, after), (flag, authzid.as_bytes(), rest.as_bytes()), "{message}");
            assert_eq!([header.octets, after].concat(), message.as_bytes());
        }
        for message in [
            "",
            "n",
            "n,",
            ",,",
            "N,,",
            "nn,,",
            "n ,,",
            "p,,",
            "p=,,",
            "p=a b,,",
            "p=ä,,",
            "z,,",
            "F,n,,",
            "n,user,",
            "n,a,",
            "n,a=,",
            "n,A=x,",
            "n,a=x=,",
            "n,a=x=2,",
            "n,a=x=2c,",
            "n,a=x=3d,",
            "n,a=x=41,",
            "n,a==,",
            "n,a=\0,",
        ] {
            assert!(header(message.as_bytes()).is_err(), "{message:?}");
        }
        let long = |octets| format!("n,a={},", "x".repeat(octets));
        assert!(header(long(512).as_bytes()).is_ok() && header(long(513).as_bytes()).is_err());
    }
}
