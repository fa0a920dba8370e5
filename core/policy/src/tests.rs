use super::*;
use smtp::host::Peer;
use std::net::{IpAddr, Ipv4Addr};

const PEER: Peer = Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 1, exempt: false, cleartext_auth: false };

fn identity(senders: &[&str]) -> Identity {
    Identity {
        name: "alice@demo.test".into(),
        senders: senders.iter().map(|s| (*s).into()).collect(),
        message_octets_max: None,
        recipients_max: None,
        epoch: 0,
    }
}

fn policy(role: Role, recipients: Recipients) -> RolePolicy {
    let (envelope, header) = (SenderCheck::Enforce, SenderCheck::Enforce);
    let domains = vec!["demo.test".to_owned(), "b.test".to_owned()];
    RolePolicy::new(Settings { role, domains, recipients, sender_envelope: envelope, sender_header: header })
}

fn text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Permit => "permit",
        Verdict::Refuse(reply) => reply.rule,
        Verdict::Ask => "ask",
    }
}

#[test]
fn recipients() {
    let alice = identity(&["alice@demo.test"]);
    for (role, known, who, to, expect) in [
        (Role::Mx, Recipients::Directory, None, "x@demo.test", "ask"),
        (Role::Mx, Recipients::Any, None, "x@demo.test", "permit"),
        (Role::Mx, Recipients::Directory, None, "x@far.example", "relay.denied"),
        (Role::Mx, Recipients::Any, None, "x@far.example", "relay.denied"),
        (Role::Mx, Recipients::Directory, None, "x@sub.demo.test", "relay.denied"),
        (Role::Mx, Recipients::Directory, None, "x@demo.test.far.example", "relay.denied"),
        (Role::Mx, Recipients::Directory, None, "x%far.example@demo.test", "ask"),
        (Role::Mx, Recipients::Directory, Some(&alice), "x@far.example", "permit"),
        (Role::Mx, Recipients::Directory, None, "postmaster", "ask"),
        (Role::Submission, Recipients::Directory, Some(&alice), "x@far.example", "permit"),
        (Role::Submission, Recipients::Directory, Some(&alice), "x@demo.test", "ask"),
        (Role::Submissions, Recipients::Directory, Some(&alice), "x@host", "rcpt.unqualified"),
        // Where AUTH is not required of everybody, relaying still is only for those who have proven who they are.
        (Role::Submission, Recipients::Directory, None, "x@far.example", "relay.denied"),
    ] {
        let facts = Facts { role, identity: who, anonymous: false, peer: &PEER, tls: true };
        assert_eq!(text(policy(role, known).rcpt(&facts, &Envelope::default(), to)), expect, "{role:?} {to}");
    }
}

/// Nobody may say that they are anybody but one of us, and reaches one of us only.
#[test]
fn somebody_anonymous() {
    let policy = policy(Role::Submission, Recipients::Directory);
    let facts = Facts { role: Role::Submission, identity: None, anonymous: true, peer: &PEER, tls: true };
    for (from, expect, author) in [
        (None, "permit", None),
        (Some("x@far.example"), "permit", Some("permit")),
        (Some("alice@demo.test"), "sender.denied", Some("from.denied")),
        (Some("nobody@demo.test"), "sender.denied", Some("from.denied")),
    ] {
        assert_eq!(text(policy.mail(&facts, from)), expect, "{from:?}");
        if let (Some(from), Some(expect)) = (from, author) {
            assert_eq!(text(policy.header_from(&facts, from)), expect, "{from}");
        }
    }
    for (to, expect) in [("x@demo.test", "ask"), ("x@far.example", "relay.denied"), ("postmaster", "ask")] {
        assert_eq!(text(policy.rcpt(&facts, &Envelope::default(), to)), expect, "{to}");
    }
}

#[test]
fn senders() {
    for (senders, from, expect) in [
        (&["alice@demo.test"][..], Some("Alice@demo.test"), "permit"),
        (&["alice@demo.test"], Some("bob@demo.test"), "ask"),
        (&["alice@demo.test"], Some("alice@host"), "mail.unqualified"),
        (&["alice@demo.test"], None, "permit"),
        (&["@demo.test"], Some("anyone@demo.test"), "permit"),
        (&["@demo.test"], Some("anyone@b.test"), "ask"),
        (&["*"], Some("x@far.example"), "permit"),
        (&[], Some("x@far.example"), "ask"),
    ] {
        let alice = identity(senders);
        let facts = Facts { role: Role::Submission, identity: Some(&alice), anonymous: false, peer: &PEER, tls: true };
        let policy = policy(Role::Submission, Recipients::Directory);
        assert_eq!(text(policy.mail(&facts, from)), expect, "{senders:?} {from:?}");
        if let (Some(from), false) = (from, expect == "mail.unqualified") {
            assert_eq!(text(policy.header_from(&facts, from)), expect);
        }
        let facts = Facts { role: Role::Mx, ..facts };
        let mx = super::tests::policy(Role::Mx, Recipients::Directory);
        assert_eq!(text(mx.mail(&facts, from)), "permit");
    }
}
