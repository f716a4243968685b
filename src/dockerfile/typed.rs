//! Statements to typed instructions: every instruction, every flag, and what each asks of its arguments.

use super::error::{ParseError, Position, Problem};
use super::flags::{At, Flags};
use super::heredoc::Heredoc;
use super::instruction::{
    Add, ArgDeclaration, CommandLine, Copy, Healthcheck, HealthcheckCommand, InlineFile, Instruction,
    KeyValue, Located, Network, Onbuild, Run, RunCommand, Security, Sources,
};
use super::mount::{Device, MountSpec};
use super::statement::Statement;
use super::words::{Json, at_spaces, json_strings, with_quotes};
use crate::model::nearest;

/// All keywords, for the nearest to an unknown one.
pub(super) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The statement as an instruction, with its place.
pub(super) fn located(statement: &Statement, file: &str) -> Result<Located, ParseError> {
    let instruction = instruction(statement).map_err(|(position, problem)| ParseError {
        file: file.to_owned(),
        position,
        problem,
    })?;
    Ok(Located { span: statement.span(), text: statement.line.text.trim().to_owned(), instruction })
}

fn instruction(statement: &Statement) -> At<Instruction> {
    Ok(match statement.name().as_str() {
        "ADD" => Instruction::Add(add(statement)?),
        "ARG" => Instruction::Arg(arg(statement)?),
        "CMD" => Instruction::Cmd(plain_command(statement, "CMD")?),
        "COPY" => Instruction::Copy(copy(statement)?),
        "ENTRYPOINT" => Instruction::Entrypoint(plain_command(statement, "ENTRYPOINT")?),
        "ENV" => Instruction::Env(key_values(statement, "ENV")?),
        "EXPOSE" => Instruction::Expose(expose(statement)?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(statement)?),
        "LABEL" => Instruction::Label(key_values(statement, "LABEL")?),
        "MAINTAINER" => Instruction::Maintainer(one_text(statement, "MAINTAINER")?),
        "ONBUILD" => Instruction::Onbuild(onbuild(statement)?),
        "RUN" => Instruction::Run(run(statement)?),
        "SHELL" => Instruction::Shell(shell(statement)?),
        "STOPSIGNAL" => Instruction::Stopsignal(one_text(statement, "STOPSIGNAL")?),
        "USER" => Instruction::User(one_text(statement, "USER")?),
        "VOLUME" => Instruction::Volume(volume(statement)?),
        "WORKDIR" => Instruction::Workdir(one_text(statement, "WORKDIR")?),
        _ => {
            let name = statement.keyword.clone();
            let similar = nearest(&name, KEYWORDS).map(str::to_owned);
            return Err((statement.line.position(0), Problem::UnknownInstruction { name, nearest: similar }));
        }
    })
}

/// Where the arguments begin.
pub(super) fn arguments_at(statement: &Statement) -> Position {
    statement.line.position(statement.rest_offset)
}

fn needs<T>(statement: &Statement, instruction: &'static str, needs: &'static str) -> At<T> {
    Err((arguments_at(statement), Problem::Arguments { instruction, needs }))
}

fn no_flags(statement: &Statement, instruction: &'static str) -> At<()> {
    Flags::new(statement, instruction).end()
}

fn one_text(statement: &Statement, instruction: &'static str) -> At<String> {
    no_flags(statement, instruction)?;
    if statement.rest.is_empty() {
        return needs(statement, instruction, "exactly one argument");
    }
    Ok(statement.rest.clone())
}

fn command_line(rest: &str, statement: &Statement, instruction: &'static str) -> At<CommandLine> {
    match json_strings(rest) {
        Some(Json::Strings(strings)) => Ok(CommandLine::Exec(strings)),
        Some(Json::NotStrings) => Err((arguments_at(statement), Problem::JsonNotStrings(instruction))),
        None if rest.is_empty() => needs(statement, instruction, "a command"),
        None => Ok(CommandLine::Shell(rest.to_owned())),
    }
}

