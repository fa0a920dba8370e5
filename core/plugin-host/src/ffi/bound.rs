//! A mechanism or back end with its settings, and the calls of it.

use std::ffi::c_void;
use std::net::IpAddr;
use std::ptr;
use std::sync::Arc;

use portreeve_plugin_abi as abi;
use sasl::{Event, Input};

use super::{ERROR_OCTETS, Library, lock, message};

/// One setting: key, value, and its type as `prv_kv` numbers it.
pub type Entry = (String, String, u32);

/// What `configure` of a mechanism or back end made: released when nobody calls it any more.
struct Conf {
    library: Arc<Library>,
    made: *mut c_void,
    release: Option<abi::ReleaseFn>,
}

// SAFETY: `made` is immutable after configure, and what takes it may run on any thread (C header, BORROWING and
// prv_backend); release is serialised by `log.calls`.
unsafe impl Send for Conf {}
// SAFETY: as above.
unsafe impl Sync for Conf {}

impl Conf {
    /// Without `configure` there is nothing to be made, and no setting is known. The error is in the library's words.
    fn new(
        library: &Arc<Library>,
        configure: Option<abi::ConfigureFn>,
        release: Option<abi::ReleaseFn>,
        json: &str,
        entries: &[Entry],
    ) -> Result<Self, String> {
        let library = library.clone();
        match configure {
            Some(configure) => {
                let made = call_configure(&library, configure, json, entries)?;
                Ok(Self { library, made, release })
            }
            None if entries.is_empty() => Ok(Self { library, made: ptr::null_mut(), release: None }),
            None => Err("it has no settings".into()),
        }
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            let _call = lock(&self.library.log.calls);
            // SAFETY: configure made it; nobody holds `self` any more, so nothing runs that was given it.
            unsafe { release(self.library.plugin.plugin, self.made) };
        }
    }
}

/// A mechanism with its settings, ready for exchanges.
pub(crate) struct Bound {
    mech: abi::Mech,
    step: abi::StepFn,
    conf: Conf,
}

// SAFETY: the descriptor's pointers are to static data of the library, which is never unmapped.
unsafe impl Send for Bound {}
// SAFETY: as above.
unsafe impl Sync for Bound {}

impl Bound {
    /// Configures one mechanism; the error is in the library's words.
    pub fn new(library: &Arc<Library>, index: usize, json: &str, entries: &[Entry]) -> Result<Bound, String> {
        let mech = library.mechanisms.get(index).ok_or("no such mechanism")?.mech;
        let step = mech.step.ok_or("it has no step")?;
        let conf = Conf::new(library, mech.configure, mech.release, json, entries)?;
        Ok(Bound { mech, step, conf })
    }

    /// One step. The answer is plain numbers: nothing of it is checked.
    pub fn step(&self, state: &mut [u8], input: &Input<'_>, scratch: &mut [u8]) -> abi::Out {
        let facts = input.facts;
        let address = Address::of(facts.client_ip);
        let bytes = abi::Bytes::of;
        let scram;
        let result;
        let (event, result) = match input.event {
            Event::Start { .. } => (abi::event::START, ptr::null()),
            Event::Message => (abi::event::MESSAGE, ptr::null()),
            Event::Resume => (abi::event::RESUME, ptr::null()),
            Event::Outcome(outcome) => {
                scram = outcome.scram.map(|key| abi::ScramKey {
                    size: size_of::<abi::ScramKey>() as u32,
                    iterations: key.iterations,
                    hash_len: key.stored_key.len() as u32,
                    reserved: 0,
                    salt: bytes(key.salt),
                    stored_key: bytes(key.stored_key),
                    server_key: bytes(key.server_key),
                });
                result = abi::EffectResult {
                    size: size_of::<abi::EffectResult>() as u32,
                    effect: outcome.effect as u32,
                    status: outcome.status as u32,
                    handle: outcome.proof.0,
                    data: bytes(outcome.data),
                    scram: scram.as_ref().map_or(ptr::null(), ptr::from_ref),
                };
                (abi::event::RESULT, &raw const result)
            }
        };
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let step_input = abi::In {
            size: size_of::<abi::In>() as u32,
            event,
            exchange: input.exchange,
            unix_ms: input.unix_ms,
            conn_flags: flag(facts.tls, abi::conn::TLS)
                | flag(facts.client_certificate, abi::conn::CLIENT_CERT)
                | flag(facts.plus_offered, abi::conn::CB_SIBLING)
                | flag(matches!(input.event, Event::Start { initial: true }), abi::conn::HAS_IR),
            cb_types: facts.channel_bindings,
            msg: bytes(input.message),
            result,
            entropy: bytes(input.entropy),
            server_name: bytes(facts.server_name.as_bytes()),
            client_ip: bytes(address.octets()),
            listener: bytes(facts.listener.as_bytes()),
            sni: bytes(facts.sni.as_bytes()),
            session_id: facts.session,
            tls_version: u32::from(facts.tls_version),
            reserved: 0,
        };
        let mut out = abi::Out {
            buf: scratch.as_mut_ptr(),
            cap: u32::try_from(scratch.len()).unwrap_or(u32::MAX),
            ..abi::Out::PRESET
        };
        // SAFETY:
        // - the function is mapped for ever, and `conf` is released only when `self` goes.
        // - `state` has `state_size` octets, aligned to 64, at the same address since START (the caller's
        //   `sasl::State`), and `&mut` makes this the only call on it.
        // - message, result, facts, scratch and `out` outlive the call; a mechanism keeps none (BORROWING).
        // - no unwinding gets here: the SDK catches panics (vetting refuses panic = "abort"), and a foreign
        //   exception is forbidden by the ABI (FAULTS).
        unsafe { (self.step)(self.conf.made, state.as_mut_ptr().cast(), &step_input, &mut out) };
        out
    }

