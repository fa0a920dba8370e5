//! The handshake: what a library says of itself is copied and checked before anything else of it is called.

use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

use portreeve_plugin_abi::{self as abi, mech_flag};
use sasl::{MechanismName, Traits};

use super::{Declared, DeclaredBackend, EFFECTS, Library, LogSink};

/// Most mechanisms of one library.
const MECHANISMS_MAX: u32 = 64;
/// Most back ends of one library.
const BACKENDS_MAX: u32 = 16;
/// Longest `version` and `build`, octets.
const TEXT_OCTETS_MAX: usize = 128;
/// Longest JSON Schema, octets.
const SCHEMA_OCTETS_MAX: usize = 64 << 10;

/// # Safety
/// `at` points to a descriptor that lives for ever.
pub(super) unsafe fn describe(at: *const abi::Plugin, log: &'static LogSink) -> Result<Library, String> {
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

    let (count, stride) = (plugin.backend_count, plugin.backend_stride);
    let array = Array { at: plugin.backends, count, stride, what: "back end", field: "backend_stride" };
    // SAFETY: the library's array of back ends; each is a descriptor that lives for ever.
    let backends = unsafe { array.read(BACKENDS_MAX, declare_backend, |declared| &declared.name) }?;
    let (count, stride) = (plugin.mech_count, plugin.mech_stride);
    let array = Array { at: plugin.mechs, count, stride, what: "mechanism", field: "mech_stride" };
    // SAFETY: as above, of mechanisms.
    let mechanisms = unsafe { array.read(MECHANISMS_MAX, declare, |declared| declared.name.as_str()) }?;
    if mechanisms.is_empty() && backends.is_empty() {
        return Err(format!("it has 0 mechanisms; 1 to {MECHANISMS_MAX} can be"));
    }
    Ok(Library { plugin, id, version, build, mechanisms, backends, log })
}

/// An array of descriptors, as the library says where and how long it is.
struct Array<T> {
    at: *const T,
    count: u32,
    stride: u32,
    what: &'static str,
    field: &'static str,
}

impl<T: Copy> Array<T> {
    /// Reads each with `declare`; two of one name are none.
    ///
    /// # Safety
    /// `at` is what a library names: `count` descriptors that live for ever, `stride` octets apart. Each begins with its
    /// size, as 32 bits, and zero is a good value for every field of `T`.
    unsafe fn read<D>(
        &self,
        count_max: u32,
        declare: impl Fn(T) -> Result<D, String>,
        name: impl Fn(&D) -> &str,
    ) -> Result<Vec<D>, String> {
        let Self { at, count, what, field, .. } = *self;
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > count_max || at.is_null() || !at.is_aligned() {
            return Err(format!("it has {count} {what}s; 1 to {count_max} can be"));
        }
        let (least, stride) = (size_of::<T>(), self.stride as usize);
        if stride < least || stride > 4096 || !stride.is_multiple_of(align_of::<T>()) {
            return Err(format!("its {field} is {stride}, a {what} has {least} octets"));
        }
        let mut all: Vec<D> = Vec::new();
        for index in 0..count as usize {
            // SAFETY: the caller's promise.
            let (one, size) = unsafe {
                let one = at.byte_add(index * stride);
                (one, one.cast::<u32>().read())
            };
            let copied = if size as usize > stride {
                Err(format!("its size is {size}, the stride is {stride}"))
            } else {
                // SAFETY: `size` octets are what the library wrote.
                unsafe { copy(one, size, "it") }
            };
            let declared = copied.and_then(&declare).map_err(|cause| format!("{what} {}: {cause}", index + 1))?;
            if all.iter().any(|other| name(other) == name(&declared)) {
                return Err(format!("it has {} twice", name(&declared)));
            }
            all.push(declared);
        }
        Ok(all)
    }
}

fn declare_backend(backend: abi::Backend) -> Result<DeclaredBackend, String> {
    // SAFETY: as for all texts.
    let name = unsafe { text(backend.name, TEXT_OCTETS_MAX) }.filter(|name| crate::note::is_backend_name(name));
    let name = name.ok_or("its name is none: 1 to 32 of a-z, 0-9, - and _, not \"users\"")?;
    let schema = schema(backend.config_schema)?;
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

fn declare(mech: abi::Mech) -> Result<Declared, String> {
    let name = |at: *const c_char| {
        // SAFETY: as for all texts.
        let text = unsafe { text(at, abi::NAME_MAX) }?;
        MechanismName::parse(text.as_bytes()).filter(|name| name.as_str() == text)
    };
    let plus_of = if mech.plus_of.is_null() { None } else { Some(name(mech.plus_of).ok_or("its plus_of is no name")?) };
    let schema = schema(mech.config_schema)?;
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

fn schema(at: *const c_char) -> Result<Option<String>, String> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: as for all texts.
    unsafe { text(at, SCHEMA_OCTETS_MAX) }.map(Some).ok_or("its config_schema is no text".to_owned())
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
