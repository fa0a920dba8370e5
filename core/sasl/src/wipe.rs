/// Sets octets to zero, as fast as memory can be set, and so that no compiler leaves it out.
///
/// `Zeroize` writes octet by octet: for the packets and buffers of a login that would cost more than its steps.
pub fn wipe(octets: &mut [u8]) {
    octets.fill(0);
    zeroize::optimization_barrier(octets);
}

/// As [`wipe`], with the room behind the content; the vector is empty afterwards.
pub fn wipe_all(octets: &mut Vec<u8>) {
    let room = octets.capacity();
    octets.clear();
    octets.resize(room, 0);
    zeroize::optimization_barrier(octets);
    octets.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_in_the_content_or_behind_it() {
        let mut octets = b"secret, and more of it".to_vec();
        octets.truncate(3);
        let room = octets.capacity();
        wipe_all(&mut octets);
        assert!(octets.is_empty() && octets.capacity() == room);
        octets.resize(room, 7);
        wipe(&mut octets[2..]);
        assert_eq!((&octets[..2], octets[2..].iter().all(|&octet| octet == 0)), (&[7, 7][..], true));
    }
}
