//! The foreign edge: descriptors, the ELF note and the functions that the host calls. All `unsafe` of the SDK
//! is here; each function turns pointers into slices and hands over to safe code under `catch_unwind`.
//!
//! Public only for [`portreeve_plugin!`](crate::portreeve_plugin).

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::mem::{self, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::{ptr, slice};

use crate::abi::{self, action, event, fail, mech_flag, region, status};
use crate::backend::{Asked, Backend, BackendMeta, Reply, Request};
use crate::cx::{Bad, Cx, Done, EffectKind, Event, Given, KeyKind, Outcome, ScramKey};
use crate::{Mechanism, Meta, Settings};

// ---------------------------------------------------------------- descriptors

/// The library's mechanisms.
#[repr(transparent)]
pub struct Mechanisms<const N: usize>([abi::Mech; N]);

// SAFETY: the pointers inside are to static strings and functions; nothing is ever written through them.
unsafe impl<const N: usize> Sync for Mechanisms<N> {}

impl<const N: usize> Mechanisms<N> {
    /// From [`mechanism`].
    pub const fn new(mechanisms: [abi::Mech; N]) -> Self {
        Self(mechanisms)
    }
}

/// The library's back ends.
#[repr(transparent)]
pub struct Backends<const N: usize>([abi::Backend; N]);

// SAFETY: as for `Mechanisms`.
unsafe impl<const N: usize> Sync for Backends<N> {}

impl<const N: usize> Backends<N> {
    /// From [`backend`].
    pub const fn new(backends: [abi::Backend; N]) -> Self {
        Self(backends)
    }
}

/// What the exported function returns.
#[repr(transparent)]
pub struct Descriptor(abi::Plugin);

// SAFETY: as for `Mechanisms`.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// The strings end with NUL.
    pub const fn new<const N: usize, const B: usize>(
        id: &'static CStr,
        version: &'static CStr,
        build: &'static CStr,
        mechanisms: &'static Mechanisms<N>,
        backends: &'static Backends<B>,
    ) -> Self {
        Self(abi::Plugin {
            magic: abi::MAGIC,
            size: size_of::<abi::Plugin>() as u32,
            abi_major: abi::ABI_MAJOR,
            abi_minor: abi::ABI_MINOR,
            id: id.as_ptr(),
            version: version.as_ptr(),
            build: build.as_ptr(),
            plugin: ptr::null_mut(),
            mech_count: N as u32,
            mech_stride: size_of::<abi::Mech>() as u32,
            mechs: mechanisms.0.as_ptr(),
            backend_count: B as u32,
            backend_stride: size_of::<abi::Backend>() as u32,
            backends: backends.0.as_ptr(),
            quiesce: None,
        })
    }
}

/// Describes `M`; what the host would refuse does not compile.
pub const fn mechanism<M: Mechanism>() -> abi::Mech {
    let meta = M::META;
    let name = meta.name.to_bytes();
    assert!(!name.is_empty() && name.len() <= abi::NAME_MAX, "a mechanism name has 1 to 20 octets (RFC 4422 §3.1)");
    let mut at = 0;
    while at < name.len() {
        let octet = name[at];
        assert!(
            octet.is_ascii_uppercase() || octet.is_ascii_digit() || octet == b'-' || octet == b'_',
            "a mechanism name is made of A-Z, 0-9, - and _ (RFC 4422 §3.1)"
        );
        at += 1;
    }
    assert!(meta.flags & !mech_flag::ALL == 0, "unknown flag");
    assert!(meta.strength <= 100, "strength is 0 to 100");
    assert!(meta.message_octets_max > 0 && meta.message_octets_max <= abi::MESSAGE_MAX, "message_octets_max");
    assert!(meta.output_octets_max <= abi::OUTPUT_MAX, "output_octets_max");
    assert!(meta.steps_max > 0 && meta.steps_max <= abi::STEPS_MAX, "steps_max is 1 to 32");
    assert!(Slot::<M::State>::OCTETS <= abi::STATE_MAX as usize, "State is larger than the host places");
    assert!(align_of::<M::State>() <= abi::ALIGN_MAX as usize, "State is aligned more strictly than the host places");
    let has_destructor = mem::needs_drop::<M::State>();
    assert!(!(has_destructor && meta.flags & mech_flag::POD_STATE != 0), "a State with a destructor is not POD");
    let channel_bind = meta.flags & mech_flag::CHANNEL_BIND != 0;
    assert!(channel_bind == meta.plus_of.is_some(), "CHANNEL_BIND and plus_of belong together");
    abi::Mech {
        size: size_of::<abi::Mech>() as u32,
        flags: meta.flags,
        needs: needs(meta.needs),
        name: meta.name.as_ptr(),
        plus_of: or_null(meta.plus_of),
        config_schema: or_null(meta.config_schema),
        strength: meta.strength,
        state_size: Slot::<M::State>::OCTETS as u32,
        state_align: align_of::<M::State>() as u32,
        max_message: meta.message_octets_max,
        max_output: meta.output_octets_max,
        max_steps: meta.steps_max,
        configure: Some(configure::<M>),
        release: Some(release::<M>),
        step: Some(step::<M>),
        drop_state: if has_destructor { Some(drop_state::<M>) } else { None },
    }
}

