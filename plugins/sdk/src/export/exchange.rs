//! Steps of exchanges: what the host calls, the state in its memory, and the host's part for tests.

use std::ffi::c_void;
use std::mem::{self, MaybeUninit};
use std::{ptr, slice};

use super::octets;
use super::panics::caught;
use crate::Mechanism;
use crate::abi::{self, action, event, fail, region};
use crate::cx::{Bad, Cx, Done, Event, Given, Outcome, ScramKey};

pub(super) unsafe extern "C" fn step<M: Mechanism>(
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
    let result = caught(|| {
        // SAFETY:
        // - `conf` came from `configure::<M>` and is released after the last exchange; it is only read.
        // - `state` has `state_size` octets at a fixed address, aligned, for this call alone.
        // - the slices named by `input` and `buf` are the host's, valid during this call (C header, BORROWING).
        unsafe { step_inside::<M>(&*conf.cast::<M>(), state.cast(), input, buf, cap) }
    });
    match result {
        Ok(Ok(done)) => {
            out.action = done.action;
            out.used = done.used as u32;
            out.arg = done.arg;
            out.flags = done.flags;
            out.handle = done.handle;
            (out.authcid, out.authzid, out.data, out.data2) = (done.authcid, done.authzid, done.data, done.data2);
            // SAFETY: `buf` has `cap` octets and the step that used them is over.
            unsafe { diagnose(out, done.reason) };
        }
        Ok(Err(bad)) => {
            (out.arg, out.used) = (bad.class, 0);
            // SAFETY: `buf` has `cap` octets and the step that used them is over.
            unsafe { diagnose(out, bad.reason) };
        }
        Err(panicked) => {
            out.used = 0;
            // SAFETY: as above.
            unsafe { diagnose(out, panicked.place().as_str()) };
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

pub(super) unsafe extern "C" fn drop_state<M: Mechanism>(_conf: *const c_void, state: *mut c_void) {
    // SAFETY: the exchange is over; the host calls this once, for the state that the steps had.
    let _ = caught(|| unsafe { Slot::<M::State>::leave(state.cast()) });
}

/// Puts a diagnosis behind what is used.
///
/// # Safety
/// `out.buf` has `out.cap` octets and nobody else uses them.
unsafe fn diagnose(out: &mut abi::Out, reason: &str) {
    let (used, room) = (out.used, out.cap.saturating_sub(out.used));
    let length = reason.floor_char_boundary(room.min(abi::DIAG_MAX) as usize);
    if out.buf.is_null() || length == 0 {
        return;
    }
    // SAFETY: `used + length <= cap`, so the place and its octets are inside of what the caller promises.
    unsafe { ptr::copy_nonoverlapping(reason.as_ptr(), out.buf.add(used as usize), length) };
    out.used = used + length as u32;
    out.diag = abi::Slice { region: region::OUT, off: used, len: length as u32 };
}

/// A state and whether it lives: the host zeroes the memory, and zeroes need not be a valid `S`.
#[repr(C)]
pub(super) struct Slot<S> {
    value: MaybeUninit<S>,
    live: u8,
}

impl<S: Default> Slot<S> {
    /// A state without octets and destructor needs no memory at all.
    pub const OCTETS: usize = if size_of::<S>() == 0 && !mem::needs_drop::<S>() { 0 } else { size_of::<Self>() };

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
