//! Recipe → Plan: for which platforms, and whether there is somewhere to build each.

use crate::model::{Plan, PushOptions, Recipe};
use crate::oci::Platform;

/// Why a recipe cannot be built here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing builds natively for a platform that the app asks for.
    #[error("{}", nothing_builds(wanted, available))]
    NoNativeBuilder {
        /// What the app asks for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
    },
    /// Nothing builds natively for a platform, and the build executes programs of it.
    #[error(
        "{}; {at} executes a program of {wanted}, and nothing is emulated",
        nothing_builds(wanted, available)
    )]
    Executes {
        /// What the app asks for.
        wanted: Platform,
        /// What there is.
        available: Vec<Platform>,
        /// The first line that does, `Dockerfile:3`.
        at: String,
    },
    /// Nothing builds at all.
    #[error("there is nothing to build on: no platform is ready")]
    NoBuilder,
}

fn nothing_builds(wanted: &Platform, available: &[Platform]) -> String {
    let available = available.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("nothing here builds natively for {wanted}: there is {available}")
}

impl PlanError {
    /// What the pusher can do.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let fewer = "name platforms that are there under [build] in hephy.toml".to_owned();
        match self {
            Self::NoNativeBuilder { .. } => vec![
                fewer,
                "or say `require_native_nodes = false` there, if no RUN executes a program of the platform".to_owned(),
            ],
            Self::Executes { .. } => vec![
                "run it in a stage of the machine that builds, and copy from there: FROM --platform=$BUILDPLATFORM …"
                    .to_owned(),
                format!("or {fewer}"),
            ],
            Self::NoBuilder => vec!["make a node ready that takes builds, and push again".to_owned()],
        }
    }
}

/// Fixes the platforms: those that the recipe asks for, or else all that are `available`.
///
/// Where the recipe does not require native nodes, what builds a platform without one is still to be found:
/// [`machines`] has who could, and [`elsewhere`] decides.
pub fn plan(recipe: Recipe, available: &[Platform], options: PushOptions) -> Result<Plan, PlanError> {
    let mut platforms =
        if recipe.platforms.is_empty() { available.to_vec() } else { recipe.platforms.clone() };
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() || available.is_empty() {
        return Err(PlanError::NoBuilder);
    }
    let mut missing = platforms.iter().filter(|wanted| !available.contains(wanted));
    if let Some(wanted) = missing.next().filter(|_| recipe.require_native_nodes) {
        return Err(PlanError::NoNativeBuilder { wanted: wanted.clone(), available: available.to_vec() });
    }
    Ok(Plan { recipe, platforms, machines: std::collections::BTreeMap::new(), no_cache: options.no_cache })
}

/// The platforms of the machines that may build for `platform`: its own, or where there is none any other.
#[must_use]
pub fn machines(platform: &Platform, available: &[Platform]) -> Vec<Platform> {
    if available.contains(platform) { vec![platform.clone()] } else { available.to_vec() }
}

/// Of machines that are not of the platform to build for, the first on which nothing of it is executed.
///
/// Each comes with the first line that executes something. Without such a machine the first of these lines is returned.
pub fn elsewhere(
    looked: impl IntoIterator<Item = (Platform, Option<String>)>,
) -> Result<Platform, Option<String>> {
    let mut executes = None;
    for (machine, first_run) in looked {
        match first_run {
            None => return Ok(machine),
            line => executes = executes.or(line),
        }
    }
    Err(executes)
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
            require_native_nodes: true,
        }
    }

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn an_app_that_says_nothing_is_built_for_all_that_is_ready() {
        let available = ["linux/arm64".parse().unwrap(), "linux/amd64".parse().unwrap()];
        let plan = plan(recipe(&[]), &available, PushOptions::default()).unwrap();
        assert_eq!(plan.platforms, ["linux/amd64", "linux/arm64"].map(platform));
    }

    #[test]
    fn a_platform_without_a_native_builder_is_named() {
        let error = plan(recipe(&["linux/s390x"]), &["linux/amd64".parse().unwrap()], PushOptions::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "nothing here builds natively for linux/s390x: there is linux/amd64"
        );
    }

    #[test]
    fn a_platform_without_a_native_builder_is_planned_where_none_is_required() {
        let available = [platform("linux/amd64"), platform("linux/s390x")];
        let wanted = recipe(&["linux/arm64", "linux/amd64"]);
        let wanted = Recipe { require_native_nodes: false, ..wanted };
        let plan = plan(wanted.clone(), &available, PushOptions::default()).unwrap();
        assert_eq!(plan.platforms, ["linux/amd64", "linux/arm64"].map(platform));
        assert_eq!(machines(&plan.platforms[0], &available), ["linux/amd64"].map(platform));
        assert_eq!(machines(&plan.platforms[1], &available), available);
        let nobody = super::plan(wanted, &[], PushOptions::default());
        assert_eq!(nobody.unwrap_err(), PlanError::NoBuilder);
    }

    #[test]
    fn the_first_machine_on_which_nothing_of_the_platform_is_executed_builds_it() {
        let looked = |lines: &[(&str, Option<&str>)]| {
            elsewhere(lines.iter().map(|(machine, line)| (platform(machine), line.map(str::to_owned))))
        };
        let one = ("linux/amd64", Some("Dockerfile:3"));
        assert_eq!(looked(&[one, ("linux/s390x", None)]), Ok(platform("linux/s390x")));
        let other = ("linux/s390x", Some("Dockerfile:5"));
        assert_eq!(looked(&[one, other]), Err(Some("Dockerfile:3".to_owned())));
        assert_eq!(looked(&[]), Err(None));
    }
}
