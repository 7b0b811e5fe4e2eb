//! What `deploy/` ships: the manifest is what Kubernetes takes, and the image
//! that it names does on a node what it says.

mod image;
mod schema;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use spinlane_tests::{LabError, Namespace, Pod, probe, root_or_skip, traffic, veth, wait_for};

use image::{Image, copied};
use schema::{
    Container, DaemonSet, HostPathKind, HttpGet, Kustomization, PodSpec, Propagation, UpdateKind,
};

const DOCKERFILE: &str = include_str!("../../../deploy/Dockerfile");
const DAEMONSET: &str = include_str!("../../../deploy/daemonset.yaml");
const KUSTOMIZATION: &str = include_str!("../../../deploy/kustomization.yaml");
const CONFIGURATION: &str = include_str!("../../../deploy/spinlane.toml");
const NETWORK: &str = include_str!("../../../deploy/10-spinlane.conflist");
const TOOLCHAIN: &str = include_str!("../../../rust-toolchain.toml");

fn daemonset() -> DaemonSet {
    serde_norway::from_str(DAEMONSET).expect("it is what Kubernetes takes")
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().chain(&pod.containers)
}

#[test]
fn the_manifest_is_what_kubernetes_takes() {
    let set = daemonset();
    assert_eq!(
        (set.api_version.as_str(), set.kind.as_str()),
        ("apps/v1", "DaemonSet")
    );
    let selected = &set.spec.selector.match_labels;
    let labels = &set.spec.template.metadata.labels;
    assert!(!selected.is_empty());
    assert!(
        selected
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    );
    assert!(
        selected
            .keys()
            .all(|key| set.metadata.labels.contains_key(key))
    );
    assert!(!set.metadata.name.is_empty());
    // One node at a time is without an agent.
    assert_eq!(set.spec.update_strategy.kind, UpdateKind::RollingUpdate);
    assert_eq!(set.spec.update_strategy.rolling_update.max_unavailable, 1);
    let pod = &set.spec.template.spec;
    // On every node, also one that waits for its network, and never evicted.
    assert!(pod.host_network && !pod.automount_service_account_token);
    assert_eq!(pod.priority_class_name, "system-node-critical");
    assert!(pod.tolerations.iter().any(|t| t.operator == "Exists"));
    // The agent leaves within 2 s.
    assert!((3..=30).contains(&pod.termination_grace_period_seconds));
    let images: BTreeSet<&str> = containers(pod).map(|c| c.image.as_str()).collect();
    assert_eq!(images.len(), 1, "{images:?}");
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        images
            .iter()
            .all(|image| image.ends_with(&format!(":{version}")))
    );
    for container in containers(pod) {
        assert!(!container.name.is_empty() && !container.command.is_empty());
        for mount in &container.volume_mounts {
            assert!(mount.mount_path.starts_with('/'));
            let volume = pod.volumes.iter().find(|volume| volume.name == mount.name);
            let volume = volume.unwrap_or_else(|| panic!("no volume {}", mount.name));
            let sources = [volume.config_map.is_some(), volume.host_path.is_some()];
            assert_eq!(sources.iter().filter(|is_given| **is_given).count(), 1);
        }
    }
    for volume in &pod.volumes {
        let mut mounts = containers(pod).flat_map(|c| &c.volume_mounts);
        assert!(
            mounts.any(|mount| mount.name == volume.name),
            "{}",
            volume.name
        );
        if let Some(host) = &volume.host_path {
            assert!(host.path.starts_with('/'));
            assert_eq!(host.kind, HostPathKind::DirectoryOrCreate);
        }
    }
    let [agent] = &pod.containers[..] else {
        panic!("one container");
    };
    assert!(
        agent
            .security_context
            .as_ref()
            .is_some_and(|s| s.privileged)
    );
    assert!(
        agent
            .resources
            .as_ref()
            .is_some_and(|r| r.requests.contains_key("memory"))
    );
    assert_eq!(agent.env.len(), 1);
    let netns = agent
        .volume_mounts
        .iter()
        .find(|m| m.mount_path == "/run/netns");
    let netns = netns.expect("pods' namespaces");
    assert_eq!(netns.mount_propagation, Some(Propagation::HostToContainer));
    let probes = [
        &agent.startup_probe,
        &agent.readiness_probe,
        &agent.liveness_probe,
    ];
    let paths = probes.map(|probe| &probe.as_ref().expect("a probe").http_get);
    assert_eq!(
        paths.map(|get| get.path.as_str()),
        ["/readyz", "/readyz", "/healthz"]
    );
    for HttpGet { host, port, .. } in paths {
        assert!(CONFIGURATION.contains(&format!("listen = \"{host}:{port}\"")));
    }
}

