//! Registries behind TLS: who is believed, what is shown to whom, and what an error says.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use axum::http::Method;
use hephy::oci::{Host, Repository};
use hephy::registry::client::{Client, ClientConfig, ClientError, Credential, Credentials, Reach};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::faulty::{Faulty, answer};
use super::{Registry, platform, push_image};

const OPENSSL: &str = "
[req]
distinguished_name = name
prompt = no
[name]
CN = test
[authority]
basicConstraints = critical,CA:TRUE
[server]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1,DNS:localhost
[itself]
basicConstraints = CA:TRUE
subjectAltName = IP:127.0.0.1,DNS:localhost
[elsewhere]
basicConstraints = CA:FALSE
subjectAltName = DNS:other.test
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
";

/// Certificates and keys, made once: `NAME.pem` and `NAME.key`.
pub(crate) fn certificate(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        std::fs::write(directory.join("openssl.cnf"), OPENSSL).unwrap();
        make(&directory, "authority", None);
        make(&directory, "itself", None);
        for name in ["server", "elsewhere", "client"] {
            make(&directory, name, Some("authority"));
        }
        directory
    });
    directory.join(name)
}

fn make(directory: &Path, name: &str, by: Option<&str>) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-config", "openssl.cnf", "-extensions", name, "-days", "2", "-nodes"]);
    command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
    match by {
        Some(by) => {
            command.args(["-CA", &format!("{by}.pem"), "-CAkey", &format!("{by}.key")]);
            command.args(["-subj", &format!("/CN={name} of test")])
        }
        None => command.args(["-subj", &format!("/CN={name}")]),
    };
    let output = command.current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// TLS in front of a registry.
pub(crate) struct Front {
    port: u16,
    /// How many connections have chosen HTTP/2, and how many HTTP/1.1.
    http2: Arc<AtomicUsize>,
    http1: Arc<AtomicUsize>,
}

/// What a front makes of HTTP/2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http2 {
    Unknown,
    Spoken,
    /// Connections are closed as soon as they are there.
    Broken,
}

impl Front {
    pub(crate) async fn start(certificate: &str, backend: std::net::SocketAddr, http2: Http2) -> Self {
        Self::start_with(tls(certificate, false), backend, http2).await
    }

    async fn start_with(mut tls: ServerConfig, backend: std::net::SocketAddr, mode: Http2) -> Self {
        let h2: &[&[u8]] = if mode == Http2::Unknown { &[] } else { &[b"h2"] };
        tls.alpn_protocols = h2.iter().chain([&&b"http/1.1"[..]]).map(|name| name.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (http2, http1) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (http2.clone(), http1.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counts) = (acceptor.clone(), counts.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    if is_http2 { &counts.0 } else { &counts.1 }.fetch_add(1, Ordering::Relaxed);
                    if is_http2 && mode == Http2::Broken {
                        drop(stream.shutdown().await);
                        return;
                    }
                    let mut backend = TcpStream::connect(backend).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut backend).await);
                });
            }
        });
        Self { port, http2, http1 }
    }

    pub(crate) fn host(&self) -> Host {
        format!("127.0.0.1:{}", self.port).parse().unwrap()
    }

    fn repository(&self) -> Repository {
        Repository { host: self.host(), name: "hello".parse().unwrap() }
    }

    /// The connections so far: by HTTP/2 and by HTTP/1.1.
    fn connections(&self) -> (usize, usize) {
        (self.http2.load(Ordering::Relaxed), self.http1.load(Ordering::Relaxed))
    }
}

fn tls(name: &str, wants_client: bool) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let read = |name: &str| CertificateDer::from_pem_file(certificate(name)).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate(&format!("{name}.key"))).unwrap();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.unwrap();
    let builder = if wants_client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(read("authority.pem")).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    builder.with_single_cert(vec![read(&format!("{name}.pem"))], key).unwrap()
}

fn client_with(adjust: impl FnOnce(&mut Reach)) -> Client {
    client_of(Credentials::none(), adjust)
}

fn client_of(credentials: Credentials, adjust: impl FnOnce(&mut Reach)) -> Client {
    super::install_tls();
    let mut reach = Reach::default();
    adjust(&mut reach);
    Client::new(ClientConfig { credentials, reach, retries: 2, ..ClientConfig::default() })
}

