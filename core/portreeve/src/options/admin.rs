//! The log, and how an operator asks.

use super::{Default, Kind, Opt, Reload, Section};

pub const SECTIONS: &[Section] = &[
    Section {
        path: "log",
        help: "Log lines: one event, one line. Passwords and tokens are never written.",
        options: &[
            Opt {
                path: "log.format",
                kind: Kind::Choice(&["auto", "human", "json"]),
                default: Default::Is("\"auto\""),
                reload: Reload::Restart,
                help: "`auto`: for people on a terminal, JSON otherwise.",
                example: "\"json\"",
            },
            Opt {
                path: "log.level",
                kind: Kind::Choice(&["error", "warning", "info", "debug"]),
                default: Default::Is("\"info\""),
                reload: Reload::Restart,
                help: "The least important events that are written.",
                example: "\"warning\"",
            },
            Opt {
                path: "log.file",
                kind: Kind::Path,
                default: Default::Unset("standard error"),
                reload: Reload::Restart,
                help: "File that log lines are appended to. It is opened again when it was moved away.",
                example: "\"/var/log/portreeve.log\"",
            },
            Opt {
                path: "log.audit",
                kind: Kind::Path,
                default: Default::Unset("among the log lines"),
                reload: Reload::Restart,
                help: "File for audit records (one per session and per login), as JSON lines.",
                example: "\"/var/log/portreeve-audit.log\"",
            },
        ],
    },
    Section {
        path: "admin",
        help: "How the running server is asked for its state.",
        options: &[
            Opt {
                path: "admin.socket",
                kind: Kind::Path,
                default: Default::Unset("`run/admin.sock` in the state folder"),
                reload: Reload::Restart,
                help: "Unix socket of `portreeve status` and `reload`; mode 0600.",
                example: "\"/run/portreeve/admin.sock\"",
            },
            Opt {
                path: "admin.metrics",
                kind: Kind::Endpoint,
                default: Default::Is("\"off\""),
                reload: Reload::Restart,
                help: "Figures as Prometheus text: `\"unix:PATH\"`, or an address of this host itself. Answers GET /metrics.",
                example: "\"127.0.0.1:9025\"",
            },
        ],
    },
];
