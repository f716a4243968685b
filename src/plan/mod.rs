//! Recipe → Plan: for which platforms, and whether there is somewhere to build each.

use crate::model::{Plan, PushOptions, Recipe};
use crate::oci::Platform;

/// Why a recipe cannot be built here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing builds natively for a platform that the app asks for.
    #[error("nothing here builds natively for {wanted}: there is {}", list(available))]
    NoNativeBuilder {
        /// What the app asks for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// Nothing builds at all.
    #[error("there is nothing to build on: no platform is ready")]
    NoBuilder,
}

fn list(platforms: &[Platform]) -> String {
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Fixes the platforms: those that the recipe asks for, or else all that are `available`.
pub fn plan(recipe: Recipe, available: &[Platform], options: PushOptions) -> Result<Plan, PlanError> {
    let mut platforms =
        if recipe.platforms.is_empty() { available.to_vec() } else { recipe.platforms.clone() };
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() {
        return Err(PlanError::NoBuilder);
    }
    if let Some(wanted) = platforms.iter().find(|wanted| !available.contains(wanted)) {
        return Err(PlanError::NoNativeBuilder { wanted: wanted.clone(), available: available.to_vec() });
    }
    Ok(Plan { recipe, platforms, no_cache: options.no_cache })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{BuildNumber, Method, Source};

    fn recipe(platforms: &[&str]) -> Recipe {
        let commit = "0123456789012345678901234567890123456789".parse().unwrap();
        let source = Source {
            app: "hello".parse().unwrap(),
            build: BuildNumber(1),
            commit,
            committed_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let method =
            Method::Dockerfile { path: "Dockerfile".into(), context: ".".into(), target: None, args: vec![] };
        Recipe {
            source,
            method,
            reason: "Dockerfile found".into(),
            processes: BTreeMap::new(),
            platforms: platforms.iter().map(|p| p.parse().unwrap()).collect(),
            build_timeout_seconds: None,
            ready_timeout_seconds: None,
        }
    }

    #[test]
    fn an_app_that_says_nothing_is_built_for_all_that_is_ready() {
        let available = ["linux/arm64".parse().unwrap(), "linux/amd64".parse().unwrap()];
        let plan = plan(recipe(&[]), &available, PushOptions::default()).unwrap();
        assert_eq!(list(&plan.platforms), "linux/amd64, linux/arm64");
    }

    #[test]
    fn a_platform_without_a_native_builder_is_named() {
        let error = plan(recipe(&["linux/s390x"]), &["linux/amd64".parse().unwrap()], PushOptions::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "nothing here builds natively for linux/s390x: there is linux/amd64"
        );
    }
}