/// Describes `B`; what the host would refuse does not compile.
pub const fn backend<B: Backend>() -> abi::Backend {
    let meta = B::META;
    let name = meta.name.to_bytes();
    assert!(!name.is_empty() && name.len() <= 32, "a back end name has 1 to 32 octets");
    let mut at = 0;
    while at < name.len() {
        let octet = name[at];
        let fits = octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-' || octet == b'_';
        assert!(fits, "a back end name is made of a-z, 0-9, - and _");
        at += 1;
    }
    assert!(!matches!(name, b"users"), "`users` is the host's own back end");
    assert!(!meta.provides.is_empty(), "a back end provides something");
    let provides = needs(meta.provides);
    assert!(provides & action::need(action::CHANNEL_BINDING) == 0, "channel bindings are the host's own");
    assert!(!meta.blocking || meta.parallel_max > 0, "a back end that blocks needs a place at least");
    abi::Backend {
        size: size_of::<abi::Backend>() as u32,
        flags: if meta.blocking { abi::B_BLOCKING } else { 0 },
        provides,
        name: meta.name.as_ptr(),
        config_schema: or_null(meta.config_schema),
        max_parallel: meta.parallel_max,
        reserved: 0,
        configure: Some(configure_backend::<B>),
        release: Some(release::<B>),
        handle: Some(handle::<B>),
    }
}

const fn or_null(text: Option<&'static CStr>) -> *const c_char {
    match text {
        Some(text) => text.as_ptr(),
        None => ptr::null(),
    }
}

const fn needs(kinds: &[EffectKind]) -> u64 {
    let mut bits = 0;
    let mut at = 0;
    while at < kinds.len() {
        bits |= action::need(kinds[at] as u32);
        at += 1;
    }
    bits
}

// ---------------------------------------------------------------- the ELF note

/// `Elf64_Nhdr`, owner and JSON, as `PRV_NOTE` of the C header lays them out. `N` is a multiple of 4.
#[repr(C)]
pub struct Note<const N: usize> {
    name_octets: u32,
    json_octets: u32,
    kind: u32,
    name: [u8; 12],
    json: [u8; N],
}

/// What the note says, beside the mechanisms.
#[derive(Clone, Copy)]
pub struct About {
    /// The library's id.
    pub id: &'static str,
    /// Its version.
    pub version: &'static str,
    /// `unwind` or `abort`.
    pub panic: &'static str,
}

impl<const N: usize> Note<N> {
    /// `N` comes from [`note_octets`].
    pub const fn new(about: About, metas: &[Meta], backends: &[BackendMeta]) -> Self {
        let mut json = [0; N];
        write_note(&mut json, about, metas, backends);
        let mut name = [0; 12];
        put(&mut name, 0, abi::NOTE_OWNER.as_bytes());
        let name_octets = abi::NOTE_OWNER.len() as u32 + 1;
        Self { name_octets, json_octets: N as u32, kind: abi::NOTE_TYPE, name, json }
    }
}

/// Octets of the JSON, padded to a multiple of 4.
pub const fn note_octets(about: About, metas: &[Meta], backends: &[BackendMeta]) -> usize {
    let octets = write_note(&mut [], about, metas, backends);
    assert!(octets <= abi::NOTE_MAX, "the note is too long");
    octets.next_multiple_of(4)
}

/// Writes the note's JSON as far as there is room; returns how long it is.
const fn write_note(to: &mut [u8], about: About, metas: &[Meta], backends: &[BackendMeta]) -> usize {
    let mut at = put(to, 0, b"{\"abi\":\"1.0\",\"id\":\"");
    const { assert!(abi::ABI_MAJOR == 1 && abi::ABI_MINOR == 0, "the note says which ABI this is") };
    at = put(to, at, plain(about.id.as_bytes()));
    at = put(to, at, b"\",\"version\":\"");
    at = put(to, at, plain(about.version.as_bytes()));
    at = put(to, at, b"\",\"panic\":\"");
    at = put(to, at, about.panic.as_bytes());
    at = put(to, at, b"\",\"mechanisms\":{");
    let mut m = 0;
    while m < metas.len() {
        at = put(to, at, if m == 0 { b"\"" } else { b",\"" });
        at = put(to, at, plain(metas[m].name.to_bytes()));
        at = put(to, at, b"\":[");
        at = put_effects(to, at, metas[m].needs);
        at = put(to, at, b"]");
        m += 1;
    }
    at = put(to, at, b"},\"self_asserts\":[");
    at = write_names(to, at, metas, mech_flag::SELF_ASSERTS);
    at = put(to, at, b"],\"offloads\":[");
    at = write_names(to, at, metas, mech_flag::OFFLOAD_ALL | mech_flag::MAY_OFFLOAD);
    at = put(to, at, b"]");
    if !backends.is_empty() {
        at = put_backends(to, at, backends);
    }
    put(to, at, b"}")
}

