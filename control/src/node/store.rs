//! What outlives the agent: endpoints with their addresses, rests of released
//! addresses, and where each rotation stands.
//!
//! One thread writes. It takes every request that waits into one durable
//! transaction, so many ADDs at once cost one flush to the disk; a caller
//! returns when its change is on the disk. A kill at any instant leaves the
//! last complete transaction.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use spinlane_api::cni::Attachment;

use super::endpoint::Endpoint;
use super::ipam::{QUARANTINE_S, ScopeName};

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "endpoints.redb";
/// Version of the layout; a store of another version is refused.
const SCHEMA: u64 = 1;
/// What to do about a damaged store.
const GIVE_UP: &str = "move it away, and make the pods that it knew anew";
/// Most changes in one transaction.
const BATCH: usize = 256;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ENDPOINTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("endpoints");
/// Scope and address → Unix seconds of the release.
const RELEASED: TableDefinition<'_, &str, u64> = TableDefinition::new("released");
/// Scope and range's first address → address given last.
const CURSORS: TableDefinition<'_, &str, &str> = TableDefinition::new("cursors");

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Not opened.
    #[error("cannot open the endpoint store {path}: {reason}")]
    Open {
        /// The file.
        path: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Not written.
    #[error("cannot write the endpoint store: {0}")]
    Write(String),
    /// The writer ended.
    #[error("the endpoint store is closed: the agent is stopping")]
    Closed,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// Inserts or replaces an endpoint.
    Put(Box<Endpoint>),
    /// Forgets an endpoint.
    Remove(Attachment),
    /// An address was released.
    Released {
        /// Its scope.
        scope: ScopeName,
        /// The address.
        address: IpAddr,
        /// Unix seconds.
        at_s: u64,
    },
    /// An address was given, in rotation.
    Given {
        /// Its scope.
        scope: ScopeName,
        /// Network address of the range.
        range: IpAddr,
        /// The address.
        address: IpAddr,
    },
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Every endpoint.
    pub endpoints: Vec<Endpoint>,
    /// Rests of released addresses.
    pub released: Vec<(ScopeName, IpAddr, u64)>,
    /// Where rotations stand.
    pub cursors: Vec<(ScopeName, IpAddr)>,
}

type Job = (Vec<Change>, mpsc::SyncSender<Result<(), StoreError>>);

/// The open store.
#[derive(Debug)]
pub struct Store {
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<std::thread::JoinHandle<()>>,
    trouble: Arc<Trouble>,
}

/// Why the last write failed; nothing once one went through.
type Trouble = Mutex<Option<StoreError>>;

impl Store {
    /// Opens or makes the store in `state_dir` and reads it.
    pub fn open(state_dir: &Path) -> Result<(Store, Contents), StoreError> {
        let path = state_dir.join(FILE_NAME);
        let refuse = |reason: String| StoreError::Open {
            path: path.display().to_string(),
            reason,
        };
        let refused = |error: redb::Error| refuse(reason(&error));
        std::fs::create_dir_all(state_dir).map_err(|e| refused(e.into()))?;
        let database = Database::create(&path).map_err(|e| refused(e.into()))?;
        prepare(&database).map_err(refused)?;
        match schema(&database).map_err(refused)? {
            Some(SCHEMA) => {}
            found => {
                return Err(refuse(format!(
                    "its layout has version {found:?}, this agent knows {SCHEMA}: run the agent that wrote it, or `spinlane cleanup`"
                )));
            }
        }
        let contents = read(&database).map_err(refused)?;
        let (jobs, waiting) = mpsc::channel();
        let trouble = Arc::<Trouble>::default();
        let database = Some(database);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let trouble = Arc::clone(&trouble);
                move || write_all(Disk { path, database }, &waiting, &trouble)
            })
            .map_err(|e| StoreError::Open {
                path: state_dir.join(FILE_NAME).display().to_string(),
                reason: e.to_string(),
            })?;
        let store = Store {
            jobs: Some(jobs),
            writer: Some(writer),
            trouble,
        };
        Ok((store, contents))
    }

    /// Begins a write; the changes are on the disk when
    /// [`Pending::wait`] returns.
    pub fn begin(&self, changes: Vec<Change>) -> Pending {
        let (done, wait) = mpsc::sync_channel(1);
        let sent = self
            .jobs
            .as_ref()
            .and_then(|jobs| jobs.send((changes, done)).ok());
        Pending(sent.map(|()| wait))
    }

    /// Why the last write failed; nothing once one went through again.
    pub fn trouble(&self) -> Option<StoreError> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes changes, all or none, and returns when they are on the disk.
    pub fn write(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.begin(changes).wait()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing more to lose.
            let _ = writer.join();
        }
    }
}

