//! The plugin ABI of Portreeve as `repr(C)` Rust: the same numbers and layouts as `portreeve_plugin.h`,
//! which is the reference and carries the explanations. A test compiles the header with the C compilers of
//! the machine and compares every size, offset and constant with this file.
//!
//! Authors of mechanisms use `portreeve-plugin-sdk` or the C header; this crate is for the SDK and the host.
//!
//! ```
//! assert_eq!(portreeve_plugin_abi::MAGIC.to_le_bytes(), *b"PRTREVv1");
//! // What a C author includes.
//! assert!(portreeve_plugin_abi::HEADER.contains("portreeve_plugin_v1"));
//! ```
#![forbid(unsafe_code)]

use std::ffi::{c_char, c_void};

/// The C header, for tools that write it out.
pub const HEADER: &str = include_str!("../portreeve_plugin.h");

/// The bytes `PRTREVv1`.
pub const MAGIC: u64 = 0x3176_5645_5254_5250;
/// Major: part of the exported symbol's name.
pub const ABI_MAJOR: u16 = 1;
/// Minor: grows by appending.
pub const ABI_MINOR: u16 = 0;
/// The one symbol that a library exports.
pub const ENTRY: &std::ffi::CStr = c"portreeve_plugin_v1";
/// Section of the ELF note.
pub const NOTE_SECTION: &str = ".note.portreeve";
/// Owner of the ELF note.
pub const NOTE_OWNER: &str = "Portreeve";
/// Type of the ELF note.
pub const NOTE_TYPE: u32 = 1;
/// Octets of the note's JSON.
pub const NOTE_MAX: usize = 16_384;

/// Octets of a mechanism name.
pub const NAME_MAX: usize = 20;
/// Largest [`Mech::state_size`].
pub const STATE_MAX: u32 = 4032;
/// Largest [`Mech::state_align`].
pub const ALIGN_MAX: u32 = 64;
/// Largest [`Mech::max_message`].
pub const MESSAGE_MAX: u32 = 65_536;
/// Largest [`Mech::max_output`].
pub const OUTPUT_MAX: u32 = 65_536;
/// Largest [`Mech::max_steps`].
pub const STEPS_MAX: u32 = 32;
/// [`Reply::cap`]: room for everything that a back end answers.
pub const REPLY_MAX: u32 = 65_536;
/// Room for [`Out::diag`] beyond [`Mech::max_output`].
pub const DIAG_MAX: u32 = 256;

/// `prv_region`.
pub mod region {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const NONE: u32 = 0;
    pub const MSG: u32 = 1;
    pub const OUT: u32 = 2;
    pub const STATE: u32 = 3;
}

/// `prv_event`.
pub mod event {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const START: u32 = 1;
    pub const MESSAGE: u32 = 2;
    pub const RESULT: u32 = 3;
    pub const RESUME: u32 = 4;
}

/// `prv_action`; 16 and above are effects.
pub mod action {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const CHALLENGE: u32 = 1;
    pub const SUCCESS: u32 = 2;
    pub const FAIL: u32 = 3;
    pub const OFFLOAD: u32 = 4;
    pub const VERIFY_PASSWORD: u32 = 16;
    pub const FETCH_KEY: u32 = 17;
    pub const VERIFY_TOKEN: u32 = 18;
    pub const VERIFY_EXTERNAL: u32 = 19;
    pub const CHANNEL_BINDING: u32 = 20;
    pub const BACKEND_CALL: u32 = 21;

    /// `PRV_NEED`: the bit of an effect in `needs`, `effects` and `provides`.
    pub const fn need(effect: u32) -> u64 {
        1 << (effect - 16)
    }

    /// Effects by the names that the note uses.
    pub const EFFECTS: [(&str, u32); 6] = [
        ("VERIFY_PASSWORD", VERIFY_PASSWORD),
        ("FETCH_KEY", FETCH_KEY),
        ("VERIFY_TOKEN", VERIFY_TOKEN),
        ("VERIFY_EXTERNAL", VERIFY_EXTERNAL),
        ("CHANNEL_BINDING", CHANNEL_BINDING),
        ("BACKEND_CALL", BACKEND_CALL),
    ];
}

/// `prv_status`.
pub mod status {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const OK: u32 = 0;
    pub const DENIED: u32 = 1;
    pub const TEMPFAIL: u32 = 2;
    pub const UNSUPPORTED: u32 = 3;
    pub const TRANSITION: u32 = 4;
    pub const EXPIRED: u32 = 5;
}

/// `prv_fail`.
pub mod fail {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const CREDENTIALS: u32 = 1;
    pub const MALFORMED: u32 = 2;
    pub const TEMPORARY: u32 = 3;
    pub const AUTHZ: u32 = 4;
    pub const TOO_WEAK: u32 = 5;
    pub const NEED_TLS: u32 = 6;
    pub const TRANSITION: u32 = 7;
    pub const CBINDING: u32 = 8;
    pub const EXPIRED: u32 = 9;
    pub const INTERNAL: u32 = 10;
}

