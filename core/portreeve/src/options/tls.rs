//! TLS.

use super::{Default, Kind, Opt, Reload, Section};

pub const SECTIONS: &[Section] = &[
    Section {
        path: "tls",
        help: "TLS for all listeners. Certificates are chosen by the name that the client asks for (SNI); the first \
               certificate of a listener is its default.",
        options: &[Opt {
            path: "tls.min",
            kind: Kind::Choice(&["1.2", "1.3"]),
            default: Default::Is("\"1.2\""),
            reload: Reload::Command,
            help: "Oldest TLS version (RFC 8996).",
            example: "\"1.3\"",
        }],
    },
    Section {
        path: "tls.certificate[]",
        help: "A certificate with its key. Repeat the table for each one.",
        options: &[
            Opt {
                path: "tls.certificate[].name",
                kind: Kind::Text,
                default: Default::Unset("the file's name without its ending"),
                reload: Reload::Command,
                help: "What a listener's `certificates` calls it.",
                example: "\"main\"",
            },
            Opt {
                path: "tls.certificate[].cert",
                kind: Kind::Path,
                default: Default::Required,
                reload: Reload::Watched,
                help: "PEM file: our certificate first, then those between it and the root.",
                example: "\"tls/fullchain.pem\"",
            },
            Opt {
                path: "tls.certificate[].key",
                kind: Kind::Path,
                default: Default::Required,
                reload: Reload::Watched,
                help: "PEM file: the private key. Readable for its owner only.",
                example: "\"tls/privkey.pem\"",
            },
        ],
    },
];
