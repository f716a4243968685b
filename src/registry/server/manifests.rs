//! Manifests, tags and referrers (distribution-spec, "Pulling manifests", "Pushing manifests", "Listing").

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use serde_json::json;

use super::refusal::Refusal;
use super::storage::{Storage, optional};
use super::{Ask, Server, answer, not_allowed};
use crate::oci::{
    Descriptor, Digest, Index, MAX_MANIFEST_BYTES, Manifest, ManifestContent, MediaType, RawManifest,
    RepositoryName, Target,
};

/// How long a manifest may take to arrive.
const MANIFEST_LIMIT: std::time::Duration = std::time::Duration::from_mins(2);
/// The most tags on a page.
const TAG_PAGE: usize = 10_000;
/// The most referrers on a page.
const REFERRER_PAGE: usize = 500;

impl Server {
    pub(super) async fn manifest(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        target: &Target,
        body: Body,
    ) -> Result<Response<Body>, Refusal> {
        match ask.method {
            Method::GET | Method::HEAD => self.get_manifest(ask, name, target).await,
            Method::PUT => self.put_manifest(ask, name, target, body).await,
            Method::DELETE => self.delete_manifest(name, target).await,
            _ => Err(not_allowed(ask)),
        }
    }

    async fn get_manifest(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        target: &Target,
    ) -> Result<Response<Body>, Refusal> {
        let (repository, wanted) = (name.clone(), target.clone());
        let found = self.on_disk(move |storage| {
            let Some(digest) = resolve(storage, &repository, &wanted)? else { return Ok(None) };
            Ok(storage.manifest(&repository, &digest)?.map(|(media_type, bytes)| (digest, media_type, bytes)))
        });
        let Some((digest, media_type, bytes)) = found.await? else { return Err(unknown(name, target)) };
        let headers = [
            ("content-type", media_type.to_string()),
            ("content-length", bytes.len().to_string()),
            ("docker-content-digest", digest.to_string()),
            ("etag", format!("\"{digest}\"")),
        ];
        let body = if ask.method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
        Ok(answer(StatusCode::OK, &headers, body))
    }

