//! What `hephy build` lets RUN steps have: secrets, agents, caches and permissions.

use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use crate::build::{Entitlement, MountOptions, SecretSource, certificates};
use crate::config::server::Size;

/// The largest bundle; those of distributions have a quarter of a megabyte.
const MAX_BUNDLE_BYTES: u64 = 4 << 20;

/// What RUN steps may have.
#[derive(Debug, Clone, Args)]
pub struct MountArguments {
    /// A secret for `RUN --mount=type=secret`: id=NAME with src=FILE or env=VARIABLE, else the variable or file NAME; may be repeated
    #[arg(long, value_name = "id=NAME[,src=FILE|,env=VARIABLE]")]
    pub secret: Vec<GivenSecret>,
    /// An agent for `RUN --mount=type=ssh`: `default` is that of SSH_AUTH_SOCK; may be repeated
    #[arg(long, value_name = "default|ID=SOCKET")]
    pub ssh: Vec<GivenAgent>,
    /// What the Dockerfile may ask for: `security.insecure` gives RUN --security=insecure every capability of the sandbox
    #[arg(long, value_name = "ENTITLEMENT")]
    pub allow: Vec<Entitlement>,
    /// A PEM file with certificates that RUN trusts beside those of its image, and ADD, contexts and registries are believed by; none is
    /// in the image afterwards
    #[arg(long, env = "HEPHY_CA_BUNDLE", value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// The same without a file, for the engine of a Job
    #[arg(long, hide = true, env = "HEPHY_CA_BUNDLE_PEM", hide_env_values = true, value_name = "PEM")]
    pub ca_bundle_pem: Option<String>,
    /// Whose the cache mounts are: builds of one scope share them
    #[arg(long, value_name = "NAME", default_value = "")]
    pub cache_mount_scope: String,
    /// How large all cache mounts may be together; the longest unused go first
    #[arg(long, value_name = "BYTES", default_value = "20GiB")]
    pub cache_mount_limit: Size,
    /// How large a cache mount may be that is saved in `--cache-repo` for other machines; 0 saves and restores none
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    pub cache_mount_save_limit: Size,
}

impl MountArguments {
    /// What the engine is told.
    pub(super) fn options(&self) -> Result<MountOptions, String> {
        Ok(MountOptions {
            secrets: self.secret.iter().map(|given| (given.id.clone(), given.source.clone())).collect(),
            agents: self.ssh.iter().map(|given| (given.id.clone(), given.socket.clone())).collect(),
            allowed: self.allow.iter().copied().collect(),
            cache_scope: self.cache_mount_scope.clone(),
            ca_bundle: self.trusted()?,
            max_saved_bytes: self.cache_mount_save_limit.0,
            max_cache_bytes: self.cache_mount_limit.0,
        })
    }

    /// The certificates that are trusted beside the usual ones.
    pub(super) fn trusted(&self) -> Result<Option<String>, String> {
        let in_file = self.ca_bundle.as_deref().map(read_bundle).transpose()?;
        Ok(in_file.or_else(|| certificates(self.ca_bundle_pem.as_deref()?)))
    }
}

/// The certificates of a PEM file.
pub(in crate::cli) fn read_bundle(path: &Path) -> Result<String, String> {
    let error = |why: String| format!("--ca-bundle `{}`: {why}", path.display());
    let mut text = String::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_BUNDLE_BYTES + 1).read_to_string(&mut text));
    read.map_err(|why| error(why.to_string()))?;
    if text.len() as u64 > MAX_BUNDLE_BYTES {
        return Err(error("it has more than 4 MiB".to_owned()));
    }
    certificates(&text)
        .ok_or_else(|| error("it holds no certificate (`-----BEGIN CERTIFICATE-----`)".to_owned()))
}

/// `--secret`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenSecret {
    id: String,
    source: SecretSource,
}

