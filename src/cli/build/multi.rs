//! `hephy build --multi-platform`: one image for each platform, on machines of that platform, and their index.
//!
//! Three drivers: `local` builds what this machine runs natively, `k8s` makes a Job for each platform, `ci` builds nothing
//! and gathers the digests that other jobs of a pipeline have left.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{BuildArguments, Refusal, code, one, refused, tell};
use crate::build::{ImageFormat, chain, with_default_tag};
use crate::model::PlatformImage;
use crate::oci::{Digest, Platform, Reference, Target};
use crate::publish::{Access, IndexForm, IndexKind, Place, Publisher};

mod digests;
mod dry_run;
mod kubernetes;

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
    /// How Jobs are made
    #[command(flatten)]
    pub kubernetes: kubernetes::JobArguments,
    /// One of several, whose end is told by the whole.
    #[arg(skip)]
    pub is_part: bool,
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
                || self.publish_index == Some(true)
                || self.digests_from.is_some())
    }

    fn driver(&self) -> DriverChoice {
        self.driver.unwrap_or(DriverChoice::Local)
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
        Ok(IndexForm { kind, annotations: annotations(&self.index_annotations)? })
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
    if platforms.is_empty() && driver != DriverChoice::Ci {
        platforms.push(arguments.custom_platform.clone().unwrap_or_else(Platform::native));
    }
    let publishes = multi.publish_index == Some(true);
    if platforms.len() > 1 && !publishes && !arguments.no_push && !multi.dry_run {
        return Err("several platforms have one name together by an index only: give `--publish-index=true`, or `--no-push`".to_owned());
    }
    if publishes && (arguments.destination.is_empty() || arguments.no_push) {
        return Err("an index is published at a destination: give `--destination HOST/REPOSITORY:TAG`, without `--no-push`".to_owned());
    }
    if driver != DriverChoice::Ci && multi.digests_from.is_some() {
        return Err(
            "`--digests-from` is for `--driver=ci`, which gathers digests and builds nothing".to_owned()
        );
    }
    if platforms.len() > 1
        && let Some(suffix) = &arguments.step_cache.arch_cache_repo_suffix
        && !super::cache::names_architecture(suffix)
    {
        return Err(format!(
            "`--arch-cache-repo-suffix={suffix}` names no architecture, and {} are built: the shell takes `${{ARCH}}` for a variable of \
             its own unless it is quoted, as in '--arch-cache-repo-suffix=-${{ARCH}}'",
            platforms.len()
        ));
    }
    Ok(Asked { platforms, driver, publishes, form: multi.form()? })
}

/// Runs the verb.
pub(super) fn run(arguments: &BuildArguments) -> ExitCode {
    let asked = match asked(arguments) {
        Ok(asked) => asked,
        Err(text) => return refused(&text, code::USAGE),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&format!("failed to start: {error}"), code::PLATFORM),
    };
    if arguments.multi.dry_run {
        return runtime.block_on(dry_run::run(arguments, &asked));
    }
    let mut arguments = arguments.clone();
    arguments.multi.is_part = true;
    if arguments.multi.oci_mode == OciMode::Docker {
        arguments.kaniko.image_format = ImageFormat::Docker;
    }
    let built = match asked.driver {
        DriverChoice::Local => local(&arguments, &asked, &runtime),
        DriverChoice::K8s => runtime.block_on(async {
            let images = kubernetes::build(&arguments, &asked).await?;
            conclude(&arguments, &asked, &images).await
        }),
        DriverChoice::Ci => runtime.block_on(async {
            let images = digests::gather(&arguments, &asked.platforms).await?;
            conclude(&arguments, &asked, &images).await
        }),
    };
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) if refusal.text.is_empty() => ExitCode::from(refusal.code),
        Err(refusal) => refused(&refusal.text, refusal.code),
    }
}

