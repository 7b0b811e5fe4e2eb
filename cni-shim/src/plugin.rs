//! The CNI verbs. Each reads from top to bottom and undoes itself on error.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rscni_plugin::cni::Cni;
use rscni_plugin::error::Error as CniError;
use rscni_plugin::types::{Args, CNIResult};
use spinlane_api::cni::{AddRequest, Attachment, CheckRequest, Request, Response};

use crate::agent::Agent;
use crate::arguments::Arguments;
use crate::error::Error;
use crate::input::Input;
use crate::ipam::Ipam;
use crate::settings::{self, Settings, Wishes};
use crate::{pending, result};

/// `f_type` of the file system that namespaces live in (`NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// How long a connection may stay silent before the agent loses patience;
/// some IPAM plugins (dhcp) take longer.
const SHORT_SILENCE: Duration = Duration::from_secs(1);
/// How long DEL asks an agent that is too busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two such questions.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The plugin with the input of its one call.
#[derive(Debug)]
pub struct SpinlaneCni {
    input: Input,
}

impl SpinlaneCni {
    /// For one call.
    #[must_use]
    pub fn new(input: Input) -> Self {
        Self { input }
    }

    fn do_add(&self, args: &Args) -> Result<CNIResult, Error> {
        let config = args.config();
        let settings = Settings::read(config)?;
        let arguments = Arguments::parse(args.args())?;
        let wishes = Wishes::read(config, &arguments)?;
        let (netns, netns_path) = open_netns(args)?;
        let attachment = attachment(args)?;
        let ipam = Ipam::find(args, &self.input)?;
        let mut request = AddRequest {
            attachment: attachment.clone(),
            pod: arguments.pod,
            netns_path,
            segment: settings.segment,
            mtu: settings.mtu,
            super_frames: settings.super_frames,
            mac: wishes.mac,
            ips: wishes.ips,
            delegated: None,
            addresses_follow: ipam.as_ref().is_some_and(Ipam::needs_interface),
        };
        let run_dir = &settings.run_dir;
        // Before addresses are taken: without an agent nothing has to be undone.
        let mut agent = Agent::connect(run_dir)?;
        let is_made = request.addresses_follow;
        if is_made {
            let made = agent.ask(&Request::Add(request.clone()), Some(netns.as_fd()));
            made.inspect_err(|error| undo_add(run_dir, &attachment, error))?;
            agent = Agent::connect(run_dir)?;
        }
        let leasing = Instant::now();
        let lease = ipam.as_ref().map(Ipam::add).transpose();
        let lease = lease.inspect_err(|_| {
            if is_made {
                remove(run_dir, &attachment);
            }
        })?;
        if leasing.elapsed() > SHORT_SILENCE {
            match Agent::connect(run_dir) {
                Ok(anew) => agent = anew,
                Err(error) => {
                    give_back(ipam.as_ref());
                    if is_made {
                        remove(run_dir, &attachment);
                    }
                    return Err(error);
                }
            }
        }
        let (delegated, leased_dns) = match lease {
            Some(lease) => (Some(lease.delegated), lease.result.dns),
            None => (None, None),
        };
        request.delegated = delegated;
        request.addresses_follow = false;
        let request = match is_made {
            true => Request::Address(request),
            false => Request::Add(request),
        };
        let dns = settings::dns(config).or(leased_dns);
        let added = agent
            .ask(&request, Some(netns.as_fd()))
            .and_then(|answer| match answer {
                Response::Added(made) => result::added(config.prev_result.clone(), made, dns),
                other => Err(Agent::unexpected(run_dir, &other)),
            });
        match added {
            Ok(result) => {
                pending::forget(run_dir, &attachment);
                Ok(result)
            }
            Err(error) => {
                undo_add(run_dir, &attachment, &error);
                give_back(ipam.as_ref());
                Err(error)
            }
        }
    }

    fn do_del(&self, args: &Args) -> Result<(), Error> {
        let run_dir = settings::run_dir(args.config())?;
        let attachment = attachment(args)?;
        let early = Ipam::find(args, &self.input).ok().flatten();
        // It says goodbye to the network by the interface.
        let early = early.filter(Ipam::needs_interface);
        let released = early.as_ref().map(Ipam::del);
        match delete(&run_dir, &attachment) {
            Err(error) if error.is_no_agent() => {
                pending_deletion(&run_dir, &attachment)?;
            }
            other => other?,
        }
        match (released, Ipam::find(args, &self.input)?) {
            (Some(released), _) => released,
            (None, Some(ipam)) => ipam.del(),
            (None, None) => Ok(()),
        }
    }

    fn do_check(&self, args: &Args) -> Result<(), Error> {
        let config = args.config();
        let settings = Settings::read(config)?;
        Arguments::parse(args.args())?;
        let attachment = attachment(args)?;
        let previous = config.prev_result.as_ref().ok_or_else(|| {
            Error::Config("prevResult is missing: CHECK has nothing to compare with".to_owned())
        })?;
        let (netns, netns_path) = open_netns(args)?;
        if let Some(ipam) = Ipam::find(args, &self.input)? {
            ipam.check()?;
        }
        let (addresses, mac) = result::expected(previous, &attachment.ifname);
        let request = Request::Check(CheckRequest {
            attachment,
            netns_path,
            addresses,
            mac,
        });
        done(&settings.run_dir, &request, Some(&netns))
    }

