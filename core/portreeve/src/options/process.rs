//! The whole server, and its processes.

use super::{Default, HOUR, Kind, Opt, Reload, Section};

pub const SECTIONS: &[Section] = &[
    Section {
        path: "",
        help: "The whole server.",
        options: &[
            Opt {
                path: "hostname",
                kind: Kind::Host,
                default: Default::Unset("the system's host name"),
                reload: Reload::Command,
                help: "Our name in greeting, EHLO reply and Received lines. Should resolve to this host's address.",
                example: "\"mail.example.org\"",
            },
            Opt {
                path: "drain",
                kind: Kind::Duration { min: 0, max: HOUR },
                default: Default::Is("\"120s\""),
                reload: Reload::Command,
                help: "How long sessions may go on after SIGTERM, or in an old generation after a reload. Idle sessions get \
               421 then; a transaction in progress may finish until 300 s.",
                example: "\"30s\"",
            },
            Opt {
                path: "allow_data_loss",
                kind: Kind::Flag,
                default: Default::Is("false"),
                reload: Reload::Command,
                help: "Permits what can lose mail: `spool.durability = \"none\"` and routes of kind `discard`. For benches only; \
               said loudly in the EHLO reply and in `portreeve status`.",
                example: "true",
            },
        ],
    },
    Section {
        path: "process",
        help: "Processes and the rights they run with.",
        options: &[
            Opt {
                path: "process.workers",
                kind: Kind::Count { min: 1, max: 256 },
                default: Default::Is("1"),
                reload: Reload::Restart,
                help: "Worker processes. More than one gives isolation, and more sessions than one process may have descriptors.",
                example: "2",
            },
            Opt {
                path: "process.shards",
                kind: Kind::Count { min: 0, max: 256 },
                default: Default::Is("0"),
                reload: Reload::Restart,
                help: "Event loops (threads) in each worker; 0 means one per core.",
                example: "4",
            },
            Opt {
                path: "process.user",
                kind: Kind::Text,
                default: Default::Unset("`portreeve` when started as root; no change of user otherwise"),
                reload: Reload::Restart,
                help: "Every process except the supervisor runs as this user when started as root. \"root\" keeps root's \
               rights and warns.",
                example: "\"mail\"",
            },
            Opt {
                path: "process.group",
                kind: Kind::Text,
                default: Default::Unset("the user's own group"),
                reload: Reload::Restart,
                help: "The group that goes with `process.user`.",
                example: "\"mail\"",
            },
            Opt {
                path: "process.state_dir",
                kind: Kind::Path,
                default: Default::Is("\"state\""),
                reload: Reload::Restart,
                help: "Holds `run/` (lock, sockets), `secrets/`, and by default `spool/` and `auth/`. Made with mode 0700.",
                example: "\"/var/lib/portreeve\"",
            },
            Opt {
                path: "process.sandbox",
                kind: Kind::Choice(&["best-effort", "require"]),
                default: Default::Is("\"best-effort\""),
                reload: Reload::Restart,
                help: "How processes that run mechanism libraries are locked up (Landlock, seccomp): with what this kernel has, \
               or not at all started when something is missing. `portreeve status --json` shows what is in force.",
                example: "\"require\"",
            },
        ],
    },
];