/// The names of the mechanisms with one of `flags`, as elements of an array.
const fn write_names(to: &mut [u8], mut at: usize, metas: &[Meta], flags: u32) -> usize {
    let (mut m, mut count) = (0, 0);
    while m < metas.len() {
        if metas[m].flags & flags != 0 {
            at = put(to, at, if count == 0 { b"\"" } else { b",\"" });
            at = put(to, at, metas[m].name.to_bytes());
            at = put(to, at, b"\"");
            count += 1;
        }
        m += 1;
    }
    at
}

const fn put_backends(to: &mut [u8], mut at: usize, backends: &[BackendMeta]) -> usize {
    at = put(to, at, b",\"backends\":[");
    let mut b = 0;
    while b < backends.len() {
        at = put(to, at, if b == 0 { b"\"" } else { b",\"" });
        at = put(to, at, plain(backends[b].name.to_bytes()));
        at = put(to, at, b"\"");
        b += 1;
    }
    at = put(to, at, b"],\"provides\":{");
    b = 0;
    while b < backends.len() {
        at = put(to, at, if b == 0 { b"\"" } else { b",\"" });
        at = put(to, at, plain(backends[b].name.to_bytes()));
        at = put(to, at, b"\":[");
        at = put_effects(to, at, backends[b].provides);
        at = put(to, at, b"]");
        b += 1;
    }
    at = put(to, at, b"},\"schemas\":{");
    let mut first = true;
    b = 0;
    while b < backends.len() {
        if let Some(schema) = backends[b].config_schema {
            at = put(to, at, if first { b"\"" } else { b",\"" });
            at = put(to, at, plain(backends[b].name.to_bytes()));
            at = put(to, at, b"\":");
            // JSON already.
            at = put(to, at, schema.to_bytes());
            first = false;
        }
        b += 1;
    }
    put(to, at, b"}")
}

const fn put_effects(to: &mut [u8], mut at: usize, kinds: &[EffectKind]) -> usize {
    let mut n = 0;
    while n < kinds.len() {
        at = put(to, at, if n == 0 { b"\"" } else { b",\"" });
        at = put(to, at, effect_name(kinds[n]).as_bytes());
        at = put(to, at, b"\"");
        n += 1;
    }
    at
}

const fn put(to: &mut [u8], mut at: usize, octets: &[u8]) -> usize {
    let mut from = 0;
    while from < octets.len() {
        if at < to.len() {
            to[at] = octets[from];
        }
        at += 1;
        from += 1;
    }
    at
}

/// Octets that need no escape in JSON.
const fn plain(octets: &[u8]) -> &[u8] {
    let mut at = 0;
    while at < octets.len() {
        assert!(octets[at] >= b' ' && octets[at] < 0x7f && octets[at] != b'"' && octets[at] != b'\\', "id or version");
        at += 1;
    }
    octets
}

const fn effect_name(kind: EffectKind) -> &'static str {
    let mut at = 0;
    while at < action::EFFECTS.len() {
        let (name, number) = action::EFFECTS[at];
        if number == kind as u32 {
            return name;
        }
        at += 1;
    }
    panic!("an effect without a name")
}

/// Checks an id at compile time.
pub const fn id(id: &'static CStr) -> &'static CStr {
    let octets = id.to_bytes();
    assert!(!octets.is_empty() && octets.len() <= 32, "a library id has 1 to 32 octets");
    let mut at = 0;
    while at < octets.len() {
        let octet = octets[at];
        assert!(
            octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'_',
            "a library id is made of a-z, 0-9 and _"
        );
        at += 1;
    }
    id
}

/// A literal that `concat!` ended with NUL.
pub const fn c_str(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("NUL inside of id or version"),
    }
}

