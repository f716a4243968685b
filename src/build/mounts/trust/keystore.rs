//! The keystores of Java: JKS read and written, PKCS#12 without a password read.
//!
//! A JDK's `cacerts` was JKS until JDK 17 and is PKCS#12 without a password since 18. Every JDK reads JKS, whatever its default
//! is (`keystore.type.compat`), and what reads certificates needs no password; `changeit` is what it is checked with.

use sha1::{Digest as _, Sha1};

const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
/// What every JDK's own store is checked with.
const PASSWORD: &str = "changeit";
/// What the sum of a store is salted with, after the password.
const SALT: &[u8] = b"Mighty Aphrodite";
const SUM_BYTES: usize = 20;
const TRUSTED: u32 = 2;
const KEY: u32 = 1;
/// The most entries of a store; those of JDKs have a hundred and a half.
const MAX_ENTRIES: u32 = 10_000;

/// The object identifier of a bag of a certificate, 1.2.840.113549.1.12.10.1.3.
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
/// Of a name for people, 1.2.840.113549.1.9.20.
const FRIENDLY_NAME: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14];

/// The entries of a store, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyStore(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    alias: Vec<u8>,
    /// In milliseconds since 1970.
    made: u64,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// Somebody who is trusted.
    Trusted(Vec<u8>),
    /// A key and its certificates, as they were.
    Key(Vec<u8>),
}

impl KeyStore {
    /// A store of these certificates alone.
    pub(super) fn of(certificates: &[Vec<u8>]) -> Self {
        let mut store = Self::default();
        store.add(certificates, "certificate");
        store
    }

    /// Reads a store; `None` if it is of another kind, encrypted, or spoilt.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&MAGIC) { Self::read_jks(bytes) } else { pkcs12(bytes) }
    }

    /// Adds those that it does not trust already; an alias of ours is `NAME-1`.
    pub(super) fn add(&mut self, certificates: &[Vec<u8>], name: &str) {
        let mut number = 0;
        for certificate in certificates {
            if self.trusts(certificate) {
                continue;
            }
            let alias = loop {
                number += 1;
                let alias = format!("{name}-{number}").into_bytes();
                if !self.0.iter().any(|entry| entry.alias == alias) {
                    break alias;
                }
            };
            // The same bytes each time.
            self.0.push(Entry { alias, made: 0, content: Content::Trusted(certificate.clone()) });
        }
    }

    pub(super) fn trusts(&self, certificate: &[u8]) -> bool {
        self.0.iter().any(|entry| matches!(&entry.content, Content::Trusted(known) if known == certificate))
    }

    /// Leaves these out.
    pub(super) fn remove(&mut self, certificates: &[Vec<u8>]) {
        self.0.retain(|entry| match &entry.content {
            Content::Trusted(known) => !certificates.contains(known),
            Content::Key(_) => true,
        });
    }

    /// The store as JKS.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(2u32.to_be_bytes());
        out.extend(u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_be_bytes());
        for entry in &self.0 {
            let kind = match entry.content {
                Content::Trusted(_) => TRUSTED,
                Content::Key(_) => KEY,
            };
            out.extend(kind.to_be_bytes());
            text(&mut out, &entry.alias);
            out.extend(entry.made.to_be_bytes());
            match &entry.content {
                Content::Trusted(certificate) => {
                    text(&mut out, b"X.509");
                    out.extend(u32::try_from(certificate.len()).unwrap_or(u32::MAX).to_be_bytes());
                    out.extend(certificate);
                }
                Content::Key(raw) => out.extend(raw),
            }
        }
        let sum = sum(&out);
        out.extend(sum);
        out
    }

    fn read_jks(bytes: &[u8]) -> Option<Self> {
        let (body, found) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        if sum(body) != found {
            return None;
        }
        let mut reader = Reader(body.get(MAGIC.len()..)?);
        let version = reader.u32()?;
        let count = reader.u32().filter(|count| *count <= MAX_ENTRIES && (1..=2).contains(&version))?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let kind = reader.u32()?;
            let alias = reader.text()?.to_vec();
            let made = u64::from_be_bytes(reader.take(8)?.try_into().ok()?);
            let content = match kind {
                TRUSTED => Content::Trusted(reader.certificate(version)?.to_vec()),
                KEY if version == 2 => {
                    let before = reader.0;
                    reader.sized()?;
                    for _ in 0..reader.u32().filter(|count| *count <= MAX_ENTRIES)? {
                        reader.certificate(version)?;
                    }
                    Content::Key(before.get(..before.len() - reader.0.len())?.to_vec())
                }
                _ => return None,
            };
            entries.push(Entry { alias, made, content });
        }
        reader.0.is_empty().then_some(Self(entries))
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(text);
}

