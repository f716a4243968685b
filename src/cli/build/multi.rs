//! `hephy build --multi-platform`: one image for each platform, on machines of that platform, and their index.
//!
//! Three drivers: `local` builds what this machine runs natively, `k8s` makes a Job for each platform, `ci` builds nothing
//! and gathers the digests that other jobs of a pipeline have left.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::context::Fetched;
use super::signals::Signals;
use super::{BuildArguments, Refusal, Session, fetch, not_built, one, options};
use crate::model::PlatformImage;
use crate::oci::{Platform, Reference};
use crate::publish::{IndexForm, IndexKind};
use publish::conclude;

mod digests;
mod dry_run;
mod job;
mod kubernetes;
mod machines;
mod publish;

/// Builds for several platforms.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Several platforms")]
pub struct MultiArguments {
    /// The platforms of the image, as in linux/amd64,linux/arm64
    #[arg(long, value_delimiter = ',', value_name = "OS/ARCHITECTURE")]
    pub multi_platform: Vec<Platform>,
    /// Who builds: this machine, Jobs of the cluster of KUBECONFIG, or other jobs of the pipeline, whose digests are gathered
    #[arg(long, value_enum)]
    pub driver: Option<DriverChoice>,
    /// Publish one index of the images at the destinations
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub publish_index: Option<bool>,
    /// Write Docker's manifest list instead of an OCI index
    #[arg(long)]
    pub legacy_manifest_list: bool,
    /// The types of what is written: OCI's, Docker's, or what the registry takes [default: auto]
    #[arg(long, value_enum, default_value = "auto")]
    pub oci_mode: OciMode,
    /// Whether each platform needs a node of its own architecture; nothing is emulated in any case
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub require_native_nodes: bool,
    /// With --driver=ci: the directory of files that --digest-file or --image-name-with-digest-file have written
    #[arg(long, value_name = "DIRECTORY")]
    pub digests_from: Option<PathBuf>,
    /// Annotations of the index, NAME=VALUE; may be repeated, or joined by commas
    #[arg(long, value_name = "NAME=VALUE,…")]
    pub index_annotations: Vec<String>,
    /// Build nothing; say which node and base each platform has, and whether the registry would take the image
    #[arg(long, alias = "dryrun")]
    pub dry_run: bool,
    /// Whether the first platform that fails ends the builds of the others
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub fail_fast: bool,
    /// How Jobs are made
    #[command(flatten)]
    pub kubernetes: kubernetes::JobArguments,
    /// One of several, whose end is told by the whole.
    #[arg(skip)]
    pub is_part: bool,
    /// One of an index, which alone has the tags.
    #[arg(skip)]
    pub is_of_index: bool,
}

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// This machine.
    Local,
    /// Jobs of a cluster.
    #[value(alias = "kubernetes")]
    K8s,
    /// Other jobs of a pipeline.
    Ci,
}

/// The types of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OciMode {
    /// OCI's.
    Oci,
    /// Docker's.
    Docker,
    /// OCI's, and Docker's list where the registry takes no index.
    #[default]
    Auto,
}

impl MultiArguments {
    /// Whether a build is more than one image for one platform.
    pub(super) fn is_given(&self) -> bool {
        !self.is_part
            && (!self.multi_platform.is_empty()
                || self.driver.is_some()
                || self.dry_run
                || !self.require_native_nodes
                || self.publish_index == Some(true)
                || self.digests_from.is_some())
    }

    fn driver(&self) -> DriverChoice {
        self.driver.unwrap_or(DriverChoice::Local)
    }

