//! The dependency arrows of ARCHITECTURE.md, held against what cargo says.

use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::process::Command;

/// What each crate may use of the workspace.
const ARROWS: [(&str, &[&str]); 8] = [
    ("defrost-pages", &[]),
    ("defrost-kernel", &["defrost-pages"]),
    ("defrost-images", &["defrost-pages"]),
    ("defrost-proto", &["defrost-pages"]),
    ("defrost-store", &["defrost-pages", "defrost-kernel", "defrost-images", "defrost-proto"]),
    ("defrost-page-server", &["defrost-pages", "defrost-images", "defrost-proto", "defrost-store"]),
    ("defrost-pager", &["defrost-pages", "defrost-kernel", "defrost-images", "defrost-proto", "defrost-store"]),
    ("defrost-restorer", &["defrost-pages", "defrost-kernel", "defrost-images", "defrost-proto", "defrost-store", "defrost-pager"]),
];

#[test]
fn arrows_go_one_way() -> Result<()> {
    let output = Command::new(env!("CARGO")).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    for (name, allowed) in ARROWS {
        let package = packages.iter().find(|p| p["name"] == name).with_context(|| format!("{name} is gone"))?;
        let used = package["dependencies"].as_array().context("dependencies")?;
        let used: BTreeSet<&str> = used.iter().filter(|d| !d["path"].is_null()).filter_map(|d| d["name"].as_str()).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let extra: Vec<_> = used.difference(&allowed).collect();
        assert!(extra.is_empty(), "{name} must not use {extra:?}");
    }
    Ok(())
}

#[test]
fn unsafe_has_one_address() -> Result<()> {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    for name in ["pages", "images", "proto", "store", "page-server", "pager", "restorer"] {
        let text = std::fs::read_to_string(top.join(name).join("src/lib.rs"))?;
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe code");
    }
    Ok(())
}
