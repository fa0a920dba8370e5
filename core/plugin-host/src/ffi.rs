//! The foreign edge: the only `unsafe` of this crate. It opens a library, copies and checks what it says of
//! itself, and calls its functions; what they answer stays plain numbers, which `adapter` checks.
//!
//! What cannot be checked is the library's own code: a stray write of an inline plugin is this process's
//! fault, too. That is why third-party libraries run elsewhere, and only vetted files get here.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::os::unix;
use portreeve_plugin_abi::{self as abi, mech_flag};
use sasl::{Event, Input, MechanismName, State, Traits};

/// Most mechanisms of one library.
const MECHANISMS_MAX: u32 = 64;
/// Most back ends of one library.
const BACKENDS_MAX: u32 = 16;
/// Longest `version` and `build`, octets.
const TEXT_OCTETS_MAX: usize = 128;
/// Longest JSON Schema, octets.
const SCHEMA_OCTETS_MAX: usize = 64 << 10;
/// Room for a library's own error message.
const ERROR_OCTETS: usize = 512;
/// Log lines kept until somebody takes them.
const LOG_LINES_MAX: usize = 64;
/// All effects of this minor.
pub(crate) const EFFECTS: u64 = 0x3f;

/// Why a library did not open.
pub(crate) enum OpenError {
    /// The dynamic linker's words.
    Linker(String),
    /// The library's words.
    Refused(String),
    /// It broke the ABI.
    Handshake(String),
}

/// A library in this process. It is never unmapped: dropping this says goodbye to it and no more.
pub(crate) struct Library {
    plugin: abi::Plugin,
    pub id: String,
    pub version: String,
    pub build: String,
    pub mechanisms: Vec<Declared>,
    pub backends: Vec<DeclaredBackend>,
    log: &'static LogSink,
}

/// A back end as its library describes it.
pub(crate) struct DeclaredBackend {
    backend: abi::Backend,
    pub name: String,
    pub provides: u64,
    /// Calls at a time that it wants.
    pub parallel: u32,
    pub schema: Option<String>,
}

/// A mechanism as its library describes it.
pub(crate) struct Declared {
    mech: abi::Mech,
    pub name: MechanismName,
    pub flags: u32,
    pub needs: u64,
    pub traits: Traits,
    pub schema: Option<String>,
}

// SAFETY: the descriptors are static data of the library, which is never unmapped, and its functions may be
// called from any thread (C header, BORROWING); configure, release and quiesce are serialised by `log.calls`.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// What a library wrote with `prv_host.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// 1 error, 2 warning, 3 information, 4 debugging.
    pub level: i32,
    /// At most 512 octets.
    pub text: String,
}

#[derive(Default)]
struct LogSink {
    lines: Mutex<VecDeque<LogLine>>,
    calls: Mutex<()>,
}

impl Library {
    /// Loads the sealed copy of a library and shakes hands.
    pub fn open(fd: OwnedFd) -> Result<Library, OpenError> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // The descriptor stays open for ever: the linker knows libraries by path, and a later one under the
        // same number would be taken for this one.
        let _ = fd.into_raw_fd();
        let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE;
        // SAFETY: runs the library's constructors. It was vetted; that its code does no harm cannot be shown
        // here (see above). Its destructors run at exit only: RTLD_NODELETE, and the handle is never closed.
        let handle = unsafe { unix::Library::open(Some(&path), flags) };
        let handle = ManuallyDrop::new(handle.map_err(|error| OpenError::Linker(error.to_string()))?);
        // SAFETY: vetting found the symbol; the ABI says that it is this function. Others lie at their peril.
        let entry = unsafe { handle.get::<abi::EntryFn>(abi::ENTRY.to_bytes_with_nul()) }
            .map_err(|error| OpenError::Linker(error.to_string()))?;

        let log: &'static LogSink = Box::leak(Box::default());
        let host: &'static abi::Host = Box::leak(Box::new(abi::Host {
            size: size_of::<abi::Host>() as u32,
            abi_major: abi::ABI_MAJOR,
            abi_minor: abi::ABI_MINOR,
            effects: EFFECTS,
            version: VERSION.as_ptr(),
            ctx: ptr::from_ref(log).cast_mut().cast(),
            log: Some(write_log),
        }));
        let mut error = [0u8; ERROR_OCTETS];
        // SAFETY: `host` lives for ever, `error` during the call, with the length that is said.
        let at = unsafe { entry(host, error.as_mut_ptr().cast(), error.len()) };
        if at.is_null() {
            return Err(OpenError::Refused(message(&error)));
        }
        // SAFETY: what a good library returns is its static descriptor; `describe` checks what can be checked.
        unsafe { describe(at, log) }.map_err(OpenError::Handshake)
    }

    /// Takes what the library logged since the last call.
    pub fn take_log(&self) -> Vec<LogLine> {
        lock(&self.log.lines).drain(..).collect()
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if let Some(quiesce) = self.plugin.quiesce {
            let _call = lock(&self.log.calls);
            // SAFETY: the last call ever: every `Bound` holds the library, so none is left.
            unsafe { quiesce(self.plugin.plugin) };
        }
    }
}

