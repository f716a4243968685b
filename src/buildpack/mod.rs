//! Formats of buildpacks: for now the `Procfile`, which apps with a Dockerfile have too.

pub mod procfile;
