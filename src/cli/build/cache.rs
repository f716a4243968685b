//! The flags of the step cache, by kaniko's names.

use std::time::Duration;

use clap::Args;

use crate::build::CacheRepository;
use crate::oci::{Reference, Repository, RepositoryName};

/// Where steps are looked for besides this machine.
#[derive(Debug, Clone, Args)]
pub struct CacheArguments {
    /// Look for steps in a registry too, and leave there what is run [default repository: DESTINATION/cache]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub cache: Option<bool>,
    /// Look for steps in `--cache-repo`, and leave none there
    #[arg(long)]
    pub no_push_cache: bool,
    /// The repository of `--cache`, as in HOST/TEAM/cache
    #[arg(long, value_name = "REPOSITORY")]
    pub cache_repo: Option<Repository>,
    /// What is added to the name of the cache repository, as in '-${ARCH}' (quoted, for the shell) or -{arch}
    #[arg(long, value_name = "TEXT")]
    pub arch_cache_repo_suffix: Option<String>,
    /// How old a step in `--cache-repo` may be
    #[arg(long, value_name = "DURATION", default_value = "14d", value_parser = humantime::parse_duration)]
    pub cache_ttl: Duration,
    /// Whether layers of COPY and ADD are kept in `--cache-repo`
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub cache_copy_layers: bool,
    /// Whether layers of RUN are kept in `--cache-repo`
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub cache_run_layers: bool,
}

impl CacheArguments {
    /// The cache repository, if one is to be used.
    pub(super) fn repository(
        &self,
        destinations: &[Reference],
        architecture: &str,
    ) -> Result<Option<CacheRepository>, String> {
        if self.cache == Some(false) || (self.cache.is_none() && self.cache_repo.is_none()) {
            return Ok(None);
        }
        let repository = match (&self.cache_repo, destinations.first()) {
            (Some(repository), _) => repository.clone(),
            (None, Some(destination)) => with_suffix(&destination.repository, "/cache")?,
            (None, None) => {
                return Err("nowhere to keep the cache: give `--cache-repo HOST/REPOSITORY`".to_owned());
            }
        };
        let suffix = self.arch_cache_repo_suffix.as_deref().map(|text| architecture_in(text, architecture));
        let repository = match suffix {
            Some(suffix) => with_suffix(&repository, &suffix)?,
            None => repository,
        };
        Ok(Some(CacheRepository {
            repository,
            max_age: self.cache_ttl,
            copies: self.cache_copy_layers,
            runs: self.cache_run_layers,
            is_read_only: self.no_push_cache,
        }))
    }
}

/// The ways to write the architecture in a suffix, the longest first.
const ARCHITECTURES: [&str; 3] = ["${ARCH}", "{arch}", "$ARCH"];

/// Whether a suffix differs between architectures.
pub(super) fn names_architecture(suffix: &str) -> bool {
    ARCHITECTURES.iter().any(|name| suffix.contains(name))
}

fn architecture_in(suffix: &str, architecture: &str) -> String {
    ARCHITECTURES.iter().fold(suffix.to_owned(), |text, name| text.replace(name, architecture))
}

fn with_suffix(repository: &Repository, suffix: &str) -> Result<Repository, String> {
    let name = format!("{}{suffix}", repository.name);
    let name: RepositoryName = name.parse().map_err(|error| format!("`{name}`: {error}"))?;
    Ok(Repository { host: repository.host.clone(), name })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        cache: CacheArguments,
    }

    fn found(arguments: &[&str]) -> Option<CacheRepository> {
        let line = Line::try_parse_from(std::iter::once("x").chain(arguments.iter().copied())).unwrap();
        let destination = "registry.example/team/app:1".parse().unwrap();
        line.cache.repository(&[destination], "arm64").unwrap()
    }

    fn repository(arguments: &[&str]) -> Option<String> {
        found(arguments).map(|cache| cache.repository.to_string())
    }

    #[test]
    fn the_repository_is_the_one_given_or_below_the_destination() {
        assert_eq!(repository(&[]), None);
        assert_eq!(repository(&["--cache"]).unwrap(), "registry.example/team/app/cache");
        assert_eq!(repository(&["--cache=true", "--cache-repo", "a.example/c"]).unwrap(), "a.example/c");
        assert_eq!(repository(&["--cache=false", "--cache-repo", "a.example/c"]), None);
        let suffixed = ["--cache-repo", "a.example/c", "--arch-cache-repo-suffix=-{arch}"];
        assert_eq!(repository(&suffixed).unwrap(), "a.example/c-arm64");
        assert!(!found(&["--cache"]).unwrap().is_read_only);
        assert!(found(&["--cache", "--no-push-cache"]).unwrap().is_read_only);
    }
}