/// Makes the library: one exported function, one static descriptor, one ELF note.
///
/// `portreeve_plugin! { id: "example", mechanisms: [Plain, Login] }`, with `backends: [Own]` behind it when there are
/// some ([`Backend`](crate::Backend)): the id is `[a-z0-9_]{1,32}` and is what
/// the configuration names; the file is found as `portreeve_<id>.so` or `libportreeve_<id>.so`.
#[macro_export]
macro_rules! portreeve_plugin {
    (id: $id:literal, mechanisms: [$($mechanism:ty),+ $(,)?] $(,)?) => {
        $crate::portreeve_plugin! { id: $id, mechanisms: [$($mechanism),+], backends: [] }
    };
    (id: $id:literal, mechanisms: [$($mechanism:ty),* $(,)?], backends: [$($backend:ty),* $(,)?] $(,)?) => {
        const _: () = {
            use $crate::export;
            const METAS: &[$crate::Meta] = &[$(<$mechanism as $crate::Mechanism>::META),*];
            const BACKEND_METAS: &[$crate::BackendMeta] = &[$(<$backend as $crate::Backend>::META),*];
            const _: () = assert!(!METAS.is_empty() || !BACKEND_METAS.is_empty(), "a library with nothing in it");
            const ABOUT: export::About = export::About {
                id: $id,
                version: env!("CARGO_PKG_VERSION"),
                panic: if cfg!(panic = "unwind") { "unwind" } else { "abort" },
            };
            const NOTE_OCTETS: usize = export::note_octets(ABOUT, METAS, BACKEND_METAS);
            static MECHANISMS: export::Mechanisms<{ METAS.len() }> =
                export::Mechanisms::new([$(export::mechanism::<$mechanism>()),*]);
            static BACKENDS: export::Backends<{ BACKEND_METAS.len() }> =
                export::Backends::new([$(export::backend::<$backend>()),*]);
            static DESCRIPTOR: export::Descriptor = export::Descriptor::new(
                export::id(export::c_str(concat!($id, "\0"))),
                export::c_str(concat!(env!("CARGO_PKG_VERSION"), "\0")),
                if cfg!(panic = "unwind") { c"rust panic=unwind" } else { c"rust panic=abort" },
                &MECHANISMS,
                &BACKENDS,
            );
            #[used]
            #[unsafe(link_section = ".note.portreeve")]
            static NOTE: export::Note<NOTE_OCTETS> = export::Note::new(ABOUT, METAS, BACKEND_METAS);

            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn portreeve_plugin_v1(
                host: *const $crate::abi::Host,
                err: *mut ::std::ffi::c_char,
                err_octets: usize,
            ) -> *const $crate::abi::Plugin {
                // SAFETY: the caller is the host; it keeps what the C header says of prv_entry_fn.
                unsafe { export::enter(&DESCRIPTOR, host, err, err_octets) }
            }
        };
    };
}

// ---------------------------------------------------------------- what the host calls

/// The exported function.
///
/// # Safety
/// `host` is null or a `prv_host`; `err` is null or has room for `err_octets`.
pub unsafe fn enter(
    descriptor: &'static Descriptor,
    host: *const abi::Host,
    err: *mut c_char,
    err_octets: usize,
) -> *const abi::Plugin {
    // SAFETY: the caller's promise; `size` and `abi_major` lead the struct in every minor.
    let major = if host.is_null() { 0 } else { unsafe { (*host).abi_major } };
    if major != abi::ABI_MAJOR {
        // SAFETY: the caller's promise.
        unsafe { write_error(err, err_octets, "the host speaks another ABI major than 1") };
        return ptr::null();
    }
    // This library's own std: the hook of the host does not see panics here, nor does this one see the host's.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(note_panic)));
    &raw const descriptor.0
}

unsafe extern "C" fn configure<M: Mechanism>(
    _plugin: *mut c_void,
    config: *const abi::Config,
    conf: *mut *mut c_void,
    err: *mut c_char,
    err_octets: usize,
) -> i32 {
    // SAFETY: the host's arguments, as they came.
    unsafe { configured(M::configure, config, conf, err, err_octets) }
}

unsafe extern "C" fn configure_backend<B: Backend>(
    _plugin: *mut c_void,
    config: *const abi::Config,
    conf: *mut *mut c_void,
    err: *mut c_char,
    err_octets: usize,
) -> i32 {
    // SAFETY: the host's arguments, as they came.
    unsafe { configured(B::configure, config, conf, err, err_octets) }
}

