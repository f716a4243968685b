//! `--parents` and `--exclude`.

use super::*;

/// `--parents` by a matcher that knows one star a component, as in the engine's with the patterns of these tests.
fn include(pattern: &str, path: &Path) -> Included {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let matches = |(pattern, part): (&&str, &String)| super::pattern::matches(pattern, part) == Some(true);
    match pattern.iter().zip(&path).all(matches) {
        false => Included::No,
        true if path.len() >= pattern.len() => Included::Yes,
        true => Included::LookInside,
    }
}

fn copied_with_parents(fixture: &Fixture, sources: &[&str], dest: &str) -> Result<Vec<String>, CopyError> {
    let options = CopyOptions { parents: Some(&include), ..options() };
    copy(sources, &fixture.from, dest, &fixture.to, &options).map(|_| fixture.result())
}

#[test]
fn parents_keeps_the_path_and_the_modes_of_its_directories() {
    let copied = |sources: &[&str]| copied_with_parents(&fixture(), sources, "/out").unwrap();
    assert_eq!(
        copied(&["src/deep/x"]),
        ["out/ 755", "out/src/ 750", "out/src/deep/ 755", r#"out/src/deep/x 644 "x""#]
    );
    assert_eq!(
        copied(&["./a.txt", "/src/m*"]),
        ["out/ 755", r#"out/a.txt 644 "a""#, "out/src/ 750", r#"out/src/main 644 "m""#]
    );
    assert_eq!(copied(&["src/deep/."])[3], r#"out/src/deep/x 644 "x""#, "a directory with what is in it");
    assert_eq!(copied(&["none*/x", "src/none*"]), ["out/ 755"], "a wildcard may match nothing");
}

#[test]
fn parents_keeps_what_is_after_the_pivot() {
    let copied = |source: &str| copied_with_parents(&fixture(), &[source], "/out").unwrap();
    let deep = ["out/ 755", "out/deep/ 755", r#"out/deep/x 644 "x""#];
    assert_eq!(copied("src/./deep/x"), deep);
    assert_eq!(copied("s*/./deep"), deep);
    assert_eq!(copied("to-src/./deep"), deep, "what is before the pivot may be a symlink");
    assert_eq!(copied("/./src/./deep")[1], "out/src/ 750", "the first pivot counts");
}

#[test]
fn parents_says_why_it_finds_nothing() {
    let failure = |source: &str| copied_with_parents(&fixture(), &[source], "/out").unwrap_err();
    assert!(matches!(failure("src/none"), CopyError::Missing(_)));
    assert!(matches!(failure("none/./x"), CopyError::Missing(_)));
    assert!(matches!(failure("to-src/main"), CopyError::ParentsThroughSymlink(_)));
}

#[test]
fn a_directory_on_the_way_of_parents_that_is_there_keeps_its_owner_and_gets_the_mode() {
    if !is_root() {
        return;
    }
    let fixture = fixture();
    fs::create_dir_all(fixture.to("out/src/deep")).unwrap();
    for directory in ["out/src", "out/src/deep"] {
        std::os::unix::fs::chown(fixture.to(directory), Some(3), Some(4)).unwrap();
    }
    copied_with_parents(&fixture, &["src/deep"], "/out").unwrap();
    let of = |path: &str| {
        let found = fs::metadata(fixture.to(path)).unwrap();
        (found.uid(), found.mode() & 0o777)
    };
    assert_eq!(of("out/src"), (3, 0o750));
    assert_eq!(of("out/src/deep"), (0, 0o755), "one that was asked for is the source's");
}

#[test]
fn parents_cannot_climb_out_of_the_context() {
    let fixture = fixture();
    fs::write(fixture.dir.path().join("secret"), "outside").unwrap();
    symlink("../../..", fixture.from("src/up")).unwrap();
    for source in ["../secret", "src/../../secret", "src/up/secret", "../.././secret", "src/up/./secret"] {
        assert!(copied_with_parents(&fixture, &[source], "/out").is_err(), "{source}");
    }
    copied_with_parents(&fixture, &["src/up/*", "src/up/./*"], "/out").unwrap();
    assert!(!listing(&fixture.to("")).iter().any(|line| line.contains("outside")));
}

#[test]
fn exclude_is_of_what_is_in_a_source_and_never_of_the_source() {
    let within = |path: &Path, _: bool| match path.to_str().unwrap() {
        "main" | "a.txt" | "deep/x" | ".hidden" => Excluded::Yes,
        _ => Excluded::No,
    };
    let options = CopyOptions { exclude_within: Some(&within), ..options() };
    let fixture = fixture();
    copy(&["src", "a.txt"], &fixture.from, "/out/", &fixture.to, &options).unwrap();
    let expected = [r#"out/a.txt 644 "a""#, "out/deep/ 755", "out/link -> main"];
    assert_eq!(fixture.result()[1..], expected);
}

#[test]
fn exclude_and_parents_meet_at_the_pivot() {
    let within = |path: &Path, _: bool| {
        if path.ends_with("deep") { Excluded::Yes } else { Excluded::No }
    };
    let options = CopyOptions { exclude_within: Some(&within), parents: Some(&include), ..options() };
    let fixture = fixture();
    copy(&["src"], &fixture.from, "/out", &fixture.to, &options).unwrap();
    let result = fixture.result();
    assert!(
        result.contains(&"out/src/link -> main".to_owned())
            && !result.iter().any(|line| line.contains("deep"))
    );
}
