//! A piece of cable that lets frames overtake each other.

use crate::error::Result;
use crate::namespace::{Namespace, veth};
use crate::process::Process;

/// Frames from either end pass; every so manieth waits until three later ones
/// of its direction have passed, or a few milliseconds. Packet sockets and
/// Python: some ten thousand frames a second.
const SCRIPT: &str = r#"
import select, socket, sys, time
every, later, longest = int(sys.argv[3]), 3, 0.004
ends = []
for name in sys.argv[1:3]:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    end.bind((name, 0))
    end.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    end.setblocking(False)
    ends.append(end)
other = {ends[0]: ends[1], ends[1]: ends[0]}
count = {end: 0 for end in ends}
held = {end: None for end in ends}
def send(end, frame):
    try:
        other[end].send(frame)
    except OSError:
        pass  # longer than the link, or no room: a cable says nothing
print("ready", flush=True)
while True:
    ready, _, _ = select.select(ends, [], [], longest)
    for end in ready:
        for _ in range(64):
            try:
                frame, where = end.recvfrom(65600)
            except BlockingIOError:
                break
            if where[2] == 4:  # PACKET_OUTGOING: our own
                continue
            count[end] += 1
            if held[end] is None and count[end] % every == 0:
                held[end] = [frame, later, time.monotonic() + longest]
                continue
            send(end, frame)
            if held[end] is not None:
                held[end][1] -= 1
    now = time.monotonic()
    for end in ends:
        if held[end] is not None and (held[end][1] <= 0 or held[end][2] <= now):
            send(end, held[end][0])
            held[end] = None
"#;

/// Puts such a cable between a bridge and one of its ports; it works until it
/// is dropped. Every `every`th frame is overtaken.
///
/// # Errors
/// When a step fails.
pub fn disorder(link: &Namespace, port: &str, every: u32) -> Result<Process> {
    let [near, far] = [format!("{port}-near"), format!("{port}-far")];
    veth((link, &near), (link, &far))?;
    link.ip(&format!("link set {port} nomaster promisc on"))?;
    link.ip(&format!("link set {near} promisc on"))?;
    link.ip(&format!("link set {far} master br0"))?;
    let every = every.to_string();
    link.spawn(&["/usr/bin/python3", "-c", SCRIPT, port, &near, &every])
}
