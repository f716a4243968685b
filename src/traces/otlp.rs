//! Spans as the body of a request of OTLP/HTTP, in JSON.
//!
//! Ids are hexadecimal, 64-bit numbers are texts, and enumerations are numbers
//! (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::span::{Attribute, Kind, MAX_TEXT_BYTES, Span, Status};

/// The body of a request with these spans, of the program that `resource` describes.
pub(super) fn body(resource: &[(String, String)], spans: &[Span]) -> Value {
    let resource: Vec<Value> =
        resource.iter().map(|(key, text)| attribute(key, &Attribute::Text(text.clone()))).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": "hephy", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans.iter().map(one).collect::<Vec<_>>(),
        }],
    }]})
}

fn one(span: &Span) -> Value {
    let attributes: Vec<Value> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let events: Vec<Value> = span
        .events
        .iter()
        .map(|event| json!({ "timeUnixNano": nanoseconds(event.at), "name": cut(&event.name) }))
        .collect();
    let mut value = json!({
        "traceId": span.trace.to_string(),
        "spanId": span.id.to_string(),
        "name": cut(&span.name),
        "kind": match span.kind { Kind::Internal => 1, Kind::Server => 2 },
        "startTimeUnixNano": nanoseconds(span.start),
        "endTimeUnixNano": nanoseconds(span.end),
        "attributes": attributes,
        "events": events,
        "status": match &span.status {
            Status::Unset => json!({}),
            Status::Ok => json!({ "code": 1 }),
            Status::Error(reason) => json!({ "code": 2, "message": cut(reason) }),
        },
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = json!(parent.to_string());
    }
    value
}

fn attribute(key: &str, value: &Attribute) -> Value {
    let value = match value {
        Attribute::Text(text) => json!({ "stringValue": cut(text) }),
        Attribute::Number(number) => json!({ "intValue": number.to_string() }),
        Attribute::Is(is) => json!({ "boolValue": is }),
    };
    json!({ "key": key, "value": value })
}

fn nanoseconds(time: Timestamp) -> String {
    time.as_nanosecond().max(0).to_string()
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::super::span::SpanEvent;
    use super::super::{SpanId, TraceId};
    use super::*;

    #[test]
    fn a_span_is_written_as_the_specification_says() {
        let trace = TraceId::of(&["hello"]);
        let (id, parent) = (SpanId::of(trace, "build/1"), SpanId::of(trace, "build"));
        let start: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        let span = Span {
            trace,
            id,
            parent: Some(parent),
            name: "RUN".to_owned(),
            kind: Kind::Internal,
            start,
            end: start + std::time::Duration::from_secs(2),
            attributes: vec![
                ("text", "RUN make".into()),
                ("line", Attribute::Number(9)),
                ("cached", false.into()),
            ],
            events: vec![SpanEvent { at: start, name: "waiting".to_owned() }],
            status: Status::Error("exit status 2".to_owned()),
        };
        let body = body(&[("service.name".to_owned(), "hephy".to_owned())], &[span]);
        assert_eq!(
            body,
            json!({"resourceSpans": [{
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "hephy"}}]},
                "scopeSpans": [{
                    "scope": {"name": "hephy", "version": env!("CARGO_PKG_VERSION")},
                    "spans": [{
                        "traceId": trace.to_string(),
                        "spanId": id.to_string(),
                        "parentSpanId": parent.to_string(),
                        "name": "RUN",
                        "kind": 1,
                        "startTimeUnixNano": "1767323045000000006",
                        "endTimeUnixNano": "1767323047000000006",
                        "attributes": [
                            {"key": "text", "value": {"stringValue": "RUN make"}},
                            {"key": "line", "value": {"intValue": "9"}},
                            {"key": "cached", "value": {"boolValue": false}},
                        ],
                        "events": [{"timeUnixNano": "1767323045000000006", "name": "waiting"}],
                        "status": {"code": 2, "message": "exit status 2"},
                    }],
                }],
            }]})
        );
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(cut(&"é".repeat(4000)).len(), MAX_TEXT_BYTES);
        assert_eq!(cut(&format!("a{}", "é".repeat(4000))).len(), MAX_TEXT_BYTES - 1);
    }
}
