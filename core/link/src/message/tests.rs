use super::*;
use crate::{Link, Outbox, Received, fuzz_packet, sealed};

fn every_message() -> Vec<Message<'static>> {
    vec![
        Message::Hello { link_version: 1, build_id: "0.1.0+abc", role: Role::Worker },
        Message::Config,
        Message::Board { slot: 3 },
        Message::Limits { row: 4 },
        Message::Listener { listener: 1, socket: 2, shard: 3, address: "[2001:db8::1]:25".parse().unwrap() },
        Message::Listener { listener: 1, socket: 2, shard: 3, address: "127.0.0.1:2525".parse().unwrap() },
        Message::Peer { role: Role::Directory, shard: 1, instance: 9 },
        Message::Plugin { id: "standard", origin: "/usr/lib/portreeve/portreeve_standard.so" },
        Message::Certificates,
        Message::TicketKeys(&[1; 96]),
        Message::Secrets(b""),
        Message::Start,
        Message::Ready,
        Message::Drain { seconds: 120 },
        Message::Drained,
        Message::Stop,
        Message::Failed { text: "config: cause: remedy" },
        Message::Event(b"event"),
        Message::AdminRequest(AdminRequest::Status),
        Message::AdminRequest(AdminRequest::Reload),
        Message::AdminRequest(AdminRequest::Drain { seconds: 2 }),
        Message::AdminRequest(AdminRequest::Other("certificates")),
        Message::AdminAnswer { ok: false, text: "no" },
    ]
}

#[test]
fn every_message_crosses_a_link_with_its_descriptor() {
    let (here, there) = Link::pair().unwrap();
    let mut outbox = Outbox::new(1 << 20);
    for (id, message) in every_message().iter().enumerate() {
        let fds =
            if message.wants_fd() { vec![sealed::create("x", message.name().as_bytes()).unwrap()] } else { vec![] };
        outbox.push_with(message.kind(), id as u64, fds, |to| message.encode(to)).unwrap();
        outbox.push(0x00ff, 0, |_| ()).unwrap();
    }
    assert!(outbox.flush(&here).unwrap());
    let (mut packet, mut got, mut unknown) = (Vec::new(), 0, 0);
    while let Received::Packet { fds } = there.receive(&mut packet).unwrap() {
        let mut messages = messages(&packet, fds);
        for item in messages.by_ref() {
            let (id, message, fd) = item.unwrap();
            assert!(message == every_message()[id as usize], "{}", message.name());
            assert_eq!(
                fd.map(|fd| sealed::read(std::os::fd::AsFd::as_fd(&fd)).unwrap()),
                message.wants_fd().then(|| message.name().as_bytes().to_vec())
            );
            got += 1;
        }
        unknown += messages.unknown;
    }
    assert_eq!((got, unknown), (every_message().len(), every_message().len() as u64));
}

#[test]
fn cut_or_changed_packets_are_errors_never_panics() {
    for message in every_message() {
        let mut payload = Vec::new();
        message.encode(&mut payload);
        let frame = Frame { kind: message.kind(), id: 0, payload: &payload };
        assert!(Message::decode(&frame).is_ok_and(|same| same.is_some_and(|same| same == message)));
        let free_form = matches!(message, Message::TicketKeys(_) | Message::Secrets(_) | Message::Event(_));
        for cut in 0..payload.len() {
            let frame = Frame { payload: &payload[..cut], ..frame };
            assert!(free_form || Message::decode(&frame).is_err(), "{} cut at {cut}", message.name());
        }
        let mut packet = (payload.len() as u32).to_le_bytes().to_vec();
        packet.extend_from_slice(&message.kind().to_le_bytes());
        packet.extend_from_slice(&[0; 8]);
        packet.extend_from_slice(&payload);
        for at in 0..packet.len() {
            for value in 0..=255 {
                let mut changed = packet.clone();
                changed[at] = value;
                fuzz_packet(&changed);
            }
            fuzz_packet(&packet[..at]);
        }
    }
}

#[test]
fn a_missing_descriptor_ends_the_packet() {
    let mut packet = Vec::new();
    for kind in [0x0bu16, 0x02, 0x0b] {
        packet.extend_from_slice(&[0; 4]);
        packet.extend_from_slice(&kind.to_le_bytes());
        packet.extend_from_slice(&[0; 8]);
    }
    let results: Vec<_> =
        messages(&packet, Vec::new()).map(|item| item.map(|(_, message, _)| message.name())).collect();
    assert_eq!(results, [Ok("start"), Err(BadPacket::Descriptors)]);
}
