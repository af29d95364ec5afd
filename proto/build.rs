//! Compiles the formats with protox, so that no `protoc` is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;
use protox::prost_reflect::prost_types::field_descriptor_proto::Type;

/// Messages within messages that are kept as they lie on the wire, each to be read by itself. A command is large, and a thousand of them in a
/// list that grows cost a node as much as reading them. Calls are written one by one as they are made. The others are entries of maps, which
/// `Pairs` reads: each is taken from one message into the next, and few look at them.
const UNREAD: [(&str, &str); 8] = [
    ("Call", "headers"),
    ("CoordinatorMessage", "calls"),
    ("LogEntry", "commands"),
    ("Options", "headers"),
    ("Options", "tags"),
    ("RecordedOptions", "headers"),
    ("RecordedOptions", "tags"),
    ("Transaction", "tags"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "transaction",
        "participant",
        "admin",
        "raft",
        "record",
        "services",
        "history",
        "shards",
        "audit",
    ]
    .map(|name| format!("holdfast/v1/{name}.proto"));
    for file in &files {
        println!("cargo::rerun-if-changed={file}");
    }
    let mut descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
    for message in messages {
        let name = message.name().to_owned();
        for field in &mut message.field {
            if UNREAD.contains(&(name.as_str(), field.name())) {
                field.set_type(Type::Bytes);
                field.type_name = None;
            }
        }
    }
    // Headers and tags are few: in the order of their names they cost less than hashed, and are the same each time.
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
