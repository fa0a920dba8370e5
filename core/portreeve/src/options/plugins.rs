//! Libraries and their back ends.

use super::{Default, Kind, Opt, Reload, SECOND, Section};

pub const SECTIONS: &[Section] = &[
    Section {
        path: "plugins",
        help: "Mechanism libraries.",
        options: &[
            Opt {
                path: "plugins.path",
                kind: Kind::Paths,
                default: Default::Is("[]"),
                reload: Reload::Command,
                help: "Folders that are searched for libraries first; then the program's own folder, then \
               `../lib/portreeve/plugins` beside it.",
                example: "[\"/usr/lib/portreeve/plugins\"]",
            },
            Opt {
                path: "plugins.load",
                kind: Kind::Words,
                default: Default::Is("[\"standard\"]"),
                reload: Reload::Command,
                help: "Libraries to load, by id: `portreeve_<id>.so` or `libportreeve_<id>.so`. Bundled: `standard` (PLAIN, \
               LOGIN), `legacy` (CRAM-MD5).",
                example: "[\"standard\", \"legacy\"]",
            },
        ],
    },
    Section {
        path: "plugins.library[]",
        help: "How one library is run. Libraries without such a table run as their defaults say. Repeat the table for \
               each one.",
        options: &[
            Opt {
                path: "plugins.library[].id",
                kind: Kind::Text,
                default: Default::Required,
                reload: Reload::Command,
                help: "Which library: its id, as in `plugins.load`.",
                example: "\"standard\"",
            },
            Opt {
                path: "plugins.library[].runner",
                kind: Kind::Choice(&["inline", "process"]),
                default: Default::Unset("`inline` for `standard` and `legacy`, `process` for all others"),
                reload: Reload::Command,
                help: "Where it runs. `process`: in a process of its own without network and files; a crash costs the logins \
               that are under way in it, and a changed file is taken over without a new generation of workers. \
               `inline`: inside of the workers, where a fault of the library is the worker's.",
                example: "\"process\"",
            },
            Opt {
                path: "plugins.library[].grant",
                kind: Kind::Words,
                default: Default::Is("[]"),
                reload: Reload::Command,
                help: "What a library in a process of its own may have beside computing: `net` (connections to others), \
               `read:PATH` and `write:PATH` (a file, or everything below a folder).",
                example: "[\"net\", \"read:/etc/krb5.conf\", \"write:/var/tmp\"]",
            },
            Opt {
                path: "plugins.library[].self_asserts",
                kind: Kind::Flag,
                default: Default::Is("false"),
                reload: Reload::Command,
                help: "Believe this library when it says who somebody is, without a proof that the server could check: \
               Kerberos works so. Without it its mechanisms of this kind are not offered.",
                example: "true",
            },
            Opt {
                path: "plugins.library[].sha256",
                kind: Kind::Text,
                default: Default::Unset("any content"),
                reload: Reload::Command,
                help: "The only content that is loaded: 64 hexadecimal digits, as `sha256sum` prints them.",
                example: "\"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
            },
        ],
    },
    Section {
        path: "plugins.backend[]",
        help: "How one back end of a library is run. Without a table it has no settings and the defaults below.",
        options: &[
            Opt {
                path: "plugins.backend[].name",
                kind: Kind::Text,
                default: Default::Required,
                reload: Reload::Command,
                help: "Which back end: its name in its library, see `portreeve plugin inspect`.",
                example: "\"acme\"",
            },
            Opt {
                path: "plugins.backend[].settings",
                kind: Kind::Settings,
                default: Default::Unset("none"),
                reload: Reload::Command,
                help: "What the back end wants to know, as its library describes it (`config_schema`). `{ file = \"…\" }` stands \
               for the text of a file, `{ env = \"…\" }` for a variable of the server's environment: both are read when \
               the server starts and at reload, and only the back end's process gets them.",
                example: "{ users = { file = \"acme-users\" } }",
            },
            Opt {
                path: "plugins.backend[].timeout",
                kind: Kind::Duration { min: 50, max: 60 * SECOND },
                default: Default::Is("\"5s\""),
                reload: Reload::Command,
                help: "How long an answer may take, waiting for a free place included; then the login is answered `454 4.7.0`. A \
               process with a call that is not over three times as long after that is replaced. Must be shorter than \
               `timeouts.directory`.",
                example: "\"2s\"",
            },
            Opt {
                path: "plugins.backend[].parallel",
                kind: Kind::Count { min: 1, max: 64 },
                default: Default::Unset("what the library declares, at most 64"),
                reload: Reload::Command,
                help: "Most calls at the same time.",
                example: "4",
            },
            Opt {
                path: "plugins.backend[].queue",
                kind: Kind::Count { min: 1, max: 65_536 },
                default: Default::Is("1024"),
                reload: Reload::Command,
                help: "Logins that may wait for a free place; more are answered `454 4.7.0` at once.",
                example: "256",
            },
            Opt {
                path: "plugins.backend[].decoy_iterations",
                kind: Kind::Count { min: 1, max: 10_000_000 },
                default: Default::Is("15000"),
                reload: Reload::Command,
                help: "For back ends with SCRAM keys: the iterations that users whom it does not know seem to have. Write what its \
               real users have, or strangers can tell one from the other.",
                example: "4096",
            },
        ],
    },
    Section {
        path: "mechanism",
        help: "Settings of mechanisms, a table for each: `[mechanism.GSSAPI]`. Which keys there are is the library's \
               affair, `portreeve plugin inspect` and its documents tell.",
        options: &[],
    },
];
