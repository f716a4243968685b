//! One case for each rule: what it finds, and what looks alike and is right.

use std::collections::BTreeMap;

use super::*;
use crate::dockerfile::parse;
use crate::oci::Platform;

/// What is found, as `line rule: detail`, with a base that sets `FROM_BASE`.
fn with(text: &str, ignore: Option<&str>, args: &[(&str, &str)]) -> Findings {
    let dockerfile = parse(text.as_bytes(), "Dockerfile").unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let platforms =
        PlatformArgs { target: platform.clone(), build: platform, target_stage: "default".to_owned() };
    let ignore = ignore.map(|text| IgnoreFile::parse(text.as_bytes(), ".dockerignore").unwrap());
    let pairs = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let environment = |base: &str| (base != "unknown").then(|| vec!["FROM_BASE=1".to_owned()]);
    let input = CheckInput {
        text: text.as_bytes(),
        build_args: &pairs.collect::<BTreeMap<_, _>>(),
        platforms: &platforms,
        ignore: ignore.as_ref(),
        environment: &environment,
    };
    check(&dockerfile, &input).unwrap()
}

fn found(text: &str) -> Vec<String> {
    lines(&with(text, None, &[]))
}

fn lines(findings: &Findings) -> Vec<String> {
    let line = |found: &Finding| format!("{} {}: {}", found.span.start.line, found.rule.name(), found.detail);
    findings.findings.iter().map(line).collect()
}

