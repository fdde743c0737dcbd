//! What to serve: a TOML file, and flags that win over it.
//!
//! ```toml
//! listen = ["127.0.0.1:7440", "unix:/run/defrost.sock", "grpcs://0.0.0.0:7441"]
//! store = "/var/lib/defrost"
//! max_connections = 256
//! drain_seconds = 30
//! max_image_mib = 256
//! max_connections_per_peer = 192    # an address, or a user behind a socket file
//! max_held_mib = 192                # messages and answers under way, of all connections
//! max_held_mib_per_connection = 32
//! insecure_listen = false           # whether plain TCP outside of loopback may be listened on, and loopback is for every user
//! allow_users = []                  # who may use the server over loopback, besides root and the server's own user
//! admin = "127.0.0.1:7442"          # /metrics and /ready over HTTP
//! [tls]                              # for grpcs://
//! cert = "/etc/defrost/cert.pem"
//! key = "/etc/defrost/key.pem"
//! ```

use crate::connection::Deadlines;
use clap::Parser;
use proto::Address;
use proto::address::InvalidAddress;
use serde::Deserialize;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a server listens unless told: the brief's port, and nobody but this machine.
const LISTEN: &str = "127.0.0.1:7440";
/// Connections at once unless told. Each has a thread; a restore needs two or three, a checkpoint two.
const MAX_CONNECTIONS: usize = 256;
/// Largest image taken unless told, in MiB: that of a process of 128 GiB. It is spooled to a file; its commit takes as much memory again.
const MAX_IMAGE_MIB: u64 = 256;
/// What connections may make the server hold unless told, in MiB: with the store's indexes it fits into 512 MiB.
const MAX_HELD_MIB: u64 = 192;
const MAX_HELD_MIB_PER_CONNECTION: u64 = 32;
/// How long calls under way may take to finish after SIGTERM unless told: well over the time of one upload message.
const DRAIN: Duration = Duration::from_secs(30);

/// Serves snapshots of frozen processes.
#[derive(Debug, Default, Parser)]
#[command(name = "defrost-page-server", version, about)]
pub struct Cli {
    /// Where to listen: HOST:PORT, grpcs://HOST:PORT or unix:PATH; port 0 takes a free one; may be given more than once
    #[arg(long)]
    pub listen: Vec<String>,
    /// The store's directory
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// A TOML file with these settings and more; flags win
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Connections at once
    #[arg(long)]
    pub max_connections: Option<usize>,
    /// Seconds that calls under way may take to finish after SIGTERM
    #[arg(long)]
    pub drain_seconds: Option<u64>,
    /// Listen on plain TCP outside of loopback, and serve every local user: they can read, store and remove every snapshot
    #[arg(long)]
    pub insecure_listen: bool,
    /// A user, by number, who may use the server over loopback, besides root and the server's own; may be given more than once
    #[arg(long, value_name = "UID")]
    pub allow_user: Vec<u32>,
    /// Certificate chain in PEM, for grpcs://
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// What a file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    listen: Vec<String>,
    store: Option<PathBuf>,
    max_connections: Option<usize>,
    drain_seconds: Option<u64>,
    max_image_mib: Option<u64>,
    max_connections_per_peer: Option<usize>,
    max_held_mib: Option<u64>,
    max_held_mib_per_connection: Option<u64>,
    insecure_listen: Option<bool>,
    #[serde(default)]
    allow_users: Vec<u32>,
    admin: Option<String>,
    tls: Option<TlsFiles>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The chain.
    pub cert_pem: Vec<u8>,
    /// The key.
    pub key_pem: Vec<u8>,
}

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: Vec<Address>,
    /// The store's directory.
    pub store: PathBuf,
    /// Connections at once.
    pub max_connections: usize,
    /// How long calls under way may take to finish when the server ends.
    pub drain: Duration,
    /// Bytes of the largest image that is taken.
    pub max_image_bytes: u64,
    /// Connections at once of one peer.
    pub max_connections_per_peer: usize,
    /// Bytes of messages and answers that all connections may make the server hold.
    pub max_held_bytes: u64,
    /// The same of one connection.
    pub max_held_bytes_per_connection: u64,
    /// Who may use the server over loopback besides root and its own user; `None`: every user.
    pub allow_users: Option<Vec<u32>>,
    /// How long connections may take to what.
    pub deadlines: Deadlines,
    /// For grpcs://.
    pub tls: Option<Tls>,
    /// Where metrics are.
    pub admin: Option<String>,
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of TLS that is not the server's alone.
    #[error("{path}: every user of this host can {can} it: use another key and certificate, and take that right away (chmod o= {path})")]
    Open {
        /// The file.
        path: PathBuf,
        /// What other users can do.
        can: &'static str,
    },
    /// The settings file is malformed.
    #[error("config {path}, line {line}: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// An address is none.
    #[error("listen: {0}")]
    Address(#[from] InvalidAddress),
    /// TLS without a certificate.
    #[error("listen on {0}: it needs a certificate: give --tls-cert and --tls-key, or [tls] in the config file")]
    NoCertificate(Address),
    /// Plain TCP that others can reach.
    #[error("listen on {0}: others could read, store and remove every snapshot there: use grpcs:// or unix:, or say --insecure-listen")]
    Exposed(Address),
    /// A number that makes no sense.
    #[error("max-connections must be at least 1")]
    NoConnections,
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    read_closed(path, 0, "")
}

