//! What the mounts of a RUN are, and what of them its key holds: what the step can see of them, and nothing volatile.
//!
//! Files by their content, caches by their id, secrets and agents by theirs: a new token is no reason to run a step again.

use std::path::Path;

use super::options::Entitlement;
use super::request::Selection;
use crate::build::driver::NetworkMode;
use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::explain::Facts;
use crate::build::image::Layer;
use crate::build::key::KeyBuilder;
use crate::build::plan::{From, Plan};
use crate::build::protocol::{CopyFrom, Request, Response};
use crate::build::state::{StageState, absolute};
use crate::dockerfile::{Expander, Mount, MountKind, Network, Run, Security, Sharing};
use crate::oci::Digest;

/// The largest user and group id of a sandbox.
const MAX_ID: u32 = 65_535;

/// The mounts of a RUN.
#[derive(Default)]
pub(in crate::build) struct RunMounts {
    pub(super) mounts: Vec<PlannedMount>,
    /// The step's key without its mounts, where a better one can be had by looking into layers.
    fields: Option<KeyBuilder>,
}

/// A mount, resolved.
pub(super) struct PlannedMount {
    pub(super) mount: Mount,
    /// Absolute.
    pub(super) target: String,
    pub(super) files: Option<Files>,
}

/// What a bind or the first content of a cache is.
pub(super) struct Files {
    pub(super) selection: Selection,
    /// The layers that it is in, if it is not the context's.
    layers: Option<Vec<Layer>>,
    /// Of the context's files.
    hash: Option<Digest>,
}

