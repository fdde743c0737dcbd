//! `defrost-criu`: a `criu` whose lazy-pages daemon is ours. `lazy-pages` becomes `defrost pager criu`; every other action is handed to the
//! real CRIU, `$DEFROST_CRIU` or the `criu` of the PATH, with its arguments untouched. A runtime or a test suite that is given this program
//! uses our pager without knowing.
//!
//! Known holes: no page server, neither as an action (`page-server --lazy-pages`) nor to bring pages from; log lines are ours.
#![forbid(unsafe_code)]

use clap::Parser;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What `criu lazy-pages` takes and we have; anything else is an error.
#[derive(Parser)]
#[command(name = "defrost-criu", disable_help_flag = true)]
struct LazyPages {
    /// lazy-pages
    action: String,
    #[arg(short = 'D', long)]
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

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let has = |word: &str| args.iter().skip(1).any(|arg| arg == word);
    let mut command = if has("lazy-pages") {
        match pager(&args) {
            Ok(command) => command,
            Err(error) => {
                eprintln!("defrost-criu: {error}: start the defrost that lies beside it");
                return ExitCode::FAILURE;
            }
        }
    } else if has("page-server") && has("--lazy-pages") {
        eprintln!("defrost-criu: page-server --lazy-pages is not there: import the dump, and serve it with defrost-page-server");
        return ExitCode::FAILURE;
    } else {
        let criu = std::env::var_os("DEFROST_CRIU").unwrap_or_else(|| "criu".into());
        let mut command = Command::new(criu);
        command.args(args.iter().skip(1));
        command
    };
    let error = command.exec(); // returns only if it fails
    eprintln!("defrost-criu: run {}: {error}: set DEFROST_CRIU to the real criu", command.get_program().display());
    ExitCode::FAILURE
}

/// Our pager for the same restore.
fn pager(args: &[OsString]) -> std::io::Result<Command> {
    let asked = LazyPages::parse_from(args.iter().filter(|arg| verbosity(arg).is_none()));
    let mut command = Command::new(std::env::current_exe()?.with_file_name("defrost"));
    command.args(["pager", "criu", "--images"]).arg(&asked.images_dir);
    command.arg("--work-dir").arg(asked.work_dir.as_ref().unwrap_or(&asked.images_dir));
    let options = [("--log-file", asked.log_file.map(OsString::from)), ("--pidfile", asked.pidfile.map(OsString::from))];
    let options = options.into_iter().chain([("--status-fd", asked.status_fd.map(OsString::from))]);
    for (option, value) in options {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    if asked.daemon {
        command.arg("--daemon");
    }
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
