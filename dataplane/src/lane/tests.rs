//! What a lane does at the edges of its rings, on a real kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::engine::tests::{engine, in_namespace, ip, on_lane, veth, veth_with_queues, wait_until};
use crate::engine::{Capture, CaptureSpec, Engine, PortSpec};
use crate::frame::{TxChecksum, Verdict};
use crate::lane::ports::{receive_more, receive_streams};
use crate::packet_socket::{PacketSocket, Way};
use crate::pipeline::segment::Offload;
use crate::umem::OwnerTag;
use crate::xsk::socket::RING_SIZE;

impl Lane {
    fn frame(&mut self) -> Frame {
        let mut frame = self.pool.alloc().unwrap();
        assert!(frame.resize(64));
        frame
    }

    /// Writes chains of `count` frames each to a port's transmit ring.
    fn write(&mut self, id: PortId, packets: u32, count: u32) {
        for _ in 0..packets {
            let frames: Vec<Frame> = (0..count).map(|_| self.frame()).collect();
            let port = self.ports.get(id).unwrap();
            port.queue
                .send(&self.umem, &self.owners, frames.into_iter(), None);
            self.ports.mark_dirty(id);
        }
    }

    /// Carries out one verdict, as a round does.
    fn carry_out(&mut self, in_port: PortId, verdict: Verdict) {
        let frame = self.frame();
        self.batch.push(in_port, [frame]);
        self.batch.decide(0, verdict);
        let mut copies = Copies::before(&self.captures, &self.umem, &self.batch);
        let snapshot = self.snapshot.load();
        if let Some(copies) = &mut copies {
            copies.after(&self.umem, &self.batch, snapshot);
        }
        Emitter {
            umem: &self.umem,
            snapshot,
            owners: &self.owners,
            pool: &mut self.pool,
            ports: &mut self.ports,
            counters: &self.shared.counters,
            scratch: &mut self.scratch,
            together: &mut self.together,
            now: Nanos(0),
            copies: &mut self.copies,
            waiting: &mut self.waiting,
            captured: copies.as_mut(),
        }
        .emit(&mut self.batch);
        if let Some(copies) = copies {
            copies.deliver(&self.captures);
        }
    }

    /// Takes chunks behind a queue's back.
    fn steal(&self, tag: OwnerTag) -> Vec<usize> {
        self.owners.reclaim(tag).map(|f| f.chunk()).collect()
    }
}

fn drops(engine: &Engine, reason: DropReason) -> u64 {
    engine.stats().drops[reason.index()]
}

/// A TCP packet long enough to be led past XDP. The program looks at what the
/// kernel keeps in one piece.
fn send_bulk(device: &str) {
    let index = nix::net::if_::if_nametoindex(device).unwrap();
    let mut frame = vec![0; 20_000];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..16].copy_from_slice(&[0x45, 0]);
    frame[23] = 6;
    let socket = PacketSocket::open(index, Way::Ordinary).unwrap();
    let offload = Offload {
        checksum: TxChecksum {
            start: 34,
            offset: 16,
        },
        cut: None,
    };
    socket.send(std::iter::once(&*frame), &offload).unwrap();
}

#[test]
fn a_stream_socket_that_epoll_refuses_is_asked_by_itself() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let port = veth("a", 0);
        for end in ["a", "ap"] {
            ip(&format!("link set dev {end} mtu 65535"));
        }
        on_lane(&engine, 0, |lane| lane.streams.refuse_all());
        engine.attach(port.clone()).unwrap();
        let led = nix::net::if_::if_nametoindex("ap").unwrap();
        engine.lead_streams("ap", led).unwrap();
        let came = || engine.port_stats(port.id).unwrap().rx_packets;
        for count in 1..=3 {
            // Asleep between two packets.
            std::thread::sleep(std::time::Duration::from_millis(50));
            send_bulk("ap");
            wait_until("the packet came", || came() == count);
        }
        engine.detach(port.id).unwrap();
        assert_eq!(engine.stats().frames.in_use, 0);
    });
}

