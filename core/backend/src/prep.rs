//! String preparation: when two names are the same name, and what a password may have been hashed as.
//!
//! RFC 4954 §4 wants SASLprep (RFC 4013) for names, RFC 4616 §2 for names and passwords. What a client
//! sends is a *query*: code points that Unicode 3.2 did not know are let through there (RFC 3454 §7), or
//! every emoji in a password would be an error. ASCII takes a path that looks at no table.

use std::borrow::Cow;

use stringprep::tables;
use unicode_normalization::UnicodeNormalization as _;
use zeroize::Zeroizing;

/// Longest prepared name, octets: a local part of 64, `@`, a domain of 255 (RFC 5321 §4.5.3.1).
pub const NAME_OCTETS_MAX: usize = 320;

/// How names are compared.
#[derive(Clone, Debug, Default)]
pub struct NameRules {
    /// Added to a name that has no domain.
    pub default_domain: Option<String>,
    /// `Alice@` and `alice@` are two users. Domains never are.
    pub case_sensitive_local: bool,
}

impl NameRules {
    /// The one form of a user's name; `None` when it can be nobody's.
    pub fn name(&self, raw: &[u8]) -> Option<String> {
        let name = self.fold(raw)?;
        let name = match (&self.default_domain, name.contains('@')) {
            (Some(domain), false) => format!("{name}@{}", domain.to_ascii_lowercase()),
            _ => name,
        };
        let (local, domain) = name.rsplit_once('@').unwrap_or((&name, "-"));
        (!local.is_empty() && !domain.is_empty() && name.len() <= NAME_OCTETS_MAX).then_some(name)
    }

    /// The one form of an address, `local@domain`; quotes that change nothing are gone (RFC 5321 §4.1.2).
    pub fn address(&self, raw: &str) -> Option<String> {
        let raw = match raw.strip_prefix('"').and_then(|rest| rest.rsplit_once("\"@")) {
            Some((quoted, domain)) => Cow::Owned(format!("{}@{domain}", unquote(quoted))),
            None => Cow::Borrowed(raw),
        };
        self.name(raw.as_bytes())
    }

    /// The one form of a domain.
    pub fn domain(&self, raw: &str) -> Option<String> {
        let domain = NameRules::default().fold(raw.as_bytes())?;
        (!domain.contains(['@', ' ']) && domain.len() <= 255).then_some(domain)
    }

    fn fold(&self, raw: &[u8]) -> Option<String> {
        if raw.len() > 4 * NAME_OCTETS_MAX {
            return None;
        }
        let raw = std::str::from_utf8(raw).ok()?;
        let prepared = query(raw)?;
        if prepared.is_empty() {
            return None;
        }
        let lower = |text: &str| match text.is_ascii() {
            true => text.to_ascii_lowercase(),
            // Lower case may undo the normal form: make it again.
            false => text.to_lowercase().nfkc().collect(),
        };
        Some(match prepared.rsplit_once('@') {
            Some((local, domain)) if self.case_sensitive_local => format!("{local}@{}", lower(domain)),
            _ if self.case_sensitive_local => prepared.into_owned(),
            _ => lower(&prepared),
        })
    }
}

/// What a password that a client sent may have been hashed as, most likely first: prepared, and as it
/// came, since Dovecot hashes raw octets. One candidate for ASCII; empty when it can be nobody's password.
pub fn candidates(password: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    if password.is_empty() || password.len() > crate::scheme::PASSWORD_OCTETS_MAX || password.contains(&0) {
        return Vec::new();
    }
    let raw = Zeroizing::new(password.to_vec());
    if password.is_ascii() {
        return vec![raw];
    }
    let prepared = std::str::from_utf8(password).ok().and_then(query);
    match prepared.map(|prepared| Zeroizing::new(prepared.into_owned().into_bytes())) {
        Some(prepared) if *prepared != *raw && !prepared.is_empty() => vec![prepared, raw],
        _ => vec![raw],
    }
}

/// What to hash when a password is set: prepared if that is possible, else as it came.
pub fn enrolled(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match prepared {
        Some(prepared) if !prepared.is_empty() => prepared.into_owned().into_bytes(),
        _ => password.to_vec(),
    })
}