    /// Why a flag that was given says nothing of this build, if there is one.
    pub(super) fn says_nothing(&self) -> Option<String> {
        let is_indexed = self.publish_index == Some(true);
        let (index, jobs) = ("of the index: give `--publish-index=true`", "of Jobs: give `--driver=k8s`");
        // The image of Jobs may be from a variable, which all builds see.
        let given = [
            (!is_indexed && self.legacy_manifest_list, "--legacy-manifest-list", index),
            (!is_indexed && !self.index_annotations.is_empty(), "--index-annotations", index),
            (self.kubernetes.namespace.is_some(), "--k8s-namespace", jobs),
            (self.kubernetes.registry_secret.is_some(), "--k8s-registry-secret", jobs),
            (!self.kubernetes.pull_secret.is_empty(), "--k8s-pull-secret", jobs),
            (!self.kubernetes.node_selector.is_empty(), "--k8s-node-selector", jobs),
        ];
        let has_jobs = self.driver == Some(DriverChoice::K8s);
        let mut given = given.into_iter().filter(|(given, _, why)| *given && !(has_jobs && *why == jobs));
        given.next().map(|(_, flag, why)| format!("`{flag}` is {why}"))
    }

    /// How the index is written.
    fn form(&self) -> Result<IndexForm, String> {
        let kind = match (self.oci_mode, self.legacy_manifest_list) {
            (OciMode::Oci, true) => {
                return Err("`--oci-mode=oci` and `--legacy-manifest-list` ask for two things".to_owned());
            }
            (_, true) | (OciMode::Docker, false) => IndexKind::DockerList,
            (OciMode::Oci, false) => IndexKind::Oci,
            (OciMode::Auto, false) => IndexKind::Either,
        };
        let annotations = annotations(&self.index_annotations)?;
        if kind == IndexKind::DockerList && !annotations.is_empty() {
            return Err("Docker's manifest list has no annotations: leave out `--index-annotations`, or take `--oci-mode=oci`".to_owned());
        }
        Ok(IndexForm { kind, annotations })
    }
}

/// `NAME=VALUE` pairs, several in one text where a comma is followed by another `NAME=`.
fn annotations(given: &[String]) -> Result<BTreeMap<String, String>, String> {
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
    };
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for text in given {
        let mut last: Option<String> = None;
        for part in text.split(',') {
            match (part.split_once('=').filter(|(name, _)| is_name(name)), &last) {
                (Some((name, value)), _) => {
                    found.insert(name.to_owned(), value.to_owned());
                    last = Some(name.to_owned());
                }
                // A comma in a value.
                (None, Some(name)) => {
                    let value = found.entry(name.clone()).or_default();
                    value.push(',');
                    value.push_str(part);
                }
                (None, None) => return Err(format!("`--index-annotations {text}`: it is NAME=VALUE")),
            }
        }
    }
    Ok(found)
}

/// What was asked for, once it is known to make sense.
struct Asked {
    platforms: Vec<Platform>,
    driver: DriverChoice,
    publishes: bool,
    form: IndexForm,
}

fn asked(arguments: &BuildArguments) -> Result<Asked, String> {
    let multi = &arguments.multi;
    let driver = multi.driver();
    let mut platforms = multi.multi_platform.clone();
    let mut sorted = platforms.clone();
    sorted.sort();
    if let Some([twice, _]) = sorted.array_windows().find(|[one, other]| one == other) {
        return Err(format!("`--multi-platform` has {twice} twice"));
    }
    if let Some(custom) = arguments.custom_platform.as_ref().filter(|custom| platforms != [(*custom).clone()])
        && !platforms.is_empty()
    {
        return Err(format!(
            "`--custom-platform={custom}` and `--multi-platform` ask for two things: leave one out"
        ));
    }
    if platforms.is_empty() && driver != DriverChoice::Ci {
        platforms.push(arguments.custom_platform.clone().unwrap_or_else(Platform::native));
    }
    let publishes = multi.publish_index == Some(true);
    let asked = Asked { platforms, driver, publishes, form: multi.form()? };
    match multi.says_nothing().or_else(|| refusal(arguments, &asked)) {
        Some(refusal) => Err(refusal),
        None => Ok(asked),
    }
}

