//! Traces: what something took its time for, as spans that are sent to an OpenTelemetry collector.
//!
//! It knows no push: whoever does something names its spans. Ids are derived and not drawn, so that another process
//! that goes on with the same thing goes on with its trace, and tells nothing twice. What cannot be sent is dropped
//! and counted; nobody who sends a span ever waits.
//!
//! The protocol is OTLP/HTTP in its JSON encoding (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

mod exporter;
mod id;
mod otlp;
mod span;
mod tls;

pub use exporter::{Counts, Exporter, ExporterError};
pub use id::{SpanId, TraceId};
pub use span::{Attribute, Kind, MAX_TEXT_BYTES, Span, SpanEvent, Status};