/// `prv_keykind`.
pub mod key {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const CLEARTEXT: u32 = 1;
    pub const SCRAM_SHA1: u32 = 2;
    pub const SCRAM_SHA256: u32 = 3;
    pub const SCRAM_SHA512: u32 = 4;
    pub const DIGEST_MD5_HA1: u32 = 5;
    pub const CRAM_MD5_CTX: u32 = 6;
}

/// `prv_cbtype`.
pub mod binding {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const TLS_EXPORTER: u32 = 1;
    pub const TLS_SERVER_END_POINT: u32 = 2;
}

/// `PRV_C_*`: bits of [`In::conn_flags`].
pub mod conn {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const TLS: u32 = 0x0001;
    pub const CLIENT_CERT: u32 = 0x0002;
    pub const CB_SIBLING: u32 = 0x0004;
    pub const HAS_IR: u32 = 0x0010;
}

/// `PRV_OUT_*`: bits of [`Out::flags`].
pub mod out_flag {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const FINAL_DATA: u32 = 0x0001;
    pub const SELF_ASSERTED: u32 = 0x0002;
}

/// `PRV_M_*`: bits of [`Mech::flags`].
pub mod mech_flag {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const CLIENT_FIRST: u32 = 0x0000_0001;
    pub const SERVER_FIRST: u32 = 0x0000_0002;
    pub const PLAINTEXT: u32 = 0x0000_0004;
    pub const NEEDS_TLS: u32 = 0x0000_0008;
    pub const NEEDS_CERT: u32 = 0x0000_0010;
    pub const CHANNEL_BIND: u32 = 0x0000_0020;
    pub const MUTUAL: u32 = 0x0000_0040;
    pub const ANONYMOUS: u32 = 0x0000_0080;
    pub const OBSOLETE: u32 = 0x0000_0100;
    pub const ALLOW_NUL: u32 = 0x0000_0200;
    pub const ENTROPY: u32 = 0x0000_0400;
    pub const POD_STATE: u32 = 0x0000_0800;
    pub const SELF_ASSERTS: u32 = 0x0000_1000;
    pub const OFFLOAD_ALL: u32 = 0x0000_2000;
    pub const ONE_ROUNDTRIP: u32 = 0x0000_4000;
    pub const UTF8: u32 = 0x0000_8000;
    pub const MAY_OFFLOAD: u32 = 0x0001_0000;
    /// All bits of this minor; others are an error.
    pub const ALL: u32 = 0x0001_ffff;
}

/// Types of [`Kv`].
pub mod kv {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const TEXT: u32 = 1;
    pub const NUMBER: u32 = 2;
    pub const BOOL: u32 = 3;
    pub const NULL: u32 = 4;
}

/// Levels of [`Host::log`].
pub mod log {
    #![allow(missing_docs, reason = "explained in portreeve_plugin.h")]
    pub const ERROR: i32 = 1;
    pub const WARNING: i32 = 2;
    pub const INFO: i32 = 3;
    pub const DEBUG: i32 = 4;
}

/// Bit of [`Backend::flags`]: called on a worker pool.
pub const B_BLOCKING: u32 = 0x0001;

/// `configure` of a mechanism or back end.
pub type ConfigureFn = unsafe extern "C" fn(*mut c_void, *const Config, *mut *mut c_void, *mut c_char, usize) -> i32;
/// `release` of a mechanism or back end.
pub type ReleaseFn = unsafe extern "C" fn(*mut c_void, *mut c_void);
/// `step` of a mechanism.
pub type StepFn = unsafe extern "C" fn(*const c_void, *mut c_void, *const In, *mut Out);
/// `drop_state` of a mechanism.
pub type DropStateFn = unsafe extern "C" fn(*const c_void, *mut c_void);
/// `handle` of a back end.
pub type HandleFn = unsafe extern "C" fn(*mut c_void, *const Request, *mut Reply);
/// `log` of the host.
pub type LogFn = unsafe extern "C" fn(*mut c_void, i32, *const c_char, usize);
/// `quiesce` of a library.
pub type QuiesceFn = unsafe extern "C" fn(*mut c_void);
/// The exported function, [`ENTRY`].
pub type EntryFn = unsafe extern "C" fn(*const Host, *mut c_char, usize) -> *const Plugin;