/// SASLprep for queries: RFC 4013, except that unassigned code points pass.
fn query(text: &str) -> Option<Cow<'_, str>> {
    if text.is_ascii() {
        return (!text.bytes().any(|b| b.is_ascii_control())).then_some(Cow::Borrowed(text));
    }
    // RFC 4013 §2.1, then §2.2.
    let mapped = text.chars().filter(|&c| !tables::commonly_mapped_to_nothing(c));
    let mapped = mapped.map(|c| if tables::non_ascii_space_character(c) { ' ' } else { c });
    let normal: String = mapped.nfkc().collect();
    // RFC 4013 §2.3.
    let prohibited = |c| {
        tables::non_ascii_space_character(c)
            || tables::ascii_control_character(c)
            || tables::non_ascii_control_character(c)
            || tables::private_use(c)
            || tables::non_character_code_point(c)
            || tables::surrogate_code(c)
            || tables::inappropriate_for_plain_text(c)
            || tables::inappropriate_for_canonical_representation(c)
            || tables::change_display_properties_or_deprecated(c)
            || tables::tagging_character(c)
    };
    // RFC 3454 §6: text that runs from right to left begins and ends so, and has no letter of the other kind.
    let mixed = normal.contains(tables::bidi_r_or_al)
        && (normal.contains(tables::bidi_l)
            || !normal.starts_with(tables::bidi_r_or_al)
            || !normal.ends_with(tables::bidi_r_or_al));
    (!normal.contains(prohibited) && !mixed).then_some(Cow::Owned(normal))
}

fn unquote(quoted: &str) -> String {
    let mut out = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        out.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saslprep_examples_and_unassigned() {
        // RFC 4013 §3.
        for (from, to) in [
            ("I\u{ad}X", Some("IX")),
            ("user", Some("user")),
            ("USER", Some("USER")),
            ("ª", Some("a")),
            ("Ⅸ", Some("IX")),
            ("\u{7}", None),
            ("\u{627}1", None),
            ("é\u{7}", None),
            ("a\u{2028}b", None),
            // Unknown to Unicode 3.2.
            ("🔑", Some("🔑")),
        ] {
            assert_eq!(query(from).as_deref(), to, "{from:?}");
        }
    }

    #[test]
    fn names_have_one_form() {
        let rules = NameRules { default_domain: Some("Demo.test".into()), case_sensitive_local: false };
        for (from, to) in [
            ("Alice@DEMO.test", Some("alice@demo.test")),
            ("alice", Some("alice@demo.test")),
            ("JOSÉ@x.test", Some("josé@x.test")),
            ("Σ@x.test", Some("σ@x.test")),
            ("", None),
            ("@x.test", None),
            ("a@", None),
            ("a\0b", None),
            ("a\nb", None),
            ("é\u{2028}b", None),
        ] {
            assert_eq!(rules.name(from.as_bytes()).as_deref(), to, "{from:?}");
        }
        assert_eq!(rules.name(b"\xff"), None);
        assert_eq!(rules.name(&[b'a'; 65536]), None);
        assert_eq!(rules.name(&[b'a'; 321]), None);
        assert_eq!(rules.address("\"a b\\\"c\"@X.test").as_deref(), Some("a b\"c@x.test"));
        let strict = NameRules { default_domain: None, case_sensitive_local: true };
        assert_eq!(strict.name(b"Bob@X.TEST").as_deref(), Some("Bob@x.test"));
    }

    #[test]
    fn only_foreign_letters_cost_two_checks() {
        let texts = |password: &str| -> Vec<String> {
            candidates(password.as_bytes()).iter().map(|c| String::from_utf8(c.to_vec()).unwrap()).collect()
        };
        assert_eq!(texts("pencil"), ["pencil"]);
        assert_eq!(texts("p\u{61}\u{308}ss"), ["päss", "pa\u{308}ss"]);
        assert_eq!(texts("päss"), ["päss"]);
        assert!(texts("").is_empty() && texts("a\0").is_empty() && texts(&"x".repeat(1025)).is_empty());
        assert_eq!(candidates(b"\xff").len(), 1);
        assert_eq!(*enrolled("Ⅸ".as_bytes()), b"IX".to_vec());
        assert_eq!(*enrolled("🔑".as_bytes()), "🔑".as_bytes().to_vec());
    }

    /// What is in the file was prepared once and is prepared again when it is read.
    #[test]
    fn preparation_is_idempotent() {
        let rules = NameRules::default();
        for c in (0x80..=0x10_ffff).filter_map(char::from_u32) {
            let Some(once) = rules.name(format!("x{c}Y@z").as_bytes()) else { continue };
            assert_eq!(rules.name(once.as_bytes()).as_ref(), Some(&once), "{:04x}", c as u32);
        }
    }
}
