//! A page as a browser shows it: Debian's Chromium, without a head and without a network to ask.

use crate::command::to_its_end;
use anyhow::{Context as _, Result, ensure};
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

/// The program.
const CHROMIUM: &str = "/usr/bin/chromium";

/// What became of a page once its script had run.
#[derive(Debug)]
pub struct Page(String);

impl Page {
    /// Open a file.
    pub fn open(file: &Path) -> Result<Self> {
        let page = Self(chromium(&["--dump-dom"], file)?);
        ensure!(page.0.contains("data-drawn=\"true\""), "{} was not drawn to its end: {}", file.display(), page.0);
        Ok(page)
    }

    /// Its markup.
    #[must_use]
    pub fn markup(&self) -> &str {
        &self.0
    }

    /// What an element with `data-NAME="KEY"` says in its data-value.
    pub fn value(&self, name: &str, key: &str) -> Result<&str> {
        let (_, rest) = self.0.split_once(&format!("data-{name}=\"{key}\" data-value=\"")).with_context(|| format!("no {name} {key}"))?;
        Ok(rest.split_once('"').context("it ends")?.0)
    }

    /// The same as a number.
    pub fn number(&self, name: &str, key: &str) -> Result<u64> {
        let value = self.value(name, key)?;
        value.parse().with_context(|| format!("{name} {key} is {value:?}"))
    }
}

/// How often each colour (red, green, blue) is in a picture of the page.
pub fn colours(file: &Path) -> Result<HashMap<[u8; 3], usize>> {
    let folder = tempfile::tempdir()?;
    let shot = folder.path().join("shot.png");
    chromium(&["--hide-scrollbars", "--window-size=1200,2400", &format!("--screenshot={}", shot.display())], file)?;
    let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&shot)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("it is not too large")?];
    let info = reader.next_frame(&mut pixels)?;
    ensure!(info.bit_depth == png::BitDepth::Eight, "{info:?}");
    let mut found = HashMap::new();
    for pixel in pixels[..info.buffer_size()].chunks_exact(info.color_type.samples()) {
        *found.entry([pixel[0], pixel[1], pixel[2]]).or_insert(0) += 1;
    }
    Ok(found)
}

/// Run it to its end; yields what it printed.
fn chromium(how: &[&str], file: &Path) -> Result<String> {
    ensure!(Path::new(CHROMIUM).exists(), "{CHROMIUM} is missing: install Debian's package chromium, or run `cargo xtask test`");
    let profile = tempfile::tempdir()?;
    let mut command = Command::new(CHROMIUM);
    // As root it has no sandbox; in a container there may be neither a GPU nor a large /dev/shm.
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    // Nothing is asked of anybody, whatever a browser likes to know.
    command.args(["--disable-background-networking", "--disable-component-update", "--proxy-server=127.0.0.1:9"]);
    command.arg(format!("--user-data-dir={}", profile.path().display())).args(how).arg(format!("file://{}", file.display()));
    let Output { status, stdout, stderr } = to_its_end(command)?;
    ensure!(status.success(), "chromium: {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
