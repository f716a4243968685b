//! Packs that are elsewhere, as they should be and as they should not.

use std::io::Write as _;
use std::sync::atomic::AtomicUsize;

use futures::FutureExt as _;
use git2::ObjectType;

use super::*;
use crate::git::Repository;
use crate::model::CommitId;

/// An object of a pack: its bits of kind, what is between its header and its content, and the content.
struct Packed {
    id: Oid,
    kind: u8,
    base: Vec<u8>,
    content: Vec<u8>,
}

fn blob(content: &[u8]) -> Packed {
    let id = Oid::hash_object(ObjectType::Blob, content).unwrap();
    Packed { id, kind: 3, base: Vec::new(), content: content.to_vec() }
}

/// What adds all of `content`, to whatever base of `base_bytes`.
fn difference(id: Oid, base: Oid, base_bytes: u8, content: &[u8]) -> Packed {
    let length = u8::try_from(content.len()).unwrap();
    let delta = [&[base_bytes, length, length], content].concat();
    Packed { id, kind: 7, base: base.as_bytes().to_vec(), content: delta }
}

/// A pack of these objects, and its index.
fn pack(objects: &[Packed]) -> (Vec<u8>, Vec<u8>) {
    let mut pack = b"PACK\0\0\0\x02\0\0\0\0".to_vec();
    let mut places = Vec::new();
    for object in objects {
        places.push((object.id.as_bytes().try_into().unwrap(), pack.len() as u64));
        let size = object.content.len();
        pack.push(0x80 | object.kind << 4 | u8::try_from(size & 0xf).unwrap());
        pack.extend([0x80 | u8::try_from(size >> 4 & 0x7f).unwrap(), u8::try_from(size >> 11).unwrap()]);
        pack.extend(&object.base);
        let mut packed = flate2::write::ZlibEncoder::new(&mut pack, flate2::Compression::fast());
        packed.write_all(&object.content).unwrap();
        packed.finish().unwrap();
    }
    pack.extend([0; 20]);
    (pack, index::tests::written(&places))
}

/// What is beside the object that is wanted in a pack, so that it is not the most of it.
fn filler() -> Packed {
    let mut state = 1_u32;
    let mut noise = Vec::new();
    while noise.len() < 200_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.extend((state >> 8).to_be_bytes());
    }
    blob(&noise)
}

struct Fixture {
    _directory: tempfile::TempDir,
    repository: Repository,
    /// How often the whole pack was asked for, which is not to be had.
    whole: Arc<AtomicUsize>,
}

impl Fixture {
    /// A repository without an object, and a pack elsewhere of which parts come as `part` has them.
    fn new(
        (pack, index): (Vec<u8>, Vec<u8>),
        part: impl Fn(&[u8], Range<u64>) -> PartFetched + Send + Sync + 'static,
    ) -> Result<Self, GitError> {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_create(&directory.path().join("app.git")).unwrap();
        let path = directory.path().join("pack.idx");
        fs::write(&path, index).unwrap();
        let bytes = pack.len() as u64;
        let whole = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&whole);
        let source = PackSource {
            part: Box::new(move |_, range| std::future::ready(part(&pack, range)).boxed()),
            whole: Box::new(move |_| {
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Err("it is not to be had".into())).boxed()
            }),
        };
        let packs = vec![DistantPack { name: "pack-1".to_owned(), bytes, index: path }];
        let distant = Distant::open(packs, Arc::new(repository.brought().unwrap()), source)?;
        Ok(Self { _directory: directory, repository: repository.in_part(distant), whole })
    }

    /// Brings an object; whether that did it without the whole pack.
    async fn brings(&self, id: Oid) -> bool {
        let id: CommitId = id.to_string().parse().unwrap();
        let brought = self.repository.bring(&[id]).await;
        assert_eq!(brought.is_err(), self.whole.load(Ordering::SeqCst) > 0, "{brought:?}");
        brought.is_ok()
    }

    fn content(&self, id: Oid) -> Vec<u8> {
        self.repository.objects().unwrap().read(id, 1 << 20).unwrap().data().to_vec()
    }
}

fn honest(pack: &[u8], range: Range<u64>) -> PartFetched {
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let part = pack.get(at(range.start)..at(range.end)).map(|part| Some(Bytes::copy_from_slice(part)));
    part.ok_or_else(|| "beyond the pack".into())
}

fn hash(content: &[u8]) -> Oid {
    Oid::hash_object(ObjectType::Blob, content).unwrap()
}

