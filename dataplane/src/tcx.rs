//! Puts a program on an interface for as long as the interface exists.
//!
//! A link would go with the process, and a pod's TCP would fall back to another
//! way while the agent is away. Attached by itself (`BPF_PROG_ATTACH`), a
//! program stays until its interface goes (kernel/bpf/tcx.c). So an interface
//! may have one of an earlier process, or of an earlier version, already: the
//! kernel would run both, one after the other. Here one replaces the other.
#![allow(unsafe_code)] // the bpf system call

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType};

/// `enum bpf_cmd`, `enum bpf_attach_type` and flags, include/uapi/linux/bpf.h.
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_REPLACE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;

/// Which packets of an interface a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Those that come.
    Ingress,
    /// Those that leave.
    Egress,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Hook::Ingress => BPF_TCX_INGRESS,
            Hook::Egress => BPF_TCX_EGRESS,
        }
    }

    /// Where a new program goes: before others that would hand the kernel what
    /// comes, behind others that change what leaves.
    fn place(self) -> u32 {
        match self {
            Hook::Ingress => BPF_F_BEFORE,
            Hook::Egress => 0,
        }
    }

    fn kind(self) -> TcAttachType {
        match self {
            Hook::Ingress => TcAttachType::Ingress,
            Hook::Egress => TcAttachType::Egress,
        }
    }
}

/// The part of `union bpf_attr` that attaching and detaching read.
#[repr(C)]
#[derive(Default)]
struct Attachment {
    target_ifindex: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

/// An interface of the calling thread's network namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interface<'a> {
    pub(crate) name: &'a str,
    pub(crate) index: u32,
}

