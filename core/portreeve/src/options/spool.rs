//! The spool.

use super::{Default, GIB, Kind, MIB, Opt, Reload, Section};

pub const SECTIONS: &[Section] = &[Section {
    path: "spool",
    help: "Where accepted mail is kept until it is handed on.",
    options: &[
        Opt {
            path: "spool.path",
            kind: Kind::Path,
            default: Default::Unset("`spool` in the state folder"),
            reload: Reload::Restart,
            help: "Folder of the spool. A local file system that keeps what it has synced.",
            example: "\"/var/spool/portreeve\"",
        },
        Opt {
            path: "spool.segment",
            kind: Kind::Octets { min: MIB, max: GIB },
            default: Default::Is("\"64MiB\""),
            reload: Reload::Command,
            help: "Size of one segment file.",
            example: "\"16MiB\"",
        },
        Opt {
            path: "spool.durability",
            kind: Kind::Choice(&["group-fsync", "none"]),
            default: Default::Is("\"group-fsync\""),
            reload: Reload::Command,
            help: "`group-fsync`: 250 means that message and envelope are on disk. `none` can lose acknowledged mail and \
               needs `allow_data_loss = true`; when all routes are `discard`, messages are then not written at all.",
            example: "\"none\"",
        },
        Opt {
            path: "spool.min_free",
            kind: Kind::Octets { min: 0, max: 1024 * GIB },
            default: Default::Is("\"256MiB\""),
            reload: Reload::Command,
            help: "With less free room new messages get 452 4.3.1.",
            example: "\"1GiB\"",
        },
        Opt {
            path: "spool.min_free_percent",
            kind: Kind::Count { min: 0, max: 90 },
            default: Default::Is("10"),
            reload: Reload::Command,
            help: "The same, in per cent of the file system's room and of its files (inodes).",
            example: "5",
        },
        Opt {
            path: "spool.memory",
            kind: Kind::Octets { min: MIB, max: 64 * GIB },
            default: Default::Is("\"64MiB\""),
            reload: Reload::Command,
            help: "Memory of one worker for messages on their way to the disk.",
            example: "\"256MiB\"",
        },
    ],
}];
