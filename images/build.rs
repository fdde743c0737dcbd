//! Compiles the .proto files without protoc, and writes down how much memory the manifest's messages take (`src/footprint.rs`).

use std::fmt::Write as _;

/// Of `FieldDescriptorProto`: the types of messages, strings and bytes, and the label of repeated fields.
const MESSAGE: i32 = 11;
const TEXT: [i32; 2] = [9, 12];
const REPEATED: i32 = 3;
/// The kind of description that is larger than all others, of which there are more.
const BOXED: &str = "Description.kind.socket";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/manifest.proto", "proto/working_set.proto", "proto/criu.proto"], ["proto"])?;
    let messages = descriptors.file.iter().filter(|file| file.name() == "manifest.proto").flat_map(|file| &file.message_type);
    let mut out = String::new();
    let names: Vec<String> = messages.clone().map(|message| format!(".defrost.image.v1.{}", message.name())).collect();
    for message in messages {
        if !message.nested_type.is_empty() {
            return Err(format!("manifest.proto: {} has messages of its own, which src/footprint.rs does not know", message.name()).into());
        }
        let mut fields = String::new();
        for field in &message.field {
            let boxed = format!("{}.kind.{}", message.name(), field.name()) == BOXED;
            let apart = boxed || field.label == Some(REPEATED);
            let holds = match field.r#type {
                Some(MESSAGE) => {
                    let index = names.iter().position(|name| name == field.type_name()).ok_or("a message of another file")?;
                    format!("Message({index})")
                }
                Some(known) if TEXT.contains(&known) => "Bytes".to_owned(),
                _ => "Number".to_owned(),
            };
            write!(fields, "Field {{ number: {}, apart: {apart}, holds: Holds::{holds} }}, ", field.number())?;
        }
        let name = message.name();
        writeln!(out, "Message {{ bytes: size_of::<crate::manifest::{name}>() as u64, fields: &[{fields}] }},")?;
    }
    let path = std::path::Path::new(&std::env::var("OUT_DIR")?).join("footprint.rs");
    std::fs::write(path, format!("&[\n{out}]"))?;
    let mut config = prost_build::Config::new();
    config.boxed(format!(".defrost.image.v1.{BOXED}"));
    config.compile_fds(descriptors)?;
    Ok(())
}
