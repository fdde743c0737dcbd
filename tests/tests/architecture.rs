//! The dependency arrows of ARCHITECTURE.md, held against what cargo says; and documents, held against what they speak of.

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

fn text(path: &str) -> Result<String> {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    std::fs::read_to_string(top.join(path)).with_context(|| path.to_owned())
}

/// The words of a text that may be names.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect()
}

#[test]
fn the_format_document_has_every_field_of_the_schema() -> Result<()> {
    let (schema, document) = (text("images/proto/manifest.proto")?, text("docs/image-format.md")?);
    let (known, mut seen, mut in_message) = (words(&document), 0, false);
    for line in schema.lines() {
        let code = line.split("//").next().unwrap_or_default().trim();
        if code.starts_with("message ") || code.starts_with("enum ") {
            in_message = code.starts_with("message ");
        }
        if !in_message {
            continue;
        }
        // Several fields may be on a line: `TYPE NAME = NUMBER;`.
        for field in code.split(';').filter_map(|field| field.split_once(" = ")) {
            let name = field.0.split_whitespace().last().context("a field has a name")?;
            assert!(known.contains(name), "docs/image-format.md lacks the field {name}: {line}");
            seen += 1;
        }
    }
    assert!(seen > 200, "the schema has another form: only {seen} fields were found");
    Ok(())
}

#[test]
fn every_test_that_the_security_document_names_is_there() -> Result<()> {
    let document = text("SECURITY.md")?;
    let mut seen = 0;
    for name in document.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else { continue };
        let source = text(&format!("tests/tests/{file}.rs"))?;
        assert!(words(&source).contains(test), "tests/tests/{file}.rs lacks {test}");
        seen += 1;
    }
    assert!(seen > 10, "only {seen} tests are named");
    Ok(())
}
