//! The images that a plan needs, and the triggers that they bring, which may need more images.

use std::collections::BTreeMap;

use futures::future::try_join_all;

use crate::build::base::ResolvedBase;
use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::plan::{ImageName, Plan};
use crate::dockerfile::{GlobalScope, Located};

impl Engine {
    /// Looks up all images that the plan needs, and the triggers that they bring.
    pub(super) async fn resolve(
        &mut self,
        plan: &mut Plan<'_>,
        global: &GlobalScope,
    ) -> Result<BTreeMap<usize, Vec<Located>>, EngineError> {
        let mut triggers = BTreeMap::new();
        loop {
            let wanted: Vec<(ImageName, usize)> = plan
                .images(&triggers)
                .into_iter()
                .filter(|(name, _)| !self.images.contains_key(name))
                .collect();
            let stages = plan.stages.len();
            let found = try_join_all(wanted.iter().map(|(name, line)| self.resolve_image(name, *line))).await;
            let found = found.map_err(|(line, error)| {
                self.at = Some(self.location(line));
                error
            })?;
            self.images.extend(wanted.into_iter().map(|(name, _)| name).zip(found));
            let on_build = |name: &ImageName| {
                self.images.get(name).map(|image| image.config.config.on_build.clone()).unwrap_or_default()
            };
            plan.add_base_triggers(&on_build, global, &mut triggers)?;
            let all = plan.images(&triggers).keys().all(|name| self.images.contains_key(name));
            if all && stages == plan.stages.len() {
                return Ok(triggers);
            }
        }
    }

    async fn resolve_image(
        &self,
        name: &ImageName,
        line: usize,
    ) -> Result<ResolvedBase, (usize, EngineError)> {
        let found = self.trees.bases.finder.named(name, &self.options.platform).await;
        found.map_err(|error| (line, error))
    }
}