/// The one thing that is found.
fn only(text: &str) -> String {
    let found = found(text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found[0].clone()
}

fn clean(text: &str) {
    assert_eq!(found(text), [""; 0], "{text}");
}

#[test]
fn stage_name_casing() {
    assert_eq!(only("FROM a AS Build"), "1 StageNameCasing: Stage name 'Build' should be lowercase");
    clean("FROM a AS build");
}

#[test]
fn from_as_casing() {
    assert_eq!(only("FROM a as b"), "1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match");
    clean("from a as b");
}

#[test]
fn no_empty_continuation() {
    assert_eq!(only("FROM a\nRUN b \\\n\n c"), "3 NoEmptyContinuation: Empty continuation line");
    clean("FROM a\nRUN b \\\n# c\n d");
}

#[test]
fn consistent_instruction_casing() {
    let expected = "2 ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase)";
    assert_eq!(only("FROM a\nrun b\nRUN c"), expected);
    let mixed = only("from a\nRun b\nrun c");
    assert!(
        mixed.starts_with("2 ConsistentInstructionCasing: Command 'Run'") && mixed.ends_with("(lowercase)")
    );
    clean("from a\nrun b");
}

#[test]
fn duplicate_stage_name() {
    let expected = "2 DuplicateStageName: Duplicate stage name \"x\", stage names should be unique";
    assert_eq!(only("FROM a AS x\nFROM b AS x"), expected);
}

#[test]
fn reserved_stage_name() {
    for name in ["scratch", "context"] {
        let expected = format!(
            "1 ReservedStageName: Stage name should not use the same name as reserved stage \"{name}\""
        );
        assert_eq!(only(&format!("FROM a AS {name}")), expected);
    }
}

#[test]
fn json_args_recommended() {
    let expected = |name: &str| {
        format!(
            "2 JSONArgsRecommended: JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
        )
    };
    assert_eq!(only("FROM a\nCMD b"), expected("CMD"));
    assert_eq!(only("FROM a\nENTRYPOINT b"), expected("ENTRYPOINT"));
    clean("FROM a\nCMD [\"b\"]");
    clean("FROM a AS x\nSHELL [\"/bin/bash\", \"-c\"]\nCMD b\nFROM x\nENTRYPOINT b");
}

#[test]
fn maintainer_deprecated() {
    let expected = "2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label";
    assert_eq!(only("FROM a\nMAINTAINER me"), expected);
}

#[test]
fn undefined_arg_in_from() {
    let found = found("ARG VERSION=1\nFROM a:${VERSON:-2}");
    assert_eq!(
        found,
        ["2 UndefinedArgInFrom: FROM argument 'VERSON' is not declared (did you mean VERSION?)"]
    );
    clean("ARG VERSION\nFROM a:${VERSION:-2}");
    clean("FROM a AS b\nFROM --platform=$BUILDPLATFORM a");
}

#[test]
fn workdir_relative_path() {
    let expected =
        "2 WorkdirRelativePath: Relative workdir \"b\" can have unexpected results if the base image changes";
    assert_eq!(only("FROM a\nWORKDIR b\nWORKDIR c"), expected);
    clean("FROM a AS x\nWORKDIR /b\nWORKDIR c\nFROM x\nWORKDIR d");
}

#[test]
fn undefined_var() {
    let expected = "3 UndefinedVar: Usage of undefined variable '$VERSON' (did you mean $VERSION?)";
    assert_eq!(only("FROM a\nENV VERSION=1\nCOPY $VERSON /x"), expected);
    assert_eq!(only("FROM a\nARG X=$NONE"), "2 UndefinedVar: Usage of undefined variable '$NONE'");
    assert_eq!(only("FROM a\nCOPY <<E /x\n$NONE\nE"), "2 UndefinedVar: Usage of undefined variable '$NONE'");
    clean("FROM a\nENV X=$FROM_BASE PATH=$PATH:/b\nARG NO_VALUE\nCOPY $NO_VALUE$X /x\nRUN $NONE");
    clean("FROM a AS b\nENV X=1\nFROM b\nENV Y=$X");
    clean("FROM unknown\nENV X=$MAYBE_OF_THE_BASE");
}

#[test]
fn multiple_instructions_disallowed() {
    for name in ["CMD", "ENTRYPOINT"] {
        let expected = format!(
            "2 MultipleInstructionsDisallowed: Multiple {name} instructions should not be used in the same stage because only the last one will be used"
        );
        assert_eq!(only(&format!("FROM a\n{name} [\"b\"]\n{name} [\"c\"]")), expected);
    }
    assert_eq!(found("FROM a\nHEALTHCHECK NONE\nHEALTHCHECK NONE\nHEALTHCHECK NONE").len(), 2);
    clean("FROM a AS x\nCMD [\"b\"]\nFROM x\nCMD [\"c\"]");
}

#[test]
fn legacy_key_value_format() {
    for name in ["ENV", "LABEL"] {
        let expected = format!(
            "2 LegacyKeyValueFormat: \"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
        );
        assert_eq!(only(&format!("FROM a\n{name} b c=d")), expected);
        clean(&format!("FROM a\n{name} b=c d=e"));
    }
}

#[test]
fn redundant_target_platform() {
    let expected = "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    assert_eq!(only("FROM --platform=$TARGETPLATFORM a"), expected);
    clean("FROM --platform=$BUILDPLATFORM a");
}

#[test]
fn secrets_used_in_arg_or_env() {
    for name in ["API_KEY", "password", "GITHUB_TOKEN", "AUTH"] {
        let expected = |instruction: &str| {
            format!(
                "2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data ({instruction} \"{name}\")"
            )
        };
        assert_eq!(only(&format!("FROM a\nARG {name}")), expected("ARG"));
        assert_eq!(only(&format!("FROM a\nENV {name}=1")), expected("ENV"));
    }
    clean("FROM a\nARG KEYBOARD=1 PUBLIC_KEY=1 TOKEN_FILE=1 AUTHOR=1");
}

#[test]
fn invalid_default_arg_in_from() {
    let detail = "Default value for ARG busybox:$TAG results in empty or invalid base image name";
    assert_eq!(only("ARG TAG\nFROM busybox:$TAG"), format!("2 InvalidDefaultArgInFrom: {detail}"));
    let given = with("ARG TAG\nFROM busybox:$TAG", None, &[("TAG", "1")]);
    assert_eq!(lines(&given).len(), 1, "the default counts");
    clean("ARG TAG=1\nFROM busybox:$TAG");
}

#[test]
fn from_platform_flag_const_disallowed() {
    let expected = "1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\"";
    assert_eq!(only("FROM --platform=linux/arm64 a"), expected);
    clean("FROM --platform=linux/arm64 a AS build_arm64");
}

#[test]
fn copy_ignored_file() {
    let find = |text: &str, ignore: &str| lines(&with(text, Some(ignore), &[]));
    let expected = |command: &str, file: &str| {
        format!(
            "2 CopyIgnoredFile: Attempting to {command} file \"{file}\" that is excluded by .dockerignore"
        )
    };
    assert_eq!(find("FROM a\nCOPY ./x/y /b", "x\n"), [expected("Copy", "x/y")]);
    assert_eq!(find("FROM a\nADD x /b", "x\n"), [expected("Add", "x")]);
    assert_eq!(find("FROM a\nCOPY . /b", "*\n"), [expected("Copy", ".")]);
    for (text, ignore) in [
        ("FROM a\nCOPY x /b", "*\n!y\n"),
        ("FROM a\nCOPY . /b", "x\n"),
        ("FROM a AS s\nFROM b\nCOPY --from=s x /b", "x\n"),
        ("FROM a\nADD https://h/x /b", "**/x\n"),
    ] {
        assert_eq!(find(text, ignore), [""; 0], "{text}");
    }
}

#[test]
fn invalid_definition_description_is_asked_for() {
    let text =
        "# bar this is wrong\nARG foo=1\n\n# base is right\nFROM a AS base\n# about something else\n\nARG x";
    clean(text);
    let asked = format!("# check=experimental=all\n{text}");
    let expected =
        "3 InvalidDefinitionDescription: Comment for ARG should follow the format: `# foo <description>`";
    assert_eq!(found(&asked), [expected]);
}

#[test]
fn expose_proto_casing() {
    let expected = "2 ExposeProtoCasing: Defined protocol '80/TcP' in EXPOSE instruction should be lowercase";
    assert_eq!(only("FROM a\nEXPOSE 80/TcP 81/udp"), expected);
}

#[test]
fn expose_invalid_format() {
    let expected = "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'";
    assert_eq!(only("FROM a\nEXPOSE 127.0.0.1:80:80 81"), expected);
}

#[test]
fn the_directive_skips_rules_and_makes_findings_errors() {
    let text = "FROM a AS B\nMAINTAINER me";
    let with_directive = |value: &str| with(&format!("# check={value}\n{text}"), None, &[]);
    assert_eq!(with_directive("skip=StageNameCasing, MaintainerDeprecated").findings, []);
    assert_eq!(with_directive("skip=all;error=true"), Findings { findings: Vec::new(), are_errors: true });
    assert_eq!(with_directive("skip=StageNameCasing").findings.len(), 1);
    let argument = with(text, None, &[("BUILDKIT_DOCKERFILE_CHECK", "skip=all")]);
    assert_eq!(argument.findings, []);
    for wrong in ["skip", "error=maybe", "sikp=all"] {
        assert!(CheckOptions::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_comment_above_an_instruction_skips_rules_there() {
    let text =
        "FROM a\n# check=skip=SecretsUsedInArgOrEnv\nENV KEY=1\nENV TOKEN=1\n# check=skip=all\n\nENV AUTH=1";
    let found = found(text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("4 ") && found[1].starts_with("7 "), "an empty line ends it: {found:?}");
}

#[test]
fn there_are_twenty_one_rules_each_with_its_page() {
    assert_eq!(Rule::ALL.len(), 21);
    assert_eq!(
        Rule::JSONArgsRecommended.url(),
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    );
}
