//! A peer with the right certificate and the wrong intentions; and peers without one.

use std::io::Write;
use std::net::TcpStream;

use super::super::frame::{Entry, Message, VERSION};
use super::super::gate::Gate;
use super::super::handshake::{Hello, Role, migration_hash};
use super::super::link::{Identity, Link};
use super::super::machine::{Section, SourceMachine};
use super::super::tls::Credentials;
use super::*;

/// A source that says what it is told to.
struct Impostor {
    control: Link,
    data: Link,
}

impl Impostor {
    fn new(rig: &Rig, address: SocketAddr) -> Self {
        let description = Box::new(SourceMachine::describe(&*rig.source).unwrap());
        let mut control = Self::connect(rig, address, 0, Role::Control { streams: 1, description });
        assert!(matches!(control.expect().unwrap().1, Message::Welcome(_)));
        let data = Self::connect(rig, address, 1, Role::Data { stream: 1 });
        assert_eq!(control.expect().unwrap().1, Message::Ready);
        Self { control, data }
    }

    fn connect(rig: &Rig, address: SocketAddr, stream: u16, role: Role) -> Link {
        let credentials = Credentials::load(&rig.authority.tls(rig.dir.path(), A, B)).unwrap();
        let identity = Identity { migration: migration_hash(MIGRATION), epoch: 4, stream };
        let mut link = Link::connect(address, &credentials, identity, &Gate::default()).unwrap();
        let hello = Hello {
            oldest: VERSION,
            newest: VERSION,
            migration_id: MIGRATION.into(),
            machine_id: "machine".into(),
            next_epoch: 4,
            role,
        };
        link.send(&Message::Hello(serde_json::to_vec(&hello).unwrap())).unwrap();
        link
    }
}

/// What the destination says to a hostile stream. Nothing may be loaded or run.
fn refused(what: impl FnOnce(&mut Impostor)) -> String {
    let rig = Rig::new(&Shape { writes_per_second: 0, ..Shape::default() });
    let incoming = rig.listen();
    let mut impostor = Impostor::new(&rig, incoming.address());
    what(&mut impostor);
    let status = incoming.join();
    assert_eq!((rig.destination.called("load"), rig.destination.called("run")), (0, 0));
    assert_eq!(rig.destination.called("discard"), 1);
    failure(&status)
}

fn pages(first: u64, count: u32, zero: bool) -> (Message, Vec<u8>) {
    let data = if zero { 0 } else { count as usize * 4096 };
    (Message::Pages(vec![Entry { first, count, zero, disk: 0 }]), vec![1; data])
}

fn send(link: &mut Link, message: &Message, data: &[u8]) {
    link.send_with(|encoder, out| Ok(encoder.encode(out, message, data)?)).unwrap();
}

#[test]
fn pages_outside_ram_are_refused_on_both_kinds_of_connection() {
    for (first, count, zero) in
        [(300, 1, false), (299, 2, false), (u64::MAX - 2, 1, true), (0, 1 << 18, true)]
    {
        let (message, data) = pages(first, count, zero);
        let error = refused(|impostor| send(&mut impostor.control, &message, &data));
        assert!(error.contains("outside the RAM"), "{error}");
        let error = refused(|impostor| {
            send(&mut impostor.data, &message, &data);
            let _ = impostor.control.send(&Message::RoundEnd { round: 0, counts: vec![1] });
        });
        assert!(error.contains("outside the RAM"), "{error}");
    }
}

#[test]
fn blocks_outside_a_disk_are_refused() {
    for (disk, first, count) in [(2, 0, 1), (0, 64, 1), (0, 63, 2), (1, u64::MAX / 4096, 1)] {
        let message = Message::Blocks(vec![Entry { first, count, zero: false, disk }]);
        let error = refused(|i| send(&mut i.control, &message, &vec![0; count as usize * 4096]));
        assert!(error.contains("disk"), "{error}");
    }
}

#[test]
fn messages_out_of_order_are_refused() {
    let sections = || Message::Sections(vec![Section { kind: 1, version: 1, bytes: Vec::new() }]);
    let orders = [
        vec![sections()],
        vec![Message::HandedOver],
        vec![Message::Prepared(Vec::new())],
        vec![Message::Hello(b"{}".to_vec())],
        vec![Message::NetFrames(Vec::new())],
        vec![Message::RoundEnd { round: 5, counts: vec![0] }],
        vec![Message::RoundEnd { round: 0, counts: vec![0, 0, 0] }],
        vec![Message::Pausing, sections()],
        vec![Message::Pausing, Message::Pausing],
        vec![Message::Pausing, Message::HandedOver],
        vec![Message::Pausing, Message::RoundEnd { round: 0, counts: vec![0] }, pages(1, 1, true).0],
        vec![Message::Bye],
    ];
    for order in orders {
        let error = refused(|impostor| {
            for message in &order {
                let _ = impostor.control.send(message);
            }
        });
        assert!(!error.is_empty(), "{order:?}");
    }
}

