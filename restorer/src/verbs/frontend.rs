//! Pagers for the restores of others: [`criu`] with pages from here or a store, [`remote`] from a page server, and [`page_server`], which
//! is one.

pub mod page_server;
mod remote;

use super::{address_of, open};
use crate::cli::{CriuArgs, DaemonArgs, FirecrackerArgs, RecallArgs};
use anyhow::{Context as _, Result, bail};
use defrost_restorer::output_file;
use images::criu::{Dump, Layout};
use nix::unistd::{dup2_stderr, dup2_stdout};
use pager::frontend::criu::{Daemon, DumpDir, FromFolder, FromStore, Plan, Take};
use pager::frontend::{Held, Recall, Snapshot, Source, Sources, firecracker};
use pages::{SnapshotId, SnapshotName};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::held::held;
use store::{Access, Class, Store};

/// The daemon of one `criu restore --lazy-pages`.
pub fn criu(args: CriuArgs) -> Result<()> {
    let work_dir = args.work_dir.as_deref().or(args.images.as_deref()).context("name a folder with --work-dir")?;
    let work_dir = work_dir.canonicalize().with_context(|| format!("--work-dir {}", work_dir.display()))?;
    let Some(mut begun) = begin(args.daemon, &work_dir)? else { return Ok(()) };
    if let Some(address) = args.page_server {
        let images = args.images.context("name the folder of the images with --images: a page server has no more than pages")?;
        let keep =
            args.keep_as.map(|name| Ok::<_, anyhow::Error>((name, address_of(args.store.store)?, args.compression.into()))).transpose()?;
        return remote::serve(&address, &images, keep, &work_dir, begun);
    }
    let recall = args.recall.recall(!args.no_background || args.replay);
    let background = !args.no_background;
    let serve = |(plan, sources): (Arc<Plan>, Sources)| -> Result<()> {
        let daemon = Daemon::listen(plan, &work_dir, begun.held()?)?;
        begun.tell()?;
        let served = daemon.serve(sources, background)?;
        tracing::info!(?served, "all memory is there");
        Ok(())
    };
    match (args.snapshot, args.images) {
        (Some(name), _) => {
            let address = address_of(args.store.store)?;
            let (demand, bulk) = stores(&address)?;
            held(bulk.as_ref(), &name, None, |id| serve(snapshot((&name, id), (demand, bulk.clone()), recall)?))
        }
        (None, Some(images)) => {
            let dir = DumpDir::open(&images, Take::Memory)?;
            let plan = Arc::new(Plan::new(dir.dump())?);
            let source = || -> Result<Box<dyn Source>> { Ok(Box::new(FromFolder::open(&dir, &plan)?)) };
            let sources = Sources::new(source()?, (0..pager::workers()).map(|_| source()).collect::<Result<_>>()?);
            serve((plan, sources))
        }
        (None, None) => bail!("name --images or --snapshot"),
    }
}

/// A daemon that has begun, and is not ready yet.
struct Begun {
    held: Option<Held>,
    pidfile: Option<PathBuf>,
    status_fd: Option<i32>,
}

/// Begin, in a process of its own if that is wanted: then it is ready, and `None` is ours.
fn begin(args: DaemonArgs, work_dir: &Path) -> Result<Option<Begun>> {
    // Before anything else is open: whatever has the number now was given to us.
    if let Some(fd) = args.status_fd {
        std::fs::symlink_metadata(format!("/proc/self/fd/{fd}"))
            .with_context(|| format!("--status-fd {fd}: no such descriptor is open"))?;
    }
    if args.daemon {
        return in_background(&work_dir.join(args.log_file.as_deref().unwrap_or(Path::new("defrost-pager.log")))).map(|()| None);
    }
    if let Some(file) = &args.log_file {
        let path = work_dir.join(file);
        dup2_stderr(output_file::create(&path).with_context(|| format!("write {}", path.display()))?)?;
    }
    let held = Some(Held::hold()?);
    // The working directory may change.
    let pidfile = args.pidfile.map(std::path::absolute).transpose()?;
    Ok(Some(Begun { held, pidfile, status_fd: args.status_fd }))
}