#[test]
fn kustomize_finds_what_it_names() {
    let kustomization: Kustomization = serde_norway::from_str(KUSTOMIZATION).expect("valid");
    assert_eq!(kustomization.kind, "Kustomization");
    assert!(
        kustomization
            .api_version
            .starts_with("kustomize.config.k8s.io/")
    );
    assert_eq!(kustomization.namespace, "kube-system");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let generated = kustomization.config_map_generator.iter();
    let files = kustomization
        .resources
        .iter()
        .chain(generated.clone().flat_map(|g| &g.files));
    for file in files {
        assert!(deploy.join(file).is_file(), "{file}");
    }
    let maps: BTreeSet<&str> = generated.map(|generator| generator.name.as_str()).collect();
    for volume in &daemonset().spec.template.spec.volumes {
        if let Some(map) = &volume.config_map {
            assert!(maps.contains(map.name.as_str()), "{}", map.name);
        }
    }
}

#[test]
fn the_image_is_built_from_this_repository() {
    let channel = TOOLCHAIN
        .lines()
        .find_map(|line| line.strip_prefix("channel = "));
    let channel = channel.expect("a channel").trim_matches('"');
    assert!(
        DOCKERFILE.contains(&format!("rust:{channel}-")),
        "{channel}"
    );
    assert!(DOCKERFILE.contains(&format!("RUSTUP_TOOLCHAIN={channel}\n")));
    let (programs, to) = copied(DOCKERFILE);
    assert_eq!(programs, ["spinlane", "spinlane-cni"]);
    assert_eq!(to, Path::new("/usr/local/bin/"));
    // Each comes from a package that is built, and that has it.
    for (package, manifest) in [
        (
            "spinlane-control",
            include_str!("../../../control/Cargo.toml"),
        ),
        ("spinlane-cni", include_str!("../../../cni-shim/Cargo.toml")),
    ] {
        assert!(DOCKERFILE.contains(&format!("--package {package}")));
        assert!(manifest.contains(&format!("name = \"{package}\"")));
    }
}

