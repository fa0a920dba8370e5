//! The unsafe edge of the kit: maps a stranger's library into a child process, calls it, and finds out what it
//! touched. All `unsafe` of this crate is here.
//!
//! ```text
//! guard │ message, read-only │ guard      whatever a step reads or writes beyond what it was given meets a
//! guard │ in, result, keys   │ guard      guard page, a read-only page, or a pattern that is compared afterwards
//! guard │ output             │ guard
//! guard │ state              │ guard      seccomp: memory, futex, write to the pipe, exit; anything else traps
//! ```
//!
//! It runs in a child only: a fault ends it, after the handler has written what, where and during which event.
//! The library's calls of `malloc` and its like are counted by pointing its own table of imports (GOT) to
//! functions here; what the C library does inside of itself is not seen.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use portreeve_plugin_abi::{self as abi, action, mech_flag, out_flag, region};

use crate::event::{Answer, Event, Facts, Moment, Octets};

/// A broken rule and what was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The rule's id.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
}

impl Fault {
    /// One of `rule`.
    pub fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self { rule, text: text.into() }
    }
}

// ---------------------------------------------------------------- the library

/// A library in this process.
pub struct Library {
    plugin: abi::Plugin,
    /// What it says of itself, as far as it could be read.
    pub about: About,
}

/// What a library says of itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// Its mechanisms.
    pub mechanisms: Vec<Declared>,
}

/// A mechanism as its library describes it.
#[derive(Clone)]
pub struct Declared {
    mech: abi::Mech,
    /// Its name.
    pub name: String,
    /// For -PLUS: its sibling.
    pub plus_of: Option<String>,
    /// JSON Schema of its settings.
    pub schema: Option<String>,
}

impl std::fmt::Debug for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Declared {
    /// A set of flags.
    pub fn has(&self, flag: u32) -> bool {
        self.mech.flags & flag != 0
    }

    /// Whether it may ask for an effect.
    pub fn needs(&self, effect: u32) -> bool {
        self.mech.needs & action::need(effect) != 0
    }

    /// Whether its state has a destructor.
    pub fn drops_state(&self) -> bool {
        self.mech.drop_state.is_some()
    }

    /// Whether it has settings.
    pub fn is_configured(&self) -> bool {
        self.mech.configure.is_some()
    }

    /// Longest client message.
    pub fn message_octets_max(&self) -> usize {
        self.mech.max_message as usize
    }

    /// Most steps of an exchange.
    pub fn steps_max(&self) -> u32 {
        self.mech.max_steps
    }
}

impl Library {
    /// Loads a file and reads its descriptor. Faults of the descriptor are collected; with an error nothing
    /// can be done with the library.
    pub fn open(path: &Path) -> Result<(Library, Vec<Fault>), Fault> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Fault::new("A1", "a NUL in its path"))?;
        let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE;
        // SAFETY: runs the library's constructors; this is a child in a sandbox, made for that.
        let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
        if handle.is_null() {
            // SAFETY: after a failed dlopen it names the cause, a static string of this thread.
            let cause = unsafe { libc::dlerror() };
            let cause = if cause.is_null() {
                "no cause".into()
            } else {
                // SAFETY: as above, it ends with NUL.
                unsafe { CStr::from_ptr(cause) }.to_string_lossy().into_owned()
            };
            return Err(Fault::new("A1", format!("cannot be loaded: {cause}")));
        }
        // SAFETY: a handle that dlopen just gave, a name that ends with NUL.
        let entry = unsafe { libc::dlsym(handle, abi::ENTRY.as_ptr()) };
        if entry.is_null() {
            return Err(Fault::new("A1", "it does not export portreeve_plugin_v1"));
        }
        // SAFETY: the handle of a loaded library.
        unsafe { imports::redirect(handle) };
        // SAFETY: the symbol is this function, says the ABI; if it is not, the child ends.
        let entry: abi::EntryFn = unsafe { std::mem::transmute(entry) };
        let host: &'static abi::Host = Box::leak(Box::new(abi::Host {
            size: size_of::<abi::Host>() as u32,
            abi_major: abi::ABI_MAJOR,
            abi_minor: abi::ABI_MINOR,
            effects: 0x3f,
            version: c"check".as_ptr(),
            ctx: ptr::null_mut(),
            log: Some(ignore_log),
        }));
        let mut error = [0u8; 512];
        // SAFETY: `host` lives for ever, `error` during the call, with the length that is said.
        let at = unsafe { entry(host, error.as_mut_ptr().cast(), error.len()) };
        if at.is_null() {
            return Err(Fault::new("A2", format!("it refuses this host: {}", message(&error))));
        }
        // SAFETY: what a good library returns is its static descriptor.
        unsafe { describe(at) }
    }
}

extern "C" fn ignore_log(_: *mut c_void, _: i32, _: *const c_char, _: usize) {}

