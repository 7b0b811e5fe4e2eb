//! A forwarder between two devices on the `afxdp` crate, as its own example
//! does it: what one gets from that crate, with no switching at all.
//!
//! It is a baseline for comparisons and no more. The crate shares no UMEM
//! between interfaces, knows neither multi-buffer frames nor checksum
//! metadata, panics when a device goes away and leaves its program attached.

use std::io;

use afxdp::PENDING_LEN;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue};
use arraydeque::{ArrayDeque, Wrapping};

use crate::cpu;
use crate::measure::{MeasureError, io_error};
use crate::stop::Stop;
use crate::subject::LANE_CORE;

const FRAMES: usize = 16_384;
const FRAME_BYTES: usize = 2048;
const RING_SIZE: u32 = 2048;
/// The kernel sends at most 32 frames a call, and the crate calls once.
const BATCH: usize = 32;

/// The crate wants a value beside every frame.
#[derive(Debug, Clone, Copy, Default)]
struct Nothing;

type Frame = BufMmap<'static, Nothing>;

struct Port {
    completion: UmemCompletionQueue<'static, Nothing>,
    fill: UmemFillQueue<'static, Nothing>,
    receive: SocketRx<'static, Nothing>,
    transmit: SocketTx<'static, Nothing>,
    pending: ArrayDeque<[Frame; PENDING_LEN], Wrapping>,
    to_fill: usize,
    _socket: std::sync::Arc<Socket<'static, Nothing>>,
}

/// Forwards between two devices of the caller's namespace until `stop`,
/// polling without a pause on [`LANE_CORE`].
///
/// # Errors
/// When a socket cannot be made.
pub fn forward(devices: [&str; 2], stop: &Stop) -> Result<(), MeasureError> {
    cpu::pin(LANE_CORE).map_err(io_error("forwarder"))?;
    let (area, mut frames) = MmapArea::new(FRAMES, FRAME_BYTES, MmapAreaOptions::default())
        .map_err(|error| failed("mapping frames", &error))?;
    let mut ports = Vec::new();
    for device in devices {
        let (umem, completion, mut fill) = Umem::new(area.clone(), RING_SIZE, RING_SIZE)
            .map_err(|error| failed("registering frames", &error))?;
        let options = SocketOptions::default();
        let (socket, receive, transmit) =
            Socket::new(umem, device, 0, RING_SIZE, RING_SIZE, options)
                .map_err(|error| failed(&format!("binding to {device}"), &error))?;
        fill.fill(&mut frames, RING_SIZE as usize)
            .map_err(|error| failed("filling", &error))?;
        ports.push(Port {
            completion,
            fill,
            receive,
            transmit,
            pending: ArrayDeque::new(),
            to_fill: 0,
            _socket: socket,
        });
    }
    while !stop.is_set() {
        let (left, right) = ports.split_at_mut(1);
        relay(&mut left[0], &mut right[0], &mut frames)?;
        relay(&mut right[0], &mut left[0], &mut frames)?;
    }
    Ok(())
}

/// One batch from `from` to `to`.
fn relay(from: &mut Port, to: &mut Port, frames: &mut Vec<Frame>) -> Result<(), MeasureError> {
    to.completion
        .service(frames, 2 * BATCH)
        .map_err(|error| failed("taking sent frames back", &error))?;
    let received = from
        .receive
        .try_recv(&mut from.pending, BATCH, Nothing)
        .map_err(|error| failed("receiving", &error))?;
    from.to_fill += received;
    if received == 0 && from.fill.needs_wakeup() {
        from.receive.wake();
    }
    to.transmit
        .try_send(&mut from.pending, BATCH)
        .map_err(|error| failed("sending", &error))?;
    if from.to_fill >= BATCH {
        let filled = from
            .fill
            .fill(frames, from.to_fill)
            .map_err(|error| failed("filling", &error))?;
        from.to_fill -= filled;
    }
    Ok(())
}

fn failed(what: &str, error: &dyn std::fmt::Debug) -> MeasureError {
    io_error(format!("afxdp crate: {what}"))(io::Error::other(format!("{error:?}")))
}
