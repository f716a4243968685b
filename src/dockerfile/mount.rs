//! `RUN --mount` and `--device`: comma-separated fields.

use super::error::Problem;
use super::expansion::{ExpandError, Expander};
use super::lexer::Escape;
use super::words::comma_separated;
use crate::model::nearest;

/// The value of a `--mount`, checked as far as it can be before its variables are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    fields: Vec<String>,
    from: Option<String>,
}

/// A mount of one RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `type`
    pub kind: MountKind,
    /// `from`: a stage, a named context or an image.
    pub from: Option<String>,
    /// `source`: a path in `from` or in the context.
    pub source: Option<String>,
    /// `target`: relative ones begin at the working directory, which is also the default.
    pub target: Option<String>,
    /// Not writable: the default of bind, secret and ssh.
    pub read_only: bool,
    /// `size` of a tmpfs.
    pub size_bytes: Option<u64>,
    /// `id` of a cache, a secret or an agent. For a secret, `source` means the same and is found here.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Sharing,
    /// A secret or agent that is not there is an error.
    pub required: bool,
    /// `env`: the secret is a variable of this name; empty is the default name.
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountKind {
    /// Files of a stage, an image or the context; what is written is thrown away.
    #[default]
    Bind,
    /// A directory that lives from build to build.
    Cache,
    /// An empty directory in memory.
    Tmpfs,
    /// A secret, as a file or a variable.
    Secret,
    /// The socket of an SSH agent.
    Ssh,
}

/// What concurrent builds do with a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// All use it at once.
    #[default]
    Shared,
    /// Each has its own.
    Private,
    /// The second waits.
    Locked,
}

/// `RUN --device`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device's name in the container device interface.
    pub name: String,
    /// Its absence is an error.
    pub required: bool,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "size",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "env",
];

impl MountSpec {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let fields = comma_separated(text)
            .ok_or_else(|| Problem::Mount(format!("a quote in `{text}` never closes")))?;
        let mut from = None;
        for field in &fields {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            if key.eq_ignore_ascii_case("from") {
                if value.contains('$') && !value.ends_with('$') {
                    return Err(Problem::VariableInFrom {
                        place: "RUN --mount=from",
                        value: value.to_owned(),
                    });
                }
                from = Some(value.to_owned());
            }
        }
        let spec = Self { fields, from };
        if !text.contains('$') {
            let none = |_: &str| None;
            spec.resolve(&Expander::new(Escape::Backslash, &none)).map_err(|error| match error {
                ExpandError::Mount(reason) => Problem::Mount(reason),
                other => Problem::Expansion(other),
            })?;
        }
        Ok(spec)
    }

    /// `from`, which has no variables.
    #[must_use]
    pub fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }

    /// The mount, with variables replaced in every value.
    pub fn resolve(&self, expander: &Expander<'_>) -> Result<Mount, ExpandError> {
        let mut draft = Draft::default();
        for field in &self.fields {
            match field.split_once('=') {
                None => draft.switch(field).map_err(ExpandError::Mount)?,
                Some((key, value)) => {
                    let value = if key.eq_ignore_ascii_case("from") {
                        value.to_owned()
                    } else {
                        expander.word(value)?
                    };
                    draft.set(&key.to_ascii_lowercase(), value).map_err(ExpandError::Mount)?;
                }
            }
        }
        draft.finish().map_err(ExpandError::Mount)
    }
}

