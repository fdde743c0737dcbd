//! Write the fuzzers' first inputs, made of the golden files, into the folder named: one sub-folder a target.
#![forbid(unsafe_code)]

use images::pack::PackReader;
use std::fs;
use std::path::Path;

const IMAGES: [(&str, &[u8]); 2] = [
    ("process", include_bytes!("../../tests/golden/v1-process.img")),
    ("memory", include_bytes!("../../tests/golden/v1-memory.img")),
];
const PACK: &[u8] = include_bytes!("../../tests/golden/v1.pack");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: seeds FOLDER")?;
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    for (name, bytes) in IMAGES {
        write("image", name, bytes)?;
        write("table", name, bytes)?;
    }
    write("pack", "golden", PACK)?;
    let pack = PackReader::open(PACK)?;
    for (id, _) in pack.entries() {
        let Some(range) = pack.frame(&id)? else { continue };
        // Chunks of the sample are 4 pages long, or one.
        for len in [16384_u16, 4096] {
            let input = [&len.to_le_bytes(), &PACK[range.clone()]].concat();
            write("frame", &format!("{}-{len}", &id.to_string()[..8]), &input)?;
        }
    }
    Ok(())
}
