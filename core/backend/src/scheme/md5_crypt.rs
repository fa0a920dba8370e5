//! MD5-crypt, `$1$` of old systems and `$apr1$` of htpasswd: a thousand rounds of MD5. Weak; verified so
//! that its users can log in once more and get something better.

use md5::{Digest as _, Md5};

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Which digest octets make up each group of four characters, highest first.
const ORDER: [[usize; 3]; 5] = [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]];

/// The digest of `password`; `magic` is `$1$` or `$apr1$`.
pub fn digest(password: &[u8], magic: &str, salt: &[u8]) -> [u8; 16] {
    let alternate = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update(magic).chain_update(salt);
    for start in (0..password.len()).step_by(16) {
        first.update(&alternate[..(password.len() - start).min(16)]);
    }
    // The original meant something else here, and every implementation has copied it since.
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { &[0] } else { &password[..1] });
        bits >>= 1;
    }
    let mut state: [u8; 16] = first.finalize().into();
    for round in 0..1000 {
        let mut next = Md5::new();
        next.update(if round & 1 == 1 { password } else { &state[..] });
        if round % 3 != 0 {
            next.update(salt);
        }
        if round % 7 != 0 {
            next.update(password);
        }
        next.update(if round & 1 == 1 { &state[..] } else { password });
        state = next.finalize().into();
    }
    state
}

/// The digest behind its 22 characters.
pub fn decode(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 22 {
        return None;
    }
    let mut digest = [0; 16];
    let value = |characters: &[u8]| {
        characters.iter().rev().try_fold(0u32, |value, character| {
            let position = ALPHABET.iter().position(|letter| letter == character)?;
            Some(value << 6 | position as u32)
        })
    };
    for (characters, [high, middle, low]) in text.chunks(4).zip(ORDER) {
        let value = value(characters)?;
        (digest[high], digest[middle], digest[low]) = ((value >> 16) as u8, (value >> 8) as u8, value as u8);
    }
    let last = value(&text[20..])?;
    digest[11] = u8::try_from(last).ok()?;
    Some(digest)
}
