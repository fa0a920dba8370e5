//! Panics of the library's own code: caught at the border, remembered by their place.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Write as _;
use std::mem;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

/// Has panics of this library remembered. Its own std: the hook of the host does not see them, nor does this one see
/// the host's.
pub(super) fn watch() {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(note_panic)));
}

/// Calls `code`, and catches its panic.
#[inline]
pub(super) fn caught<T>(code: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(code)).map_err(forget_panic)
}

/// It has panicked, on this thread.
pub(super) struct Panicked;

impl Panicked {
    pub fn place(&self) -> Spot {
        LAST_PANIC.get()
    }
}

/// Dropping a panic's payload may panic again; that one is leaked.
#[cold]
fn forget_panic(payload: Box<dyn Any + Send>) -> Panicked {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(again);
    }
    Panicked
}

/// Where the last panic of this thread was. Not its message: that may quote what the client sent.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    octets: [u8; 160],
    len: usize,
}

impl Spot {
    const NOWHERE: Spot = Spot { octets: [0; 160], len: 0 };

    pub fn as_str(&self) -> &str {
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

fn note_panic(info: &PanicHookInfo<'_>) {
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
