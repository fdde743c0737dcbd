//! The command line: what scripts depend on.

use clap::{Args, Parser, Subcommand};
use defrost_restorer::checkpoint::MAX_DELETED_BYTES;
use pager::{LOST_AFTER_S, Latency, OnLost, Recording};
use pages::{SnapshotName, SnapshotRef};
use std::path::PathBuf;

/// Brings a frozen process back before its memory arrives.
#[derive(Debug, Parser)]
#[command(name = "defrost", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where snapshots are.
#[derive(Clone, Debug, Args)]
pub struct StoreArg {
    /// A directory, grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH; to read also several servers that hold the same snapshots,
    /// as in grpc://HOST:PORT,HOST:PORT
    #[arg(long, env = "DEFROST_STORE")]
    pub store: Option<String>,
}

/// One snapshot and how to print.
#[derive(Clone, Debug, Args)]
pub struct OneSnapshot {
    /// NAME or NAME:TAG; with @DIGEST it must stand for that snapshot
    pub name: SnapshotRef,
    #[command(flatten)]
    pub store: StoreArg,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What `verify` takes.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub one: OneSnapshot,
    /// Mend what is damaged, from another store that has the same snapshot, then verify
    #[arg(long, requires = "from")]
    pub repair: bool,
    /// The store to mend it from: as --store elsewhere
    #[arg(long, requires = "repair")]
    pub from: Option<String>,
}

/// What `checkpoint` takes.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// The process
    pub pid: u32,
    /// NAME or NAME:TAG
    pub name: SnapshotName,
    #[command(flatten)]
    pub store: StoreArg,
    /// Let the process go on afterwards
    #[arg(long)]
    pub leave_running: bool,
    /// Keep the contents of a deleted file that is still open or mapped, up to this size
    #[arg(long, value_name = "BYTES", default_value_t = MAX_DELETED_BYTES)]
    pub max_deleted_bytes: u64,
    /// End the process even if a restore on this host would fail now: it will be restored elsewhere
    #[arg(long)]
    pub no_restore_check: bool,
    #[command(flatten)]
    pub connections: ConnectionArgs,
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// Print a report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What may become of connections to other processes, which are refused otherwise.
#[derive(Clone, Copy, Debug, Args)]
pub struct ConnectionArgs {
    /// Restore TCP connections as reset by the peer, so that the program connects again
    #[arg(long)]
    pub tcp_close: bool,
    /// Connect unix sockets to the same name again when the process is restored
    #[arg(long)]
    pub unix_reconnect: bool,
    /// Drop datagrams that wait unread in UDP, raw, netlink and packet sockets
    #[arg(long)]
    pub drop_unread: bool,
}

impl From<ConnectionArgs> for defrost_restorer::checkpoint::Connections {
    fn from(args: ConnectionArgs) -> Self {
        let ConnectionArgs { tcp_close, unix_reconnect, drop_unread } = args;
        Self { tcp_close, unix_reconnect, drop_unread }
    }
}

/// How page data is stored.
#[derive(Clone, Copy, Debug, Args)]
pub struct CompressionArgs {
    /// zstd level, 1 to 22, or a negative one, which is faster (with literals coded all the same)
    #[arg(long, default_value_t = -8, allow_negative_numbers = true)]
    pub level: i32,
    /// Bytes of a chunk: a power of two, 4096 to 1048576
    #[arg(long, default_value_t = 16384, value_parser = chunk_size)]
    pub chunk_size: u32,
}

/// What can be imported.
#[derive(Debug, Subcommand)]
pub enum Import {
    /// A dump of CRIU's: the folder that `criu dump` wrote its images to, and its parents
    Criu {
        /// The folder
        dir: PathBuf,
        /// NAME or NAME:TAG
        name: SnapshotName,
        #[command(flatten)]
        store: StoreArg,
        #[command(flatten)]
        compression: CompressionArgs,
        /// Print a report as JSON
        #[arg(long)]
        json: bool,
    },
    /// A microVM's snapshot: the files that Firecracker's snapshot/create wrote
    Firecracker(ImportFirecrackerArgs),
}

