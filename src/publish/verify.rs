//! Whether an image is what its build says.

use std::path::{Component, Path, PathBuf};

use super::facts::{Found, Stack};
use super::program::machine_of;
use super::{PublishError, Publisher};
use crate::model::PlatformImage;
use crate::oci::{Descriptor, Manifest, Platform, Repository, RunConfig, Target};

/// Where programs are looked for when the image does not say (Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Publisher {
    /// The descriptor of an image that was looked at and is right.
    pub(super) async fn verify(
        &self,
        repository: &Repository,
        image: &PlatformImage,
    ) -> Result<(Platform, Descriptor), PublishError> {
        let platform = image.platform.clone();
        let found = self.client.find_manifest(repository, &Target::Digest(image.manifest)).await?;
        let Some(raw) = found else {
            return Err(PublishError::Missing { platform, manifest: image.manifest });
        };
        let Some(manifest) = raw.as_image().filter(|manifest| manifest.config.media_type.is_image_config())
        else {
            return Err(PublishError::NotAnImage { platform, manifest: image.manifest });
        };
        let (config, _) = self.client.image_config(repository, manifest).await?;
        if config.platform().ok().as_ref() != Some(&platform) {
            let variant = config.variant.map(|variant| format!("/{variant}")).unwrap_or_default();
            let config = format!("{}/{}{variant}", config.os, config.architecture);
            return Err(PublishError::ConfigPlatform { platform, config });
        }
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(PublishError::Layers { platform, layers, diff_ids });
        }
        self.verify_program(repository, &platform, manifest, &config.config).await?;
        Ok((platform, raw.descriptor()))
    }

    /// Finds the program that starts first and reads which machine it is for. What is not found, is a script or lies deep in layers
    /// too large to look into passes.
    async fn verify_program(
        &self,
        repository: &Repository,
        platform: &Platform,
        manifest: &Manifest,
        config: &RunConfig,
    ) -> Result<(), PublishError> {
        let Some(expected) = machine_of(platform) else { return Ok(()) };
        let candidates = candidates(config);
        let mut stack = Stack::default();
        for layer in manifest.layers.iter().rev() {
            if candidates.is_empty() {
                break;
            }
            let Some(facts) = self.facts.of_layer(&self.client, repository, layer).await? else {
                return Ok(());
            };
            stack.push(facts);
            match candidates.iter().find_map(|path| Some((path, stack.find(path)?))) {
                Some((path, Found::Program(machine))) if machine != expected => {
                    return Err(PublishError::Machine {
                        platform: platform.clone(),
                        program: path.display().to_string(),
                        machine: machine.to_string(),
                    });
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }
}

/// The paths, in order, where the first word of the command may be.
fn candidates(config: &RunConfig) -> Vec<PathBuf> {
    let entrypoint = config.entrypoint.as_ref().filter(|words| !words.is_empty());
    let Some(program) = entrypoint.or(config.cmd.as_ref()).and_then(|words| words.first()) else {
        return Vec::new();
    };
    let directory = Path::new("/").join(config.working_dir.as_deref().unwrap_or("/"));
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![lexical(&directory.join(program))];
    }
    let path = config.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH).split(':').filter(|part| part.starts_with('/'));
    directories.take(64).map(|part| lexical(&Path::new(part).join(program))).collect()
}

/// The path without `.` and empty parts; `..` stays, to be resolved where links are known.
fn lexical(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(config: &RunConfig) -> Vec<String> {
        candidates(config).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_first_program_is_the_entrypoints_or_the_commands() {
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let mut config = RunConfig { cmd: words("./server -v"), ..RunConfig::default() };
        assert_eq!(paths(&config), ["/server"]);
        config.working_dir = Some("/app".to_owned());
        assert_eq!(paths(&config), ["/app/server"]);
        config.entrypoint = words("/bin/sh -c x");
        assert_eq!(paths(&config), ["/bin/sh"]);
        config.entrypoint = words("python3");
        config.env = vec!["PATH=/opt/bin:relative:/usr/bin".to_owned()];
        assert_eq!(paths(&config), ["/opt/bin/python3", "/usr/bin/python3"]);
        assert_eq!(
            paths(&RunConfig { entrypoint: Some(vec![]), ..RunConfig::default() }),
            Vec::<String>::new()
        );
    }
}