/// Why a program could not be put on an interface.
#[derive(Debug, thiserror::Error)]
pub enum TcxError {
    /// What is there cannot be read.
    #[error("cannot read which programs {interface} has: {source}")]
    Read {
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: ProgramError,
    },
    /// The kernel refuses the change.
    #[error("the kernel refuses a program for the TCP of {interface}: {source}")]
    Change {
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Sees to it that of all programs of this one's name exactly one stands at a
/// hook: one that is there already and has the same instructions, else
/// this one, in the place of an other or behind what is there.
pub(crate) fn keep_one(
    interface: Interface<'_>,
    hook: Hook,
    program: &SchedClassifier,
) -> Result<(), TcxError> {
    let unread = |source| TcxError::Read {
        interface: interface.name.to_owned(),
        source,
    };
    let refused = |source| TcxError::Change {
        interface: interface.name.to_owned(),
        source,
    };
    let ours = program.info().map_err(unread)?;
    let mut there = programs_at(interface.name, hook).map_err(unread)?;
    there.retain(|other| other.name() == ours.name());
    let same = there.iter().position(|other| other.tag() == ours.tag());
    let kept = same.or(there.len().checked_sub(1));
    let kept = kept.map(|at| there.swap_remove(at));
    let fd = program.fd().map_err(unread)?.as_fd();
    match kept {
        Some(_) if same.is_some() => {}
        Some(old) => {
            let old = old.fd().map_err(unread)?;
            attach((interface.index, hook), fd, Some(old.as_fd())).map_err(refused)?;
        }
        None => attach((interface.index, hook), fd, None).map_err(refused)?,
    }
    for surplus in there {
        let surplus = surplus.fd().map_err(unread)?;
        detach((interface.index, hook), surplus.as_fd()).map_err(refused)?;
    }
    Ok(())
}

/// Whether a program of this one's name and instructions stands at a hook.
pub(crate) fn stands(
    interface: Interface<'_>,
    hook: Hook,
    program: &SchedClassifier,
) -> Result<bool, TcxError> {
    let unread = |source| TcxError::Read {
        interface: interface.name.to_owned(),
        source,
    };
    let ours = program.info().map_err(unread)?;
    let there = programs_at(interface.name, hook).map_err(unread)?;
    let is_same = |other: &ProgramInfo| other.name() == ours.name() && other.tag() == ours.tag();
    Ok(there.iter().any(is_same))
}

/// What stands at a hook of an interface, in order.
pub(crate) fn programs_at(interface: &str, hook: Hook) -> Result<Vec<ProgramInfo>, ProgramError> {
    match SchedClassifier::query_tcx(interface, hook.kind()) {
        Ok((_, programs)) => Ok(programs),
        // The hook itself comes with its first program.
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Attaches a program in the place of another, or beside what is there.
pub(crate) fn attach(
    (ifindex, hook): (u32, Hook),
    program: BorrowedFd<'_>,
    instead_of: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    change(
        BPF_PROG_ATTACH,
        &Attachment {
            target_ifindex: ifindex,
            attach_bpf_fd: program.as_raw_fd() as u32,
            attach_type: hook.number(),
            attach_flags: instead_of.map_or(hook.place(), |_| BPF_F_REPLACE),
            replace_bpf_fd: instead_of.map_or(0, |old| old.as_raw_fd() as u32),
            ..Attachment::default()
        },
    )
}

/// Takes a program away.
pub(crate) fn detach((ifindex, hook): (u32, Hook), program: BorrowedFd<'_>) -> io::Result<()> {
    change(
        BPF_PROG_DETACH,
        &Attachment {
            target_ifindex: ifindex,
            attach_bpf_fd: program.as_raw_fd() as u32,
            attach_type: hook.number(),
            ..Attachment::default()
        },
    )
}

fn change(command: libc::c_long, attachment: &Attachment) -> io::Result<()> {
    // SAFETY: the structure is live and of the given length; the kernel only
    // reads it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attachment),
            size_of::<Attachment>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use aya::{Ebpf, EbpfLoader};

    use super::*;
    use crate::engine::tests::{in_namespace, veth};
    use crate::port::{POD, PORT, ProgramLoader, lead, load_lead};

    /// What stands at the hook: numbers of the programs, in order.
    fn ids() -> Vec<u32> {
        let programs = programs_at("a", Hook::Egress).unwrap();
        programs.iter().map(ProgramInfo::id).collect()
    }

    /// Our program as another process would load it, or another version of it.
    fn loaded(is_other_version: bool) -> (Ebpf, u32) {
        let mut object = POD.to_vec();
        if is_other_version {
            // Another mark on what comes by a second time.
            let (mark, other) = (0x5b1d_u32.to_le_bytes(), 0x5b1e_u32.to_le_bytes());
            let at: Vec<usize> = (0..object.len() - 4)
                .filter(|&at| object[at..at + 4] == mark)
                .collect();
            assert!(!at.is_empty(), "the program marks what it leads");
            for at in at {
                object[at..at + 4].copy_from_slice(&other);
            }
        }
        let ebpf = load_lead(&mut EbpfLoader::new(), &object).unwrap();
        let id = lead(&ebpf).unwrap().info().unwrap().id();
        (ebpf, id)
    }

    fn attach_beside(index: u32, ebpf: &Ebpf) {
        let fd = lead(ebpf).unwrap().fd().unwrap();
        attach((index, Hook::Egress), fd.as_fd(), None).unwrap();
    }

    #[test]
    fn one_program_of_ours_stays_whatever_was_there() {
        in_namespace(|| {
            let index = veth("a", 0).ifindex;
            let interface = Interface { name: "a", index };
            let ((same, same_id), (other, other_id)) = (loaded(false), loaded(true));
            assert_eq!(ids().len(), 0);
            // One is put where none is, and asking again changes nothing.
            let agent = ProgramLoader::new();
            assert!(!agent.leads_streams(interface).unwrap());
            agent.lead_streams(interface).unwrap();
            let first = ids();
            assert_eq!(first.len(), 1);
            assert!(agent.leads_streams(interface).unwrap());
            agent.lead_streams(interface).unwrap();
            assert_eq!(ids(), first);
            // The next process leaves the same program as it is: that knows
            // which connections it leads.
            ProgramLoader::new().lead_streams(interface).unwrap();
            assert_eq!(ids(), first);
            // Of several one is left,
            attach_beside(index, &other);
            attach_beside(index, &same);
            assert_eq!(ids(), [first[0], other_id, same_id]);
            agent.lead_streams(interface).unwrap();
            assert_eq!(ids(), first);
            // and another version gives way.
            attach_beside(index, &other);
            let ours = lead(&same).unwrap();
            detach_first(index);
            assert_eq!(ids(), [other_id]);
            assert!(!agent.leads_streams(interface).unwrap());
            keep_one(interface, Hook::Egress, ours).unwrap();
            assert_eq!(ids(), [same_id]);
        });
    }

    #[test]
    fn what_comes_is_kept_from_others_and_from_the_host() {
        in_namespace(|| {
            let index = veth("a", 0).ifindex;
            let interface = Interface { name: "a", index };
            let come = || -> Vec<u32> {
                let programs = programs_at("a", Hook::Ingress).unwrap();
                programs.iter().map(ProgramInfo::id).collect()
            };
            let (theirs, theirs_id) = loaded(false);
            let fd = lead(&theirs).unwrap().fd().unwrap();
            attach((index, Hook::Ingress), fd.as_fd(), None).unwrap();
            let mut ours = EbpfLoader::new().load(PORT).unwrap();
            let taken: &mut SchedClassifier = ours
                .program_mut("spinlane_taken")
                .unwrap()
                .try_into()
                .unwrap();
            taken.load().unwrap();
            let id = taken.info().unwrap().id();
            for _ in 0..2 {
                keep_one(interface, Hook::Ingress, taken).unwrap();
                assert_eq!(come(), [id, theirs_id], "ours before theirs");
            }
            // It outlives who attached it.
            drop(ours);
            assert_eq!(come(), [id, theirs_id]);
        });
    }

    fn detach_first(index: u32) {
        let programs = programs_at("a", Hook::Egress).unwrap();
        let fd = programs[0].fd().unwrap();
        detach((index, Hook::Egress), fd.as_fd()).unwrap();
    }

    #[test]
    fn programs_of_others_keep_their_places() {
        in_namespace(|| {
            let index = veth("a", 0).ifindex;
            let mut port = EbpfLoader::new().load(PORT).unwrap();
            let others: &mut SchedClassifier = port
                .program_mut("spinlane_taken")
                .unwrap()
                .try_into()
                .unwrap();
            others.load().unwrap();
            let fd = others.fd().unwrap();
            attach((index, Hook::Egress), fd.as_fd(), None).unwrap();
            let (old, old_id) = loaded(true);
            attach_beside(index, &old);
            let theirs = others.info().unwrap().id();
            assert_eq!(ids(), [theirs, old_id]);
            let (new, new_id) = loaded(false);
            let interface = Interface { name: "a", index };
            keep_one(interface, Hook::Egress, lead(&new).unwrap()).unwrap();
            assert_eq!(ids(), [theirs, new_id]);
        });
    }
}
