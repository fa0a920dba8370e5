use super::*;
use hmac::{KeyInit, Mac};
use portreeve_plugin_sdk::Status;
use portreeve_plugin_sdk::abi::{fail, key};
use portreeve_plugin_sdk::testing::{Answer, Exchange};

/// Context of the password `tanstaaftanstaaf`, as Dovecot's `{CRAM-MD5}` has it.
const TIM: &str = "d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b";
const RFC_2195_CHALLENGE: &[u8] = b"<1896.697170952@postoffice.reston.mci.net>";

fn hex<const N: usize>(text: &str) -> [u8; N] {
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

/// What a client computes, by another implementation of HMAC.
fn client(password: &[u8], challenge: &[u8]) -> String {
    let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(password).unwrap();
    mac.update(challenge);
    mac.finalize().into_bytes().iter().map(|octet| format!("{octet:02x}")).collect()
}

fn challenge(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Challenge(challenge) => challenge,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_example_of_rfc_2195() {
    assert_eq!(hmac_md5(&hex(TIM), RFC_2195_CHALLENGE).unwrap(), hex("b913a602c7eda7a495b4e6e7334d3890"));
}

#[test]
fn resumed_hmac_agrees_with_hmac_for_every_length() {
    for length in 0..300 {
        let text = vec![b'x'; length];
        assert_eq!(hmac_md5(&hex(TIM), &text).unwrap(), hex(&client(b"tanstaaftanstaaf", &text)), "{length}");
    }
}

#[test]
fn the_challenge_is_a_msg_id_from_entropy_and_time() {
    let mut exchange = Exchange::new(Cram::<MsgId>(PhantomData));
    let first = challenge(exchange.start(None));
    // Independent computation of base32 of the octets 0..20, by Python's base64.b32encode.
    assert_eq!(first, b"<aaaqeayeaudaocajbifqydiob4ibceqt.1700000000@mail.example.com>");
    exchange.entropy[19] ^= 1;
    assert_ne!(challenge(exchange.start(None)), first);
    exchange.server_name = "x".repeat(255);
    assert_eq!(challenge(exchange.start(None)).len(), 1 + 32 + 1 + 10 + 1 + 255 + 1);
}

#[test]
fn a_whole_exchange() {
    for (user, upper) in [("tim", false), ("tim cook", false), ("tim@example.com", true), (" ", false)] {
        let mut exchange = Exchange::new(Cram::<MsgId>(PhantomData));
        let challenge = challenge(exchange.start(None));
        let mut digest = client(b"tanstaaftanstaaf", &challenge);
        if upper {
            digest.make_ascii_uppercase();
        }
        let asked = exchange.message(format!("{user} {digest}").as_bytes());
        let Answer::Effect { kind: EffectKind::FetchKey, arg: key::CRAM_MD5_CTX, authcid, .. } = asked else {
            panic!("{asked:?}")
        };
        assert_eq!(authcid, user.as_bytes());
        assert_eq!(exchange.outcome(Status::Ok, &hex::<32>(TIM)), Answer::Success { data: None }, "{user}");
    }
}

#[test]
fn every_wrong_bit_is_refused() {
    for bit in 0..128 {
        let mut exchange = Exchange::new(Cram::<MsgId>(PhantomData));
        let challenge = challenge(exchange.start(None));
        let mut digest: [u8; 16] = hex(&client(b"tanstaaftanstaaf", &challenge));
        digest[bit / 8] ^= 1 << (bit % 8);
        let digest: String = digest.iter().map(|octet| format!("{octet:02x}")).collect();
        exchange.message(format!("tim {digest}").as_bytes());
        let answer = exchange.outcome(Status::Ok, &hex::<32>(TIM));
        assert!(matches!(answer, Answer::Failure { class: fail::CREDENTIALS, .. }), "bit {bit}: {answer:?}");
    }
}

#[test]
fn what_is_not_user_space_digest_is_malformed() {
    let digest = "b913a602c7eda7a495b4e6e7334d3890";
    for message in [
        String::new(),
        digest.into(),
        format!(" {digest}"),
        format!("tim {digest} "),
        format!("tim {digest}0"),
        format!("tim {}", &digest[1..]),
        format!("tim {}g", &digest[1..]),
        format!("tim\t{digest}"),
    ] {
        let mut exchange = Exchange::new(Cram::<MsgId>(PhantomData));
        exchange.start(None);
        let answer = exchange.message(message.as_bytes());
        assert!(matches!(answer, Answer::Failure { class: fail::MALFORMED, .. }), "{message:?}: {answer:?}");
    }
}

#[test]
fn bad_outcomes() {
    for (status, key, class) in [
        (Status::Denied, 32, fail::CREDENTIALS),
        (Status::Temporary, 32, fail::TEMPORARY),
        (Status::Transition, 0, fail::TRANSITION),
        (Status::Ok, 31, fail::INTERNAL),
        (Status::Ok, 0, fail::INTERNAL),
    ] {
        let mut exchange = Exchange::new(Cram::<MsgId>(PhantomData));
        exchange.start(None);
        exchange.message(b"tim b913a602c7eda7a495b4e6e7334d3890");
        match exchange.outcome(status, &vec![0; key]) {
            Answer::Failure { class: found, .. } => assert_eq!(found, class, "{status:?} {key}"),
            other => panic!("{other:?}"),
        }
    }
}
