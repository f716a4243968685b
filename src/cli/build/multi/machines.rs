//! Which machine builds a platform, said before anything is built.

use std::collections::BTreeMap;

use super::super::{BuildArguments, Refusal, options};
use super::{Asked, DriverChoice};
use crate::build::{BuildFailure, Look, Preflight};
use crate::driver::kubernetes::KubernetesDriver;
use crate::oci::Platform;

/// The machines that are there.
pub(super) enum Available {
    /// Their names, by what they run natively.
    Known(BTreeMap<Platform, Vec<String>>),
    /// The nodes may not be listed.
    Unknown,
}

/// Who builds a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Machine {
    /// One of these, natively.
    Native(Vec<String>),
    /// One of another platform, of which no program is executed.
    Other(Platform),
    /// Whichever its pod finds.
    Unknown,
}

impl Available {
    /// This machine alone.
    pub(super) fn here() -> Self {
        Self::Known([(Platform::native(), vec!["this machine".to_owned()])].into())
    }

    /// The nodes of a cluster that take builds now.
    pub(super) async fn in_cluster(driver: &KubernetesDriver) -> Result<Self, Refusal> {
        let nodes = driver.nodes().await.map_err(Refusal::of)?;
        Ok(nodes.map_or(Self::Unknown, Self::Known))
    }

    fn names(&self) -> String {
        let Self::Known(machines) = self else { return "not known".to_owned() };
        let names: Vec<String> = machines.keys().map(ToString::to_string).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

/// The machine for a platform, or the sentence that says why there is none.
///
/// A platform without a machine of its own is built by another if it executes nothing and `--require-native-nodes=false`.
pub(super) async fn find(
    arguments: &BuildArguments,
    asked: &Asked,
    platform: &Platform,
    available: &Available,
) -> Result<Result<Machine, String>, Refusal> {
    let Available::Known(machines) = available else { return Ok(Ok(Machine::Unknown)) };
    if let Some(names) = machines.get(platform) {
        return Ok(Ok(Machine::Native(names.clone())));
    }
    let is_here = asked.driver == DriverChoice::Local;
    if is_here && arguments.force {
        return Ok(Ok(Machine::Other(Platform::native())));
    }
    let missing = if is_here {
        format!("this machine builds {} alone, and not {platform}", available.names())
    } else {
        format!("no native nodes available for {platform}: the ready nodes are {}", available.names())
    };
    if arguments.multi.require_native_nodes {
        let next = ": use `--driver=k8s` with nodes of each architecture, or build each on a machine of its own and gather the \
                    digests with `--driver=ci`";
        return Ok(Err(if is_here { missing + next } else { missing }));
    }
    let mut looked = Vec::new();
    for machine in machines.keys() {
        let first_run = look_at(arguments, platform, machine).await?.first_run;
        looked.push((machine.clone(), first_run.map(|line| line.to_string())));
    }
    Ok(match crate::plan::elsewhere(looked) {
        Ok(machine) => Ok(Machine::Other(machine)),
        Err(Some(line)) => {
            Err(format!("{missing}; {line} executes a program of this platform, and nothing is emulated"))
        }
        Err(None) => Err(missing),
    })
}

/// What a build for a platform would find on a machine of another, or of the same.
pub(super) async fn look_at(
    arguments: &BuildArguments,
    platform: &Platform,
    machine: &Platform,
) -> Result<Preflight, Refusal> {
    let mut arguments = arguments.clone();
    arguments.custom_platform = Some(platform.clone());
    (arguments.force, arguments.no_push) = (true, true);
    let scratch = tempfile::tempdir().map_err(|error| {
        Refusal::of(BuildFailure::platform("failed to make a directory to look at the build from", &error))
    })?;
    let options = options::options_to_look(&arguments, scratch.path())?;
    // They are directories by now.
    let client = options.client.clone();
    let fetched = arguments.contexts()?.fetch(scratch.path(), &client).await.map_err(Refusal::of)?;
    let look = Look::at_build(&fetched.put_into(options)).map_err(Refusal::of)?;
    look.at(platform, machine).await.map_err(Refusal::of)
}
