//! Kubernetes objects: from YAML as `kubectl get -o yaml` prints it to what
//! the switch needs of them. Everything else in a document is skipped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use spinlane_dataplane::types::MacAddr;

use super::refusal::Refusal;

/// Names the MAC address of a node's end of the overlay.
pub const VTEP_MAC_ANNOTATION: &str = "spinlane.io/vtep-mac";
/// What flannel writes: a JSON document with `VtepMAC`.
pub const FLANNEL_ANNOTATION: &str = "flannel.alpha.coreos.com/backend-data";

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its internal addresses, the main one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Ranges of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// MAC of its end of the overlay, when it is not the computed one.
    pub vtep_mac: Option<MacAddr>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Node that it runs on; empty before it is scheduled.
    pub node: Box<str>,
    /// Its addresses; none before it runs, the node's for one in the host's
    /// network.
    pub addresses: Box<[IpAddr]>,
}

/// An object of a kind that the switch knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// `kind: Node`
    Node(Arc<Node>),
    /// `kind: Namespace`
    Namespace(Arc<Namespace>),
    /// `kind: Pod`
    Pod(Arc<Pod>),
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Objects, in order.
    pub objects: Vec<Object>,
    /// How many objects of other kinds there are.
    pub others: BTreeMap<String, usize>,
}

/// A text that is no list of Kubernetes objects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Line that it is about, from 1, when there is one.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

/// Reads every document of a text; a `List` counts as its items.
pub fn parse(text: &str) -> Result<Content, ParseError> {
    let mut content = Content::default();
    let mut before = 0;
    for document in serde_norway::Deserializer::from_str(text) {
        // Nothing between two separators is no object.
        let Some(raw) = Option::<Raw>::deserialize(document).map_err(ParseError::from)? else {
            continue;
        };
        take(raw, &mut content).map_err(|refusal| ParseError {
            line: refusal.line_in(text, before),
            message: refusal.message,
        })?;
        before += 1;
    }
    Ok(content)
}

impl From<serde_norway::Error> for ParseError {
    fn from(error: serde_norway::Error) -> Self {
        let line = error.location().map(|location| location.line());
        let mut message = error.to_string();
        // The position is said once, in front.
        if let Some(at) = message.rfind(" at line ") {
            message.truncate(at);
        }
        ParseError { line, message }
    }
}

/// The fields of all kinds at once: in a list, `kind` may come last.
#[derive(Deserialize)]
struct Raw {
    kind: Option<String>,
    metadata: Option<RawMetadata>,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
    items: Option<Vec<Raw>>,
}

#[derive(Default, Deserialize)]
struct RawMetadata {
    name: Option<String>,
    namespace: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct RawSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<IpNet>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<IpNet>>,
    #[serde(rename = "nodeName")]
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    addresses: Option<Vec<RawAddress>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<RawPodAddress>>,
}

#[derive(Deserialize)]
struct RawAddress {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
struct RawPodAddress {
    ip: IpAddr,
}

#[derive(Deserialize)]
struct FlannelBackend {
    #[serde(rename = "VtepMAC")]
    vtep_mac: Option<String>,
}

fn take(raw: Raw, content: &mut Content) -> Result<(), Refusal> {
    let kind = match &raw.kind {
        Some(kind) if !kind.is_empty() => kind.clone(),
        _ => {
            let message = "a document has no kind: write kind: Node or another";
            return Err(Refusal::document(message.to_owned()));
        }
    };
    match kind.as_str() {
        "Node" => content.objects.push(Object::Node(Arc::new(node(raw)?))),
        "Namespace" => {
            let name = name(&raw, &kind)?;
            let namespace = Arc::new(Namespace { name });
            content.objects.push(Object::Namespace(namespace));
        }
        "Pod" => content.objects.push(Object::Pod(Arc::new(pod(raw)?))),
        kind if kind.ends_with("List") && raw.items.is_some() => {
            for item in raw.items.unwrap_or_default() {
                // Items of a typed list (`PodList`) need not say their kind.
                let kind = item.kind.clone().or_else(|| {
                    let of = kind.strip_suffix("List").unwrap_or_default();
                    (!of.is_empty()).then(|| of.to_owned())
                });
                take(Raw { kind, ..item }, content)?;
            }
        }
        _ => *content.others.entry(kind).or_default() += 1,
    }
    Ok(())
}

fn name(raw: &Raw, kind: &str) -> Result<String, Refusal> {
    match raw.metadata.as_ref().and_then(|m| m.name.clone()) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(Refusal::nameless(kind)),
    }
}