/// Frames of TCP too short to be led, sent from `device`.
fn send_short(device: &str, count: u32) {
    let index = nix::net::if_::if_nametoindex(device).unwrap();
    let mut frame = vec![0; 64];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..16].copy_from_slice(&[0x45, 0]);
    frame[23] = 6;
    let socket = PacketSocket::open(index, Way::Ordinary).unwrap();
    for _ in 0..count {
        socket.send_complete(std::iter::once(&*frame)).unwrap();
    }
}

/// Frees a batch; how long its packets were.
fn emptied(batch: &mut Batch, pool: &mut FramePool) -> Vec<u32> {
    let lengths = batch.packets().iter().map(|packet| packet.len).collect();
    for at in 0..batch.len() {
        batch.take(at).for_each(|frame| pool.free(frame));
    }
    batch.clear();
    lengths
}

#[test]
fn a_stream_stays_behind_what_came_by_the_ring_before() {
    in_namespace(|| {
        const BEFORE: u32 = 100;
        let engine = engine(1, 4096);
        // Of one queue, which the lane has.
        ip("link add name a type veth peer name ap");
        for end in ["a", "ap"] {
            ip(&format!("link set dev {end} mtu 65535 up"));
        }
        let port = PortSpec {
            id: PortId(0),
            ifindex: nix::net::if_::if_nametoindex("a").unwrap(),
            name: "a".to_owned(),
        };
        let id = port.id;
        engine.attach(port).unwrap();
        let led = nix::net::if_::if_nametoindex("ap").unwrap();
        engine.lead_streams("ap", led).unwrap();
        // What a lane finds that was away between its looks at the ring and at
        // the socket: first the ring's packets, then the socket's.
        let lengths = on_lane(&engine, 0, move |lane| {
            let Lane {
                ports,
                batch,
                umem,
                owners,
                pool,
                streams,
                ..
            } = lane;
            let port = ports.get(id).unwrap();
            port.queue.expect_stream();
            port.queue.refill(pool, owners, false);
            send_short("ap", BEFORE);
            send_bulk("ap");
            wait_until("all came", || port.queue.abandoned() == BEFORE);
            let memory = (&**umem, &**owners);
            wait_until("the stream came", || {
                receive_streams(port, batch, memory, pool, &mut streams.spares) > 0
            });
            let mut lengths = emptied(batch, pool);
            for _ in 0..BEFORE {
                ports.receive(0, batch, umem, owners, (pool, &mut streams.spares));
                lengths.extend(emptied(batch, pool));
            }
            lengths
        });
        let expected = [vec![64; BEFORE as usize], vec![20_000]].concat();
        assert_eq!(lengths, expected);
        assert_eq!(engine.port_stats(id).unwrap().drops, 0);
        engine.detach(id).unwrap();
        wait_until("every frame is home", || engine.stats().frames.in_use == 0);
    });
}

#[test]
fn a_stream_that_waits_behind_the_ring_goes_home_with_its_port() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let port = veth("a", 0);
        let id = port.id;
        engine.attach(port).unwrap();
        on_lane(&engine, 0, move |lane| {
            let frames: Vec<Frame> = (0..5).map(|_| lane.frame()).collect();
            let port = lane.ports.get(id).unwrap();
            port.behind.keep(1, frames.into_iter());
        });
        engine.detach(id).unwrap();
        assert_eq!(drops(&engine, DropReason::PortRemoved), 1);
        wait_until("every frame is home", || engine.stats().frames.in_use == 0);
    });
}

/// A port that takes packets into its ring, and no further.
fn attached_and_down(engine: &Engine) -> PortSpec {
    let port = veth("a", 0);
    engine.attach(port.clone()).unwrap();
    ip("link set dev a down");
    port
}

#[test]
fn a_refused_packet_counts_once_when_the_answer_finds_no_room() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let id = attached_and_down(&engine).id;
        let answer = Verdict::Reply {
            dropped: Some(DropReason::TtlExceeded),
        };
        on_lane(&engine, 0, move |lane| {
            lane.write(id, RING_SIZE, 1);
            lane.carry_out(id, answer);
        });
        let counted: u64 = engine.stats().drops.iter().sum();
        assert_eq!(drops(&engine, DropReason::TtlExceeded), 1);
        assert_eq!(counted, 1);
        assert_eq!(engine.port_stats(id).unwrap().drops, 1);
        // An answer that replaces nothing is lost, and that is a drop.
        on_lane(&engine, 0, move |lane| {
            lane.carry_out(id, Verdict::Reply { dropped: None });
        });
        assert_eq!(drops(&engine, DropReason::TxRingFull), 1);
    });
}

