use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use link::directory::Answer;
use zeroize::Zeroizing;

use super::*;
use crate::decoy::{Decoys, Profile};

const USERS: &str = "alice@demo.test::aliases=info@demo.test senders=sales@demo.test size=1M\n\
                     barred@demo.test::disabled\n\
                     boss@demo.test::authzids=*\n";

/// What a worker hears: status, doomed, account, identity with its senders, data, SCRAM numbers; and the fault.
type Heard = ((u8, bool, u8, Option<(String, Vec<String>)>, Vec<u8>, Option<(u32, u16)>), Option<Fault>);

fn hear(kind: EffectKind, arg: u32, names: [&[u8]; 2], reply: Option<Reply<'_>>) -> Heard {
    let users = Users::parse("users".as_ref(), Zeroizing::new(USERS.into()), &Arc::default()).expect("good users");
    let decoys = || Decoys::new([5; 32], vec![Profile { weight: 1, iterations: 4096, salt_octets: 16 }]);
    let directory = Directory::new(users, decoys(), None, Arc::new(AtomicU64::new(7)));
    let spec = Spec {
        library: "acme".into(),
        name: "acme".into(),
        mechanisms: Vec::new(),
        provides: u64::MAX,
        timeout_ms: 1,
        queue_max: 1,
        parallel: None,
        decoys: decoys(),
    };
    let [authcid, authzid] = names;
    let effect = Effect {
        effect: kind as u32,
        arg,
        conn_flags: 0,
        tls_version: 0,
        session: 0,
        client_ip: [192, 0, 2, 1].into(),
        mechanism: "PLAIN",
        listener: "submission",
        sni: "",
        authcid,
        authzid,
        data: b"",
        data2: b"",
        service: b"",
    };
    let mut to = Vec::new();
    let fault = directory.outside(&spec, &effect, reply.as_ref(), &mut to).err();
    let Ok(Answer::Sasl { status, doomed, account, identity, data, scram }) = Answer::decode(&to) else {
        panic!("no answer to a mechanism")
    };
    let identity = identity.map(|identity| {
        assert_eq!(identity.epoch, 7);
        (identity.name.to_owned(), identity.senders.iter().map(|sender| (*sender).to_owned()).collect())
    });
    (
        (status, doomed, account, identity, data.to_vec(), scram.map(|scram| (scram.iterations, scram.salt_octets))),
        fault,
    )
}

fn password(name: &[u8], authzid: &[u8], reply: Reply<'_>) -> Heard {
    hear(EffectKind::VerifyPassword, 0, [name, authzid], Some(reply))
}

fn named(status: u32, found: bool, identity: &[u8]) -> Reply<'_> {
    Reply { found, identity, ..Reply::of(status) }
}

#[test]
fn a_right_password_is_who_the_rules_say() {
    let who = |name: &[u8], said: &[u8]| {
        let ((status, doomed, account, identity, ..), fault) = password(name, b"", named(0, true, said));
        (status, doomed, account, identity.map(|(name, senders)| (name, senders.join(" "))), fault)
    };
    let ok = |name: &str, senders: &str| (0, false, 0, Some((name.to_owned(), senders.to_owned())), None);
    assert_eq!(who(b"Zoe@Demo.Test", b""), ok("zoe@demo.test", "zoe@demo.test"), "itself, and as itself");
    assert_eq!(who(b"x", b"zoe"), ok("zoe", "zoe"));
    let alice = ok("alice@demo.test", "alice@demo.test info@demo.test sales@demo.test");
    assert_eq!(who(b"anybody", b"ALICE@demo.test"), alice, "a user of the file has that user's rights");
    let (status, _, account, ..) = who(b"barred@demo.test", b"");
    assert_eq!((status, account), (0, 1), "and bars");
    for (said, why) in [
        (&b"info@demo.test"[..], "alias"),
        (b"\xff", "no name"),
        (b"a\0b", "no name"),
        (b"../etc@demo.test", "begins with '.'"),
        (b"a/b@demo.test", "'/'"),
    ] {
        let (status, doomed, _, identity, fault) = who(b"x", said);
        assert_eq!((status, doomed, identity), (2, false, None), "{said:?}");
        assert!(fault.is_some_and(|fault| fault.contains(why)), "{said:?}: {fault:?}");
    }
}

#[test]
fn acting_as_somebody_else_is_decided_here() {
    let status = |name: &[u8], authzid: &[u8]| password(name, authzid, named(0, true, b"")).0.0;
    assert_eq!(status(b"zoe@demo.test", b"zoe@demo.test"), 0);
    assert_eq!(status(b"zoe@demo.test", b"alice@demo.test"), 1);
    let ((status, .., identity, _, _), _) = password(b"boss@demo.test", b"alice@demo.test", named(0, true, b""));
    assert_eq!((status, identity.map(|(name, _)| name)), (0, Some("alice@demo.test".to_owned())));
}