/// Why a store cannot be had, and what to do. Only one that is damaged is to
/// be given up.
fn reason(error: &redb::Error) -> String {
    use std::io::ErrorKind as Kind;
    let what_to_do = match error {
        redb::Error::DatabaseAlreadyOpen => {
            return "another agent has it open: stop that one or give this one a --state-dir of its own"
                .to_owned();
        }
        redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => {
            "another version wrote it: run that one, or `spinlane cleanup`"
        }
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => GIVE_UP,
        redb::Error::Io(error) => match error.kind() {
            Kind::InvalidData | Kind::UnexpectedEof => GIVE_UP,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => "make it writable",
            Kind::StorageFull | Kind::QuotaExceeded => "free room on its disk",
            _ => "mend that first: the store itself may be whole",
        },
        _ => return error.to_string(),
    };
    format!("{error}; {what_to_do}")
}

/// A write under way.
#[derive(Debug)]
#[must_use = "the write is done when wait returns"]
pub struct Pending(Option<mpsc::Receiver<Result<(), StoreError>>>);

impl Pending {
    /// Waits for the disk.
    pub fn wait(self) -> Result<(), StoreError> {
        let wait = self.0.ok_or(StoreError::Closed)?;
        wait.recv().unwrap_or(Err(StoreError::Closed))
    }
}

/// Removes the store of a state directory. `true` when there was one.
pub fn remove(state_dir: &Path) -> std::io::Result<bool> {
    match std::fs::remove_file(path(state_dir)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Path of the store.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE_NAME)
}

fn prepare(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        if meta.get("schema")?.is_none() {
            meta.insert("schema", SCHEMA)?;
        }
        transaction.open_table(ENDPOINTS)?;
        transaction.open_table(RELEASED)?;
        transaction.open_table(CURSORS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn schema(database: &Database) -> Result<Option<u64>, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get("schema")?.map(|version| version.value()))
}

fn read(database: &Database) -> Result<Contents, redb::Error> {
    let transaction = database.begin_read()?;
    let mut contents = Contents::default();
    for row in transaction.open_table(ENDPOINTS)?.iter()? {
        let (key, value) = row?;
        match serde_json::from_slice(value.value()) {
            Ok(endpoint) => contents.endpoints.push(endpoint),
            Err(error) => {
                tracing::error!(key = key.value(), %error, "skipping an unreadable endpoint");
            }
        }
    }
    for row in transaction.open_table(RELEASED)?.iter()? {
        let (key, at) = row?;
        if let Some((scope, address)) = split(key.value()) {
            contents.released.push((scope, address, at.value()));
        }
    }
    for row in transaction.open_table(CURSORS)?.iter()? {
        let (key, value) = row?;
        if let (Some((scope, _)), Ok(address)) = (split(key.value()), value.value().parse()) {
            contents.cursors.push((scope, address));
        }
    }
    Ok(contents)
}

/// The file. The library writes nothing more to one that once failed, so it is
/// opened anew then.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    database: Option<Database>,
}

impl Disk {
    fn commit<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) -> Result<(), StoreError> {
        let refused = |error: redb::Error| StoreError::Write(reason(&error));
        let database = match self.database.take() {
            Some(database) => database,
            None => Database::create(&self.path).map_err(|e| refused(e.into()))?,
        };
        commit(&database, changes).map_err(refused)?;
        self.database = Some(database);
        Ok(())
    }
}

fn write_all(mut disk: Disk, waiting: &mpsc::Receiver<Job>, trouble: &Trouble) {
    while let Ok(first) = waiting.recv() {
        let mut jobs = vec![first];
        while jobs.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            jobs.push(next);
        }
        let changes = jobs.iter().flat_map(|(changes, _)| changes);
        let result = disk.commit(changes);
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = result.clone().err();
        for (_, done) in jobs {
            // Whoever no longer waits does not want to know.
            let _ = done.send(result.clone());
        }
    }
}