#[test]
fn an_answer_that_meets_a_full_ring_is_tried_again_after_a_flush() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let port = veth("a", 0);
        let id = port.id;
        engine.attach(port).unwrap();
        on_lane(&engine, 0, move |lane| {
            lane.write(id, RING_SIZE, 1);
            lane.carry_out(id, Verdict::Reply { dropped: None });
        });
        assert_eq!(drops(&engine, DropReason::TxRingFull), 0);
        assert_eq!(engine.port_stats(id).unwrap().tx_packets, 1);
    });
}

#[test]
fn a_removed_port_counts_packets_not_descriptors() {
    in_namespace(|| {
        let engine = engine(1, 512);
        let id = attached_and_down(&engine).id;
        on_lane(&engine, 0, move |lane| {
            lane.write(id, 2, 3);
            lane.write(id, 1, 1);
        });
        engine.detach(id).unwrap();
        assert_eq!(drops(&engine, DropReason::PortRemoved), 3);
    });
}

#[test]
fn a_capture_shows_only_what_left() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let id = attached_and_down(&engine).id;
        let capture = engine
            .capture(CaptureSpec {
                port: None,
                snaplen: 64,
            })
            .unwrap();
        let forward = Verdict::Forward {
            out: id,
            checksum: None,
        };
        on_lane(&engine, 0, move |lane| {
            lane.carry_out(PortId(9), forward);
            lane.write(id, RING_SIZE - 1, 1);
            lane.carry_out(PortId(9), forward);
        });
        let seen: Vec<_> = std::iter::from_fn(|| capture.next())
            .map(|packet| (packet.direction, packet.drop))
            .collect();
        assert_eq!(
            seen,
            [
                (Direction::In, None),
                (Direction::Out, None),
                (Direction::In, Some(DropReason::TxRingFull)),
            ]
        );
    });
}

#[test]
fn a_capture_has_all_of_its_port_and_nothing_of_the_next_one() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let (port, mut next) = (veth("a", 0), veth("b", 1));
        let id = port.id;
        next.id = id;
        engine.attach(port).unwrap();
        let capture = |port| {
            let spec = CaptureSpec { port, snaplen: 64 };
            engine.capture(spec).unwrap()
        };
        let [of_port, of_other, of_all] = [Some(id), Some(PortId(9)), None].map(capture);
        let from_it = |reason| {
            on_lane(&engine, 0, move |lane| {
                lane.carry_out(id, Verdict::Drop(reason));
            });
        };
        from_it(DropReason::Spoofed);
        assert!(!of_port.is_over());
        engine.detach(id).unwrap();
        assert!(!of_port.is_over(), "something is unread");
        engine.attach(next).unwrap();
        from_it(DropReason::NoRoute);
        let taken = |capture: &Capture| -> Vec<_> {
            let packets = std::iter::from_fn(|| capture.next());
            packets.filter_map(|packet| packet.drop).collect()
        };
        assert_eq!(taken(&of_port), [DropReason::Spoofed]);
        assert!(of_port.is_over());
        let both = [DropReason::Spoofed, DropReason::NoRoute];
        assert_eq!(taken(&of_all), both);
        assert!(!of_all.is_over() && !of_other.is_over());
    });
}