fn plain_command(statement: &Statement, instruction: &'static str) -> At<CommandLine> {
    no_flags(statement, instruction)?;
    command_line(&statement.rest, statement, instruction)
}

fn list(statement: &Statement, instruction: &'static str) -> At<Vec<String>> {
    match json_strings(&statement.rest) {
        Some(Json::Strings(strings)) => Ok(strings),
        Some(Json::NotStrings) => Err((arguments_at(statement), Problem::JsonNotStrings(instruction))),
        None => Ok(at_spaces(&statement.rest)),
    }
}

fn run(statement: &Statement) -> At<Run> {
    let mut flags = Flags::new(statement, "RUN");
    let mut mounts = Vec::new();
    for (position, text) in flags.values("mount")? {
        mounts.push(MountSpec::parse(&text).map_err(|problem| (position, problem))?);
    }
    let mut devices = Vec::new();
    for (position, text) in flags.values("device")? {
        devices.push(Device::parse(&text).map_err(|problem| (position, problem))?);
    }
    let wrong = |flag, value, allowed: &str| Problem::FlagValue { flag, value, allowed: allowed.to_owned() };
    let network = match flags.value("network")? {
        None => Network::Default,
        Some((position, value)) => match value.as_str() {
            "default" => Network::Default,
            "none" => Network::None,
            "host" => Network::Host,
            _ => return Err((position, wrong("network", value, "it is `default`, `none` or `host`"))),
        },
    };
    let security = match flags.value("security")? {
        None => Security::Sandbox,
        Some((position, value)) => match value.as_str() {
            "sandbox" => Security::Sandbox,
            "insecure" => Security::Insecure,
            _ => return Err((position, wrong("security", value, "it is `sandbox` or `insecure`"))),
        },
    };
    flags.end()?;
    Ok(Run { command: run_command(statement)?, mounts, network, security, devices })
}

fn run_command(statement: &Statement) -> At<RunCommand> {
    let text = match command_line(&statement.rest, statement, "RUN")? {
        CommandLine::Exec(arguments) if arguments.is_empty() => return needs(statement, "RUN", "a command"),
        CommandLine::Exec(arguments) => return Ok(RunCommand::Exec(arguments)),
        CommandLine::Shell(text) => text,
    };
    match statement.heredocs.first() {
        None => Ok(RunCommand::Shell(text)),
        Some(heredoc) if Heredoc::parse(&text).is_some() => {
            let content = heredoc.content();
            if !content.starts_with("#!") {
                return Ok(RunCommand::Shell(content));
            }
            Ok(RunCommand::Script { name: file_name(statement, &heredoc.name)?, content })
        }
        Some(_) => Ok(RunCommand::Shell(with_bodies(&text, &statement.heredocs))),
    }
}

/// The delimiter of a heredoc as the name of a file.
fn file_name(statement: &Statement, name: &str) -> At<String> {
    if name.contains('/') || name == "." || name == ".." {
        return Err((arguments_at(statement), Problem::HeredocName(name.to_owned())));
    }
    Ok(name.to_owned())
}

/// A line with its heredocs below, as a shell reads them.
fn with_bodies(text: &str, heredocs: &[Heredoc]) -> String {
    let mut whole = text.to_owned();
    for heredoc in heredocs {
        whole.push('\n');
        whole.push_str(&heredoc.body);
        whole.push_str(&heredoc.name);
    }
    whole
}

fn sources(statement: &Statement, instruction: &'static str) -> At<Sources> {
    let mut paths = list(statement, instruction)?;
    if paths.len() < 2 {
        return needs(statement, instruction, "at least two arguments: sources, and the destination last");
    }
    let destination = paths.pop().unwrap_or_default();
    if json_strings(&statement.rest).is_some() {
        return Ok(Sources { paths, inline: Vec::new(), destination });
    }
    if Heredoc::parse(&destination).is_some() {
        return Err((arguments_at(statement), Problem::HeredocDestination(instruction)));
    }
    let mut inline = Vec::new();
    let mut kept = Vec::new();
    for path in paths {
        let Some(announced) = Heredoc::parse(&path) else {
            kept.push(path);
            continue;
        };
        if let Some(heredoc) = statement.heredocs.iter().find(|heredoc| heredoc.name == announced.name) {
            let name = file_name(statement, &announced.name)?;
            inline.push(InlineFile { name, content: heredoc.content(), expand: announced.expand });
        }
    }
    Ok(Sources { paths: kept, inline, destination })
}

