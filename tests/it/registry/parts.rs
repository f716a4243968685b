//! Parts of blobs: of our own registry, and of some that do not give them, or others.

use hephy::oci::{Descriptor, MediaType};
use hephy::registry::client::{BlobSource, ClientError};

use super::Registry;
use super::faulty::{Faulty, answer};

const CONTENT: &[u8] = b"0123456789";

fn descriptor() -> Descriptor {
    Descriptor::of(MediaType::from("application/octet-stream"), CONTENT)
}

#[tokio::test]
async fn a_part_of_a_blob_is_read() {
    let registry = Registry::start().await;
    let (client, repository) = (registry.client(), registry.repository("hello"));
    client.push_blob(&repository, BlobSource::bytes(CONTENT), &[]).await.unwrap();
    for (part, expected) in [(0..10, CONTENT), (3..5, b"34"), (9..10, b"9")] {
        let read = client.blob_part(&repository, &descriptor(), part).await.unwrap().unwrap();
        assert_eq!(read, expected);
    }
    let beyond = client.blob_part(&repository, &descriptor(), 20..30).await.unwrap_err();
    assert!(matches!(beyond, ClientError::Status { .. }), "{beyond:?}");
}

#[tokio::test]
async fn a_registry_without_parts_is_noticed_and_not_taken_at_its_word() {
    let whole = Faulty::start(|_, _| answer(200, &[], CONTENT)).await;
    let part = whole.client().blob_part(&whole.repository(), &descriptor(), 3..5).await;
    assert_eq!(part.unwrap(), None);
    assert_eq!(whole.asked()[0].range.as_deref(), Some("bytes=3-4"));
    for (range, body) in [
        ("bytes 2-3/10", "23"),
        ("bytes 3-4/10", "345"),
        ("bytes 3-4/10", "3"),
        ("bytes 3-5/10", "345"),
        ("pages 3-4/10", "34"),
    ] {
        let other = Faulty::start(move |_, _| answer(206, &[("content-range", range)], body)).await;
        let part = other.client().blob_part(&other.repository(), &descriptor(), 3..5).await;
        assert!(matches!(part, Err(ClientError::Protocol { .. })), "{range}: {part:?}");
    }
}

#[tokio::test]
async fn a_part_is_asked_for_again_where_a_registry_was_busy() {
    let busy = Faulty::start(|before, _| match before {
        0 => answer(503, &[], ""),
        _ => answer(206, &[("content-range", "bytes 3-4/10")], "34"),
    })
    .await;
    let part = busy.client().blob_part(&busy.repository(), &descriptor(), 3..5).await;
    assert_eq!(part.unwrap().unwrap(), "34");
}
