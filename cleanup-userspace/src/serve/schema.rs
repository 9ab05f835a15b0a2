//! The published schema and its page say what the types say.

use std::fs;
use std::path::PathBuf;

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::api;

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name)
}

fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    generator.subschema_for::<api::Status>();
    generator.subschema_for::<api::Executors>();
    generator.subschema_for::<api::Plans>();
    generator.subschema_for::<api::CleanRequest>();
    generator.subschema_for::<api::Cleanings>();
    generator.subschema_for::<api::Failure>();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compose-cleanup control API, version 1",
        "description": "Made from cleanup-userspace/src/serve/api.rs; docs/control-api.md says which path answers with what.",
        "$defs": generator.take_definitions(true),
    })
}

/// `UPDATE_DOCS=1 cargo test -p cleanup-userspace schema` writes it.
#[test]
fn the_published_schema_is_current() {
    let path = docs("control-api.schema.json");
    let current = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let published = fs::read_to_string(&path).unwrap();
    assert!(
        published == current,
        "{} is not what api.rs says: run UPDATE_DOCS=1 cargo test -p cleanup-userspace schema",
        path.display()
    );
}

#[test]
fn the_page_names_every_type_and_field() {
    let page = fs::read_to_string(docs("control-api.md")).unwrap();
    let schema = schema();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        let at = page.find(&format!("### {name}\n"));
        let section = &page[at.unwrap_or_else(|| panic!("no section {name}"))..];
        let end = section[4..]
            .find("\n### ")
            .map_or(section.len(), |end| end + 4);
        let section = &section[..end];
        let fields = definition["properties"].as_object();
        for field in fields.into_iter().flat_map(serde_json::Map::keys) {
            let row = format!("| `{field}` |");
            assert!(section.contains(&row), "{name} does not list {field}");
        }
        let words = definition["oneOf"].as_array().into_iter().flatten();
        let words = words.flat_map(|one| {
            let single = one["const"].as_str();
            let several = one["enum"].as_array().into_iter().flatten();
            single
                .into_iter()
                .chain(several.filter_map(Value::as_str))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        for word in words {
            assert!(
                section.contains(&format!("`{word}`")),
                "{name} does not list {word}"
            );
        }
    }
}
