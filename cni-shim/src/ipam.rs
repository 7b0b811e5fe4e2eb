//! Delegated IPAM: running the plugin that `ipam.type` names.
//!
//! It gets our environment and our standard input, as the specification says
//! ("Section 4: Plugin Delegation"). One thing is ours: a plugin that knows
//! only older versions of the specification than the configuration declares
//! (code 1) is asked again in the newest version that it knows, because a
//! node's `host-local` is often older than its runtime.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rscni_plugin::types::{Args, CNIResult};
use rscni_plugin::version::SpecVersion;
use serde_json::Value;
use spinlane_api::cni::{Delegated, Failure, code};

use crate::error::Error;
use crate::input::Input;
use crate::result;

/// A delegated IPAM plugin that was found.
#[derive(Debug)]
pub struct Ipam<'a> {
    name: String,
    program: PathBuf,
    input: &'a Input,
}

/// What a delegated ADD gave.
#[derive(Debug)]
pub struct Leased {
    /// Addresses and routes, for the agent.
    pub delegated: Delegated,
    /// The whole result.
    pub result: CNIResult,
}

impl<'a> Ipam<'a> {
    /// The plugin that the configuration names; `None` when it names none.
    ///
    /// # Errors
    /// [`Error::Config`] when the name is a path or nothing in CNI_PATH has it.
    pub fn find(args: &Args, input: &'a Input) -> Result<Option<Self>, Error> {
        let Some(section) = &args.config().ipam else {
            return Ok(None);
        };
        let name = section.r#type.clone();
        if name.contains(['/', '\0']) || name == "." || name == ".." {
            return Err(Error::Config(format!(
                "ipam.type is {name:?}, not a plugin's name"
            )));
        }
        let found = args
            .path()
            .iter()
            .map(|dir| dir.join(&name))
            .find(|path| is_program(path));
        match found {
            Some(program) => Ok(Some(Self {
                name,
                program,
                input,
            })),
            None => Err(Error::Config(format!(
                "the IPAM plugin {name:?} is not in CNI_PATH ({}): install it or correct ipam.type",
                std::env::join_paths(args.path())
                    .unwrap_or_default()
                    .display()
            ))),
        }
    }

    /// Whether it asks the network by the pod's interface, which must be there
    /// while it has the lease.
    #[must_use]
    pub fn needs_interface(&self) -> bool {
        self.name == "dhcp"
    }

    /// ADD: takes addresses.
    ///
    /// # Errors
    /// [`Error::Refused`] with the plugin's own error. A lease that cannot be
    /// used is given back.
    pub fn add(&self) -> Result<Leased, Error> {
        let output = self.run("ADD")?;
        let leased = self.leased(&output);
        if leased.is_err() {
            self.give_back();
        }
        leased
    }

    /// DEL: gives the addresses back.
    ///
    /// # Errors
    /// [`Error::Refused`] with the plugin's own error.
    pub fn del(&self) -> Result<(), Error> {
        self.run("DEL").map(drop)
    }

    /// DEL after something else failed, whose error matters more.
    pub fn give_back(&self) {
        if let Err(error) = self.del() {
            eprintln!("spinlane-cni: {error}");
        }
    }

    /// CHECK: the addresses are still taken.
    ///
    /// # Errors
    /// [`Error::Refused`] with the plugin's own error.
    pub fn check(&self) -> Result<(), Error> {
        self.run("CHECK").map(drop)
    }

    /// GC or STATUS, which a plugin older than 1.1.0 does not know: that is no
    /// failure, it has nothing to say.
    ///
    /// # Errors
    /// [`Error::Refused`] with the plugin's own error.
    pub fn newer_verb(&self, verb: &str) -> Result<(), Error> {
        if !self.known_versions().contains(&SpecVersion::CURRENT) {
            return Ok(());
        }
        self.exchange(verb, self.input.raw()).map(drop)
    }

    fn leased(&self, output: &[u8]) -> Result<Leased, Error> {
        let result: CNIResult = serde_json::from_slice(output).map_err(|error| {
            self.refused(
                code::DECODING_FAILURE,
                format!("its result cannot be read: {error}"),
            )
        })?;
        if result.ips.is_empty() {
            return Err(self.refused(code::INVALID_CONFIG, "it gave no address".to_owned()));
        }
        Ok(Leased {
            delegated: Delegated {
                plugin: self.name.clone(),
                addresses: result.ips.iter().map(result::address).collect(),
                routes: result
                    .routes
                    .iter()
                    .map(|route| result::delegated_route(route, &result.ips))
                    .collect(),
            },
            result,
        })
    }

    fn run(&self, verb: &str) -> Result<Vec<u8>, Error> {
        match self.exchange(verb, self.input.raw()) {
            Err(Error::Refused(failure)) if failure.code == code::INCOMPATIBLE_VERSION => {
                match self.older_config() {
                    Some(config) => self.exchange(verb, &config),
                    None => Err(Error::Refused(failure)),
                }
            }
            other => other,
        }
    }

    /// The configuration in the newest version of ours that the plugin knows.
    fn older_config(&self) -> Option<Vec<u8>> {
        let newest = self.known_versions().into_iter().max()?;
        let mut config = self.input.document().clone();
        let version = Value::String(newest.to_string());
        // A result of an older version lacks keys, and has none that differ.
        if let Some(result) = config.get_mut("prevResult")
            && result.is_object()
        {
            result["cniVersion"] = version.clone();
        }
        config["cniVersion"] = version;
        Some(config.to_string().into_bytes())
    }

    /// Versions of ours that the plugin knows; none when it does not say.
    fn known_versions(&self) -> Vec<SpecVersion> {
        let Ok(answer) = self.exchange("VERSION", self.input.raw()) else {
            return Vec::new();
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        answer["supportedVersions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|version| version.as_str()?.parse().ok())
            .filter(|version| crate::VERSIONS.contains(version))
            .collect()
    }

    fn exchange(&self, verb: &str, config: &[u8]) -> Result<Vec<u8>, Error> {
        let what = || format!("run the IPAM plugin {}", self.program.display());
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", OsString::from(verb))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(Error::io(what()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read all of it may still answer.
            let _ = stdin.write_all(config);
        }
        let output = child.wait_with_output().map_err(Error::io(what()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.error_object(&output.stdout, &output.status.to_string()))
    }

    /// The plugin's error object, its name added.
    fn error_object(&self, output: &[u8], status: &str) -> Error {
        let object: Value = serde_json::from_slice(output).unwrap_or_default();
        let number = object["code"]
            .as_u64()
            .and_then(|code| u32::try_from(code).ok());
        match number {
            Some(number) => {
                let msg = object["msg"].as_str().unwrap_or_default();
                let details = object["details"].as_str().unwrap_or_default();
                Error::Refused(Failure {
                    code: number,
                    msg: format!("IPAM plugin {}: {msg}", self.name),
                    details: details.to_owned(),
                })
            }
            None => self.refused(
                code::DECODING_FAILURE,
                format!("it ended with {status} and without an error object"),
            ),
        }
    }

    fn refused(&self, code: u32, details: String) -> Error {
        Error::Refused(Failure {
            code,
            msg: format!("IPAM plugin {} failed", self.name),
            details,
        })
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
