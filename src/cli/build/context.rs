//! The flags of `hephy build` that say where its context is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::build::{
    BuildFailure, BuildOptions, ContextPlace, ContextRequest, FetchedContext, GitContextOptions,
    NamedContext, fetch_context,
};
use crate::model::Secret;
use crate::registry::client::Client;

/// Where the context is, and how it is fetched.
#[derive(Debug, Clone, Args)]
pub struct ContextArguments {
    /// The files that COPY and ADD may take: a directory, `tar://FILE`, `-` (a tar on standard input), `git://HOST/REPOSITORY#REF`,
    /// `https://HOST/REPOSITORY.git#REF:DIRECTORY`, `https://HOST/FILE.tar.gz`, `oci:REPOSITORY@DIGEST` (as `--driver=k8s` leaves it)
    #[arg(short, long, value_name = "PLACE", default_value = ".")]
    pub context: String,
    /// The directory in the context that is built from
    #[arg(long, value_name = "DIRECTORY")]
    pub context_sub_path: Option<PathBuf>,
    /// How a git context is fetched: branch=NAME, recurse-submodules=true, insecure-skip-tls=true, keep-git-dir=true
    #[arg(long, value_delimiter = ',', value_name = "OPTION=VALUE")]
    pub git: Vec<String>,
    /// What FROM, COPY and mounts find under a name: a directory or another place as of --context, docker-image://REFERENCE,
    /// oci-layout://DIRECTORY:TAG; may be repeated
    #[arg(long, value_name = "NAME=PLACE")]
    pub build_context: Vec<String>,
}

/// What a named context is.
#[derive(Debug, Clone)]
pub(super) enum NamedPlace {
    /// An image.
    Image(String),
    /// Something to fetch.
    Place(ContextPlace),
}

/// What is to be fetched.
pub(super) struct Contexts {
    pub(super) main: ContextRequest,
    pub(super) named: BTreeMap<String, NamedPlace>,
    /// Certificates that are trusted beside the system's, as PEM.
    pub(super) trusted: Option<String>,
}

/// What was fetched; it is gone when this is dropped.
pub(super) struct Fetched {
    pub(super) main: FetchedContext,
    pub(super) named: BTreeMap<String, NamedContext>,
    _kept: Vec<FetchedContext>,
}

impl ContextArguments {
    /// What is to be fetched; an error is a sentence.
    pub(super) fn contexts(&self, stdin_is_taken: bool, trusted: Option<String>) -> Result<Contexts, String> {
        if stdin_is_taken && matches!(self.context.as_str(), "-" | "tar://stdin") {
            return Err("standard input cannot be the context and something else, too".to_owned());
        }
        let plain_http = std::env::var("GIT_PULL_METHOD").is_ok_and(|method| method == "http");
        let mut named = BTreeMap::new();
        for text in &self.build_context {
            let (name, place) = named_place(text, plain_http)?;
            named.insert(name, place);
        }
        Ok(Contexts { main: self.request(plain_http)?, named, trusted })
    }

    fn request(&self, plain_http: bool) -> Result<ContextRequest, String> {
        Ok(ContextRequest {
            place: ContextPlace::parse(&self.context, plain_http)?,
            sub_path: self.context_sub_path.clone().filter(|path| !path.as_os_str().is_empty()),
            git: GitContextOptions::parse(self.git.iter().map(String::as_str))?,
            git_credentials: git_credentials(|name| {
                std::env::var(name).ok().filter(|value| !value.is_empty())
            }),
            registry: None,
            trusted: None,
        })
    }
}

impl Fetched {
    /// A build with this for its context.
    pub(super) fn put_into(&self, options: BuildOptions) -> BuildOptions {
        BuildOptions {
            context: self.main.directory.clone(),
            named: self.named.clone(),
            dockerfile: self.main.dockerfile.clone().unwrap_or(options.dockerfile),
            ..options
        }
    }
}

