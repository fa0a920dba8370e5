//! A plugin for the tests of the host: it does what its message says, most of which a mechanism must not do.
#![forbid(unsafe_code)]

use portreeve_plugin_sdk::{Bad, Cx, Done, Effect, EffectKind, Event, Mechanism, Meta, Part, Settings, flag};

struct Probe;

impl Mechanism for Probe {
    const META: Meta = Meta {
        name: c"X-PROBE",
        flags: flag::CLIENT_FIRST,
        needs: &[EffectKind::BackendCall],
        output_octets_max: 32,
        ..Meta::NONE
    };
    /// With a destructor.
    type State = Vec<u8>;

    fn configure(settings: &Settings<'_>) -> Result<Self, String> {
        settings.only(&["scope"])?;
        match settings.value("scope") {
            Some("panic") => panic!("in configure"),
            Some("long") => Err("ä".repeat(1000)),
            Some("bad") => Err("scope: no such scope".into()),
            _ => Ok(Probe),
        }
    }

    fn step(&self, state: &mut Vec<u8>, mut cx: Cx<'_>) -> Result<Done, Bad> {
        if let Event::Outcome(outcome) = cx.event() {
            return cx.succeed(outcome.proof()?);
        }
        match cx.message() {
            b"panic" => panic!("what the client sent: {}", String::from_utf8_lossy(cx.message())),
            b"allocate" => {
                state.push(b'x');
                cx.challenge()
            }
            b"facts" => {
                let facts = format!("{:?} {:x}", cx.client_ip(), cx.tls_version());
                cx.put(&facts.as_bytes()[..facts.len().min(32)])?;
                cx.challenge()
            }
            _ => cx.perform(Effect::BackendCall { service: Part::EMPTY, request: Part::EMPTY }),
        }
    }
}

portreeve_plugin_sdk::portreeve_plugin! { id: "probe", mechanisms: [Probe] }