/// What `import firecracker` takes.
#[derive(Debug, Args)]
pub struct ImportFirecrackerArgs {
    /// Its memory (mem_file_path)
    #[arg(long, value_name = "FILE")]
    pub memory: PathBuf,
    /// Its state (snapshot_path), to be kept with it
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// NAME or NAME:TAG
    pub name: SnapshotName,
    #[command(flatten)]
    pub store: StoreArg,
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// Print a report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What can be exported.
#[derive(Debug, Subcommand)]
pub enum Export {
    /// A dump of CRIU's, byte for byte; parents become folders named parent
    Criu {
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// The folder to make
        dir: PathBuf,
        #[command(flatten)]
        store: StoreArg,
        /// Without the pages that `criu restore --lazy-pages` waits for
        #[arg(long)]
        lazy: bool,
        /// Print a report as JSON
        #[arg(long)]
        json: bool,
    },
    /// A microVM's files: all that `pager firecracker` leaves to be had is its state
    Firecracker(ExportFirecrackerArgs),
}

/// What `export firecracker` takes.
#[derive(Debug, Args)]
pub struct ExportFirecrackerArgs {
    /// NAME or NAME:TAG
    pub name: SnapshotName,
    /// Write the memory there
    #[arg(long, value_name = "FILE", required_unless_present = "state")]
    pub memory: Option<PathBuf>,
    /// Write the state there
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArg,
    /// Print a report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Whose memory the pager brings, other than our own restores'.
#[derive(Debug, Subcommand)]
pub enum Frontend {
    /// In place of `criu lazy-pages`: serve one `criu restore --lazy-pages` with the same work folder
    Criu(CriuArgs),
    /// In place of Firecracker's page-fault handler: serve microVMs of one snapshot, whose mem_backend is of type Uffd
    Firecracker(FirecrackerArgs),
    /// In place of `criu page-server --lazy-pages`: give the pages of a dump to those who run `lazy-pages --page-server` elsewhere
    CriuPageServer(CriuPageServerArgs),
}

/// What `pager firecracker` takes.
#[derive(Debug, Args)]
pub struct FirecrackerArgs {
    /// Where VMs connect: their backend_path
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Whose memory they get, which `import firecracker` made
    #[arg(long, value_name = "NAME[:TAG]")]
    pub snapshot: SnapshotName,
    #[command(flatten)]
    pub store: StoreArg,
    /// Only what they touch
    #[arg(long)]
    pub no_background: bool,
    #[command(flatten)]
    pub recall: RecallArgs,
    /// With --no-background: bring what earlier VMs touched all the same
    #[arg(long, requires = "no_background", conflicts_with = "no_replay")]
    pub replay: bool,
}

/// What a daemon for CRIU takes, as CRIU's own do.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Write a zero byte to this descriptor, and close it, once somebody can connect
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(1..))]
    pub status_fd: Option<i32>,
    /// Write our pid there
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Write what there is to say there instead of to standard error; a name alone is one in the work folder
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Go on in the background once somebody can connect
    #[arg(long, conflicts_with = "status_fd")]
    pub daemon: bool,
}