impl Fetched {
    /// The flags of a build that finds all this where it is now, and fetches nothing.
    pub(super) fn flags(&self) -> Result<ContextArguments, String> {
        let text = |path: &Path| {
            let text = path.to_str().ok_or_else(|| format!("`{}` is not UTF-8", path.display()))?;
            Ok::<_, String>(format!("dir://{text}"))
        };
        let named = self.named.iter().map(|(name, context)| {
            Ok(match context {
                NamedContext::Directory(directory) => format!("{name}={}", text(directory)?),
                NamedContext::Image(image) if image.starts_with("oci-layout://") => format!("{name}={image}"),
                NamedContext::Image(image) => format!("{name}=docker-image://{image}"),
            })
        });
        Ok(ContextArguments {
            context: text(&self.main.directory)?,
            context_sub_path: None,
            git: Vec::new(),
            build_context: named.collect::<Result<_, String>>()?,
        })
    }
}

impl Contexts {
    /// Brings them here; from registries as `client`.
    pub(super) async fn fetch(self, data: &Path, client: &Client) -> Result<Fetched, BuildFailure> {
        let spool = data.join("contexts");
        let registry = Some(client.clone());
        let main = ContextRequest { registry, trusted: self.trusted.clone(), ..self.main };
        let main = fetch_context(main, &spool).await?;
        let (mut named, mut kept) = (BTreeMap::new(), Vec::new());
        for (name, place) in self.named {
            let context = match place {
                NamedPlace::Image(image) => NamedContext::Image(image),
                NamedPlace::Place(place) => {
                    // The main context's token is for its own host.
                    let git = GitContextOptions::default();
                    let registry = Some(client.clone());
                    let trusted = self.trusted.clone();
                    let request = ContextRequest {
                        place,
                        sub_path: None,
                        git,
                        git_credentials: None,
                        registry,
                        trusted,
                    };
                    let fetched = fetch_context(request, &spool).await?;
                    let directory = fetched.directory.clone();
                    kept.push(fetched);
                    NamedContext::Directory(directory)
                }
            };
            named.insert(name, context);
        }
        Ok(Fetched { main, named, _kept: kept })
    }
}

fn named_place(text: &str, plain_http: bool) -> Result<(String, NamedPlace), String> {
    let named = text.split_once('=').filter(|(name, place)| !name.is_empty() && !place.is_empty());
    let (name, place) = named.ok_or_else(|| format!("`--build-context {text}`: it is NAME=PLACE"))?;
    let place = if let Some(image) = place.strip_prefix("docker-image://") {
        NamedPlace::Image(image.to_owned())
    } else if place.starts_with("oci-layout://") {
        NamedPlace::Image(place.to_owned())
    } else {
        match ContextPlace::parse(place, plain_http)? {
            ContextPlace::Stdin => return Err("only `--context` may be standard input".to_owned()),
            place => NamedPlace::Place(place),
        }
    };
    Ok((name.to_owned(), place))
}

/// Who asks for a private repository: `GIT_TOKEN`, or `GIT_USERNAME` and `GIT_PASSWORD`.
fn git_credentials(variable: impl Fn(&str) -> Option<String>) -> Option<(String, Secret<String>)> {
    let user = variable("GIT_USERNAME");
    if let Some(token) = variable("GIT_TOKEN") {
        // Any user will do with a token, at every host that has them.
        return Some((user.unwrap_or_else(|| "x-access-token".to_owned()), Secret::new(token)));
    }
    let password = variable("GIT_PASSWORD");
    (user.is_some() || password.is_some())
        .then(|| (user.unwrap_or_default(), Secret::new(password.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_password() {
        let of = |pairs: &'static [(&str, &str)]| {
            let variable = |name: &str| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            git_credentials(variable).map(|(user, password)| (user, password.reveal().clone()))
        };
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("GIT_TOKEN", "t")]), pair("x-access-token", "t"));
        assert_eq!(of(&[("GIT_TOKEN", "t"), ("GIT_USERNAME", "u")]), pair("u", "t"));
        assert_eq!(of(&[("GIT_PASSWORD", "p"), ("GIT_USERNAME", "u")]), pair("u", "p"));
    }
}
