//! Clients that mean no good, or break.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use hephy::git::{Limits, ReceiveError, Verdict};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::{Client, Server};

const ZERO: &str = "0000000000000000000000000000000000000000";
const ONES: &str = "1111111111111111111111111111111111111111";
const CAPABILITIES: &str = "report-status side-band-64k object-format=sha1";
const COMMIT: u8 = 1;
const TREE: u8 = 2;
const BLOB: u8 = 3;
const REF_DELTA: u8 = 7;

fn packet(line: impl AsRef<[u8]>) -> Vec<u8> {
    let line = line.as_ref();
    [format!("{:04x}", line.len() + 4).as_bytes(), line].concat()
}

/// The request that moves `refs` from nothing.
fn request(refs: &[(&str, &str)]) -> Vec<u8> {
    let line = |at: usize, (name, new): &(&str, &str)| match at {
        0 => packet(format!("{ZERO} {new} {name}\0{CAPABILITIES}")),
        _ => packet(format!("{ZERO} {new} {name}\n")),
    };
    let commands = refs.iter().enumerate().map(|(at, command)| line(at, command));
    [commands.collect::<Vec<_>>().concat(), b"0000".to_vec()].concat()
}

/// A pack made by hand, with objects that git would not make.
#[derive(Default)]
struct Pack {
    objects: u32,
    body: Vec<u8>,
}

impl Pack {
    /// An object whose header says `bytes`.
    fn entry(&mut self, kind: u8, bytes: usize, before: &[u8], content: &[u8]) {
        let mut rest = bytes >> 4;
        let mut first = (kind << 4) | u8::try_from(bytes & 15).unwrap();
        while rest > 0 {
            self.body.push(first | 0x80);
            first = u8::try_from(rest & 0x7f).unwrap();
            rest >>= 7;
        }
        self.body.push(first);
        self.body.extend_from_slice(before);
        let mut zlib = ZlibEncoder::new(&mut self.body, Compression::fast());
        zlib.write_all(content).unwrap();
        zlib.finish().unwrap();
        self.objects += 1;
    }

    fn object(&mut self, kind: u8, content: &[u8]) -> String {
        self.entry(kind, content.len(), b"", content);
        let name = match kind {
            COMMIT => "commit",
            TREE => "tree",
            _ => "blob",
        };
        let header = format!("{name} {}\0", content.len());
        hex::encode(Sha1::new().chain_update(header).chain_update(content).finalize())
    }

    fn tree(&mut self, entries: &[(&str, &str, &str)]) -> String {
        let entry = |(mode, name, id): &(&str, &str, &str)| {
            [format!("{mode} {name}\0").as_bytes(), &hex::decode(id).unwrap()].concat()
        };
        self.object(TREE, &entries.iter().flat_map(entry).collect::<Vec<_>>())
    }

    fn commit(&mut self, tree: &str, parents: &[&str]) -> String {
        let parents: String = parents.iter().flat_map(|parent| ["parent ", parent, "\n"]).collect();
        let who = "Ada <ada@example.org> 1700000000 +0000";
        let text = format!("tree {tree}\n{parents}author {who}\ncommitter {who}\n\nFirst\n");
        self.object(COMMIT, text.as_bytes())
    }

    fn finish(self) -> Vec<u8> {
        let pack = [b"PACK\0\0\0\x02".as_slice(), &self.objects.to_be_bytes(), &self.body].concat();
        let hash = Sha1::digest(&pack);
        [pack, hash.to_vec()].concat()
    }
}

/// A pack with one small commit, and the commit.
fn small_pack() -> (String, Vec<u8>) {
    let mut pack = Pack::default();
    let blob = pack.object(BLOB, &b"hello\n".repeat(2000));
    let tree = pack.tree(&[("100644", "a", &blob)]);
    (pack.commit(&tree, &[]), pack.finish())
}

async fn connect(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    stream.write_all(&packet("git-receive-pack /app\0host=localhost\0")).await.unwrap();
    stream
}

