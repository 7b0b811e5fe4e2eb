//! `CNI_ARGS`: `KEY=VALUE` pairs separated by semicolons.

use spinlane_api::cni::{Args, Pod};

use crate::error::Error;

/// Keys that mean something to us or that every Kubernetes runtime sends.
const KNOWN: [&str; 7] = [
    "IgnoreUnknown",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
    "IP",
    "MAC",
];

/// What `CNI_ARGS` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The pod.
    pub pod: Pod,
    /// `IP`: addresses that the runtime asks for, comma separated.
    pub ips: Vec<String>,
    /// `MAC`: the hardware address that the runtime asks for.
    pub mac: Option<String>,
}

impl Arguments {
    /// Reads the variable's text; none and an empty one say nothing.
    ///
    /// # Errors
    /// [`Error::Environment`] for a pair without `=`, a key without a name
    /// and, unless `IgnoreUnknown` is true, for a key that nobody knows.
    pub fn parse(text: Option<&str>) -> Result<Self, Error> {
        let mut pairs = Args::new();
        for pair in text.unwrap_or_default().split(';') {
            let pair = pair.trim();
            if pair.is_empty() {
                continue;
            }
            match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    pairs.insert(key.to_owned(), value.to_owned());
                }
                _ => {
                    return Err(Error::Environment(format!(
                        "CNI_ARGS: {pair:?} is not KEY=VALUE"
                    )));
                }
            }
        }
        refuse_unknown(&pairs)?;
        let mut take = |key: &str| pairs.remove(key).filter(|value| !value.is_empty());
        Ok(Self {
            pod: Pod {
                namespace: take("K8S_POD_NAMESPACE").unwrap_or_default(),
                name: take("K8S_POD_NAME").unwrap_or_default(),
                uid: take("K8S_POD_UID").unwrap_or_default(),
            },
            ips: take("IP")
                .map(|list| list.split(',').map(|ip| ip.trim().to_owned()).collect())
                .unwrap_or_default(),
            mac: take("MAC"),
        })
    }
}

fn refuse_unknown(pairs: &Args) -> Result<(), Error> {
    let lenient = match pairs.get("IgnoreUnknown").map(String::as_str) {
        None => false,
        Some("1" | "true" | "True" | "TRUE" | "t" | "T") => true,
        Some("0" | "false" | "False" | "FALSE" | "f" | "F" | "") => false,
        Some(other) => {
            return Err(Error::Environment(format!(
                "CNI_ARGS: IgnoreUnknown={other:?} is neither true nor false"
            )));
        }
    };
    match pairs.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        Some(key) if !lenient => Err(Error::Environment(format!(
            "CNI_ARGS: {key} is unknown; add IgnoreUnknown=1 to pass it by"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    #[test]
    fn a_kubernetes_runtime_is_understood() {
        let parsed = Arguments::parse(Some(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;\
             K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1;COLOUR=red",
        ))
        .unwrap();
        assert_eq!(parsed.pod.namespace, "shop");
        assert_eq!(parsed.pod.name, "web-0");
        assert_eq!(parsed.pod.uid, "u-1");
        assert!(parsed.ips.is_empty() && parsed.mac.is_none());
    }

    #[test]
    fn addresses_may_be_asked_for() {
        let parsed = Arguments::parse(Some("IP=10.1.0.7,fd00::7;MAC=02:00:00:00:00:07")).unwrap();
        assert_eq!(parsed.ips, ["10.1.0.7", "fd00::7"]);
        assert_eq!(parsed.mac.as_deref(), Some("02:00:00:00:00:07"));
    }

    #[test]
    fn nothing_says_nothing() {
        for text in [None, Some(""), Some(";;")] {
            assert_eq!(Arguments::parse(text).unwrap(), Arguments::default());
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, named) in [
            ("K8S_POD_NAME", "K8S_POD_NAME"),
            ("=web", "=web"),
            ("COLOUR=red", "COLOUR"),
            ("COLOUR=red;IgnoreUnknown=0", "COLOUR"),
            ("IgnoreUnknown=maybe", "IgnoreUnknown"),
        ] {
            let message = Arguments::parse(Some(text)).unwrap_err().to_string();
            assert!(
                message.contains("CNI_ARGS") && message.contains(named),
                "{message}"
            );
        }
    }
}
