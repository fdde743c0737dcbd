//! What tests and benches take from Debian beside its installed packages: made once from the mirror that the machine's apt uses, and
//! kept under target/peers. Nothing is installed.

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where all of it is.
pub fn home() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join("target/peers"))
}

/// Make `what` in [`home`] unless it is there; whoever comes second waits, and finds it.
pub fn once(what: &str, is_there: impl Fn() -> bool, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let home = home()?;
    std::fs::create_dir_all(&home)?;
    let lock = Flock::lock(File::create(home.join("lock"))?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    if !is_there() {
        println!("making {what} under {}", home.display());
        make(&home).with_context(|| format!("make {what}"))?;
        ensure!(is_there(), "{what} does not work: look under {}", home.display());
    }
    drop(lock);
    Ok(())
}

/// A source of Debian's packages.
#[derive(Debug)]
pub struct Mirror {
    /// Where.
    pub uri: String,
    /// The release that this machine takes from it.
    pub release: String,
}

/// The mirror that this machine's apt uses for Debian itself.
pub fn mirror() -> Result<Mirror> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        .output()
        .context("run apt-get: packages are fetched from where it fetches them")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().filter_map(|line| line.split_once(' ')).find(|(_, release)| !release.ends_with("-security"));
    let (uri, release) = found.context("apt has no sources: `apt-get indextargets` names none")?;
    Ok(Mirror { uri: uri.to_owned(), release: release.to_owned() })
}