/// Why flags do not go together.
fn refusal(arguments: &BuildArguments, asked: &Asked) -> Option<String> {
    let (multi, count) = (&arguments.multi, asked.platforms.len());
    let has_several = count > 1 && !multi.dry_run;
    let kaniko = &arguments.kaniko;
    let digest_files = [
        (&arguments.digest_file, "--digest-file"),
        (&kaniko.image_name_with_digest_file, "--image-name-with-digest-file"),
        (&kaniko.image_name_tag_with_digest_file, "--image-name-tag-with-digest-file"),
    ];
    let digest_file = digest_files.into_iter().find(|(file, _)| file.is_some()).map(|(_, flag)| flag);
    let is_ci = asked.driver == DriverChoice::Ci;
    let outputs = [(&arguments.tar_path, "--tar-path"), (&arguments.oci_layout_path, "--oci-layout-path")];
    let output = outputs.into_iter().find(|(path, _)| path.is_some()).map(|(_, flag)| flag);
    if arguments.check.check {
        return Some("`--check` looks at the Dockerfile, which is one for all platforms: leave out the flags for several".to_owned());
    }
    if has_several && !asked.publishes && !arguments.no_push {
        return Some("several platforms have one name together by an index only: give `--publish-index=true`, or `--no-push`".to_owned());
    }
    if asked.publishes && (arguments.destination.is_empty() || arguments.no_push) {
        return Some("an index is published at a destination: give `--destination HOST/REPOSITORY:TAG`, without `--no-push`".to_owned());
    }
    if has_several && arguments.tar_path.is_some() {
        return Some(format!(
            "`--tar-path` is a file of one image, and {count} are built: `--oci-layout-path DIRECTORY` takes them all"
        ));
    }
    if let Some(flag) = digest_file.filter(|_| has_several && !asked.publishes) {
        return Some(format!(
            "`{flag}` is a file of one digest, and {count} images without an index have {count}: standard output has them"
        ));
    }
    if let Some(flag) = output.filter(|_| is_ci) {
        return Some(format!("`{flag}` is of what is built, and `--driver=ci` builds nothing"));
    }
    if !is_ci && multi.digests_from.is_some() {
        return Some(
            "`--digests-from` is for `--driver=ci`, which gathers digests and builds nothing".to_owned(),
        );
    }
    let suffix = arguments.step_cache.arch_cache_repo_suffix.as_ref();
    let suffix = suffix.filter(|suffix| count > 1 && !super::cache::names_architecture(suffix))?;
    Some(format!(
        "`--arch-cache-repo-suffix={suffix}` names no architecture, and {count} are built: the shell takes `${{ARCH}}` for a variable of \
         its own unless it is quoted, as in '--arch-cache-repo-suffix=-${{ARCH}}'"
    ))
}

/// Runs the verb.
pub(super) fn run(arguments: &BuildArguments, session: &Session) -> u8 {
    match build(arguments, session) {
        Ok(()) => 0,
        // It has been told.
        Err(refusal) if refusal.text.is_empty() => refusal.code,
        Err(refusal) => not_built(&refusal.text, refusal.code).0,
    }
}

fn build(arguments: &BuildArguments, session: &Session) -> Result<(), Refusal> {
    let Session { runtime, signals } = session;
    let asked = asked(arguments)?;
    let mut arguments = arguments.with_standard_input()?;
    arguments.multi.is_part = true;
    arguments.multi.is_of_index = asked.publishes;
    if asked.driver == DriverChoice::Ci {
        return runtime.block_on(async {
            if arguments.multi.dry_run {
                return dry_run::run(&arguments, &asked).await;
            }
            let gathered = signals.first.run_until_cancelled(digests::gather(&arguments, &asked.platforms));
            let images = gathered.await.ok_or_else(Refusal::cancelled)??;
            conclude(&arguments, &asked, &images, signals).await
        });
    }
    if let Some(refusal) = arguments.kaniko.refusal() {
        return Err(refusal.into());
    }
    if asked.driver == DriverChoice::K8s {
        job::refuse_what_stays_here(&arguments)?;
    }
    // Once, however many platforms look at it: standard input is empty the second time, and a branch has moved on.
    let fetched = runtime.block_on(fetched(&arguments, signals))?;
    arguments.context = fetched.flags()?;
    arguments.dockerfile = fetched.main.dockerfile.clone().unwrap_or(arguments.dockerfile);
    if arguments.multi.dry_run {
        let looking = signals.first.run_until_cancelled(dry_run::run(&arguments, &asked));
        return runtime.block_on(looking).ok_or_else(Refusal::cancelled)?;
    }
    let images = match asked.driver {
        DriverChoice::Local => local(&arguments, &asked, session)?,
        DriverChoice::K8s | DriverChoice::Ci => {
            let directory = &fetched.main.directory;
            runtime.block_on(kubernetes::build(&arguments, &asked, directory, signals))?
        }
    };
    runtime.block_on(conclude(&arguments, &asked, &images, signals))
}

