//! From a Kerberos principal to the name of a local user.

use portreeve_plugin_sdk::Bad;

/// What the operator wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The only realm whose principals are known here.
    pub realm: Option<String>,
    /// What stands for the realm.
    pub domain: Domain,
}

/// What stands behind a user's name instead of the realm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Domain {
    /// The realm itself: `alice@EXAMPLE.ORG` is the user `alice@example.org`.
    #[default]
    Realm,
    /// This one: `alice@CORP.EXAMPLE.ORG` is `alice@example.org`.
    Is(String),
    /// Nothing: `alice@EXAMPLE.ORG` is `alice`.
    Stripped,
}

impl Mapping {
    /// The user that a principal stands for.
    pub fn user(&self, principal: &str) -> Result<String, Bad> {
        let (primary, realm) = parts(principal)?;
        if self.realm.as_deref().is_some_and(|known| known != realm) {
            return Err(Bad::CREDENTIALS.because("the client is of another realm"));
        }
        Ok(self.placed(primary, realm))
    }

    /// Whom a client wants to act as: what has no domain is a neighbour of `principal`.
    pub fn authzid(&self, wanted: &str, principal: &str) -> Result<String, Bad> {
        if wanted.is_empty() || wanted.contains('@') {
            return Ok(wanted.to_owned());
        }
        let (_, realm) = parts(principal)?;
        Ok(self.placed(wanted, realm))
    }

    fn placed(&self, primary: &str, realm: &str) -> String {
        match &self.domain {
            Domain::Realm => format!("{primary}@{realm}"),
            Domain::Is(domain) => format!("{primary}@{domain}"),
            Domain::Stripped => primary.to_owned(),
        }
    }
}

/// Primary (with its instances) and realm. Escapes stand for characters that no user's name has.
fn parts(principal: &str) -> Result<(&str, &str), Bad> {
    match principal.rsplit_once('@') {
        Some((primary, realm))
            if !primary.is_empty()
                && !realm.is_empty()
                && !principal.contains(|c: char| c == '\\' || c.is_control())
                && !primary.contains('@') =>
        {
            Ok((primary, realm))
        }
        _ => Err(Bad::CREDENTIALS.because("the principal's name is no user's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principals_and_users() {
        let mapping = |realm: Option<&str>, domain| Mapping { realm: realm.map(str::to_owned), domain };
        let own = Some("EXAMPLE.ORG");
        for (mapping, principal, user) in [
            (Mapping::default(), "alice@EXAMPLE.ORG", Some("alice@EXAMPLE.ORG")),
            (Mapping::default(), "alice@OTHER.ORG", Some("alice@OTHER.ORG")),
            (mapping(own, Domain::Realm), "alice@OTHER.ORG", None),
            (mapping(own, Domain::Realm), "alice@example.org", None),
            (mapping(own, Domain::Is("mail.org".into())), "alice@EXAMPLE.ORG", Some("alice@mail.org")),
            (mapping(own, Domain::Is("mail.org".into())), "alice/admin@EXAMPLE.ORG", Some("alice/admin@mail.org")),
            (mapping(own, Domain::Stripped), "alice@EXAMPLE.ORG", Some("alice")),
            (mapping(own, Domain::Stripped), "alice@OTHER.ORG", None),
            // What looks like another name than it is.
            (Mapping::default(), "bob\\@mail.org@EXAMPLE.ORG", None),
            (mapping(own, Domain::Stripped), "bob@mail.org@EXAMPLE.ORG", None),
            (Mapping::default(), "a\0b@EXAMPLE.ORG", None),
            (Mapping::default(), "@EXAMPLE.ORG", None),
            (Mapping::default(), "alice@", None),
            (Mapping::default(), "alice", None),
        ] {
            assert_eq!(mapping.user(principal).ok().as_deref(), user, "{mapping:?} {principal:?}");
        }
        for (mapping, wanted, authzid) in [
            (Mapping::default(), "", ""),
            (Mapping::default(), "bob", "bob@EXAMPLE.ORG"),
            (Mapping::default(), "bob@mail.org", "bob@mail.org"),
            (mapping(own, Domain::Is("mail.org".into())), "bob", "bob@mail.org"),
            (mapping(own, Domain::Stripped), "bob", "bob"),
        ] {
            assert_eq!(mapping.authzid(wanted, "alice@EXAMPLE.ORG").as_deref(), Ok(authzid), "{mapping:?} {wanted:?}");
        }
    }
}
