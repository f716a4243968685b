//! A span: something that had a beginning and an end.

use jiff::Timestamp;

use super::{SpanId, TraceId};

/// The longest text of an attribute or a message, in bytes; the rest is cut.
pub const MAX_TEXT_BYTES: usize = 1024;

/// Something that had a beginning and an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Of which trace.
    pub trace: TraceId,
    /// Which of them.
    pub id: SpanId,
    /// What it was a part of; nothing for the root.
    pub parent: Option<SpanId>,
    /// What kind of thing it was: few different names, so that they can be compared.
    pub name: String,
    /// Who began it.
    pub kind: Kind,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// What there is to know of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// What happened meanwhile.
    pub events: Vec<SpanEvent>,
    /// How it ended.
    pub status: Status,
}

/// Who began a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// We ourselves.
    Internal,
    /// Somebody who asked us.
    Server,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// Words.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Is(bool),
}

/// Something that happened within a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanEvent {
    /// When.
    pub at: Timestamp,
    /// What.
    pub name: String,
}

/// How a span ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Well.
    Ok,
    /// Not well, for this reason.
    Error(String),
    /// It was given up: neither.
    Unset,
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Attribute {
    fn from(is: bool) -> Self {
        Self::Is(is)
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}