#[tokio::test]
async fn an_object_is_brought_with_what_it_is_made_of_and_others_are_not() {
    let (base, last) = (blob(b"base"), hash(b"last"));
    let middle = difference(hash(b"middle"), base.id, 4, b"middle");
    let chain = difference(last, middle.id, 6, b"last");
    let (first, filler) = (base.id, filler());
    let other = filler.id;
    let fixture = Fixture::new(pack(&[base, filler, middle, chain]), honest).unwrap();
    let objects = fixture.repository.objects().unwrap();
    assert!(objects.contains(last) && objects.contains(other) && !objects.is_here(last));
    assert!(!objects.contains(hash(b"nothing")));
    assert!(fixture.brings(last).await);
    assert_eq!(fixture.content(last), b"last");
    let objects = fixture.repository.objects().unwrap();
    assert!(!objects.is_here(first) && !objects.is_here(other));
}

#[tokio::test]
async fn what_was_brought_is_gone_with_its_last_user() {
    let small = blob(b"small");
    let id = small.id;
    let fixture = Fixture::new(pack(&[small, filler()]), honest).unwrap();
    assert!(fixture.brings(id).await);
    let brought = fixture.repository.distant().unwrap().objects().to_owned();
    assert!(resolve::loose_path(&brought, id).exists());
    drop(fixture.repository);
    assert!(!brought.exists());
}

#[tokio::test]
async fn where_most_is_wanted_or_no_parts_are_to_be_had_the_whole_pack_is_asked_for() {
    let filler = filler();
    let id = filler.id;
    let fixture = Fixture::new(pack(&[filler, blob(b"small")]), honest).unwrap();
    assert!(!fixture.brings(id).await);
    for part in [|| Ok(None), || Err("it breaks off".into())] as [fn() -> PartFetched; 2] {
        let small = blob(b"small");
        let id = small.id;
        let fixture = Fixture::new(pack(&[small, self::filler()]), move |_, _| part()).unwrap();
        assert!(!fixture.brings(id).await);
        assert!(!fixture.repository.objects().unwrap().is_here(id));
    }
}

#[tokio::test]
async fn nothing_is_taken_for_what_it_is_not() {
    let (wanted, other) = (hash(b"wanted"), hash(b"other"));
    let large = Packed {
        id: wanted,
        kind: 7,
        base: other.as_bytes().to_vec(),
        content: b"\x05\xff\xff\xff\x7f".to_vec(),
    };
    let cases: Vec<(&str, Vec<Packed>)> = vec![
        ("another content", vec![Packed { id: wanted, ..blob(b"changed") }]),
        ("a difference from itself", vec![difference(wanted, wanted, 6, b"wanted")]),
        (
            "differences in a circle",
            vec![difference(wanted, other, 5, b"wanted"), difference(other, wanted, 6, b"other")],
        ),
        ("a base that is not there", vec![difference(wanted, other, 5, b"wanted")]),
        ("a base of another length", vec![difference(wanted, other, 9, b"wanted"), blob(b"other")]),
        ("what makes a lot of nothing", vec![large, blob(b"other")]),
        ("no kind", vec![Packed { kind: 5, ..Packed { id: wanted, ..blob(b"wanted") } }]),
        (
            "a base between two objects",
            vec![Packed { id: wanted, kind: 6, base: vec![1], content: b"\x05\x06\x06wanted".to_vec() }],
        ),
    ];
    for (what, objects) in cases {
        // After the filler, so that there is something before it.
        let objects: Vec<_> = std::iter::once(filler()).chain(objects).collect();
        let fixture = Fixture::new(pack(&objects), honest).unwrap();
        assert!(!fixture.brings(wanted).await, "{what}");
        assert!(!fixture.repository.objects().unwrap().is_here(wanted), "{what}");
    }
}

#[tokio::test]
async fn bytes_that_are_not_those_of_the_pack_are_noticed() {
    let small = blob(b"small");
    let id = small.id;
    let bad: [fn(Vec<u8>) -> Vec<u8>; 3] = [
        |bytes| bytes[1..].to_vec(),
        |bytes| vec![0; bytes.len()],
        |bytes| bytes.iter().map(|byte| byte ^ 1).collect(),
    ];
    for bad in bad {
        let objects = [blob(b"small"), filler()];
        let lies =
            move |pack: &[u8], range| Ok(honest(pack, range)?.map(|bytes| Bytes::from(bad(bytes.to_vec()))));
        let fixture = Fixture::new(pack(&objects), lies).unwrap();
        assert!(!fixture.brings(id).await);
        assert!(!fixture.repository.objects().unwrap().is_here(id));
    }
}

#[test]
fn an_index_that_is_none_is_refused_with_the_name_of_its_pack() {
    let (pack, index) = pack(&[blob(b"small")]);
    let refused = Fixture::new((pack, index[1..].to_vec()), honest);
    let error = refused.err().unwrap().to_string();
    assert_eq!(error, "the index of `pack-1` is not one: it is no index of version 2");
}
