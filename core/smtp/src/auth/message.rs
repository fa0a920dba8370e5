//! Messages on the wire: base64, one line each (RFC 4954 §4), and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sasl::{Mechanism, Secret, flag};

use crate::reply::{self, Reply};

/// Decodes one message strictly: standard alphabet, canonical padding, nothing else.
pub(super) fn decode(line: &[u8], mechanism: &dyn Mechanism, to: &mut Secret) -> Result<(), &'static Reply> {
    let traits = mechanism.traits();
    to.wipe();
    let octets_max = line.len() / 4 * 3;
    if octets_max > traits.message_octets_max + 2 {
        return Err(&reply::AUTH_LINE_TOO_LONG);
    }
    let buffer = to.buffer();
    buffer.reserve(octets_max + 3);
    STANDARD.decode_vec(line, buffer).map_err(|_| &reply::BAD_BASE64)?;
    if buffer.len() > traits.message_octets_max {
        return Err(&reply::AUTH_LINE_TOO_LONG);
    }
    let nul = traits.flags & flag::ALLOW_NUL == 0 && buffer.contains(&0);
    let not_utf8 = traits.flags & flag::UTF8 != 0 && std::str::from_utf8(buffer).is_err();
    if nul || not_utf8 { Err(&reply::BAD_AUTH_MESSAGE) } else { Ok(()) }
}

/// Appends `334 `, base64, CRLF: nothing else may follow 334.
pub(super) fn write_challenge(data: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"334 ");
    let start = out.len();
    let octets = base64::encoded_len(data.len(), true).unwrap_or_default();
    out.resize(start + octets, 0);
    // The slice has exactly the length that the encoder asks for.
    let _ = STANDARD.encode_slice(data, out.get_mut(start..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}
