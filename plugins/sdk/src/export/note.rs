//! The ELF note: what the host reads of a library that it does not run. Written while the library is compiled.

use crate::abi::{self, action, mech_flag};
use crate::{BackendMeta, EffectKind, Meta};

/// `Elf64_Nhdr`, owner and JSON, as `PRV_NOTE` of the C header lays them out. `N` is a multiple of 4.
#[repr(C)]
pub struct Note<const N: usize> {
    pub(super) name_octets: u32,
    pub(super) json_octets: u32,
    pub(super) kind: u32,
    pub(super) name: [u8; 12],
    pub(super) json: [u8; N],
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