/// What `pager criu-page-server` takes.
#[derive(Debug, Args)]
pub struct CriuPageServerArgs {
    /// The folder of the images whose page data is served
    #[arg(long, required_unless_present = "snapshot", conflicts_with = "snapshot", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Serve the pages of this snapshot, which `import criu` made
    #[arg(long, value_name = "NAME[:TAG]")]
    pub snapshot: Option<SnapshotName>,
    #[command(flatten)]
    pub store: StoreArg,
    /// Where clients connect; with port 0, one that is free
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub listen: String,
    /// Listen outside of loopback, where others can read the process's memory: the protocol has neither authentication nor encryption
    #[arg(long)]
    pub insecure_listen: bool,
    /// End with the first client, as CRIU's own does
    #[arg(long)]
    pub once: bool,
    /// Where a log file is that has a name alone [default: the images, or else the working directory]
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// What `pager criu` takes.
#[derive(Debug, Args)]
pub struct CriuArgs {
    /// The folder of the images, whose page data is served unless a snapshot is named
    #[arg(long, required_unless_present = "snapshot", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Where the restore finds the socket, lazy-pages.socket [default: the images]
    #[arg(long, required_unless_present = "images", value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Serve the pages of this snapshot, which `import criu` made; restore from what `export criu --lazy` wrote
    #[arg(long, value_name = "NAME[:TAG]")]
    pub snapshot: Option<SnapshotName>,
    /// Serve pages from CRIU's page server there: `criu page-server --lazy-pages`, or `criu dump --lazy-pages` with the frozen process
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "snapshot")]
    pub page_server: Option<String>,
    /// Make a snapshot of all that the page server has, and let the dumped process go as soon as all of it is here
    #[arg(long, value_name = "NAME[:TAG]", requires = "page_server")]
    pub keep_as: Option<SnapshotName>,
    #[command(flatten)]
    pub store: StoreArg,
    /// Only what is touched, until its tasks have ended; SIGTERM brings the rest
    #[arg(long, conflicts_with = "page_server")]
    pub no_background: bool,
    #[command(flatten)]
    pub recall: RecallArgs,
    /// With --no-background: bring what earlier restores touched all the same
    #[arg(long, requires = "no_background", conflicts_with = "no_replay")]
    pub replay: bool,
    #[command(flatten)]
    pub compression: CompressionArgs,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// What whoever serves a snapshot takes about what is touched first.
#[derive(Clone, Copy, Debug, Args)]
pub struct RecallArgs {
    /// Do not bring what earlier restores of this snapshot touched before anything else
    #[arg(long)]
    pub no_replay: bool,
    /// What to do with what this one touches: add it to what the store knows of earlier ones, keep it in place of that (new), or nothing
    /// (off)
    #[arg(long, default_value = "add", value_name = "add|new|off")]
    pub record: Recording,
}

