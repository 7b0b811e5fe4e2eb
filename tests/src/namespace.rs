//! Network namespaces with a name under `/run/netns`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

use crate::error::{LabError, Result};
use crate::process::{Process, run};
use crate::watch;

/// Numbers the namespaces of this process; only uniqueness matters.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of our own, loopback up; deleted on drop together with
/// every process that still runs in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes `slPID-N-LABEL`.
    ///
    /// # Errors
    /// When the kernel or iproute2 refuses.
    pub fn create(label: &str) -> Result<Self> {
        watch::start()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self {
            name: format!("{}-{number}-{label}", watch::prefix()),
        };
        ip(&["netns", "add", &namespace.name])?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, as a runtime hands it to a plugin in `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run inside (with `/sys` of the namespace). The
    /// process that it becomes is the program itself, so signals reach it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program.as_ref());
        command
    }

    /// Runs a program inside and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        run(self.argv(argv)?)
    }

    /// Has everything that leaves by `device` cut and summed up before, as on a
    /// cable; a virtual pair carries it whole otherwise.
    ///
    /// # Errors
    /// [`LabError::Command`] when the device refuses.
    pub fn cut_before_the_wire(&self, device: &str) -> Result<()> {
        let off = format!("ethtool -K {device} tx off tso off tx-udp-segmentation off");
        self.sh(&off).map(drop)
    }

    /// Has TCP that sends from here repeat nothing because time passes: no tail
    /// loss probes, and a second until an answer is overdue, where the
    /// kernel has that setting (Linux 6.11). What is sent again was lost then,
    /// or overtaken, also on a machine that stands still for a moment.
    ///
    /// # Errors
    /// [`LabError::Command`] when the kernel refuses.
    pub fn is_patient(&self) -> Result<()> {
        self.sh("echo 0 > /proc/sys/net/ipv4/tcp_early_retrans\n\
                 sysctl -eqw net.ipv4.tcp_rto_min_us=1000000")
            .map(drop)
    }

    /// Runs a shell line inside and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-ec", line])
    }

    /// Runs iproute2 on the namespace; `arguments` are separated by blanks.
    ///
    /// # Errors
    /// [`LabError::Command`] when it fails.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut argv = vec!["-n", self.name.as_str()];
        argv.extend(arguments.split_whitespace());
        ip(&argv)
    }

    /// Starts a program inside, its output collected.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        Process::spawn(self.argv(argv)?)
    }

    /// Runs `body` on a thread that is inside, and waits for it; a panic goes
    /// on in the caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            match scope
                .spawn(move || enter_here(&path).map(|()| body()))
                .join()
            {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `body` on a thread that is inside, without waiting.
    pub fn thread<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = self.path();
        std::thread::spawn(move || enter_here(&path).map(|()| body()))
    }

    /// Writes a sysctl of the namespace, `net.ipv4.ip_forward` or
    /// `net/ipv4/conf/eth0.5/rp_filter`.
    ///
    /// # Errors
    /// When there is no such key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let relative = if key.contains('/') {
            key.to_owned()
        } else {
            key.replace('.', "/")
        };
        let path = Path::new("/proc/sys").join(relative);
        self.enter(|| {
            std::fs::write(&path, value)
                .map_err(LabError::io(format!("write {value} to {}", path.display())))
        })?
    }

    fn argv(&self, argv: &[&str]) -> Result<Command> {
        let (program, arguments) = argv
            .split_first()
            .ok_or_else(|| LabError::unexpected("run in a namespace", "no program was named"))?;
        let mut command = self.command(program);
        command.args(arguments);
        Ok(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        if let Ok(pids) = ip(&["netns", "pids", &self.name]) {
            let strangers: Vec<&str> = pids.split_whitespace().filter(|pid| *pid != own).collect();
            if !strangers.is_empty() {
                let _ = Command::new("kill").arg("-9").args(strangers).output();
            }
        }
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Connects two namespaces by a veth pair and sets both ends up.
///
/// # Errors
/// When the kernel refuses.
pub fn veth(left: (&Namespace, &str), right: (&Namespace, &str)) -> Result<()> {
    left.0.ip(&format!(
        "link add {} type veth peer name {} netns {}",
        left.1,
        right.1,
        right.0.name()
    ))?;
    left.0.ip(&format!("link set {} up", left.1))?;
    right.0.ip(&format!("link set {} up", right.1))?;
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments);
    run(command)
}

fn enter_here(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(LabError::io(format!("open {}", path.display())))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| LabError::Io {
        what: format!("enter {}", path.display()),
        source: errno.into(),
    })
}