fn node(raw: Raw) -> Result<Node, Refusal> {
    let name = name(&raw, "Node")?;
    let metadata = raw.metadata.unwrap_or_default();
    let (spec, status) = (raw.spec.unwrap_or_default(), raw.status.unwrap_or_default());
    let mut addresses = Vec::new();
    for entry in status.addresses.iter().flatten() {
        if entry.kind != "InternalIP" {
            continue;
        }
        match entry.address.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                let message = format!("Node {name}: InternalIP {:?} is no address", entry.address);
                let words = ["address", &entry.address];
                return Err(Refusal::near(&name, words, message));
            }
        }
    }
    let mut pod_cidrs = spec.pod_cidrs.unwrap_or_default();
    if let Some(first) = spec.pod_cidr.filter(|cidr| !pod_cidrs.contains(cidr)) {
        pod_cidrs.insert(0, first);
    }
    for cidr in &mut pod_cidrs {
        *cidr = cidr.trunc();
    }
    let vtep_mac = vtep_mac(&name, &metadata.annotations.unwrap_or_default())?;
    Ok(Node {
        name,
        addresses,
        pod_cidrs,
        vtep_mac,
    })
}

fn vtep_mac(
    node: &str,
    annotations: &BTreeMap<String, String>,
) -> Result<Option<MacAddr>, Refusal> {
    let named = match annotations.get(VTEP_MAC_ANNOTATION) {
        Some(text) => Some((VTEP_MAC_ANNOTATION, text.clone())),
        // Flannel's other back ends write no MAC, or `null`.
        None => annotations
            .get(FLANNEL_ANNOTATION)
            .and_then(|text| serde_json::from_str::<FlannelBackend>(text).ok())
            .and_then(|backend| backend.vtep_mac)
            .map(|text| (FLANNEL_ANNOTATION, text)),
    };
    let Some((annotation, text)) = named else {
        return Ok(None);
    };
    match text.parse::<MacAddr>() {
        Ok(mac) if mac.is_unicast() => Ok(Some(mac)),
        _ => {
            let message = format!(
                "Node {node}: annotation {annotation}: {text:?} is no station's MAC address"
            );
            Err(Refusal::near(node, [annotation, &text], message))
        }
    }
}