// ---------------------------------------------------------------- the handshake

/// # Safety
/// `at` points to a descriptor that lives for ever.
unsafe fn describe(at: *const abi::Plugin, log: &'static LogSink) -> Result<Library, String> {
    if !at.is_aligned() {
        return Err("its descriptor is not aligned".into());
    }
    // SAFETY: aligned, not null; magic and size lead the struct in every minor, and whatever else is there
    // is mapped memory of a library, 16 octets long at least, or the library lies.
    let (magic, size) = unsafe { ((&raw const (*at).magic).read(), (&raw const (*at).size).read()) };
    if magic != abi::MAGIC {
        return Err(format!("its descriptor begins with {magic:#018x}, not with the magic {:#018x}", abi::MAGIC));
    }
    // SAFETY: `size` octets are what the library wrote.
    let plugin: abi::Plugin = unsafe { copy(at, size, "its descriptor") }?;
    if plugin.abi_major != abi::ABI_MAJOR {
        return Err(format!("its descriptor has ABI major {}, this host speaks {}", plugin.abi_major, abi::ABI_MAJOR));
    }
    // SAFETY: the library's strings are static and end with NUL; at most so many octets are looked at.
    let text = |at, what| match unsafe { text(at, TEXT_OCTETS_MAX) } {
        Some(text) if !text.contains('\n') => Ok(text),
        _ => Err(format!("its {what} is no short text")),
    };
    let (id, version, build) = (text(plugin.id, "id")?, text(plugin.version, "version")?, text(plugin.build, "build")?);

    // SAFETY: the library's array, if it has one.
    let backends = unsafe { declare_backends(&plugin) }?;
    let (count, stride) = (plugin.mech_count, plugin.mech_stride as usize);
    if count == 0 && !backends.is_empty() {
        return Ok(Library { plugin, id, version, build, mechanisms: Vec::new(), backends, log });
    }
    if count == 0 || count > MECHANISMS_MAX || plugin.mechs.is_null() || !plugin.mechs.is_aligned() {
        return Err(format!("it has {count} mechanisms; 1 to {MECHANISMS_MAX} can be"));
    }
    let least = size_of::<abi::Mech>();
    if stride < least || stride > 4096 || !stride.is_multiple_of(align_of::<abi::Mech>()) {
        return Err(format!("its mech_stride is {stride}, a mechanism has {least} octets"));
    }
    let mut mechanisms: Vec<Declared> = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the library's array has `mech_count` entries, `mech_stride` octets apart.
        let declared = unsafe { declare(plugin.mechs.byte_add(index * stride), stride) }
            .map_err(|cause| format!("mechanism {}: {cause}", index + 1))?;
        if mechanisms.iter().any(|other| other.name == declared.name) {
            return Err(format!("it has {} twice", declared.name));
        }
        mechanisms.push(declared);
    }
    Ok(Library { plugin, id, version, build, mechanisms, backends, log })
}

/// # Safety
/// `plugin` names an array of back ends that lives for ever, or none.
unsafe fn declare_backends(plugin: &abi::Plugin) -> Result<Vec<DeclaredBackend>, String> {
    let (count, stride) = (plugin.backend_count, plugin.backend_stride as usize);
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > BACKENDS_MAX || plugin.backends.is_null() || !plugin.backends.is_aligned() {
        return Err(format!("it has {count} back ends; up to {BACKENDS_MAX} can be"));
    }
    let least = size_of::<abi::Backend>();
    if stride < least || stride > 4096 || !stride.is_multiple_of(align_of::<abi::Backend>()) {
        return Err(format!("its backend_stride is {stride}, a back end has {least} octets"));
    }
    let mut backends: Vec<DeclaredBackend> = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the library's array has `backend_count` entries, `backend_stride` octets apart.
        let declared = unsafe { declare_backend(plugin.backends.byte_add(index * stride), stride) }
            .map_err(|cause| format!("back end {}: {cause}", index + 1))?;
        if backends.iter().any(|other| other.name == declared.name) {
            return Err(format!("it has the back end {} twice", declared.name));
        }
        backends.push(declared);
    }
    Ok(backends)
}

