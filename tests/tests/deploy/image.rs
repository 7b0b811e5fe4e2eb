//! What the image would hold, as a root filesystem: the programs where the
//! Dockerfile puts them, a shell with `cp` and `mv`, and the libraries of all
//! of these. Containers run in it as the manifest says, their volumes below a
//! directory that plays the node's root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use spinlane_tests::{LabError, Namespace, Process, program};

use super::schema::{Container, PodSpec, Propagation};

/// The Dockerfile's last stage: what is copied, and where to.
pub(crate) fn copied(dockerfile: &str) -> (Vec<String>, PathBuf) {
    let lines = dockerfile.lines();
    let mut line = lines.filter_map(|line| line.strip_prefix("COPY --from=build "));
    let (from, to) = line
        .next_back()
        .and_then(|l| l.rsplit_once(' '))
        .expect("a COPY");
    let names = from
        .split_whitespace()
        .filter_map(|path| path.rsplit('/').next());
    (names.map(str::to_owned).collect(), PathBuf::from(to))
}

/// The root filesystem and the node's directories.
pub(crate) struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    pub(crate) fn build(dockerfile: &str) -> Image {
        let image = Image {
            dir: tempfile::tempdir().expect("a directory"),
        };
        let (programs, to) = copied(dockerfile);
        for name in programs {
            image.install(&program(&name).expect("it is built"), &to.join(&name));
        }
        for name in ["sh", "cp", "mv"] {
            let at = Path::new("/bin").join(name);
            image.install(&at, &at);
        }
        for dir in ["proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(image.root().join(dir)).expect("writable");
        }
        image
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A directory of the node.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.dir
            .path()
            .join("host")
            .join(path.trim_start_matches('/'))
    }

    /// Copies a program and its libraries, each to where it looks for them.
    fn install(&self, from: &Path, to: &Path) {
        self.copy(from, to);
        let listed = Command::new("ldd").arg(from).output().expect("ldd runs");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let words = text.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            self.copy(Path::new(library), Path::new(library));
        }
    }

    fn copy(&self, from: &Path, to: &Path) {
        let to = self.root().join(to.strip_prefix("/").expect("absolute"));
        std::fs::create_dir_all(to.parent().expect("a parent")).expect("writable");
        std::fs::copy(from, to).expect("readable");
    }

    /// Puts the files of a volume that Kubernetes makes of a ConfigMap.
    pub(crate) fn put(&self, volume: &str, name: &str, text: &str) {
        let dir = self.host(&format!("configmap/{volume}"));
        std::fs::create_dir_all(&dir).expect("writable");
        std::fs::write(dir.join(name), text).expect("writable");
    }

    /// The command that runs a container of a pod in a node's namespace.
    fn command(&self, node: &Namespace, pod: &PodSpec, container: &Container) -> Vec<String> {
        let root = self.root();
        let mut script = format!(
            "cd {root}\nmount -t proc proc proc\nmount --rbind /sys sys\nmount --rbind /dev dev\n",
            root = root.display()
        );
        for mount in &container.volume_mounts {
            let volume = pod.volumes.iter().find(|v| v.name == mount.name);
            let volume = volume.expect("checked elsewhere");
            let from = match &volume.host_path {
                // Namespaces stand in the kernel's own directory.
                Some(host) if host.path == "/run/netns" => PathBuf::from(&host.path),
                Some(host) => self.host(&host.path),
                None => self.host(&format!("configmap/{}", volume.name)),
            };
            std::fs::create_dir_all(&from).expect("writable");
            let how = match mount.mount_propagation {
                Some(Propagation::HostToContainer) => "--rbind",
                _ => "--bind",
            };
            let (from, at) = (from.display(), mount.mount_path.trim_start_matches('/'));
            script.push_str(&format!("mkdir -p {at}\nmount {how} {from} {at}\n"));
        }
        script.push_str("exec chroot . \"$@\"\n");
        let words = [
            "ip",
            "netns",
            "exec",
            node.name(),
            "unshare",
            "--mount",
            "--propagation",
            "slave",
        ];
        let words = words.into_iter().chain(["sh", "-ec", &script, "container"]);
        let command = container.command.iter().map(String::as_str);
        words.chain(command).map(str::to_owned).collect()
    }

    /// Runs a container to its end.
    pub(crate) fn run(&self, node: &Namespace, pod: &PodSpec, container: &Container) -> String {
        let words = self.command(node, pod, container);
        let ended = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{}: {text}", container.name);
        text
    }

    /// Starts a container, which runs until the value is dropped.
    pub(crate) fn start(
        &self,
        node: &Namespace,
        pod: &PodSpec,
        container: &Container,
    ) -> Result<Process, LabError> {
        let words = self.command(node, pod, container);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", PATH);
        for variable in &container.env {
            // The one field that is asked for.
            assert_eq!(variable.value_from.field_ref.field_path, "spec.nodeName");
            command.env(&variable.name, "n1");
        }
        Process::spawn(command)
    }
}

/// Of the image's base.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