impl Begun {
    fn held(&mut self) -> Result<Held> {
        self.held.take().context("signals are held once")
    }

    /// Tell whoever wants to know.
    fn tell(self) -> Result<()> {
        if let Some(path) = self.pidfile {
            output_file::write(&path, &format!("{}\n", std::process::id())).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(fd) = self.status_fd {
            tell_ready(fd).with_context(|| format!("write to --status-fd {fd}"))?;
        }
        Ok(())
    }
}

impl RecallArgs {
    /// What they say; `replays` is for who says nothing.
    fn recall(self, replays: bool) -> Recall {
        Recall { replay: replays && !self.no_replay, recording: self.record }
    }
}

/// A store for what is waited for, and for the rest.
fn stores(address: &str) -> Result<(Arc<dyn Store>, Arc<dyn Store>)> {
    Ok((open(address, Access::Read, Class::Demand)?, open(address, Access::Read, Class::Bulk)?))
}

/// A snapshot that an import made.
fn snapshot(
    (name, id): (&SnapshotName, &SnapshotId),
    stores: (Arc<dyn Store>, Arc<dyn Store>),
    recall: Recall,
) -> Result<(Arc<Plan>, Sources)> {
    let snapshot = Snapshot::open_as(name, id, stores.1.as_ref())?;
    let Some(kept) = &snapshot.image().manifest.criu_dump else {
        bail!("snapshot {name} is a process that defrost froze, not a dump of CRIU's: bring it back with `defrost restore {name}`");
    };
    let dump = Dump::of(kept).with_context(|| format!("snapshot {name}"))?;
    let layout = Layout::new(&dump).with_context(|| format!("snapshot {name}"))?;
    let plan = Arc::new(Plan::new(&dump)?);
    let sources = FromStore::sources(&snapshot, &plan, &dump, &layout, stores, recall)?;
    Ok((plan, sources))
}

/// The handler of microVMs of one snapshot, until a signal comes.
pub fn firecracker(args: FirecrackerArgs) -> Result<()> {
    let signals = Held::hold()?;
    let address = address_of(args.store.store)?;
    let (demand, bulk) = stores(&address)?;
    let (name, background) = (args.snapshot, !args.no_background);
    let recall = args.recall.recall(background || args.replay);
    held(bulk.as_ref(), &name, None, |id| {
        let snapshot = Snapshot::open_as(&name, id, bulk.as_ref())?;
        let guest = firecracker::Guest::new(snapshot, demand, bulk.clone(), background, recall).with_context(|| name.to_string())?;
        Ok(firecracker::Daemon::listen(&args.socket, guest, signals)?.serve()?)
    })
}

/// A zero byte, as CRIU's own daemon writes, and then the descriptor is closed: who waits sees both.
fn tell_ready(fd: i32) -> Result<()> {
    let nothing = File::options().write(true).open("/dev/null")?;
    match fd {
        1 => {
            let mut out = std::io::stdout();
            out.write_all(&[0])?;
            out.flush()?;
            dup2_stdout(nothing)?;
        }
        2 => {
            std::io::stderr().write_all(&[0])?;
            dup2_stderr(nothing)?;
        }
        fd => File::from(kernel::handoff::own(fd)).write_all(&[0])?,
    }
    Ok(())
}

/// The same command again as a process of its own, which is ready once we return.
fn in_background(path: &Path) -> Result<()> {
    let log = output_file::create(path).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1).filter(|arg| arg != "--daemon")).args(["--status-fd", "1"]);
    // The log is the only place where its progress can be seen.
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "info");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn()?;
    let mut told = Vec::new();
    child.stdout.take().context("its output is piped")?.read_to_end(&mut told)?;
    if told == [0] {
        return Ok(());
    }
    child.wait()?;
    let said = std::fs::read_to_string(path).unwrap_or_default();
    bail!("{}", said.lines().last().unwrap_or("it ended without a word").trim_start_matches("defrost: "))
}