/// # Safety
/// `at` points to a back end's descriptor that lives for ever, `stride` octets of it readable.
unsafe fn declare_backend(at: *const abi::Backend, stride: usize) -> Result<DeclaredBackend, String> {
    // SAFETY: size leads the struct in every minor.
    let size = unsafe { (&raw const (*at).size).read() };
    if size as usize > stride {
        return Err(format!("its size is {size}, the stride is {stride}"));
    }
    // SAFETY: `size` octets are what the library wrote.
    let backend: abi::Backend = unsafe { copy(at, size, "it") }?;
    // SAFETY: as for all texts.
    let name = unsafe { text(backend.name, TEXT_OCTETS_MAX) }.filter(|name| crate::note::is_backend_name(name));
    let name = name.ok_or("its name is none: 1 to 32 of a-z, 0-9, - and _, not \"users\"")?;
    let schema = if backend.config_schema.is_null() {
        None
    } else {
        // SAFETY: as for all texts.
        Some(unsafe { text(backend.config_schema, SCHEMA_OCTETS_MAX) }.ok_or("its config_schema is no text")?)
    };
    let blocking = backend.flags & abi::B_BLOCKING != 0;
    let fault = if backend.handle.is_none() {
        "has no handle"
    } else if backend.flags & !abi::B_BLOCKING != 0 {
        "has a flag that this host does not know"
    } else if backend.provides & EFFECTS == 0 {
        "provides no effect that this host knows"
    } else if backend.provides & abi::action::need(abi::action::CHANNEL_BINDING) != 0 {
        "provides CHANNEL_BINDING, which is the host's own"
    } else if blocking && backend.max_parallel == 0 {
        "is BLOCKING with a max_parallel of 0"
    } else {
        ""
    };
    if !fault.is_empty() {
        return Err(format!("{name} {fault}"));
    }
    // One that does not block needs no second thread.
    let parallel = if blocking { backend.max_parallel } else { 1 };
    Ok(DeclaredBackend { backend, name, provides: backend.provides, parallel, schema })
}

/// # Safety
/// `at` points to a mechanism's descriptor that lives for ever, `stride` octets of it readable.
unsafe fn declare(at: *const abi::Mech, stride: usize) -> Result<Declared, String> {
    // SAFETY: size leads the struct in every minor.
    let size = unsafe { (&raw const (*at).size).read() };
    if size as usize > stride {
        return Err(format!("its size is {size}, the stride is {stride}"));
    }
    // SAFETY: `size` octets are what the library wrote.
    let mech: abi::Mech = unsafe { copy(at, size, "it") }?;
    let name = |at: *const c_char| {
        // SAFETY: as for all texts.
        let text = unsafe { text(at, abi::NAME_MAX) }?;
        MechanismName::parse(text.as_bytes()).filter(|name| name.as_str() == text)
    };
    let plus_of = if mech.plus_of.is_null() { None } else { Some(name(mech.plus_of).ok_or("its plus_of is no name")?) };
    let schema = if mech.config_schema.is_null() {
        None
    } else {
        // SAFETY: as for all texts.
        Some(unsafe { text(mech.config_schema, SCHEMA_OCTETS_MAX) }.ok_or("its config_schema is no text")?)
    };
    let name = name(mech.name).ok_or("its name is none: 1 to 20 of A-Z, 0-9, - and _ (RFC 4422 section 3.1)")?;
    let has = |flag: u32| mech.flags & flag != 0;
    let fault = if mech.step.is_none() {
        "has no step"
    } else if mech.flags & !mech_flag::ALL != 0 {
        "has a flag that this host does not know"
    } else if mech.strength > 100 {
        "has a strength above 100"
    } else if mech.state_size > abi::STATE_MAX {
        "wants more than 4032 octets of state"
    } else if mech.state_align > abi::ALIGN_MAX || !mech.state_align.max(1).is_power_of_two() {
        "wants an alignment other than 1, 2, 4, 8, 16, 32 or 64"
    } else if mech.max_message == 0 || mech.max_message > abi::MESSAGE_MAX || mech.max_output > abi::OUTPUT_MAX {
        "has max_message or max_output out of bounds (65536)"
    } else if mech.max_steps == 0 || mech.max_steps > abi::STEPS_MAX {
        "has max_steps out of bounds (1 to 32)"
    } else if has(mech_flag::CLIENT_FIRST) && has(mech_flag::SERVER_FIRST) {
        "is CLIENT_FIRST and SERVER_FIRST"
    } else if has(mech_flag::POD_STATE) && mech.drop_state.is_some() {
        "is POD_STATE and has a drop_state"
    } else if has(mech_flag::CHANNEL_BIND)
        && (plus_of.is_none() || mech.needs & abi::action::need(abi::action::CHANNEL_BINDING) == 0)
    {
        "is CHANNEL_BIND without plus_of or without needing CHANNEL_BINDING"
    } else {
        ""
    };
    if !fault.is_empty() {
        return Err(format!("{name} {fault}"));
    }
    let traits = Traits {
        flags: mech.flags,
        needs: mech.needs,
        strength: mech.strength,
        state_octets: mech.state_size as usize,
        message_octets_max: mech.max_message as usize,
        output_octets_max: (mech.max_output + abi::DIAG_MAX) as usize,
        steps_max: mech.max_steps,
        plus_of,
    };
    Ok(Declared { mech, name, flags: mech.flags, needs: mech.needs, traits, schema })
}