/// # Safety
/// `config` is null or valid during this call, `conf` is where the host wants a pointer, `err` has room for
/// `err_octets` (C header, prv_mech.configure).
unsafe fn configured<T>(
    make: fn(&Settings<'_>) -> Result<T, String>,
    config: *const abi::Config,
    conf: *mut *mut c_void,
    err: *mut c_char,
    err_octets: usize,
) -> i32 {
    let made = catch_unwind(|| {
        // SAFETY: the caller's promise.
        let settings = unsafe { settings(config) }?;
        make(&settings)
    });
    let message = match made {
        Ok(Ok(mechanism)) => {
            // SAFETY: `conf` is where the host wants the pointer.
            unsafe { *conf = Box::into_raw(Box::new(mechanism)).cast() };
            return 0;
        }
        Ok(Err(message)) => message,
        Err(payload) => {
            forget_panic(payload);
            LAST_PANIC.get().as_str().to_owned()
        }
    };
    // SAFETY: `err` has room for `err_octets`.
    unsafe { write_error(err, err_octets, &message) };
    -1
}

unsafe extern "C" fn release<M>(_plugin: *mut c_void, conf: *mut c_void) {
    if conf.is_null() {
        return;
    }
    let dropped = catch_unwind(|| {
        // SAFETY: made by `configured::<M>`; the host releases it once, after the last exchange or request.
        drop(unsafe { Box::from_raw(conf.cast::<M>()) });
    });
    if let Err(payload) = dropped {
        forget_panic(payload);
    }
}

unsafe extern "C" fn step<M: Mechanism>(
    conf: *const c_void,
    state: *mut c_void,
    input: *const abi::In,
    out: *mut abi::Out,
) {
    // SAFETY: the host passes its own prv_in and prv_out, valid and not shared during this call.
    let (Some(input), Some(out)) = (unsafe { input.as_ref() }, unsafe { out.as_mut() }) else { return };
    out.action = action::FAIL;
    out.arg = fail::INTERNAL;
    // A host of this major knows at least what 1.0 knows; anything else is no host.
    if (input.size as usize) < size_of::<abi::In>() || (out.size as usize) < size_of::<abi::Out>() || conf.is_null() {
        return;
    }
    let (buf, cap) = (out.buf, out.cap as usize);
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY:
        // - `conf` came from `configure::<M>` and is released after the last exchange; it is only read.
        // - `state` has `state_size` octets at a fixed address, aligned, for this call alone.
        // - the slices named by `input` and `buf` are the host's, valid during this call (C header, BORROWING).
        unsafe { step_inside::<M>(&*conf.cast::<M>(), state.cast(), input, buf, cap) }
    }));
    match result {
        Ok(Ok(done)) => {
            out.action = done.action;
            out.used = done.used as u32;
            out.arg = done.arg;
            out.flags = done.flags;
            out.handle = done.handle;
            (out.authcid, out.authzid, out.data, out.data2) = (done.authcid, done.authzid, done.data, done.data2);
        }
        Ok(Err(bad)) => {
            out.arg = bad.class;
            // SAFETY: `buf` has `cap` octets and the step that used them is over.
            unsafe { diagnose(out, bad.reason) };
        }
        Err(payload) => {
            forget_panic(payload);
            // SAFETY: as above.
            unsafe { diagnose(out, LAST_PANIC.get().as_str()) };
        }
    }
}

/// # Safety
/// As `step`: `input` names valid slices, `buf` has `cap` octets, `state` is this exchange's.
unsafe fn step_inside<M: Mechanism>(
    mechanism: &M,
    state: *mut u8,
    input: &abi::In,
    buf: *mut u8,
    cap: usize,
) -> Result<Done, Bad> {
    // SAFETY: each is null with length 0 or valid during the step.
    let octets = |bytes: abi::Bytes| unsafe { octets(bytes) };
    let message = octets(input.msg);
    let event = match input.event {
        event::START if input.conn_flags & abi::conn::HAS_IR == 0 => Event::Start { initial: None },
        event::START => Event::Start { initial: Some(message) },
        event::MESSAGE => Event::Message(message),
        event::RESUME => Event::Resume,
        event::RESULT => {
            // SAFETY: the host names the result during this event.
            let result = unsafe { input.result.as_ref() }.ok_or(Bad::INTERNAL)?;
            // SAFETY: as above.
            let scram = unsafe { result.scram.as_ref() }.map(|key| ScramKey {
                iterations: key.iterations,
                salt: octets(key.salt),
                stored_key: octets(key.stored_key),
                server_key: octets(key.server_key),
            });
            Event::Outcome(Outcome { status: result.status, handle: result.handle, data: octets(result.data), scram })
        }
        _ => return Err(Bad::INTERNAL.because("an event that this library does not know")),
    };
    // SAFETY: the state is this exchange's alone, for this call.
    let state = unsafe { Slot::<M::State>::enter(state, input.event == event::START) }?;
    let start = ptr::from_mut(&mut *state) as usize;
    // Beyond max_output is the room for a diagnosis; a step has no business there.
    let room = cap.min(M::META.output_octets_max as usize);
    let scratch = if room == 0 || buf.is_null() {
        &mut []
    } else {
        // SAFETY: `buf` has `cap` octets, and nobody else uses them during the step.
        unsafe { slice::from_raw_parts_mut(buf, room) }
    };
    let cx = Cx::new(Given {
        event,
        message,
        entropy: octets(input.entropy),
        unix_ms: input.unix_ms,
        exchange: input.exchange,
        conn_flags: input.conn_flags,
        channel_bindings: input.cb_types,
        server_name: octets(input.server_name),
        client_ip: octets(input.client_ip),
        listener: octets(input.listener),
        sni: octets(input.sni),
        session_id: input.session_id,
        tls_version: input.tls_version,
        state: start..start + size_of::<M::State>(),
        scratch,
    });
    mechanism.step(state, cx)
}

unsafe extern "C" fn drop_state<M: Mechanism>(_conf: *const c_void, state: *mut c_void) {
    // SAFETY: the exchange is over; the host calls this once, for the state that the steps had.
    let dropped = catch_unwind(|| unsafe { Slot::<M::State>::leave(state.cast()) });
    if let Err(payload) = dropped {
        forget_panic(payload);
    }
}

