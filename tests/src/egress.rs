//! The programs at a device's egress hook (tcx), asked of the kernel by the
//! bpf system call: what stands there, and changes as somebody else may make
//! them.

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::{PATIENCE, wait_for};

/// `bpf(2)` by Python: changes what it is told to, then prints number and name
/// of every program. Numbers and layouts are those of include/uapi/linux/bpf.h.
const SCRIPT: &str = r#"
import ctypes, os, platform, socket, struct, sys
device, what, *which = sys.argv[1:]
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
PROG_ATTACH, PROG_DETACH, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 8, 9, 13, 15, 16
TCX_EGRESS = 47
index = socket.if_nametoindex(device)

def bpf(command, layout, *values):
    attributes = ctypes.create_string_buffer(struct.pack("=" + layout, *values), struct.calcsize("=" + layout))
    result = libc.syscall(number, command, attributes, len(attributes))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result, attributes

def programs():
    ids = (ctypes.c_uint32 * 64)()
    try:
        _, answer = bpf(PROG_QUERY, "IIIIQIIQQQQ", index, TCX_EGRESS, 0, 0,
                        ctypes.addressof(ids), len(ids), 0, 0, 0, 0, 0)
    except FileNotFoundError:
        return []
    return ids[:struct.unpack_from("=I", answer, 24)[0]]

def opened(program):
    return bpf(PROG_GET_FD_BY_ID, "III", program, 0, 0)[0]

def change(command, program):
    bpf(command, "IIII", index, opened(program), TCX_EGRESS, 0)

def name(program):
    info = ctypes.create_string_buffer(128)
    bpf(OBJ_GET_INFO_BY_FD, "IIQ", opened(program), len(info), ctypes.addressof(info))
    return info.raw[64:80].split(b"\0")[0].decode()

if what == "clear":
    for program in programs():
        change(PROG_DETACH, program)
if what == "add":
    change(PROG_ATTACH, int(which[0]))
for program in programs():
    print(program, name(program))
"#;

/// A program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its number, which no other has.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The programs at a device's egress hook, in the order in which they run.
///
/// # Errors
/// When the kernel refuses.
pub fn programs(namespace: &Namespace, device: &str) -> Result<Vec<Program>> {
    ask(namespace, &[device, "list"])
}

/// Waits until a pod's device has the agent's program, which comes after ADD's
/// answer. Gives the programs at its egress hook.
///
/// # Errors
/// When it does not come.
pub fn led(namespace: &Namespace, device: &str) -> Result<Vec<Program>> {
    wait_for("the program that leads a pod's TCP", PATIENCE, || {
        let programs = programs(namespace, device).ok()?;
        programs
            .iter()
            .any(|program| program.name == "spinlane_lead")
            .then_some(programs)
    })
}

/// Takes every program away from a device's egress hook.
///
/// # Errors
/// When the kernel refuses.
pub fn clear(namespace: &Namespace, device: &str) -> Result<()> {
    ask(namespace, &[device, "clear"]).map(drop)
}

/// Puts a program that the kernel has behind those at a device's egress hook.
///
/// # Errors
/// When there is none of that number or the kernel refuses.
pub fn add(namespace: &Namespace, device: &str, program: &Program) -> Result<()> {
    ask(namespace, &[device, "add", &program.id.to_string()]).map(drop)
}

fn ask(namespace: &Namespace, arguments: &[&str]) -> Result<Vec<Program>> {
    let mut argv = vec!["/usr/bin/python3", "-c", SCRIPT];
    argv.extend(arguments);
    let text = namespace.run(&argv)?;
    let programs = text.lines().map(|line| {
        let (id, name) = line.split_once(' ')?;
        Some(Program {
            id: id.parse().ok()?,
            name: name.to_owned(),
        })
    });
    let programs: Option<Vec<Program>> = programs.collect();
    programs.ok_or_else(|| LabError::unexpected("programs at the egress hook", text))
}