/// # Safety
/// `at` points to something of the library; if it is no descriptor, the child may end.
unsafe fn describe(at: *const abi::Plugin) -> Result<(Library, Vec<Fault>), Fault> {
    if !at.is_aligned() {
        return Err(Fault::new("A2", "its descriptor is not aligned"));
    }
    // SAFETY: the caller's promise; both lead the struct.
    let (magic, size) = unsafe { ((&raw const (*at).magic).read(), (&raw const (*at).size).read()) };
    if magic != abi::MAGIC {
        return Err(Fault::new("A2", format!("the descriptor begins with {magic:#018x}, not with PRV_MAGIC")));
    }
    // SAFETY: the caller's promise.
    let plugin = unsafe { copy(at, size) }.ok_or_else(|| {
        Fault::new("A3", format!("prv_plugin.size is {size}, at least {} in ABI 1.0", size_of::<abi::Plugin>()))
    })?;
    if plugin.abi_major != abi::ABI_MAJOR {
        let (found, spoken) = (plugin.abi_major, abi::ABI_MAJOR);
        return Err(Fault::new("A2", format!("the descriptor has ABI major {found}, this host speaks {spoken}")));
    }
    let mut faults = Vec::new();
    let mut about = About::default();
    // SAFETY: strings of a descriptor are static and end with NUL.
    let short = |at| unsafe { text(at, 128) };
    for (what, at) in [("id", plugin.id), ("version", plugin.version), ("build", plugin.build)] {
        match (short(at), what) {
            (Some(id), "id") => about.id = id,
            (Some(version), "version") => about.version = version,
            (Some(_), _) => {}
            (None, _) => {
                faults.push(Fault::new("A4", format!("{what} is NULL, empty, longer than 128 octets or not printable")))
            }
        }
    }
    let id_is_good = (1..=32).contains(&about.id.len())
        && about.id.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !about.id.is_empty() && !id_is_good {
        faults.push(Fault::new("A4", format!("the library id is {:?}", about.id)));
    }
    let (count, stride) = (plugin.mech_count, plugin.mech_stride as usize);
    if count == 0 && plugin.backend_count > 0 {
        return Ok((Library { plugin, about }, faults));
    }
    if count == 0 || count > 64 || plugin.mechs.is_null() {
        faults.push(Fault::new("A5", format!("mech_count is {count}; 1 to 64 can be, and mechs must not be NULL")));
        return Ok((Library { plugin, about }, faults));
    }
    let least = size_of::<abi::Mech>();
    if stride < least || stride > 4096 || !stride.is_multiple_of(align_of::<abi::Mech>()) {
        faults.push(Fault::new("A3", format!("mech_stride is {stride}, prv_mech has {least} octets")));
        return Ok((Library { plugin, about }, faults));
    }
    for index in 0..count as usize {
        // SAFETY: the array has `mech_count` entries, `mech_stride` octets apart.
        let at = unsafe { plugin.mechs.byte_add(index * stride) };
        // SAFETY: size leads the struct.
        let size = unsafe { (&raw const (*at).size).read() };
        // SAFETY: the library's array.
        let Some(mech) = (if size as usize > stride { None } else { unsafe { copy(at, size) } }) else {
            faults.push(Fault::new(
                "A3",
                format!(
                    "mechanism {}: size is {size}, prv_mech has {least} octets, mech_stride is {stride}",
                    index + 1
                ),
            ));
            continue;
        };
        // SAFETY: strings of a descriptor are static and end with NUL.
        let name = unsafe { text(mech.name, 64) }.unwrap_or_default();
        // SAFETY: as above.
        let plus_of = unsafe { text(mech.plus_of, 64) };
        // SAFETY: as above.
        let schema = unsafe { text(mech.config_schema, 64 << 10) };
        let declared = Declared { mech, name, plus_of, schema };
        judge(&declared, index, &about.mechanisms, &mut faults);
        about.mechanisms.push(declared);
    }
    Ok((Library { plugin, about }, faults))
}

/// A4 to A6 for one mechanism.
fn judge(declared: &Declared, index: usize, before: &[Declared], faults: &mut Vec<Fault>) {
    let Declared { mech, name, plus_of, schema } = declared;
    let is_name =
        |name: &str| sasl::MechanismName::parse(name.as_bytes()).is_some_and(|parsed| parsed.as_str() == name);
    let who = if name.is_empty() { format!("mechanism {}", index + 1) } else { name.clone() };
    let mut fault = |rule, text: String| faults.push(Fault::new(rule, format!("{who}: {text}")));
    if !is_name(name) {
        fault("A4", format!("the name {name:?} is no mechanism name"));
    }
    if before.iter().any(|other| other.name == *name) {
        fault("A4", "the name is there twice".into());
    }
    if !mech.plus_of.is_null() && !plus_of.as_deref().is_some_and(is_name) {
        fault("A4", "plus_of is no mechanism name".into());
    }
    if !mech.config_schema.is_null() && schema.is_none() {
        fault("D1", "config_schema is no text of at most 64 KiB".into());
    }
    for (wrong, text) in [
        (mech.state_size > abi::STATE_MAX, format!("state_size is {}", mech.state_size)),
        (
            mech.state_align > abi::ALIGN_MAX || !mech.state_align.max(1).is_power_of_two(),
            format!("state_align is {}", mech.state_align),
        ),
        (mech.max_message == 0 || mech.max_message > abi::MESSAGE_MAX, format!("max_message is {}", mech.max_message)),
        (mech.max_output > abi::OUTPUT_MAX, format!("max_output is {}", mech.max_output)),
        (mech.max_steps == 0 || mech.max_steps > abi::STEPS_MAX, format!("max_steps is {}", mech.max_steps)),
        (mech.strength > 100, format!("strength is {}", mech.strength)),
    ] {
        if wrong {
            fault("A5", text);
        }
    }
    let has = |flag| declared.has(flag);
    let binds = declared.needs(action::CHANNEL_BINDING);
    for (wrong, text) in [
        (mech.step.is_none(), "step is NULL"),
        (mech.flags & !mech_flag::ALL != 0, "a flag that ABI 1.0 does not know is set"),
        (mech.needs & !0x3f != 0, "needs names an effect that ABI 1.0 does not know"),
        (
            has(mech_flag::CLIENT_FIRST) && has(mech_flag::SERVER_FIRST),
            "CLIENT_FIRST and SERVER_FIRST contradict each other",
        ),
        (has(mech_flag::POD_STATE) && mech.drop_state.is_some(), "POD_STATE and a drop_state contradict each other"),
        (
            has(mech_flag::CHANNEL_BIND) && (plus_of.is_none() || !binds),
            "CHANNEL_BIND wants plus_of and PRV_NEED(PRV_ACT_CHANNEL_BINDING)",
        ),
        (!has(mech_flag::CHANNEL_BIND) && plus_of.is_some(), "plus_of without CHANNEL_BIND"),
        (
            has(mech_flag::CHANNEL_BIND) && !name.ends_with("-PLUS"),
            "CHANNEL_BIND, but the name does not end with -PLUS (RFC 5801 section 4)",
        ),
        (
            has(mech_flag::ONE_ROUNDTRIP) && has(mech_flag::SERVER_FIRST),
            "ONE_ROUNDTRIP cannot be when the server speaks first",
        ),
        (
            has(mech_flag::PLAINTEXT) && !has(mech_flag::ALLOW_NUL) && *name == "PLAIN",
            "PLAIN without ALLOW_NUL gets no message at all",
        ),
        (has(mech_flag::ANONYMOUS) && has(mech_flag::SELF_ASSERTS), "ANONYMOUS and SELF_ASSERTS contradict each other"),
        (
            mech.needs & !action::need(action::CHANNEL_BINDING) == 0
                && !has(mech_flag::ANONYMOUS)
                && !has(mech_flag::SELF_ASSERTS),
            "needs names nothing that could prove an identity",
        ),
    ] {
        if wrong {
            fault("A6", text.into());
        }
    }
}

/// # Safety
/// `size` octets at `at` are readable.
unsafe fn copy<T: Copy>(at: *const T, size: u32) -> Option<T> {
    if (size as usize) < size_of::<T>() {
        return None;
    }
    let mut own = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller's promise; `own` is apart, and every bit pattern is good for these structs (integers,
    // raw pointers, optional functions).
    unsafe {
        ptr::copy_nonoverlapping(at.cast::<u8>(), own.as_mut_ptr().cast(), size_of::<T>());
        Some(own.assume_init())
    }
}

