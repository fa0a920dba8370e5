//! The foreign edge: the only `unsafe` of this crate. It opens a library, copies and checks what it says of
//! itself (`describe`), and calls its functions (`bound`); what they answer stays plain numbers, which `adapter` checks.
//!
//! What cannot be checked is the library's own code: a stray write of an inline plugin is this process's
//! fault, too. That is why third-party libraries run elsewhere, and only vetted files get here.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use libloading::os::unix;
use portreeve_plugin_abi as abi;
use sasl::{MechanismName, State, Traits};

mod bound;
mod describe;

pub use bound::Entry;
pub(crate) use bound::{Bound, BoundBackend};

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
        unsafe { describe::describe(at, log) }.map_err(OpenError::Handshake)
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
