//! The end of a build: what its last stage came to becomes an image, where it belongs.

use crate::build::driver::{BuiltLayer, LayerOrigin};
use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::event::BuildEvent;
use crate::build::image::{Assembled, FinishedLayer, LayerBlob};
use crate::build::result::Outcome;
use crate::build::state::StageState;
use crate::model::PlatformImage;

impl Engine {
    /// Completes the blobs, writes configuration and manifest, and brings them where they belong.
    pub(super) async fn finish(&mut self, mut state: StageState) -> Result<Outcome, EngineError> {
        state.label(self.options.labels.iter().cloned());
        state.config.created = Some(self.now);
        let mut layers = Vec::new();
        for layer in &state.layers {
            layers.push(match &layer.blob {
                LayerBlob::Base { descriptor, source } => {
                    FinishedLayer::of_base(layer.diff_id, descriptor, source)
                }
                LayerBlob::Cached { descriptor, source } => {
                    FinishedLayer::cached(layer.diff_id, descriptor, source)
                }
                LayerBlob::Stored(compressed) => FinishedLayer::stored(compressed, false),
                LayerBlob::Making | LayerBlob::Tree => {
                    FinishedLayer::stored(&self.capture.finish(&layer.diff_id).await?, true)
                }
            });
        }
        let image =
            Assembled::new(state.config, layers, self.options.format, self.options.annotations.clone());
        let bases = &self.trees.bases;
        // First what stays here, as kaniko has it: it is there too if the registry does not take the image.
        if let Some(directory) = &self.options.oci_layout {
            image.write_layout(directory, bases, &self.options.names).await?;
        }
        if let Some(path) = &self.options.tar {
            image.write_tar(path, bases, &self.options.names).await?;
        }
        for kept in image.push(bases, &self.options.destinations, self.options.ignore_immutable_tags).await? {
            let text = format!("{kept} stays as it is: the registry moves no tag");
            (self.events)(BuildEvent::Note { text });
        }
        let built = image.layers.iter().map(|layer| BuiltLayer {
            descriptor: layer.descriptor.clone(),
            diff_id: layer.diff_id,
            origin: match (layer.base, layer.new) {
                (true, _) => LayerOrigin::Base,
                (false, false) => LayerOrigin::Cached,
                (false, true) => LayerOrigin::Built,
            },
        });
        Ok(Outcome::Built {
            image: PlatformImage {
                platform: self.options.platform.clone(),
                manifest: image.manifest.digest(),
                size_bytes: image.layers.iter().map(|layer| layer.descriptor.size).sum(),
                layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
                new_layers: u32::try_from(image.layers.iter().filter(|layer| layer.new).count())
                    .unwrap_or(u32::MAX),
                steps: self.steps.clone(),
            },
            config: image.config_digest(),
            layers: built.collect(),
            destinations: self.options.destinations.iter().map(ToString::to_string).collect(),
        })
    }
}
