//! What is asked of the API server, and what its refusals are to a store.

use serde_json::Value;

use super::resource::{full_name, plural};
use crate::kubernetes::{Caller, Refusal};
use crate::model::{Kind, ObjectName, StoreError};

/// What is asked, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) kind: Kind,
    /// The name of the document, or the prefix of a list.
    pub(super) name: &'a str,
    /// For people: `read`.
    pub(super) doing: &'static str,
    /// As roles name it: `get`.
    pub(super) verb: &'static str,
    /// Where.
    pub(super) namespace: &'a str,
}

impl Asked<'_> {
    /// Sends the request.
    pub(super) async fn sent_by(
        self,
        caller: &Caller,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Value, Refusal> {
        caller.call(plural(self.kind), request).await
    }

    /// A refusal as the store's error. Those that the caller answers to in its own way are none of these.
    pub(super) fn error(self, refusal: Refusal) -> StoreError {
        let Self { kind, name, doing, verb, namespace } = self;
        let object = ObjectName::of(&name);
        let resource = full_name(kind);
        match refusal {
            Refusal::Missing | Refusal::MissingAfterRetry => StoreError::Missing { kind, name: object },
            Refusal::Exists => StoreError::Exists { kind, name: object },
            Refusal::Conflict => StoreError::Conflict { kind, name: object },
            Refusal::Forbidden(message) => {
                StoreError::Forbidden { verb, resource, namespace: namespace.to_owned(), message }
            }
            Refusal::Unknown(message) => StoreError::Unknown { resource, message },
            Refusal::Invalid(message) => StoreError::Refused { kind, name: object, message },
            Refusal::TooLarge(bytes) => StoreError::TooLarge { kind, name: object, bytes },
            Refusal::Unavailable(source) => {
                StoreError::Unavailable { doing, kind, name: name.to_owned(), source }
            }
            Refusal::Expired => {
                let source = Box::new(Refusal::Expired);
                StoreError::Unavailable { doing, kind, name: name.to_owned(), source }
            }
        }
    }
}
