//! Stages at the same time: each begins when those that it needs are finished.
//!
//! A stage has a worker to itself while it runs, since a worker does one thing at a time; the next stage takes it over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::build::engine::{Engine, steps_of};
use crate::build::error::EngineError;
use crate::build::plan::Plan;
use crate::build::process::CANCELLED;
use crate::build::trees::Trees;
use crate::dockerfile::Located;

/// A worker that no stage uses at the time, and whether it has a copy of the context.
struct Idle {
    trees: Arc<Trees>,
    context_copied: Option<bool>,
}

impl Engine {
    /// Runs the stages of a plan; afterwards `states` has them all.
    pub(super) async fn run_stages(
        &mut self,
        plan: &Plan<'_>,
        triggers: &BTreeMap<usize, Vec<Located>>,
    ) -> Result<(), EngineError> {
        let at_once = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let in_image = plan.in_image();
        let mut idle = vec![Idle { trees: Arc::clone(&self.trees), context_copied: self.context_copied }];
        let mut waiting: BTreeSet<usize> = plan.stages.keys().copied().collect();
        let mut steps = BTreeMap::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < at_once {
                let is_ready = |index: &&usize| {
                    plan.needs(**index, triggers).iter().all(|other| self.states.contains_key(other))
                };
                let Some(index) = waiting.iter().find(is_ready).copied() else { break };
                waiting.remove(&index);
                let mut stage = self.for_stage(idle.pop())?;
                stage.before = plan
                    .stages
                    .keys()
                    .take_while(|other| **other < index)
                    .map(|other| steps_of(plan, triggers, *other))
                    .sum();
                stage.in_image = in_image.contains(&index);
                running.push(async move {
                    let result = stage.run_stage(plan, index, triggers).await;
                    (index, stage, result)
                });
            }
            let Some((index, stage, result)) = running.next().await else { break };
            match result {
                Ok(state) => {
                    self.states.insert(index, Arc::new(state));
                    steps.insert(index, stage.steps);
                    idle.push(Idle { trees: stage.trees, context_copied: stage.context_copied });
                }
                Err(error) => {
                    self.at = stage.at;
                    drop(running);
                    // The other stages, in the middle of whatever they do.
                    self.all_trees.end_workers(CANCELLED).await;
                    return Err(error);
                }
            }
        }
        self.steps = steps.into_values().flatten().collect();
        Ok(())
    }

    /// This build, as one stage of it sees it.
    fn for_stage(&self, idle: Option<Idle>) -> Result<Self, EngineError> {
        let mut stage = self.clone();
        (stage.steps, stage.fetching) = (Vec::new(), Arc::default());
        if let Some(Idle { trees, context_copied }) = idle {
            (stage.trees, stage.context_copied) = (trees, context_copied);
        } else {
            (stage.trees, stage.context_copied) = (Arc::new(self.trees.another()?), None);
            self.all_trees.add(&stage.trees);
        }
        Ok(stage)
    }

    async fn run_stage(
        &mut self,
        plan: &Plan<'_>,
        index: usize,
        triggers: &BTreeMap<usize, Vec<Located>>,
    ) -> Result<crate::build::state::StageState, EngineError> {
        let stage = plan.dockerfile.stages.get(index).ok_or(EngineError::Protocol)?;
        let base = plan.stages.get(&index).ok_or(EngineError::Protocol)?;
        self.remember(stage);
        let state = self.stage(plan, stage, base, triggers.get(&index).map_or(&[], Vec::as_slice)).await;
        self.keep_memory(stage);
        state
    }
}