macro_rules! structs {
    ($( $(#[$doc:meta])* $name:ident = $c:literal { $($field:ident : $type:ty),* $(,)? } )*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            #[allow(missing_docs, reason = "fields are explained in portreeve_plugin.h")]
            pub struct $name { $(pub $field: $type),* }
        )*

        /// Name in C, size, and name and offset of each field: what the header's test compares.
        pub const LAYOUT: &[(&str, usize, &[(&str, usize)])] = &[
            $( ($c, size_of::<$name>(), &[ $( (stringify!($field), std::mem::offset_of!($name, $field)) ),* ]) ),*
        ];
    };
}

structs! {
    /// Read-only octets of the host.
    Bytes = "prv_bytes" { ptr: *const u8, len: usize }
    /// Octets in one of the host's three areas.
    Slice = "prv_slice" { region: u32, off: u32, len: u32 }
    /// Stored SCRAM keys.
    ScramKey = "prv_scram_key" {
        size: u32, iterations: u32, hash_len: u32, reserved: u32, salt: Bytes, stored_key: Bytes, server_key: Bytes,
    }
    /// How an effect ended.
    EffectResult = "prv_result" {
        size: u32, effect: u32, status: u32, handle: u32, data: Bytes, scram: *const ScramKey,
    }
    /// What a step may look at.
    In = "prv_in" {
        size: u32, event: u32, exchange: u64, unix_ms: u64, conn_flags: u32, cb_types: u32, msg: Bytes,
        result: *const EffectResult, entropy: Bytes, server_name: Bytes, client_ip: Bytes, listener: Bytes,
        sni: Bytes, session_id: u64, tls_version: u32, reserved: u32,
    }
    /// What a step answers.
    Out = "prv_out" {
        size: u32, action: u32, buf: *mut u8, cap: u32, used: u32, arg: u32, flags: u32, authcid: Slice,
        authzid: Slice, data: Slice, data2: Slice, diag: Slice, handle: u32, reserved: u32,
    }
    /// One flattened setting.
    Kv = "prv_kv" { key: Bytes, value: Bytes, r#type: u32, reserved: u32 }
    /// Settings of one mechanism on one listener.
    Config = "prv_config" { size: u32, kv_count: u32, kv_stride: u32, reserved: u32, json: Bytes, kv: *const Kv }
    /// A mechanism's descriptor.
    Mech = "prv_mech" {
        size: u32, flags: u32, needs: u64, name: *const c_char, plus_of: *const c_char, config_schema: *const c_char,
        strength: u32, state_size: u32, state_align: u32, max_message: u32, max_output: u32, max_steps: u32,
        configure: Option<ConfigureFn>, release: Option<ReleaseFn>, step: Option<StepFn>,
        drop_state: Option<DropStateFn>,
    }
    /// An effect, as a back end sees it.
    Request = "prv_request" {
        size: u32, effect: u32, arg: u32, conn_flags: u32, deadline_ms: u64, session_id: u64, authcid: Bytes,
        authzid: Bytes, data: Bytes, data2: Bytes, service: Bytes, mechanism: Bytes, listener: Bytes, sni: Bytes,
        client_ip: Bytes, tls_version: u32, reserved: u32,
    }
    /// A back end's answer.
    Reply = "prv_reply" {
        size: u32, status: u32, found: u32, iterations: u32, buf: *mut u8, cap: u32, used: u32, identity: Slice,
        data: Slice, salt: Slice, stored_key: Slice, server_key: Slice, diag: Slice,
    }
    /// A back end's descriptor.
    Backend = "prv_backend" {
        size: u32, flags: u32, provides: u64, name: *const c_char, config_schema: *const c_char, max_parallel: u32,
        reserved: u32, configure: Option<ConfigureFn>, release: Option<ReleaseFn>, handle: Option<HandleFn>,
    }
    /// What the host says of itself.
    Host = "prv_host" {
        size: u32, abi_major: u16, abi_minor: u16, effects: u64, version: *const c_char, ctx: *mut c_void,
        log: Option<LogFn>,
    }
    /// What a library says of itself.
    Plugin = "prv_plugin" {
        magic: u64, size: u32, abi_major: u16, abi_minor: u16, id: *const c_char, version: *const c_char,
        build: *const c_char, plugin: *mut c_void, mech_count: u32, mech_stride: u32, mechs: *const Mech,
        backend_count: u32, backend_stride: u32, backends: *const Backend, quiesce: Option<QuiesceFn>,
    }
}

impl Bytes {
    /// No octets.
    pub const EMPTY: Bytes = Bytes { ptr: std::ptr::null(), len: 0 };

    /// Names these octets; nothing keeps them alive.
    pub const fn of(octets: &[u8]) -> Bytes {
        Bytes { ptr: octets.as_ptr(), len: octets.len() }
    }
}

impl Slice {
    /// No octets.
    pub const NONE: Slice = Slice { region: region::NONE, off: 0, len: 0 };
}

impl Reply {
    /// As the host presets it: nobody could say, unless the back end says otherwise.
    pub const PRESET: Reply = Reply {
        size: size_of::<Reply>() as u32,
        status: status::TEMPFAIL,
        found: 0,
        iterations: 0,
        buf: std::ptr::null_mut(),
        cap: 0,
        used: 0,
        identity: Slice::NONE,
        data: Slice::NONE,
        salt: Slice::NONE,
        stored_key: Slice::NONE,
        server_key: Slice::NONE,
        diag: Slice::NONE,
    };
}

impl Out {
    /// As the host presets it: a failure, unless the mechanism says otherwise.
    pub const PRESET: Out = Out {
        size: size_of::<Out>() as u32,
        action: action::FAIL,
        buf: std::ptr::null_mut(),
        cap: 0,
        used: 0,
        arg: fail::INTERNAL,
        flags: 0,
        authcid: Slice::NONE,
        authzid: Slice::NONE,
        data: Slice::NONE,
        data2: Slice::NONE,
        diag: Slice::NONE,
        handle: 0,
        reserved: 0,
    };
}
