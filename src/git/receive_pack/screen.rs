//! Commands that nobody may give, whoever decides about the others.

use std::collections::BTreeMap;

use super::request::RawCommand;
use super::{Command, Limits};
use crate::git::Refs;
use crate::model::RefName;

/// Refs of our own, which no client sees.
const RESERVED: &str = "refs/hephy/";

/// The commands that are left to decide; the others go to `refuse`, with the reason.
pub(super) fn screen(
    raw: &[RawCommand],
    refs: &Refs,
    limits: &Limits,
    mut refuse: impl FnMut(&str, String),
) -> Vec<Command> {
    let mut times = BTreeMap::<&str, usize>::new();
    for command in raw {
        *times.entry(&command.name).or_default() += 1;
    }
    // What is there when all is accepted, for names of which one is a directory of another.
    let deleted = |name: &str| raw.iter().any(|command| command.new.is_none() && command.name == name);
    let created = raw.iter().filter(|command| command.new.is_some()).map(|command| command.name.as_str());
    let mut after: Vec<&str> =
        refs.keys().map(RefName::as_str).filter(|name| !deleted(name)).chain(created).collect();
    after.sort_unstable();
    after.dedup();
    let mut kept = Vec::new();
    for command in raw {
        let checked = if times.get(command.name.as_str()).is_some_and(|times| *times > 1) {
            Err("the push names this ref more than once".to_owned())
        } else if command.old.is_none() && command.new.is_some() && after.len() > limits.max_refs {
            Err(format!("the repository would have more than {} refs; delete some", limits.max_refs))
        } else {
            one(command, refs, &after)
        };
        match checked {
            Ok(command) => kept.push(command),
            Err(reason) => refuse(&command.name, reason),
        }
    }
    kept
}

fn one(command: &RawCommand, refs: &Refs, after: &[&str]) -> Result<Command, String> {
    let name: RefName = command.name.parse().map_err(|_| "not a valid ref name".to_owned())?;
    if command.name.starts_with(RESERVED) {
        return Err(format!("names below {RESERVED} are reserved"));
    }
    let current = refs.get(&name).copied();
    match (current, command.old, command.new) {
        (_, None, None) => return Err("there is nothing to delete".to_owned()),
        (None, Some(_), _) => return Err("the ref is gone; run `git fetch` and push again".to_owned()),
        (Some(id), old, _) if old != Some(id) => {
            return Err(format!("the ref is at {} meanwhile; run `git fetch` and push again", id.short()));
        }
        (_, _, None) => {}
        (_, _, Some(_)) => {
            if let Some(other) = conflicting(&command.name, after) {
                return Err(format!("{other} is in the way: a ref cannot be a directory of another"));
            }
        }
    }
    Ok(Command { name, old: command.old, new: command.new, commit: None })
}

/// A name that is a directory of `name`, or that `name` is a directory of.
fn conflicting<'a>(name: &str, sorted: &[&'a str]) -> Option<&'a str> {
    let below = format!("{name}/");
    let at = sorted.partition_point(|other| *other < below.as_str());
    let child = sorted.get(at).copied().filter(|other| other.starts_with(&below));
    let parent = || {
        let directories = name.match_indices('/').map(|(at, _)| name.split_at(at).0);
        directories
            .filter_map(|directory| sorted.binary_search(&directory).ok())
            .find_map(|at| sorted.get(at).copied())
    };
    child.or_else(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CommitId;

    fn id(digit: &str) -> CommitId {
        digit.repeat(40).parse().unwrap()
    }

    fn command(name: &str, old: Option<CommitId>, new: Option<CommitId>) -> RawCommand {
        RawCommand { name: name.to_owned(), old, new }
    }

    /// The reason of the refusal, if it is refused.
    fn refusal(commands: &[RawCommand]) -> Option<String> {
        let refs = Refs::from([
            (RefName::branch("main").unwrap(), id("1")),
            (RefName::branch("a/b").unwrap(), id("2")),
        ]);
        let mut reason = None;
        let kept = screen(commands, &refs, &Limits { max_refs: 3, ..Limits::default() }, |_, why| {
            reason = Some(why);
        });
        assert_eq!(kept.len() < commands.len(), reason.is_some());
        reason
    }

    #[test]
    fn creating_updating_and_deleting_what_is_as_said_is_left_to_decide() {
        let commands = [
            command("refs/heads/main", Some(id("1")), Some(id("3"))),
            command("refs/heads/a/b", Some(id("2")), None),
            command("refs/heads/a", None, Some(id("3"))),
            command("refs/tags/a", None, Some(id("3"))),
        ];
        assert_eq!(refusal(&commands), None);
    }

    #[test]
    fn names_that_are_none_or_not_free_are_refused() {
        for name in [
            "main",
            "refs/heads/../x",
            "refs/heads/a b",
            "refs/hephy/keep/x",
            "refs/heads/a",
            "refs/heads/main/x",
            "",
        ] {
            assert!(refusal(&[command(name, None, Some(id("3")))]).is_some(), "{name}");
        }
    }

    #[test]
    fn an_old_object_that_is_not_there_is_refused() {
        for (old, new) in
            [(None, Some(id("3"))), (Some(id("2")), Some(id("3"))), (Some(id("2")), None), (None, None)]
        {
            assert!(refusal(&[command("refs/heads/main", old, new)]).is_some(), "{old:?} {new:?}");
        }
        assert!(refusal(&[command("refs/heads/x", Some(id("2")), Some(id("3")))]).is_some());
    }

    #[test]
    fn one_ref_named_twice_and_one_ref_too_many_are_refused() {
        let twice = command("refs/heads/x", None, Some(id("3")));
        assert!(refusal(&[twice, command("refs/heads/x", None, Some(id("4")))]).is_some());
        let (x, y) = ("refs/heads/x", "refs/heads/y");
        assert!(refusal(&[command(x, None, Some(id("3"))), command(y, None, Some(id("3")))]).is_some());
    }
}
