//! The registry's client and server: with each other, with other people's, and with bad ones.

mod crash;
pub(crate) mod faulty;
mod hostile;
mod parts;
mod peers;
mod reference;
pub(crate) mod tls;
mod together;
mod uploads;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use hephy::model::Secret;
use hephy::oci::{
    Descriptor, Digest, Host, ImageConfig, Index, Manifest, MediaType, Platform, RawManifest, Repository,
    Target,
};
use hephy::publish::Place;
use hephy::registry::client::{BlobSource, Client, ClientConfig, Credential, Credentials};
use hephy::registry::server::{Server, ServerConfig};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A registry of ours on a port of its own, gone with the value.
pub(crate) struct Registry {
    pub(crate) directory: TempDir,
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    stop: Option<DropGuard>,
    serving: tokio::task::JoinHandle<()>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |config| config).await
    }

    pub(crate) async fn start_in(
        directory: TempDir,
        adjust: impl FnOnce(ServerConfig) -> ServerConfig,
    ) -> Self {
        let server = Server::open(adjust(ServerConfig::new(directory.path()))).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(listener, stop).await.unwrap() }
        });
        Self { directory, server, address, stop: Some(stop.drop_guard()), serving }
    }

    /// Ends the server and gives its directory to the next.
    pub(crate) async fn stop(mut self) -> TempDir {
        drop(self.stop.take());
        self.serving.await.unwrap();
        self.directory
    }

    pub(crate) fn host(&self) -> Host {
        self.address.to_string().parse().unwrap()
    }

    pub(crate) fn place(&self) -> Place {
        Place::own(self.host(), self.server.tokens().clone())
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository { host: self.host(), name: name.parse().unwrap() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn token(&self) -> Secret<String> {
        self.server.tokens().for_server(Duration::from_hours(1))
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(&self.token())
    }

    pub(crate) fn client_with(&self, token: &Secret<String>) -> Client {
        let credential = Credential::Basic { username: "hephy".to_owned(), password: token.clone() };
        client(Credentials::none().with(&self.host(), credential))
    }

    /// Files below the registry's directory, for what must not be there.
    pub(crate) fn files(&self, below: &str) -> BTreeSet<String> {
        let root = self.directory.path().join(below);
        let entries =
            walkdir::WalkDir::new(&root).into_iter().flatten().filter(|entry| entry.file_type().is_file());
        entries.map(|entry| entry.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect()
    }
}

pub(crate) fn anonymous() -> Client {
    client(Credentials::none())
}

pub(crate) fn client(credentials: Credentials) -> Client {
    install_tls();
    Client::new(ClientConfig { credentials, retries: 3, ..ClientConfig::default() })
}

pub(crate) fn install_tls() {
    drop(rustls::crypto::ring::default_provider().install_default());
}

pub(crate) fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

/// Pushes an image of one layer by digest.
pub(crate) async fn push_image(
    client: &Client,
    to: &Repository,
    platform: &Platform,
    layer: &[u8],
) -> RawManifest {
    let mut config = ImageConfig::new(platform);
    config.rootfs.diff_ids.push(Digest::of(layer));
    let config = config.to_bytes();
    let layers = vec![Descriptor::of(MediaType::LayerTar, layer)];
    let manifest =
        RawManifest::image(&Manifest::image(Descriptor::of(MediaType::ImageConfig, &config), layers));
    client.push_blob(to, BlobSource::bytes(config), &[]).await.unwrap();
    client.push_blob(to, BlobSource::bytes(layer.to_vec()), &[]).await.unwrap();
    client.push_manifest(to, &Target::Digest(manifest.digest()), &manifest).await.unwrap();
    manifest
}

/// Pushes an index of two images, and tags it.
pub(crate) async fn push_index(client: &Client, to: &Repository, tag: &str) -> RawManifest {
    let mut children = Vec::new();
    for name in ["linux/amd64", "linux/arm64"] {
        let image =
            push_image(client, to, &platform(name), format!("layer of {tag} for {name}").as_bytes()).await;
        children.push((platform(name), image.descriptor()));
    }
    let index = RawManifest::index(&Index::of_platforms(children).unwrap());
    client.push_manifest(to, &tag.parse().unwrap(), &index).await.unwrap();
    index
}