/// Sends bytes after the advertisement, and returns all that comes back until the server is done.
async fn send(server: &Server, bytes: &[u8]) -> String {
    let mut stream = connect(server).await;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let write = async {
        // The server may have seen enough before the end.
        let _refused = writer.write_all(bytes).await;
    };
    let ((), _reset) = tokio::join!(write, reader.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The repository takes an ordinary push, and nothing of others is left.
async fn still_works(server: &Server) {
    let client = Client::new(server);
    let commit = client.commit("a", "still works");
    client.git_async(&["push", "--force", "deis", "main"]).await;
    assert_eq!(server.branch("main"), Some(commit));
    server.outcome().await.unwrap();
    assert_eq!(server.quarantines(), 0);
    server.fsck();
}

/// Pushes `pack` to main, which must be refused.
async fn refused(server: &Server, tip: &str, pack: &[u8], because: &str) {
    let answer = send(server, &[&request(&[("refs/heads/main", tip)]), pack].concat()).await;
    assert!(answer.contains(because), "{because}: {answer}");
    assert!(server.outcome().await.is_err());
    assert_eq!(server.refs(), [""; 0]);
    assert_eq!(server.quarantines(), 0);
}

#[tokio::test]
async fn a_pack_made_by_hand_is_taken() {
    let server = Server::start().await;
    let (tip, pack) = small_pack();
    let answer = send(&server, &[request(&[("refs/heads/main", &tip)]), pack].concat()).await;
    assert!(answer.contains("unpack ok"), "{answer}");
    assert_eq!(server.branch("main").unwrap().to_string(), tip);
    still_works(&server).await;
}

#[tokio::test]
async fn trees_with_names_that_escape_are_refused() {
    for (mode, name) in [
        ("40000", ".git"),
        ("40000", ".GIT"),
        ("40000", "git~1"),
        ("100644", ".."),
        ("100644", "."),
        ("100644", "a/b"),
        ("100644", ""),
    ] {
        let server = Server::start().await;
        let mut pack = Pack::default();
        let blob = pack.object(BLOB, b"[core]\n\tfsmonitor = touch /tmp/pwned\n");
        let inner = if mode == "40000" { pack.tree(&[("100644", "config", &blob)]) } else { blob };
        let tree = pack.tree(&[(mode, name, &inner)]);
        let tip = pack.commit(&tree, &[]);
        refused(&server, &tip, &pack.finish(), "unpack ").await;
        still_works(&server).await;
    }
}

#[tokio::test]
async fn a_pack_that_lacks_objects_is_refused() {
    let server = Server::start().await;
    let mut pack = Pack::default();
    let tree = pack.tree(&[("100644", "a", ONES)]);
    let tip = pack.commit(&tree, &[]);
    refused(&server, &tip, &pack.finish(), ONES).await;

    let mut pack = Pack::default();
    let tree = pack.tree(&[]);
    let tip = pack.commit(&tree, &[ONES]);
    refused(&server, &tip, &pack.finish(), ONES).await;

    // A tip that is not in the pack.
    let (_, pack) = small_pack();
    refused(&server, ONES, &pack, ONES).await;
    refused(&server, ONES, &Pack::default().finish(), ONES).await;
    still_works(&server).await;
}

#[tokio::test]
async fn bombs_are_refused_within_the_memory_allowed() {
    let limits = Limits { memory_bytes: 512 << 20, ..Limits::default() };
    let server = Server::with(limits, |_| Verdict::Accepted).await;
    // A delta of a few bytes that makes 8 GiB.
    let mut pack = Pack::default();
    let base = pack.object(BLOB, &vec![0; 1 << 20]);
    let target = 8_u64 << 30;
    let copies = usize::try_from(target >> 16).unwrap();
    let size = |mut bytes: u64| {
        let mut varint = Vec::new();
        while bytes > 0x7f {
            varint.push(u8::try_from(bytes & 0x7f).unwrap() | 0x80);
            bytes >>= 7;
        }
        varint.push(u8::try_from(bytes).unwrap());
        varint
    };
    // `0x80` copies 64 KiB from the beginning.
    let delta = [size(1 << 20), size(target), vec![0x80; copies]].concat();
    pack.entry(REF_DELTA, delta.len(), &hex::decode(&base).unwrap(), &delta);
    refused(&server, &base, &pack.finish(), "unpack ").await;
    // A tree that says it has 8 GiB.
    let mut pack = Pack::default();
    pack.entry(TREE, 8 << 30, b"", &[0; 1000]);
    refused(&server, ONES, &pack.finish(), "unpack ").await;
    still_works(&server).await;
}

#[tokio::test]
async fn a_tree_that_contains_itself_a_billion_times_is_pushed_and_not_exported() {
    let server = Server::start().await;
    let mut pack = Pack::default();
    let blob = pack.object(BLOB, b"x");
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut tree = pack.tree(&names.map(|name| ("100644", name, blob.as_str())));
    for _ in 0..9 {
        tree = pack.tree(&names.map(|name| ("40000", name, tree.as_str())));
    }
    let tip = pack.commit(&tree, &[]);
    let answer = send(&server, &[request(&[("refs/heads/main", &tip)]), pack.finish()].concat()).await;
    assert!(answer.contains("unpack ok"), "{answer}");
    let commit = server.repository.commit(tip.parse().unwrap()).unwrap();
    let error = commit.survey().unwrap_err().to_string();
    assert!(error.contains("more than 1000000 files"), "{error}");
}

#[tokio::test]
async fn limits_of_bytes_objects_and_refs_are_told() {
    let limits = Limits { max_pack_bytes: 1 << 20, max_objects: 3, max_commands: 2, ..Limits::default() };
    let server = Server::with(limits, |_| Verdict::Accepted).await;
    let mut pack = Pack::default();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    });
    let noise: Vec<u8> = noise.take(2 << 20).collect();
    let tip = pack.object(BLOB, &noise);
    refused(&server, &tip, &pack.finish(), "larger than 1 MiB").await;
    let mut pack = Pack::default();
    let ids = ["1", "2", "3", "4"].map(|content| pack.object(BLOB, content.as_bytes()));
    refused(&server, &ids[0], &pack.finish(), "the pack has 4 objects").await;
    let commands = request(&[("refs/heads/a", ONES), ("refs/heads/b", ONES), ("refs/heads/c", ONES)]);
    assert!(send(&server, &commands).await.contains("more than 2 refs"));
    assert!(matches!(server.outcome().await, Err(ReceiveError::Limit(_))));
}

