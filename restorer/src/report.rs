//! A picture of a restore as one page: a file that any browser opens, with all it needs in itself and no way out.
//!
//! The page is `report/page.html` with `page.css` and `page.js` in it, and the picture as JSON for the script to draw. Names in there are
//! whatever the process chose: no `<` of the data reaches the page as one, the script puts them into the page as text only, and the
//! page's policy lets no script run but ours (its nonce is the digest of all data) and nothing be loaded. A file NAME.json gets the data
//! alone.
//!
//! A report is written beside its place and then takes it: there is the whole of it, or what was there before.
//!
//! Known hole: a place that could be written when it was checked may not be later; the pager says so in its log.

use crate::output_file::beside;
use pager::picture::Picture;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/page.css");
const SCRIPT: &str = include_str!("report/page.js");

/// No report can be written.
#[derive(Debug, thiserror::Error)]
#[error("report {path}: {why}: name a file in a folder that can be written")]
pub struct ReportError {
    path: String,
    why: String,
}

/// Where a report named `path` goes, if it can be written there now; absolute. A symbolic link is refused.
pub fn place(path: &Path) -> Result<PathBuf, ReportError> {
    let absolute = std::path::absolute(path).and_then(|path| match std::fs::symlink_metadata(&path) {
        Ok(there) if there.is_symlink() => Err(io::Error::other("it is a symbolic link")),
        Ok(there) if !there.is_file() => Err(io::Error::other("it is no file")),
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(error),
    });
    absolute.and_then(|path| beside(&path).map(|_| path)).map_err(|error| failed(path, &error))
}

/// Write the report of `picture` to a place that [`place`] yielded.
pub fn write(path: &Path, picture: &Picture) -> Result<(), ReportError> {
    let written = serde_json::to_string(picture).map_err(io::Error::from).and_then(|data| {
        let alone = path.extension().is_some_and(|extension| extension == "json");
        let text = if alone { data + "\n" } else { page(&data) };
        let mut file = beside(path)?;
        file.as_file_mut().write_all(text.as_bytes())?;
        file.persist(path).map(drop).map_err(io::Error::from)
    });
    written.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> ReportError {
    ReportError { path: path.display().to_string(), why: error.to_string() }
}

/// The page for a picture that is JSON.
fn page(data: &str) -> String {
    // Within JSON these are only found in strings. U+2028 and U+2029 end lines of scripts.
    let escapes = [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")];
    let data = escapes.iter().fold(data.to_owned(), |data, (from, to)| data.replace(from, to));
    let nonce = images::digest(data.as_bytes()).to_string();
    // The data last: nothing in it is a place to be filled.
    [("@@nonce@@", &*nonce), ("@@style@@", STYLE), ("@@script@@", SCRIPT), ("@@data@@", &data)]
        .iter()
        .fold(PAGE.to_owned(), |page, (place, with)| page.replace(place, with))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_data_breaks_out_of_its_place() {
        let hostile = r#"{"name":"</script><script>alert(1)</script> <!-- @@style@@@@nonce@@@@script@@@@data@@ ]]> &lt; "}"#;
        let page = page(&format!("{}\u{2028}", hostile));
        let (_, rest) = page.split_once(r#"type="application/json">"#).expect("there is data");
        let (data, _) = rest.split_once("</script>").expect("it ends");
        assert!(!data.contains(['<', '>', '&', '\u{2028}']) && data.contains("@@style@@@@nonce@@@@script@@@@data@@"), "{data}");
        let read: serde_json::Value = serde_json::from_str(&data.replace("\\u2028", "")).expect("it is JSON still");
        assert_eq!(read, serde_json::from_str::<serde_json::Value>(hostile).expect("it was"));
        // Ours: the data, and the script.
        assert_eq!((page.matches("<script").count(), page.matches("</script>").count()), (2, 2));
    }

    #[test]
    fn the_page_is_whole_and_knows_no_other_place() {
        let page = page("{}");
        for left in ["@@nonce@@", "@@style@@", "@@script@@", "@@data@@", "src=", "href=", "url(", "@import", "fetch("] {
            assert!(!page.contains(left), "{left}");
        }
        // The name of a namespace is no address that anybody asks.
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("://"));
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn a_place_is_checked_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.html");
        assert_eq!(place(&file).expect("it can be written"), file);
        assert_eq!(std::fs::read_dir(folder.path()).expect("its entries").count(), 0);
        std::fs::write(&file, "before").expect("write");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        assert!(place(&link).expect_err("a link").to_string().contains("symbolic link"));
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "before");
        for (bad, why) in
            [(folder.path().join("no/where"), "No such file"), (folder.path().to_owned(), "no file"), ("/dev/null".into(), "no file")]
        {
            let error = place(&bad).expect_err("it is no place").to_string();
            assert!(error.contains(why) && error.contains(&bad.display().to_string()) && !error.contains("path "), "{error}");
        }
    }
}
