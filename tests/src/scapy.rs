//! Packets that no protocol stack would send, made by scapy.

use crate::error::Result;
use crate::namespace::Namespace;

/// Sends packets out of `interface` inside a namespace. Each of `packets` is a
/// scapy expression for a whole frame and how often it is sent; `prelude` is
/// Python that goes before (addresses, for example). They are paced, so that
/// a queue of the receiver that is short loses none.
///
/// # Errors
/// [`crate::LabError::Command`] when scapy cannot make or send one.
pub fn send(
    from: &Namespace,
    interface: &str,
    prelude: &str,
    packets: &[(String, u32)],
) -> Result<()> {
    let mut script = format!(
        "import logging, time; logging.getLogger('scapy.runtime').setLevel(logging.ERROR)\n\
         from scapy.all import *\n\
         conf.verb = 0\n\
         out = conf.L2socket(iface={interface:?})\n\
         {prelude}\n"
    );
    for (expression, count) in packets {
        script.push_str(&format!(
            "for _ in range({count}): out.send({expression}); time.sleep(0.001)\n"
        ));
    }
    // Debian's python, which has Debian's scapy.
    from.run(&["/usr/bin/python3", "-c", &script]).map(drop)
}