#[tokio::test]
async fn what_is_no_protocol_ends_the_connection() {
    let server = Server::start().await;
    let (tip, pack) = small_pack();
    let commands = request(&[("refs/heads/main", &tip)]);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        [b"ffff".to_vec(), vec![b'x'; 10 << 20]].concat(),
        [packet(vec![b'x'; 60_000]), b"0000".to_vec()].concat(),
        packet("push-cert\0report-status"),
        [packet(format!("{ZERO} {ONES} refs/heads/a\nb")), b"0000".to_vec()].concat(),
        [commands.clone(), b"NOPE".to_vec(), vec![0; 100]].concat(),
        [commands.clone(), pack[..pack.len() - 1].to_vec(), vec![0]].concat(),
        [commands.clone(), b"PACK\0\0\0\x02\0\0\0\x01".to_vec(), vec![0x30; 1000]].concat(),
    ] {
        send(&server, &bytes).await;
        assert!(server.outcome().await.is_err(), "{:?}", &bytes[..bytes.len().min(60)]);
        assert_eq!(server.refs(), [""; 0]);
    }
    still_works(&server).await;
}

#[tokio::test]
async fn commands_that_nobody_may_give_are_refused_one_by_one() {
    let server = Server::start().await;
    let (tip, pack) = small_pack();
    let names = [
        "refs/heads/main",
        "refs/heads/../x",
        "main",
        "refs/hephy/keep/x",
        "refs/heads/two",
        "refs/heads/two",
    ];
    let commands = request(&names.map(|name| (name, tip.as_str())));
    let stale = packet(format!("{ONES} {tip} refs/heads/gone"));
    let commands = [&commands[..commands.len() - 4], &stale, b"0000"].concat();
    let answer = send(&server, &[commands, pack].concat()).await;
    assert!(answer.contains("ok refs/heads/main\n"), "{answer}");
    for name in ["refs/heads/../x", "main", "refs/hephy/keep/x", "refs/heads/two", "refs/heads/gone"] {
        assert!(answer.contains(&format!("ng {name} ")), "{name}: {answer}");
    }
    assert_eq!(server.refs(), ["refs/heads/main"]);
    still_works(&server).await;
}

#[tokio::test]
async fn a_connection_that_ends_anywhere_leaves_nothing() {
    let server = Server::start().await;
    let (tip, pack) = small_pack();
    let whole = [request(&[("refs/heads/main", &tip)]), pack].concat();
    for length in (0..whole.len()).step_by(whole.len() / 25) {
        let mut stream = connect(&server).await;
        stream.write_all(&whole[..length]).await.unwrap();
        drop(stream);
        assert!(server.outcome().await.unwrap_err().is_client_gone(), "after {length} bytes");
        assert_eq!(server.quarantines(), 0);
    }
    assert_eq!(server.refs(), [""; 0]);
    still_works(&server).await;
}

#[tokio::test]
async fn a_client_that_falls_silent_is_left() {
    let limits = Limits {
        stall: Duration::from_millis(100),
        first_command: Duration::from_millis(100),
        ..Limits::default()
    };
    let server = Server::with(limits, |_| Verdict::Accepted).await;
    let (tip, pack) = small_pack();
    let whole = [request(&[("refs/heads/main", &tip)]), pack].concat();
    for length in [0, 2, 30, whole.len() / 2, whole.len() - 1] {
        let mut stream = connect(&server).await;
        stream.write_all(&whole[..length]).await.unwrap();
        assert!(matches!(server.outcome().await, Err(ReceiveError::Stalled(_))), "after {length} bytes");
        assert_eq!(server.quarantines(), 0);
    }
    assert_eq!(server.refs(), [""; 0]);
}

#[tokio::test]
async fn what_a_killed_server_left_is_swept() {
    let server = Server::start().await;
    let left = server.repository.path().join("objects/incoming-left");
    std::fs::create_dir_all(left.join("pack")).unwrap();
    std::fs::write(left.join("lock"), "").unwrap();
    std::fs::create_dir(server.repository.path().join("view-left")).unwrap();
    assert!(server.repository.collect().await.unwrap());
    assert_eq!(server.quarantines(), 0);
    assert!(!server.repository.path().join("view-left").exists());
    still_works(&server).await;
}
