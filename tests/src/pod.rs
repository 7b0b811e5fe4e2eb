//! A pod: a namespace whose interfaces the real plugin makes.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cni::{Answer, Call};
use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::node::Node;

/// One interface of a pod, as the runtime remembers it.
#[derive(Debug, Clone)]
pub struct Attached {
    /// Name of the interface in the pod.
    pub ifname: String,
    /// The network configuration that ADD was called with.
    pub config: Value,
    /// What ADD answered.
    pub result: Value,
}

/// A namespace, a container id and what was attached. Dropping it deletes the
/// namespace without calling DEL, as a crash would.
#[derive(Debug)]
pub struct Pod {
    namespace: Namespace,
    name: String,
    container_id: String,
    attached: Vec<Attached>,
}

impl Pod {
    /// A pod without interfaces (but loopback).
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn bare(name: &str) -> Result<Self> {
        let namespace = Namespace::create(name)?;
        Ok(Self {
            container_id: format!("{}-container", namespace.name()),
            namespace,
            name: name.to_owned(),
            attached: Vec::new(),
        })
    }

    /// A pod with `eth0` in the network `pods`.
    ///
    /// # Errors
    /// When the plugin answers with an error.
    pub fn attach(node: &Node, name: &str) -> Result<Self> {
        let mut pod = Self::bare(name)?;
        pod.add(node, "eth0", &node.network("pods", json!({})))?;
        Ok(pod)
    }

    /// Calls ADD and remembers the interface.
    ///
    /// # Errors
    /// When the plugin answers with an error.
    pub fn add(&mut self, node: &Node, ifname: &str, config: &Value) -> Result<Value> {
        let answer = self
            .call("ADD", ifname, config.clone())
            .invoke(node.namespace())?;
        self.remember(answer, ifname, config)
    }

    /// Remembers what an ADD made by [`Pod::call`] answered.
    ///
    /// # Errors
    /// When the answer is an error.
    pub fn remember(&mut self, answer: Answer, ifname: &str, config: &Value) -> Result<Value> {
        let result = answer.success(&format!("ADD {ifname} of pod {}", self.name))?;
        self.attached.push(Attached {
            ifname: ifname.to_owned(),
            config: config.clone(),
            result: result.clone(),
        });
        Ok(result)
    }

    /// Calls CHECK with the remembered result.
    ///
    /// # Errors
    /// When the interface was never added or the plugin cannot be run.
    pub fn check(&self, node: &Node, ifname: &str) -> Result<Answer> {
        let config = self.config_with_result(ifname)?;
        self.call("CHECK", ifname, config).invoke(node.namespace())
    }

    /// Calls DEL with the remembered result.
    ///
    /// # Errors
    /// When the interface was never added or DEL fails.
    pub fn del(&mut self, node: &Node, ifname: &str) -> Result<()> {
        let config = self.config_with_result(ifname)?;
        self.call("DEL", ifname, config)
            .invoke(node.namespace())?
            .success(&format!("DEL {ifname} of pod {}", self.name))?;
        self.attached.retain(|attached| attached.ifname != ifname);
        Ok(())
    }

    /// A call for this pod, not yet made.
    #[must_use]
    pub fn call(&self, command: &str, ifname: &str, config: Value) -> Call {
        Call {
            container_id: self.container_id.clone(),
            netns: self.namespace.path(),
            ifname: ifname.to_owned(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};\
                 K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-{}",
                self.name, self.container_id, self.container_id
            ),
            ..Call::new(command, config)
        }
    }

    /// The configuration of an interface with its result as `prevResult`, as
    /// a runtime passes it to CHECK and DEL.
    ///
    /// # Errors
    /// When the interface was never added.
    pub fn config_with_result(&self, ifname: &str) -> Result<Value> {
        let attached = self.attached(ifname)?;
        let mut config = attached.config.clone();
        config["prevResult"] = attached.result.clone();
        Ok(config)
    }

    /// What is remembered of an interface.
    ///
    /// # Errors
    /// When it was never added.
    pub fn attached(&self, ifname: &str) -> Result<&Attached> {
        self.attached
            .iter()
            .find(|attached| attached.ifname == ifname)
            .ok_or_else(|| {
                LabError::unexpected(
                    format!("pod {}", self.name),
                    format!("{ifname} was never added"),
                )
            })
    }

    /// The addresses that ADD reported for an interface.
    ///
    /// # Errors
    /// When it was never added or the result has an address that is none.
    pub fn addresses(&self, ifname: &str) -> Result<Vec<IpAddr>> {
        let attached = self.attached(ifname)?;
        let unreadable = || {
            LabError::unexpected(
                format!("result of ADD {ifname}"),
                format!("an address is not one: {}", attached.result),
            )
        };
        attached.result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|ip| {
                ip["address"]
                    .as_str()
                    .and_then(|text| text.split('/').next())
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(unreadable)
            })
            .collect()
    }

    /// The first IPv4 address of `eth0`.
    ///
    /// # Errors
    /// When it has none.
    pub fn v4(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv4, "IPv4")
    }

    /// The first IPv6 address of `eth0`.
    ///
    /// # Errors
    /// When it has none.
    pub fn v6(&self) -> Result<IpAddr> {
        self.address(IpAddr::is_ipv6, "IPv6")
    }

    /// The pod's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `CNI_CONTAINERID`.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    fn address(&self, family: impl Fn(&IpAddr) -> bool, name: &str) -> Result<IpAddr> {
        self.addresses("eth0")?
            .into_iter()
            .find(|address| family(address))
            .ok_or_else(|| {
                LabError::unexpected(
                    format!("pod {}", self.name),
                    format!("eth0 has no {name} address"),
                )
            })
    }
}