/// Read a file that other users must not have these permissions for.
fn read_closed(path: &Path, to_others: u32, can: &'static str) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & to_others != 0 {
        return Err(ConfigError::Open { path: path.to_owned(), can });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A certificate, and its key, which no other user may read; neither may be replaced by one.
fn read_tls(cert: &Path, key: &Path) -> Result<Tls, ConfigError> {
    let cert_pem = read_closed(cert, 0o002, "write to")?;
    Ok(Tls { cert_pem, key_pem: read_closed(key, 0o006, "read or write to")? })
}

impl File {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read(path)?;
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
            let why = error.message().lines().collect::<Vec<_>>().join("; ");
            ConfigError::Parse { path: path.to_owned(), line: before.matches('\n').count() + 1, why }
        })
    }
}

fn mib(mib: u64) -> u64 {
    mib.saturating_mul(1 << 20)
}

/// Connections of one peer unless told: others find some left.
fn of_a_peer(max_connections: usize) -> usize {
    (max_connections - max_connections / 4).max(1)
}

/// An address to listen on: one that a client would use, or HOST:PORT alone.
fn listen_address(text: &str) -> Result<Address, InvalidAddress> {
    if Address::is_meant_by(text) { text.parse() } else { format!("grpc://{text}").parse().map_err(|_| InvalidAddress(text.to_owned())) }
}

impl Config {
    /// Serve `store` on one address, everything else as usual.
    #[must_use]
    pub fn new(listen: Address, store: PathBuf) -> Self {
        Self {
            listen: vec![listen],
            store,
            max_connections: MAX_CONNECTIONS,
            drain: DRAIN,
            max_image_bytes: MAX_IMAGE_MIB << 20,
            max_connections_per_peer: of_a_peer(MAX_CONNECTIONS),
            max_held_bytes: MAX_HELD_MIB << 20,
            max_held_bytes_per_connection: MAX_HELD_MIB_PER_CONNECTION << 20,
            allow_users: Some(Vec::new()),
            deadlines: Deadlines::default(),
            tls: None,
            admin: None,
        }
    }

