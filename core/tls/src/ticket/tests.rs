use super::*;

fn tickets(service: &str, keys: &[[u8; 32]]) -> Tickets {
    Tickets::new(Arc::new(TicketKeys::new(keys)), service.to_owned())
}

#[test]
fn opened_only_unaltered_in_time_and_by_its_service() {
    let service = tickets("submission", &[[1; 32]]);
    let ticket = service.seal(b"state", 1_000_000).unwrap();
    assert_eq!(service.open(&ticket, 1_000_000).as_deref(), Some(&b"state"[..]));
    assert_eq!(tickets("submission", &[[2; 32], [1; 32]]).open(&ticket, 1_000_001).as_deref(), Some(&b"state"[..]));
    assert!(service.open(&ticket, 999_990).is_some(), "another node's clock is ahead");
    assert!(service.open(&ticket, 1_000_000 + 12 * 3600).is_some());
    assert!(service.open(&ticket, 1_000_001 + 12 * 3600).is_none(), "too old");
    assert!(tickets("mx", &[[1; 32]]).open(&ticket, 1_000_000).is_none());
    for at in 0..ticket.len() {
        let mut altered = ticket.clone();
        altered[at] ^= 0x80;
        assert!(service.open(&altered, 1_000_000).is_none(), "octet {at}");
        assert!(service.open(&ticket[..at], 1_000_000).is_none());
    }
    assert_ne!(service.seal(b"state", 1_000_000), Some(ticket), "a nonce of its own");
}

#[test]
fn three_keys_the_newest_seals() {
    let keys = [[1; 32], [2; 32], [3; 32], [4; 32]];
    let all = tickets("x", &keys);
    let sealed = all.seal(b"s", 0).unwrap();
    assert!(tickets("x", &keys[..1]).open(&sealed, 0).is_some());
    for (key, opens) in keys.iter().zip([true, true, true, false]) {
        let ticket = tickets("x", &[*key]).seal(b"s", 0).unwrap();
        assert_eq!(all.open(&ticket, 0).is_some(), opens);
    }
    assert!(!tickets("x", &[]).enabled() && tickets("x", &[]).seal(b"s", 0).is_none());
}
