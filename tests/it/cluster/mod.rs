//! What needs a real cluster: each test makes namespaces of its own in the one that `KUBECONFIG` names.

mod driver;
mod runtime;
mod web_image;