/// Builds here what runs here.
fn local(
    arguments: &BuildArguments,
    asked: &Asked,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Refusal> {
    let native = Platform::native();
    let mut foreign = Vec::new();
    for platform in asked.platforms.iter().filter(|platform| **platform != native && !arguments.force) {
        if arguments.multi.require_native_nodes {
            foreign.push(platform.to_string());
        } else if let Some(line) = runtime.block_on(dry_run::look_at(arguments, platform))?.first_run {
            let text =
                format!("{line} executes a program of {platform}, which this {native} machine does not");
            return Err(Refusal { text, code: code::PLATFORM });
        }
    }
    if !foreign.is_empty() {
        return Err(Refusal::from(format!(
            "this machine builds {native} alone, and not {}: use `--driver=k8s` with nodes of each architecture, or build each on \
             a machine of its own and gather the digests with `--driver=ci`",
            foreign.join(", ")
        )));
    }
    let mut images = Vec::new();
    for platform in &asked.platforms {
        let mut part = arguments.clone();
        part.custom_platform = Some(platform.clone());
        part.force |= *platform != native;
        part.push_by_digest |= asked.publishes;
        part.digest_file = None;
        part.kaniko.image_name_with_digest_file = None;
        part.kaniko.image_name_tag_with_digest_file = None;
        match one(&part) {
            (_, Some(image)) => images.push(image),
            // It has said why.
            (exit, None) => return Err(Refusal { text: String::new(), code: exit }),
        }
    }
    runtime.block_on(conclude(arguments, asked, &images))
}

/// Publishes the index, if it is asked for, and tells the digest where it is to be told.
async fn conclude(
    arguments: &BuildArguments,
    asked: &Asked,
    images: &[PlatformImage],
) -> Result<(), Refusal> {
    let platform_error = |text: String| Refusal { text, code: code::PLATFORM };
    let digest = if asked.publishes {
        Some(publish(arguments, asked, images).await?)
    } else {
        match images {
            [image] => Some(image.manifest),
            _ => None,
        }
    };
    let mut out = io::stdout().lock();
    let Some(digest) = digest else {
        for image in images {
            drop(writeln!(out, "{} {}", image.platform, image.manifest));
        }
        return Ok(());
    };
    super::write_digest_files(arguments, &digest).map_err(platform_error)?;
    drop(writeln!(out, "{digest}"));
    Ok(())
}

async fn publish(
    arguments: &BuildArguments,
    asked: &Asked,
    images: &[PlatformImage],
) -> Result<Digest, Refusal> {
    let client = client(arguments)?;
    let mut published = None;
    for destination in &arguments.destination {
        let destination = with_default_tag(destination.clone());
        let host = destination.repository.host.clone();
        let place = Place { host, prefix: None, is_plain: false, access: Access::Open };
        let publisher = Publisher::new(client.clone(), place);
        let failed = |error: &dyn std::error::Error, is_app: bool| Refusal {
            text: format!("failed to publish {destination}: {}", chain(error).join(": ")),
            code: if is_app { code::APP } else { code::PLATFORM },
        };
        let index = publisher.publish_in(&destination.repository, images, &asked.form).await;
        let index = index.map_err(|error| failed(&error, error.is_app()))?;
        if let Some(tag) = destination.tag.clone() {
            let target = Target::Tag(tag);
            let tagged = client.push_manifest(&destination.repository, &target, &index).await;
            tagged.map_err(|error| failed(&error, false))?;
        }
        tell(&format!("Published {destination}@{} ({} platforms)", index.digest(), images.len()));
        published.get_or_insert(index.digest());
    }
    published.ok_or_else(|| Refusal::from("there is no destination".to_owned()))
}

/// A client that may push to the destinations.
fn client(arguments: &BuildArguments) -> Result<crate::registry::client::Client, String> {
    arguments.registry.client(&arguments.destination, None, arguments.mounts.ca_bundle.as_deref())
}

/// The first destination's repository.
fn repository(arguments: &BuildArguments) -> Result<&Reference, String> {
    arguments.destination.first().ok_or_else(|| "give `--destination HOST/REPOSITORY:TAG`".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        build: BuildArguments,
    }

    fn parsed(words: &[&str]) -> BuildArguments {
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
    }
}
