//! `--driver=ci`: what other jobs of a pipeline have built, from the digests that they left in files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::{BuildArguments, Refusal, code};
use crate::build::chain;
use crate::model::PlatformImage;
use crate::oci::{Digest, Platform, Reference, Repository};
use crate::publish::{Access, Place, Publisher};
use crate::registry::client::Reach;

/// The largest file of digests.
const MAX_BYTES: u64 = 64 << 10;
/// The most files that are looked at.
const MAX_FILES: usize = 1000;

/// The images whose digests are in the files of `--digests-from`; one for each of `platforms`, if any are named.
pub(super) async fn gather(
    arguments: &BuildArguments,
    platforms: &[Platform],
) -> Result<Vec<PlatformImage>, Refusal> {
    let directory = arguments.multi.digests_from.as_deref();
    let directory = directory.ok_or_else(|| {
        "`--driver=ci` builds nothing: give `--digests-from DIRECTORY`, with the digests of what is built"
            .to_owned()
    })?;
    let destination = super::repository(arguments)?;
    // A job that pushes to two places writes a line for each, of one digest.
    let repositories: Vec<&Repository> =
        arguments.destination.iter().map(|destination| &destination.repository).collect();
    let digests = digests(directory, &repositories)?;
    let host = destination.repository.host.clone();
    let place = Place { host, prefix: None, is_plain: false, access: Access::Open, reach: Reach::default() };
    let publisher = Publisher::new(super::client(arguments)?, place);
    let mut images: BTreeMap<Platform, (PathBuf, PlatformImage)> = BTreeMap::new();
    for (digest, file) in digests {
        let image = publisher.image_in(&destination.repository, digest).await;
        let image = image.map_err(|error| Refusal {
            text: format!("`{}`: {}", file.display(), chain(&error).join(": ")),
            code: code::APP,
        })?;
        let platform = image.platform.clone();
        if let Some((first, _)) = images.insert(platform.clone(), (file.clone(), image)) {
            let text = format!("`{}` and `{}` are both for {platform}", first.display(), file.display());
            return Err(Refusal { text, code: code::APP });
        }
    }
    let app = |text: String| Refusal { text, code: code::APP };
    if let Some(missing) = platforms.iter().find(|platform| !images.contains_key(platform)) {
        let found: Vec<String> = images.keys().map(ToString::to_string).collect();
        return Err(app(format!(
            "no file in `{}` is for {missing}: there is {}",
            directory.display(),
            found.join(", ")
        )));
    }
    if let Some(other) = images.keys().find(|platform| !platforms.is_empty() && !platforms.contains(platform))
    {
        return Err(app(format!(
            "`{}` has an image for {other}, which `--multi-platform` does not name",
            directory.display()
        )));
    }
    Ok(images.into_values().map(|(_, image)| image).collect())
}

/// The digests in the files of a directory, each once, with the file that it is from.
fn digests(directory: &Path, repositories: &[&Repository]) -> Result<Vec<(Digest, PathBuf)>, String> {
    let unreadable = |error: std::io::Error| format!("`{}`: {error}", directory.display());
    let mut files = Vec::new();
    // Pipelines put each job's files into a directory of its own.
    for entry in walkdir::WalkDir::new(directory).max_depth(3).sort_by_file_name() {
        let entry = entry.map_err(|error| unreadable(error.into()))?;
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if entry.file_type().is_file() && !is_hidden {
            files.push(entry.into_path());
        }
        if files.len() > MAX_FILES {
            return Err(format!(
                "`{}` has more than {MAX_FILES} files: is it the directory of digests?",
                directory.display()
            ));
        }
    }
    let mut found: Vec<(Digest, PathBuf)> = Vec::new();
    for file in files {
        let size = std::fs::metadata(&file).map_err(unreadable)?.len();
        if size > MAX_BYTES {
            return Err(format!("`{}` is too large for a file of digests", file.display()));
        }
        let text =
            std::fs::read_to_string(&file).map_err(|error| format!("`{}`: {error}", file.display()))?;
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = || format!("`{}`, line {}", file.display(), index + 1);
            let digest = digest(line.trim(), repositories).map_err(|why| format!("{}: {why}", at()))?;
            if !found.iter().any(|(known, _)| *known == digest) {
                found.push((digest, file.clone()));
            }
        }
    }
    if found.is_empty() {
        return Err(format!("no file in `{}` holds a digest", directory.display()));
    }
    Ok(found)
}

/// `sha256:…`, `REPOSITORY@sha256:…` or `REPOSITORY:TAG@sha256:…`.
fn digest(line: &str, repositories: &[&Repository]) -> Result<Digest, String> {
    if let Ok(digest) = line.parse::<Digest>() {
        return Ok(digest);
    }
    let reference: Reference = line.parse().map_err(|error| format!("{error}"))?;
    let digest = reference.digest.ok_or_else(|| format!("`{line}` has no digest"))?;
    if !repositories.contains(&&reference.repository) {
        let names: Vec<String> = repositories.iter().map(ToString::to_string).collect();
        return Err(format!(
            "`{line}` is in another repository than the index, {}, and an index names what is in its own",
            names.join(", ")
        ));
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_what_the_flags_of_a_build_write() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Digest::of("1"), Digest::of("2"));
        std::fs::create_dir(dir.path().join("arm64")).unwrap();
        std::fs::write(dir.path().join("amd64.txt"), format!("{one}")).unwrap();
        let both = format!("r.example/app@{two}\nr.example/app:1@{two}\nr.example/more@{two}\n");
        std::fs::write(dir.path().join("arm64/digest"), both).unwrap();
        let repository = |name: &str| format!("r.example/{name}").parse::<Repository>().unwrap();
        let (app, more, other) = (repository("app"), repository("more"), repository("other"));
        let found = digests(dir.path(), &[&app, &more]).unwrap();
        assert_eq!(found.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [one, two]);
        assert!(digests(dir.path(), &[&app]).unwrap_err().contains("line 3"));
        assert!(digests(dir.path(), &[&other]).unwrap_err().contains("line 1"));
        std::fs::write(dir.path().join("x"), "hello\n").unwrap();
        assert!(digests(dir.path(), &[&app, &more]).unwrap_err().contains("has no digest"));
    }
}