fn sum(body: &[u8]) -> [u8; SUM_BYTES] {
    let mut sum = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        sum.update(unit.to_be_bytes());
    }
    sum.update(SALT);
    sum.update(body);
    sum.finalize().into()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        self.take(usize::from(length))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn certificate(&mut self, version: u32) -> Option<&'a [u8]> {
        if version == 2 {
            self.text()?;
        }
        self.sized()
    }

    /// A value of ASN.1 in its distinguished encoding: its tag and what is in it.
    fn value(&mut self) -> Option<(u8, &'a [u8])> {
        let tag = *self.take(1)?.first()?;
        let length = usize::from(*self.take(1)?.first()?);
        let length = if length < 0x80 {
            length
        } else {
            let bytes = self.take(length & 0x7f).filter(|bytes| bytes.len() <= 4)?;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        };
        Some((tag, self.take(length)?))
    }

    fn of(&mut self, tag: u8) -> Option<Self> {
        self.value().filter(|(found, _)| *found == tag).map(|(_, content)| Self(content))
    }
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const EXPLICIT: u8 = 0xa0;
const NAME: u8 = 0x1e;

/// The certificates of a PKCS#12 store that is not encrypted (RFC 7292); `None` if anything in it is.
fn pkcs12(bytes: &[u8]) -> Option<KeyStore> {
    let mut whole = Reader(bytes).of(SEQUENCE)?;
    whole.value()?;
    let mut safes = Reader(data(&mut whole)?).of(SEQUENCE)?;
    let mut entries = Vec::new();
    while !safes.0.is_empty() {
        let mut bags = Reader(data(&mut safes)?).of(SEQUENCE)?;
        while !bags.0.is_empty() {
            let mut bag = bags.of(SEQUENCE)?;
            let kind = bag.of(OBJECT)?.0;
            let mut content = bag.of(EXPLICIT)?.of(SEQUENCE)?;
            if kind != CERT_BAG {
                return None;
            }
            content.of(OBJECT)?;
            let certificate = content.of(EXPLICIT)?.of(OCTETS)?.0.to_vec();
            let alias = name(&mut bag).unwrap_or_else(|| format!("certificate-{}", entries.len()));
            entries.push(Entry {
                alias: alias.into_bytes(),
                made: 0,
                content: Content::Trusted(certificate),
            });
        }
    }
    Some(KeyStore(entries))
}

/// What is in a `ContentInfo` that is neither encrypted nor enveloped.
fn data<'a>(from: &mut Reader<'a>) -> Option<&'a [u8]> {
    /// 1.2.840.113549.1.7.1
    const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
    let mut info = from.of(SEQUENCE)?;
    if info.of(OBJECT)?.0 != DATA {
        return None;
    }
    Some(info.of(EXPLICIT)?.of(OCTETS)?.0)
}

/// The name of a bag for people, which is its alias.
fn name(bag: &mut Reader<'_>) -> Option<String> {
    let mut attributes = bag.of(SET)?;
    while !attributes.0.is_empty() {
        let mut attribute = attributes.of(SEQUENCE)?;
        if attribute.of(OBJECT)?.0 == FRIENDLY_NAME {
            let units = attribute.of(SET)?.of(NAME)?.0.chunks_exact(2);
            let units: Vec<u16> = units.map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
            return String::from_utf16(&units).ok().filter(|name| name.is_ascii() && name.len() < 200);
        }
    }
    None
}