#[test]
fn a_chain_with_a_chunk_that_is_not_ours_is_dropped_whole() {
    in_namespace(|| {
        let engine = engine(1, 512);
        // Of several queues the kernel takes one by a hash that is another one
        // after each boot; this lane reads the first.
        let port = veth_with_queues("a", 0, 1);
        let id = port.id;
        engine.attach(port).unwrap();
        let tag = on_lane(&engine, 0, move |lane| {
            lane.ports.get(id).unwrap().queue.tag()
        });
        let chunks = on_lane(&engine, 0, move |lane| lane.steal(tag));
        assert!(!chunks.is_empty());
        ip("address add 192.0.2.1/24 broadcast 192.0.2.255 dev ap");
        let socket = std::net::UdpSocket::bind("192.0.2.1:9").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(&[0; 8], "192.0.2.255:9").unwrap();
        wait_until("the packet was dropped", || {
            drops(&engine, DropReason::BrokenChain) > 0
        });
        assert!(engine.port_stats(id).unwrap().drops > 0);
        on_lane(&engine, 0, move |lane| {
            for chunk in chunks {
                lane.owners.give(chunk, tag);
            }
        });
        engine.detach(id).unwrap();
        let home = || engine.stats().frames.in_use == 0;
        wait_until("every frame is home", home);
    });
}

/// Lets a lane look after its naps as it does after its rounds, while a port
/// brings a million short packets a second; returns how often it napped.
fn naps_under_a_flood(engine: &Engine, flooding: PortId, before: fn(&mut Lane, PortId)) -> u64 {
    const STEP_NANOS: u64 = 10_000;
    let naps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&naps);
    on_lane(engine, 0, move |lane| {
        lane.naps = Naps::default();
        before(lane, flooding);
        let napped = lane.shared.counters.naps.get();
        let start = lane.now();
        for step in 0..200 {
            let port = lane.ports.get(flooding).unwrap();
            port.counters.rx_packets.add(10);
            port.counters.rx_bytes.add(10 * 60);
            lane.naps.came(flooding);
            lane.nap(Nanos(start.0 + step * STEP_NANOS));
        }
        let now = lane.shared.counters.naps.get();
        counted.store(now - napped, Ordering::Relaxed);
    });
    naps.load(Ordering::Relaxed)
}

#[test]
fn a_lane_naps_under_a_flood_and_waits_for_nothing_else_then() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let id = attached_and_down(&engine).id;
        assert_eq!(
            naps_under_a_flood(&engine, id, |_, _| ()),
            0,
            "the port is not ready for a nap's packets",
        );
        on_lane(&engine, 0, move |lane| {
            let port = lane.ports.get(id).unwrap();
            let queue = &mut port.queue;
            queue.refill(&mut lane.pool, &lane.owners, false);
            assert!(queue.posted() >= 400, "{} chunks posted", queue.posted());
        });
        assert!(naps_under_a_flood(&engine, id, |_, _| ()) > 100);
        let stalled = naps_under_a_flood(&engine, id, |lane, id| lane.write(id, 1, 1));
        assert_eq!(stalled, 0, "a packet waits to be taken");
    });
}

#[test]
fn nobody_naps_over_packets_that_a_batch_had_no_room_for() {
    in_namespace(|| {
        let engine = engine(1, 4096);
        let port = veth_with_queues("a", 0, 1);
        let id = port.id;
        engine.attach(port).unwrap();
        // Enough chunks for naps.
        naps_under_a_flood(&engine, id, |_, _| ());
        let naps = naps_under_a_flood(&engine, id, |lane, id| {
            const EARLIER: usize = 40;
            for _ in 0..EARLIER {
                let frame = lane.frame();
                lane.batch.push(id, [frame]);
            }
            let port = lane.ports.get(id).unwrap();
            port.queue.refill(&mut lane.pool, &lane.owners, false);
            send_short("ap", 50);
            wait_until("all came", || port.queue.abandoned() >= 50);
            let (umem, owners) = (&lane.umem, &lane.owners);
            let more = std::slice::from_mut(&mut port.queue);
            receive_more(more, &mut lane.batch, id, umem, owners);
            assert_eq!(lane.batch.len(), Batch::MAX_PACKETS, "there is room");
            assert!(port.queue.waiting() > 0, "not for all");
            emptied(&mut lane.batch, &mut lane.pool);
        });
        assert_eq!(naps, 0);
        wait_until("they are taken", || {
            on_lane(&engine, 0, move |lane| {
                lane.ports.get(id).unwrap().queue.abandoned() == 0
            })
        });
        assert!(naps_under_a_flood(&engine, id, |_, _| ()) > 100);
    });
}
