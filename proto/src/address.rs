//! Where a page server is: the same three forms for whoever listens and whoever connects.
//!
//! ```text
//! grpc://HOST:PORT     plain
//! grpcs://HOST:PORT    TLS
//! unix:PATH            a socket file; unix:///PATH is the same
//! ```
//!
//! Whoever reads may name several servers that hold the same snapshots, separated by commas: [`Address::list`]. A socket file whose
//! path has a comma cannot be named.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A checked address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// HOST:PORT, without TLS.
    Plain(String),
    /// HOST:PORT, with TLS.
    Tls(String),
    /// A socket file.
    Unix(PathBuf),
}

/// The text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no server address: use grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH")]
pub struct InvalidAddress(pub String);

impl Address {
    /// Whether `text` means a server at all; if not, it may be a directory.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.contains("://") || text.starts_with("unix:")
    }

    /// Whether it is plain TCP outside of loopback, where a server must not listen unless its user says so. A name is looked at as it is
    /// written: only `localhost` is known to be loopback.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let Self::Plain(at) = self else { return false };
        let host = at.rsplit_once(':').map_or(at.as_str(), |(host, _)| host).trim_matches(['[', ']']);
        host != "localhost" && !host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// One server, or several separated by commas: `grpc://a:7440,b:7440`. One that does not say what it is is what the first is.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidAddress> {
        let kind = ["grpc://", "grpcs://", "unix:"].into_iter().find(|kind| text.starts_with(kind)).unwrap_or_default();
        let one = |one: &str| if Self::is_meant_by(one) { one.parse() } else { format!("{kind}{one}").parse() };
        text.split(',').map(one).collect()
    }
}

/// HOST:PORT, where HOST may be an IPv6 address in brackets.
fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_fits = !host.is_empty() && !host.contains(['/', '@', ' ']) && (bracketed || !host.contains(':'));
    (host_fits && port.parse::<u16>().is_ok()).then(|| text.to_owned())
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() || path.contains('\0') { Err(invalid()) } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        if let Some(rest) = text.strip_prefix("grpcs://") {
            return host_and_port(rest).map(Self::Tls).ok_or_else(invalid);
        }
        host_and_port(text.strip_prefix("grpc://").ok_or_else(invalid)?).map(Self::Plain).ok_or_else(invalid)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(at) => write!(f, "grpc://{at}"),
            Self::Tls(at) => write!(f, "grpcs://{at}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_in_one_text() {
        for (text, servers) in [
            ("grpc://a:1", vec!["grpc://a:1"]),
            ("grpc://a:1,b:2,[::1]:3", vec!["grpc://a:1", "grpc://b:2", "grpc://[::1]:3"]),
            ("grpcs://a:1,b:2", vec!["grpcs://a:1", "grpcs://b:2"]),
            ("unix:/a,/b", vec!["unix:/a", "unix:/b"]),
            ("unix:///a,unix:/b", vec!["unix:/a", "unix:/b"]),
            ("grpc://a:1,unix:/b,grpcs://c:3", vec!["grpc://a:1", "unix:/b", "grpcs://c:3"]),
        ] {
            let found = Address::list(text).map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(found, Ok(servers.into_iter().map(str::to_owned).collect()), "{text}");
        }
        for bad in ["", "grpc://a:1,", "grpc://a:1,,b:2", ",grpc://a:1", "grpc://a:1, b:2", "grpc://a,b", "unix:/a,"] {
            assert!(Address::list(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn three_forms_and_nothing_else() {
        for (text, same) in [
            ("grpc://127.0.0.1:7440", "grpc://127.0.0.1:7440"),
            ("grpcs://snapshots.example:443", "grpcs://snapshots.example:443"),
            ("grpc://[::1]:7440", "grpc://[::1]:7440"),
            ("unix:/run/defrost.sock", "unix:/run/defrost.sock"),
            ("unix:///run/defrost.sock", "unix:/run/defrost.sock"),
            ("unix:relative", "unix:relative"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(same.to_owned()));
        }
        for bad in [
            "",
            "/var/lib/defrost",
            "http://x:1",
            "grpc://",
            "grpc://x",
            "grpc://x:99999",
            "grpc://:1",
            "grpc://a/b:1",
            "grpc://::1:1",
            "unix:",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?} was taken");
        }
    }
}