/// The answer of a probe, asked from the node's namespace as the kubelet does.
fn asked(node: &Namespace, get: &HttpGet) -> Option<String> {
    let authority = format!("{}:{}", get.host, get.port);
    let answer = probe::http_get(node, &authority, &get.path).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

const NODE_OBJECT: &str = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n\
    spec:\n  podCIDRs:\n  - 10.244.7.0/24\n";

#[test]
fn the_image_runs_a_node_as_the_manifest_says() -> Result<(), LabError> {
    if !root_or_skip("the_image_runs_a_node_as_the_manifest_says") {
        return Ok(());
    }
    let pod_spec = daemonset().spec.template.spec;
    let (node, gateway) = (Namespace::create("image")?, Namespace::create("gateway")?);
    veth((&node, "eth0"), (&gateway, "eth0"))?;
    node.ip("address add 172.31.0.1/24 dev eth0")?;
    gateway.ip("address add 172.31.0.254/24 dev eth0")?;
    node.ip("route add default via 172.31.0.254")?;
    let image = Image::build(DOCKERFILE);
    image.put("config", "spinlane.toml", CONFIGURATION);
    image.put("config", "10-spinlane.conflist", NETWORK);
    let manifests = image.host("/var/lib/spinlane/manifests");
    std::fs::create_dir_all(&manifests).expect("writable");
    std::fs::write(manifests.join("node.yaml"), NODE_OBJECT).expect("writable");

    // The init container, twice as after an upgrade: what is there is replaced
    // whole, by a rename, and nothing half done is left.
    let (bin, conf) = (image.host("/opt/cni/bin"), image.host("/etc/cni/net.d"));
    let plugin = bin.join("spinlane-cni");
    let mut inodes = BTreeSet::new();
    for _ in 0..2 {
        image.run(&node, &pod_spec, &pod_spec.init_containers[0]);
        let installed = std::fs::metadata(&plugin).expect("the plugin");
        assert_eq!(installed.permissions().mode() & 0o111, 0o111);
        inodes.insert(installed.ino());
        for (dir, only) in [(&bin, "spinlane-cni"), (&conf, "10-spinlane.conflist")] {
            let names = std::fs::read_dir(dir).expect("made").map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            });
            assert_eq!(names.collect::<Vec<_>>(), [only]);
        }
    }
    assert_eq!(inodes.len(), 2, "a running plugin is not written into");
    let list = std::fs::read_to_string(conf.join("10-spinlane.conflist")).expect("installed");
    let list: Value = serde_json::from_str(&list).expect("JSON");

    // The agent, until its startup probe is content.
    let agent = &pod_spec.containers[0];
    let startup = agent.startup_probe.as_ref().expect("a probe");
    let liveness = agent.liveness_probe.as_ref().expect("a probe");
    let patience = Duration::from_secs(u64::from(
        startup.period_seconds * startup.failure_threshold,
    ));
    let start = || -> Result<_, LabError> {
        let mut running = image.start(&node, &pod_spec, agent)?;
        let ready = wait_for("the startup probe", patience, || {
            asked(&node, &startup.http_get)
        });
        if ready.is_err() {
            running.signal(Signal::SIGTERM);
            let said = running.wait(Duration::from_secs(5))?;
            panic!("{}", String::from_utf8_lossy(&said.stderr));
        }
        assert!(asked(&node, &liveness.http_get).is_some());
        Ok(running)
    };
    let mut running = start()?;

    // A pod, attached by the installed plugin as its configuration says, but
    // for the directory that plays the node's root.
    let mut network = list["plugins"][0].clone();
    let run_dir = network["runDir"].as_str().expect("a path").to_owned();
    network["runDir"] = image.host(&run_dir).to_string_lossy().as_ref().into();
    network["name"] = list["name"].clone();
    network["cniVersion"] = list["cniVersion"].clone();
    let mut pod = Pod::bare("web")?;
    let answer = pod
        .call("ADD", "eth0", network.clone())
        .invoke_program(&plugin, &node)?;
    pod.remember(answer, "eth0", &network)?;
    assert_eq!(pod.v4()?.to_string(), "10.244.7.2");
    let outside = "172.31.0.254".parse().expect("an address");
    wait_for("the outside", Duration::from_secs(10), || {
        let pings = traffic::ping(pod.namespace(), outside, 1);
        pings.ok().filter(traffic::Pings::all)
    })?;

    // An upgrade; then something that is to be done in the pod's namespace,
    // which was made after the first container had started.
    running.signal(Signal::SIGTERM);
    let ended = running.wait(Duration::from_secs(5))?;
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let _running = start()?;
    let young = Pod::bare("young")?;
    let answer = young
        .call("ADD", "eth0", network.clone())
        .invoke_program(&plugin, &node)?;
    assert_eq!(answer.exit, 0, "{}", answer.output);
    node.ip("link set eth0 mtu 1400")?;
    for pod in [pod.namespace(), young.namespace()] {
        wait_for("the path's MTU in a pod", Duration::from_secs(10), || {
            let routes = pod.ip("route show default").ok()?;
            routes.contains("mtu 1350").then_some(())
        })?;
    }
    assert!(traffic::ping(pod.namespace(), outside, 2)?.all());
    Ok(())
}
