//! `defrost-criu`: a `criu` whose lazy-pages daemon and page server are ours. `lazy-pages` becomes `defrost pager criu`, `page-server
//! --lazy-pages` becomes `defrost pager criu-page-server --once`; every other action is handed to the real CRIU, `$DEFROST_CRIU` or the
//! `criu` of the PATH, with its arguments untouched. A runtime or a test suite that is given this program uses our pager without knowing.
//!
//! Known holes: no TLS; log lines have CRIU's form, and our words.
#![forbid(unsafe_code)]

use clap::{Args, Parser};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What both of CRIU's daemons take and we have; anything else is an error.
#[derive(Args)]
struct Common {
    #[arg(short = 'D', long, default_value = ".")]
    images_dir: PathBuf,
    #[arg(short = 'W', long)]
    work_dir: Option<PathBuf>,
    #[arg(short = 'o', long)]
    log_file: Option<PathBuf>,
    #[arg(long)]
    status_fd: Option<String>,
    #[arg(long)]
    pidfile: Option<PathBuf>,
    #[arg(short = 'd', long)]
    daemon: bool,
}

/// `criu lazy-pages`.
#[derive(Parser)]
#[command(name = "defrost-criu", disable_help_flag = true)]
struct LazyPages {
    /// lazy-pages
    action: String,
    #[arg(long, requires = "port")]
    page_server: bool,
    #[arg(long, requires = "page_server", default_value = "127.0.0.1")]
    address: String,
    #[arg(long, requires = "page_server")]
    port: Option<u16>,
    #[command(flatten)]
    common: Common,
}

/// `criu page-server --lazy-pages`.
#[derive(Parser)]
#[command(name = "defrost-criu", disable_help_flag = true)]
struct PageServer {
    /// page-server
    action: String,
    #[arg(long, required = true)]
    lazy_pages: bool,
    /// CRIU's is for everybody, too.
    #[arg(long, default_value = "0.0.0.0")]
    address: String,
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Not CRIU's: see `defrost pager criu-page-server --help`.
    #[arg(long)]
    insecure_listen: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let has = |word: &str| args.iter().skip(1).any(|arg| arg == word);
    let ours = if has("lazy-pages") {
        Some(lazy_pages(&args))
    } else if has("page-server") && has("--lazy-pages") {
        Some(page_server(&args))
    } else {
        None
    };
    let mut command = match ours {
        Some(Ok(command)) => command,
        Some(Err(error)) => {
            eprintln!("defrost-criu: {error}: start the defrost that lies beside it");
            return ExitCode::FAILURE;
        }
        None => {
            let mut command = Command::new(std::env::var_os("DEFROST_CRIU").unwrap_or_else(|| "criu".into()));
            command.args(args.iter().skip(1));
            command
        }
    };
    let error = command.exec(); // returns only if it fails
    eprintln!("defrost-criu: run {}: {error}: set DEFROST_CRIU to the real criu", command.get_program().display());
    ExitCode::FAILURE
}

/// Our pager for the same restore.
fn lazy_pages(args: &[OsString]) -> std::io::Result<Command> {
    let asked = LazyPages::parse_from(args.iter().filter(|arg| verbosity(arg).is_none()));
    let mut command = ours("criu", &asked.common, args)?;
    if let Some(port) = asked.port {
        command.arg("--page-server").arg(endpoint(&asked.address, port));
    }
    Ok(command)
}

/// Our server of the same pages.
fn page_server(args: &[OsString]) -> std::io::Result<Command> {
    let asked = PageServer::parse_from(args.iter().filter(|arg| verbosity(arg).is_none()));
    let mut command = ours("criu-page-server", &asked.common, args)?;
    command.arg("--once").arg("--listen").arg(endpoint(&asked.address, asked.port));
    // Programs that run CRIU by themselves know no option of ours.
    if asked.insecure_listen || std::env::var_os("DEFROST_INSECURE_LISTEN").is_some_and(|value| value == "1") {
        command.arg("--insecure-listen");
    }
    Ok(command)
}

fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// `defrost pager WHAT` with what both have.
fn ours(what: &str, asked: &Common, args: &[OsString]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("defrost"));
    command.args(["pager", what, "--images"]).arg(&asked.images_dir);
    command.arg("--work-dir").arg(asked.work_dir.as_ref().unwrap_or(&asked.images_dir));
    let status_fd = asked.status_fd.as_ref().map(OsString::from);
    let path = |path: &Option<PathBuf>| path.as_ref().map(OsString::from);
    for (option, value) in [("--log-file", path(&asked.log_file)), ("--pidfile", path(&asked.pidfile)), ("--status-fd", status_fd)] {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    if asked.daemon {
        command.arg("--daemon");
    }
    command.env("DEFROST_LOG", "criu");
    if std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", args.iter().find_map(|arg| verbosity(arg)).unwrap_or("warn"));
    }
    Ok(command)
}

/// The level that CRIU's -v, -v4, -vvvv asks for; `None` for another argument.
fn verbosity(arg: &OsStr) -> Option<&'static str> {
    let rest = arg.to_str()?.strip_prefix("-v")?;
    match rest {
        _ if rest.bytes().all(|byte| byte == b'v') => Some(if rest.len() < 3 { "warn" } else { "info" }),
        "0" | "1" | "2" => Some("warn"),
        "3" | "4" => Some("info"),
        _ => None,
    }
}
