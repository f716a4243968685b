//! SSH public keys: parsed once, from a file, from standard input or from the wire.
//!
//! A key is what its blob says; the comment is only a name for people. Nothing here verifies a signature.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The longest text that is looked at as a key: RSA of 16384 bits is below 4 KiB.
const MAX_TEXT_BYTES: usize = 16 * 1024;
const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 16384;
const MAX_COMMENT_CHARS: usize = 100;

/// Why a text or a blob is not a public key that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing but space and comments.
    #[error("there is no key in it; give the `.pub` file that `ssh-keygen -t ed25519` writes")]
    Empty,
    /// More than any key needs.
    #[error("it is longer than any public key ({MAX_TEXT_BYTES} bytes); give one `.pub` file")]
    TooLong,
    /// A private key was given.
    #[error(
        "this is a private key, which must never leave your machine; give its public half, the file that ends in `.pub`"
    )]
    Private,
    /// Several keys in one text.
    #[error("there are {0} keys in it; give one key at a time")]
    Several(usize),
    /// Something that is not a key after it.
    #[error("the line `{0}` after the key belongs to no key; the key must be on one line, and alone")]
    Trailing(String),
    /// `authorized_keys` options before the key.
    #[error("there are options (`{0}`) in front of the key; remove everything before the key's type")]
    Options(String),
    /// The first word is no type of key.
    #[error("`{0}` is not a type of SSH key; a public key looks like `ssh-ed25519 AAAAC3… you@example`")]
    UnknownType(String),
    /// DSA, or a certificate.
    #[error("keys of type `{0}` are not accepted; make another with `ssh-keygen -t ed25519`")]
    RefusedType(String),
    /// The PEM format of RFC 4716 or PKCS#8.
    #[error("this is not OpenSSH's one-line format; convert it with `ssh-keygen -i -f FILE`")]
    OtherFormat,
    /// The base64 body is missing or broken.
    #[error("the key's body is damaged: {0}; copy the whole line again")]
    Body(&'static str),
    /// The type before the body is not the type in it.
    #[error("the line says `{said}` and the key in it is `{found}`; copy the whole line again")]
    TypeMismatch {
        /// The first word.
        said: String,
        /// The type inside the blob.
        found: String,
    },
    /// RSA too short or absurdly long.
    #[error(
        "RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits here, this one has {0}; make another with `ssh-keygen -t ed25519`"
    )]
    RsaBits(usize),
}

/// An SSH public key of an accepted type. Equal if the key is equal, whatever its comment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    algorithm: String,
    blob: Vec<u8>,
    comment: String,
}

impl PublicKey {
    /// Reads the one key in a `.pub` file or on standard input. Empty lines and `#` lines are passed over.
    pub fn parse_file(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(KeyError::TooLong);
        }
        if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
            return Err(KeyError::Private);
        }
        if text.contains("-----BEGIN") || text.contains("---- BEGIN SSH2") {
            return Err(KeyError::OtherFormat);
        }
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().ok_or(KeyError::Empty)?;
        let rest: Vec<&str> = lines.collect();
        let more_keys = rest.iter().filter(|line| has_key(line)).count();
        match rest.first() {
            None => first.parse(),
            Some(_) if more_keys > 0 => Err(KeyError::Several(more_keys + 1)),
            Some(line) => Err(KeyError::Trailing(printable(line))),
        }
    }

    /// Reads the blob that a client offers.
    pub fn from_blob(blob: &[u8]) -> Result<Self, KeyError> {
        let algorithm = check_blob(blob)?;
        Ok(Self { algorithm, blob: blob.to_vec(), comment: String::new() })
    }

    /// The same key under another comment. Control characters are dropped and the length is bounded.
    #[must_use]
    pub fn with_comment(mut self, comment: &str) -> Self {
        self.comment = comment.trim().chars().filter(|c| !c.is_control()).take(MAX_COMMENT_CHARS).collect();
        self
    }

    /// The type, such as `ssh-ed25519`.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The blob in base64, which is what identifies the key.
    #[must_use]
    pub fn body(&self) -> String {
        STANDARD.encode(&self.blob)
    }

    /// The comment, which is the key's name for people; empty if it has none.
    #[must_use]
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The fingerprint, as `ssh-keygen -l` shows it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_blob(&self.blob)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(line: &str) -> Result<Self, KeyError> {
        let line = line.trim();
        let (algorithm, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if algorithm.is_empty() {
            return Err(KeyError::Empty);
        }
        refuse_type(algorithm, rest)?;
        let (body, comment) = rest.trim_start().split_once([' ', '\t']).unwrap_or((rest.trim(), ""));
        if body.is_empty() {
            return Err(KeyError::Body("there is nothing after the type"));
        }
        if has_key(comment) {
            return Err(KeyError::Several(2));
        }
        let blob = STANDARD.decode(body).map_err(|_| KeyError::Body("it is not base64"))?;
        let found = check_blob(&blob)?;
        if found != algorithm {
            return Err(KeyError::TypeMismatch { said: algorithm.to_owned(), found });
        }
        Ok(Self { algorithm: found, blob, comment: String::new() }.with_comment(comment))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(line: String) -> Result<Self, KeyError> {
        line.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, self.body())?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " {}", self.comment) }
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.blob == other.blob
    }
}

impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.blob.hash(state);
    }
}

/// The SHA-256 of a key's blob, shown `SHA256:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// Not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fingerprint such as `SHA256:` and 43 characters, as `ssh-keygen -l` shows it")]
pub struct FingerprintError(String);

impl Fingerprint {
    /// The fingerprint of a key of any type, accepted or not.
    #[must_use]
    pub fn of_blob(blob: &[u8]) -> Self {
        Self(Sha256::digest(blob).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("SHA256:{}", STANDARD_NO_PAD.encode(self.0)))
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        text.strip_prefix("SHA256:")
            .and_then(|body| STANDARD_NO_PAD.decode(body.trim_end_matches('=')).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| FingerprintError(text.to_owned()))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

fn is_accepted(algorithm: &str) -> bool {
    matches!(
        algorithm,
        "ssh-ed25519"
            | "ssh-rsa"
            | "ecdsa-sha2-nistp256"
            | "ecdsa-sha2-nistp384"
            | "ecdsa-sha2-nistp521"
            | "sk-ssh-ed25519@openssh.com"
            | "sk-ecdsa-sha2-nistp256@openssh.com"
    )
}

/// Whether there is a key's type in the text, followed by what begins every blob.
fn has_key(text: &str) -> bool {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    words.windows(2).any(|pair| matches!(pair, [kind, body] if (is_accepted(kind) || *kind == "ssh-dss") && body.starts_with("AAAA")))
}

/// Says what a first word that is no accepted type is: options, a refused type, or nonsense.
fn refuse_type(word: &str, rest: &str) -> Result<(), KeyError> {
    if is_accepted(word) {
        return Ok(());
    }
    if word == "ssh-dss" || word.contains("-cert-v0") {
        return Err(KeyError::RefusedType(printable(word)));
    }
    if has_key(rest) || word.contains("=\"") {
        let name = word.split(['=', ',']).next().unwrap_or(word);
        return Err(KeyError::Options(printable(name)));
    }
    Err(KeyError::UnknownType(printable(word)))
}

/// Text from outside, fit to be shown in an error.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

/// Checks the structure of a blob (RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709, OpenSSH's PROTOCOL.u2f) and returns its type.
fn check_blob(blob: &[u8]) -> Result<String, KeyError> {
    let mut rest = blob;
    let algorithm = take(&mut rest)?;
    let algorithm = std::str::from_utf8(algorithm).map_err(|_| KeyError::Body("its type is not text"))?;
    if !is_accepted(algorithm) {
        return Err(KeyError::RefusedType(printable(algorithm)));
    }
    match algorithm {
        "ssh-ed25519" => exactly(take(&mut rest)?, 32)?,
        "sk-ssh-ed25519@openssh.com" => {
            exactly(take(&mut rest)?, 32)?;
            take(&mut rest)?;
        }
        "ssh-rsa" => {
            take(&mut rest)?;
            rsa_bits(take(&mut rest)?)?;
        }
        "ecdsa-sha2-nistp256" => point(&mut rest, "nistp256", 32)?,
        "ecdsa-sha2-nistp384" => point(&mut rest, "nistp384", 48)?,
        "ecdsa-sha2-nistp521" => point(&mut rest, "nistp521", 66)?,
        _ => {
            point(&mut rest, "nistp256", 32)?;
            take(&mut rest)?;
        }
    }
    if rest.is_empty() {
        Ok(algorithm.to_owned())
    } else {
        Err(KeyError::Body("there is more in it than a key"))
    }
}

/// Takes one length-prefixed string.
fn take<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], KeyError> {
    const CUT: KeyError = KeyError::Body("it ends too early");
    let (length, after) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| CUT)?;
    let (value, after) = after.split_at_checked(length).ok_or(CUT)?;
    *rest = after;
    Ok(value)
}

fn exactly(value: &[u8], bytes: usize) -> Result<(), KeyError> {
    if value.len() == bytes { Ok(()) } else { Err(KeyError::Body("a part of it has the wrong length")) }
}

fn point(rest: &mut &[u8], curve: &str, bytes: usize) -> Result<(), KeyError> {
    if take(rest)? != curve.as_bytes() {
        return Err(KeyError::Body("its curve is not the one of its type"));
    }
    let point = take(rest)?;
    if point.first() != Some(&4) {
        return Err(KeyError::Body("its point is not in the uncompressed form"));
    }
    exactly(point, 1 + 2 * bytes)
}

fn rsa_bits(modulus: &[u8]) -> Result<(), KeyError> {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let bits = match modulus.get(zeros..) {
        Some([first, rest @ ..]) => rest.len() * 8 + (8 - first.leading_zeros() as usize),
        _ => 0,
    };
    if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) { Ok(()) } else { Err(KeyError::RsaBits(bits)) }
}

#[cfg(test)]
mod tests;
