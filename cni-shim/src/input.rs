//! Standard input, read once and handed on.
//!
//! Three things that `rscni-plugin` does not give are taken from the raw
//! bytes: the configuration's `cniVersion` before anything else can fail (the
//! specification wants it in error objects and in VERSION's answer), the
//! bytes themselves for a delegated IPAM plugin, and whether a key was absent
//! or null. The plugin library reads standard input itself, so the bytes are
//! put back by way of a memory file.

use std::io::{self, IsTerminal, Read, Seek, Write};

use rscni_plugin::version::SpecVersion;
use serde_json::Value;

/// The network configuration as it came.
#[derive(Debug, Clone, Default)]
pub struct Input {
    raw: Vec<u8>,
    document: Value,
}

impl Input {
    /// Reads standard input to its end and puts it back for the library. A
    /// bare invocation on a terminal reads nothing.
    ///
    /// # Errors
    /// When it cannot be read or put back.
    pub fn take() -> io::Result<Self> {
        let stdin = io::stdin();
        if std::env::var_os("CNI_COMMAND").is_none() || stdin.is_terminal() {
            return Ok(Self::default());
        }
        let mut raw = Vec::new();
        // A duplicate, because the buffer of io::stdin would keep the end of
        // the old input in sight.
        std::fs::File::from(rustix::io::dup(&stdin)?).read_to_end(&mut raw)?;
        let input = Self::parse(raw);
        let mut file = std::fs::File::from(rustix::fs::memfd_create(
            c"cni-config",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        file.write_all(&input.raw)?;
        file.rewind()?;
        rustix::stdio::dup2_stdin(&file)?;
        Ok(input)
    }

    /// An input of these bytes; an `ipam` section without a type is taken out,
    /// as the reference plugins read it as none.
    #[must_use]
    pub fn parse(raw: Vec<u8>) -> Self {
        let mut document: Value = serde_json::from_slice(&raw).unwrap_or_default();
        let nameless = document
            .get("ipam")
            .is_some_and(|ipam| matches!(ipam["type"].as_str(), None | Some("")));
        let nameless_object = nameless && document["ipam"].is_object();
        if !nameless_object {
            return Self { raw, document };
        }
        if let Some(object) = document.as_object_mut() {
            object.remove("ipam");
        }
        Self {
            raw: document.to_string().into_bytes(),
            document,
        }
    }

    /// The bytes.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The document; null when the bytes are not JSON.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The declared `cniVersion`; the newest when there is none to echo.
    #[must_use]
    pub fn version(&self) -> SpecVersion {
        self.document
            .get("cniVersion")
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok())
            .unwrap_or(SpecVersion::CURRENT)
    }
}

#[cfg(test)]
mod tests {
    use rscni_plugin::version::SpecVersion;

    use super::Input;

    #[test]
    fn version_is_echoed_when_there_is_one() {
        let cases: [(&str, SpecVersion); 5] = [
            (r#"{"cniVersion":"0.4.0"}"#, SpecVersion::new(0, 4, 0)),
            (r#"{"cniVersion":"9.9.9"}"#, SpecVersion::new(9, 9, 9)),
            (r#"{"cniVersion":7}"#, SpecVersion::CURRENT),
            ("{}", SpecVersion::CURRENT),
            ("not json", SpecVersion::CURRENT),
        ];
        for (text, expect) in cases {
            assert_eq!(Input::parse(text.into()).version(), expect, "{text}");
        }
    }

    #[test]
    fn only_a_nameless_ipam_section_is_taken_out() {
        let cases = [
            (r#"{"ipam":{}}"#, false),
            (r#"{"ipam":{"type":""}}"#, false),
            (r#"{"ipam":{"type":"host-local"}}"#, true),
            // Wrong, and left for the decoder to refuse.
            (r#"{"ipam":7}"#, true),
        ];
        for (text, stays) in cases {
            let input = Input::parse(text.into());
            assert_eq!(input.document().get("ipam").is_some(), stays, "{text}");
            assert_eq!(input.raw() == text.as_bytes(), stays, "{text}");
        }
    }
}
