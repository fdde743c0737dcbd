//! The real CRIU beside us: Debian sid's package with the libraries it wants, unpacked under target/peers.
//!
//! bookworm's criu cannot run on recent kernels and trixie's cannot dump sockets there; sid's can, with trixie's libraries. apt gets
//! lists and settings of its own, from the mirror that the machine's apt uses; a wrapper starts the program through the unpacked
//! dynamic loader, so that the machine's own libraries stay out of it. Only x86-64, like defrost.

use crate::command::succeeds;
use crate::peers;
use anyhow::{Context as _, Result, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is taken from sid: the program and what only fits it.
const FROM_SID: [&str; 4] = ["criu", "libcompel1", "libnet9", "libnl-3-200"];

/// What is taken from trixie: all that these are linked with, down to the C library. (sid's libnftables wants a newer libnftnl.)
const FROM_TRIXIE: [&str; 22] = [
    "libc6",
    "libgcc-s1",
    "libprotobuf-c1",
    "libuuid1",
    "libbsd0",
    "libmd0",
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libjansson4",
    "libxtables12",
    "libgmp10",
    "libedit2",
    "libtinfo6",
    "libgnutls30t64",
    "libnettle8t64",
    "libhogweed6t64",
    "libp11-kit0",
    "libidn2-0",
    "libunistring5",
    "libtasn1-6",
    "libffi8",
];

/// Where its libraries are, in every Debian package.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The program, fetched and unpacked if it is not there yet.
pub fn program() -> Result<PathBuf> {
    let wrapper = peers::home()?.join("criu");
    peers::once("CRIU", || works(&wrapper), |home| unpack(home, &wrapper))?;
    Ok(wrapper)
}

/// The words that start a program of this machine with sid's C library, which has what bookworm's has not: getrandom() of the vDSO
/// (2.41), and guards of MADV_GUARD_INSTALL below the stacks of threads (2.42).
pub fn newer_c_library() -> Result<[String; 3]> {
    let root = peers::home()?.join("newer");
    let libraries = root.join(LIBRARIES);
    let loader = libraries.join("ld-linux-x86-64.so.2");
    peers::once(
        "a newer C library",
        || loader.exists(),
        |home| fetch(home, (&home.join("newer-debs"), &root), &["libc6/sid".to_owned(), "libgcc-s1/sid".to_owned()]),
    )?;
    Ok([loader.display().to_string(), "--library-path".to_owned(), libraries.display().to_string()])
}

/// Fetch packages into a folder and unpack them into another.
fn fetch(home: &Path, (debs, root): (&Path, &Path), packages: &[String]) -> Result<()> {
    for folder in [&home.join("lists/partial"), &home.join("cache/archives/partial"), debs, root] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let (mirror, key) = (peers::mirror()?.uri, "/usr/share/keyrings/debian-archive-keyring.gpg");
    let sources: String = ["trixie", "sid"].map(|suite| format!("deb [signed-by={key}] {mirror} {suite} main\n")).concat();
    std::fs::write(home.join("sources.list"), sources)?;
    let mut update = apt_get(home);
    update.args(["-qq", "update"]);
    succeeds(update).context("read the package lists of trixie and sid")?;
    let mut download = apt_get(home);
    download.arg("-qq").arg("download").current_dir(debs).args(packages);
    succeeds(download).with_context(|| format!("fetch {}", packages.join(", ")))?;
    for deb in std::fs::read_dir(debs)? {
        let path = deb?.path();
        let status = Command::new("dpkg-deb").arg("-x").arg(&path).arg(root).status().context("run dpkg-deb")?;
        ensure!(status.success(), "{} cannot be unpacked: remove {} and try again", path.display(), home.display());
    }
    Ok(())
}

fn unpack(home: &Path, wrapper: &Path) -> Result<()> {
    let (debs, root) = (home.join("debs"), home.join("root"));
    let sid = FROM_SID.iter().map(|name| format!("{name}/sid"));
    let packages: Vec<String> = sid.chain(FROM_TRIXIE.iter().map(|name| format!("{name}/trixie"))).collect();
    fetch(home, (&debs, &root), &packages).context("CRIU and its libraries")?;
    let libraries = root.join(LIBRARIES).display().to_string();
    let criu = root.join("usr/sbin/criu").display().to_string();
    let script = format!("#!/bin/sh\nexec '{libraries}/ld-linux-x86-64.so.2' --library-path '{libraries}' '{criu}' \"$@\"\n");
    std::fs::write(wrapper, script)?;
    std::fs::set_permissions(wrapper, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn works(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// apt-get with lists, cache and sources of its own.
fn apt_get(home: &Path) -> Command {
    let mut command = Command::new("apt-get");
    for (option, value) in [
        ("Dir::Etc::sourcelist", home.join("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State::Lists", home.join("lists")),
        ("Dir::Cache", home.join("cache")),
        ("APT::Sandbox::User", "root".into()),
    ] {
        command.arg(format!("-o{option}={}", value.display()));
    }
    command
}