    fn do_gc(&self, args: &Args) -> Result<(), Error> {
        let config = args.config();
        let settings = Settings::read(config)?;
        let request = Request::Gc {
            network: config.name.clone(),
            keep: settings::valid_attachments(config, self.input.document())?,
        };
        // As much as possible is removed, whatever fails first is reported.
        let ours = done(&settings.run_dir, &request, None);
        let theirs = Ipam::find(args, &self.input).and_then(|ipam| match ipam {
            Some(ipam) => ipam.newer_verb("GC"),
            None => Ok(()),
        });
        ours.and(theirs)
    }

    fn do_status(&self, args: &Args) -> Result<(), Error> {
        let settings = Settings::read(args.config())?;
        let ipam = Ipam::find(args, &self.input).map_err(Error::of_status)?;
        let request = Request::Status {
            segment: settings.segment,
            delegated: ipam.is_some(),
        };
        done(&settings.run_dir, &request, None).map_err(Error::of_status)?;
        match ipam {
            Some(ipam) => ipam.newer_verb("STATUS"),
            None => Ok(()),
        }
    }
}

impl Cni for SpinlaneCni {
    fn add(&self, args: Args) -> Result<CNIResult, CniError> {
        Ok(self.do_add(&args)?)
    }

    fn del(&self, args: Args) -> Result<(), CniError> {
        Ok(self.do_del(&args)?)
    }

    fn check(&self, args: Args) -> Result<(), CniError> {
        Ok(self.do_check(&args)?)
    }

    fn status(&self, args: Args) -> Result<(), CniError> {
        Ok(self.do_status(&args)?)
    }

    fn gc(&self, args: Args) -> Result<(), CniError> {
        Ok(self.do_gc(&args)?)
    }
}

/// Asks a question whose answer is "done".
fn done(run_dir: &Path, request: &Request, netns: Option<&File>) -> Result<(), Error> {
    match Agent::connect(run_dir)?.ask(request, netns.map(AsFd::as_fd))? {
        Response::Done => Ok(()),
        other => Err(Agent::unexpected(run_dir, &other)),
    }
}

/// Asks for a deletion, again for a while when the agent is too busy. One that
/// refuses because it is stopping is soon not there at all.
fn delete(run_dir: &Path, attachment: &Attachment) -> Result<(), Error> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match done(run_dir, &Request::Del(attachment.clone()), None) {
            Err(error) if error.is_try_again() && Instant::now() < deadline => {
                std::thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

/// An agent that refused has undone everything itself. One that went away may
/// have finished the work and will remember it, so it must be told; and a
/// result that we cannot print is an attachment that nobody will know of.
fn undo_add(run_dir: &Path, attachment: &Attachment, error: &Error) {
    if !matches!(error, Error::Refused(_)) {
        remove(run_dir, attachment);
    }
}

/// Has the agent delete what an ADD that failed made.
fn remove(run_dir: &Path, attachment: &Attachment) {
    let told = match delete(run_dir, attachment) {
        Err(error) if error.is_no_agent() => pending_deletion(run_dir, attachment),
        other => other,
    };
    if let Err(error) = told {
        eprintln!("spinlane-cni: undo of ADD: {error}");
    }
}

fn give_back(ipam: Option<&Ipam<'_>>) {
    if let Some(ipam) = ipam {
        ipam.give_back();
    }
}

/// Leaves the deletion to the agent's next start. One that started between
/// our question and the record may have looked at the records already, so it
/// is asked once more; whether it answers now or not, the record stands until
/// the deletion is done.
fn pending_deletion(run_dir: &Path, attachment: &Attachment) -> Result<(), Error> {
    pending::record(run_dir, attachment)?;
    if delete(run_dir, attachment).is_ok() {
        pending::forget(run_dir, attachment);
    }
    Ok(())
}

fn attachment(args: &Args) -> Result<Attachment, Error> {
    let missing = |name: &str| Error::Environment(format!("{name} is missing"));
    Ok(Attachment {
        network: args.config().name.clone(),
        container_id: args
            .container_id()
            .ok_or_else(|| missing("CNI_CONTAINERID"))?
            .to_string(),
        ifname: args
            .ifname()
            .ok_or_else(|| missing("CNI_IFNAME"))?
            .to_string(),
    })
}

/// Opens the container's namespace and makes sure that it is one, and not the
/// host's own.
fn open_netns(args: &Args) -> Result<(File, String), Error> {
    let path = args
        .netns()
        .ok_or_else(|| Error::Environment("CNI_NETNS is missing".to_owned()))?;
    let wrong = |why: &str| Error::Environment(format!("CNI_NETNS={}: {why}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoContainer(format!(
                "CNI_NETNS={}: there is no such namespace",
                path.display()
            )));
        }
        Err(error) => return Err(wrong(&error.to_string())),
    };
    let is_namespace = rustix::fs::fstatfs(&file)
        .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| kind == NSFS_MAGIC));
    if !is_namespace {
        return Err(wrong("it is not a namespace"));
    }
    let same = |own: std::fs::Metadata, theirs: std::fs::Metadata| {
        (own.dev(), own.ino()) == (theirs.dev(), theirs.ino())
    };
    if let (Ok(own), Ok(theirs)) = (std::fs::metadata("/proc/self/ns/net"), file.metadata())
        && same(own, theirs)
    {
        return Err(wrong("it is the host's own namespace"));
    }
    Ok((file, path.display().to_string()))
}
