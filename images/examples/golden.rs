//! Write the golden files of the current format into the folder named, leaving those alone that are there: a golden file is
//! made once and must be readable for ever. `cargo run -p defrost-images --example golden -- images/tests/golden`
#![forbid(unsafe_code)]

extern crate defrost_images as images;

#[path = "../tests/sample/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod sample;

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("images/tests/golden"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (name, make) in sample::GOLDEN {
        let path = folder.join(name);
        if path.exists() {
            println!("{} is there already", path.display());
        } else {
            std::fs::write(&path, make())?;
            println!("{} written", path.display());
        }
    }
    Ok(())
}