/// The contexts, here.
async fn fetched(arguments: &BuildArguments, signals: &Signals) -> Result<Fetched, Refusal> {
    // Where nothing is built, nothing needs a home.
    let data = options::data_directory(arguments).unwrap_or_else(|_| std::env::temp_dir());
    let client = client(arguments)?;
    fetch(arguments.contexts()?, (&data, arguments.time_limit), &client, signals).await
}

/// Builds here what runs here.
fn local(
    arguments: &BuildArguments,
    asked: &Asked,
    session: &Session,
) -> Result<Vec<PlatformImage>, Refusal> {
    let Session { runtime, signals } = session;
    let here = machines::Available::here();
    for platform in &asked.platforms {
        let found = signals.first.run_until_cancelled(machines::find(arguments, asked, platform, &here));
        let found = runtime.block_on(found).ok_or_else(Refusal::cancelled)??;
        found.map_err(Refusal::platform)?;
    }
    let (mut images, mut failure) = (Vec::new(), None);
    for platform in &asked.platforms {
        if signals.first.is_cancelled() {
            return Err(Refusal::cancelled());
        }
        let mut part = arguments.clone();
        part.custom_platform = Some(platform.clone());
        part.force |= *platform != Platform::native();
        part.digest_file = None;
        part.kaniko.image_name_with_digest_file = None;
        part.kaniko.image_name_tag_with_digest_file = None;
        match one(&part, session) {
            (_, Some(image)) => images.push(image),
            (exit, None) => {
                // It has said why.
                failure.get_or_insert(Refusal { text: String::new(), code: exit });
                if arguments.multi.fail_fast {
                    break;
                }
            }
        }
    }
    failure.map_or(Ok(images), Err)
}

/// A client that may push to the destinations.
fn client(arguments: &BuildArguments) -> Result<crate::registry::client::Client, String> {
    arguments.registry.client(&arguments.destination, None, arguments.mounts.trusted()?.as_deref())
}