/// What `restore` takes.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// NAME or NAME:TAG; with @DIGEST it must stand for that snapshot
    pub name: SnapshotRef,
    #[command(flatten)]
    pub store: StoreArg,
    /// Restore nothing: print every obstacle that a restore here would meet, one line each, and exit with 1 if there is one
    #[arg(long, group = "how")]
    pub dry_run: bool,
    /// Return once it runs, and print its pid
    #[arg(long, group = "how")]
    pub detach: bool,
    /// Write its pid there
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// All memory before it runs
    #[arg(long)]
    pub eager: bool,
    /// Only what it touches
    #[arg(long, conflicts_with = "eager")]
    pub no_background: bool,
    /// When a page that the process waits for does not come: wait (for ever), kill (end the process) or poison (give up what is
    /// missing: a touch of it is a SIGBUS)
    #[arg(long, default_value = "wait", value_name = "wait|kill|poison")]
    pub on_lost: OnLost,
    /// Seconds that the process waits for one page before that
    #[arg(long, value_name = "SECONDS", requires = "on_lost", default_value_t = LOST_AFTER_S, value_parser = clap::value_parser!(u64).range(1..))]
    pub lost_after: u64,
    #[command(flatten)]
    pub recall: RecallArgs,
    /// With --no-background: bring what earlier restores touched all the same
    #[arg(long, requires = "no_background", conflicts_with = "no_replay")]
    pub replay: bool,
    /// Once all memory is there, or the process has ended: write a page there that shows how and when it came (FILE.json: its data alone)
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// low: whoever answers faults spins for 100 µs before it sleeps, which costs a processor while pages are touched; never where that
    /// would be the process's only one
    #[arg(long, default_value = "usual", value_name = "usual|low")]
    pub latency: Latency,
    /// Leave the process in the control groups of this command instead of joining those that it was in
    #[arg(long)]
    pub inherit_cgroups: bool,
    /// Take this file as it is, though it has changed since the checkpoint (repeatable)
    #[arg(long, value_name = "PATH")]
    pub accept_changed: Vec<String>,
    /// Use the file OTHER wherever the process had PATH (repeatable)
    #[arg(long, value_name = "PATH=OTHER", value_parser = replacement)]
    pub replace: Vec<(String, PathBuf)>,
    /// Open PATH with the rights of this command, although the process's own user may not open it (repeatable)
    #[arg(long, value_name = "PATH")]
    pub grant: Vec<String>,
    /// In a pid namespace of its own, where its pid is free
    #[arg(long)]
    pub new_pid_namespace: bool,
    /// Tell on standard error what took how long; with --json in the report
    #[arg(long)]
    pub timings: bool,
    /// With --detach or --dry-run: print a report as JSON
    #[arg(long, requires = "how")]
    pub json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Freeze a process and store it under a name
    Checkpoint(CheckpointArgs),
    /// Bring a process back; its memory follows
    Restore(RestoreArgs),
    /// Live restores and where they stand
    Status {
        /// One of them
        pid: Option<u32>,
        /// As JSON, one line each
        #[arg(long)]
        json: bool,
        /// Also write a page there that shows how and when its memory came so far (FILE.json: its data alone)
        #[arg(long, value_name = "FILE", requires = "pid")]
        report: Option<PathBuf>,
    },
    /// Wait until a restored process has all its memory
    Wait {
        /// The process
        pid: u32,
        /// Print its status as JSON
        #[arg(long)]
        json: bool,
    },
    /// Snapshots of a store
    List {
        #[command(flatten)]
        store: StoreArg,
        /// As JSON, one line each
        #[arg(long)]
        json: bool,
    },
    /// What a snapshot holds: process, threads, memory, files
    Inspect(OneSnapshot),
    /// Check every byte of a snapshot
    Verify(VerifyArgs),
    /// Forget a name; gc frees its space
    Remove(OneSnapshot),
    /// Copy a snapshot from one store to another, checking every byte
    Copy {
        /// NAME or NAME:TAG
        name: SnapshotName,
        /// The store that has it: as --store elsewhere
        #[arg(long)]
        from: String,
        /// The store that gets it: a directory or one server
        #[arg(long)]
        to: String,
        /// Print a report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a snapshot of what another checkpointer wrote
    Import {
        #[command(subcommand)]
        kind: Import,
    },
    /// Write a snapshot back as what it was imported from
    Export {
        #[command(subcommand)]
        kind: Export,
    },
    /// Free packs that no snapshot needs
    Gc {
        #[command(flatten)]
        store: StoreArg,
        /// Print a report as JSON
        #[arg(long)]
        json: bool,
    },
    /// The whole story on this machine: a redis-server frozen, ended, brought back over gRPC, and compared
    Demo {
        /// Values of about 1 KB that it holds
        #[arg(long, default_value_t = 500_000)]
        values: usize,
    },
    /// The daemon that brings a restored process its memory: restore starts it; take over for one that died
    #[command(args_conflicts_with_subcommands = true)]
    Pager {
        /// Take over the restore of this process, all of whose daemons died
        #[arg(long, value_name = "PID")]
        adopt: Option<u32>,
        /// Be the daemon that takes over
        #[arg(long, value_name = "PID", hide = true, conflicts_with = "adopt")]
        take_over: Option<u32>,
        /// Say whether this program could take over
        #[arg(long, value_name = "PID", hide = true, conflicts_with_all = ["adopt", "take_over"])]
        can_take_over: Option<u32>,
        /// Whose memory is brought
        #[command(subcommand)]
        frontend: Option<Frontend>,
    },
    /// The first process of a pid namespace
    #[command(hide = true, name = defrost_restorer::restore::namespace::INIT_VERB)]
    NamespaceInit,
}

fn replacement(text: &str) -> Result<(String, PathBuf), String> {
    let (path, other) = text.split_once('=').ok_or("it has the form PATH=OTHER")?;
    Ok((path.to_owned(), PathBuf::from(other)))
}

fn chunk_size(text: &str) -> Result<u32, String> {
    let ok = |size: &u32| size.is_power_of_two() && (4096..=1 << 20).contains(size);
    text.parse().ok().filter(ok).ok_or_else(|| "a chunk is a power of two from 4096 to 1048576 bytes".to_owned())
}
