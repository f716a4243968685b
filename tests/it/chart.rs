//! What the chart's files say of each other and of the program, as far as it can be read without rendering them.
//! `cluster::chart` renders them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use clap::Args as _;
use hephy::config::cluster::ClusterSettings;
use regex::Regex;
use serde_json::Value;

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/hephy")
}

fn read(name: &str) -> String {
    let path = chart().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn templates() -> String {
    let entries = fs::read_dir(chart().join("templates")).unwrap();
    entries.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

fn values() -> Value {
    serde_saphyr::from_str(&read("values.yaml")).unwrap()
}

/// Whether there is a value at `build.resources`, or it is inside of one that is anybody's to fill.
fn is_value(values: &Value, path: &str) -> bool {
    let mut here = values;
    for part in path.split('.') {
        let free = here.as_object().is_some_and(serde_json::Map::is_empty) || path.contains(".resources.");
        match here.get(part) {
            Some(inner) => here = inner,
            None => return free,
        }
    }
    true
}

#[test]
fn every_value_is_described_and_of_its_kind() {
    fn check(path: &str, value: &Value, schema: &Value, definitions: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(name) => &definitions[name.trim_start_matches("#/definitions/")],
            None => schema,
        };
        let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
            assert!(!schema.is_null(), "{path} is not in the schema");
            return;
        };
        assert_eq!(schema["additionalProperties"], false, "{path} takes names that nobody reads");
        let described: BTreeSet<&String> = properties.keys().collect();
        let given: BTreeSet<&String> = object.keys().collect();
        let difference: Vec<_> =
            described.symmetric_difference(&given).filter(|key| ***key != "global").collect();
        assert!(difference.is_empty(), "{path}: {difference:?} is only in the schema or only in the values");
        for (key, inner) in object {
            check(&format!("{path}.{key}"), inner, &properties[key], definitions);
        }
    }
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    check("values", &values(), &schema, &schema["definitions"]);
}

#[test]
fn templates_read_values_that_there_are() {
    let values = values();
    let templates = templates();
    let read = Regex::new(r"\.Values\.([A-Za-z]+(?:\.[A-Za-z]+)*)").unwrap();
    let paths: BTreeSet<&str> =
        read.captures_iter(&templates).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths {
        assert!(is_value(&values, path), "{path}");
    }
}

#[test]
fn values_that_documents_and_messages_name_are_there() {
    let values = values();
    let roots: Vec<&String> = values.as_object().unwrap().keys().collect();
    let roots: Vec<&str> = roots.iter().map(|root| root.as_str()).collect();
    let named = Regex::new(&format!(r"(?:`|--set )((?:{})\.[A-Za-z.]*[A-Za-z])", roots.join("|"))).unwrap();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for name in [
        "docs/kubernetes.md",
        "docs/isolation.md",
        "README.md",
        "charts/hephy/templates/NOTES.txt",
        "charts/hephy/values.yaml",
        "src/driver/kubernetes/verdict.rs",
    ] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        for path in named.captures_iter(&text).map(|found| found.get(1).unwrap().as_str().to_owned()) {
            assert!(is_value(&values, &path), "{name}: {path}");
            found += 1;
        }
    }
    assert!(found > 15, "{found}");
}

#[test]
fn the_server_is_started_with_flags_that_it_has() {
    let command = ClusterSettings::augment_args(clap::Command::new("serve"));
    let known: BTreeSet<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    let flag = Regex::new(r#"(?:- |printf )"--([a-z-]+)"#).unwrap();
    let (server, helpers) = (read("templates/server.yaml"), read("templates/_helpers.tpl"));
    let flags: BTreeSet<&str> = [&server, &helpers]
        .into_iter()
        .flat_map(|text| flag.captures_iter(text).map(|found| found.get(1).unwrap().as_str()))
        .collect();
    assert!(flags.len() > 25, "{flags:?}");
    let unknown: Vec<_> = flags.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