#[test]
fn what_is_not_good_is_denied_doomed_or_temporary() {
    for (reply, status, doomed) in [
        (named(1, true, b""), 1, false),
        (named(1, false, b""), 1, true),
        (named(0, false, b"alice@demo.test"), 1, true),
        (named(4, false, b""), 4, true),
        (named(5, true, b""), 5, false),
        (named(2, true, b"alice@demo.test"), 2, false),
        (named(3, true, b"alice@demo.test"), 3, false),
        (named(6, true, b"alice@demo.test"), 2, false),
        (named(BROKEN, true, b"alice@demo.test"), 2, false),
    ] {
        let ((heard, dooms, _, identity, data, _), _) = password(b"x", b"", Reply { data: b"secret", ..reply });
        assert_eq!((heard, dooms, identity, data), (status, doomed, None, vec![]), "{}", reply.status);
    }
    let ((status, doomed, ..), fault) = hear(EffectKind::VerifyPassword, 0, [b"x", b""], None);
    assert_eq!((status, doomed, fault), (2, false, None), "nobody said anything");
    // A token's error goes to its mechanism; a token without an owner is no proof.
    let error = Reply { data: b"{}", ..named(1, true, b"") };
    assert_eq!(hear(EffectKind::VerifyToken, 0, [b"", b""], Some(error)).0.4, b"{}");
    assert!(hear(EffectKind::VerifyToken, 0, [b"", b""], Some(named(0, true, b""))).1.is_some());
    assert!(hear(EffectKind::VerifyExternal, 0, [b"", b""], Some(named(0, true, b""))).1.is_some());
}

fn scram<'a>(identity: &'a [u8], salt: &'a [u8], key: &'a [u8], iterations: u32) -> Reply<'a> {
    Reply { iterations, salt, stored_key: key, server_key: key, ..named(0, true, identity) }
}

#[test]
fn a_key_that_is_not_there_is_a_decoy_and_nobody_can_tell() {
    let key = |name: &[u8], authzid: &[u8], reply| hear(EffectKind::FetchKey, 3, [name, authzid], Some(reply));
    let ((status, doomed, _, identity, data, numbers), _) = key(b"zoe", b"", scram(b"", &[1; 16], &[2; 32], 4096));
    assert_eq!((status, doomed, identity.map(|(name, _)| name)), (0, false, Some("zoe".to_owned())));
    assert_eq!((data.len(), numbers), (16 + 64, Some((4096, 16))));
    let unknown = key(b"ghost", b"", named(1, false, b""));
    let ((status, doomed, _, identity, data, numbers), fault) = unknown.clone();
    assert_eq!((status, doomed, identity, fault), (0, true, None, None));
    assert_eq!((data.len(), numbers), (16 + 64, Some((4096, 16))), "as real ones look");
    for same in [named(0, false, b""), named(1, true, b""), named(4, true, b"ghost"), named(5, false, b"")] {
        assert_eq!(key(b"ghost", b"", same), unknown, "however it is said, and each time");
    }
    assert_eq!(key(b"GHOST", b"", named(1, false, b"")), unknown, "under the prepared name");
    // Real salt, but keys that fit nothing, for who may not act so.
    let ((_, doomed, _, identity, data, _), _) = key(b"zoe", b"alice@demo.test", scram(b"", &[1; 16], &[2; 32], 4096));
    assert_eq!((doomed, identity, &data[..16]), (true, None, &[1; 16][..]));
    assert_ne!(&data[16..48], &[2; 32]);
    for bad in [
        scram(b"", b"", &[2; 32], 4096),
        scram(b"", &[1; 300], &[2; 32], 4096),
        scram(b"", &[1; 16], &[2; 31], 4096),
        scram(b"", &[1; 16], &[2; 32], 0),
        scram(b"", &[1; 16], &[2; 32], u32::MAX),
    ] {
        let ((status, doomed, _, identity, data, _), fault) = key(b"zoe", b"", bad);
        assert_eq!((status, doomed, identity, data), (2, false, None, vec![]));
        assert!(fault.is_some());
    }
    assert_eq!(key(b"zoe", b"", named(2, false, b"")).0.0, 2);
}

#[test]
fn other_keys_have_their_lengths() {
    for (arg, octets) in [(5, 16), (6, 32), (1, 9)] {
        let data = vec![9; octets];
        let reply = Reply { data: &data, ..named(0, true, b"zoe") };
        let ((status, doomed, .., found, _), _) = hear(EffectKind::FetchKey, arg, [b"zoe", b""], Some(reply));
        assert_eq!((status, doomed, found), (0, false, data));
        let ((status, doomed, .., decoy, _), _) =
            hear(EffectKind::FetchKey, arg, [b"ghost", b""], Some(named(1, false, b"")));
        let like = if arg == 1 { 32 } else { octets };
        assert_eq!((status, doomed, decoy.len()), (0, true, like));
    }
    let reply = Reply { data: &[0; 15], ..named(0, true, b"zoe") };
    assert!(hear(EffectKind::FetchKey, 5, [b"zoe", b""], Some(reply)).1.is_some());
    assert!(hear(EffectKind::FetchKey, 77, [b"zoe", b""], Some(reply)).1.is_some());
}

#[test]
fn a_private_answer_is_a_proof_only_with_an_identity() {
    let call = |reply| {
        let ((status, doomed, _, identity, data, _), _) =
            hear(EffectKind::BackendCall, 0, [b"", b""], Some(Reply { data: b"answer", ..reply }));
        (status, doomed, identity.map(|(name, _)| name), data)
    };
    let data = b"answer".to_vec();
    assert_eq!(call(named(0, true, b"zoe")), (0, false, Some("zoe".into()), data.clone()));
    assert_eq!(call(named(0, true, b"")), (0, false, None, data.clone()), "no proof");
    assert_eq!(call(named(0, false, b"zoe")), (0, true, None, data.clone()), "doomed");
    assert_eq!(call(named(1, true, b"zoe")), (1, false, None, data), "denied");
}
