//! Binding a port's sockets: which memory they share, how frames move, how
//! long the rings are.
//!
//! The kernel ties every sharer of a registration of the frame memory to the
//! first one's way of moving frames. The same memory is therefore registered
//! twice: once for all ports that copy, and once for the queues of an uplink
//! whose device reads and writes it by itself. Offsets agree, so a frame goes
//! from one to the other by its descriptor.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Inner, PortError, PortSpec, UplinkSpec, lock};
use crate::port::PortHandle;
use crate::xsk::queue::{FILL_MIN, FILL_STREAM, Queue};
use crate::xsk::socket::{Memory, RING_SIZE, Socket, Transfer};

/// Just after another socket of the queue was closed the kernel still refuses
/// to bind, until it has got round to let go of it (`xp_release_deferred`,
/// net/xdp/xsk_buff_pool.c): milliseconds, on a machine without a CPU to spare
/// longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// While the last queue was waited for in vain: somebody may hold them all.
const LITTLE_PATIENCE: Duration = Duration::from_millis(200);
/// Pauses between tries, each twice as long as the one before.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

/// Sockets that the uplink's program has room for in its map.
const MAX_QUEUES: u32 = 64;

/// Longest rings of a socket.
const LONGEST_RING: u32 = 8192;

/// Chunks that are kept for each queue of an uplink whose rings nobody knows:
/// what a network card's have by default, since what comes by it is a chunk a
/// segment, and a few super-frames' segments come at once.
const USUAL_RING: u32 = 512;

impl Inner {
    /// Binds a socket of a port that copies. It shares the frame memory with
    /// any live one; the first, and the first after all were lost, registers
    /// it.
    pub(super) fn bind(&self, spec: &PortSpec, queue: u32) -> Result<Queue, PortError> {
        let socket = self.patiently(spec, queue, || {
            self.bind_copying(spec.ifindex, queue, RING_SIZE)
        })?;
        Ok(Queue::new(socket, FILL_MIN, FILL_STREAM))
    }

    fn bind_copying(&self, ifindex: u32, queue: u32, ring_size: u32) -> io::Result<Socket> {
        // Copies: binding waits for the kernel, and statistics must not wait
        // along. `changes` is held, so no port is closed meanwhile.
        let sockets: Vec<_> = lock(&self.ports)
            .values()
            .filter_map(PortHandle::copying_socket)
            .collect();
        for shared in &sockets {
            match Socket::bind(ifindex, queue, Memory::Share(shared.as_fd()), ring_size) {
                // That socket's device is gone.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => continue,
                answer => return answer,
            }
        }
        let memory = Memory::Register(&self.umem, Transfer::Copy);
        Socket::bind(ifindex, queue, memory, ring_size)
    }

    /// One socket for each queue that the uplink's device really has, all
    /// moving frames in the same way.
    pub(super) fn bind_uplink(
        &self,
        spec: &UplinkSpec,
        transfer: Transfer,
    ) -> Result<Vec<Queue>, PortError> {
        let wanted = spec.queues.clamp(1, MAX_QUEUES);
        let ring_size = spec
            .receive_ring
            .next_power_of_two()
            .clamp(RING_SIZE, LONGEST_RING);
        // What the device fills at once, as far as the others can spare it.
        let share = self.config.frames as u32 / 8 / wanted;
        let fills = match spec.receive_ring {
            0 => USUAL_RING,
            known => known,
        };
        let fill_floor = fills.min(share);
        // All other nodes may send at once.
        let fill_stream = share.max(FILL_STREAM);
        let mut queues: Vec<Queue> = Vec::new();
        for queue in 0..wanted {
            let bound = self.patiently(&spec.port, queue, || {
                let memory = match (transfer, queues.first()) {
                    (Transfer::Copy, _) => {
                        return self.bind_copying(spec.port.ifindex, queue, ring_size);
                    }
                    (_, Some(first)) => Memory::Share(first.fd()),
                    (_, None) => Memory::Register(&self.umem, transfer),
                };
                Socket::bind(spec.port.ifindex, queue, memory, ring_size)
            });
            match bound {
                Ok(socket) => queues.push(Queue::new(socket, fill_floor, fill_stream)),
                // Fewer are in use than the device could have.
                Err(PortError::Bind { source, .. })
                    if queue > 0 && source.raw_os_error() == Some(libc::EINVAL) =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        match queues.len() < self.lanes.len() {
            true => Err(PortError::Queues {
                port: spec.port.name.clone(),
                queues: queues.len(),
                lanes: self.lanes.len(),
            }),
            false => Ok(queues),
        }
    }

    /// Tries again while the kernel is still busy with a socket that was
    /// closed.
    fn patiently(
        &self,
        spec: &PortSpec,
        queue: u32,
        bind: impl Fn() -> io::Result<Socket>,
    ) -> Result<Socket, PortError> {
        // Relaxed: a hint.
        let patience = match self.is_impatient.load(Ordering::Relaxed) {
            true => LITTLE_PATIENCE,
            false => PATIENCE,
        };
        let began = Instant::now();
        let mut pause = PAUSES[0];
        loop {
            let source = match bind() {
                Ok(socket) => {
                    self.is_impatient.store(false, Ordering::Relaxed);
                    return Ok(socket);
                }
                Err(error) => error,
            };
            let is_busy = source.raw_os_error() == Some(libc::EBUSY);
            let is_over = began.elapsed() >= patience || self.stopping.load(Ordering::Acquire);
            if !is_busy || is_over {
                self.is_impatient.fetch_or(is_busy, Ordering::Relaxed);
                return Err(PortError::Bind {
                    port: spec.name.clone(),
                    queue,
                    source,
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES[1]);
        }
    }
}
