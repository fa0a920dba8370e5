//! Users.

use super::{Default, HOUR, Kind, Opt, Reload, Section};

pub const SECTIONS: &[Section] = &[Section {
    path: "users",
    help: "Who may log in, and which local mailboxes exist.",
    options: &[
        Opt {
            path: "users.file",
            kind: Kind::Path,
            default: Default::Unset("`auth/users` in the state folder"),
            reload: Reload::Watched,
            help: "The users file; `portreeve user` edits it. A changed file is checked, then taken over.",
            example: "\"/etc/portreeve/users\"",
        },
        Opt {
            path: "users.postmaster",
            kind: Kind::Text,
            default: Default::Unset("the first user of the file"),
            reload: Reload::Command,
            help: "The user who gets mail for `postmaster` where nobody else does (RFC 5321 §4.5.1).",
            example: "\"alice@example.org\"",
        },
        Opt {
            path: "users.tag",
            kind: Kind::Choice(&["+", "-", "=", "off"]),
            default: Default::Is("\"+\""),
            reload: Reload::Command,
            help: "What separates a tag from a name: mail for `alice+shop@…` goes to `alice@…`.",
            example: "\"-\"",
        },
        Opt {
            path: "users.prep",
            kind: Kind::Choice(&["precis-casemapped", "precis-casepreserved", "saslprep", "none"]),
            default: Default::Is("\"precis-casemapped\""),
            reload: Reload::Command,
            help: "When two names are one. `precis-casemapped` (RFC 8265 §3.3): case and width of letters do not matter. \
               `precis-casepreserved` (§3.4): case does. `saslprep` (RFC 4013): what looks the same in print is the same, \
               case matters. `none`: to the octet. Domains never depend on case, except with `none`.",
            example: "\"saslprep\"",
        },
        Opt {
            path: "users.default_domain",
            kind: Kind::Host,
            default: Default::Unset("a name without a domain stays without one"),
            reload: Reload::Command,
            help: "The domain of users who log in without naming one.",
            example: "\"example.org\"",
        },
        Opt {
            path: "users.allow_cleartext",
            kind: Kind::Flag,
            default: Default::Is("false"),
            reload: Reload::Command,
            help: "Whether the file may hold passwords in clear (`{PLAIN}…`). They serve every mechanism: SCRAM keys are made of \
               them, with a salt fixed per user, once for each content of the file and beside the logins; with more than \
               10,000 such users at each login. Whoever reads the file has the passwords.",
            example: "true",
        },
        Opt {
            path: "users.dialect",
            kind: Kind::Choice(&["dovecot", "openldap"]),
            default: Default::Unset("`{MD5}` is a mistake"),
            reload: Reload::Command,
            help: "What `{MD5}` means in the file: 32 hexadecimal digits in Dovecot, base64 in OpenLDAP.",
            example: "\"dovecot\"",
        },
        Opt {
            path: "users.default_scheme",
            kind: Kind::Text,
            default: Default::Unset("a secret without a scheme is a mistake"),
            reload: Reload::Command,
            help: "The scheme of secrets in the file that name none.",
            example: "\"SHA512-CRYPT\"",
        },
        Opt {
            path: "users.password_cache",
            kind: Kind::Duration { min: 0, max: HOUR },
            default: Default::Is("\"5m\""),
            reload: Reload::Command,
            help: "How long a verified password is believed without asking again. A changed users file ends it at once.",
            example: "\"0s\"",
        },
    ],
}];
