//! Addresses that the DNS of others must not lead us to: whoever chooses a domain would choose a service in the
//! operator's own network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Which inner networks are open all the same, by the operator's choice.
pub(crate) struct Guard(pub(crate) Vec<IpNet>);

impl Guard {
    /// Why nothing is sent to this address; `None`: it may be.
    pub(crate) fn refuses(&self, address: IpAddr) -> Option<&'static str> {
        if self.0.iter().any(|open| open.contains(&address)) { None } else { refuses(address) }
    }
}

/// Why mail must not go to this address on the word of a foreign name server; `None` is the public network.
fn refuses(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(four) => refuses_v4(four),
        IpAddr::V6(six) => refuses_v6(six),
    }
}

fn refuses_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [127, ..] => "a loopback address",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private address",
        [100, 64..=127, ..] => "an address of a carrier's inner network",
        [169, 254, ..] => "a link-local address",
        [0, ..] => "no address of a host",
        [192, 0, 0, _] | [198, 18..=19, ..] | [240..=255, ..] => "a reserved address",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "an address for examples",
        [224..=239, ..] => "a multicast address",
        _ => return None,
    })
}

fn refuses_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let four = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        refuses_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0) if (g, h) == (0, 1) => Some("a loopback address"),
        (0, 0, 0, 0, 0, 0) if (g, h) == (0, 0) => Some("no address of a host"),
        // IPv4 in other clothes: compatible, mapped, NAT64, 6to4.
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => four(g, h),
        (0x2002, ..) => four(b, c),
        (0x64, 0xff9b, 1, ..) => Some("a private address"),
        (0xfc00..=0xfdff, ..) => Some("a private address"),
        (0xfe80..=0xfeff, ..) => Some("a link-local address"),
        (0xff00..=0xffff, ..) => Some("a multicast address"),
        (0x2001, 0xdb8, ..) | (0x3fff, 0..=0xfff, ..) => Some("an address for examples"),
        (0x100, 0, 0, 0, ..) | (0x2001, 0, ..) | (0..=0xff, ..) => Some("a reserved address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_network() {
        for public in
            ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2a00:1450::1", "2002:808:808::1"]
        {
            assert_eq!(refuses(public.parse().unwrap()), None, "{public}");
        }
        for (inner, why) in [
            ("127.0.0.1", "loopback"),
            ("127.255.0.9", "loopback"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("192.168.1.1", "private"),
            ("100.64.0.1", "carrier"),
            ("169.254.169.254", "link-local"),
            ("0.0.0.0", "no address"),
            ("255.255.255.255", "reserved"),
            ("203.0.113.9", "examples"),
            ("224.0.0.1", "multicast"),
            ("::1", "loopback"),
            ("::", "no address"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.0.0.1", "private"),
            ("::192.168.0.1", "private"),
            ("64:ff9b::a00:1", "private"),
            ("64:ff9b:1::1", "private"),
            ("2002:7f00:1::1", "loopback"),
            ("fd00::1", "private"),
            ("fe80::1", "link-local"),
            ("fec0::1", "link-local"),
            ("ff02::1", "multicast"),
            ("2001:db8::1", "examples"),
            ("100::1", "reserved"),
        ] {
            let told = refuses(inner.parse().unwrap());
            assert!(told.is_some_and(|told| told.contains(why)), "{inner}: {told:?}");
        }
    }
}
