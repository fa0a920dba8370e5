//! A back end of a loaded library: what it answers is numbers and offsets until it was checked here.

use link::backend::{BROKEN, Call, Reply};
use portreeve_plugin_abi::{self as abi, action, region, status};

use crate::ffi::BoundBackend;

/// Longest identity, salt and key, octets. The directory looks more closely.
const SMALL_OCTETS_MAX: u32 = 1024;
/// All parts of a reply together: they must fit a packet.
const REPLY_OCTETS_MAX: usize = 100_000;

/// One back end, configured.
pub struct Backend {
    pub(crate) provides: u64,
    pub(crate) parallel: u32,
    pub(crate) bound: BoundBackend,
}

impl Backend {
    /// Performs one effect; `answer` gets what can be believed of the reply. `scratch` has
    /// [`abi::REPLY_MAX`] octets.
    pub fn handle(&self, call: &Call<'_>, scratch: &mut [u8], answer: impl FnOnce(&Reply<'_>)) {
        let effect = call.effect.effect;
        if !(action::VERIFY_PASSWORD..80).contains(&effect) || self.provides & action::need(effect) == 0 {
            return answer(&Reply::of(status::UNSUPPORTED));
        }
        self.handle_anything(call, scratch, answer);
    }

    /// Calls at a time that it wants.
    pub fn parallel(&self) -> u32 {
        self.parallel
    }

    /// The same, also for effects that it did not declare: for tests of libraries.
    pub fn handle_anything(&self, call: &Call<'_>, scratch: &mut [u8], answer: impl FnOnce(&Reply<'_>)) {
        let raw = self.bound.handle(call, scratch);
        match read(&raw, scratch) {
            Ok(reply) => answer(&reply),
            Err(cause) => answer(&Reply { diagnosis: cause.as_bytes(), ..Reply::of(BROKEN) }),
        }
    }
}

fn read<'a>(raw: &abi::Reply, scratch: &'a [u8]) -> Result<Reply<'a>, &'static str> {
    let written = match scratch.get(..raw.used as usize) {
        Some(written) if raw.used <= raw.cap => written,
        _ => return Err("the back end says that it wrote more than there is room"),
    };
    if raw.status > status::EXPIRED {
        return Err("the back end answered with an unknown status");
    }
    let slice = |slice: abi::Slice, octets_max: u32| match slice.region {
        region::NONE if slice.len == 0 => Ok(&written[..0]),
        region::OUT if slice.len > octets_max => Err("the back end answered with a part that is too long"),
        region::OUT => {
            let start = slice.off as usize;
            let end = start.checked_add(slice.len as usize);
            end.and_then(|end| written.get(start..end)).ok_or("the back end named octets outside of its buffer")
        }
        _ => Err("the back end named another region than its buffer"),
    };
    let diagnosis = slice(raw.diag, abi::REPLY_MAX)?;
    let reply = Reply {
        status: raw.status,
        found: raw.found != 0,
        iterations: raw.iterations,
        identity: slice(raw.identity, SMALL_OCTETS_MAX)?,
        data: slice(raw.data, abi::REPLY_MAX)?,
        salt: slice(raw.salt, SMALL_OCTETS_MAX)?,
        stored_key: slice(raw.stored_key, SMALL_OCTETS_MAX)?,
        server_key: slice(raw.server_key, SMALL_OCTETS_MAX)?,
        diagnosis: diagnosis.get(..abi::DIAG_MAX as usize).unwrap_or(diagnosis),
    };
    let parts = [reply.identity, reply.data, reply.salt, reply.stored_key, reply.server_key];
    if parts.iter().map(|part| part.len()).sum::<usize>() > REPLY_OCTETS_MAX {
        return Err("the back end answered with more than fits a packet");
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_buffer_is_believed() {
        let scratch = [7; 64];
        let at = |off, len| abi::Slice { region: region::OUT, off, len };
        let good = abi::Reply { status: 0, found: 1, cap: 64, used: 32, identity: at(0, 5), ..abi::Reply::PRESET };
        let reply = read(&good, &scratch).map_err(|why| panic!("{why}"));
        assert!(reply.is_ok_and(|reply| reply.found && reply.identity == [7; 5] && reply.data.is_empty()));
        for (bad, why) in [
            (abi::Reply { used: 65, ..good }, "more than there is room"),
            (abi::Reply { used: u32::MAX, ..good }, "more than there is room"),
            (abi::Reply { data: at(0, 33), ..good }, "outside"),
            (abi::Reply { data: at(u32::MAX, u32::MAX), ..good }, "too long"),
            (abi::Reply { data: at(u32::MAX, 1), ..good }, "outside"),
            // 100 MiB.
            (abi::Reply { data: at(0, 100 << 20), ..good }, "too long"),
            (abi::Reply { salt: abi::Slice { region: region::MSG, off: 0, len: 1 }, ..good }, "another region"),
            (abi::Reply { salt: abi::Slice { region: region::NONE, off: 0, len: 1 }, ..good }, "another region"),
            (abi::Reply { status: 6, ..good }, "unknown status"),
            (abi::Reply { identity: at(0, 2000), ..good }, "too long"),
        ] {
            assert!(read(&bad, &scratch).is_err_and(|found| found.contains(why)), "{why}");
        }
    }
}