fn pod(raw: Raw) -> Result<Pod, Refusal> {
    let name = name(&raw, "Pod")?;
    let namespace = raw.metadata.and_then(|m| m.namespace);
    let status = raw.status.unwrap_or_default();
    let mut addresses: Vec<IpAddr> = status
        .pod_ips
        .unwrap_or_default()
        .iter()
        .map(|entry| entry.ip)
        .collect();
    if let Some(first) = status.pod_ip.filter(|ip| !addresses.contains(ip)) {
        addresses.insert(0, first);
    }
    Ok(Pod {
        namespace: namespace.unwrap_or_else(|| "default".to_owned()).into(),
        name: name.into(),
        node: raw
            .spec
            .and_then(|s| s.node_name)
            .unwrap_or_default()
            .into(),
        addresses: addresses.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"apiVersion: v1
kind: Node
metadata:
  annotations:
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"8a:1b:2c:3d:4e:5f"}'
    node.alpha.kubernetes.io/ttl: "0"
  creationTimestamp: "2026-01-05T10:00:00Z"
  labels:
    kubernetes.io/hostname: node-b
  name: node-b
  resourceVersion: "1042"
spec:
  podCIDR: 10.244.2.0/24
  podCIDRs:
  - 10.244.2.0/24
  - fd44:0:0:2::/64
status:
  addresses:
  - address: 172.31.0.2
    type: InternalIP
  - address: fd31::2
    type: InternalIP
  - address: node-b
    type: Hostname
  - address: 203.0.113.9
    type: ExternalIP
  allocatable:
    cpu: "2"
    pods: "110"
  conditions:
  - lastHeartbeatTime: "2026-01-05T10:10:00Z"
    message: kubelet is posting ready status
    reason: KubeletReady
    status: "True"
    type: Ready
"#;

    fn only_node(text: &str) -> Node {
        match &parse(text).unwrap().objects[..] {
            [Object::Node(node)] => (**node).clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_as_kubectl_prints_it() {
        let node = only_node(NODE);
        assert_eq!(node.name, "node-b");
        let texts: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["172.31.0.2", "fd31::2"]);
        let texts: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.2.0/24", "fd44:0:0:2::/64"]);
        assert_eq!(node.vtep_mac.unwrap().to_string(), "8a:1b:2c:3d:4e:5f");
    }

    #[test]
    fn our_annotation_comes_before_flannels() {
        let text = NODE.replace(
            "    node.alpha.kubernetes.io/ttl: \"0\"",
            "    spinlane.io/vtep-mac: 02:00:00:00:00:07",
        );
        assert_eq!(
            only_node(&text).vtep_mac.unwrap().to_string(),
            "02:00:00:00:00:07"
        );
        let none = NODE.replace(r#"'{"VNI":1,"VtepMAC":"8a:1b:2c:3d:4e:5f"}'"#, "'null'");
        assert_eq!(only_node(&none).vtep_mac, None);
    }

    #[test]
    fn many_documents_lists_and_other_kinds() {
        let text = "---\n---\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: shop\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: web-0\n    namespace: shop\n  spec:\n    nodeName: node-b\n    containers:\n    - image: nginx\n      name: nginx\n  status:\n    podIP: 10.244.2.7\n    podIPs:\n    - ip: 10.244.2.7\n    - ip: fd44:0:0:2::7\nkind: List\nmetadata:\n  resourceVersion: \"\"\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports: [{port: 80}]\n---\nkind: PodList\nitems:\n- metadata: {name: bare}\n";
        let content = parse(text).unwrap();
        assert_eq!(content.others, [("Service".to_owned(), 1)].into());
        let [
            Object::Namespace(namespace),
            Object::Pod(pod),
            Object::Pod(bare),
        ] = &content.objects[..]
        else {
            panic!("{content:?}");
        };
        assert_eq!(namespace.name, "shop");
        assert_eq!((&*pod.namespace, &*pod.name), ("shop", "web-0"));
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(&*pod.node, "node-b");
        assert_eq!((&*bare.namespace, &*bare.name), ("default", "bare"));
    }

    #[test]
    fn errors_name_their_line() {
        let cases = [
            (NODE.replace("  - fd44:0:0:2::/64", "  - fd44:::/64"), 15),
            (
                NODE.replace("  - address: fd31::2", "  - address: fd31::zz"),
                20,
            ),
            (NODE.replace("8a:1b:2c:3d:4e:5f", "8a:1b"), 5),
            (NODE.replace("  name: node-b\n", ""), 2),
            (NODE.replace("status:\n", "status\n"), 17),
            (
                format!("{NODE}---\n{}", NODE.replace("spec:", "spec: [")),
                48,
            ),
            (
                "kind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.300}\n".to_owned(),
                3,
            ),
        ];
        for (text, line) in cases {
            let error = parse(&text).unwrap_err();
            assert!(!error.message.contains('\n'), "{error}");
            let near = error.line.unwrap().abs_diff(line);
            assert!(near <= 1, "{error} at {:?}, not {line}", error.line);
        }
    }

    #[test]
    fn of_many_objects_the_one_that_is_wrong_is_named_by_its_line() {
        // In a list, as documents, and as JSON.
        let item = |name: &str, change: [&str; 2]| {
            let node = NODE.replace("node-b", name);
            assert!(node.contains(change[0]), "{change:?}");
            node.replace(change[0], change[1])
        };
        let lines = NODE.lines().count();
        let indented = |text: &str| {
            let lines = text.lines().enumerate();
            let lines =
                lines.map(|(at, line)| format!("{}{line}\n", ["  ", "- "][usize::from(at == 0)]));
            lines.collect::<String>()
        };
        // What is wrong, and on which line of its object.
        let wrong = [
            (["8a:1b:2c:3d:4e:5f", "8a:1b"], 5),
            (["- address: 172.31.0.2", "- address: n3"], 19),
            (["  name: n3\n", ""], 2),
        ];
        for (change, line) in wrong {
            let nodes = ["n1", "n2", "n3", "n4"];
            let nodes = nodes.map(|name| item(name, if name == "n3" { change } else { ["", ""] }));
            let of_three = lines * 2 + line;
            let documents = nodes.join("---\n");
            let error = parse(&documents).unwrap_err();
            assert_eq!(error.line, Some(of_three + 2), "{error} in {documents}");
            let items = nodes.iter().map(|node| indented(node)).collect::<String>();
            let list = format!("apiVersion: v1\nitems:\n{items}kind: List\n");
            let error = parse(&list).unwrap_err();
            assert_eq!(error.line, Some(of_three + 2), "{error} in {list}");
        }
        let json = "{\n \"kind\": \"List\",\n \"items\": [\n  {\n   \"kind\": \"Node\",\n   \"metadata\": {\n    \"name\": \"a\"\n   }\n  },\n  {\n   \"kind\": \"Node\",\n   \"metadata\": {\n    \"name\": \"b\",\n    \"annotations\": {\n     \"spinlane.io/vtep-mac\": \"no\"\n    }\n   }\n  }\n ]\n}\n";
        assert_eq!(parse(json).unwrap_err().line, Some(15));
        let no_kind = "# a comment\n---\nkind: Namespace\nmetadata: {name: a}\n---\n# another\nmetadata: {name: b}\n";
        assert_eq!(parse(no_kind).unwrap_err().line, Some(7));
    }

    #[test]
    fn a_bomb_of_aliases_where_nothing_is_read_costs_nothing() {
        let mut text = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (now, before) in ["b", "c", "d", "e", "f", "g", "h", "i"]
            .iter()
            .zip("abcdefgh".chars())
        {
            text.push_str(&format!(
                "{now}: &{now} [{}]\n",
                vec![format!("*{before}"); 9].join(",")
            ));
        }
        text.push_str("kind: Pod\nmetadata: {name: x}\n");
        // Of this thread: what else the machine does is no work of the parser.
        let worked = || {
            let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
            std::time::Duration::from(nix::time::clock_gettime(clock).unwrap())
        };
        let before = worked();
        let content = parse(&text).unwrap();
        assert!(matches!(&content.objects[..], [Object::Pod(pod)] if &*pod.name == "x"));
        assert!(worked() - before < std::time::Duration::from_secs(2));
    }
}