unsafe extern "C" fn handle<B: Backend>(conf: *mut c_void, request: *const abi::Request, reply: *mut abi::Reply) {
    // SAFETY: the host passes its own prv_request and prv_reply, valid and not shared during this call.
    let (Some(request), Some(reply)) = (unsafe { request.as_ref() }, unsafe { reply.as_mut() }) else { return };
    (reply.status, reply.found, reply.used) = (status::TEMPFAIL, 0, 0);
    let known = size_of::<abi::Request>() <= request.size as usize && size_of::<abi::Reply>() <= reply.size as usize;
    if !known || conf.is_null() {
        return;
    }
    let said = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `conf` came from `configure_backend::<B>` and is only read; what the request names is the host's,
        // valid during this call (C header, BORROWING).
        unsafe { (*conf.cast::<B>()).handle(&request_of(request)) }
    }));
    let said = said.unwrap_or_else(|payload| {
        forget_panic(payload);
        Reply::temporary(LAST_PANIC.get().as_str())
    });
    // SAFETY: `buf` has `cap` octets, and nobody else uses them during this call.
    unsafe { write_reply(reply, &said) };
}

/// # Safety
/// What `request` names is valid for `'a`.
unsafe fn request_of<'a>(request: &abi::Request) -> Request<'a> {
    // SAFETY: the caller's promise.
    let octets = |bytes: abi::Bytes| unsafe { octets(bytes) };
    let text = |bytes| std::str::from_utf8(octets(bytes)).unwrap_or_default();
    let (authcid, authzid, data, data2) =
        (octets(request.authcid), octets(request.authzid), octets(request.data), octets(request.data2));
    let asked = match request.effect {
        action::VERIFY_PASSWORD => Asked::Password { authcid, authzid, password: data },
        action::FETCH_KEY => match KeyKind::from_abi(request.arg) {
            Some(kind) => Asked::Key { kind, authcid, authzid, realm: data },
            None => Asked::Other,
        },
        action::VERIFY_TOKEN => Asked::Token { token: data, authzid, fields: data2 },
        action::VERIFY_EXTERNAL => Asked::External { authzid, spki_sha256: data, names: data2 },
        action::BACKEND_CALL => Asked::Call { service: octets(request.service), request: data },
        _ => Asked::Other,
    };
    let client_ip = match octets(request.client_ip) {
        &[a, b, c, d] => Some(std::net::IpAddr::from([a, b, c, d])),
        long => <[u8; 16]>::try_from(long).ok().map(std::net::IpAddr::from),
    };
    Request {
        asked,
        deadline_ms: request.deadline_ms,
        session_id: request.session_id,
        mechanism: text(request.mechanism),
        listener: text(request.listener),
        sni: text(request.sni),
        client_ip,
        tls_version: request.tls_version,
    }
}

/// # Safety
/// `reply.buf` has `reply.cap` octets for this call alone.
unsafe fn write_reply(reply: &mut abi::Reply, said: &Reply) {
    let room = reply.cap as usize;
    let mut used = 0;
    let mut write = |octets: &[u8]| {
        if octets.is_empty() {
            return Some(abi::Slice::NONE);
        }
        let end = used + octets.len();
        if reply.buf.is_null() || end > room {
            return None;
        }
        // SAFETY: `used..end` lies within the `cap` octets at `buf`.
        unsafe { ptr::copy_nonoverlapping(octets.as_ptr(), reply.buf.add(used), octets.len()) };
        let slice = abi::Slice { region: region::OUT, off: used as u32, len: octets.len() as u32 };
        used = end;
        Some(slice)
    };
    let reason = &said.reason[..said.reason.floor_char_boundary(abi::DIAG_MAX as usize)];
    let parts = [&said.data[..], &said.salt, &said.stored_key, &said.server_key];
    let written = (write(reason.as_bytes()), write(said.identity.as_bytes()), parts.map(&mut write));
    let (Some(diag), Some(identity), [Some(data), Some(salt), Some(stored_key), Some(server_key)]) = written else {
        // More than there is room for: as preset, nobody could say.
        return;
    };
    (reply.status, reply.found, reply.iterations) = (said.status, u32::from(said.found), said.iterations);
    (reply.diag, reply.identity, reply.data) = (diag, identity, data);
    (reply.salt, reply.stored_key, reply.server_key) = (salt, stored_key, server_key);
    reply.used = used as u32;
}

// ---------------------------------------------------------------- the state in the host's memory

/// A state and whether it lives: the host zeroes the memory, and zeroes need not be a valid `S`.
#[repr(C)]
struct Slot<S> {
    value: MaybeUninit<S>,
    live: u8,
}

impl<S: Default> Slot<S> {
    /// A state without octets and destructor needs no memory at all.
    const OCTETS: usize = if size_of::<S>() == 0 && !mem::needs_drop::<S>() { 0 } else { size_of::<Self>() };

