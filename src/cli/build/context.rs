//! The flags of `hephy build` that say where its context is.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::build::{
    BuildFailure, ContextPlace, ContextRequest, FetchedContext, GitContextOptions, fetch_context,
};
use crate::model::Secret;

/// Where the context is, and how it is fetched.
#[derive(Debug, Clone, Args)]
pub struct ContextArguments {
    /// The files that COPY and ADD may take: a directory, `tar://FILE`, `-` (a tar on standard input), `git://HOST/REPOSITORY#REF`,
    /// `https://HOST/REPOSITORY.git#REF:DIRECTORY`, `https://HOST/FILE.tar.gz`
    #[arg(short, long, value_name = "PLACE", default_value = ".")]
    pub context: String,
    /// The directory in the context that is built from
    #[arg(long, value_name = "DIRECTORY")]
    pub context_sub_path: Option<PathBuf>,
    /// How a git context is fetched: branch=NAME, recurse-submodules=true, insecure-skip-tls=true, keep-git-dir=true
    #[arg(long, value_delimiter = ',', value_name = "OPTION=VALUE")]
    pub git: Vec<String>,
}

impl ContextArguments {
    /// Whether the context is read from standard input.
    #[must_use]
    pub fn is_stdin(&self) -> bool {
        matches!(self.context.as_str(), "-" | "tar://stdin")
    }

    /// What is to be fetched; an error is a sentence.
    pub fn request(&self) -> Result<ContextRequest, String> {
        let plain_http = std::env::var("GIT_PULL_METHOD").is_ok_and(|method| method == "http");
        Ok(ContextRequest {
            place: ContextPlace::parse(&self.context, plain_http)?,
            sub_path: self.context_sub_path.clone().filter(|path| !path.as_os_str().is_empty()),
            git: GitContextOptions::parse(self.git.iter().map(String::as_str))?,
            git_credentials: git_credentials(|name| {
                std::env::var(name).ok().filter(|value| !value.is_empty())
            }),
        })
    }

    /// Brings the context here.
    pub(super) async fn fetch(request: ContextRequest, data: &Path) -> Result<FetchedContext, BuildFailure> {
        fetch_context(request, &data.join("contexts")).await
    }
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