/// The first destination's repository.
fn repository(arguments: &BuildArguments) -> Result<&Reference, String> {
    arguments.destination.first().ok_or_else(|| "give `--destination HOST/REPOSITORY:TAG`".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::build::ImageFormat;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        build: BuildArguments,
    }

    pub(super) fn parsed(words: &[&str]) -> BuildArguments {
        Line::try_parse_from(std::iter::once("x").chain(words.iter().copied())).unwrap().build
    }

    fn refusal(words: &[&str]) -> String {
        match asked(&parsed(words)) {
            Err(text) => text,
            Ok(_) => panic!("{words:?} is taken"),
        }
    }

    const TWO: &str = "--multi-platform=linux/amd64,linux/arm64";
    const TO: &str = "--destination=registry.example/app:1";

    #[test]
    fn several_platforms_have_one_name_by_an_index_only() {
        assert!(refusal(&[TWO, TO]).contains("--publish-index"));
        assert!(refusal(&[TWO, "--publish-index=true"]).contains("--destination"));
        assert!(refusal(&["--multi-platform=linux/arm64,linux/aarch64", TO]).contains("linux/arm64 twice"));
        let asked = asked(&parsed(&[TWO, TO, "--publish-index", "--driver=k8s"])).unwrap();
        assert!(asked.publishes && asked.platforms.len() == 2);
    }

    #[test]
    fn a_cache_suffix_that_the_shell_has_emptied_is_shown_how_to_be_quoted() {
        let given = [TWO, TO, "--publish-index", "--arch-cache-repo-suffix=-"];
        assert!(refusal(&given).contains("'--arch-cache-repo-suffix=-${ARCH}'"));
        for suffix in ["-${ARCH}", "-$ARCH", "-{arch}"] {
            let flag = format!("--arch-cache-repo-suffix={suffix}");
            assert!(asked(&parsed(&[TWO, TO, "--publish-index", &flag])).is_ok(), "{suffix}");
        }
    }

    #[test]
    fn flags_that_would_say_nothing_are_errors() {
        let alone = |word: &str| parsed(&[TO, word]).multi.says_nothing().unwrap_or_default();
        for flag in ["--legacy-manifest-list", "--index-annotations=a=b"] {
            assert!(alone(flag).contains("--publish-index=true"), "{flag}");
            assert!(refusal(&[TO, "--driver=local", flag]).contains("--publish-index=true"), "{flag}");
        }
        for flag in ["--k8s-namespace=x", "--k8s-registry-secret=x", "--k8s-node-selector=a=b"] {
            assert!(alone(flag).contains("--driver=k8s"), "{flag}");
        }
        assert!(parsed(&[TO, "--require-native-nodes=false"]).multi.is_given());
        assert!(
            refusal(&[TWO, TO, "--publish-index", "--custom-platform=linux/amd64"]).contains("leave one out")
        );
    }

    #[test]
    fn a_file_of_one_image_is_not_for_two() {
        let tar = ["--tar-path=x", "--no-push"];
        assert!(refusal(&[&[TWO], &tar[..]].concat()).contains("--oci-layout-path"));
        assert!(refusal(&[TWO, TO, "--publish-index", "--tar-path=x"]).contains("2 are built"));
        for flag in ["--digest-file=x", "--image-name-with-digest-file=x"] {
            assert!(refusal(&[TWO, "--no-push", flag]).contains("standard output"), "{flag}");
            assert!(asked(&parsed(&[TWO, TO, "--publish-index", flag])).is_ok(), "{flag}");
        }
    }

    #[test]
    fn annotations_are_repeated_or_joined_and_may_hold_commas() {
        let given = ["a.b/c=1,d=x,y", "e="].map(ToOwned::to_owned);
        let found = annotations(&given).unwrap();
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, [("a.b/c", "1"), ("d", "x,y"), ("e", "")]);
        assert!(annotations(&["x".to_owned()]).is_err());
    }

    #[test]
    fn the_mode_says_what_the_index_is() {
        let kind = |words: &[&str]| {
            parsed(&[&["--no-push"], words].concat()).multi.form().map(|form| form.kind).ok()
        };
        assert_eq!(kind(&[]), Some(IndexKind::Either));
        assert_eq!(kind(&["--oci-mode=oci"]), Some(IndexKind::Oci));
        assert_eq!(kind(&["--oci-mode=docker"]), Some(IndexKind::DockerList));
        assert_eq!(kind(&["--legacy-manifest-list"]), Some(IndexKind::DockerList));
        assert_eq!(kind(&["--oci-mode=oci", "--legacy-manifest-list"]), None);
        assert_eq!(kind(&["--oci-mode=docker", "--index-annotations=a=b"]), None);
        let format = |words: &[&str]| parsed(&[&["--no-push"], words].concat()).image_format();
        assert_eq!(format(&["--oci-mode=docker"]), ImageFormat::Docker);
        assert_eq!(format(&["--oci-mode=auto", "--image-format=docker"]), ImageFormat::Docker);
        assert_eq!(format(&["--oci-mode=oci"]), ImageFormat::Oci);
    }
}
