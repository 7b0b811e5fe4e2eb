//! Calls of a CNI plugin as a container runtime makes them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::process;
use crate::programs::program;

/// One call: the environment and the configuration on standard input.
#[derive(Debug, Clone)]
pub struct Call {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`; not set when empty.
    pub container_id: String,
    /// `CNI_NETNS`; not set when empty.
    pub netns: PathBuf,
    /// `CNI_IFNAME`; not set when empty.
    pub ifname: String,
    /// `CNI_ARGS`; not set when empty.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// Standard input.
    pub config: Value,
}

/// What a plugin answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit status; -1 when a signal ended it.
    pub exit: i32,
    /// Standard output, `Null` when it was empty.
    pub output: Value,
    /// Standard error.
    pub stderr: String,
    /// From the start of the process to its end.
    pub elapsed: Duration,
}

impl Answer {
    /// The result of a call that has to succeed.
    ///
    /// # Errors
    /// [`LabError::Unexpected`] with the plugin's error object.
    pub fn success(self, what: &str) -> Result<Value> {
        if self.exit == 0 {
            return Ok(self.output);
        }
        Err(LabError::unexpected(
            what,
            format!("exit {}: {} {}", self.exit, self.output, self.stderr),
        ))
    }

    /// `code` of the error object.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.output.get("code").and_then(Value::as_u64)
    }
}

impl Call {
    /// A call without container, interface and arguments.
    #[must_use]
    pub fn new(command: &str, config: Value) -> Self {
        Self {
            command: command.to_owned(),
            container_id: String::new(),
            netns: PathBuf::new(),
            ifname: String::new(),
            args: String::new(),
            path: "/usr/lib/cni:/opt/cni/bin".to_owned(),
            config,
        }
    }

    /// Runs `spinlane-cni` in the node's namespace, as the node's container
    /// runtime would.
    ///
    /// # Errors
    /// When it cannot be started or prints something that is not JSON.
    pub fn invoke(&self, node: &Namespace) -> Result<Answer> {
        node.enter(|| self.invoke_here())?
    }

    /// Runs `spinlane-cni` in the namespace of the calling thread.
    ///
    /// # Errors
    /// When it cannot be started or prints something that is not JSON.
    pub fn invoke_here(&self) -> Result<Answer> {
        self.run(&program("spinlane-cni")?)
    }

    /// Runs another plugin in the node's namespace.
    ///
    /// # Errors
    /// When it cannot be started or prints something that is not JSON.
    pub fn invoke_program(&self, program: &Path, node: &Namespace) -> Result<Answer> {
        node.enter(|| self.run(program))?
    }

    fn run(&self, program: &Path) -> Result<Answer> {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", &self.command)
            .env("CNI_PATH", &self.path);
        for (name, value) in [
            ("CNI_CONTAINERID", self.container_id.as_str()),
            ("CNI_IFNAME", self.ifname.as_str()),
            ("CNI_ARGS", self.args.as_str()),
        ] {
            if !value.is_empty() {
                command.env(name, value);
            }
        }
        if !self.netns.as_os_str().is_empty() {
            command.env("CNI_NETNS", &self.netns);
        }
        exchange(command, &self.config)
    }
}

fn exchange(mut command: Command, config: &Value) -> Result<Answer> {
    let line = process::command_line(&command);
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(LabError::io(format!("start `{line}`")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin may answer without reading (VERSION); that is its right.
        let _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(LabError::io(format!("wait for `{line}`")))?;
    let elapsed = began.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    let value = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text)
            .map_err(|error| LabError::unexpected(line, format!("{error} in {text:?}")))?
    };
    Ok(Answer {
        exit: output.status.code().unwrap_or(-1),
        output: value,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        elapsed,
    })
}
