//! A real container runtime attaches and detaches: containerd and the
//! reference library that it calls plugins with.
//!
//! containerd runs in the node's network namespace and in a mount namespace of
//! its own, so that its fixed paths (`/etc/cni/net.d`, `/opt/cni/bin`,
//! `/run/containerd`) are the test's.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use spinlane_tests::{LabError, Node, Pod, Process, Result, program, root_or_skip, traffic};

/// $1: directory of the test, $2: the plugin, $3: network configuration list,
/// $4: an address to ping from the container. What follows the network's own
/// plugin in the list comes from the reference plugins.
const SCRIPT: &str = r#"
set -e
dir=$1
mount --make-rprivate /
mkdir -p /run/containerd
mount -t tmpfs none /run/containerd
mount -t tmpfs none /opt
mkdir -p /opt/cni/bin
cp "$2" /usr/lib/cni/tuning /opt/cni/bin/
mkdir -p "$dir/etc" "$dir/rootfs/bin" "$dir/rootfs/proc" "$dir/rootfs/sys" "$dir/rootfs/dev"
mount -t tmpfs none "$dir/etc"
mkdir "$dir/etc/upper" "$dir/etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/etc/upper,workdir=$dir/etc/work" none /etc
mkdir -p /etc/cni/net.d
echo "$3" >/etc/cni/net.d/10-test.conflist
cp /bin/sleep "$dir/rootfs/bin/"
for library in $(ldd /bin/sleep | grep -oE '/[^ ]+'); do
    mkdir -p "$dir/rootfs$(dirname "$library")"
    cp "$library" "$dir/rootfs$library"
done
cat >"$dir/config.toml" <<TOML
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/containerd.sock"
TOML
containerd -c "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
containerd=$!
trap 'kill $containerd; wait $containerd' EXIT
ctr() { command ctr -a "$dir/containerd.sock" "$@"; }
for _ in $(seq 500); do
    ctr version >/dev/null 2>&1 && break
    sleep 0.1
done
ctr run --rm --cni --rootfs "$dir/rootfs" box /bin/sleep 600 &
running=$!
for _ in $(seq 500); do
    pid=$(ctr tasks ls | awk '$1 == "box" && $3 == "RUNNING" { print $2 }')
    [ -n "$pid" ] && nsenter -t "$pid" -n ip -o link show eth0 2>/dev/null | grep -q UP && break
    sleep 0.1
done
nsenter -t "$pid" -n ip -o addr show eth0
nsenter -t "$pid" -n cat /proc/sys/net/ipv4/tcp_syn_retries
# The runtime mounted it read-only, and that it stays for the container.
grep -q " /sys sysfs ro," "/proc/$pid/mounts"
for _ in 1 2; do nsenter -t "$pid" -n ping -n -c 1 -W 10 "$4"; done
ctr tasks kill -s KILL box
wait $running || [ $? -eq 137 ]
"#;

#[test]
fn containerd_attaches_and_detaches() -> Result<()> {
    if !root_or_skip("containerd_attaches_and_detaches") {
        return Ok(());
    }
    for needed in ["/usr/bin/containerd", "/usr/bin/ctr", "/usr/sbin/runc"] {
        assert!(Path::new(needed).exists(), "install containerd and runc");
    }
    let node = Node::plain("runtime")?;
    let peer = Pod::attach(&node, "peer")?;
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        runs(&node, &peer, version)?;
    }
    Ok(())
}

/// One container, by a list of that version with a plugin chained.
fn runs(node: &Node, peer: &Pod, version: &str) -> Result<()> {
    let own = json!({"capabilities": {
        "portMappings": true, "bandwidth": true, "mac": true, "ips": true
    }});
    let list = json!({
        "cniVersion": version,
        "name": "pods",
        "plugins": [
            node.network("pods", own),
            {"type": "tuning", "sysctl": {"net.ipv4.tcp_syn_retries": "4"}},
        ],
    });
    let dir = node.ipam_dir().join(format!("containerd-{version}"));
    std::fs::create_dir_all(&dir).map_err(LabError::io("create containerd's directory"))?;
    let mut command = Command::new("unshare");
    command
        .args(["-m", "bash", "-c", SCRIPT, "containerd-test"])
        .arg(&dir)
        .arg(program("spinlane-cni")?)
        .arg(list.to_string())
        .arg(peer.v4()?.to_string());
    let running = node.namespace().enter(|| Process::spawn(command))??;
    let output = running.wait(Duration::from_secs(60))?;
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{text}");
    assert!(text.contains("inet 10.244.1."), "{text}");
    assert!(text.contains("inet6 fd44:0:0:1:"), "{text}");
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert!(text.lines().any(|line| line == "4"), "tuned: {text}");
    assert_eq!(node.pods()?, ["peer"], "the runtime's DEL was carried out");
    assert!(traffic::ping(node.namespace(), peer.v4()?, 1)?.all());
    Ok(())
}
