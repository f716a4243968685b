//! What kaniko's users write: its spellings, and those of its flags that are about how kaniko works.
//!
//! A flag does what kaniko documents. Where that is what hephy does in any case it is taken and changes nothing; where it
//! cannot be, it is an error that says why.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Command};

use super::BuildArguments;
use crate::build::ImageFormat;

/// kaniko's flags that hephy has no other name for.
#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct KanikoArguments {
    /// An annotation of the manifest; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// The types of manifest, configuration and layers
    #[arg(long, value_enum, default_value = "oci")]
    pub image_format: ImageFormat,
    /// Write REPOSITORY@DIGEST of each destination to a file
    #[arg(long, value_name = "FILE")]
    pub image_name_with_digest_file: Option<PathBuf>,
    /// Write REPOSITORY:TAG@DIGEST of each destination to a file
    #[arg(long, value_name = "FILE")]
    pub image_name_tag_with_digest_file: Option<PathBuf>,
    /// Write the time before each line of progress
    #[arg(long)]
    pub log_timestamp: bool,

    /// Take it for success if a registry lets no tag be moved, and the tag is another image's
    #[arg(long)]
    pub push_ignore_immutable_tag_errors: bool,
    /// A directory with layers of base images, which are not fetched then, as `hephy cache warm` fills it
    #[arg(long, value_name = "DIRECTORY")]
    pub cache_dir: Option<PathBuf>,

    /// `--data`, where that is not given
    #[arg(long, hide = true, env = "KANIKO_DIR")]
    pub kaniko_dir: Option<PathBuf>,
    /// Taken: what is fetched is fetched again until it is whole, and unpacking it again changes nothing
    #[arg(long, hide = true)]
    pub image_fs_extract_retry: Option<u32>,
    /// How changes are found: always exactly
    #[arg(long, hide = true, value_parser = ["full", "redo", "time"])]
    pub snapshot_mode: Option<String>,
    /// Taken: changes are found without a walk
    #[arg(long, hide = true)]
    pub use_new_run: bool,
    /// Taken: nothing of this container is changed
    #[arg(long, hide = true)]
    pub cleanup: bool,
    /// Taken: nothing of this container is changed
    #[arg(long, hide = true)]
    pub pre_cleanup: bool,
    /// Taken: the context is never changed
    #[arg(long, hide = true)]
    pub preserve_context: bool,
    /// Taken: memory is bounded in any case
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub compressed_caching: Option<bool>,
    /// Taken: there is no such check
    #[arg(long, hide = true)]
    pub skip_push_permission_check: bool,
    /// Taken: kaniko's own log
    #[arg(short = 'v', long, hide = true)]
    pub verbosity: Option<String>,
    /// `json` is `--progress json`
    #[arg(long, hide = true, value_parser = ["text", "color", "json"])]
    pub log_format: Option<String>,
    /// Refused
    #[arg(long, hide = true)]
    pub single_snapshot: bool,
    /// Refused
    #[arg(long, hide = true)]
    pub materialize: bool,
    /// Refused
    #[arg(short = 'b', long, hide = true)]
    pub bucket: Option<String>,
    /// Refused
    #[arg(long, hide = true)]
    pub ignore_path: Vec<String>,
    /// Refused if it is true
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub ignore_var_run: Option<bool>,
}

impl KanikoArguments {
    /// Why a flag that was given cannot be done.
    pub(super) fn refusal(&self) -> Option<String> {
        let refusals = [
            (
                self.single_snapshot,
                "--single-snapshot",
                "each step is a layer, which registries and caches share; write one RUN for one layer",
            ),
            (
                self.materialize,
                "--materialize",
                "an image is never unpacked onto this container; `--oci-layout-path DIRECTORY` writes it out",
            ),
            (
                self.bucket.is_some(),
                "--bucket",
                "a context is named in one place; give `--context gs://BUCKET/OBJECT`",
            ),
        ];
        let ignores = !self.ignore_path.is_empty() || self.ignore_var_run == Some(true);
        if ignores {
            let why = "what a RUN writes is in its layer; `RUN --mount=type=tmpfs,target=PATH` keeps PATH out of it";
            return Some(format!("`--ignore-path` and `--ignore-var-run` are not done: {why}"));
        }
        let given = refusals.into_iter().find(|(given, ..)| *given);
        given.map(|(_, flag, why)| format!("`{flag}` is not done: {why}"))
    }

    /// `--annotation`, split.
    pub(super) fn annotations(&self) -> Result<Vec<(String, String)>, String> {
        let split = |text: &String| {
            text.split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| format!("`--annotation {text}` is not NAME=VALUE"))
        };
        self.annotation.iter().map(split).collect()
    }
}

/// Whether the program was called by kaniko's name: `/kaniko/executor`, `kaniko`.
pub(in crate::cli) fn is_name(program: &OsString) -> bool {
    let name = std::path::Path::new(program).file_name().and_then(|name| name.to_str());
    matches!(name, Some("executor" | "kaniko"))
}

/// The words of a build, kaniko's spellings made ours: `--customPlatform`, `--no-push=true`.
pub(in crate::cli) fn normalized(words: &[OsString]) -> Vec<OsString> {
    let command = BuildArguments::augment_args(Command::new("build"));
    let known = |name: &str| {
        command.get_arguments().find(|argument| {
            argument.get_long() == Some(name)
                || argument.get_all_aliases().unwrap_or_default().contains(&name)
        })
    };
    let mut normal = Vec::new();
    let mut rest = words.iter();
    for word in rest.by_ref() {
        let Some(flag) = word.to_str().and_then(|word| word.strip_prefix("--")) else {
            normal.push(word.clone());
            continue;
        };
        if flag.is_empty() {
            normal.push(word.clone());
            break;
        }
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let name = if known(name).is_none() { kebab(name) } else { name.to_owned() };
        let is_switch =
            known(&name).is_some_and(|argument| matches!(argument.get_action(), ArgAction::SetTrue));
        match value {
            Some("true") if is_switch => normal.push(format!("--{name}").into()),
            Some("false") if is_switch => {}
            Some(value) => normal.push(format!("--{name}={value}").into()),
            None => normal.push(format!("--{name}").into()),
        }
    }
    normal.extend(rest.cloned());
    normal
}

fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(words: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        normalized(&words).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn kanikos_spellings_become_ours_and_values_stay() {
        assert_eq!(normal(&["--customPlatform=linux/arm64"]), ["--custom-platform=linux/arm64"]);
        assert_eq!(normal(&["--buildArg", "aB=--cD"]), ["--build-arg", "aB=--cD"]);
        assert_eq!(normal(&["--no-push=true", "--force=false", "-f", "x"]), ["--no-push", "-f", "x"]);
        assert_eq!(normal(&["--cache=true", "--unknownFlag"]), ["--cache=true", "--unknown-flag"]);
        assert_eq!(normal(&["--", "--noPush=true"]), ["--", "--noPush=true"]);
    }

    #[test]
    fn it_is_called_by_kanikos_names() {
        for (name, is) in
            [("/kaniko/executor", true), ("kaniko", true), ("/usr/bin/hephy", false), ("executors", false)]
        {
            assert_eq!(is_name(&name.into()), is, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let refused = KanikoArguments { single_snapshot: true, ..KanikoArguments::default() };
        assert!(refused.refusal().unwrap().contains("write one RUN"));
        assert_eq!(KanikoArguments::default().refusal(), None);
    }
}
