//! The border itself: panics, destructors, parts, the note.

use super::*;
use crate::testing::{Answer, Exchange};
use crate::{Effect, Part, Status, flag};

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
            b"final" => cx.put(b"v=1").and_then(|()| cx.fail(Bad::CREDENTIALS)),
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
        Answer::Failure { class: fail::CREDENTIALS, reason: String::new(), data: Some(b"v=1".to_vec()) }
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
    std::panic::set_hook(Box::new(note_panic));
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
    const OCTETS: usize = note_octets(ABOUT, METAS);
    static NOTE: Note<OCTETS> = Note::new(ABOUT, METAS);
    let json = std::str::from_utf8(&NOTE.json).unwrap().trim_end_matches('\0');
    assert_eq!(
        json,
        r#"{"abi":"1.0","id":"probe","version":"1.2.3","panic":"unwind","mechanisms":{"X-PROBE":["BACKEND_CALL","FETCH_KEY"],"B":[]}}"#
    );
    assert_eq!((NOTE.name_octets, NOTE.kind, &NOTE.name), (10, 1, b"Portreeve\0\0\0"));
    assert_eq!(NOTE.json.len() % 4, 0);
}
