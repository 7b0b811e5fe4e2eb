//! `spinlane capture`: the agent's pcapng stream into a file or a pipe.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use clap::Args;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Done, Failure, complain};
use crate::api::client::Client;
use crate::api::server::{CaptureQuery, SNAPLENS};
use crate::capture::{Blocks, Filter};

#[derive(Debug, Args)]
pub(super) struct CaptureArguments {
    /// Only this port: its name, NAMESPACE/POD, or the pod's name
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// Only packets that match, as in pcap-filter(7): "tcp port 80 and not host 10.244.1.2", "dropped"
    #[arg(long, value_name = "EXPR")]
    filter: Option<String>,
    /// End after this many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Keep at most this many bytes of each packet
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(SNAPLENS))]
    snaplen: Option<u32>,
    /// pcapng file to write; `-` is standard output
    #[arg(long, short, value_name = "FILE")]
    write: String,
}

/// What an interrupted user means: end here, the file is good.
struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    fn listen() -> io::Result<Interrupt> {
        Ok(Interrupt {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn came(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

pub(super) async fn run(arguments: &CaptureArguments, client: &Client) -> Done {
    if let Some(expression) = &arguments.filter {
        Filter::parse(expression).map_err(|e| Failure::usage(e.to_string()))?;
    }
    let mut interrupt = Interrupt::listen()
        .map_err(|e| Failure::failed(format!("cannot wait for signals: {e}")))?;
    let stream = client
        .capture(&CaptureQuery {
            port: arguments.port.clone(),
            filter: arguments.filter.clone(),
            count: arguments.count,
            snaplen: arguments.snaplen,
        })
        .await?;
    let mut file = open(&arguments.write)?;
    let mut blocks = Blocks::default();
    let copied = tokio::select! {
        copied = copy(stream, &mut blocks, &mut *file) => copied,
        () = interrupt.came() => Ok(()),
    };
    copied.map_err(|e| Failure::failed(format!("capture to {}: {e}", arguments.write)))?;
    let packets = blocks.packets();
    complain(&format!("{packets} packets written to {}", arguments.write));
    Ok(ExitCode::SUCCESS)
}

fn open(name: &str) -> Result<Box<dyn Write>, Failure> {
    if name == "-" {
        return Ok(Box::new(io::stdout()));
    }
    // Packets are nobody else's business.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(name)
        .map_err(|e| Failure::failed(format!("cannot write {name}: {e}")))?;
    Ok(Box::new(file))
}

/// Whole blocks only, each handed on at once: the file is valid and a reader
/// at the other end of a pipe is up to date whenever it stops.
async fn copy(mut stream: Incoming, blocks: &mut Blocks, file: &mut dyn Write) -> io::Result<()> {
    while let Some(frame) = stream.frame().await {
        let frame = frame.map_err(|e| {
            io::Error::other(format!("the agent ended it ({e}); see the agent's log"))
        })?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        let written = blocks.take(bytes, |whole| {
            file.write_all(whole)?;
            file.flush()
        });
        match written {
            // The reader has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}
