//! The part of the Kubernetes API that the manifest uses, field by field: a
//! name that is not here is a misspelt one, or has to be looked up and added
//! (<https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/>).

use std::collections::BTreeMap;

use serde::Deserialize;

/// `apps/v1` DaemonSet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DaemonSet {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) metadata: Metadata,
    pub(crate) spec: DaemonSetSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DaemonSetSpec {
    pub(crate) selector: Selector,
    pub(crate) update_strategy: UpdateStrategy,
    pub(crate) template: Template,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Selector {
    pub(crate) match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct UpdateStrategy {
    #[serde(rename = "type")]
    pub(crate) kind: UpdateKind,
    pub(crate) rolling_update: RollingUpdate,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum UpdateKind {
    RollingUpdate,
    OnDelete,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RollingUpdate {
    pub(crate) max_unavailable: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Template {
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PodSpec {
    pub(crate) host_network: bool,
    pub(crate) priority_class_name: String,
    pub(crate) automount_service_account_token: bool,
    pub(crate) termination_grace_period_seconds: u32,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) init_containers: Vec<Container>,
    pub(crate) containers: Vec<Container>,
    pub(crate) volumes: Vec<Volume>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Toleration {
    pub(crate) operator: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<Variable>,
    pub(crate) security_context: Option<SecurityContext>,
    pub(crate) resources: Option<Resources>,
    pub(crate) startup_probe: Option<Probe>,
    pub(crate) readiness_probe: Option<Probe>,
    pub(crate) liveness_probe: Option<Probe>,
    pub(crate) volume_mounts: Vec<VolumeMount>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value_from: ValueFrom,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ValueFrom {
    pub(crate) field_ref: FieldRef,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FieldRef {
    pub(crate) field_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecurityContext {
    pub(crate) privileged: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    pub(crate) requests: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Probe {
    pub(crate) http_get: HttpGet,
    #[serde(default = "usual_period")]
    pub(crate) period_seconds: u32,
    #[serde(default = "usual_threshold")]
    pub(crate) failure_threshold: u32,
}

const fn usual_period() -> u32 {
    10
}

const fn usual_threshold() -> u32 {
    3
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpGet {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    pub(crate) mount_propagation: Option<Propagation>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Propagation {
    None,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) config_map: Option<ConfigMap>,
    pub(crate) host_path: Option<HostPath>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigMap {
    pub(crate) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostPath {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: HostPathKind,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum HostPathKind {
    Directory,
    DirectoryOrCreate,
}

/// `kustomize.config.k8s.io/v1beta1` Kustomization.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Kustomization {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) resources: Vec<String>,
    pub(crate) config_map_generator: Vec<Generator>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generator {
    pub(crate) name: String,
    pub(crate) files: Vec<String>,
}