fn commit<'a>(
    database: &Database,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut endpoints = transaction.open_table(ENDPOINTS)?;
        let mut released = transaction.open_table(RELEASED)?;
        let mut cursors = transaction.open_table(CURSORS)?;
        for change in changes {
            match change {
                Change::Put(endpoint) => {
                    let value = serde_json::to_vec(endpoint)
                        .map_err(|e| redb::Error::Io(std::io::Error::other(e)))?;
                    endpoints.insert(key(&endpoint.attachment).as_str(), value.as_slice())?;
                }
                Change::Remove(attachment) => {
                    endpoints.remove(key(attachment).as_str())?;
                }
                Change::Released {
                    scope,
                    address,
                    at_s,
                } => {
                    released.retain(|_, at| at_s.abs_diff(at) < QUARANTINE_S)?;
                    released.insert(join(scope, *address).as_str(), at_s)?;
                }
                Change::Given {
                    scope,
                    range,
                    address,
                } => {
                    cursors.insert(join(scope, *range).as_str(), address.to_string().as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Attachment as a key; no part of it may hold a zero byte.
fn key(attachment: &Attachment) -> String {
    format!(
        "{}\0{}\0{}",
        attachment.network, attachment.container_id, attachment.ifname
    )
}

fn join(scope: &ScopeName, address: IpAddr) -> String {
    match scope {
        None => format!("\0{address}"),
        Some(name) => format!("{name}\0{address}"),
    }
}

fn split(key: &str) -> Option<(ScopeName, IpAddr)> {
    let (scope, address) = key.split_once('\0')?;
    let scope = (!scope.is_empty()).then(|| scope.to_owned());
    Some((scope, address.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::State;
    use super::super::samples::endpoint;
    use super::*;

    #[test]
    fn keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (store, contents) = Store::open(dir.path()).unwrap();
        assert!(contents.endpoints.is_empty());
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        store
            .write(vec![
                Change::Put(Box::new(endpoint("a", State::Adding))),
                Change::Put(Box::new(endpoint("b", State::Attached))),
                Change::Given {
                    scope: None,
                    range: "10.0.0.0".parse().unwrap(),
                    address,
                },
                Change::Released {
                    scope: Some("blue".into()),
                    address,
                    at_s: 77,
                },
            ])
            .unwrap();
        store
            .write(vec![
                Change::Put(Box::new(endpoint("a", State::Attached))),
                Change::Remove(endpoint("b", State::Attached).attachment),
            ])
            .unwrap();
        drop(store);
        let (_store, contents) = Store::open(dir.path()).unwrap();
        assert_eq!(contents.endpoints, vec![endpoint("a", State::Attached)]);
        assert_eq!(
            contents.released,
            vec![(Some("blue".to_owned()), address, 77)]
        );
        assert_eq!(contents.cursors, vec![(None, address)]);
    }

    #[test]
    fn two_agents_do_not_share_one() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, _) = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn a_damaged_one_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), [0; 4096]).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        let named = error.contains(path(dir.path()).to_str().unwrap());
        assert!(named && error.contains("move it away"), "{error}");
    }

    #[test]
    fn one_that_cannot_be_reached_is_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(path(dir.path())).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        let named = error.contains(path(dir.path()).to_str().unwrap());
        assert!(named && error.contains("Is a directory"), "{error}");
        assert!(!error.contains("move it away"), "{error}");

        let io = |number| redb::Error::Io(std::io::Error::from_raw_os_error(number));
        for (error, expect) in [
            (io(libc::EACCES), "make it writable"),
            (io(libc::EROFS), "make it writable"),
            (io(libc::ENOSPC), "free room"),
            (io(libc::EDQUOT), "free room"),
            (io(libc::EIO), "may be whole"),
            (redb::Error::UpgradeRequired(1), "another version wrote it"),
            (redb::Error::RepairAborted, "move it away"),
            (redb::Error::Corrupted("a page".into()), "move it away"),
        ] {
            let told = reason(&error);
            assert!(told.contains(&error.to_string()), "{told}");
            assert!(told.contains(expect), "{told}");
            let given_up = told.contains("move it away");
            assert_eq!(given_up, expect == "move it away", "{told}");
        }
    }

    #[test]
    fn one_that_was_cut_short_is_damaged() {
        // Within the header, and behind it.
        for len in [100, 5000] {
            let dir = tempfile::tempdir().unwrap();
            drop(Store::open(dir.path()).unwrap());
            let file = std::fs::File::options().write(true).open(path(dir.path()));
            file.unwrap().set_len(len).unwrap();
            let error = Store::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("move it away"), "{error}");
        }
    }

    /// On a disk of its own, which a file fills.
    #[test]
    fn a_disk_that_was_full_is_written_again() {
        if !spinlane_tests::root_or_skip("a_disk_that_was_full_is_written_again") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_owned();
        let work = move || {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let nothing = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing).unwrap();
            let size = Some("size=8m");
            mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), size).unwrap();
            let (store, _) = Store::open(&at).unwrap();
            let put = |name: &str| {
                store.write(vec![Change::Put(Box::new(endpoint(name, State::Attached)))])
            };
            put("before").unwrap();
            assert!(store.trouble().is_none());
            let filler = at.join("filler");
            let mut full = std::fs::File::create(&filler).unwrap();
            while std::io::Write::write_all(&mut full, &[0; 4096]).is_ok() {}
            let refused = (0..1000).find_map(|number| put(&format!("c{number}")).err());
            let refused = refused.expect("no room").to_string();
            assert!(refused.contains("free room"), "{refused}");
            assert!(put("still").is_err());
            let trouble = store.trouble().unwrap().to_string();
            assert!(trouble.contains("free room"), "{trouble}");
            std::fs::remove_file(&filler).unwrap();
            drop(full);
            put("after").unwrap();
            assert!(store.trouble().is_none());
            drop(store);
            let endpoints = Store::open(&at).unwrap().1.endpoints;
            let has = |name| endpoints.contains(&endpoint(name, State::Attached));
            assert!(has("before") && has("after") && !has("still"));
        };
        std::thread::spawn(work).join().unwrap();
    }

    #[test]
    fn many_writers_at_once_all_land() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    let endpoint = endpoint(&format!("c{n}"), State::Attached);
                    store.write(vec![Change::Put(Box::new(endpoint))]).unwrap();
                });
            }
        });
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().1.endpoints.len(), 16);
    }
}
