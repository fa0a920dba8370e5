//! Requests to back ends: what the host calls.

use std::ffi::c_void;
use std::ptr;

use super::octets;
use super::panics::caught;
use crate::abi::{self, action, region, status};
use crate::backend::{Asked, Backend, Reply, Request};
use crate::cx::KeyKind;

pub(super) unsafe extern "C" fn handle<B: Backend>(
    conf: *mut c_void,
    request: *const abi::Request,
    reply: *mut abi::Reply,
) {
    // SAFETY: the host passes its own prv_request and prv_reply, valid and not shared during this call.
    let (Some(request), Some(reply)) = (unsafe { request.as_ref() }, unsafe { reply.as_mut() }) else { return };
    (reply.status, reply.found, reply.used) = (status::TEMPFAIL, 0, 0);
    let known = size_of::<abi::Request>() <= request.size as usize && size_of::<abi::Reply>() <= reply.size as usize;
    if !known || conf.is_null() {
        return;
    }
    let said = caught(|| {
        // SAFETY: `conf` came from `configure_backend::<B>` and is only read; what the request names is the host's,
        // valid during this call (C header, BORROWING).
        unsafe { (*conf.cast::<B>()).handle(&request_of(request)) }
    });
    let said = said.unwrap_or_else(|panicked| Reply::temporary(panicked.place().as_str()));
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

/// Calls `handle` as the host does.
#[cfg(test)]
pub(super) fn call<B: Backend>(backend: &B, request: &abi::Request, scratch: &mut [u8]) -> abi::Reply {
    let cap = u32::try_from(scratch.len()).unwrap_or(u32::MAX);
    let mut reply = abi::Reply { buf: scratch.as_mut_ptr(), cap, ..abi::Reply::PRESET };
    // SAFETY: request, what it names (the tests' own slices), scratch and reply live during the call, and `conf` is a `B`.
    unsafe { handle::<B>(ptr::from_ref(backend).cast_mut().cast(), request, &mut reply) };
    reply
}
