//! Child processes that end with the value that stands for them.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::error::{LabError, Result};

/// A running program whose output is collected. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    line: String,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Process {
    /// Starts `command` with its output collected and no input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let line = command_line(&command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(LabError::io(format!("start `{line}`")))?;
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Self {
            child,
            line,
            stdout,
            stderr,
        })
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; one that has ended already is no failure.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        }
    }

    /// Waits for the end and hands over the output.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it still runs after `timeout` and
    /// [`PATIENCE`] (it is killed).
    pub fn wait(mut self, timeout: Duration) -> Result<Output> {
        let status = wait_child(&mut self.child, timeout).map_err(|error| match error {
            LabError::Timeout { seconds, .. } => LabError::Timeout {
                what: format!("`{}` to end", self.line),
                seconds,
            },
            other => other,
        })?;
        Ok(Output {
            status,
            stdout: joined(self.stdout.take()),
            stderr: joined(self.stderr.take()),
        })
    }

    /// Asks for the end by SIGINT (iperf3, tcpdump and tshark then finish
    /// their output) and hands over what was printed.
    ///
    /// # Errors
    /// As [`Process::wait`].
    pub fn interrupt(mut self, timeout: Duration) -> Result<Output> {
        self.signal(Signal::SIGINT);
        self.wait(timeout)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child, looking often.
pub(crate) fn wait_child(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    let timeout = timeout.max(PATIENCE);
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(LabError::Timeout {
                    what: format!("process {} to end", child.id()),
                    seconds: timeout.as_secs_f64(),
                });
            }
            Err(source) => {
                return Err(LabError::Io {
                    what: format!("wait for process {}", child.id()),
                    source,
                });
            }
        }
    }
}

/// Runs a command to its end; standard output when it succeeds.
pub(crate) fn run(mut command: Command) -> Result<String> {
    let line = command_line(&command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(LabError::io(format!("start `{line}`")))?;
    success(&line, &output)
}

/// Standard output of a finished program, or what it complained about.
pub(crate) fn success(line: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(LabError::Command {
        command: line.to_owned(),
        status: output.status.to_string(),
        output: format!(
            "{} {}",
            String::from_utf8_lossy(&output.stderr).trim(),
            stdout.trim()
        ),
    })
}

/// A command as one would type it.
pub(crate) fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn joined(handle: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    handle
        .and_then(|handle| handle.join().ok())
        .unwrap_or_default()
}