fn copy(statement: &Statement) -> At<Copy> {
    let mut flags = Flags::new(statement, "COPY");
    let from = flags.value("from")?;
    if let Some((position, value)) = &from
        && value.contains('$')
    {
        return Err((*position, Problem::VariableInFrom { place: "COPY --from", value: value.clone() }));
    }
    let mut copy = Copy {
        from: from.map(|(_, value)| value),
        chown: flags.text("chown")?,
        chmod: flags.text("chmod")?,
        link: flags.switch("link")?.unwrap_or(false),
        parents: flags.switch("parents")?.unwrap_or(false),
        exclude: flags.values("exclude")?.into_iter().map(|(_, value)| value).collect(),
        ..Copy::default()
    };
    flags.end()?;
    copy.sources = sources(statement, "COPY")?;
    Ok(copy)
}

fn add(statement: &Statement) -> At<Add> {
    let mut flags = Flags::new(statement, "ADD");
    let mut add = Add {
        chown: flags.text("chown")?,
        chmod: flags.text("chmod")?,
        link: flags.switch("link")?.unwrap_or(false),
        keep_git_dir: flags.switch("keep-git-dir")?,
        checksum: flags.text("checksum")?,
        unpack: flags.switch("unpack")?,
        exclude: flags.values("exclude")?.into_iter().map(|(_, value)| value).collect(),
        ..Add::default()
    };
    flags.end()?;
    add.sources = sources(statement, "ADD")?;
    Ok(add)
}

fn arg(statement: &Statement) -> At<Vec<ArgDeclaration>> {
    no_flags(statement, "ARG")?;
    let words = with_quotes(&statement.rest, statement.escape);
    if words.is_empty() {
        return needs(statement, "ARG", "at least one name");
    }
    let declaration = |(offset, word): (usize, String)| match word.split_once('=') {
        Some(("", _)) => {
            Err((statement.line.position(statement.rest_offset + offset), Problem::BlankName("ARG")))
        }
        Some((name, value)) => Ok(ArgDeclaration { name: name.to_owned(), default: Some(value.to_owned()) }),
        None => Ok(ArgDeclaration { name: word, default: None }),
    };
    words.into_iter().map(declaration).collect()
}

fn key_values(statement: &Statement, instruction: &'static str) -> At<Vec<KeyValue>> {
    no_flags(statement, instruction)?;
    let words = with_quotes(&statement.rest, statement.escape);
    let Some((_, first)) = words.first() else {
        return needs(statement, instruction, "at least one name=value");
    };
    if !first.contains('=') {
        let is_space = |c: char| matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ');
        return match statement.rest.split_once(is_space) {
            None => needs(statement, instruction, "a value: name=value"),
            Some((key, value)) => {
                let value = value.trim_start_matches(is_space).to_owned();
                Ok(vec![KeyValue { key: key.to_owned(), value }])
            }
        };
    }
    let pair = |(offset, word): (usize, String)| {
        let position = statement.line.position(statement.rest_offset + offset);
        match word.split_once('=') {
            Some(("", _)) => Err((position, Problem::BlankName(instruction))),
            Some((key, value)) => Ok(KeyValue { key: key.to_owned(), value: value.to_owned() }),
            None => Err((position, Problem::NotNameValue { instruction, word })),
        }
    };
    words.into_iter().map(pair).collect()
}