#[derive(Default)]
struct Draft {
    kind: MountKind,
    from: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: Option<bool>,
    size_bytes: Option<u64>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: Option<bool>,
    env: Option<String>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Draft {
    fn switch(&mut self, key: &str) -> Result<(), String> {
        match key.to_ascii_lowercase().as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => self.required = Some(true),
            known if KEYS.contains(&known) => return Err(format!("`{key}` needs a value: `{key}=…`")),
            _ => return Err(unknown_key(key)),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        let wrong = |value: &str| format!("`{value}` is not a value of `{key}`");
        let number = |radix| u32::from_str_radix(&value, radix).map_err(|_| wrong(&value));
        match key {
            "type" => self.kind = kind(&value)?,
            "from" => self.from = Some(value),
            "source" | "src" => self.source = Some(value),
            "target" | "dst" | "destination" => self.target = Some(value),
            "readonly" | "ro" => self.read_only = Some(boolean(&value).ok_or_else(|| wrong(&value))?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(&value).ok_or_else(|| wrong(&value))?),
            "required" => self.required = Some(boolean(&value).ok_or_else(|| wrong(&value))?),
            "size" => self.size_bytes = Some(size_bytes(&value).ok_or_else(|| wrong(&value))?),
            "id" => self.id = Some(value),
            "sharing" => self.sharing = Some(sharing(&value)?),
            "mode" => self.mode = Some(number(8)?),
            "uid" => self.uid = Some(number(10)?),
            "gid" => self.gid = Some(number(10)?),
            "env" => self.env = Some(value),
            _ => return Err(unknown_key(key)),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Mount, String> {
        self.check()?;
        if self.kind == MountKind::Secret {
            self.id = self.id.or_else(|| self.source.take());
        }
        let writable = matches!(self.kind, MountKind::Cache | MountKind::Tmpfs);
        Ok(Mount {
            kind: self.kind,
            from: self.from,
            source: self.source,
            target: self.target,
            read_only: self.read_only.unwrap_or(!writable),
            size_bytes: self.size_bytes,
            id: self.id,
            sharing: self.sharing.unwrap_or_default(),
            required: self.required.unwrap_or(false),
            env: self.env,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        })
    }

    fn check(&self) -> Result<(), String> {
        let secret_or_ssh = matches!(self.kind, MountKind::Secret | MountKind::Ssh);
        let owned = secret_or_ssh || self.kind == MountKind::Cache;
        let only = |given: bool, allowed: bool, key: &str, kinds: &str| {
            if given && !allowed { Err(format!("`{key}` is for {kinds} mounts only")) } else { Ok(()) }
        };
        only(self.mode.is_some(), owned, "mode", "cache, secret and ssh")?;
        only(self.uid.is_some(), owned, "uid", "cache, secret and ssh")?;
        only(self.gid.is_some(), owned, "gid", "cache, secret and ssh")?;
        only(self.required.is_some(), secret_or_ssh, "required", "secret and ssh")?;
        only(self.size_bytes.is_some(), self.kind == MountKind::Tmpfs, "size", "tmpfs")?;
        only(self.sharing.is_some(), self.kind == MountKind::Cache, "sharing", "cache")?;
        only(self.env.is_some(), self.kind == MountKind::Secret, "env", "secret")?;
        let target = self.target.as_deref();
        if target.is_some_and(|target| target.starts_with('/') && target.trim_matches('/').is_empty()) {
            return Err("the target may not be `/`".to_owned());
        }
        match self.kind {
            MountKind::Secret if self.from.is_some() => Err("a secret has no `from`".to_owned()),
            MountKind::Secret if self.source.is_some() && self.id.is_some() => {
                Err("a secret has `id` or `source`, which mean the same, not both".to_owned())
            }
            MountKind::Secret if self.source.is_none() && self.id.is_none() && target.is_none() => {
                Err("a secret needs `id` or `target`".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn unknown_key(key: &str) -> String {
    let similar = nearest(key, KEYS).map(|name| format!(", did you mean `{name}`?"));
    format!("unknown key `{key}`{}", similar.unwrap_or_default())
}

fn kind(value: &str) -> Result<MountKind, String> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "bind" => MountKind::Bind,
        "cache" => MountKind::Cache,
        "tmpfs" => MountKind::Tmpfs,
        "secret" => MountKind::Secret,
        "ssh" => MountKind::Ssh,
        _ => return Err(format!("type `{value}` is not bind, cache, tmpfs, secret or ssh")),
    })
}

fn sharing(value: &str) -> Result<Sharing, String> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "shared" => Sharing::Shared,
        "private" => Sharing::Private,
        "locked" => Sharing::Locked,
        _ => return Err(format!("sharing `{value}` is not shared, private or locked")),
    })
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `64m`, `1.5GiB`: powers of 1024.
fn size_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..)?.to_ascii_lowercase();
    let unit = unit.strip_suffix('b').map_or(unit.as_str(), |unit| unit.strip_suffix('i').unwrap_or(unit));
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let factor = 1_u64.checked_shl(u32::try_from(shift * 10).ok()?)?;
    let (whole, fraction) = digits.trim_end().split_once('.').unwrap_or((digits.trim_end(), ""));
    let bytes = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if fraction.is_empty() {
        return Some(bytes);
    }
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    bytes.checked_add(fraction.parse::<u64>().ok()?.checked_mul(factor)? / scale)
}

impl Device {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let fail = |reason: String| Problem::Device(reason);
        let fields =
            comma_separated(text).ok_or_else(|| fail(format!("a quote in `{text}` never closes")))?;
        let mut name = None;
        let mut required = false;
        for field in fields {
            match field.split_once('=') {
                None if field.eq_ignore_ascii_case("required") => required = true,
                Some((key, value)) if key.eq_ignore_ascii_case("required") => {
                    required =
                        boolean(value).ok_or_else(|| fail(format!("`{value}` is not true or false")))?;
                }
                Some((key, value)) if key.eq_ignore_ascii_case("name") && name.is_none() => {
                    name = Some(value.to_owned());
                }
                _ if name.is_none() => name = Some(field),
                _ => return Err(fail(format!("unexpected `{field}`"))),
            }
        }
        let name =
            name.filter(|name| !name.is_empty()).ok_or_else(|| fail("a name is missing".to_owned()))?;
        Ok(Self { name, required })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let lookup = |name: &str| (name == "DIR").then(|| "/d".to_owned());
        let spec = MountSpec::parse(text).map_err(|problem| problem.to_string())?;
        spec.resolve(&Expander::new(Escape::Backslash, &lookup)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bind_mount_is_the_default_and_read_only() {
        let bind = mount("target=/x,from=base,src=/y").unwrap();
        assert_eq!((bind.kind, bind.read_only), (MountKind::Bind, true));
        assert_eq!((bind.from.as_deref(), bind.source.as_deref()), (Some("base"), Some("/y")));
        assert!(!mount("target=/x,rw").unwrap().read_only);
        assert!(!mount("target=/x,readonly=false").unwrap().read_only);
    }

    #[test]
    fn a_cache_mount_has_id_sharing_mode_and_owner() {
        let cache = mount("type=cache,dst=/c,id=i,sharing=locked,mode=0700,uid=1,gid=2").unwrap();
        assert_eq!((cache.kind, cache.sharing, cache.read_only), (MountKind::Cache, Sharing::Locked, false));
        assert_eq!((cache.mode, cache.uid, cache.gid), (Some(0o700), Some(1), Some(2)));
    }

    #[test]
    fn a_tmpfs_has_a_size_in_powers_of_1024() {
        assert_eq!(mount("type=tmpfs,target=/t,size=1.5g").unwrap().size_bytes, Some(3 << 29));
        assert_eq!(mount("type=tmpfs,target=/t,size=64MiB").unwrap().size_bytes, Some(64 << 20));
        assert!(mount("type=tmpfs,target=/t,size=many").is_err());
    }

    #[test]
    fn the_source_of_a_secret_is_its_id() {
        assert_eq!(mount("type=secret,source=s").unwrap().id.as_deref(), Some("s"));
        assert!(mount("type=secret,id=a,source=b").is_err());
        assert!(mount("type=secret").is_err());
        assert_eq!(mount("type=secret,id=a,env=TOKEN,required").unwrap().env.as_deref(), Some("TOKEN"));
    }

    #[test]
    fn keys_belong_to_their_kinds() {
        for text in
            ["target=/x,mode=0700", "target=/x,sharing=shared", "target=/x,size=1", "target=/x,required"]
        {
            assert!(mount(text).is_err(), "{text}");
        }
        assert_eq!(mount("target=/").unwrap_err(), "--mount: the target may not be `/`");
    }

    #[test]
    fn keys_may_be_in_any_case_and_unknown_ones_name_the_nearest() {
        assert!(mount("TYPE=Cache,Target=/x").is_ok());
        assert_eq!(mount("tpye=cache").unwrap_err(), "--mount: unknown key `tpye`, did you mean `type`?");
        assert_eq!(mount("type=cache,target").unwrap_err(), "--mount: `target` needs a value: `target=…`");
    }

    #[test]
    fn all_fields_but_from_take_variables() {
        assert_eq!(mount("target=${DIR}/x").unwrap().target.as_deref(), Some("/d/x"));
        assert!(mount("target=/x,from=$DIR").is_err());
    }

    #[test]
    fn fields_may_be_quoted() {
        assert_eq!(mount("target=/x,\"source=a,b\"").unwrap().source.as_deref(), Some("a,b"));
    }
}
