//! The border itself: panics, destructors, parts, the note.

use std::cell::Cell;

use super::*;
use crate::abi::{fail, status};
use crate::backend::{Asked, BackendMeta, Reply, Request};
use crate::cx::{Bad, Cx, Done, Outcome};
use crate::testing::{Answer, Exchange};
use crate::{Effect, Meta, Part, Status, flag};

/// Does on START what its message says.
struct Probe;

thread_local! {
    /// States that live, of this test: a leak or a second drop shows.
    static LIVES: Cell<i64> = const { Cell::new(0) };
}

struct Alive {
    remembered: [u8; 8],
}

impl Default for Alive {
    fn default() -> Self {
        LIVES.set(LIVES.get() + 1);
        Alive { remembered: [0; 8] }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        LIVES.set(LIVES.get() - 1);
    }
}

impl Mechanism for Probe {
    const META: Meta = Meta {
        name: c"X-PROBE",
        flags: flag::CLIENT_FIRST,
        needs: &[EffectKind::BackendCall, EffectKind::FetchKey],
        output_octets_max: 4,
        ..Meta::NONE
    };
    type State = Alive;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[]).map(|()| Probe)
    }

    fn step(&self, state: &mut Alive, mut cx: Cx<'_>) -> Result<Done, Bad> {
        match cx.message() {
            b"panic" => panic!("the password was hunter2"),
            b"elsewhere" => {
                let part = cx.part(b"static octets")?;
                cx.perform(Effect::BackendCall { service: part, request: part })
            }
            b"parts" => {
                state.remembered.copy_from_slice(b"remember");
                let service = cx.part(&cx.message()[1..3])?;
                let request = cx.part(&state.remembered[2..])?;
                cx.perform(Effect::BackendCall { service, request })
            }
            b"copied" => {
                let service = cx.put_part(b"abc")?;
                cx.perform(Effect::BackendCall { service, request: Part::EMPTY })
            }
            b"overflow" => cx.put(b"12345").and_then(|()| cx.challenge()),
            b"final" => cx.put(b"v=1").and_then(|()| cx.fail(Bad::CREDENTIALS.because("a reason"))),
            _ => Err(Bad::MALFORMED.because("unknown word")),
        }
    }
}

fn failure(class: u32, reason: &str) -> Answer {
    Answer::Failure { class, reason: reason.into(), data: None }
}

#[test]
fn answers_cross_the_border() {
    let before = LIVES.get();
    let mut exchange = Exchange::new(Probe);
    let call = |service: &[u8], request: &[u8]| Answer::Effect {
        kind: EffectKind::BackendCall,
        arg: 0,
        authcid: vec![],
        authzid: vec![],
        data: request.to_vec(),
        data2: service.to_vec(),
    };
    assert_eq!(exchange.start(Some(b"parts")), call(b"ar", b"member"), "parts of message and state");
    assert_eq!(exchange.start(Some(b"copied")), call(b"abc", b""));
    assert_eq!(
        exchange.start(Some(b"elsewhere")),
        failure(fail::INTERNAL, "octets outside of message, output and state")
    );
    assert_eq!(exchange.start(Some(b"overflow")), failure(fail::INTERNAL, "output is longer than declared"));
    assert_eq!(
        exchange.start(Some(b"final")),
        Answer::Failure { class: fail::CREDENTIALS, reason: "a reason".into(), data: Some(b"v=1".to_vec()) }
    );
    assert_eq!(exchange.start(Some(b"")), failure(fail::MALFORMED, "unknown word"));
    drop(exchange);
    assert_eq!(LIVES.get(), before, "each state is dropped once");
}

#[test]
fn an_exchange_begins_with_start() {
    let mut exchange = Exchange::new(Probe);
    assert_eq!(exchange.message(b"parts"), failure(fail::INTERNAL, "an exchange begins with START, once"));
}