impl Engine {
    /// Refuses what a RUN may not ask for.
    pub(in crate::build) fn permit(&self, run: &Run) -> Result<(), EngineError> {
        let allowed = &self.options.mounts.allowed;
        if run.security == Security::Insecure && !allowed.contains(&Entitlement::SecurityInsecure) {
            return Err(EngineError::Wrong(
                "`RUN --security=insecure` is not allowed: its command would have every capability of the sandbox; if you \
                 trust this Dockerfile with that, build it with `--allow security.insecure`"
                    .to_owned(),
            ));
        }
        if let Some(device) = run.devices.first() {
            return Err(EngineError::Wrong(format!(
                "`RUN --device={}`: a sandbox has no devices of the machine, since its users are nobody there: do what needs \
                 the device when the image runs",
                device.name
            )));
        }
        if run.network == Network::Host && self.options.network != NetworkMode::Host {
            return Err(EngineError::Wrong(
                "`RUN --network=host`: this build itself may not use the host's network (`hephy build --network host` may)"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Finds out what the mounts of a RUN are.
    pub(in crate::build) async fn plan_mounts(
        &self,
        plan: &Plan<'_>,
        index: usize,
        state: &StageState,
        run: &Run,
    ) -> Result<RunMounts, EngineError> {
        let mounts = {
            let lookup = |name: &str| state.scope.lookup(name);
            run.mounts(&Expander::new(plan.dockerfile.escape, &lookup))?
        };
        let mut planned = RunMounts::default();
        let mut agents = 0;
        for mount in mounts {
            for (key, id) in [("uid", mount.uid), ("gid", mount.gid)] {
                if let Some(id) = id.filter(|id| *id > MAX_ID) {
                    return Err(EngineError::Wrong(format!("--mount: `{key}={id}` is more than {MAX_ID}")));
                }
            }
            let target = target(&mount, &state.working_directory(), &mut agents);
            if target == "/" {
                return Err(EngineError::Wrong("--mount: the target may not be `/`".to_owned()));
            }
            let has_files = match mount.kind {
                MountKind::Bind => true,
                MountKind::Cache => mount.from.is_some(),
                MountKind::Tmpfs | MountKind::Secret | MountKind::Ssh => false,
            };
            let files = if has_files { Some(self.mounted_files(plan, index, &mount).await?) } else { None };
            planned.mounts.push(PlannedMount { mount, target, files });
        }
        Ok(planned)
    }

    async fn mounted_files(
        &self,
        plan: &Plan<'_>,
        index: usize,
        mount: &Mount,
    ) -> Result<Files, EngineError> {
        let source = mount.source.clone().unwrap_or_else(|| ".".to_owned());
        let layers = match plan.from(index, mount.from.as_deref()) {
            From::Context => None,
            From::Stage(other) => Some(self.states.get(&other).ok_or(EngineError::Protocol)?.layers.clone()),
            From::Image(name) if name.reference == "scratch" => Some(Vec::new()),
            From::Image(name) => Some(self.images.get(&name).ok_or(EngineError::Protocol)?.layers.clone()),
        };
        let from = match &layers {
            Some(layers) => CopyFrom::Layers(layers.iter().map(|layer| layer.diff_id).collect()),
            None => CopyFrom::ContextDirectory { ignore: self.context.ignore.clone() },
        };
        let selection = Selection { from, source };
        let hash = match &layers {
            Some(_) => None,
            None => Some(self.hash_context(&selection.copy_to("/")).await?.digest),
        };
        Ok(Files { selection, layers, hash })
    }

    /// The key of a step by what is in the stages and images that it mounts, rather than by what these are; none if it
    /// mounts none.
    pub(in crate::build) async fn mounts_content_key(
        &self,
        mounts: &RunMounts,
    ) -> Result<Option<Digest>, EngineError> {
        let Some(mut key) = mounts.fields.clone() else { return Ok(None) };
        let mut hashes = Vec::new();
        for planned in &mounts.mounts {
            let hash = match &planned.files {
                Some(Files { selection, layers: Some(layers), .. }) => {
                    self.ensure(layers).await?;
                    let worker = self.trees.worker().await?;
                    let request = Request::Hash(selection.copy_to("/"));
                    let Response::Hashed(hash) = worker.call(request, Vec::new()).await? else {
                        return Err(EngineError::Protocol);
                    };
                    Some(hash)
                }
                Some(files) => files.hash,
                None => None,
            };
            hashes.push(hash);
        }
        key.text("mounts by content");
        for (planned, hash) in mounts.mounts.iter().zip(hashes) {
            planned.describe(&mut key);
            if let Some(hash) = hash {
                key.digest(hash);
            }
        }
        Ok(Some(key.finish()))
    }
}

impl RunMounts {
    /// Adds to a step's key what it can see of its mounts.
    pub(in crate::build) fn add_to(&mut self, key: &mut KeyBuilder) {
        if self.mounts.is_empty() {
            return;
        }
        let in_layers =
            |planned: &PlannedMount| planned.files.as_ref().is_some_and(|files| files.layers.is_some());
        if self.mounts.iter().any(in_layers) {
            self.fields = Some(key.clone());
        }
        key.text("mounts");
        for planned in &self.mounts {
            planned.describe(key);
            match &planned.files {
                Some(Files { layers: Some(layers), .. }) => {
                    key.list(layers.iter().map(|layer| layer.diff_id.to_string()));
                }
                Some(Files { hash: Some(hash), .. }) => {
                    key.digest(*hash);
                }
                _ => {}
            }
        }
    }
}

impl RunMounts {
    /// Says what a step can see of its mounts, for people.
    pub(in crate::build) fn tell(&self, facts: &mut Facts) {
        for planned in &self.mounts {
            let mut key = KeyBuilder::new("mount");
            planned.describe(&mut key);
            match &planned.files {
                Some(Files { layers: Some(layers), .. }) => {
                    key.list(layers.iter().map(|layer| layer.diff_id.to_string()));
                }
                Some(Files { hash: Some(hash), .. }) => {
                    key.digest(*hash);
                }
                _ => {}
            }
            facts.see(format!("what is mounted at `{}`", planned.target), &key.finish().to_string());
        }
    }
}

impl PlannedMount {
    fn describe(&self, key: &mut KeyBuilder) {
        let mount = &self.mount;
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        key.text(match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Cache => "cache",
            MountKind::Tmpfs => "tmpfs",
            MountKind::Secret => "secret",
            MountKind::Ssh => "ssh",
        });
        key.text(&self.target).number(u64::from(mount.read_only)).optional(mount.source.as_deref());
        key.optional(mount.size_bytes.map(|bytes| bytes.to_string()).as_deref());
        key.optional(mount.id.as_deref()).optional(mount.env.as_deref());
        key.text(match mount.sharing {
            Sharing::Shared => "shared",
            Sharing::Private => "private",
            Sharing::Locked => "locked",
        });
        for value in [mount.mode, mount.uid, mount.gid] {
            key.optional(number(value).as_deref());
        }
    }

    /// The id of a secret, an agent or a cache.
    pub(super) fn id(&self) -> String {
        let mount = &self.mount;
        let named = mount.id.clone().filter(|id| !id.is_empty());
        named.unwrap_or_else(|| match (mount.kind, mount.target.as_deref()) {
            (MountKind::Ssh, _) => "default".to_owned(),
            (MountKind::Secret, Some(target)) => base_name(target),
            // As written, without what does not matter.
            (_, Some(target)) if !target.starts_with('/') => {
                absolute(target, "/").trim_start_matches('/').to_owned()
            }
            _ => self.target.clone(),
        })
    }
}

/// Where a mount is seen.
fn target(mount: &Mount, directory: &str, agents: &mut u32) -> String {
    let given = mount.target.as_deref();
    match (mount.kind, given) {
        (MountKind::Secret, None) => {
            format!("/run/secrets/{}", base_name(mount.id.as_deref().unwrap_or_default()))
        }
        (MountKind::Ssh, _) => {
            let number = *agents;
            *agents += 1;
            given.map_or_else(
                || format!("/run/buildkit/ssh_agent.{number}"),
                |target| absolute(target, directory),
            )
        }
        (_, Some(target)) => absolute(target, directory),
        (_, None) => directory.to_owned(),
    }
}

fn base_name(path: &str) -> String {
    let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "secret".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::{Escape, Instruction, parse_trigger};

    fn planned(flags: &[&str]) -> Vec<PlannedMount> {
        let mounts: Vec<String> = flags.iter().map(|flags| format!("--mount={flags}")).collect();
        let text = format!("RUN {} true", mounts.join(" "));
        let Instruction::Run(run) = parse_trigger(&text, "a test").unwrap().instruction else { panic!() };
        let lookup = |_: &str| None;
        let mounts = run.mounts(&Expander::new(Escape::default(), &lookup)).unwrap();
        let mut agents = 0;
        let plan = |mount: Mount| {
            let target = target(&mount, "/w", &mut agents);
            PlannedMount { mount, target, files: None }
        };
        mounts.into_iter().map(plan).collect()
    }

    fn one(flags: &str) -> PlannedMount {
        planned(&[flags]).pop().unwrap()
    }

    #[test]
    fn a_mount_is_where_it_is_said_or_where_its_kind_is() {
        for (flags, target) in [
            ("type=bind,target=/a/../b", "/b"),
            ("type=bind,target=c", "/w/c"),
            ("type=cache,target=/c/", "/c"),
            ("type=tmpfs,target=/t", "/t"),
            ("type=secret,id=dir/token", "/run/secrets/token"),
            ("type=secret,id=token,target=t", "/w/t"),
            ("type=ssh", "/run/buildkit/ssh_agent.0"),
            ("type=ssh,target=/agent", "/agent"),
        ] {
            assert_eq!(one(flags).target, target, "{flags}");
        }
        let agents = planned(&["type=ssh,id=a", "type=tmpfs,target=/t", "type=ssh,id=b"]);
        assert_eq!(agents[2].target, "/run/buildkit/ssh_agent.1");
    }

    #[test]
    fn a_mount_without_an_id_has_that_of_its_kind() {
        for (flags, id) in [
            ("type=cache,target=/c", "/c"),
            ("type=cache,target=c/./d", "c/d"),
            ("type=cache,id=x,target=/c", "x"),
            ("type=cache,id=,target=/c", "/c"),
            ("type=secret,target=/etc/token", "token"),
            ("type=ssh", "default"),
            ("type=ssh,id=other", "other"),
        ] {
            assert_eq!(one(flags).id(), id, "{flags}");
        }
    }

    #[test]
    fn a_key_sees_everything_of_a_mount_but_whether_it_must_be_given() {
        let key = |flags: &str| {
            let mut key = KeyBuilder::new("t");
            let mut mounts = RunMounts { mounts: planned(&[flags]), fields: None };
            mounts.add_to(&mut key);
            key.finish()
        };
        let all = [
            "type=cache,target=/c",
            "type=cache,target=/d",
            "type=cache,target=/c,ro",
            "type=cache,target=/c,id=x",
            "type=cache,target=/c,sharing=locked",
            "type=cache,target=/c,sharing=private",
            "type=cache,target=/c,mode=0700",
            "type=cache,target=/c,uid=1",
            "type=cache,target=/c,gid=1",
            "type=tmpfs,target=/c",
            "type=tmpfs,target=/c,size=1m",
            "type=secret,id=x,target=/c",
            "type=secret,id=y,target=/c",
            "type=secret,id=x,env=X",
            "type=ssh,target=/c",
        ];
        let keys: std::collections::BTreeSet<Digest> = all.iter().map(|flags| key(flags)).collect();
        assert_eq!(keys.len(), all.len());
        assert_eq!(key("type=secret,id=x,target=/c,required=true"), key("type=secret,id=x,target=/c"));
    }

    #[test]
    fn a_run_without_mounts_has_the_key_that_it_had_before_there_were_any() {
        let mut key = KeyBuilder::new("t");
        let before = key.finish();
        RunMounts::default().add_to(&mut key);
        assert_eq!(key.finish(), before);
    }
}
