//! What the documents say of the source tree is true: links lead somewhere, examples are read by the program.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args as _;
use hephy::config::app::AppConfig;
use hephy::config::server::GivenSettings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let in_directory = |name: &str| {
        fs::read_dir(root().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let mut found = [in_directory("docs"), in_directory("lore")].concat();
    found.extend(Some(root().join("README.md")).filter(|path| path.exists()));
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found
}

/// The targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2).collect::<String>();
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(link, _)| link.to_owned())
        .collect()
}

#[test]
fn every_relative_link_leads_to_a_file() {
    for document in documents() {
        for link in links(&fs::read_to_string(&document).unwrap()) {
            let path = link.split('#').next().unwrap_or_default();
            let relative = !path.is_empty() && !path.contains("://");
            let target = document.parent().unwrap().join(path);
            assert!(!relative || target.exists(), "{}: {link}", document.display());
        }
    }
}

#[test]
fn every_record_is_in_the_table_of_the_lore() {
    let table = fs::read_to_string(root().join("lore/README.md")).unwrap();
    for document in documents().iter().filter(|path| path.parent().unwrap().ends_with("lore")) {
        let name = document.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || table.contains(&format!("]({name})")), "{name}");
    }
}

#[test]
fn every_example_of_hephy_toml_is_one() {
    let text = fs::read_to_string(root().join("docs/hephy-toml.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        AppConfig::parse(example.as_bytes()).unwrap();
    }
}

#[test]
fn every_setting_of_the_server_is_documented_in_all_its_forms() {
    let text = fs::read_to_string(root().join("docs/cli.md")).unwrap();
    let command = GivenSettings::augment_args(clap::Command::new("up"));
    for argument in command.get_arguments() {
        let flag = argument.get_long().unwrap();
        let variable = argument.get_env().unwrap().to_str().unwrap();
        let row = text.lines().find(|line| line.starts_with(&format!("| `--{flag} "))).unwrap_or_default();
        let key = format!("| `{}` |", argument.get_id());
        assert!(row.contains(&format!("| `{variable}` |")) && row.contains(&key), "--{flag}: {row}");
    }
}
