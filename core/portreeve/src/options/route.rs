//! Routes.

use super::{Default, Kind, MINUTE, Opt, Reload, SECOND, Section};

pub const SECTIONS: &[Section] = &[Section {
    path: "route[]",
    help: "Where mail goes, by recipient domain. The first route that names the domain is taken, then the one \
               for \"*\". Repeat the table for each one.",
    options: &[
        Opt {
            path: "route[].domain",
            kind: Kind::RouteDomain,
            default: Default::Is("\"*\""),
            reload: Reload::Command,
            help: "The recipient's domain; \"*\" is every other one.",
            example: "\"example.org\"",
        },
        Opt {
            path: "route[].kind",
            kind: Kind::Choice(&["maildir", "lmtp", "smtp", "mx", "discard"]),
            default: Default::Required,
            reload: Reload::Command,
            help: "`maildir` writes files below `path`; `lmtp` hands mail to a mailbox server (RFC 2033), `smtp` to other \
               mail servers, both at `to`; `mx` to the hosts that the recipient's domain names in the DNS; `discard` \
               throws mail away (benches; needs `allow_data_loss = true`).",
            example: "\"maildir\"",
        },
        Opt {
            path: "route[].path",
            kind: Kind::Path,
            default: Default::Unset("required for `maildir`"),
            reload: Reload::Command,
            help: "Folder of the Maildirs. `%d` stands for the mailbox's domain, `%n` for its name, `%u` for both, `%%` for a \
               per cent sign; without them all mail of the route lands in one Maildir.",
            example: "\"mail/%d/%n\"",
        },
        Opt {
            path: "route[].to",
            kind: Kind::Words,
            default: Default::Unset("required for `lmtp` and `smtp`"),
            reload: Reload::Command,
            help: "Next hops, best first: `host:port`, `[2001:db8::1]:25` or `unix:PATH`. The first one that works gets \
               the mail; one that fails is left alone for 10 s, later for up to 5 minutes. `lmtp` is given mailbox \
               names (aliases are resolved), `smtp` the addresses as they came.",
            example: "[\"relay1.example.org:587\", \"relay2.example.org:587\"]",
        },
        Opt {
            path: "route[].tls",
            kind: Kind::Choice(&["off", "opportunistic", "required", "implicit"]),
            default: Default::Unset("`opportunistic` for `smtp` and `mx`, `off` for `lmtp`"),
            reload: Reload::Command,
            help: "`opportunistic`: STARTTLS when it is offered, with any certificate. `required`: STARTTLS with a \
               certificate that verifies, or nothing is sent. `implicit`: the same from the first octet (port 465), \
               not for `mx`. Where an MTA-STS policy is in force (`mta_sts`) it is `required` whatever is written here.",
            example: "\"required\"",
        },
        Opt {
            path: "route[].tls_ca",
            kind: Kind::Path,
            default: Default::Unset("the authorities that the system trusts"),
            reload: Reload::Command,
            help: "Authorities that next hops' certificates must come from, PEM; for `mx` those of MTA-STS policy hosts, too.",
            example: "\"/etc/portreeve/relay-ca.pem\"",
        },
        Opt {
            path: "route[].tls_name",
            kind: Kind::Host,
            default: Default::Unset("the host in `to`"),
            reload: Reload::Command,
            help: "The name that must be in next hops' certificates.",
            example: "\"relay.example.org\"",
        },
        Opt {
            path: "route[].user",
            kind: Kind::Text,
            default: Default::Unset("no login"),
            reload: Reload::Command,
            help: "Log in to next hops as this user: SCRAM-SHA-256 or CRAM-MD5, and inside TLS PLAIN or LOGIN.",
            example: "\"relay-user\"",
        },
        Opt {
            path: "route[].password_file",
            kind: Kind::Path,
            default: Default::Unset("required with `user`"),
            reload: Reload::Command,
            help: "Its first line is the password. The server's user must be able to read it, and nobody else.",
            example: "\"/etc/portreeve/relay-password\"",
        },
        Opt {
            path: "route[].connections",
            kind: Kind::Count { min: 1, max: 200 },
            default: Default::Unset("4; 50 for `mx`"),
            reload: Reload::Command,
            help: "Connections to the route's next hops at the same time. Each has a thread.",
            example: "10",
        },
        Opt {
            path: "route[].connections_per_host",
            kind: Kind::Count { min: 1, max: 200 },
            default: Default::Unset("5 for `mx`"),
            reload: Reload::Command,
            help: "For `mx`: of these connections, to one host. Mail that finds them all in use waits for one.",
            example: "2",
        },
        Opt {
            path: "route[].resolver",
            kind: Kind::Addresses,
            default: Default::Unset("the system's, from /etc/resolv.conf"),
            reload: Reload::Command,
            help: "For `mx`: the name servers that are asked, address and port. A resolver on this host or in its network, \
               which does the walking and, better, checks DNSSEC.",
            example: "[\"127.0.0.1:53\"]",
        },
        Opt {
            path: "route[].dns_timeout",
            kind: Kind::Duration { min: 100, max: MINUTE },
            default: Default::Unset("5s for `mx`"),
            reload: Reload::Command,
            help: "For `mx`: longest wait for one answer of a name server. Each question is asked twice, by UDP, and by TCP \
               when the answer is truncated.",
            example: "\"3s\"",
        },
        Opt {
            path: "route[].mta_sts",
            kind: Kind::Flag,
            default: Default::Unset("`true` for `mx`"),
            reload: Reload::Command,
            help: "For `mx`: honour MTA-STS policies (RFC 8461). They are kept in `sts/` of the state folder. Where one with \
               mode `enforce` is in force, only hosts that it names get the mail, inside TLS and with a certificate that \
               verifies; otherwise the mail waits.",
            example: "false",
        },
        Opt {
            path: "route[].allow_private",
            kind: Kind::Networks,
            default: Default::Unset("none"),
            reload: Reload::Command,
            help: "For `mx`: networks that mail may go to although they are not public. Loopback, private, link-local and \
               reserved addresses are refused otherwise: the DNS of a stranger must not choose services in your network.",
            example: "[\"10.20.0.0/16\"]",
        },
        Opt {
            path: "route[].port",
            kind: Kind::Count { min: 1, max: 65_535 },
            default: Default::Unset("25 for `mx`"),
            reload: Reload::Command,
            help: "For `mx`: the port of the hosts. Any other than 25 is for tests.",
            example: "25",
        },
        Opt {
            path: "route[].mta_sts_port",
            kind: Kind::Count { min: 1, max: 65_535 },
            default: Default::Unset("443 for `mx`"),
            reload: Reload::Command,
            help: "For `mx`: the port of MTA-STS policy hosts. Any other than 443 is for tests.",
            example: "443",
        },
        Opt {
            path: "route[].timeout",
            kind: Kind::Duration { min: SECOND, max: 15 * MINUTE },
            default: Default::Is("\"5m\""),
            reload: Reload::Command,
            help: "Longest wait for a next hop's reply, where RFC 5321 does not ask for less. Six times this, and a second \
               for each KiB, are given to a whole message.",
            example: "\"60s\"",
        },
        Opt {
            path: "route[].pass_through",
            kind: Kind::Flag,
            default: Default::Is("false"),
            reload: Reload::Command,
            help: "For `lmtp` and `smtp`. The client waits until the next hop has taken the message or refused it, and gets \
               that reply; nothing is kept here meanwhile. When the next hop takes it for some recipients only, or other \
               recipients have an ordinary route, the rest goes into the queue and the reply is 250. Each connection \
               serves one waiting client: see `connections`.",
            example: "true",
        },
    ],
}];