/// A client that believes the test's authority at `host`.
fn believing(host: &Host, name: &str) -> Client {
    client_with(|reach| reach.trust(Some(host.clone()), &certificate(name)).unwrap())
}

/// Tags through a registry that has none: the shortest way to see whether there is a connection.
async fn tags(client: &Client, repository: &Repository) -> Result<usize, ClientError> {
    client.tags(repository).await.map(|tags| tags.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_through_tls_and_blobs_have_connections_of_their_own() {
    let registry = Registry::start().await;
    let front = Front::start("server", registry.address, Http2::Spoken).await;
    let repository = front.repository();
    // By Basic credentials: the registry names its token server without TLS.
    let token = registry.token();
    let credential = Credential::RegistryToken(token);
    let client = client_of(Credentials::none().with(&front.host(), credential), |reach| {
        reach.trust(Some(front.host()), &certificate("authority.pem")).unwrap();
    });
    let image = push_image(&client, &repository, &platform("linux/amd64"), b"layer").await;
    let manifest = image.as_image().unwrap();
    assert_eq!(client.blob(&repository, &manifest.layers[0], 100).await.unwrap(), &b"layer"[..]);
    let (http2, http1) = front.connections();
    assert!(http2 == 1 && http1 > 0, "{http2} by HTTP/2, {http1} by HTTP/1.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_whose_http2_breaks_is_spoken_to_by_http1() {
    let registry = Registry::start().await;
    let front = Front::start("server", registry.address, Http2::Broken).await;
    let client = believing(&front.host(), "authority.pem");
    for _ in 0..3 {
        tags(&client, &front.repository()).await.unwrap();
    }
    assert_eq!(front.connections().0, 1);
    // One that does not know HTTP/2 costs nothing.
    let old = Front::start("server", registry.address, Http2::Unknown).await;
    tags(&believing(&old.host(), "authority.pem"), &old.repository()).await.unwrap();
    assert_eq!(old.connections(), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_private_authority_is_believed_where_it_was_given() {
    let registry = Registry::start().await;
    let front = Front::start("server", registry.address, Http2::Unknown).await;
    let repository = front.repository();
    let elsewhere: Host = "other.test".parse().unwrap();
    // Loopback speaks plain HTTP unless something is said of its TLS: here, that we have a certificate.
    let ours = |reach: &mut Reach| {
        reach.identify(front.host(), &certificate("client.pem"), &certificate("client.key")).unwrap();
    };
    let stranger = client_with(|reach| {
        ours(reach);
        reach.trust(Some(elsewhere.clone()), &certificate("authority.pem")).unwrap();
    });
    let error = tags(&stranger, &repository).await.unwrap_err();
    assert!(matches!(error, ClientError::Certificate { .. }), "{error}");
    let text = format!("the certificate of registry `{}` is not trusted: no authority", front.host());
    assert!(error.to_string().starts_with(&text), "{error}");
    let advice = error.advice().unwrap();
    assert!(advice.contains(&format!("--registry-certificate {}=FILE", front.host())), "{advice}");
    tags(&believing(&front.host(), "authority.pem"), &repository).await.unwrap();
    let everywhere = client_with(|reach| {
        ours(reach);
        reach.trust(None, &certificate("authority.pem")).unwrap();
    });
    tags(&everywhere, &repository).await.unwrap();
    let anybody = client_with(|reach| reach.unverified = [front.host()].into_iter().collect());
    tags(&anybody, &repository).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_own_certificate_is_believed_if_it_is_the_one_given() {
    let registry = Registry::start().await;
    // As `openssl req -x509` makes it: one that says that it is an authority's.
    let front = Front::start("itself", registry.address, Http2::Unknown).await;
    tags(&believing(&front.host(), "itself.pem"), &front.repository()).await.unwrap();
    let other = tags(&believing(&front.host(), "authority.pem"), &front.repository()).await.unwrap_err();
    assert!(matches!(other, ClientError::Certificate { .. }), "{other}");
    let wrong = Front::start("elsewhere", registry.address, Http2::Unknown).await;
    for given in ["elsewhere.pem", "authority.pem"] {
        let error = tags(&believing(&wrong.host(), given), &wrong.repository()).await.unwrap_err();
        assert!(error.to_string().ends_with("it is for another name"), "{given}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_our_certificate_gets_it_and_no_other_host_does() {
    let target = Faulty::start(|_, _| answer(200, &[], r#"{"tags":[]}"#)).await;
    let elsewhere = Front::start_with(tls("server", true), target.address, Http2::Unknown).await;
    let location = format!("https://127.0.0.1:{}/v2/hello/tags/list", elsewhere.port);
    let registry = Faulty::start(move |_, asked| match asked.path.as_str() {
        path if path.starts_with("/v2/hello/") => answer(200, &[], r#"{"tags":[]}"#),
        _ => answer(307, &[("location", &location)], ""),
    })
    .await;
    let front = Front::start_with(tls("server", true), registry.address, Http2::Unknown).await;
    let without = believing(&front.host(), "authority.pem");
    assert!(tags(&without, &front.repository()).await.is_err());
    let with = client_with(|reach| {
        reach.trust(Some(front.host()), &certificate("authority.pem")).unwrap();
        reach.identify(front.host(), &certificate("client.pem"), &certificate("client.key")).unwrap();
    });
    tags(&with, &front.repository()).await.unwrap();
    // A host that it sends us to would take the certificate, and does not see it.
    let sent_on = Repository { host: front.host(), name: "elsewhere".parse().unwrap() };
    assert!(tags(&with, &sent_on).await.is_err());
    assert!(target.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_is_spoken_to_by_tls_if_it_can_and_else_without() {
    // Another address of this machine than loopback, which is insecure anyway.
    let Some(own) = own_address() else { return };
    let registry = Faulty::start_at(own, |_, _| answer(200, &[], r#"{"tags":[]}"#)).await;
    let strict = client_with(|_| {});
    let error = tags(&strict, &registry.repository()).await.unwrap_err();
    assert!(matches!(error, ClientError::NotTls { .. }), "{error:?}");
    let advice = error.advice().unwrap();
    assert!(advice.contains(&format!("--insecure-registry {}", registry.address)), "{advice}");
    let host: Host = registry.address.to_string().parse().unwrap();
    let insecure = client_with(|reach| reach.insecure = [host].into_iter().collect());
    tags(&insecure, &registry.repository()).await.unwrap();
    let all = client_with(|reach| reach.insecure = hephy::registry::client::Hosts::AllBut([].into()));
    tags(&all, &registry.repository()).await.unwrap();
    // Who speaks TLS, and is not believed, is not asked again without.
    let front = Front::start("server", registry.address, Http2::Unknown).await;
    let before = registry.asked().len();
    let error = tags(
        &client_with(|reach| {
            reach.insecure = [front.host()].into_iter().collect();
            reach.identify(front.host(), &certificate("client.pem"), &certificate("client.key")).unwrap();
        }),
        &front.repository(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ClientError::Certificate { .. }), "{error:?}");
    assert_eq!(registry.asked().len(), before);
}

/// An address of this machine that others see.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_redirects_to_plain_http_is_not_followed() {
    let plain = Faulty::start(|_, _| answer(200, &[], r#"{"tags":[]}"#)).await;
    let location = format!("http://{}/v2/hello/tags/list", plain.address);
    let registry = Faulty::start(move |_, _| answer(307, &[("location", &location)], "")).await;
    let front = Front::start("server", registry.address, Http2::Unknown).await;
    let error = tags(&believing(&front.host(), "authority.pem"), &front.repository()).await.unwrap_err();
    assert!(error.to_string().contains("from https to http"), "{error}");
    assert!(plain.asked().is_empty());
    assert_eq!(registry.asked()[0].method, Method::GET);
}

#[test]
fn a_file_that_is_no_certificate_is_refused_before_anything_is_built() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "not a certificate").unwrap();
    let host: Host = "a.test".parse().unwrap();
    let mut reach = Reach::default();
    let error = reach.trust(Some(host.clone()), file.path()).unwrap_err().to_string();
    assert!(error.contains("has no certificate in PEM format"), "{error}");
    assert!(reach.trust(None, Path::new("/nowhere")).is_err());
    let error = reach.identify(host, &certificate("client.pem"), file.path()).unwrap_err().to_string();
    assert!(error.contains("has no private key"), "{error}");
}
