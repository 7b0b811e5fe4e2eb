//! An agent that the test plays, and calls of the program under test.
#![allow(dead_code)] // each test program uses its own part of it

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use spinlane_api::cni::{AddResult, Request, Response};

/// A namespace file that every process has and that is not the network's, so
/// that no test needs root: the plugin only passes it on.
pub(crate) const NETNS: &str = "/proc/self/ns/uts";

type Seen = Arc<Mutex<Vec<(Request, Option<u64>)>>>;

/// Directories of a test and the requests that reached its agent.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    seen: Seen,
}

impl Stage {
    /// Nobody answers.
    pub(crate) fn empty() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            seen: Seen::default(),
        }
    }

    /// `answer` answers; where it returns `None` the connection just ends.
    pub(crate) fn answering(
        answer: impl Fn(&Request) -> Option<Response> + Send + 'static,
    ) -> Self {
        Self::empty().answer(answer)
    }

    /// The agent starts.
    pub(crate) fn answer(
        self,
        answer: impl Fn(&Request) -> Option<Response> + Send + 'static,
    ) -> Self {
        let listener =
            UnixListener::bind(self.run_dir().join(spinlane_api::CNI_SOCKET)).expect("a socket");
        let seen = Arc::clone(&self.seen);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream, &answer, &seen);
            }
        });
        self
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// A network configuration for this agent with more keys.
    pub(crate) fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "spinlane-cni",
            "runDir": self.run_dir(),
        });
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let seen = self.seen.lock().expect("no panic in the agent");
        seen.iter().map(|(request, _)| request.clone()).collect()
    }

    /// The one request that came, with the inode of its descriptor.
    pub(crate) fn only_request(&self) -> (Request, Option<u64>) {
        let seen = self.seen.lock().expect("no panic in the agent");
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }

    /// Recorded deletions.
    pub(crate) fn pending(&self) -> Vec<Value> {
        let dir = self.run_dir().join(spinlane_api::PENDING_DELETIONS_DIR);
        let Ok(entries) = std::fs::read_dir(dir) else {
            return Vec::new();
        };
        entries
            .map(|entry| {
                let path = entry.expect("a directory entry").path();
                assert_eq!(path.extension().and_then(|e| e.to_str()), Some("json"));
                serde_json::from_slice(&std::fs::read(path).expect("a record")).expect("JSON")
            })
            .collect()
    }

    /// Installs an IPAM plugin: a shell script that notes its calls first.
    /// `$INPUT` is a file with its standard input.
    pub(crate) fn install_ipam(&self, name: &str, script: &str) {
        let dir = self.ipam_dir();
        std::fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join(name);
        let text = format!(
            "#!/bin/sh\necho $CNI_COMMAND >>{dir}/calls\nINPUT={dir}/input\ncat >$INPUT\n{script}\n",
            dir = dir.display()
        );
        std::fs::write(&path, text).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// `CNI_PATH` that leads to the installed plugins.
    pub(crate) fn ipam_path(&self) -> String {
        format!("/nowhere:{}", self.ipam_dir().display())
    }

    pub(crate) fn ipam_calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.ipam_dir().join("calls"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn ipam_input(&self) -> Value {
        let bytes = std::fs::read(self.ipam_dir().join("input")).expect("an input");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    fn ipam_dir(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }
}

fn serve(mut stream: UnixStream, answer: &impl Fn(&Request) -> Option<Response>, seen: &Seen) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let Some((request, netns)) = receive(&mut stream) else {
        return;
    };
    let response = answer(&request);
    seen.lock()
        .expect("no panic in the agent")
        .push((request, netns));
    if let Some(response) = response {
        let mut line = serde_json::to_vec(&response).expect("JSON");
        line.push(b'\n');
        let _ = stream.write_all(&line);
    }
}

/// A request and the inode of the descriptor on its first byte.
fn receive(stream: &mut UnixStream) -> Option<(Request, Option<u64>)> {
    let mut first = [0_u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::empty(),
    )
    .ok()?;
    if received.bytes == 0 {
        return None;
    }
    let mut descriptor: Option<OwnedFd> = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    let inode = descriptor
        .and_then(|descriptor| std::fs::File::from(descriptor).metadata().ok())
        .map(|meta| meta.ino());
    let mut line = first.to_vec();
    let mut chunk = [0; 4096];
    while !line.ends_with(b"\n") {
        let read = stream.read(&mut chunk).ok()?;
        if read == 0 {
            return None;
        }
        line.extend_from_slice(&chunk[..read]);
    }
    Some((
        serde_json::from_slice(&line).expect("a request as the API defines it"),
        inode,
    ))
}

/// An answer to ADD with both families.
pub(crate) fn added() -> Response {
    let made: AddResult = serde_json::from_value(json!({
        "interfaces": [
            {"name": "sltest", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:58:0a:f4:01:09", "mtu": 65535, "sandbox": NETNS},
        ],
        "addresses": [
            {"address": "10.244.1.9", "prefix_len": 32, "gateway": "10.244.1.1"},
            {"address": "fd44::9", "prefix_len": 128, "gateway": "fe80::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450}],
    }))
    .expect("an answer as the API defines it");
    Response::Added(made)
}

/// One call of the program.
pub(crate) struct Invocation(Vec<(String, Option<String>)>);

/// A call of `verb` without container, interface and arguments.
pub(crate) fn call(verb: &str) -> Invocation {
    Invocation(Vec::new())
        .env("CNI_COMMAND", Some(verb))
        .env("CNI_PATH", Some("/nowhere"))
}

impl Invocation {
    /// The environment of a pod in namespace `shop`.
    pub(crate) fn pod(self, name: &str) -> Self {
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}");
        self.env("CNI_CONTAINERID", Some("c1"))
            .env("CNI_NETNS", Some(NETNS))
            .env("CNI_IFNAME", Some("eth0"))
            .env("CNI_ARGS", Some(&arguments))
    }

    /// Sets or removes a variable.
    pub(crate) fn env(mut self, name: &str, value: Option<&str>) -> Self {
        self.0.push((name.to_owned(), value.map(str::to_owned)));
        self
    }

    pub(crate) fn run(self, config: &Value) -> Output {
        self.run_raw(config.to_string().as_bytes())
    }

    pub(crate) fn run_raw(self, input: &[u8]) -> Output {
        let mut command = assert_cmd::Command::new(program());
        command.env_clear().env("PATH", "/usr/bin:/bin");
        for (name, value) in self.0 {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .write_stdin(input)
            .timeout(Duration::from_secs(60))
            .output()
            .expect("the program runs")
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_spinlane-cni"))
}
