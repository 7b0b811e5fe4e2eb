//! Where the kernel's receive work of pods lands.

use spinlane_tests::{LabError, Namespace, Node, NodeConfig, Pod, root_or_skip};

/// The CPUs that receive queues of a namespace's interfaces are steered to,
/// interface by interface but `lo`.
fn steered(namespace: &Namespace, interfaces: &str) -> Result<Vec<String>, LabError> {
    let script = format!("cat /sys/class/net/{interfaces}/queues/rx-0/rps_cpus");
    let masks = namespace.run(&["sh", "-c", &script])?;
    let plain = |mask: &str| mask.trim_start_matches(['0', ',']).to_owned();
    Ok(masks.lines().map(plain).collect())
}

/// The CPUs that this process may use, as a mask.
fn allowed_cpus() -> u128 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is there");
    let mask = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed:"));
    let digits = mask.unwrap_or_default().replace(',', "");
    u128::from_str_radix(digits.trim(), 16).expect("no more than 128 CPUs")
}

#[test]
fn receive_work_stays_off_the_lanes_cpu() -> Result<(), LabError> {
    if !root_or_skip("receive_work_stays_off_the_lanes_cpu") {
        return Ok(());
    }
    let mut config = NodeConfig::new("steering");
    config.cores = "[1]".to_owned();
    let mut node = Node::start(&config)?;
    let pod = Pod::attach(&node, "a")?;
    let spare = format!("{:x}", allowed_cpus() & !(1 << 1));
    let is_one_of = |mask: &str| mask.chars().filter(|c| *c != '0' && *c != ',').count() == 1;
    for _ in 0..2 {
        assert_eq!(
            steered(pod.namespace(), "eth0")?,
            [spare.as_str()],
            "the pod's own"
        );
        for mask in steered(node.namespace(), "sl*")? {
            assert!(
                is_one_of(&mask) && mask != "2",
                "{mask} of a pod's host end"
            );
        }
        // Somebody else's doing does not outlast a restart.
        let undo = "echo 0 > /sys/class/net/eth0/queues/rx-0/rps_cpus";
        pod.namespace().run(&["sh", "-c", undo])?;
        node.restart()?;
    }
    Ok(())
}
