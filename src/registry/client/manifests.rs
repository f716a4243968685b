//! Manifests, configs and tags.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::answer::{body, status_error};
use super::call::{Access, Call, CallBody};
use super::transport::same_origin;
use super::{Client, ClientError};
use crate::oci::{
    Descriptor, Digest, ImageConfig, MAX_MANIFEST_BYTES, Manifest, MediaType, Platform, RawManifest,
    Reference, Repository, Tag, Target,
};

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The largest image config that is read.
const CONFIG_BYTES: u64 = 8 * 1024 * 1024;
/// The most pages of tags that are read.
const TAG_PAGES: usize = 1000;
/// How deep indexes in indexes are followed.
const INDEX_DEPTH: usize = 3;

/// An image for one platform, found by its reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// What the reference names: an index, or the image manifest itself.
    pub top: RawManifest,
    /// The image manifest of the platform.
    pub manifest: RawManifest,
}

impl Client {
    /// The manifest, its digest verified if it was asked for by digest.
    pub async fn manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<RawManifest, ClientError> {
        let mut call = self.manifest_call(Method::GET, repository, target, "getting").await?;
        call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let response = self.send(&call).await?;
        let response = found(&call, response, &format!("manifest `{target}`")).await?;
        let content_type = header(&response, &CONTENT_TYPE);
        let what = format!("manifest `{target}`");
        let bytes = body(&call, response, &what, MAX_MANIFEST_BYTES as u64).await?;
        let actual = Digest::of(&bytes);
        if let Target::Digest(expected) = *target
            && expected != actual
        {
            let (expected, actual) = (expected.into(), actual.into());
            return Err(ClientError::Digest { repository: repository.clone(), what, expected, actual });
        }
        RawManifest::parse(bytes, content_type.as_deref()).map_err(|source| ClientError::Manifest {
            repository: repository.clone(),
            what: target.to_string(),
            source,
        })
    }

    /// The manifest, if there is one.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<Option<RawManifest>, ClientError> {
        match self.manifest(repository, target).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the registry says of a manifest, without getting it.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<Option<Descriptor>, ClientError> {
        let mut call = self.manifest_call(Method::HEAD, repository, target, "looking for").await?;
        call.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let response = self.send(&call).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = found(&call, response, &format!("manifest `{target}`")).await?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let digest = match target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(_) => text("docker-content-digest").and_then(|digest| digest.parse().ok()),
        };
        let size = text(CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
        match (text(CONTENT_TYPE.as_str()), digest, size) {
            (Some(media_type), Some(digest), Some(size)) => {
                Ok(Some(Descriptor::new(MediaType::from(media_type), digest, size)))
            }
            _ => Ok(self.find_manifest(repository, target).await?.map(|manifest| manifest.descriptor())),
        }
    }

    /// Stores a manifest, whose blobs and children must be there, unless it is there already.
    ///
    /// Looking first makes a repeated push work where tags are immutable.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        target: &Target,
        manifest: &RawManifest,
    ) -> Result<(), ClientError> {
        if self
            .head_manifest(repository, target)
            .await?
            .is_some_and(|there| there.digest == manifest.digest())
        {
            return Ok(());
        }
        let mut call = self.manifest_call(Method::PUT, repository, target, "pushing").await?;
        call.access = Access::Push;
        let content_type = HeaderValue::try_from(manifest.media_type().as_str());
        call.headers.insert(
            CONTENT_TYPE,
            content_type.map_err(|_| call.protocol_error("the manifest's media type is not a header"))?,
        );
        call.body = CallBody::Bytes(manifest.bytes().clone());
        let response = self.send(&call).await?;
        if !response.status().is_success() {
            return Err(status_error(&call, response).await);
        }
        Ok(())
    }

    /// Removes a tag, or a manifest by its digest.
    pub async fn delete_manifest(&self, repository: &Repository, target: &Target) -> Result<(), ClientError> {
        let mut call = self.manifest_call(Method::DELETE, repository, target, "deleting").await?;
        call.access = Access::Delete;
        let response = self.send(&call).await?;
        found(&call, response, &format!("manifest `{target}`")).await.map(drop)
    }

    /// Finds the image for `platform` that a reference names, through indexes.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, ClientError> {
        let repository = &reference.repository;
        let top = self.manifest(repository, &reference.target()).await?;
        let mut manifest = top.clone();
        for _ in 0..INDEX_DEPTH {
            let Some(index) = manifest.as_index() else { break };
            let chosen = index.choose(platform).map_err(|source| ClientError::Index {
                repository: repository.clone(),
                what: reference.target().to_string(),
                source: source.into(),
            })?;
            manifest = self.manifest(repository, &Target::Digest(chosen.digest)).await?;
        }
        if manifest.as_image().is_none() {
            return Err(ClientError::Protocol {
                repository: repository.clone(),
                doing: format!("getting `{}`", reference.target()),
                what: "indexes in indexes in indexes".to_owned(),
            });
        }
        Ok(ResolvedImage { top, manifest })
    }

    /// The image config that a manifest names.
    pub async fn image_config(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<(ImageConfig, Bytes), ClientError> {
        let bytes = self.blob(repository, &manifest.config, CONFIG_BYTES).await?;
        let config = ImageConfig::parse(&bytes).map_err(|source| ClientError::Config {
            repository: repository.clone(),
            digest: manifest.config.digest,
            source,
        })?;
        Ok((config, bytes))
    }

    /// All tags of a repository; none if there is no such repository.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, ClientError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        let mut url = self.url(repository, "tags/list").await?;
        for _ in 0..TAG_PAGES {
            let call = Call::new(Method::GET, url.clone(), repository, "listing tags");
            let response = self.send(&call).await?;
            if response.status() == StatusCode::NOT_FOUND {
                break;
            }
            let response = found(&call, response, "tags").await?;
            let next = next_page(&url, &response);
            let bytes = body(&call, response, "list of tags", MAX_MANIFEST_BYTES as u64).await?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|_| call.protocol_error("the list of tags is not valid"))?;
            tags.extend(page.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()));
            match next {
                Some(next) => url = next,
                None => break,
            }
        }
        Ok(tags)
    }

    async fn manifest_call<'a>(
        &self,
        method: Method,
        repository: &'a Repository,
        target: &Target,
        verb: &str,
    ) -> Result<Call<'a>, ClientError> {
        let url = self.url(repository, &format!("manifests/{target}")).await?;
        Ok(Call::new(method, url, repository, format!("{verb} manifest `{target}`")))
    }
}

/// The answer if it is a success, else the error it stands for.
pub(super) async fn found(call: &Call<'_>, response: Response, what: &str) -> Result<Response, ClientError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => {
            Err(ClientError::NotFound { repository: call.repository.clone(), what: what.to_owned() })
        }
        _ => Err(status_error(call, response).await),
    }
}

pub(super) fn header(response: &Response, name: &reqwest::header::HeaderName) -> Option<String> {
    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn next_page(url: &Url, response: &Response) -> Option<Url> {
    next_link(response.headers()).and_then(|link| url.join(&link).ok()).filter(|next| same_origin(url, next))
}

/// `Link: </v2/a/tags/list?last=x>; rel="next"`.
fn next_link(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|text| text.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|p| matches!(p.trim(), r#"rel="next""# | "rel=next"));
        next.then(|| target.to_owned())
    })
}
