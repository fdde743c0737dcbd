//! Live restores, asked over their pagers' sockets.

use super::show;
use anyhow::{Context as _, Result, bail};
use pager::{State, Status, control};

fn ask(pid: u32, how: impl Fn(u32) -> std::io::Result<Status>) -> Result<Status> {
    how(pid).with_context(|| format!("process {pid} is not a live restore: `defrost status` shows those that are"))
}

/// One restore, or all.
pub fn status(pid: Option<u32>, json: bool) -> Result<()> {
    let found = match pid {
        Some(pid) => vec![ask(pid, control::status)?],
        None => control::list(),
    };
    for status in found {
        show(json, &status, &status)?;
    }
    Ok(())
}

/// Until everything is there, or never will be.
pub fn wait(pid: u32, json: bool) -> Result<()> {
    let status = ask(pid, control::wait)?;
    if json {
        show(json, &status, &status)?;
    }
    match status.state {
        State::Failed(why) => bail!("process {pid} was ended: {why}"),
        State::Gone => bail!("process {pid} ended before all of its memory was there"),
        _ => Ok(()),
    }
}
