//! A small host for tests: finds and builds libraries, and runs exchanges step by step.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part; tests may panic")]

pub mod client;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use plugin_host::{Demands, LoadError, Ownership, Registry, Terms, vet};
use sasl::{
    ChannelBinding, Effect, EffectKind, Event, Facts, FailureClass, Input, KeyKind, Mechanism, MechanismName, Outcome,
    Proof, ScramKey, State, Status, Step,
};

/// Where cargo puts the libraries that this package's tests depend on.
pub fn bundled(id: &str) -> PathBuf {
    std::env::current_exe().unwrap().with_file_name(format!("libportreeve_{id}.so"))
}

/// The library of `examples/probe.rs`.
pub fn probe() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.parent().unwrap().with_file_name("examples").join("libprobe.so");
    if !path.exists() {
        // `cargo test` builds examples, `cargo test --test loading` does not.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "plugin-host", "--example", "probe"]);
        assert!(build.status().unwrap().success());
    }
    path
}

/// Compiles a fixture with the machine's C compiler.
pub fn compile(source: &str, output: &Path, defines: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
        .arg(here.join("../../plugins/abi"))
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-o")
        .args([output, &here.join("tests/fixtures").join(source)])
        .output()
        .unwrap();
    assert!(build.status.success(), "{source} {defines:?}: {}", String::from_utf8_lossy(&build.stderr));
}

/// The whole way of a file into the process.
pub fn load(registry: &mut Registry, id: &str, path: &Path) -> Result<(), LoadError> {
    load_on(registry, id, path, Terms::default())
}

pub fn load_on(registry: &mut Registry, id: &str, path: &Path, terms: Terms) -> Result<(), LoadError> {
    let vetted = vet(path, &Demands { ownership: Ownership::Relaxed, sha256: None })?;
    registry.load(id, vetted.fd, &vetted.path, terms)
}

pub fn name(name: &str) -> MechanismName {
    MechanismName::parse(name.as_bytes()).unwrap()
}

/// A step's answer, copied.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Challenge(Vec<u8>),
    /// Kind; authcid, or the fields beside a token; authzid; and password, realm, token, request or the name
    /// of a channel binding.
    Effect(EffectKind, Vec<u8>, Vec<u8>, Vec<u8>),
    Success(Proof, Option<Vec<u8>>),
    /// Who, and whom to act as.
    Asserted(Vec<u8>, Vec<u8>),
    Failure(FailureClass, String),
    Offload,
}

pub struct Exchange {
    mechanism: Arc<dyn Mechanism>,
    state: State,
    scratch: Vec<u8>,
    message: Vec<u8>,
    asked: Option<EffectKind>,
    /// Which key FETCH_KEY asked for.
    pub key: Option<KeyKind>,
    /// Final data of a failure.
    pub last_words: Option<Vec<u8>>,
    pub entropy: [u8; 64],
    pub unix_ms: u64,
    pub client_ip: IpAddr,
    pub server_name: String,
    pub plus_offered: bool,
    pub channel_bindings: u32,
}

impl Exchange {
    pub fn new(mechanism: &Arc<dyn Mechanism>) -> Self {
        let mut state = State::default();
        state.prepare(mechanism.traits().state_octets);
        Self {
            mechanism: mechanism.clone(),
            state,
            scratch: vec![0; mechanism.traits().output_octets_max],
            message: Vec::new(),
            asked: None,
            key: None,
            last_words: None,
            unix_ms: 1_700_000_000_000,
            server_name: "mail.example.com".into(),
            plus_offered: false,
            channel_bindings: 0,
            entropy: std::array::from_fn(|index| index as u8),
            client_ip: [192, 0, 2, 1].into(),
        }
    }

    pub fn mechanism(&self) -> &dyn Mechanism {
        &*self.mechanism
    }

    pub fn start(&mut self, initial: Option<&[u8]>) -> Answer {
        self.message = initial.unwrap_or_default().to_vec();
        self.step(Event::Start { initial: initial.is_some() })
    }

    pub fn message(&mut self, message: &[u8]) -> Answer {
        self.message = message.to_vec();
        self.step(Event::Message)
    }

    pub fn outcome(&mut self, status: Status, data: &[u8]) -> Answer {
        let effect = self.asked.unwrap();
        self.step(Event::Outcome(Outcome { effect, status, proof: Proof(41), data, scram: None }))
    }

    /// FETCH_KEY ends with SCRAM keys.
    pub fn scram(&mut self, key: ScramKey<'_>) -> Answer {
        let (effect, status) = (self.asked.unwrap(), Status::Ok);
        self.step(Event::Outcome(Outcome { effect, status, proof: Proof(41), data: b"", scram: Some(key) }))
    }

    pub fn step(&mut self, event: Event<'_>) -> Answer {
        let facts = Facts {
            tls: true,
            tls_version: 0x0304,
            client_certificate: false,
            plus_offered: self.plus_offered,
            channel_bindings: self.channel_bindings,
            server_name: &self.server_name,
            client_ip: self.client_ip,
            listener: "submission",
            sni: "",
            session: 7,
        };
        let input = Input {
            event,
            message: &self.message,
            facts: &facts,
            entropy: &self.entropy,
            unix_ms: self.unix_ms,
            exchange: 9,
        };
        match self.mechanism.step(&mut self.state, input, &mut self.scratch) {
            Step::Challenge(challenge) => Answer::Challenge(challenge.to_vec()),
            Step::Effect(effect) => {
                self.asked = Some(effect.kind());
                let (authcid, authzid, data) = match effect {
                    Effect::VerifyPassword { authcid, authzid, password } => (authcid, authzid, password),
                    Effect::FetchKey { kind, authcid, authzid, realm } => {
                        self.key = Some(kind);
                        (authcid, authzid, realm)
                    }
                    Effect::VerifyToken { token, authzid, fields } => (fields, authzid, token),
                    Effect::VerifyExternal { authzid } => (&b""[..], authzid, &b""[..]),
                    Effect::ChannelBinding { kind } => (&b""[..], &b""[..], binding_name(kind)),
                    Effect::BackendCall { request, .. } => (&b""[..], &b""[..], request),
                };
                Answer::Effect(effect.kind(), authcid.to_vec(), authzid.to_vec(), data.to_vec())
            }
            Step::Asserted { authcid, authzid, .. } => Answer::Asserted(authcid.to_vec(), authzid.to_vec()),
            Step::Success { proof, data } => Answer::Success(proof, data.map(<[u8]>::to_vec)),
            Step::Failure { class, data, diagnosis } => {
                self.last_words = data.map(<[u8]>::to_vec);
                Answer::Failure(class, String::from_utf8_lossy(diagnosis).into_owned())
            }
            Step::Offload => Answer::Offload,
        }
    }
}

fn binding_name(kind: ChannelBinding) -> &'static [u8] {
    match kind {
        ChannelBinding::TlsExporter => b"tls-exporter",
        ChannelBinding::TlsServerEndPoint => b"tls-server-end-point",
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.mechanism.finish(&mut self.state);
    }
}
