//! A restore whose pages come from CRIU's page server; a snapshot is made of them if that is wanted.
//!
//! The server may be the frozen process itself, which ends when the connection does. So the connection is made last, is left in a way that
//! keeps the process if nothing came of the restore, and is told of the end only once tasks run that have, or will have, all of it.
//! The snapshot is made when nobody waits any more: what came is kept in a folder under the work folder until then.

use super::Begun;
use crate::verbs::open;
use anyhow::{Context as _, Result, bail};
use defrost_restorer::checkpoint::Compression;
use defrost_restorer::foreign::criu::import;
use pager::frontend::criu::{CriuError, Daemon, DumpDir, FromPageServer, Kept, Link, PageServerError, Plan, Pull, Take, Urgency};
use pager::frontend::{Source, Sources};
use pages::SnapshotName;
use std::path::Path;
use std::sync::Arc;
use store::{Access, Class, Store, refuse_taken};
use tempfile::TempDir;

/// Name, store and form of the snapshot to be made.
pub type Keep = (SnapshotName, String, Compression);

/// Serve one restore.
pub fn serve(address: &str, images: &Path, keep: Option<Keep>, work_dir: &Path, mut begun: Begun) -> Result<()> {
    let dir = DumpDir::open(images, Take::Memory)?;
    let plan = Arc::new(Plan::with_source(dir.dump())?);
    let keeping = keep.map(|keep| Keeping::begin(keep, &dir, work_dir)).transpose()?;
    let kept = keeping.as_ref().map(|keeping| keeping.kept.clone());
    let daemon = Daemon::listen(plan.clone(), work_dir, begun.held()?)?;
    let session = Session(Arc::new(Link::connect(address)?));
    let source = |urgency| -> Result<Box<dyn Source>, CriuError> {
        Ok(Box::new(FromPageServer::new(&dir, &plan, &session.0, urgency, kept.as_ref())?))
    };
    // There is one connection, so that more threads would only wait for each other.
    let sources = Sources::new(source(Urgency::Fault)?, vec![source(Urgency::Bulk)?]);
    begun.tell()?;
    let pull = kept.as_ref().map(|kept| Pull::start(&session.0, kept)).transpose()?;
    let served = daemon.serve(sources, true);
    match &served {
        Ok(served) => tracing::info!(?served, "all memory is there"),
        Err(_) if !session.0.do_tasks_run() => {
            served?; // the session's end lets the process go on
            return Ok(());
        }
        Err(error) => tracing::error!(%error, "not all memory is there"),
    }
    session.0.tasks_run();
    let pulled = pull.map_or(Ok(()), Pull::ended);
    // The tasks have it all, whatever becomes of the snapshot.
    let closed = if served.is_ok() { session.0.close() } else { Ok(()) };
    let snapshot = match keeping {
        Some(keeping) => keeping.finish(pulled, &dir).and(closed.map_err(Into::into)),
        None => closed.map_err(Into::into),
    };
    // Of two failures, that of the tasks is the one to end with.
    match (served, snapshot) {
        (Ok(_), snapshot) => snapshot,
        (Err(error), snapshot) => {
            if let Err(error) = snapshot {
                tracing::error!("{}", pages::line::sentence(error.as_ref()));
            }
            Err(error.into())
        }
    }
}

/// A connection that is never merely dropped.
struct Session(Arc<Link>);

impl Drop for Session {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// A snapshot to be made.
struct Keeping {
    kept: Arc<Kept>,
    folder: TempDir,
    name: SnapshotName,
    compression: Compression,
    store: Arc<dyn Store>,
}

impl Keeping {
    /// Find out what can be found out before anybody depends on us.
    fn begin((name, address, compression): Keep, dir: &DumpDir, work_dir: &Path) -> Result<Self> {
        let store = open(&address, Access::Write, Class::Bulk)?;
        refuse_taken(store.as_ref(), &name)?;
        let folder = tempfile::Builder::new().prefix(".defrost-kept-").tempdir_in(work_dir);
        let folder = folder.with_context(|| format!("make a folder in {}: name another with --work-dir", work_dir.display()))?;
        let kept = Arc::new(Kept::begin(dir, folder.path())?);
        Ok(Self { kept, folder, name, compression, store })
    }

    /// All tasks are served: store what came.
    fn finish(self, pulled: Result<(), PageServerError>, dir: &DumpDir) -> Result<()> {
        let Self { kept, folder, name, compression, store } = self;
        let none = || format!("no snapshot {name} is made");
        pulled.with_context(none)?;
        let whole = kept.complete(dir).with_context(none)?;
        match import(whole, &name, compression, store.as_ref(), &|_| {}) {
            Ok(report) => {
                tracing::info!("{report}");
                Ok(())
            }
            Err(error) => {
                // The only copy there is, with what the restored tasks have changed since.
                let folder = folder.keep();
                bail!("{error}; the whole dump is in {}: `defrost import criu` it from there as {name}, and remove it", folder.display())
            }
        }
    }
}
