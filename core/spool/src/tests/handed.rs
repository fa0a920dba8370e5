//! Messages that are handed over instead of kept.

use rustix::io::Errno;

use super::*;
use crate::RealDisk;
use crate::sim::Act;

#[test]
fn what_is_handed_over_is_whole_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Arc::new(RealDisk::open(folder.path()).unwrap());
    let writer = Writer::open(open(), small_options(), Hooks::default()).unwrap();
    let inbox = Arc::new(Inbox::default());
    let port = writer.port(inbox.clone());
    for (number, octets) in (0..).zip(SIZES) {
        let mut entry = port.begin(id(number), None).unwrap();
        let body = body(number, octets);
        body.chunks(3000).for_each(|part| append_all(&inbox, &mut entry, part));
        if number % 3 == 1 {
            entry.spill();
        }
        port.hand_over(entry, b"envelope", b"Received: x\r\n", number);
        let handed = inbox.wait_handed(number).unwrap();
        assert_eq!((handed.id, handed.body_octets), (id(number), octets as u64));
        let message = Message::handed(handed, 7).unwrap();
        assert_eq!((message.envelope(), message.prepend()), (&b"envelope"[..], &b"Received: x\r\n"[..]));
        let mut found = Vec::new();
        message.body(&mut |part| std::io::Write::write_all(&mut found, part)).unwrap();
        assert!(found == body, "{octets} octets");
    }
    drop((port, writer));
    let mut follower = Follower::open(open(), Arc::new(|notice: &Notice| panic!("{notice}"))).unwrap();
    assert!(!follower.next(&mut Message::default()));
    assert_eq!(open().list("").unwrap(), Vec::<String>::new());
}

#[test]
fn a_disk_that_fails_fails_the_hand_over() {
    for (errno, expect) in
        [(Errno::NOSPC, Trouble::NoSpace), (Errno::DQUOT, Trouble::NoSpace), (Errno::IO, Trouble::Temporary)]
    {
        // Body, and what is written behind it.
        for number in 0..4 {
            let disk = SimDisk::new();
            let writer = Writer::open(Arc::new(disk.clone()), small_options(), Hooks::default()).unwrap();
            let inbox = Arc::new(Inbox::default());
            let port = writer.port(inbox.clone());
            disk.fail(Act::Write, number, 1, errno);
            let mut entry = port.begin(id(1), None).unwrap();
            append_all(&inbox, &mut entry, &body(1, 9000));
            port.hand_over(entry, b"envelope", b"", 1);
            let trouble = inbox.wait_handed(1).unwrap_err();
            // This disk's files have no descriptor: what is written well ends so.
            let written = disk.count(Act::Write) <= number;
            assert_eq!(trouble, if written { Trouble::Temporary } else { expect }, "write {number}");
            let bodies = disk.files().into_iter().filter(|(name, _)| name.ends_with(".body")).count();
            assert_eq!(bodies, 0);
        }
    }
}