/// # Safety
/// `at` is null or a string that ends with NUL.
unsafe fn text(at: *const c_char, octets_max: usize) -> Option<String> {
    if at.is_null() {
        return None;
    }
    let mut octets = Vec::new();
    loop {
        // SAFETY: no NUL so far.
        match unsafe { at.add(octets.len()).read() } as u8 {
            0 => break,
            _ if octets.len() == octets_max => return None,
            octet => octets.push(octet),
        }
    }
    let text = String::from_utf8(octets).ok()?;
    let printable = !text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\t'));
    (printable && !text.is_empty()).then_some(text)
}

fn message(buffer: &[u8]) -> String {
    let octets = CStr::from_bytes_until_nul(buffer).map_or(buffer, CStr::to_bytes);
    let text: String = String::from_utf8_lossy(octets).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.is_empty() { "without a reason".into() } else { text }
}

// ---------------------------------------------------------------- a configured mechanism

/// A mechanism with its settings.
pub struct Bound {
    mech: abi::Mech,
    plugin: *mut c_void,
    step: abi::StepFn,
    conf: *mut c_void,
    released: bool,
}

// SAFETY: step may run on any thread and `conf` is immutable, says the ABI; whether that is true is what M6 finds
// out, in a process that has nothing to lose.
unsafe impl Send for Bound {}
// SAFETY: as above.
unsafe impl Sync for Bound {}