/// Copies a struct that a library wrote: what it does not know is zero, what we do not know is left out.
///
/// # Safety
/// `size` octets at `at` are readable, and zero is a good value for every field of `T`.
unsafe fn copy<T: Copy>(at: *const T, size: u32, what: &str) -> Result<T, String> {
    // 1.0 is the first minor: nobody can know less.
    let least = size_of::<T>();
    if (size as usize) < least {
        return Err(format!("{what} has {size} octets, ABI 1.0 has {least}"));
    }
    let mut own = MaybeUninit::<T>::zeroed();
    // SAFETY: `least` octets are readable by the caller's promise, and writable in `own`; both do not overlap.
    unsafe { ptr::copy_nonoverlapping(at.cast::<u8>(), own.as_mut_ptr().cast(), least) };
    // SAFETY: all octets are written, and every bit pattern is good: integers, raw pointers, optional functions
    // (which are called only where the ABI says what they are).
    Ok(unsafe { own.assume_init() })
}

/// A text of a library, `None` when it is null, too long, not UTF-8, or has control characters.
///
/// # Safety
/// `at` is null or a string that ends with NUL, of static lifetime.
unsafe fn text(at: *const c_char, octets_max: usize) -> Option<String> {
    if at.is_null() {
        return None;
    }
    let mut octets = Vec::new();
    loop {
        // SAFETY: no NUL was seen so far, so the string goes on here.
        let octet = unsafe { at.add(octets.len()).read() } as u8;
        match octet {
            0 => break,
            _ if octets.len() == octets_max => return None,
            _ => octets.push(octet),
        }
    }
    let text = String::from_utf8(octets).ok()?;
    let printable = !text.chars().any(|character| character.is_control() && character != '\n');
    (printable && !text.is_empty()).then_some(text)
}

/// A message that a library left in our buffer, on one line.
fn message(buffer: &[u8]) -> String {
    let octets = CStr::from_bytes_until_nul(buffer).map_or(buffer, CStr::to_bytes);
    match one_line(octets) {
        text if text.is_empty() => "without a reason".into(),
        text => text,
    }
}

