//! One test per rule of the language, on whole files.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Dockerfile {
    parse(text.as_bytes(), "Dockerfile").unwrap()
}

/// The only instruction after `FROM a`.
fn one(text: &str) -> Instruction {
    let mut stage = parsed(&format!("FROM a\n{text}")).stages.remove(0);
    assert_eq!(stage.instructions.len(), 1, "{text}");
    stage.instructions.remove(0).instruction
}

fn error(text: &str) -> String {
    parse(text.as_bytes(), "Dockerfile").unwrap_err().to_string()
}

/// The error of an instruction on line 2.
fn error_of(text: &str) -> String {
    error(&format!("FROM a\n{text}"))
}

fn expanded(text: &str) -> Instruction {
    let lookup = |name: &str| match name {
        "A" => Some("old".to_owned()),
        "TWO" => Some("1 2".to_owned()),
        _ => None,
    };
    one(text).expand(&Expander::new(Escape::Backslash, &lookup)).unwrap()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<KeyValue> {
    let pair = |(key, value): &(&str, &str)| KeyValue { key: (*key).to_owned(), value: (*value).to_owned() };
    pairs.iter().map(pair).collect()
}

#[test]
fn a_whole_file_has_its_directives_arguments_and_stages() {
    let file = parsed(
        "# syntax=docker/dockerfile:1\n# escape=`\nARG V=1\nFROM --platform=$BUILDPLATFORM base:$V AS Build\n\
         RUN make `\n  all\nFROM scratch\nCOPY --from=build /x /x\n",
    );
    assert_eq!(file.syntax.as_deref(), Some("docker/dockerfile:1"));
    assert_eq!(file.escape, Escape::Backtick);
    assert_eq!(file.global_args.len(), 1);
    let build = &file.stages[0];
    assert_eq!((build.base.as_str(), build.label().as_str()), ("base:$V", "build"));
    assert_eq!(build.platform.as_deref(), Some("$BUILDPLATFORM"));
    assert_eq!(build.instructions[0].span, Span { start: Position { line: 5, column: 1 }, end_line: 6 });
    assert_eq!(build.instructions[0].text, "RUN make   all");
    assert_eq!(file.stages[1].label(), "1");
}

#[test]
fn instructions_may_be_in_any_case() {
    assert_eq!(one("wOrKdIr /a"), Instruction::Workdir("/a".to_owned()));
}

#[test]
fn an_unknown_instruction_names_its_place_and_the_nearest() {
    assert_eq!(error_of("  RUM make"), "Dockerfile:2:3: unknown instruction `RUM`, did you mean `RUN`?");
    assert_eq!(error_of("FROBNICATE x"), "Dockerfile:2:1: unknown instruction `FROBNICATE`");
}

#[test]
fn an_unknown_flag_names_its_place_and_the_nearest() {
    assert_eq!(
        error_of("COPY \\\n  --form=b / /"),
        "Dockerfile:3:3: COPY has no flag `--form`, did you mean `--from`?"
    );
    assert_eq!(error_of("ENV --x A=b"), "Dockerfile:2:5: ENV has no flag `--x`");
}

#[test]
fn a_flag_twice_or_without_its_value_is_an_error() {
    assert_eq!(error_of("COPY --from=a --from=b / /"), "Dockerfile:2:15: the flag `--from` is given twice");
    assert_eq!(error_of("COPY --from / /"), "Dockerfile:2:6: the flag `--from` needs a value: `--from=…`");
    assert!(error_of("COPY --link=maybe / /").contains("`maybe` is not a value of `--link`"));
}

#[test]
fn only_arg_may_stand_before_from() {
    assert_eq!(
        error("ENV A=b\nFROM a"),
        "Dockerfile:1:1: ENV before the first FROM: only ARG may stand there"
    );
    assert_eq!(error("ARG A"), "Dockerfile:1:1: the file has no FROM");
}

#[test]
fn from_takes_one_or_three_words() {
    assert!(error("FROM").contains("FROM needs"));
    assert!(error("FROM a b").contains("FROM needs"));
    assert!(error("FROM a IS b").contains("FROM needs"));
    assert_eq!(parsed("from a aS b").stages[0].name.as_deref(), Some("b"));
}

#[test]
fn stage_names_are_lower_cased_and_checked() {
    assert_eq!(parsed("FROM a AS B-1_x.y").stages[0].name.as_deref(), Some("b-1_x.y"));
    for name in ["1a", "-a", "a/b", "a:b", "é"] {
        assert!(error(&format!("FROM a AS {name}")).contains("stage name"), "{name}");
    }
}

#[test]
fn of_a_stage_name_given_twice_the_later_is_meant_from_there_on() {
    let file = parsed("FROM a AS x\nFROM b\nCOPY --from=x / /\nFROM c AS X\nFROM d\nCOPY --from=X / /");
    assert_eq!(file.stage_before(1, "x"), Some(0));
    assert_eq!(file.stage_before(3, "X"), Some(2));
    assert_eq!(file.stage_index("x"), Some(2));
}

#[test]
fn from_means_a_stage_by_name_and_copy_also_by_number() {
    let file = parsed("FROM a AS x\nFROM 0\nFROM X\nCOPY --from=0 / /\nRUN --mount=from=1,target=/m true");
    assert_eq!(file.base_stage(1, "0"), None);
    assert_eq!(file.dependencies(2, "X", &[]), [0, 1]);
    assert_eq!(file.stage_index("2"), Some(2));
    assert_eq!(file.stage_index("3"), None);
    assert_eq!(file.stage_before(0, "x"), None);
}

#[test]
fn env_has_a_new_and_an_old_form() {
    assert_eq!(one("ENV A=1 B='2 3'"), Instruction::Env(pairs(&[("A", "1"), ("B", "'2 3'")])));
    assert_eq!(one("ENV A  1 = 2"), Instruction::Env(pairs(&[("A", "1 = 2")])));
    assert_eq!(error_of("ENV A=1 B"), "Dockerfile:2:9: ENV: `B` is not of the form name=value");
    assert_eq!(error_of("ENV A"), "Dockerfile:2:5: ENV needs a value: name=value");
    assert_eq!(error_of("ENV =1"), "Dockerfile:2:5: ENV has a name that is blank");
}

#[test]
fn one_env_sees_the_values_from_before_it() {
    assert_eq!(expanded("ENV A=new B=$A"), Instruction::Env(pairs(&[("A", "new"), ("B", "old")])));
}

#[test]
fn label_keys_may_be_quoted_and_take_variables() {
    assert_eq!(
        expanded("LABEL \"a b\"=\"c $A\" d=e\\ f"),
        Instruction::Label(pairs(&[("a b", "c old"), ("d", "e f")]))
    );
}

#[test]
fn variables_are_replaced_in_these_instructions() {
    assert_eq!(expanded("WORKDIR /$A"), Instruction::Workdir("/old".to_owned()));
    assert_eq!(expanded("USER ${A}:x"), Instruction::User("old:x".to_owned()));
    assert_eq!(expanded("STOPSIGNAL $A"), Instruction::Stopsignal("old".to_owned()));
    assert_eq!(expanded("VOLUME /$A /b"), Instruction::Volume(strings(&["/old", "/b"])));
    let Instruction::Copy(copy) = expanded("COPY --chown=$A --chmod=$A --exclude=$A $A /$A/") else {
        panic!("not a COPY");
    };
    assert_eq!((copy.chown.as_deref(), copy.chmod.as_deref()), (Some("old"), Some("old")));
    assert_eq!(
        (copy.exclude, copy.sources.paths, copy.sources.destination),
        (strings(&["$A"]), strings(&["old"]), "/old/".to_owned())
    );
    let Instruction::Add(add) = expanded("ADD --checksum=$A $A $A") else { panic!("not an ADD") };
    assert_eq!((add.checksum.as_deref(), add.sources.destination.as_str()), (Some("old"), "old"));
}

#[test]
fn variables_are_not_replaced_in_commands() {
    for text in
        ["RUN echo $A", "CMD echo $A", "ENTRYPOINT echo $A", "HEALTHCHECK CMD echo $A", "SHELL [\"$A\"]"]
    {
        assert_eq!(expanded(text), one(text), "{text}");
    }
}

#[test]
fn exposed_words_split_after_expansion() {
    assert_eq!(expanded("EXPOSE $TWO 80"), Instruction::Expose(strings(&["1", "2", "80"])));
    assert!(error_of("EXPOSE 80/icmp").starts_with("Dockerfile:2:8: `80/icmp` is not a port"));
    assert!(error_of("EXPOSE").contains("at least one port"));
}

#[test]
fn arg_declares_names_with_and_without_default() {
    let arg = |name: &str, default: Option<&str>| ArgDeclaration {
        name: name.to_owned(),
        default: default.map(str::to_owned),
    };
    assert_eq!(
        one("ARG A B= C='x y'"),
        Instruction::Arg(vec![arg("A", None), arg("B", Some("")), arg("C", Some("'x y'"))])
    );
    assert!(error_of("ARG =x").contains("blank"));
    assert!(error_of("ARG").contains("at least one name"));
}

#[test]
fn commands_have_a_shell_and_an_exec_form() {
    assert_eq!(one("CMD echo  a"), Instruction::Cmd(CommandLine::Shell("echo  a".to_owned())));
    assert_eq!(one("CMD [\"a\", \"b c\"]"), Instruction::Cmd(CommandLine::Exec(strings(&["a", "b c"]))));
    assert_eq!(one("CMD []"), Instruction::Cmd(CommandLine::Exec(Vec::new())));
    assert_eq!(one("ENTRYPOINT ['a']"), Instruction::Entrypoint(CommandLine::Shell("['a']".to_owned())));
    assert_eq!(error_of("CMD [\"a\", 1]"), "Dockerfile:2:5: CMD: a JSON array may hold strings only");
}

#[test]
fn run_has_mounts_network_security_and_devices() {
    let Instruction::Run(run) =
        one("RUN --mount=type=cache,target=/c --mount=type=secret,id=s --network=none --security=insecure \
         --device=vendor.com/gpu=all,required make")
    else {
        panic!("not a RUN");
    };
    assert_eq!((run.mounts.len(), run.network, run.security), (2, Network::None, Security::Insecure));
    assert_eq!(run.devices, [Device { name: "vendor.com/gpu=all".to_owned(), required: true }]);
    assert_eq!(run.command, RunCommand::Shell("make".to_owned()));
    assert!(error_of("RUN --network=bridge x").contains("`bridge` is not a value of `--network`"));
    assert!(error_of("RUN --security=none x").contains("`none` is not a value of `--security`"));
    assert_eq!(error_of("RUN"), "Dockerfile:2:4: RUN needs a command");
}

fn run_command(text: &str) -> RunCommand {
    match one(text) {
        Instruction::Run(run) => run.command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bare_heredoc_is_the_text_for_the_shell() {
    assert_eq!(run_command("RUN <<EOF\na\n$b\nEOF"), RunCommand::Shell("a\n$b\n".to_owned()));
    assert_eq!(run_command("RUN <<-EOF\n\ta\n\t\tb\n\tEOF"), RunCommand::Shell("a\nb\n".to_owned()));
}

#[test]
fn a_bare_heredoc_with_a_shebang_is_a_script() {
    let script = RunCommand::Script { name: "EOF".to_owned(), content: "#!/usr/bin/python3\nx\n".to_owned() };
    assert_eq!(run_command("RUN <<'EOF'\n#!/usr/bin/python3\nx\nEOF"), script);
}

#[test]
fn other_heredocs_are_read_by_the_shell_itself() {
    assert_eq!(
        run_command("RUN cat <<A > x && cat <<-B\na\nA\n\tb\nB"),
        RunCommand::Shell("cat <<A > x && cat <<-B\na\nA\n\tb\nB".to_owned())
    );
}

#[test]
fn copy_has_all_its_flags() {
    let Instruction::Copy(copy) =
        one("COPY --from=b --chown=1:2 --chmod=u+x --link --parents --exclude=*.a --exclude=*.b x y /z/")
    else {
        panic!("not a COPY");
    };
    assert_eq!(copy.from.as_deref(), Some("b"));
    assert_eq!((copy.chown.as_deref(), copy.chmod.as_deref()), (Some("1:2"), Some("u+x")));
    assert!(copy.link && copy.parents);
    assert_eq!(copy.exclude, ["*.a", "*.b"]);
    assert_eq!((copy.sources.paths, copy.sources.destination), (strings(&["x", "y"]), "/z/".to_owned()));
}

#[test]
fn add_has_all_its_flags() {
    let Instruction::Add(add) = one("ADD --checksum=sha256:0 --keep-git-dir=false --unpack https://x /z")
    else {
        panic!("not an ADD");
    };
    assert_eq!(
        (add.checksum.as_deref(), add.keep_git_dir, add.unpack),
        (Some("sha256:0"), Some(false), Some(true))
    );
    assert!(error_of("ADD --from=x a b").contains("ADD has no flag `--from`"));
}

#[test]
fn copy_needs_a_source_and_a_destination() {
    assert!(error_of("COPY a").contains("COPY needs at least two arguments"));
    assert!(error_of("COPY").contains("COPY needs at least two arguments"));
}

#[test]
fn copy_takes_a_json_array_for_paths_with_spaces() {
    let Instruction::Copy(copy) = one("COPY [\"a b\", \"/c d\"]") else { panic!("not a COPY") };
    assert_eq!((copy.sources.paths, copy.sources.destination), (strings(&["a b"]), "/c d".to_owned()));
}

#[test]
fn copy_from_takes_no_variable() {
    assert_eq!(
        error_of("COPY --from=$X a b"),
        "Dockerfile:2:6: COPY --from takes no variables: name a stage with `FROM $X AS name` and use the name"
    );
    assert!(error_of("RUN --mount=from=$X,target=/x a").contains("takes no variables"));
}

#[test]
fn copied_heredocs_expand_unless_their_delimiter_is_quoted() {
    let Instruction::Copy(copy) = expanded("COPY <<A <<'B' c /d/\n'$A'\nA\n$A\nB") else {
        panic!("not a COPY")
    };
    let contents: Vec<_> = copy.sources.inline.iter().map(|file| file.content.as_str()).collect();
    assert_eq!((contents, copy.sources.paths), (vec!["'old'\n", "$A\n"], strings(&["c"])));
    assert!(error_of("COPY a <<EOF\nEOF").contains("cannot have a heredoc as its destination"));
}

#[test]
fn a_heredoc_that_becomes_a_file_has_the_name_of_one() {
    for text in ["COPY <<../x /\n../x", "COPY <<'a/b' /\na/b", "RUN <<..\n#!/bin/sh\n.."] {
        assert!(error_of(text).contains("use a name without `/`"), "{text}");
    }
}

#[test]
fn a_destination_that_expands_to_nothing_is_an_error() {
    let lookup = |_: &str| None;
    let result = one("COPY a $X").expand(&Expander::new(Escape::Backslash, &lookup));
    assert_eq!(result, Err(ExpandError::Empty("$X".to_owned())));
}

#[test]
fn healthcheck_has_all_its_times() {
    let Instruction::Healthcheck(Healthcheck::Check(check)) = one(
        "HEALTHCHECK --interval=5m --timeout=3s --start-period=1m --start-interval=500ms --retries=4 CMD a b",
    ) else {
        panic!("not a HEALTHCHECK");
    };
    assert_eq!(check.interval, Some(Duration::from_mins(5)));
    assert_eq!(check.timeout, Some(Duration::from_secs(3)));
    assert_eq!(check.start_period, Some(Duration::from_mins(1)));
    assert_eq!(check.start_interval, Some(Duration::from_millis(500)));
    assert_eq!(check.retries, Some(4));
    assert_eq!(check.command, CommandLine::Shell("a b".to_owned()));
}

#[test]
fn healthcheck_none_takes_nothing_more() {
    assert_eq!(one("HEALTHCHECK none"), Instruction::Healthcheck(Healthcheck::None));
    assert!(error_of("HEALTHCHECK NONE x").contains("no arguments"));
    assert!(error_of("HEALTHCHECK curl x").contains("HEALTHCHECK is `CMD …` or `NONE`, not `curl`"));
    assert!(error_of("HEALTHCHECK CMD").contains("needs a command"));
    assert!(error_of("HEALTHCHECK --interval=1us CMD x").contains("at least 1ms"));
    assert!(error_of("HEALTHCHECK --retries=-1 CMD x").contains("not negative"));
}

#[test]
fn shell_takes_a_json_array_only() {
    assert_eq!(one("SHELL [\"/bin/bash\", \"-c\"]"), Instruction::Shell(strings(&["/bin/bash", "-c"])));
    assert!(error_of("SHELL /bin/bash").contains("SHELL needs a JSON array"));
    assert!(error_of("SHELL []").contains("at least one word"));
}

#[test]
fn volume_takes_words_or_an_array() {
    assert_eq!(one("VOLUME /a  /b"), Instruction::Volume(strings(&["/a", "/b"])));
    assert_eq!(one("VOLUME [\"/a b\"]"), Instruction::Volume(strings(&["/a b"])));
    assert!(error_of("VOLUME [\"\"]").contains("none of them empty"));
}

#[test]
fn texts_are_taken_whole() {
    assert_eq!(one("MAINTAINER A B <c>"), Instruction::Maintainer("A B <c>".to_owned()));
    assert_eq!(one("WORKDIR /a b"), Instruction::Workdir("/a b".to_owned()));
    assert!(error_of("USER").contains("USER needs exactly one argument"));
}

#[test]
fn onbuild_keeps_its_trigger_as_text_and_understood() {
    let Instruction::Onbuild(onbuild) = one("ONBUILD run <<EOF\nx\nEOF") else { panic!("not an ONBUILD") };
    assert_eq!(onbuild.text, "run <<EOF\nx\nEOF");
    let again = parse_trigger(&onbuild.text, "ONBUILD of base").unwrap();
    assert_eq!(again.instruction, *onbuild.instruction);
}

#[test]
fn onbuild_of_onbuild_from_and_maintainer_is_an_error() {
    for name in ["ONBUILD", "FROM", "MAINTAINER"] {
        assert!(error_of(&format!("ONBUILD {name} x")).contains("may not be an ONBUILD trigger"), "{name}");
        assert!(parse_trigger(&format!("{name} x"), "base").is_err(), "{name}");
    }
    assert_eq!(
        error_of("ONBUILD COPY --form=x a b"),
        "Dockerfile:2:14: COPY has no flag `--form`, did you mean `--from`?"
    );
    assert!(parse_trigger("RUN a\nRUN b", "base").is_err());
}

#[test]
fn an_empty_continuation_line_is_remembered() {
    let file = parsed("FROM a\nRUN b \\\n\n c");
    assert_eq!(file.empty_continuations[0].line, 3);
}

#[test]
fn a_binary_file_is_refused_by_its_line() {
    let blob = [b"FROM a\nRUN b\n".as_slice(), &[0x7f, b'E', b'L', b'F', 0, 0xff, 0xfe]].concat();
    let error = parse(&blob, "Dockerfile").unwrap_err();
    assert_eq!(error.position.line, 3);
}

#[test]
fn a_line_of_ten_megabytes_is_refused() {
    let text = format!("FROM a\nRUN {}", "x".repeat(10 << 20));
    assert!(error(&text).contains("over the limit"));
    let text = format!("FROM a\nRUN {}", "x".repeat(2 << 20));
    assert!(error(&text).starts_with("Dockerfile:2:1: the line is over the limit"));
}

fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        prop::sample::select(vec![
            "FROM a\n",
            "FROM b AS c\n",
            "RUN ",
            "COPY ",
            "ADD ",
            "ONBUILD ",
            "ENV ",
            "ARG ",
            "LABEL ",
            "EXPOSE ",
            "HEALTHCHECK ",
            "CMD ",
            "SHELL ",
            "VOLUME ",
            "--from=",
            "--mount=",
            "type=cache,",
            "--",
            "<<EOF",
            "<<-'E F'",
            "\nEOF\n",
            "\\\n",
            "\n",
            " ",
            "[\"",
            "\"]",
            "\"",
            "'",
            "$",
            "${a",
            ":-",
            "}",
            "#",
            "=",
            "# escape=`\n",
            "`",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    prop::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat())
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _unused = parse(&bytes, "Dockerfile");
        let _unused = IgnoreFile::parse(&bytes, ".dockerignore");
    }

    #[test]
    fn no_text_makes_parser_or_expansion_panic(text in fragments()) {
        let lookup = |name: &str| Some(format!("{name} '\" $\\"));
        let expander = Expander::new(Escape::Backslash, &lookup);
        let _unused = (expander.word(&text), expander.words(&text), expander.heredoc(&text));
        if let Ok(file) = parse(text.as_bytes(), "Dockerfile") {
            for located in file.stages.iter().flat_map(|stage| &stage.instructions) {
                let _unused = located.instruction.expand(&expander);
            }
        }
    }

    #[test]
    fn errors_are_inside_the_file(text in fragments()) {
        if let Err(error) = parse(text.as_bytes(), "Dockerfile") {
            prop_assert!(error.position.line >= 1 && error.position.line <= text.lines().count().max(1));
            prop_assert!(error.position.column >= 1);
        }
    }
}
