//! Debian packages that tests, demo and benches use.

use crate::cargo::run;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// A package with the file that shows that it is there.
type Package = (&'static str, &'static str);

/// What `cargo xtask demo` needs: a compiler for zstd, and the program that is frozen.
pub const DEMO: &[Package] = &[("redis-server", "/usr/bin/redis-server"), ("gcc", "/usr/bin/cc"), ("libc6-dev", "/usr/include/stdio.h")];

/// What tests and benches need.
pub const TESTS: &[Package] = &[
    ("redis-server", "/usr/bin/redis-server"),
    ("strace", "/usr/bin/strace"),
    ("python3", "/usr/bin/python3"),
    ("nodejs", "/usr/bin/node"),
    ("gcc", "/usr/bin/cc"),
    ("g++", "/usr/bin/c++"), // the fuzzer's run time
    ("libc6-dev", "/usr/include/stdio.h"),
    ("util-linux", "/usr/bin/setpriv"),
    ("iproute2", "/usr/sbin/tc"),
    ("runc", "/usr/sbin/runc"),
    ("debootstrap", "/usr/sbin/debootstrap"),
    ("chromium", "/usr/bin/chromium"), // opens reports
    ("bash", "/usr/bin/bash"),
    ("default-jdk-headless", "/usr/bin/javac"),
    ("golang-go", "/usr/bin/go"),
    ("mariadb-server", "/usr/sbin/mariadbd"),
    ("nginx-light", "/usr/sbin/nginx"),
    ("vim-tiny", "/usr/bin/vi"),
    ("less", "/usr/bin/less"),
    ("htop", "/usr/bin/htop"),
    ("procps", "/usr/bin/top"),
];

/// Install those of `packages` that are missing, and print their names.
pub fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing Debian packages: {}", missing.join(", "));
    run(apt_get(&["update", "-qq"])).context("without root, install them yourself")?;
    run(apt_get(&[&["install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat()))
}

fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
