//! What only the engine has, fetched when a step is about to run: secrets, agents, the context.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::agent::Forwarding;
use super::options::SecretSource;
use super::plan::{PlannedMount, RunMounts};
use super::request::{AgentSocket, CacheRequest, MountRequest, MountWhat, Selection};
use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::event::BuildEvent;
use crate::build::key::KeyBuilder;
use crate::build::process::blocking;
use crate::build::protocol::{CopyFrom, RunRequest};
use crate::dockerfile::{MountKind, Sharing};
use crate::layers::CacheSharing;
use crate::model::Secret;

/// The largest secret, as in BuildKit.
const MAX_SECRET_BYTES: u64 = 500 * 1024;

/// The variable that keeps cache mounts apart, as in BuildKit a build argument.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// What a step's mounts need as long as it runs.
#[derive(Default)]
pub(in crate::build) struct Materials {
    /// The directory of the context, if a mount is to be copied out of it.
    pub(in crate::build) context: Option<OwnedFd>,
    /// Pass on what the step asks agents, as long as they live.
    agents: Vec<Forwarding>,
}

impl Engine {
    /// Completes the request of a step with what its mounts are.
    pub(in crate::build) async fn provide(
        &mut self,
        mounts: &RunMounts,
        request: &mut RunRequest,
    ) -> Result<Materials, EngineError> {
        let mut materials = Materials::default();
        for planned in &mounts.mounts {
            let what = match planned.mount.kind {
                MountKind::Tmpfs => MountWhat::Tmpfs { max_bytes: planned.mount.size_bytes },
                MountKind::Bind => {
                    let files = planned.files.as_ref().ok_or(EngineError::Protocol)?;
                    MountWhat::Bind(self.at_hand(files.selection.clone(), &mut materials).await?)
                }
                MountKind::Cache => {
                    let seed = match &planned.files {
                        Some(files) => Some(self.at_hand(files.selection.clone(), &mut materials).await?),
                        None => None,
                    };
                    let cache = self.cache(planned, seed);
                    self.restore_cache(&cache, &planned.id(), planned.mount.read_only).await?;
                    MountWhat::Cache(cache)
                }
                MountKind::Secret => match self.secret(planned, &mut request.secrets).await? {
                    Some(what) => what,
                    None => continue,
                },
                MountKind::Ssh => match self.agent(planned, &mut materials, request).await? {
                    Some(what) => what,
                    None => continue,
                },
            };
            let (target, read_only) = (planned.target.clone(), planned.mount.read_only);
            request.mounts.push(MountRequest { target, read_only, what });
        }
        Ok(materials)
    }

    /// Where the worker finds files of the context.
    async fn at_hand(
        &mut self,
        selection: Selection,
        materials: &mut Materials,
    ) -> Result<Selection, EngineError> {
        match selection.from {
            CopyFrom::ContextDirectory { .. } if self.context_for_worker().await? => {
                Ok(Selection { from: CopyFrom::ContextCopy, ..selection })
            }
            CopyFrom::ContextDirectory { .. } => {
                if materials.context.is_none() {
                    materials.context = Some(self.context.descriptor()?);
                }
                Ok(selection)
            }
            _ => Ok(selection),
        }
    }

