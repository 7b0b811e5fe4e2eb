//! The tools that people look at networks with: traceroute, tracepath, iperf3;
//! and what asks a program how it is.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};

use serde_json::Value;

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::{PATIENCE, Process, wait_for};

/// The hops that `traceroute` shows up to `to`, `*` for a silent one.
/// `options` choose how it asks (`-I`, `-T`…).
///
/// # Errors
/// When it cannot be run.
pub fn traceroute(from: &Namespace, to: IpAddr, options: &[&str]) -> Result<Vec<String>> {
    let to = to.to_string();
    let mut line = vec![
        "traceroute",
        "-n",
        "-q",
        "1",
        "-N",
        "1",
        "-w",
        "10",
        "-m",
        "8",
    ];
    line.extend(options);
    line.push(&to);
    let text = from.run(&line)?;
    let hops = text.lines().skip(1);
    Ok(hops
        .filter_map(|hop| hop.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect())
}

/// What `tracepath` finds out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Who answered, hop by hop.
    pub hops: Vec<String>,
    /// The path's MTU in the end.
    pub mtu: u32,
    /// Whether the destination itself answered.
    pub is_reached: bool,
}

/// Runs `tracepath` to `to`.
///
/// # Errors
/// When it cannot be run or prints no summary.
pub fn tracepath(from: &Namespace, to: IpAddr) -> Result<Path> {
    let text = from.run(&["tracepath", "-n", "-m", "8", &to.to_string()])?;
    let unexpected = || LabError::unexpected(format!("tracepath {to}"), text.clone());
    let summary = text.lines().find(|line| line.contains("Resume:"));
    let mtu = summary
        .and_then(|line| line.split("pmtu ").nth(1))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|mtu| mtu.parse().ok())
        .ok_or_else(unexpected)?;
    let mut hops: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let is_hop = words
            .next()
            .is_some_and(|hop| hop.ends_with(':') && hop != "Resume:");
        if let Some(who) = words.next().filter(|who| is_hop && !who.starts_with('['))
            && hops.last().is_none_or(|last| last != who)
        {
            hops.push(who.to_owned());
        }
    }
    Ok(Path {
        hops,
        mtu,
        is_reached: text.contains("reached"),
    })
}

/// An iperf3 server at `address`, listening, that serves one client.
///
/// # Errors
/// When it does not come to listen.
pub fn iperf3_server(server: &Namespace, address: IpAddr) -> Result<Process> {
    let serving = server.spawn(&["iperf3", "-s", "-1", "-B", &address.to_string()])?;
    wait_for("iperf3 to listen", PATIENCE, || {
        let listening = server.run(&["ss", "-Htln", "sport = :5201"]).ok()?;
        (!listening.is_empty()).then_some(())
    })?;
    Ok(serving)
}

/// Runs iperf3 from `client` to a server at `address` inside `server`; its
/// report.
///
/// # Errors
/// When one of both ends badly.
pub fn iperf3(
    client: &Namespace,
    server: &Namespace,
    address: IpAddr,
    options: &[&str],
) -> Result<Value> {
    let _serving = iperf3_server(server, address)?;
    let address = address.to_string();
    let mut line = vec!["iperf3", "-J", "-c", &address];
    line.extend(options);
    let text = client.run(&line)?;
    serde_json::from_str(&text)
        .map_err(|error| LabError::unexpected("iperf3", format!("{error} in {text}")))
}

/// What a server answers to `GET path`, asked from inside `from`: head and
/// body.
///
/// # Errors
/// When nobody listens at `authority` (`127.0.0.1:9465`) or it falls silent.
pub fn http_get(from: &Namespace, authority: &str, path: &str) -> Result<String> {
    from.enter(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(authority)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
    .map_err(LabError::io(format!("GET {path} of {authority}")))
}
