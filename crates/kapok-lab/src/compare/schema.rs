//! The schema of the JSON, made from the types that are written: `docs/report.schema.json`.

use std::path::Path;

use super::Comparison;

/// Rewrites the file when `KAPOK_BLESS` is set, and fails when it is another one than the types make.
#[test]
fn the_schema_in_the_documents_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report.schema.json");
    let schema = schemars::schema_for!(Comparison);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("KAPOK_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/report.schema.json is not what the types make: look at the version in compare/mod.rs, then \
         KAPOK_BLESS=1 cargo test -p kapok-lab --lib schema"
    );
}