    /// Put flags and file together.
    pub fn load(cli: Cli) -> Result<Self, ConfigError> {
        let file = cli.config.as_deref().map_or_else(|| Ok(File::default()), File::load)?;
        let listen = if cli.listen.is_empty() { file.listen } else { cli.listen };
        let listen = if listen.is_empty() { vec![LISTEN.to_owned()] } else { listen };
        let listen = listen.iter().map(|text| listen_address(text)).collect::<Result<Vec<_>, _>>()?;
        let tls = match (cli.tls_cert.zip(cli.tls_key), file.tls) {
            (Some((cert, key)), _) | (None, Some(TlsFiles { cert, key })) => Some(read_tls(&cert, &key)?),
            (None, None) => None,
        };
        if let (None, Some(address)) = (&tls, listen.iter().find(|address| matches!(address, Address::Tls(_)))) {
            return Err(ConfigError::NoCertificate(address.clone()));
        }
        let insecure = cli.insecure_listen || file.insecure_listen.unwrap_or_default();
        if let (false, Some(address)) = (insecure, listen.iter().find(|address| address.is_exposed())) {
            return Err(ConfigError::Exposed(address.clone()));
        }
        let max_connections = cli.max_connections.or(file.max_connections).unwrap_or(MAX_CONNECTIONS);
        if max_connections == 0 {
            return Err(ConfigError::NoConnections);
        }
        Ok(Self {
            listen,
            store: cli.store.or(file.store).unwrap_or_else(store::default_dir),
            max_connections,
            drain: cli.drain_seconds.or(file.drain_seconds).map_or(DRAIN, Duration::from_secs),
            max_image_bytes: mib(file.max_image_mib.unwrap_or(MAX_IMAGE_MIB)),
            max_connections_per_peer: file.max_connections_per_peer.unwrap_or_else(|| of_a_peer(max_connections)),
            max_held_bytes: mib(file.max_held_mib.unwrap_or(MAX_HELD_MIB)),
            max_held_bytes_per_connection: mib(file.max_held_mib_per_connection.unwrap_or(MAX_HELD_MIB_PER_CONNECTION)),
            allow_users: (!insecure).then(|| [file.allow_users, cli.allow_user].concat()),
            deadlines: Deadlines::default(),
            tls,
            admin: file.admin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str, flags: Cli) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Config::load(Cli { config: Some(file.path().to_owned()), ..flags })
    }

    #[test]
    fn flags_win_over_the_file() {
        let text = "listen = ['127.0.0.1:1', 'unix:/x']\nstore = '/a'\nmax_connections = 3\ndrain_seconds = 4\n";
        let config = loaded(text, Cli::default()).expect("fits");
        assert_eq!(config.listen, [Address::Plain("127.0.0.1:1".to_owned()), Address::Unix("/x".into())]);
        assert_eq!((config.store, config.max_connections, config.drain), ("/a".into(), 3, Duration::from_secs(4)));
        let flags = Cli { listen: vec!["[::1]:2".to_owned()], store: Some("/b".into()), max_connections: Some(5), ..Cli::default() };
        let config = loaded(text, flags).expect("fits");
        assert_eq!(config.listen, [Address::Plain("[::1]:2".to_owned())]);
        assert_eq!((config.store, config.max_connections, config.drain), ("/b".into(), 5, Duration::from_secs(4)));
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, word) in [
            ("store = '/a'\nnonsense = 1\n", 2, "nonsense"),
            ("\n\nmax_connections = 'many'\n", 3, "invalid type"),
            ("[tls]\ncert = '/c'\n", 1, "key"),
            ("listen = [\n", 1, ""),
        ] {
            match loaded(text, Cli::default()) {
                Err(ConfigError::Parse { line: found, why, .. }) => {
                    assert!(why.contains(word), "{why}");
                    assert!(found == line || word.is_empty(), "{text:?}: line {found}");
                    assert!(!why.contains('\n'));
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert!(matches!(loaded("max_connections = 0", Cli::default()), Err(ConfigError::NoConnections)));
        assert!(matches!(loaded("listen = ['grpcs://127.0.0.1:1']", Cli::default()), Err(ConfigError::NoCertificate(_))));
        for exposed in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "some.host:1"] {
            let text = format!("listen = ['{exposed}']");
            assert!(matches!(loaded(&text, Cli::default()), Err(ConfigError::Exposed(_))), "{exposed}");
            assert!(loaded(&text, Cli { insecure_listen: true, ..Cli::default() }).is_ok(), "{exposed}");
            assert!(loaded(&format!("insecure_listen = true\n{text}"), Cli::default()).is_ok(), "{exposed}");
        }
        for inside in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"] {
            assert!(loaded(&format!("listen = ['{inside}']"), Cli::default()).is_ok(), "{inside}");
        }
        assert!(matches!(loaded("listen = ['/x']", Cli::default()), Err(ConfigError::Address(_))));
    }

    #[test]
    fn files_of_tls_are_closed_to_other_users() {
        let folder = tempfile::tempdir().expect("a folder");
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let with = |cert_mode: u32, key_mode: u32| {
            for (path, mode) in [(&cert, cert_mode), (&key, key_mode)] {
                std::fs::write(path, "PEM").expect("it is written");
                std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("its mode is set");
            }
            Config::load(Cli { tls_cert: Some(cert.clone()), tls_key: Some(key.clone()), ..Cli::default() })
        };
        for (cert_mode, key_mode) in [(0o644, 0o600), (0o444, 0o400), (0o644, 0o640), (0o664, 0o660)] {
            assert!(with(cert_mode, key_mode).is_ok(), "{cert_mode:o} {key_mode:o}");
        }
        for (cert_mode, key_mode) in [(0o644, 0o644), (0o644, 0o604), (0o644, 0o602), (0o644, 0o666), (0o666, 0o600), (0o602, 0o600)] {
            assert!(matches!(with(cert_mode, key_mode), Err(ConfigError::Open { .. })), "{cert_mode:o} {key_mode:o}");
        }
    }
}