    async fn put_manifest(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        target: &Target,
        body: Body,
    ) -> Result<Response<Body>, Refusal> {
        let arrived =
            tokio::time::timeout(MANIFEST_LIMIT, axum::body::to_bytes(body, MAX_MANIFEST_BYTES)).await;
        let bytes = arrived.ok().and_then(Result::ok).ok_or_else(|| {
            let message = format!("the manifest did not arrive, or has more than {MAX_MANIFEST_BYTES} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message)
        })?;
        let manifest = RawManifest::parse(bytes, ask.header("content-type")).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Refusal::bad("MANIFEST_INVALID", format!("{error}{cause}"))
        })?;
        let digest = manifest.digest();
        if let Target::Digest(expected) = *target
            && expected != digest
        {
            let message = format!("the manifest has digest `{digest}`, not `{expected}`");
            return Err(Refusal::bad("DIGEST_INVALID", message));
        }
        let mut headers = vec![
            ("location", format!("/v2/{name}/manifests/{digest}")),
            ("docker-content-digest", digest.to_string()),
        ];
        headers.extend(manifest.subject().map(|subject| ("oci-subject", subject.digest.to_string())));
        let _stays = self.shared.collecting.read().await;
        let (repository, target) = (name.clone(), target.clone());
        self.on_disk(move |storage| {
            check_complete(storage, &repository, &manifest)?;
            let tag = if let Target::Tag(tag) = &target { Some(tag) } else { None };
            let referrer = manifest.subject().map(|_| referrer(&manifest));
            Ok(storage.put_manifest(&repository, &manifest, referrer.as_ref(), tag)?)
        })
        .await?;
        tracing::debug!(repository = %name, digest = %digest, "manifest stored");
        Ok(answer(StatusCode::CREATED, &headers, Body::empty()))
    }

    async fn delete_manifest(
        &self,
        name: &RepositoryName,
        target: &Target,
    ) -> Result<Response<Body>, Refusal> {
        let _alone = self.shared.collecting.write().await;
        let (repository, wanted) = (name.clone(), target.clone());
        self.on_disk(move |storage| match &wanted {
            Target::Tag(tag) => {
                let removed = optional(std::fs::remove_file(storage.tags(&repository).join(tag.as_str())))?;
                removed.ok_or_else(|| unknown(&repository, &wanted))
            }
            Target::Digest(digest) => {
                if storage.manifest_size(&repository, digest)?.is_none() {
                    return Err(unknown(&repository, &wanted));
                }
                if let Some(index) = super::garbage::index_of(storage, &repository, digest)? {
                    let message = format!("the manifest is part of index `{index}`: delete that first");
                    return Err(Refusal::new(StatusCode::CONFLICT, "DENIED", message));
                }
                Ok(super::garbage::remove_manifest(storage, &repository, digest)?)
            }
        })
        .await?;
        Ok(answer(StatusCode::ACCEPTED, &[], Body::empty()))
    }

    pub(super) async fn tags(&self, ask: &Ask, name: &RepositoryName) -> Result<Response<Body>, Refusal> {
        if ask.method != Method::GET {
            return Err(not_allowed(ask));
        }
        let repository = name.clone();
        let tags = self.on_disk(move |storage| {
            if !storage.manifest_links(&repository).try_exists()? {
                return Err(Refusal::missing("NAME_UNKNOWN", format!("no repository `{repository}`")));
            }
            Ok(Storage::names_in(&storage.tags(&repository))?)
        });
        let (page, next) = page(ask, tags.await?, TAG_PAGE)?;
        let mut response = super::json(StatusCode::OK, &json!({ "name": name, "tags": page }));
        link(&mut response, next.map(|next| format!("/v2/{name}/tags/list?{next}")));
        Ok(response)
    }

    pub(super) async fn referrers(
        &self,
        ask: &Ask,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Response<Body>, Refusal> {
        if ask.method != Method::GET {
            return Err(not_allowed(ask));
        }
        let (repository, wanted) = (name.clone(), *subject);
        let names = self
            .on_disk(move |storage| Ok(Storage::names_in(&storage.referrers(&repository, &wanted))?))
            .await?;
        let (page, next) = page(ask, names, REFERRER_PAGE)?;
        let filter = ask.query("artifactType").map(MediaType::from);
        let (repository, wanted, of_type) = (name.clone(), *subject, filter.clone());
        let manifests = self.on_disk(move |storage| {
            let directory = storage.referrers(&repository, &wanted);
            let mut manifests = Vec::new();
            for entry in page {
                let Some(bytes) = optional(std::fs::read(directory.join(entry)))? else { continue };
                let referrer: Descriptor = serde_json::from_slice(&bytes).map_err(std::io::Error::other)?;
                if of_type.is_none() || referrer.artifact_type == of_type {
                    manifests.push(referrer);
                }
            }
            Ok(manifests)
        });
        let index = Index {
            schema_version: 2,
            media_type: Some(MediaType::ImageIndex),
            artifact_type: None,
            manifests: manifests.await?,
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let mut headers = vec![("content-type", MediaType::ImageIndex.to_string())];
        headers.extend(filter.as_ref().map(|_| ("oci-filters-applied", "artifactType".to_owned())));
        let body = Body::from(RawManifest::index(&index).bytes().clone());
        let mut response = answer(StatusCode::OK, &headers, body);
        let filter = filter.map(|filter| format!("artifactType={filter}&")).unwrap_or_default();
        link(&mut response, next.map(|next| format!("/v2/{name}/referrers/{subject}?{filter}{next}")));
        Ok(response)
    }
}

fn unknown(name: &RepositoryName, target: &Target) -> Refusal {
    Refusal::missing("MANIFEST_UNKNOWN", format!("no manifest `{target}` in `{name}`"))
}

fn resolve(storage: &Storage, name: &RepositoryName, target: &Target) -> std::io::Result<Option<Digest>> {
    match target {
        Target::Digest(digest) => Ok(Some(*digest)),
        Target::Tag(tag) => storage.tag(name, tag),
    }
}

/// Everything that a manifest names must be in the repository, as long as it says.
fn check_complete(storage: &Storage, name: &RepositoryName, manifest: &RawManifest) -> Result<(), Refusal> {
    match manifest.content() {
        ManifestContent::Index(index) => {
            for child in &index.manifests {
                check(child, "manifest", storage.manifest_size(name, &child.digest)?)?;
            }
        }
        ManifestContent::Image(Manifest { config, layers, .. }) => {
            for blob in std::iter::once(config).chain(layers) {
                let size = storage.blob_size(name, &blob.digest)?;
                // Layers that may not be distributed are had from elsewhere.
                let elsewhere = !blob.urls.is_empty() && matches!(blob.media_type, MediaType::Other(_));
                if size.is_some() || !elsewhere {
                    check(blob, "blob", size)?;
                }
            }
        }
    }
    Ok(())
}

fn check(named: &Descriptor, what: &str, size: Option<u64>) -> Result<(), Refusal> {
    match size {
        None => Err(Refusal::bad(
            "MANIFEST_BLOB_UNKNOWN",
            format!("{what} `{}` is not in this repository: push it first", named.digest),
        )),
        Some(size) if size != named.size => {
            let message = format!("{what} `{}` has {size} bytes, not {}", named.digest, named.size);
            Err(Refusal::bad("SIZE_INVALID", message))
        }
        Some(_) => Ok(()),
    }
}

/// How a manifest is listed among its subject's referrers.
fn referrer(manifest: &RawManifest) -> Descriptor {
    let mut descriptor = manifest.descriptor();
    match manifest.content() {
        ManifestContent::Image(image) => {
            descriptor.artifact_type =
                image.artifact_type.clone().or_else(|| Some(image.config.media_type.clone()));
            descriptor.annotations.clone_from(&image.annotations);
        }
        ManifestContent::Index(index) => {
            descriptor.artifact_type.clone_from(&index.artifact_type);
            descriptor.annotations.clone_from(&index.annotations);
        }
    }
    descriptor
}

/// The names after `last`, at most `n`; and the query of the next page if there is one.
fn page(ask: &Ask, names: Vec<String>, limit: usize) -> Result<(Vec<String>, Option<String>), Refusal> {
    let wanted = ask
        .query("n")
        .map(|n| n.parse::<usize>().map_err(|_| Refusal::bad("UNSUPPORTED", "`n` is not a number")));
    let size = wanted.transpose()?.unwrap_or(limit).min(limit);
    let last = ask.query("last").unwrap_or_default();
    let mut rest = names.into_iter().filter(|name| name.as_str() > last);
    let page: Vec<String> = rest.by_ref().take(size).collect();
    let next = page.last().filter(|_| rest.next().is_some()).map(|last| format!("n={size}&last={last}"));
    Ok((page, next))
}

fn link(response: &mut Response<Body>, next: Option<String>) {
    let value = next.and_then(|next| format!("<{next}>; rel=\"next\"").try_into().ok());
    if let Some(value) = value {
        response.headers_mut().insert("link", value);
    }
}
