//! The whole story on this machine: a redis-server is filled, frozen, pushed to a page server, ended, brought back lazily over gRPC, and
//! every value of it compared.
//!
//! Everything is run as a user would: the commands shown are the commands executed. What was started ends with its guard, whatever
//! happens on the way.

pub mod redis;

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pager::{State, control};
use redis::Client;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to start or end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a restore's progress.
const LOOK: Duration = Duration::from_millis(20);
/// What a page counts.
const PAGE_KIB: u64 = pages::PAGE_SIZE_BYTES / 1024;

/// A program of ours, ended with its value.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // Ended already is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A restored process, which lives on its own, ended with its value.
struct Restored(Pid);

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL); // ended already is as well
        let _ = eventually("the restored process ends", || kill(self.0, None).is_err());
    }
}

/// Tell it with `values` values.
pub fn run(values: usize) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo freezes and rebuilds a process: run it as root");
    let folder = tempfile::tempdir().context("make a folder for the demo")?;
    let ours = std::env::current_exe()?;
    let (server, store) = start_server(&ours, folder.path())?;
    println!("page server: {store}");
    let (mut redis, client) = start_redis(folder.path())?;
    let bar = bar(values, "redis-server is filled  {bar:40} {pos}/{len} values");
    client.load(0..values, &|done| bar.set_position(done as u64))?;
    bar.finish();
    client.compare(values.min(1), &|_| ())?;
    let pid = redis.0.id();
    println!("redis-server, process {pid}: {} MB resident", resident_mb(pid));

    let begun = Instant::now();
    say_and_run(&ours, &["checkpoint", &pid.to_string(), "demo", "--store", &store])?;
    println!("  frozen, stored and ended in {:.2?}\n", begun.elapsed());
    redis.0.wait().context("wait for redis-server, which the checkpoint ended")?;

    let begun = Instant::now();
    say_and_run(&ours, &["restore", "demo", "--store", &store, "--detach"])?;
    let _restored = Restored(Pid::from_raw(pid as i32));
    client.compare(1, &|_| ())?;
    let answered = begun.elapsed();
    let status = control::status(pid).context("ask the pager")?;
    let had = status.total_bytes - status.missing_bytes;
    println!(
        "  it runs again: its first answer was right {answered:.1?} after the command began, with {} of {} pages there",
        had / 1024 / PAGE_KIB,
        status.total_bytes / 1024 / PAGE_KIB
    );
    watch(pid, &begun)?;
    let bar = self::bar(values, "values are compared     {bar:40} {pos}/{len}");
    client.compare(values, &|done| bar.set_position(done as u64))?;
    bar.finish();
    println!("contents identical: all {values} values compared");
    drop(server);
    Ok(())
}

/// The rest arriving.
fn watch(pid: u32, begun: &Instant) -> Result<()> {
    let mut status = control::status(pid).context("ask the pager")?;
    let bar = bar((status.total_bytes / 1024 / PAGE_KIB) as usize, "the rest arrives        {bar:40} {pos}/{len} pages");
    while matches!(status.state, State::Lazy | State::Waiting) {
        bar.set_position((status.total_bytes - status.missing_bytes) / 1024 / PAGE_KIB);
        std::thread::sleep(LOOK);
        status = control::status(pid).context("ask the pager")?;
    }
    ensure!(status.state == State::Resident, "the restore ended otherwise: {status}");
    bar.finish();
    println!(
        "  all memory is there {:.2?} after the command began; {} pages were waited for, half of them less than {} µs",
        begun.elapsed(),
        status.demand_faults,
        status.stall_p50_us
    );
    Ok(())
}

fn start_server(ours: &Path, folder: &Path) -> Result<(Started, String)> {
    let program = ours.with_file_name("defrost-page-server");
    ensure!(program.exists(), "{} is not there: it is built and installed beside defrost", program.display());
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--store"]).arg(folder.join("store")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Started(command.env("RUST_LOG", "warn").spawn().context("start the page server")?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("its output is piped")?).read_line(&mut line)?;
    let address = line.trim().rsplit_once(" ready on ").with_context(|| format!("the page server said {line:?}"))?.1;
    Ok((server, format!("grpc://{address}")))
}

fn start_redis(folder: &Path) -> Result<(Started, Client)> {
    let program = PathBuf::from("/usr/bin/redis-server");
    ensure!(program.exists(), "the demo freezes a redis-server: install it (apt-get install redis-server)");
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let output = File::create(folder.join("redis.log"))?;
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).current_dir(folder);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let redis = Started(command.spawn().context("start redis-server")?);
    let client = Client::new(port);
    eventually("redis-server answers", || client.ping().is_ok())?;
    Ok((redis, client))
}

fn say_and_run(ours: &Path, args: &[&str]) -> Result<()> {
    println!("$ defrost {}", args.join(" "));
    std::io::stdout().flush()?;
    let status = Command::new(ours).args(args).status().context("run defrost")?;
    ensure!(status.success(), "defrost {} failed", args.join(" "));
    Ok(())
}

fn resident_mb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    crate::process::status::Status::new(&text).number("VmRSS").unwrap_or(0) / 1024
}

fn bar(total: usize, form: &str) -> ProgressBar {
    ProgressBar::new(total as u64).with_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Ask `probe` until it holds.
fn eventually(what: &str, mut probe: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !probe() {
        ensure!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