#[test]
fn a_panic_is_a_failure_that_quotes_nobody() {
    // As `enter` does it; other tests of this process do not panic.
    panics::watch();
    let answer = Exchange::new(Probe).start(Some(b"panic"));
    let _ = std::panic::take_hook();
    let Answer::Failure { class: fail::INTERNAL, reason, .. } = answer else { panic!("{answer:?}") };
    assert!(reason.starts_with("panic at ") && reason.contains("tests.rs:"), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
}

#[test]
fn each_status_has_its_class() {
    for (status, class) in [
        (Status::Denied, fail::CREDENTIALS),
        (Status::Temporary, fail::TEMPORARY),
        (Status::Unsupported, fail::TEMPORARY),
        (Status::Transition, fail::TRANSITION),
        (Status::Expired, fail::EXPIRED),
    ] {
        let outcome = Outcome { status: status as u32, handle: 7, data: b"", scram: None };
        assert_eq!(outcome.proof().unwrap_err().class, class, "{status:?}");
    }
    let good = Outcome { status: Status::Ok as u32, handle: 7, data: b"", scram: None };
    assert_eq!(good.proof().unwrap().0, 7);
}

#[test]
fn the_note_is_json_with_the_facts() {
    const ABOUT: About = About { id: "probe", version: "1.2.3", panic: "unwind" };
    const METAS: &[Meta] = &[Probe::META, Meta { name: c"B", needs: &[], ..Meta::NONE }];
    const OCTETS: usize = note_octets(ABOUT, METAS, &[]);
    static NOTE: Note<OCTETS> = Note::new(ABOUT, METAS, &[]);
    let json = std::str::from_utf8(&NOTE.json).unwrap().trim_end_matches('\0');
    assert_eq!(
        json,
        r#"{"abi":"1.0","id":"probe","version":"1.2.3","panic":"unwind","mechanisms":{"X-PROBE":["BACKEND_CALL","FETCH_KEY"],"B":[]},"self_asserts":[],"offloads":[]}"#
    );
    assert_eq!((NOTE.name_octets, NOTE.kind, &NOTE.name), (10, 1, b"Portreeve\0\0\0"));
    assert_eq!(NOTE.json.len() % 4, 0);
}

struct Own(u8);

impl Backend for Own {
    const META: BackendMeta = BackendMeta {
        name: c"own",
        config_schema: Some(c"{\"type\":\"object\"}"),
        provides: &[EffectKind::VerifyPassword, EffectKind::BackendCall],
        ..BackendMeta::NONE
    };

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&[])?;
        Ok(Own(7))
    }

    fn handle(&self, request: &Request<'_>) -> Reply {
        assert_eq!((self.0, request.mechanism, request.listener), (7, "PLAIN", "submission"));
        assert_eq!(request.client_ip, Some([192, 0, 2, 7].into()));
        match request.asked {
            Asked::Password { authcid: b"panic", .. } => panic!("as asked"),
            Asked::Password { authcid: b"long", .. } => Reply::data(vec![0; 1 << 20]),
            Asked::Password { password: b"right", .. } => Reply::granted("alice"),
            Asked::Password { .. } => Reply::denied().with(&b"why"[..]),
            Asked::Key { .. } => {
                let (salt, stored_key, server_key) = (vec![1], vec![2; 32], vec![3; 32]);
                Reply::scram("bob", crate::ScramKeys { iterations: 9, salt, stored_key, server_key })
            }
            _ => Reply::unsupported(),
        }
    }
}

/// Calls `handle` as the host does; status, found, identity, data, all that was written.
fn ask(effect: u32, authcid: &[u8], data: &[u8]) -> (u32, u32, Vec<u8>, Vec<u8>, Vec<u8>) {
    let own = Own(7);
    let bytes = abi::Bytes::of;
    let request = abi::Request {
        size: size_of::<abi::Request>() as u32,
        effect,
        arg: abi::key::SCRAM_SHA256,
        conn_flags: 0,
        deadline_ms: 0,
        session_id: 0,
        authcid: bytes(authcid),
        authzid: abi::Bytes::EMPTY,
        data: bytes(data),
        data2: abi::Bytes::EMPTY,
        service: abi::Bytes::EMPTY,
        mechanism: bytes(b"PLAIN"),
        listener: bytes(b"submission"),
        sni: abi::Bytes::EMPTY,
        client_ip: bytes(&[192, 0, 2, 7]),
        tls_version: 0,
        reserved: 0,
    };
    let mut scratch = vec![0; 4096];
    let reply = request::call(&own, &request, &mut scratch);
    let part = |slice: abi::Slice| scratch[slice.off as usize..(slice.off + slice.len) as usize].to_vec();
    let written = scratch[..reply.used as usize].to_vec();
    (reply.status, reply.found, part(reply.identity), part(reply.data), written)
}

#[test]
fn a_back_end_answers_through_the_border() {
    let password = |authcid: &[u8], data: &[u8]| ask(action::VERIFY_PASSWORD, authcid, data);
    assert_eq!(password(b"a", b"right"), (status::OK, 1, b"alice".to_vec(), vec![], b"alice".to_vec()));
    assert_eq!(password(b"a", b"wrong"), (status::DENIED, 1, vec![], b"why".to_vec(), b"why".to_vec()));
    let (code, found, .., written) = password(b"panic", b"");
    assert_eq!((code, found), (status::TEMPFAIL, 0));
    assert!(!String::from_utf8_lossy(&written).contains("as asked"), "where it panicked at most, not what it said");
    assert_eq!(password(b"long", b"").0, status::TEMPFAIL, "more than there is room for");
    let (code, found, identity, _, written) = ask(action::FETCH_KEY, b"b", b"");
    assert_eq!((code, found, identity, written.len()), (status::OK, 1, b"bob".to_vec(), 3 + 1 + 64));
    assert_eq!(ask(77, b"", b"").0, status::UNSUPPORTED);
}

#[test]
fn the_note_lists_back_ends() {
    const ABOUT: About = About { id: "probe", version: "1", panic: "unwind" };
    const BACKENDS: &[BackendMeta] = &[Own::META, BackendMeta { name: c"two", config_schema: None, ..Own::META }];
    const OCTETS: usize = note_octets(ABOUT, &[], BACKENDS);
    static NOTE: Note<OCTETS> = Note::new(ABOUT, &[], BACKENDS);
    let json = std::str::from_utf8(&NOTE.json).unwrap().trim_end_matches('\0');
    let effects = r#"["VERIFY_PASSWORD","BACKEND_CALL"]"#;
    assert_eq!(
        json,
        format!(
            r#"{{"abi":"1.0","id":"probe","version":"1","panic":"unwind","mechanisms":{{}},"self_asserts":[],"offloads":[],"backends":["own","two"],"provides":{{"own":{effects},"two":{effects}}},"schemas":{{"own":{{"type":"object"}}}}}}"#
        )
    );
}
