//! A page server for CRIU's lazy-pages daemons and our own, with the pages of a dump or of a snapshot.

use super::{begin, snapshot, stores};
use crate::cli::CriuPageServerArgs;
use crate::verbs::{address_of, open};
use anyhow::{Context as _, Result, bail};
use pager::frontend::criu::{DumpDir, FromFolder, MakeSource, PageServer, Plan, Take, Until};
use pager::frontend::{Recall, Source};
use pages::line::sentence;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use store::held::held;
use store::{Access, Class};

/// Serve until told, or until the first client is done.
pub fn serve(args: CriuPageServerArgs) -> Result<()> {
    if !args.insecure_listen && store::Address::Plain(args.listen.clone()).is_exposed() {
        bail!(
            "listen on {}: others could read the pages of the process there, unencrypted: name an address of loopback (127.0.0.1:PORT) and \
             reach it through a tunnel, or say --insecure-listen",
            args.listen
        );
    }
    let work_dir = args.work_dir.as_deref().or(args.images.as_deref()).unwrap_or(Path::new("."));
    let work_dir = work_dir.canonicalize().with_context(|| format!("--work-dir {}", work_dir.display()))?;
    let speaks = args.daemon.status_fd.is_none();
    let Some(mut begun) = begin(args.daemon, &work_dir)? else { return Ok(()) };
    let signals = begun.held()?;
    let serve = |plan: Arc<Plan>, source: MakeSource<'_>| -> Result<u64> {
        let server = PageServer::listen(plan, &args.listen, signals)?;
        let address = server.address()?;
        tracing::info!(%address, "listening");
        if speaks {
            let mut out = std::io::stdout().lock();
            writeln!(out, "defrost pager criu-page-server ready on {address}")
                .and_then(|()| out.flush())
                .context("write to standard output")?;
        }
        begun.tell()?;
        Ok(server.serve(if args.once { Until::FirstClientEnds } else { Until::Told }, source)?)
    };
    let clients = match (args.snapshot, args.images) {
        (Some(name), _) => {
            let address = address_of(args.store.store)?;
            let leased = open(&address, Access::Read, Class::Bulk)?;
            held(leased.as_ref(), &name, None, |id| {
                let snapshot = || snapshot((&name, id), stores(&address)?, Recall::NONE);
                let (plan, _) = snapshot()?;
                serve(plan, &|| snapshot().map(|(_, sources)| sources.into_demand()).map_err(|error| sentence(error.as_ref())))
            })?
        }
        (None, Some(images)) => {
            let dir = DumpDir::open(&images, Take::Memory)?;
            let plan = Arc::new(Plan::new(dir.dump())?);
            let of_client = plan.clone();
            serve(plan, &|| -> Result<Box<dyn Source>, String> {
                Ok(Box::new(FromFolder::open(&dir, &of_client).map_err(|error| error.to_string())?))
            })?
        }
        (None, None) => bail!("name --images or --snapshot"),
    };
    tracing::info!(clients, "all clients are served");
    Ok(())
}
