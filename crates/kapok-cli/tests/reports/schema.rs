//! What is written is as the schema in the documents says, and what is not is refused.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::{RESULT, file, kapok, text, turn};

/// Holds results against the schema in the documents, and says what is wrong with each.
const VALIDATOR: &str = r#"
import json, sys
from jsonschema import Draft202012Validator
with open(sys.argv[1]) as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for path in sys.argv[2:]:
    with open(path) as file:
        for error in validator.iter_errors(json.load(file)):
            print(path, error.json_path, error.message[:200])
"#;

/// A Python that has jsonschema, if there is one: the machine's own, or the first in the path.
fn python() -> Option<&'static str> {
    let found = ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        let tried = Command::new(python).args(["-c", "import jsonschema"]).output();
        tried.is_ok_and(|output| output.status.success())
    });
    assert!(
        found.is_some() || std::env::var_os("CI").is_none(),
        "no python3 has jsonschema: apt install python3-jsonschema"
    );
    if found.is_none() {
        eprintln!("SKIPPED: no python3 has jsonschema (apt install python3-jsonschema)");
    }
    found
}

#[test]
fn what_is_written_is_as_the_schema_says() {
    let Some(python) = python() else { return };
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/report.schema.json");
    let complaints = |paths: &[&PathBuf]| {
        let checked =
            Command::new(python).args(["-c", VALIDATOR, schema]).args(paths).output().unwrap();
        assert!(checked.status.success(), "{}", text(&checked.stderr));
        text(&checked.stdout)
    };
    let _turn = turn();
    // Everything that there may be: several points, slopes, costs, a rate, one that fails.
    let (written, grown) = (file("schema.json"), file("schema-slopes.json"));
    let short = ["--protocol", "echo", "--rounds", "2", "--seconds", "0.2"];
    for (path, options) in [
        (&written, &["--connections", "4", "--rate", "100", "--delay-ms", "1", "--churn", "9"][..]),
        (&grown, &["--connections", "2,4,8", "--active", "2", "--costs"][..]),
    ] {
        let to = ["--json", path.to_str().unwrap()];
        let who =
            ["compare", "--models", "epoll,fiber", "--server", "absent=./no-such-server {addr}"];
        let compared = kapok(&[&who[..], &short[..], options, &to[..]].concat());
        assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
    }
    let read: Value = serde_json::from_slice(&fs::read(&grown).unwrap()).unwrap();
    assert!(!read["slopes"].as_array().unwrap().is_empty(), "{read}");
    assert_eq!(complaints(&[&written, &grown]), "");

    // One that is wrong is found.
    let mut wrong = read;
    wrong["tables"][0]["rows"][0]["measured"][0]["load"]["requests"] = "many".into();
    wrong.as_object_mut().unwrap().remove("environment");
    let path = file("schema-wrong.json");
    fs::write(&path, wrong.to_string()).unwrap();
    let said = complaints(&[&path]);
    assert!(said.contains("'environment' is a required property"), "{said}");
    assert!(said.contains("load.requests") && said.contains("'many' is not of type"), "{said}");
}

#[test]
fn files_that_are_no_results_are_refused_by_name() {
    let path = file("nonsense.json");
    fs::write(&path, "{\"format\":\"kapok-compare\"}").unwrap();
    let refused = kapok(&["report", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let complaint = text(&refused.stderr);
    assert!(
        complaint.contains("nonsense.json") && complaint.contains("missing field"),
        "{complaint}"
    );

    let newer = RESULT.replacen("\"version\":1", "\"version\":99", 1);
    fs::write(&path, newer).unwrap();
    let complaint = text(&kapok(&["report", path.to_str().unwrap()]).stderr);
    assert!(complaint.contains("version 99 is not known"), "{complaint}");
    // Before anything is measured.
    let refused = kapok(&["compare", "--against", path.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
}