#[test]
fn an_unknown_section_is_refused_and_does_not_run() {
    let rig = Rig::new(&Shape { writes_per_second: 0, ..Shape::default() });
    let incoming = rig.listen();
    let mut impostor = Impostor::new(&rig, incoming.address());
    for message in [
        Message::Pausing,
        Message::RoundEnd { round: 0, counts: vec![0] },
        Message::Sections(vec![Section { kind: 99, version: 1, bytes: Vec::new() }]),
    ] {
        impostor.control.send(&message).unwrap();
    }
    let error = failure(&incoming.join());
    assert!(error.contains("unknown section kind 99"), "{error}");
    assert_eq!((rig.destination.called("run"), rig.destination.called("discard")), (0, 1));
}

#[test]
fn frames_of_another_migration_stream_or_sequence_are_refused() {
    for identity in [
        Identity { migration: 1, epoch: 4, stream: 0 },
        Identity { migration: migration_hash(MIGRATION), epoch: 5, stream: 0 },
        Identity { migration: migration_hash(MIGRATION), epoch: 4, stream: 1 },
        // A new encoder starts at sequence 0 again.
        Identity { migration: migration_hash(MIGRATION), epoch: 4, stream: 0 },
    ] {
        let error = refused(|impostor| {
            let mut encoder =
                super::super::frame::Encoder::new(identity.stream, identity.migration, identity.epoch);
            let sent =
                impostor.control.send_with(|_, out| Ok(encoder.encode(out, &Message::Pausing, &[])?));
            sent.unwrap();
        });
        assert!(error.contains("another migration or stream") || error.contains("was due"), "{error}");
    }
}

#[test]
fn bytes_that_are_no_frames_are_refused() {
    let forged = super::codec::forged;
    let mut huge = forged(9, &[], 0);
    huge[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut damaged = forged(11, b"{}", 0);
    damaged[50 - 1] ^= 1;
    for (bytes, why) in [
        (vec![0; 100], "no migration frame"),
        (b"GET / HTTP/1.1\r\nHost: example\r\nAccept: everything\r\n\r\n".to_vec(), "no migration frame"),
        (huge, "at most"),
        (damaged, "CRC"),
        (forged(77, &[], 0), "unknown frame kind"),
        (forged(4, &[1, 2, 3], 0), "malformed"),
    ] {
        let error = refused(|impostor| {
            impostor
                .control
                .send_with(|_, out| {
                    out.extend_from_slice(&bytes);
                    Ok(())
                })
                .unwrap();
        });
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_wrong_authority_and_a_wrong_name_are_turned_away_and_the_right_one_still_comes_in() {
    let rig = Rig::new(&Shape::default());
    let incoming = rig.listen();
    let stranger = Authority::new(rig.dir.path(), "stranger");
    let request = |tls| MigrateOut { tls, ..rig.request_out(incoming.address()) };

    // Neither the source nor the destination takes a certificate of another CA.
    let mut tls = stranger.tls(rig.dir.path(), A, B);
    failure(&rig.start(request(tls.clone())).join());
    rig.assert_stayed();
    tls.ca = rig.authority.ca.clone();
    failure(&rig.start(request(tls)).join());
    rig.assert_stayed();
    // A host of the fleet, but not the one that was announced: the destination's demand …
    failure(&rig.start(request(rig.authority.tls(rig.dir.path(), "c.host.mashines.internal", B))).join());
    rig.assert_stayed();
    // … and the source's.
    let wrong = rig.authority.tls(rig.dir.path(), A, "c.host.mashines.internal");
    let error = failure(&rig.start(request(wrong)).join());
    assert!(error.contains("TLS handshake"), "{error}");
    rig.assert_stayed();

    assert_eq!(rig.start(rig.request_out(incoming.address())).join().outcome, Some(Outcome::Completed));
    incoming.join();
    rig.assert_moved();
}

#[test]
fn connections_that_say_nothing_hold_nobody_up() {
    let rig = Rig::new(&Shape::default());
    let incoming = rig.listen();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(incoming.address()).unwrap()).collect();
    let mut noise = TcpStream::connect(incoming.address()).unwrap();
    noise.write_all(&[0x16, 3, 1, 255, 255, 1, 2, 3]).unwrap();
    let start = Instant::now();
    assert_eq!(rig.start(rig.request_out(incoming.address())).join().outcome, Some(Outcome::Completed));
    assert!(start.elapsed() < Duration::from_secs(5));
    incoming.join();
    rig.assert_moved();
    drop(silent);
}

#[test]
fn a_source_that_never_comes_ends_the_wait() {
    let rig = Rig::new(&Shape::default());
    let request = MigrateIn { timeout_ms: 200, ..rig.request_in() };
    let incoming = Incoming::listen(rig.destination.clone(), request, rig.instance("b", 4)).unwrap();
    let error = failure(&incoming.join());
    assert!(error.contains("did not come"), "{error}");
    assert_eq!(rig.destination.called("discard"), 1);
}

#[test]
fn nobody_at_the_destination_is_a_failure_with_its_address() {
    let rig = Rig::new(&Shape::default());
    let error = failure(&rig.start(rig.request_out(([127, 0, 0, 1], 1).into())).join());
    assert!(error.contains("127.0.0.1:1"), "{error}");
    rig.assert_stayed();
}