    /// # Safety
    /// `at` has `OCTETS` octets aligned for `S`, zeroed before the first call with `start`, for the caller alone.
    unsafe fn enter<'a>(at: *mut u8, start: bool) -> Result<&'a mut S, Bad> {
        if Self::OCTETS == 0 {
            // SAFETY: `S` has no octets; any aligned non-null pointer is good for it.
            return Ok(unsafe { ptr::NonNull::<S>::dangling().as_mut() });
        }
        // SAFETY: the caller's promise; zeroes are a valid `Slot` (uninitialised value, not live).
        let slot = unsafe { at.cast::<Self>().as_mut() }.ok_or(Bad::INTERNAL)?;
        match (start, slot.live) {
            (true, 0) => {
                slot.value.write(S::default());
                slot.live = 1;
            }
            (false, 1) => {}
            _ => return Err(Bad::INTERNAL.because("an exchange begins with START, once")),
        }
        // SAFETY: `live` is 1 only after the value was written and before it was dropped.
        Ok(unsafe { slot.value.assume_init_mut() })
    }

    /// # Safety
    /// As [`Self::enter`].
    unsafe fn leave(at: *mut u8) {
        if Self::OCTETS == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        if let Some(slot) = unsafe { at.cast::<Self>().as_mut() }
            && mem::replace(&mut slot.live, 0) == 1
        {
            // SAFETY: it was live until now.
            unsafe { slot.value.assume_init_drop() };
        }
    }
}

// ---------------------------------------------------------------- the host's part, for `testing`

/// What a test tells a step, as safe slices.
pub(crate) struct Situation<'a> {
    pub event: u32,
    pub message: &'a [u8],
    pub ended: Option<Ended<'a>>,
    pub entropy: &'a [u8],
    pub unix_ms: u64,
    pub conn_flags: u32,
    pub channel_bindings: u32,
    pub server_name: &'a [u8],
}

/// The end of an effect.
pub(crate) struct Ended<'a> {
    pub effect: u32,
    pub status: u32,
    pub handle: u32,
    pub data: &'a [u8],
    pub scram: Option<ScramKey<'a>>,
}

/// A mechanism and the state of one exchange, stepped as the host does it.
pub(crate) struct Bench<M: Mechanism> {
    mechanism: M,
    state: Box<MaybeUninit<Slot<M::State>>>,
}

impl<M: Mechanism> Bench<M> {
    pub fn new(mechanism: M) -> Self {
        Self { mechanism, state: Box::new(MaybeUninit::zeroed()) }
    }

    pub fn step(&mut self, situation: &Situation<'_>, scratch: &mut [u8]) -> abi::Out {
        let scram = situation.ended.as_ref().and_then(|ended| ended.scram).map(|key| abi::ScramKey {
            size: size_of::<abi::ScramKey>() as u32,
            iterations: key.iterations,
            hash_len: key.stored_key.len() as u32,
            reserved: 0,
            salt: abi::Bytes::of(key.salt),
            stored_key: abi::Bytes::of(key.stored_key),
            server_key: abi::Bytes::of(key.server_key),
        });
        let result = situation.ended.as_ref().map(|ended| abi::EffectResult {
            size: size_of::<abi::EffectResult>() as u32,
            effect: ended.effect,
            status: ended.status,
            handle: ended.handle,
            data: abi::Bytes::of(ended.data),
            scram: scram.as_ref().map_or(ptr::null(), ptr::from_ref),
        });
        let input = abi::In {
            size: size_of::<abi::In>() as u32,
            event: situation.event,
            exchange: 1,
            unix_ms: situation.unix_ms,
            conn_flags: situation.conn_flags,
            cb_types: situation.channel_bindings,
            msg: abi::Bytes::of(situation.message),
            result: result.as_ref().map_or(ptr::null(), ptr::from_ref),
            entropy: abi::Bytes::of(situation.entropy),
            server_name: abi::Bytes::of(situation.server_name),
            client_ip: abi::Bytes::of(&[127, 0, 0, 1]),
            listener: abi::Bytes::of(b"test"),
            sni: abi::Bytes::EMPTY,
            session_id: 1,
            tls_version: 0x0304,
            reserved: 0,
        };
        if situation.event == event::START {
            self.drop_state();
            *self.state = MaybeUninit::zeroed();
        }
        let mut out = abi::Out { buf: scratch.as_mut_ptr(), cap: scratch.len() as u32, ..abi::Out::PRESET };
        // SAFETY:
        // - the mechanism, the input and what it names, scratch and state outlive the call; `&mut self` makes
        //   it the only one on this state.
        // - the state was zeroed before START, and its address is that of the box from then on.
        unsafe { step::<M>((&raw const self.mechanism).cast(), self.state.as_mut_ptr().cast(), &input, &mut out) };
        out
    }

    /// Octets of the state that a step named.
    pub fn state(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        assert!(range.start <= range.end && range.end <= size_of::<M::State>(), "outside of the state");
        // SAFETY: in bounds, and initialised: a step names octets of the state by a `&[u8]` that lies there.
        unsafe { slice::from_raw_parts(self.state.as_ptr().cast::<u8>().add(range.start), range.len()) }.to_vec()
    }

    fn drop_state(&mut self) {
        // SAFETY: no step runs; what does not live is not dropped.
        unsafe { Slot::<M::State>::leave(self.state.as_mut_ptr().cast()) };
    }
}

