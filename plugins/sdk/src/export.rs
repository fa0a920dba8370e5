//! The foreign edge: descriptors, the ELF note and the functions that the host calls. All `unsafe` of the SDK
//! is here; each function turns pointers into slices and hands over to safe code, whose panics it catches.
//!
//! ```text
//! export     descriptors, the macro, entry, settings     exchange   steps and their states
//! note       the ELF note                                request    requests to back ends
//! panics     caught and remembered
//! ```
//!
//! Public only for [`portreeve_plugin!`](crate::portreeve_plugin).

use std::ffi::{CStr, c_char, c_void};
use std::{mem, ptr, slice};

use crate::abi::{self, action, mech_flag};
use crate::backend::Backend;
use crate::cx::EffectKind;
use crate::{Mechanism, Settings};

mod exchange;
mod note;
mod panics;
mod request;

pub(crate) use exchange::{Bench, Ended, Situation};
use exchange::{Slot, drop_state, step};
pub use note::{About, Note, note_octets};
use panics::caught;
use request::handle;

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
    panics::watch();
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
    let made = caught(|| {
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
        Err(panicked) => panicked.place().as_str().to_owned(),
    };
    // SAFETY: `err` has room for `err_octets`.
    unsafe { write_error(err, err_octets, &message) };
    -1
}

unsafe extern "C" fn release<M>(_plugin: *mut c_void, conf: *mut c_void) {
    if conf.is_null() {
        return;
    }
    // Nobody is left who could be told of a panic.
    let _ = caught(|| {
        // SAFETY: made by `configured::<M>`; the host releases it once, after the last exchange or request.
        drop(unsafe { Box::from_raw(conf.cast::<M>()) });
    });
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

#[cfg(test)]
mod tests;