fn expose(statement: &Statement) -> At<Vec<String>> {
    no_flags(statement, "EXPOSE")?;
    let ports = at_spaces(&statement.rest);
    if ports.is_empty() {
        return needs(statement, "EXPOSE", "at least one port");
    }
    for port in ports.iter().filter(|port| !port.contains(['$', '"', '\'', '\\', '`'])) {
        super::exposed_ports(port).map_err(|error| (arguments_at(statement), Problem::Port(error)))?;
    }
    Ok(ports)
}

fn volume(statement: &Statement) -> At<Vec<String>> {
    no_flags(statement, "VOLUME")?;
    let paths: Vec<String> = list(statement, "VOLUME")?.iter().map(|path| path.trim().to_owned()).collect();
    if paths.is_empty() || paths.iter().any(String::is_empty) {
        return needs(statement, "VOLUME", "at least one path, none of them empty");
    }
    Ok(paths)
}

fn shell(statement: &Statement) -> At<Vec<String>> {
    no_flags(statement, "SHELL")?;
    match json_strings(&statement.rest) {
        Some(Json::Strings(words)) if words.is_empty() => needs(statement, "SHELL", "at least one word"),
        Some(Json::Strings(words)) => Ok(words),
        Some(Json::NotStrings) => Err((arguments_at(statement), Problem::JsonNotStrings("SHELL"))),
        None => Err((arguments_at(statement), Problem::ShellNotJson)),
    }
}

fn healthcheck(statement: &Statement) -> At<Healthcheck> {
    let mut flags = Flags::new(statement, "HEALTHCHECK");
    let (kind, rest) = statement.rest.split_once(char::is_whitespace).unwrap_or((&statement.rest, ""));
    match kind.to_ascii_uppercase().as_str() {
        "" => return needs(statement, "HEALTHCHECK", "`CMD` and a command, or `NONE`"),
        "NONE" => {
            flags.end()?;
            if !rest.trim().is_empty() {
                return needs(statement, "HEALTHCHECK NONE", "no arguments");
            }
            return Ok(Healthcheck::None);
        }
        "CMD" => {}
        _ => return Err((arguments_at(statement), Problem::HealthcheckKind(kind.to_owned()))),
    }
    let interval = flags.duration("interval")?;
    let timeout = flags.duration("timeout")?;
    let start_period = flags.duration("start-period")?;
    let start_interval = flags.duration("start-interval")?;
    let retries = match flags.value("retries")? {
        None => None,
        Some((position, value)) => {
            let allowed = "it is a number, not negative".to_owned();
            let parsed = value.parse::<u32>().ok().filter(|retries| i32::try_from(*retries).is_ok());
            let wrong = Problem::FlagValue { flag: "retries", value, allowed };
            Some(parsed.ok_or((position, wrong))?).filter(|retries| *retries > 0)
        }
    };
    flags.end()?;
    let command = match command_line(rest.trim(), statement, "HEALTHCHECK CMD")? {
        CommandLine::Exec(words) if words.is_empty() => {
            return needs(statement, "HEALTHCHECK CMD", "a command");
        }
        command => command,
    };
    let check = HealthcheckCommand { command, interval, timeout, start_period, start_interval, retries };
    Ok(Healthcheck::Check(check))
}

fn onbuild(statement: &Statement) -> At<Onbuild> {
    no_flags(statement, "ONBUILD")?;
    if statement.rest.is_empty() {
        return needs(statement, "ONBUILD", "an instruction");
    }
    let trigger = statement.trigger();
    if let Some(name) = not_a_trigger(&trigger.name()) {
        return Err((trigger.line.position(0), Problem::OnbuildTrigger(name)));
    }
    let instruction = Box::new(instruction(&trigger)?);
    Ok(Onbuild { text: with_bodies(trigger.line.text.trim(), &trigger.heredocs), instruction })
}

/// The instructions that ONBUILD may not hold.
pub(super) fn not_a_trigger(name: &str) -> Option<&'static str> {
    ["ONBUILD", "FROM", "MAINTAINER"].into_iter().find(|forbidden| *forbidden == name)
}