impl Bound {
    /// Configures; an error is in the library's words.
    pub fn new(library: &Library, declared: &Declared, settings: &str) -> Result<Bound, String> {
        let (json, entries) = plugin_host::flatten(settings)?;
        let mech = declared.mech;
        let step = mech.step.ok_or("it has no step")?;
        let plugin = library.plugin.plugin;
        let mut bound = Bound { mech, plugin, step, conf: ptr::null_mut(), released: mech.configure.is_none() };
        let Some(configure) = mech.configure else {
            return if entries.is_empty() { Ok(bound) } else { Err("it has no settings".into()) };
        };
        let bytes = |text: &str| abi::Bytes::of(text.as_bytes());
        let kv: Vec<abi::Kv> = entries
            .iter()
            .map(|(key, value, kind)| abi::Kv { key: bytes(key), value: bytes(value), r#type: *kind, reserved: 0 })
            .collect();
        let config = abi::Config {
            size: size_of::<abi::Config>() as u32,
            kv_count: kv.len() as u32,
            kv_stride: size_of::<abi::Kv>() as u32,
            reserved: 0,
            json: bytes(&json),
            kv: kv.as_ptr(),
        };
        let mut error = [0u8; 512];
        // SAFETY: all arguments outlive the call, and `error` has the length that is said.
        let code = unsafe { configure(plugin, &config, &mut bound.conf, error.as_mut_ptr().cast(), error.len()) };
        if code != 0 {
            bound.released = true;
            return Err(message(&error));
        }
        Ok(bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(release) = self.mech.release.filter(|_| !self.released) {
            // SAFETY: configure made `conf`, and nobody steps any more.
            unsafe { release(self.plugin, self.conf) };
        }
    }
}

// ---------------------------------------------------------------- memory with guards

const PAGE: usize = 4096;
const PATTERN: u8 = 0xc5;

/// At which end of its pages an object lies: beyond the other end is only the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The octet behind it is a guard page.
    End,
    /// The octet before it is a guard page.
    Start,
}

/// Pages between two guard pages.
struct Fence {
    body: *mut u8,
    octets: usize,
    at: usize,
    len: usize,
}

// SAFETY: the pages belong to this value alone.
unsafe impl Send for Fence {}

impl Fence {
    fn new(what: Area, octets: usize) -> io::Result<Self> {
        let octets = octets.max(1).next_multiple_of(PAGE);
        // SAFETY: a fresh anonymous mapping.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                octets + 2 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: inside of the mapping.
        let body = unsafe { start.cast::<u8>().add(PAGE) };
        // SAFETY: whole pages of the mapping just made.
        if unsafe { libc::mprotect(body.cast(), octets, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        fault::remember(what, body as usize, octets);
        Ok(Self { body, octets, at: 0, len: 0 })
    }

    /// Makes room for an object at an edge; everything around it is the pattern.
    fn place(&mut self, len: usize, align: usize, edge: Edge, fill: u8) -> *mut u8 {
        self.len = len.min(self.octets);
        self.at = match edge {
            Edge::Start => 0,
            Edge::End => (self.octets - self.len) / align.max(1) * align.max(1),
        };
        // SAFETY: `octets` are mapped and ours.
        unsafe {
            ptr::write_bytes(self.body, PATTERN, self.octets);
            ptr::write_bytes(self.body.add(self.at), fill, self.len);
            self.body.add(self.at)
        }
    }

    fn octets(&self) -> &[u8] {
        // SAFETY: `len` octets from `at` are mapped, ours, and initialised.
        unsafe { std::slice::from_raw_parts(self.body.add(self.at), self.len) }
    }

    /// Whether the pattern around the object is whole.
    fn is_intact(&self) -> bool {
        // SAFETY: `octets` are mapped, ours, and initialised.
        let all = unsafe { std::slice::from_raw_parts(self.body, self.octets) };
        let (before, rest) = all.split_at(self.at);
        let after = rest.get(self.len..).unwrap_or_default();
        before.iter().chain(after).all(|octet| *octet == PATTERN)
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; nobody points there any more.
        unsafe { libc::munmap(self.body.sub(PAGE).cast(), self.octets + 2 * PAGE) };
    }
}

/// The same pages twice: we write to one view, the library sees the read-only one, between guards.
struct ReadOnly {
    write: *mut u8,
    read: *mut u8,
    octets: usize,
}

// SAFETY: the pages belong to this value alone.
unsafe impl Send for ReadOnly {}

impl ReadOnly {
    fn new(what: Area, octets: usize) -> io::Result<Self> {
        let octets = octets.max(1).next_multiple_of(PAGE);
        let file = rustix::fs::memfd_create("portreeve-check", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, octets as u64)?;
        let fd = file.as_raw_fd();
        // SAFETY: fresh mappings; the second one replaces pages of a mapping that was just reserved for it.
        let (write, read) = unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let write = libc::mmap(ptr::null_mut(), octets, both, libc::MAP_SHARED, fd, 0);
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let room = libc::mmap(ptr::null_mut(), octets + 2 * PAGE, libc::PROT_NONE, anonymous, -1, 0);
            if write == libc::MAP_FAILED || room == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let at = room.cast::<u8>().add(PAGE).cast();
            (write, libc::mmap(at, octets, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_FIXED, fd, 0))
        };
        if read == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        fault::remember(what, read as usize, octets);
        Ok(Self { write: write.cast(), read: read.cast(), octets })
    }

    /// Copies octets to a place; returns where the library sees them.
    fn put(&mut self, at: usize, octets: &[u8]) -> *const u8 {
        let at = at.min(self.octets);
        let len = octets.len().min(self.octets - at);
        // SAFETY: `at + len` is within the mapping; the source is a slice of ours.
        unsafe {
            ptr::copy_nonoverlapping(octets.as_ptr(), self.write.add(at), len);
            self.read.add(at)
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; nobody points there any more.
        unsafe {
            libc::munmap(self.write.cast(), self.octets);
            libc::munmap(self.read.sub(PAGE).cast(), self.octets + 2 * PAGE);
        }
    }
}

/// What a step is told beside the message, one piece behind the other.
struct Papers {
    pages: ReadOnly,
    used: usize,
}

impl Papers {
    fn bytes(&mut self, octets: &[u8]) -> abi::Bytes {
        let at = self.used;
        self.used = (at + octets.len()).next_multiple_of(16);
        abi::Bytes { ptr: self.pages.put(at, octets), len: octets.len() }
    }

    fn put<T: Copy>(&mut self, value: &T) -> *const T {
        // SAFETY: the octets of a `repr(C)` struct of the ABI: it has no padding that is not a field.
        let octets = unsafe { std::slice::from_raw_parts(ptr::from_ref(value).cast::<u8>(), size_of::<T>()) };
        self.bytes(octets).ptr.cast()
    }
}

/// Memory for exchanges of one mechanism, one at a time.
pub struct Room {
    message: ReadOnly,
    papers: Papers,
    output: Fence,
    out: Fence,
    state: Fence,
    pinned: abi::Bytes,
    message_octets: usize,
    edge: Edge,
    fill: u8,
    begun: bool,
}

// SAFETY: the pages belong to this value alone; `pinned` points into them.
unsafe impl Send for Room {}

/// Octets of everything that one step is told beside the message.
const PAPERS_OCTETS: usize = 192 << 10;

impl Room {
    /// For this mechanism.
    pub fn new(bound: &Bound) -> io::Result<Self> {
        let output = (bound.mech.max_output + abi::DIAG_MAX) as usize;
        Ok(Self {
            message: ReadOnly::new(Area::Message, bound.mech.max_message as usize)?,
            papers: Papers { pages: ReadOnly::new(Area::Input, PAPERS_OCTETS)?, used: 0 },
            output: Fence::new(Area::Output, output)?,
            out: Fence::new(Area::Out, size_of::<abi::Out>())?,
            state: Fence::new(Area::State, bound.mech.state_size as usize)?,
            pinned: abi::Bytes::EMPTY,
            message_octets: 0,
            edge: Edge::End,
            fill: 0,
            begun: false,
        })
    }

    /// A new exchange: the state is zeroed. `fill` is what the scratch holds before a step: nobody may care.
    pub fn begin(&mut self, bound: &Bound, edge: Edge, fill: u8) {
        (self.edge, self.fill, self.begun) = (edge, fill, false);
        self.state.place(bound.mech.state_size as usize, bound.mech.state_align as usize, edge, 0);
    }

    /// One step. The answer was checked as the host checks it.
    pub fn step(&mut self, bound: &Bound, facts: &Facts, moment: &Moment) -> Result<Answer, Fault> {
        let message = moment.event.message();
        if let Some(message) = message.or(matches!(moment.event, Event::Start(None)).then_some(b"")) {
            let at =
                if self.edge == Edge::End { self.message.octets - message.len().min(self.message.octets) } else { 0 };
            self.pinned = abi::Bytes { ptr: self.message.put(at, message), len: message.len() };
            self.message_octets = message.len();
        }
        let input = self.input(facts, moment);
        let cap = (bound.mech.max_output + abi::DIAG_MAX) as usize;
        let buf = self.output.place(cap, 1, self.edge, self.fill);
        let out = self.out.place(size_of::<abi::Out>(), align_of::<abi::Out>(), self.edge, 0).cast::<abi::Out>();
        // SAFETY: placed there, large enough, aligned: pages are, and the size is a multiple of the alignment.
        unsafe { out.write(abi::Out { buf, cap: cap as u32, ..abi::Out::PRESET }) };
        // SAFETY: inside of the fence.
        let state = unsafe { self.state.body.add(self.state.at) };
        fault::note(&moment.event, self.pinned);
        // SAFETY: this thread's errno: what it was before is nothing that a step may look at.
        unsafe { *libc::__errno_location() = i32::from(self.fill) };
        self.begun = true;
        // SAFETY: state, input, message and out are mapped and stay so, `conf` came from configure; what the
        // library does with them is what is being found out, in a process that has nothing to lose.
        unsafe { (bound.step)(bound.conf, state.cast(), input, out) };
        fault::over();
        if !self.output.is_intact() {
            return Err(Fault::new("M2", format!("it wrote outside of the output ({cap} octets)")));
        }
        if !self.state.is_intact() {
            return Err(Fault::new("M2", format!("it wrote outside of its state ({} octets)", bound.mech.state_size)));
        }
        if !self.out.is_intact() {
            return Err(Fault::new("M2", "it wrote outside of prv_out"));
        }
        // SAFETY: written above, and every bit pattern is good.
        let out = unsafe { out.read() };
        self.read(bound, &out, buf, cap as u32)
    }

    /// The exchange is over.
    pub fn finish(&mut self, bound: &Bound) -> Result<(), Fault> {
        let Some(drop_state) = bound.mech.drop_state.filter(|_| std::mem::take(&mut self.begun)) else { return Ok(()) };
        // SAFETY: inside of the fence, as in the steps before.
        unsafe { drop_state(bound.conf, self.state.body.add(self.state.at).cast()) };
        if self.state.is_intact() { Ok(()) } else { Err(Fault::new("M2", "drop_state wrote outside of the state")) }
    }

    fn input(&mut self, facts: &Facts, moment: &Moment) -> *const abi::In {
        self.papers.used = 0;
        let papers = &mut self.papers;
        let result = match &moment.event {
            Event::Result(outcome) => {
                let scram = outcome.scram.as_ref().map(|key| {
                    let key = abi::ScramKey {
                        size: size_of::<abi::ScramKey>() as u32,
                        iterations: key.iterations,
                        hash_len: key.stored_key.0.len() as u32,
                        reserved: 0,
                        salt: papers.bytes(&key.salt.0),
                        stored_key: papers.bytes(&key.stored_key.0),
                        server_key: papers.bytes(&key.server_key.0),
                    };
                    papers.put(&key)
                });
                let result = abi::EffectResult {
                    size: size_of::<abi::EffectResult>() as u32,
                    effect: outcome.effect,
                    status: outcome.status,
                    handle: outcome.handle,
                    data: papers.bytes(&outcome.data.0),
                    scram: scram.unwrap_or(ptr::null()),
                };
                papers.put(&result)
            }
            _ => ptr::null(),
        };
        let initial = matches!(moment.event, Event::Start(Some(_)));
        let input = abi::In {
            size: size_of::<abi::In>() as u32,
            event: moment.event.number(),
            exchange: 7,
            unix_ms: facts.unix_ms,
            conn_flags: facts.conn_flags | if initial { abi::conn::HAS_IR } else { 0 },
            cb_types: facts.cb_types,
            msg: self.pinned,
            result,
            entropy: papers.bytes(&moment.entropy.0),
            server_name: papers.bytes(facts.server_name.as_bytes()),
            client_ip: papers.bytes(&facts.client_ip.0),
            listener: papers.bytes(facts.listener.as_bytes()),
            sni: papers.bytes(facts.sni.as_bytes()),
            session_id: 7,
            tls_version: facts.tls_version,
            reserved: 0,
        };
        papers.put(&input)
    }

    /// From numbers to an answer, with the checks of the host's adapter.
    fn read(&self, bound: &Bound, out: &abi::Out, buf: *mut u8, cap: u32) -> Result<Answer, Fault> {
        let fault = |text: String| Err(Fault::new("M2", text));
        if out.buf != buf || out.cap != cap {
            return fault("it changed out->buf or out->cap".into());
        }
        if out.used > cap {
            return fault(format!("out->used is {}, there is room for {cap}", out.used));
        }
        if out.flags & !(out_flag::FINAL_DATA | out_flag::SELF_ASSERTED) != 0 {
            return fault(format!("out->flags is {:#x}: an unknown flag", out.flags));
        }
        if out.flags & out_flag::SELF_ASSERTED != 0 && bound.mech.flags & mech_flag::SELF_ASSERTS == 0 {
            return Err(Fault::new("A6", "it answers SELF_ASSERTED without having declared PRV_M_SELF_ASSERTS"));
        }
        let area = |what: &str, slice: abi::Slice| {
            let octets = match slice.region {
                region::NONE if slice.len == 0 => return Ok(Octets::default()),
                region::MSG => self.message_slice(),
                region::OUT => self.output.octets().get(..out.used as usize).unwrap_or_default(),
                region::STATE => self.state.octets(),
                other => {
                    return Err(Fault::new(
                        "M2",
                        format!("out->{what} is in region {other}, with {} octets", slice.len),
                    ));
                }
            };
            let start = slice.off as usize;
            match start.checked_add(slice.len as usize).and_then(|end| octets.get(start..end)) {
                Some(octets) => Ok(Octets::from(octets)),
                None => Err(Fault::new(
                    "M2",
                    format!(
                        "out->{what} is octets {start} to {} of a region that has {}",
                        start + slice.len as usize,
                        octets.len()
                    ),
                )),
            }
        };
        let sent = |slice: abi::Slice| {
            if slice.len > bound.mech.max_output {
                let max = bound.mech.max_output;
                return Err(Fault::new("M2", format!("it sends {} octets, max_output is {max}", slice.len)));
            }
            area("data", slice)
        };
        let mut answer = Answer { action: out.action, arg: out.arg, flags: out.flags, ..Answer::default() };
        match out.action {
            action::CHALLENGE => (answer.arg, answer.flags, answer.data) = (0, 0, sent(out.data)?),
            action::SUCCESS | action::FAIL => {
                if out.flags & out_flag::FINAL_DATA != 0 {
                    answer.data = sent(out.data)?;
                }
                if out.action == action::FAIL {
                    if !(1..=10).contains(&out.arg) {
                        return fault(format!("it fails with the class {}, which is none", out.arg));
                    }
                    answer.diag = area("diag", out.diag)?;
                } else {
                    (answer.arg, answer.handle) = (0, out.handle);
                    if out.flags & out_flag::SELF_ASSERTED != 0 {
                        answer.authcid = area("authcid", out.authcid)?;
                    }
                }
            }
            action::OFFLOAD => {
                if bound.mech.flags & (mech_flag::MAY_OFFLOAD | mech_flag::OFFLOAD_ALL) == 0 {
                    return Err(Fault::new("A6", "it answers OFFLOAD without having declared PRV_M_MAY_OFFLOAD"));
                }
                (answer.arg, answer.flags) = (0, 0);
            }
            effect @ 16..=79 if bound.mech.needs & action::need(effect) == 0 => {
                let name = crate::event::effect_name(effect);
                return Err(Fault::new("A6", format!("it asks for {name}, which .needs does not name")));
            }
            action::VERIFY_PASSWORD..=action::BACKEND_CALL => {
                answer.authcid = area("authcid", out.authcid)?;
                answer.authzid = area("authzid", out.authzid)?;
                answer.data = area("data", out.data)?;
                answer.data2 = area("data2", out.data2)?;
            }
            number => return fault(format!("it answers with the action {number}, which is none")),
        }
        Ok(answer)
    }

    fn message_slice(&self) -> &[u8] {
        if self.message_octets == 0 {
            return &[];
        }
        // SAFETY: what `step` put there; nobody writes before the next step.
        unsafe { std::slice::from_raw_parts(self.pinned.ptr, self.message_octets) }
    }
}

// ---------------------------------------------------------------- allocations of the library

/// Calls of `malloc` and its like so far, by the library itself.
pub fn allocations() -> u64 {
    imports::ALLOCATIONS.load(Ordering::Relaxed)
}

/// From now on each allocation of the library is remembered until it is freed.
pub fn track(on: bool) {
    let mut live = imports::LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *live = on.then(imports::Live::default);
}

/// How many allocations are not freed.
pub fn outstanding() -> usize {
    let live = imports::LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    live.as_ref().map_or(0, |live| live.held.len())
}

/// The library's imports, pointed elsewhere.
mod imports {
    use super::*;

    pub static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
    pub static LIVE: Mutex<Option<Live>> = Mutex::new(None);

    #[derive(Default)]
    pub struct Live {
        pub held: BTreeSet<usize>,
        freed: BTreeSet<usize>,
    }

    fn took(at: *mut c_void) -> *mut c_void {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if let Some(live) = LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut()
            && !at.is_null()
        {
            live.freed.remove(&(at as usize));
            live.held.insert(at as usize);
        }
        at
    }

    fn gave(at: *mut c_void) {
        let mut live = LIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(live) = live.as_mut().filter(|_| !at.is_null()) else { return };
        if live.held.remove(&(at as usize)) {
            live.freed.insert(at as usize);
        } else if live.freed.contains(&(at as usize)) {
            fault::end("double free");
        }
    }

    /// The originals of C++'s operators, in the order of `NEW`.
    static ORIGINALS: [AtomicUsize; 7] = [const { AtomicUsize::new(0) }; 7];
    const NEW: [&CStr; 7] = [c"_Znwm", c"_Znam", c"_ZdlPv", c"_ZdaPv", c"_ZdlPvm", c"_ZdaPvm", c"strdup"];

    fn original<F: Copy>(index: usize) -> F {
        let at = ORIGINALS[index].load(Ordering::Relaxed);
        const { assert!(size_of::<F>() == size_of::<usize>()) };
        // SAFETY: stored by `redirect` from the library's own slot for this name, so it has this type; and a
        // wrapper runs only after that.
        unsafe { std::mem::transmute_copy(&at) }
    }

    // SAFETY (all of these): called by the library with what it would have handed to the original, which gets it.
    unsafe extern "C" fn malloc(octets: usize) -> *mut c_void {
        // SAFETY: as above.
        took(unsafe { libc::malloc(octets) })
    }
    unsafe extern "C" fn calloc(count: usize, octets: usize) -> *mut c_void {
        // SAFETY: as above.
        took(unsafe { libc::calloc(count, octets) })
    }
    unsafe extern "C" fn realloc(at: *mut c_void, octets: usize) -> *mut c_void {
        gave(at);
        // SAFETY: as above.
        took(unsafe { libc::realloc(at, octets) })
    }
    unsafe extern "C" fn posix_memalign(to: *mut *mut c_void, align: usize, octets: usize) -> c_int {
        // SAFETY: as above.
        unsafe {
            let code = libc::posix_memalign(to, align, octets);
            if code == 0 {
                took(*to);
            }
            code
        }
    }
    unsafe extern "C" fn aligned_alloc(align: usize, octets: usize) -> *mut c_void {
        // SAFETY: as above.
        took(unsafe { libc::aligned_alloc(align, octets) })
    }
    unsafe extern "C" fn free(at: *mut c_void) {
        gave(at);
        // SAFETY: as above.
        unsafe { libc::free(at) }
    }
    extern "C" fn new(octets: usize) -> *mut c_void {
        took(original::<extern "C" fn(usize) -> *mut c_void>(0)(octets))
    }
    extern "C" fn new_array(octets: usize) -> *mut c_void {
        took(original::<extern "C" fn(usize) -> *mut c_void>(1)(octets))
    }
    extern "C" fn delete(at: *mut c_void) {
        gave(at);
        original::<extern "C" fn(*mut c_void)>(2)(at);
    }
    extern "C" fn delete_array(at: *mut c_void) {
        gave(at);
        original::<extern "C" fn(*mut c_void)>(3)(at);
    }
    extern "C" fn delete_sized(at: *mut c_void, octets: usize) {
        gave(at);
        original::<extern "C" fn(*mut c_void, usize)>(4)(at, octets);
    }
    extern "C" fn delete_array_sized(at: *mut c_void, octets: usize) {
        gave(at);
        original::<extern "C" fn(*mut c_void, usize)>(5)(at, octets);
    }
    extern "C" fn strdup(text: *const c_char) -> *mut c_void {
        took(original::<extern "C" fn(*const c_char) -> *mut c_void>(6)(text))
    }
    extern "C" fn abort() {
        fault::end("abort");
    }
    extern "C" fn assert_fail(_: *const c_char, _: *const c_char, _: u32, _: *const c_char) {
        fault::end("assert");
    }
    extern "C" fn exit(_: c_int) {
        fault::end("exit");
    }

    fn wrapper(name: &CStr) -> Option<usize> {
        Some(match name.to_bytes() {
            b"malloc" => malloc as *const () as usize,
            b"calloc" => calloc as *const () as usize,
            b"realloc" => realloc as *const () as usize,
            b"posix_memalign" => posix_memalign as *const () as usize,
            b"aligned_alloc" => aligned_alloc as *const () as usize,
            b"free" => free as *const () as usize,
            b"_Znwm" => new as *const () as usize,
            b"_Znam" => new_array as *const () as usize,
            b"_ZdlPv" => delete as *const () as usize,
            b"_ZdaPv" => delete_array as *const () as usize,
            b"_ZdlPvm" => delete_sized as *const () as usize,
            b"_ZdaPvm" => delete_array_sized as *const () as usize,
            b"strdup" => strdup as *const () as usize,
            b"abort" => abort as *const () as usize,
            b"__assert_fail" => assert_fail as *const () as usize,
            b"exit" | b"_exit" | b"_Exit" | b"quick_exit" => exit as *const () as usize,
            _ => return None,
        })
    }

    #[repr(C)]
    struct LinkMap {
        address: usize,
        name: *const c_char,
        dynamic: *const Dynamic,
    }
    #[repr(C)]
    struct Dynamic {
        tag: i64,
        value: usize,
    }
    #[repr(C)]
    struct Relocation {
        offset: usize,
        info: u64,
        addend: i64,
    }
    #[repr(C)]
    struct Symbol {
        name: u32,
        info: u8,
        other: u8,
        section: u16,
        value: u64,
        size: u64,
    }

    /// Relocations that hold a function's address: a word, GLOB_DAT, JUMP_SLOT.
    const KINDS: [u32; 3] = if cfg!(target_arch = "x86_64") {
        [1, 6, 7]
    } else if cfg!(target_arch = "aarch64") {
        [257, 1025, 1026]
    } else {
        [2, 2, 5]
    };

    /// Points the imports named above to the functions above, in this library only.
    ///
    /// # Safety
    /// `handle` is from dlopen, of a library whose relocations are done (RTLD_NOW).
    pub unsafe fn redirect(handle: *mut c_void) {
        const DI_LINKMAP: c_int = 2;
        let mut map: *const LinkMap = ptr::null();
        // SAFETY: the caller's handle; the call writes one pointer. The structures are those of the System V ABI,
        // read as the dynamic linker has left them.
        unsafe {
            if libc::dlinfo(handle, DI_LINKMAP, (&raw mut map).cast()) != 0 || map.is_null() {
                return;
            }
            let (base, mut entry) = ((*map).address, (*map).dynamic);
            let (mut symbols, mut strings, mut tables) = (0, 0, [(0, 0); 2]);
            while (*entry).tag != 0 {
                let value = (*entry).value;
                // glibc has made addresses of them already, others have not.
                let address = if value < base { base + value } else { value };
                match (*entry).tag {
                    5 => strings = address,
                    6 => symbols = address,
                    7 => tables[0].0 = address,
                    8 => tables[0].1 = value,
                    23 => tables[1].0 = address,
                    2 => tables[1].1 = value,
                    _ => {}
                }
                entry = entry.add(1);
            }
            if symbols == 0 || strings == 0 {
                return;
            }
            for (table, octets) in tables.into_iter().filter(|(table, _)| *table != 0) {
                for index in 0..octets / size_of::<Relocation>() {
                    let relocation = (table as *const Relocation).add(index);
                    let (kind, symbol) = ((*relocation).info as u32, ((*relocation).info >> 32) as usize);
                    if !KINDS.contains(&kind) || (*relocation).addend != 0 {
                        continue;
                    }
                    let symbol = (symbols as *const Symbol).add(symbol);
                    let name = CStr::from_ptr((strings as *const c_char).add((*symbol).name as usize));
                    let Some(to) = wrapper(name) else { continue };
                    let slot = (base + (*relocation).offset) as *mut usize;
                    if let Some(index) = NEW.iter().position(|known| *known == name) {
                        ORIGINALS[index].store(slot.read(), Ordering::Relaxed);
                    }
                    // RELRO has made the page read-only.
                    let page = slot as usize & !(PAGE - 1);
                    if libc::mprotect(page as *mut c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE) == 0 {
                        slot.write(to);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------- faults

/// What a fault may have hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The client's message.
    Message = 1,
    /// `prv_in` and what it names.
    Input = 2,
    /// The scratch.
    Output = 3,
    /// `prv_out`.
    Out = 4,
    /// The state.
    State = 5,
}

/// The status with which the child ends itself; the filter lets no other through.
const OUR_EXIT: c_int = 0x5a17;
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// From here on a fault writes a line to `pipe` and ends the process.
pub fn catch_faults(pipe: BorrowedFd<'_>) {
    PIPE.store(pipe.as_raw_fd(), Ordering::Relaxed);
    for signal in [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGSYS,
        libc::SIGTRAP,
        libc::SIGTERM,
    ] {
        // SAFETY: the handler is for this kind of call, and touches nothing but atomics, its own thread's cell,
        // a buffer on the stack and the pipe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = fault::handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

/// From here on the other threads are interrupted every 100 µs, in the middle of a step as well, and give way to one
/// another: two steps meet although the machine has few processors, or none to spare.
pub fn interrupt_others() {
    extern "C" fn give_way(_: c_int) {
        // SAFETY: takes nothing; errno is this thread's, and the step that was interrupted may be about to read it.
        unsafe {
            let errno = *libc::__errno_location();
            libc::sched_yield();
            *libc::__errno_location() = errno;
        }
    }
    // SAFETY: structures of our own, that outlive the calls; the handler touches nothing but errno.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = give_way as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &action, ptr::null_mut());
        let mut ours: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut ours);
        libc::sigaddset(&mut ours, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &ours, ptr::null_mut());
        let every = libc::timeval { tv_sec: 0, tv_usec: 100 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut());
    }
}

/// Ends the child as the filter wants it.
pub fn leave() -> ! {
    // SAFETY: ends the process.
    unsafe {
        libc::syscall(libc::SYS_exit_group, OUR_EXIT);
        libc::abort()
    }
}

mod fault {
    use super::*;

    const SLOTS: usize = 128;
    static FENCES: [[AtomicUsize; 3]; SLOTS] = [const { [const { AtomicUsize::new(0) }; 3] }; SLOTS];
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    /// A fault near these pages is a fault with this area.
    pub fn remember(what: Area, start: usize, octets: usize) {
        let slot = &FENCES[NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS];
        slot[0].store(0, Ordering::Relaxed);
        slot[1].store(start, Ordering::Relaxed);
        slot[2].store(octets, Ordering::Relaxed);
        slot[0].store(what as usize, Ordering::Relaxed);
    }

    thread_local! {
        static EVENT: Cell<u32> = const { Cell::new(0) };
        static MESSAGE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    }
    static STEPS: AtomicU64 = AtomicU64::new(0);

    pub fn note(event: &Event, message: abi::Bytes) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        MESSAGE.set((message.ptr as usize, message.len));
        EVENT.set(event.number());
    }

    pub fn over() {
        EVENT.set(0);
    }

    pub extern "C" fn handle(signal: c_int, info: *const libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel's: the address follows the three numbers, and for SIGSYS the number of the call
        // follows that (sigaction(2)).
        let (address, call) = unsafe {
            let words = info.cast::<u8>();
            (words.add(16).cast::<usize>().read(), words.add(24).cast::<i32>().read())
        };
        let is_access = signal == libc::SIGSEGV || signal == libc::SIGBUS;
        let place = if signal == libc::SIGTERM {
            "timeout"
        } else if signal == libc::SIGSYS {
            "system call"
        } else if is_access {
            place(address)
        } else {
            "signal"
        };
        let call = if signal == libc::SIGSYS { call } else { -1 };
        report(signal, place, call, first_argument(context));
    }

    fn place(address: usize) -> &'static str {
        let here = ptr::from_ref(&address) as usize;
        for [what, start, octets] in &FENCES {
            let (start, octets) = (start.load(Ordering::Relaxed), octets.load(Ordering::Relaxed));
            let (before, inside) = (address < start, address < start.wrapping_add(octets));
            if address < start.wrapping_sub(PAGE) || address >= start + octets + PAGE || start == 0 {
                continue;
            }
            return match (what.load(Ordering::Relaxed), before, inside) {
                (1, true, _) => "before the message",
                (1, _, true) => "wrote to the message",
                (1, ..) => "behind the message",
                (2, true, _) => "before prv_in",
                (2, _, true) => "wrote to prv_in",
                (2, ..) => "behind prv_in",
                (3, true, _) => "before the output",
                (3, ..) => "behind the output",
                (4, ..) => "outside of prv_out",
                (5, true, _) => "before the state",
                (5, ..) => "behind the state",
                _ => continue,
            };
        }
        match address {
            0..=0xffff => "NULL",
            // The handler has a stack of its own, so this only tells heap from stack roughly.
            _ if address.abs_diff(here) < 64 << 20 => "stack",
            _ => "elsewhere",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn first_argument(context: *mut c_void) -> i64 {
        // SAFETY: the kernel hands a ucontext to a handler with SA_SIGINFO.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RDI as usize] }
    }
    #[cfg(target_arch = "aarch64")]
    fn first_argument(context: *mut c_void) -> i64 {
        // SAFETY: the kernel hands a ucontext to a handler with SA_SIGINFO.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.regs[0] as i64 }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn first_argument(_: *mut c_void) -> i64 {
        -1
    }

    /// For what is found without a signal.
    pub fn end(place: &'static str) -> ! {
        report(0, place, -1, -1)
    }

    fn report(signal: c_int, place: &str, call: i32, argument: i64) -> ! {
        let mut line = Line { octets: [0; 1024], len: 0 };
        line.put("{\"died\":{\"signal\":");
        line.number(i64::from(signal));
        line.put(",\"place\":\"");
        line.put(place);
        line.put("\",\"call\":");
        line.number(i64::from(call));
        line.put(",\"argument\":");
        line.number(argument.clamp(-1, 1 << 31));
        line.put(",\"event\":");
        line.number(i64::from(EVENT.get()));
        line.put(",\"step\":");
        line.number(STEPS.load(Ordering::Relaxed) as i64);
        line.put(",\"message\":\"");
        let (at, len) = MESSAGE.get();
        if EVENT.get() != 0 && at != 0 {
            for index in 0..len.min(160) {
                // SAFETY: the message that the step was given: mapped, readable, `len` octets.
                let octet = unsafe { (at as *const u8).add(index).read() };
                let digits = b"0123456789abcdef";
                line.octet(digits[usize::from(octet >> 4)]);
                line.octet(digits[usize::from(octet & 15)]);
            }
        }
        line.put("\",\"message_octets\":");
        line.number(len as i64);
        line.put("}}\n");
        // SAFETY: the buffer is ours.
        unsafe { libc::write(PIPE.load(Ordering::Relaxed), line.octets.as_ptr().cast(), line.len) };
        leave()
    }

    struct Line {
        octets: [u8; 1024],
        len: usize,
    }

    impl Line {
        fn octet(&mut self, octet: u8) {
            if let Some(to) = self.octets.get_mut(self.len) {
                *to = octet;
                self.len += 1;
            }
        }
        fn put(&mut self, text: &str) {
            text.bytes().for_each(|octet| self.octet(octet));
        }
        fn number(&mut self, number: i64) {
            if number < 0 {
                self.octet(b'-');
            }
            let (mut digits, mut at, mut rest) = ([0; 20], 20, number.unsigned_abs());
            loop {
                at -= 1;
                digits[at] = b'0' + (rest % 10) as u8;
                rest /= 10;
                if rest == 0 {
                    break;
                }
            }
            digits[at..].iter().for_each(|digit| self.octet(*digit));
        }
    }
}

// ---------------------------------------------------------------- seccomp

/// A system call that is let through, perhaps only with this argument.
struct Let(i64, Argument);

enum Argument {
    Any,
    /// The argument with this number is this.
    Is(u32, u32),
    /// The argument with this number has none of these bits.
    Without(u32, u32),
}

/// Before a stranger's constructors run: files can be read, threads and memory had; nothing can be written,
/// started or connected to. What is refused fails with EPERM, so that a library that looks around still loads.
pub fn enter_loading() -> io::Result<()> {
    use Argument::{Any, Is, Without};
    let pipe = PIPE.load(Ordering::Relaxed) as u32;
    let writing = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;
    let mut list = vec![
        Let(libc::SYS_openat, Without(2, writing)),
        Let(libc::SYS_write, Is(0, pipe)),
        Let(libc::SYS_write, Is(0, 2)),
        Let(libc::SYS_writev, Is(0, 2)),
        Let(libc::SYS_memfd_create, Any),
        Let(libc::SYS_ftruncate, Any),
    ];
    let plain = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_close,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_lseek,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_seccomp,
        libc::SYS_prctl,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_yield,
        libc::SYS_fcntl,
        libc::SYS_statx,
        libc::SYS_rseq,
        libc::SYS_set_robust_list,
    ];
    list.extend(plain.map(|call| Let(call, Any)));
    install(&list, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32)
}

/// Before steps: memory, futex, write to the pipe, exit. Anything else traps, and the handler says what it was.
/// `requests` lets the child read standard input, `clock` lets it read the clock where the vDSO has none.
pub fn enter_stepping(requests: bool, clock: bool) -> io::Result<()> {
    use Argument::{Any, Is};
    let pipe = PIPE.load(Ordering::Relaxed) as u32;
    let mut list = vec![Let(libc::SYS_write, Is(0, pipe)), Let(libc::SYS_exit_group, Is(0, OUR_EXIT as u32))];
    let plain = [
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sched_yield,
    ];
    list.extend(plain.map(|call| Let(call, Any)));
    if requests {
        list.push(Let(libc::SYS_read, Is(0, 0)));
    }
    if clock {
        list.push(Let(libc::SYS_clock_gettime, Any));
    }
    install(&list, libc::SECCOMP_RET_TRAP)
}

fn install(list: &[Let], otherwise: u32) -> io::Result<()> {
    const MACHINE: u32 = if cfg!(target_arch = "x86_64") {
        0xc000_003e
    } else if cfg!(target_arch = "aarch64") {
        0xc000_00b7
    } else {
        0xc000_00f3
    };
    // Offsets in seccomp_data: number, machine, then six arguments of eight octets, low half first.
    const NUMBER: u32 = 0;
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let allow = op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
    let mut program = vec![
        op(LOAD, 4, 0, 0),
        op(JUMP_EQUAL, MACHINE, 1, 0),
        op(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        op(LOAD, NUMBER, 0, 0),
    ];
    for Let(call, argument) in list {
        let call = *call as u32;
        match argument {
            Argument::Any => program.extend([op(JUMP_EQUAL, call, 0, 1), allow]),
            Argument::Is(index, value) => program.extend([
                op(JUMP_EQUAL, call, 0, 4),
                op(LOAD, 16 + 8 * index, 0, 0),
                op(JUMP_EQUAL, *value, 0, 1),
                allow,
                op(LOAD, NUMBER, 0, 0),
            ]),
            Argument::Without(index, bits) => program.extend([
                op(JUMP_EQUAL, call, 0, 4),
                op(LOAD, 16 + 8 * index, 0, 0),
                op(JUMP_SET, *bits, 1, 0),
                allow,
                op(LOAD, NUMBER, 0, 0),
            ]),
        }
    }
    program.push(op(RETURN, otherwise, 0, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: no memory is involved in the first; the kernel copies the program in the second. TSYNC: threads that
    // are there already get the filter, too.
    let code = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
