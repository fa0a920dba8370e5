//! Issuers of bearer tokens.

use super::{Default, Kind, MINUTE, Opt, Reload, SECOND, Section};

pub const SECTIONS: &[Section] = &[Section {
    path: "tokens.issuer[]",
    help: "Whose bearer tokens are believed (OAUTHBEARER, XOAUTH2); the mechanisms are offered when there is one. \
               The user that a token names must be in the users file. Repeat the table for each issuer: one that does \
               not know a token leaves it to the others.",
    options: &[
        Opt {
            path: "tokens.issuer[].kind",
            kind: Kind::Choice(&["jwt", "introspection", "file"]),
            default: Default::Required,
            reload: Reload::Command,
            help: "How a token is checked. `jwt`: by its signature, with `keys`. `introspection`: by asking the server that \
               issued it (RFC 7662), at `url`. `file`: it stands in `file`; for tests.",
            example: "\"jwt\"",
        },
        Opt {
            path: "tokens.issuer[].name",
            kind: Kind::Text,
            default: Default::Unset("`issuer`, else the kind"),
            reload: Reload::Command,
            help: "For messages; unique.",
            example: "\"staff\"",
        },
        Opt {
            path: "tokens.issuer[].issuer",
            kind: Kind::Text,
            default: Default::Unset("not looked at; for `jwt` it must be written"),
            reload: Reload::Command,
            help: "What the token must say about who issued it (`iss`), to the letter.",
            example: "\"https://login.example.org\"",
        },
        Opt {
            path: "tokens.issuer[].audience",
            kind: Kind::Words,
            default: Default::Unset("not looked at; for `jwt` it must be written"),
            reload: Reload::Command,
            help: "Whom the token must be meant for (`aud`): one of these.",
            example: "[\"smtp.example.org\"]",
        },
        Opt {
            path: "tokens.issuer[].keys",
            kind: Kind::Text,
            default: Default::Unset("for `jwt` it must be written"),
            reload: Reload::Command,
            help: "The issuer's key set (RFC 7517): an https URL, fetched again every ten minutes and when a token names a \
               new key; or a file, read again when it changes.",
            example: "\"https://login.example.org/jwks.json\"",
        },
        Opt {
            path: "tokens.issuer[].algorithms",
            kind: Kind::Words,
            default: Default::Is("[\"RS256\", \"PS256\", \"ES256\", \"EdDSA\"]"),
            reload: Reload::Command,
            help: "Signatures that are believed. Also known: RS384, RS512, PS384, PS512, ES384. None with a shared secret.",
            example: "[\"ES256\"]",
        },
        Opt {
            path: "tokens.issuer[].url",
            kind: Kind::Text,
            default: Default::Unset("for `introspection` it must be written"),
            reload: Reload::Command,
            help: "The introspection endpoint. After five failures in a row it is left alone for five seconds.",
            example: "\"https://login.example.org/introspect\"",
        },
        Opt {
            path: "tokens.issuer[].client_id",
            kind: Kind::Text,
            default: Default::Unset("nothing is said about who asks"),
            reload: Reload::Command,
            help: "Who we are at the introspection endpoint.",
            example: "\"portreeve\"",
        },
        Opt {
            path: "tokens.issuer[].client_secret_file",
            kind: Kind::Path,
            default: Default::Unset("none"),
            reload: Reload::Command,
            help: "A file with our secret there in its first line.",
            example: "\"secrets/introspection\"",
        },
        Opt {
            path: "tokens.issuer[].file",
            kind: Kind::Path,
            default: Default::Unset("for `file` it must be written"),
            reload: Reload::Command,
            help: "A file of tokens, one per line: `TOKEN USER [exp=SECONDS-SINCE-1970] [scope=WORD]…`. Read again when it \
               changes.",
            example: "\"tokens\"",
        },
        Opt {
            path: "tokens.issuer[].claim",
            kind: Kind::Text,
            default: Default::Unset("`email`; for `introspection` `username`"),
            reload: Reload::Command,
            help: "Which claim names the user, as the users file does. Name only one that users cannot choose themselves.",
            example: "\"preferred_username\"",
        },
        Opt {
            path: "tokens.issuer[].scope",
            kind: Kind::Text,
            default: Default::Unset("any will do"),
            reload: Reload::Command,
            help: "What the token must be good for (`scope` or `scp`). The first issuer's is told to clients whose token is \
               refused.",
            example: "\"mail\"",
        },
        Opt {
            path: "tokens.issuer[].openid_configuration",
            kind: Kind::Text,
            default: Default::Unset("not told"),
            reload: Reload::Command,
            help: "Where clients learn how to get a token; told to those whose token is refused (RFC 7628 §3.2.2).",
            example: "\"https://login.example.org/.well-known/openid-configuration\"",
        },
        Opt {
            path: "tokens.issuer[].ca",
            kind: Kind::Path,
            default: Default::Unset("the authorities that the system trusts"),
            reload: Reload::Command,
            help: "PEM file: who vouches for the issuer's server.",
            example: "\"tls/own-ca.pem\"",
        },
        Opt {
            path: "tokens.issuer[].skew",
            kind: Kind::Duration { min: 0, max: MINUTE },
            default: Default::Is("\"30s\""),
            reload: Reload::Command,
            help: "How much the issuer's clock may differ from ours.",
            example: "\"5s\"",
        },
        Opt {
            path: "tokens.issuer[].timeout",
            kind: Kind::Duration { min: 100, max: 10 * SECOND },
            default: Default::Is("\"3s\""),
            reload: Reload::Command,
            help: "For an answer of the issuer's server; then 454.",
            example: "\"1s\"",
        },
    ],
}];
