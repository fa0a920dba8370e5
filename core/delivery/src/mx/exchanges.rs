//! Which hosts take mail for a domain, in the order in which they are tried (RFC 5321 §5.1).

use smtp::path::is_domain;

/// A host that takes mail for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) preference: u16,
    /// Lower case, without a dot at the end.
    pub(crate) host: String,
}

/// What the MX records of a domain say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exchanges {
    /// These, best first; never empty.
    Hosts(Vec<Exchange>),
    /// It takes no mail (RFC 7505).
    Null,
    /// We are the best that there is: mail would go round.
    Ours,
    /// No record names a host.
    Unusable,
}

/// Orders what the MX lookup found; `records` is empty when the domain has none. `own` are our names, `chance`
/// gives any number.
pub(crate) fn order(
    domain: &str,
    records: &[(u16, String)],
    own: &[String],
    chance: &mut dyn FnMut() -> u32,
) -> Exchanges {
    if records.is_empty() {
        // The implicit MX: the domain's own addresses.
        let host = domain.to_owned();
        return if is_ours(&host, own) {
            Exchanges::Ours
        } else {
            Exchanges::Hosts(vec![Exchange { preference: 0, host }])
        };
    }
    let named = || records.iter().filter(|(_, host)| !host.is_empty());
    if named().next().is_none() {
        return Exchanges::Null;
    }
    // Equals are spread by chance, and must be.
    let usable = named().filter(|(_, host)| host.is_ascii() && is_domain(host));
    let mut sorted: Vec<(u16, u32, String)> =
        usable.map(|(preference, host)| (*preference, chance(), host.to_ascii_lowercase())).collect();
    sorted.sort_unstable();
    let mut hosts: Vec<Exchange> = Vec::new();
    for (preference, _, host) in sorted {
        if is_ours(&host, own) {
            // We are named: who is no better than we are would give the mail back to us.
            hosts.retain(|better| better.preference < preference);
            return if hosts.is_empty() { Exchanges::Ours } else { Exchanges::Hosts(hosts) };
        }
        if !hosts.iter().any(|known| known.host == host) {
            hosts.push(Exchange { preference, host });
        }
    }
    if hosts.is_empty() { Exchanges::Unusable } else { Exchanges::Hosts(hosts) }
}

fn is_ours(host: &str, own: &[String]) -> bool {
    own.iter().any(|own| own.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ordered(records: &[(u16, &str)], own: &[&str], mut seed: u32) -> Exchanges {
        let records: Vec<(u16, String)> = records.iter().map(|&(at, host)| (at, host.to_owned())).collect();
        let own: Vec<String> = own.iter().map(|&name| name.to_owned()).collect();
        order("far.example", &records, &own, &mut || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 8
        })
    }

    fn names(exchanges: Exchanges) -> Vec<String> {
        match exchanges {
            Exchanges::Hosts(hosts) => hosts.into_iter().map(|exchange| exchange.host).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_preference_and_by_chance_among_equals() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let order = names(ordered(&[(20, "c"), (10, "a"), (10, "B"), (5, "first"), (30, "a")], &[], seed));
            assert_eq!((&*order[0], &*order[3], order.len()), ("first", "c", 4), "{order:?}");
            seen.insert(order);
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
    }

    #[test]
    fn our_own_name_ends_the_list_for_its_equals_too() {
        for seed in 0..50 {
            let records = [(10, "better"), (20, "equal"), (20, "we.example"), (30, "worse")];
            assert_eq!(names(ordered(&records, &["WE.example"], seed)), ["better"]);
            assert_eq!(ordered(&records, &["better"], seed), Exchanges::Ours);
        }
        assert_eq!(ordered(&[], &["far.example"], 0), Exchanges::Ours);
    }

    #[test]
    fn implicit_null_and_useless() {
        assert_eq!(names(ordered(&[], &[], 0)), ["far.example"]);
        assert_eq!(ordered(&[(0, "")], &[], 0), Exchanges::Null);
        // Forbidden beside others (RFC 7505 §3); the others are what the domain can have meant.
        assert_eq!(names(ordered(&[(0, ""), (10, "a")], &[], 0)), ["a"]);
        assert_eq!(ordered(&[(10, "a b"), (10, "\\000")], &[], 0), Exchanges::Unusable);
    }
}