impl FromStr for GivenSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for field in text.split(',') {
            let (key, value) =
                field.split_once('=').ok_or_else(|| format!("`{field}` is not `key=value`"))?;
            let place = match key.to_ascii_lowercase().as_str() {
                "id" => &mut id,
                "src" | "source" => &mut file,
                "env" => &mut variable,
                "type" => &mut kind,
                _ => return Err(format!("`{key}` is not `id`, `src`, `env` or `type`")),
            };
            *place = Some(value.to_owned());
        }
        let id = id.filter(|id| !id.is_empty()).ok_or("it needs `id=NAME`")?;
        // `type=env,src=NAME` is another way to say `env=NAME`.
        let source = match (kind.as_deref(), file, variable) {
            (None | Some("env"), None, Some(name)) | (Some("env"), Some(name), None) => {
                SecretSource::Environment(name)
            }
            (None | Some("file"), Some(path), None) => SecretSource::File(path.into()),
            (None, None, None) if std::env::var_os(&id).is_some() => SecretSource::Environment(id.clone()),
            (Some("env"), None, None) => SecretSource::Environment(id.clone()),
            (None | Some("file"), None, None) => SecretSource::File(id.clone().into()),
            (Some(kind), _, _) if kind != "env" && kind != "file" => {
                return Err(format!("type `{kind}` is not `file` or `env`"));
            }
            _ => return Err("it has one source: `src=FILE` or `env=VARIABLE`".to_owned()),
        };
        match &source {
            SecretSource::File(path) => {
                let metadata =
                    std::fs::metadata(path).map_err(|error| format!("`{}`: {error}", path.display()))?;
                if metadata.is_dir() {
                    return Err(format!("`{}` is a directory", path.display()));
                }
            }
            SecretSource::Environment(name) if std::env::var_os(name).is_none() => {
                return Err(format!("the variable `{name}` is not set"));
            }
            SecretSource::Environment(_) => {}
        }
        Ok(Self { id, source })
    }
}

/// `--ssh`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenAgent {
    id: String,
    socket: PathBuf,
}

impl FromStr for GivenAgent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, socket) = match text.split_once('=') {
            Some((id, socket)) => (id, PathBuf::from(socket)),
            None => {
                let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
                let socket =
                    socket.ok_or("SSH_AUTH_SOCK is not set: name a socket, as in `default=SOCKET`")?;
                (text, socket.into())
            }
        };
        if id.is_empty() {
            return Err("it needs an id, as in `default`".to_owned());
        }
        let metadata =
            std::fs::metadata(&socket).map_err(|error| format!("`{}`: {error}", socket.display()))?;
        if !metadata.file_type().is_socket() {
            let path = socket.display();
            return Err(format!(
                "`{path}` is not the socket of an agent; for a key, start one: `eval $(ssh-agent); ssh-add {path}`"
            ));
        }
        Ok(Self { id: id.to_owned(), socket })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_source() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let secret = |text: &str| text.parse::<GivenSecret>().map(|given| given.source);
        let from_file = Ok(SecretSource::File(file.path().to_owned()));
        assert_eq!(secret(&format!("id=a,src={path}")), from_file);
        assert_eq!(secret(&format!("type=file,id=a,source={path}")), from_file);
        let from_path = Ok(SecretSource::Environment("PATH".to_owned()));
        for text in ["id=a,env=PATH", "id=a,type=env,src=PATH", "id=PATH", "id=PATH,type=env"] {
            assert_eq!(secret(text), from_path, "{text}");
        }
        for text in
            ["src=x", "id=", "id=a,sorce=x", "id=a,src=/nowhere/x", "id=a,env=HEPHY_NO_SUCH", "id=a,type=b"]
        {
            assert!(secret(text).is_err(), "{text}");
        }
        assert!(secret(&format!("id=a,env=PATH,src={path}")).is_err());
    }

    #[test]
    fn an_agent_is_a_socket_and_a_key_is_told_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let agent: GivenAgent = format!("work={}", path.display()).parse().unwrap();
        assert_eq!(agent, GivenAgent { id: "work".to_owned(), socket: path });
        let error = "default=/etc/passwd".parse::<GivenAgent>().unwrap_err();
        assert!(error.contains("ssh-add"), "{error}");
    }
}