fn one_line(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

unsafe extern "C" fn write_log(ctx: *mut c_void, level: i32, text: *const c_char, octets: usize) {
    if ctx.is_null() || text.is_null() {
        return;
    }
    // SAFETY: `ctx` is the sink that `open` leaked.
    let sink = unsafe { &*ctx.cast::<LogSink>() };
    // SAFETY: the library names `octets` octets, valid during the call; no more than a line of them is read.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), octets.min(ERROR_OCTETS)) };
    let mut lines = lock(&sink.lines);
    if lines.len() < LOG_LINES_MAX {
        lines.push_back(LogLine { level, text: one_line(text) });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

// ---------------------------------------------------------------- a configured mechanism

/// One setting: key, value, and its type as `prv_kv` numbers it.
pub type Entry = (String, String, u32);

/// A mechanism with its settings, ready for exchanges.
pub(crate) struct Bound {
    library: Arc<Library>,
    mech: abi::Mech,
    step: abi::StepFn,
    conf: *mut c_void,
}

// SAFETY: `conf` is immutable after configure and step may run on any thread (C header, BORROWING).
unsafe impl Send for Bound {}
// SAFETY: as above.
unsafe impl Sync for Bound {}

impl Bound {
    /// Configures one mechanism; the error is in the library's words.
    pub fn new(library: &Arc<Library>, index: usize, json: &str, entries: &[Entry]) -> Result<Bound, String> {
        let declared = library.mechanisms.get(index).ok_or("no such mechanism")?;
        let mech = declared.mech;
        let step = mech.step.ok_or("it has no step")?;
        let mut bound = Bound { library: library.clone(), mech, step, conf: ptr::null_mut() };
        let Some(configure) = mech.configure else {
            bound.mech.release = None;
            return if entries.is_empty() { Ok(bound) } else { Err("it has no settings".into()) };
        };
        match call_configure(library, configure, json, entries) {
            Ok(conf) => bound.conf = conf,
            Err(message) => {
                // Nothing was made, so there is nothing to release.
                bound.mech.release = None;
                return Err(message);
            }
        }
        Ok(bound)
    }

    /// One step. The answer is plain numbers: nothing of it is checked.
    pub fn step(&self, state: &mut [u8], input: &Input<'_>, scratch: &mut [u8]) -> abi::Out {
        let facts = input.facts;
        let (v4, v6);
        let client_ip: &[u8] = match facts.client_ip.to_canonical() {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
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
            client_ip: bytes(client_ip),
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
        unsafe { (self.step)(self.conf, state.as_mut_ptr().cast(), &step_input, &mut out) };
        out
    }

    /// The exchange is over: runs the state's destructor, if there is one.
    pub fn drop_state(&self, state: &mut [u8]) {
        if let Some(drop_state) = self.mech.drop_state {
            // SAFETY: as in `step`; the caller does this once, after the last step.
            unsafe { drop_state(self.conf, state.as_mut_ptr().cast()) };
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

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(release) = self.mech.release {
            let _call = lock(&self.library.log.calls);
            // SAFETY: configure made `conf`; nobody holds `self` any more, so no step runs.
            unsafe { release(self.library.plugin.plugin, self.conf) };
        }
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
    library: Arc<Library>,
    backend: abi::Backend,
    handle: abi::HandleFn,
    conf: *mut c_void,
}

// SAFETY: `handle` may run on any thread, `max_parallel` at a time with the same `conf` (C header, prv_backend).
unsafe impl Send for BoundBackend {}
// SAFETY: as above.
unsafe impl Sync for BoundBackend {}

impl BoundBackend {
    /// Configures one back end; the error is in the library's words.
    pub fn new(library: &Arc<Library>, index: usize, json: &str, entries: &[Entry]) -> Result<Self, String> {
        let mut backend = library.backends.get(index).ok_or("no such back end")?.backend;
        let handle = backend.handle.ok_or("it has no handle")?;
        let conf = match backend.configure {
            Some(configure) => call_configure(library, configure, json, entries)?,
            None if entries.is_empty() => {
                backend.release = None;
                ptr::null_mut()
            }
            None => return Err("it has no settings".into()),
        };
        Ok(Self { library: library.clone(), backend, handle, conf })
    }

    /// One effect. The answer is plain numbers: nothing of it is checked.
    pub fn handle(&self, call: &link::backend::Call<'_>, scratch: &mut [u8]) -> abi::Reply {
        let bytes = abi::Bytes::of;
        let effect = &call.effect;
        let (v4, v6);
        let client_ip: &[u8] = match effect.client_ip.to_canonical() {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
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
            client_ip: bytes(client_ip),
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
        unsafe { (self.handle)(self.conf, &request, &mut reply) };
        reply
    }
}

impl Drop for BoundBackend {
    fn drop(&mut self) {
        if let Some(release) = self.backend.release {
            let _call = lock(&self.library.log.calls);
            // SAFETY: configure made `conf`; nobody holds `self` any more, so no call runs.
            unsafe { release(self.library.plugin.plugin, self.conf) };
        }
    }
}

/// The processor's own counter: a system clock costs more than some steps. Elsewhere than here, nanoseconds.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has RDTSC, and no system that we run on forbids it.
    let ticks = unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    let ticks = {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
    };
    ticks
}

/// The octets of an exchange's state.
pub(crate) fn octets(state: &mut State) -> &mut [u8] {
    let (at, len) = (state.as_mut_ptr(), state.len());
    if len == 0 {
        return &mut [];
    }
    // SAFETY: `State` owns `len` initialised octets at `at`, and stays borrowed as long as the slice lives.
    unsafe { std::slice::from_raw_parts_mut(at, len) }
}