    /// The exchange is over: runs the state's destructor, if there is one.
    pub fn drop_state(&self, state: &mut [u8]) {
        if let Some(drop_state) = self.mech.drop_state {
            // SAFETY: as in `step`; the caller does this once, after the last step.
            unsafe { drop_state(self.conf.made, state.as_mut_ptr().cast()) };
        }
    }

    /// Octets of state that the mechanism itself uses.
    pub fn state_octets(&self) -> usize {
        self.mech.state_size as usize
    }

    /// Whether the state has a destructor.
    pub fn drops_state(&self) -> bool {
        self.mech.drop_state.is_some()
    }

    /// Most octets of output that it declared.
    pub fn output_octets_max(&self) -> u32 {
        self.mech.max_output
    }
}

/// The client's address as the ABI has it: 4 or 16 octets.
struct Address([u8; 16], usize);

impl Address {
    fn of(ip: IpAddr) -> Self {
        let mut octets = [0; 16];
        match ip.to_canonical() {
            IpAddr::V4(address) => {
                octets[..4].copy_from_slice(&address.octets());
                Self(octets, 4)
            }
            IpAddr::V6(address) => Self(address.octets(), 16),
        }
    }

    fn octets(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Calls `configure` of a mechanism or back end; the error is in the library's words.
fn call_configure(
    library: &Library,
    configure: abi::ConfigureFn,
    json: &str,
    entries: &[Entry],
) -> Result<*mut c_void, String> {
    let kv: Vec<abi::Kv> = entries
        .iter()
        .map(|(key, value, kind)| abi::Kv {
            key: abi::Bytes::of(key.as_bytes()),
            value: abi::Bytes::of(value.as_bytes()),
            r#type: *kind,
            reserved: 0,
        })
        .collect();
    let config = abi::Config {
        size: size_of::<abi::Config>() as u32,
        kv_count: u32::try_from(kv.len()).map_err(|_| "too many settings")?,
        kv_stride: size_of::<abi::Kv>() as u32,
        reserved: 0,
        json: abi::Bytes::of(json.as_bytes()),
        kv: kv.as_ptr(),
    };
    let mut error = [0u8; ERROR_OCTETS];
    let mut conf = ptr::null_mut();
    let _call = lock(&library.log.calls);
    // SAFETY: all arguments outlive the call, `error` has the length that is said, and `plugin` is what the
    // library wants back.
    let code = unsafe { configure(library.plugin.plugin, &config, &mut conf, error.as_mut_ptr().cast(), error.len()) };
    if code == 0 { Ok(conf) } else { Err(message(&error)) }
}

/// A back end with its settings.
pub(crate) struct BoundBackend {
    handle: abi::HandleFn,
    conf: Conf,
}

impl BoundBackend {
    /// Configures one back end; the error is in the library's words.
    pub fn new(library: &Arc<Library>, index: usize, json: &str, entries: &[Entry]) -> Result<Self, String> {
        let backend = library.backends.get(index).ok_or("no such back end")?.backend;
        let handle = backend.handle.ok_or("it has no handle")?;
        let conf = Conf::new(library, backend.configure, backend.release, json, entries)?;
        Ok(Self { handle, conf })
    }

    /// One effect. The answer is plain numbers: nothing of it is checked.
    pub fn handle(&self, call: &link::backend::Call<'_>, scratch: &mut [u8]) -> abi::Reply {
        let bytes = abi::Bytes::of;
        let effect = &call.effect;
        let address = Address::of(effect.client_ip);
        let request = abi::Request {
            size: size_of::<abi::Request>() as u32,
            effect: effect.effect,
            arg: effect.arg,
            conn_flags: effect.conn_flags,
            deadline_ms: call.deadline_ms,
            session_id: effect.session,
            authcid: bytes(effect.authcid),
            authzid: bytes(effect.authzid),
            data: bytes(effect.data),
            data2: bytes(effect.data2),
            service: bytes(effect.service),
            mechanism: bytes(effect.mechanism.as_bytes()),
            listener: bytes(effect.listener.as_bytes()),
            sni: bytes(effect.sni.as_bytes()),
            client_ip: bytes(address.octets()),
            tls_version: u32::from(effect.tls_version),
            reserved: 0,
        };
        let mut reply = abi::Reply {
            buf: scratch.as_mut_ptr(),
            cap: u32::try_from(scratch.len()).unwrap_or(u32::MAX),
            ..abi::Reply::PRESET
        };
        // SAFETY:
        // - the function is mapped for ever, and `conf` is released only when `self` goes.
        // - request, what it names, scratch and `reply` outlive the call; a back end keeps none (BORROWING).
        // - no more calls at a time than it declared: one thread each.
        // - no unwinding gets here: the SDK catches panics, and a foreign exception is forbidden (FAULTS).
        unsafe { (self.handle)(self.conf.made, &request, &mut reply) };
        reply
    }
}