impl<M: Mechanism> Drop for Bench<M> {
    fn drop(&mut self) {
        self.drop_state();
    }
}

/// Calls `handle` as the host does.
#[cfg(test)]
fn call<B: Backend>(backend: &B, request: &abi::Request, scratch: &mut [u8]) -> abi::Reply {
    let cap = u32::try_from(scratch.len()).unwrap_or(u32::MAX);
    let mut reply = abi::Reply { buf: scratch.as_mut_ptr(), cap, ..abi::Reply::PRESET };
    // SAFETY: request, what it names (the tests' own slices), scratch and reply live during the call, and `conf` is a `B`.
    unsafe { handle::<B>(ptr::from_ref(backend).cast_mut().cast(), request, &mut reply) };
    reply
}

// ---------------------------------------------------------------- small parts

/// # Safety
/// Valid for `'a`, or null with any length.
unsafe fn octets<'a>(bytes: abi::Bytes) -> &'a [u8] {
    if bytes.ptr.is_null() || bytes.len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(bytes.ptr, bytes.len) }
}

/// # Safety
/// `config` is null or valid for `'a`.
unsafe fn settings<'a>(config: *const abi::Config) -> Result<Settings<'a>, String> {
    // SAFETY: the caller's promise.
    let Some(config) = (unsafe { config.as_ref() }) else { return Ok(Settings::default()) };
    let text = |bytes| {
        // SAFETY: the caller's promise.
        std::str::from_utf8(unsafe { octets(bytes) }).map_err(|_| String::from("a setting is not UTF-8"))
    };
    let mut settings = Settings { json: text(config.json)?, entries: Vec::new() };
    let stride = config.kv_stride as usize;
    if config.kv.is_null() || stride < size_of::<abi::Kv>() {
        return Ok(settings);
    }
    for index in 0..config.kv_count as usize {
        // SAFETY: the host's array has `kv_count` entries, `kv_stride` octets apart.
        let entry = unsafe { &*config.kv.byte_add(index * stride) };
        settings.entries.push((text(entry.key)?, text(entry.value)?));
    }
    Ok(settings)
}

/// Writes as much of `message` as there is room for, ended with NUL.
///
/// # Safety
/// `err` is null or has room for `octets`.
unsafe fn write_error(err: *mut c_char, octets: usize, message: &str) {
    if err.is_null() || octets == 0 {
        return;
    }
    let length = message.floor_char_boundary(octets - 1);
    // SAFETY: `length + 1 <= octets`, the caller's promise.
    unsafe {
        ptr::copy_nonoverlapping(message.as_ptr(), err.cast(), length);
        *err.add(length) = 0;
    }
}

/// Replaces whatever the step put out by a diagnosis.
///
/// # Safety
/// `out.buf` has `out.cap` octets and nobody else uses them.
unsafe fn diagnose(out: &mut abi::Out, reason: &str) {
    out.used = 0;
    let length = reason.floor_char_boundary((out.cap as usize).min(abi::DIAG_MAX as usize));
    if out.buf.is_null() || length == 0 {
        return;
    }
    // SAFETY: `length <= cap`, the caller's promise.
    unsafe { ptr::copy_nonoverlapping(reason.as_ptr(), out.buf, length) };
    out.used = length as u32;
    out.diag = abi::Slice { region: region::OUT, off: 0, len: length as u32 };
}

/// Dropping a panic's payload may panic again; that one is leaked.
fn forget_panic(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(again);
    }
}

/// Where the last panic of this thread was. Not its message: that may quote what the client sent.
#[derive(Clone, Copy)]
struct Spot {
    octets: [u8; 160],
    len: usize,
}

impl Spot {
    const NOWHERE: Spot = Spot { octets: [0; 160], len: 0 };

    fn as_str(&self) -> &str {
        self.octets.get(..self.len).and_then(|octets| std::str::from_utf8(octets).ok()).unwrap_or_default()
    }
}

impl std::fmt::Write for Spot {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let length = text.floor_char_boundary(self.octets.len() - self.len);
        self.octets[self.len..self.len + length].copy_from_slice(&text.as_bytes()[..length]);
        self.len += length;
        Ok(())
    }
}

thread_local! {
    // No destructor: a thread-local with one would bind the library to the thread's end.
    static LAST_PANIC: Cell<Spot> = const { Cell::new(Spot::NOWHERE) };
}

fn note_panic(info: &std::panic::PanicHookInfo<'_>) {
    let mut spot = Spot::NOWHERE;
    let written = match info.location() {
        // The end of a long path says more than its beginning.
        Some(place) => {
            let file = place.file();
            let tail = &file[file.ceil_char_boundary(file.len().saturating_sub(130))..];
            write!(spot, "panic at {tail}:{}", place.line())
        }
        None => write!(spot, "panic"),
    };
    if written.is_ok() {
        LAST_PANIC.set(spot);
    }
}

#[cfg(test)]
mod tests;
