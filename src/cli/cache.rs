//! `hephy cache`: the layers that builds and apps share on this machine.

mod warm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::render::size;
use super::{chain, default_data, line, problem};
use crate::build::{BuildFailure, layers_directory, open_layer_store, prune};
use crate::config::server::{Size, Span};
use crate::layers::{PrunePolicy, Pruned, Stored};
use crate::sandbox::IdMap;

/// `cache`.
#[derive(Debug, Args)]
pub(super) struct CacheArguments {
    /// Where everything is kept [default: $XDG_DATA_HOME/hephy]
    #[arg(long, env = "HEPHY_DATA", value_name = "DIRECTORY", global = true)]
    data: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch base images into a directory, for `hephy build --cache-dir`
    Warm(Box<warm::WarmArguments>),
    #[command(flatten)]
    Layers(LayersAction),
}

/// What is done with the layers of this machine.
#[derive(Debug, Subcommand)]
enum LayersAction {
    /// How much there is
    Show {
        /// For people or for programs
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Remove what no build and no app uses at the time; the longest unused first
    Prune {
        /// Remove until no more than this is left [default, without --keep-for: 0]
        #[arg(long, value_name = "BYTES")]
        keep_size: Option<Size>,
        /// Remove what was not used for so long, as in `7d`
        #[arg(long, value_name = "DURATION")]
        keep_for: Option<Span>,
        /// Do the same to the cache mounts of RUN, by themselves
        #[arg(long)]
        mounts: bool,
        /// For people or for programs
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(arguments: &CacheArguments) -> ExitCode {
    let acted = match (&arguments.action, arguments.data.clone().or_else(default_data)) {
        (Action::Warm(arguments), _) => warm::run(arguments),
        (Action::Layers(action), Some(data)) => act(&data, action),
        (Action::Layers(_), None) => {
            problem(
                "neither `--data`, XDG_DATA_HOME nor HOME says where the layers are: give `--data DIRECTORY`",
            );
            return ExitCode::from(2);
        }
    };
    match acted {
        Ok(text) => {
            line(&text);
            ExitCode::SUCCESS
        }
        Err(text) => {
            problem(&text);
            ExitCode::FAILURE
        }
    }
}

fn act(data: &Path, action: &LayersAction) -> Result<String, String> {
    let layers = layers_directory(data);
    if !layers.is_dir() {
        return Err(format!("nothing was built yet: there is no `{}`", layers.display()));
    }
    let ids = IdMap::choose(&data.join("idmap.json")).map_err(|error| chain(&error))?;
    match action {
        LayersAction::Show { format } => {
            let stored = open_layer_store(&layers, &ids).and_then(|store| store.stored());
            let stored = stored.map_err(|error| chain(&error))?;
            Ok(match format {
                Format::Json => serde_json::to_string_pretty(&stored).unwrap_or_default(),
                Format::Text => show(&stored),
            })
        }
        LayersAction::Prune { keep_size, keep_for, mounts, format } => {
            let policy = PrunePolicy { mounts: *mounts, ..policy(*keep_size, *keep_for) };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
            let pruned = runtime.block_on(prune(&layers, &ids, policy)).map_err(|failure| told(&failure))?;
            Ok(match format {
                Format::Json => serde_json::to_string_pretty(&pruned).unwrap_or_default(),
                Format::Text => removed(&pruned),
            })
        }
    }
}

fn policy(keep_size: Option<Size>, keep_for: Option<Span>) -> PrunePolicy {
    let max_age: Option<Duration> = keep_for.map(|span| span.0);
    let max_bytes = keep_size.map(|size| size.0).or(max_age.is_none().then_some(0));
    PrunePolicy { max_bytes, max_age, mounts: false }
}

fn told(failure: &BuildFailure) -> String {
    match failure {
        BuildFailure::App(step) | BuildFailure::Platform(step) => {
            std::iter::once(&step.heading).chain(&step.cause).cloned().collect::<Vec<_>>().join(": ")
        }
        BuildFailure::Cancelled => "cancelled".to_owned(),
        BuildFailure::TimedOut { .. } => "it took too long".to_owned(),
    }
}

fn show(stored: &Stored) -> String {
    format!(
        "layers      {:>6}  {}\ncompressed  {:>6}  {}\nmounts      {:>6}  {}",
        stored.trees,
        size(stored.tree_bytes),
        stored.blobs,
        size(stored.blob_bytes),
        stored.mounts,
        size(stored.mount_bytes)
    )
}

fn removed(pruned: &Pruned) -> String {
    let Pruned { trees, blobs, bytes, mount_bytes, .. } = pruned;
    let mounts = match mount_bytes {
        0 => String::new(),
        bytes => format!("; cache mounts: {}", size(*bytes)),
    };
    format!("Removed {trees} layers and {blobs} compressed ones: {}{mounts}", size(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_all_that_is_unused_goes_and_with_an_age_only_what_is_old() {
        assert_eq!(policy(None, None), PrunePolicy { max_bytes: Some(0), ..PrunePolicy::default() });
        let week = Duration::from_secs(7 * 24 * 3600);
        let old = PrunePolicy { max_age: Some(week), ..PrunePolicy::default() };
        assert_eq!(policy(None, Some(Span(week))), old);
        assert_eq!(policy(Some(Size(5)), Some(Span(week))), PrunePolicy { max_bytes: Some(5), ..old });
    }
}