    fn cache(&self, planned: &PlannedMount, seed: Option<Selection>) -> CacheRequest {
        let mount = &planned.mount;
        let mut name = KeyBuilder::new("cache mount");
        name.text(&self.options.mounts.cache_scope);
        name.optional(self.options.build_args.get(CACHE_NAMESPACE).map(String::as_str));
        name.text(&planned.id()).optional(mount.from.as_deref());
        name.optional(mount.source.as_deref().filter(|_| mount.from.is_some()));
        for value in [mount.mode, mount.uid, mount.gid] {
            name.optional(value.map(|value| value.to_string()).as_deref());
        }
        let owned = mount.uid.is_some() || mount.gid.is_some();
        CacheRequest {
            name: name.finish(),
            sharing: match mount.sharing {
                Sharing::Shared => CacheSharing::Shared,
                Sharing::Private => CacheSharing::Private,
                Sharing::Locked => CacheSharing::Locked,
            },
            seed,
            mode: mount.mode,
            owner: owned.then(|| (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0))),
        }
    }

    /// A secret as a file; as a variable it is added to `variables`. None: there is no file of it.
    async fn secret(
        &self,
        planned: &PlannedMount,
        variables: &mut BTreeMap<String, Secret<String>>,
    ) -> Result<Option<MountWhat>, EngineError> {
        let (mount, id) = (&planned.mount, planned.id());
        let Some(source) = self.options.mounts.secrets.get(&id) else {
            if mount.required {
                return Err(EngineError::Wrong(format!(
                    "the secret `{id}` is required, and none was given: `--secret id={id},src=FILE` or `--secret id={id},env=NAME`"
                )));
            }
            (self.events)(BuildEvent::Note { text: not_given("secret", &id, &planned.target) });
            return Ok(None);
        };
        let content = read_secret(id.clone(), source.clone()).await?;
        if let Some(name) = &mount.env {
            let name = if name.is_empty() { id.clone() } else { name.clone() };
            let text = std::str::from_utf8(&content).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| {
                EngineError::Wrong(format!(
                    "the secret `{id}` cannot be the variable `{name}`: it is not UTF-8, or has a zero byte; mount it as a file"
                ))
            })?;
            variables.insert(name, Secret::new(text.to_owned()));
            if mount.target.is_none() {
                return Ok(None);
            }
        }
        let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let mode = mount.mode.unwrap_or(0o400);
        Ok(Some(MountWhat::Secret { content: Secret::new(content), mode, owner }))
    }

    /// The socket of an agent. None: there is none, and it is not required.
    async fn agent(
        &self,
        planned: &PlannedMount,
        materials: &mut Materials,
        request: &mut RunRequest,
    ) -> Result<Option<MountWhat>, EngineError> {
        let (mount, id) = (&planned.mount, planned.id());
        let Some(agent) = self.options.mounts.agents.get(&id) else {
            if mount.required {
                let given = if id == "default" { id.clone() } else { format!("{id}=SOCKET") };
                return Err(EngineError::Wrong(format!(
                    "the SSH agent `{id}` is required, and none was given: `--ssh {given}`"
                )));
            }
            (self.events)(BuildEvent::Note { text: not_given("SSH agent", &id, &planned.target) });
            return Ok(None);
        };
        let socket = AgentSocket(u32::try_from(materials.agents.len()).unwrap_or(u32::MAX));
        let owner = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let worker = self.trees.worker().await?;
        let forwarding = Forwarding::start(worker, agent, socket, mount.mode.unwrap_or(0o600), owner).await?;
        materials.agents.push(forwarding);
        request.environment.entry("SSH_AUTH_SOCK".to_owned()).or_insert_with(|| planned.target.clone());
        Ok(Some(MountWhat::Agent(socket)))
    }
}

/// What is told of a mount that is left out because the caller has nothing for it.
fn not_given(what: &str, id: &str, target: &str) -> String {
    let flag = if what == "secret" { "--secret" } else { "--ssh" };
    format!("the {what} `{id}` was not given (`{flag}`) and is not required: `{target}` will not be there")
}

async fn read_secret(id: String, source: SecretSource) -> Result<Vec<u8>, EngineError> {
    let wrong = |what: String| EngineError::Wrong(format!("the secret `{id}` cannot be read: {what}"));
    let content = match source {
        SecretSource::Environment(name) => match std::env::var_os(&name) {
            Some(value) => std::os::unix::ffi::OsStringExt::into_vec(value),
            None => return Err(wrong(format!("the variable `{name}` is not set"))),
        },
        SecretSource::File(path) => {
            let read = blocking(move || {
                Ok(read_file(&path).map_err(|error| format!("`{}`: {error}", path.display())))
            });
            read.await?.map_err(wrong)?
        }
    };
    if content.len() as u64 > MAX_SECRET_BYTES {
        return Err(wrong(format!("it is larger than {} KiB", MAX_SECRET_BYTES / 1024)));
    }
    Ok(content)
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_SECRET_BYTES + 1).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(source: SecretSource) -> Result<Vec<u8>, String> {
        read_secret("token".to_owned(), source).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_secret_is_read_up_to_its_limit_and_no_error_has_a_word_of_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = SecretSource::File(file.path().to_owned());
        let most = usize::try_from(MAX_SECRET_BYTES).unwrap();
        std::fs::write(file.path(), vec![b'z'; most]).unwrap();
        assert_eq!(read(source.clone()).await.unwrap().len(), most);
        std::fs::write(file.path(), vec![b'z'; most + 1]).unwrap();
        let error = read(source).await.unwrap_err();
        assert!(error.contains("`token`") && error.contains("500 KiB") && !error.contains("zzz"), "{error}");
        let error = read(SecretSource::File("/nowhere/at/all".into())).await.unwrap_err();
        assert!(error.contains("`token`") && error.contains("/nowhere/at/all"), "{error}");
        let error = read(SecretSource::Environment("HEPHY_NO_SUCH".to_owned())).await.unwrap_err();
        assert!(error.contains("`HEPHY_NO_SUCH` is not set"), "{error}");
    }

    #[test]
    fn what_was_not_given_is_told_with_its_flag_and_its_place() {
        let text = not_given("SSH agent", "default", "/run/x");
        assert!(
            text.contains("`default`") && text.contains("`--ssh`") && text.contains("`/run/x`"),
            "{text}"
        );
    }
}
