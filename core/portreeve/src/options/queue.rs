//! The queue.

use super::{Default, HOUR, Kind, MINUTE, Opt, Reload, SECOND, Section};

pub const SECTIONS: &[Section] = &[Section {
    path: "queue",
    help: "How long mail is tried.",
    options: &[
        Opt {
            path: "queue.expire",
            kind: Kind::Duration { min: MINUTE, max: 30 * 24 * HOUR },
            default: Default::Is("\"120h\""),
            reload: Reload::Command,
            help: "How old a message may become before it is given up and its sender, when it had logged in, gets a report.",
            example: "\"48h\"",
        },
        Opt {
            path: "queue.delay_notice",
            kind: Kind::Duration { min: 0, max: 30 * 24 * HOUR },
            default: Default::Is("\"4h\""),
            reload: Reload::Command,
            help: "How long a message may wait before its sender, when it had logged in and did not ask otherwise with NOTIFY, is \
               told so, once for each recipient. `\"0s\"`: never.",
            example: "\"30m\"",
        },
        Opt {
            path: "queue.retry",
            kind: Kind::Duration { min: SECOND, max: HOUR },
            default: Default::Is("\"30s\""),
            reload: Reload::Command,
            help: "Time to the second attempt; later ones come after twice as long each.",
            example: "\"2m\"",
        },
        Opt {
            path: "queue.retry_max",
            kind: Kind::Duration { min: SECOND, max: 24 * HOUR },
            default: Default::Is("\"1h\""),
            reload: Reload::Command,
            help: "Longest time between two attempts.",
            example: "\"30m\"",
        },
    ],
}];
