//! A repository of which the large packs stay in the registry: their indexes are here, and parts of them when they are
//! needed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::kept::{Kept, Registry};
use super::{AT_ONCE, Sources, SourcesError, blocking, lock};
use crate::git::{Brought, Distant, DistantPack, FetchError, PackSource, PartFetched, Repository};
use crate::model::AppName;

/// What was brought of a repository is of no use any more after this time, or brought again.
const BROUGHT_AGE: Duration = Duration::from_hours(24);

/// The packs that are fetched whole: the smallest, as long as all of them together have no more than so many bytes.
///
/// These are the pushes of late, which are read most; and a small repository is fetched in one go.
pub(super) fn near(listed: &[Kept], max_bytes: u64) -> BTreeSet<(String, u32)> {
    let mut by_size: Vec<&Kept> = listed.iter().collect();
    by_size.sort_by_key(|kept| (kept.pack.size, kept.key()));
    let mut bytes = 0;
    let fits = |kept: &&&Kept| {
        bytes += kept.pack.size + kept.index.size;
        bytes <= max_bytes
    };
    by_size.iter().take_while(fits).map(|kept| kept.key()).collect()
}

/// What was brought of an app's repository, and since when.
#[derive(Debug)]
pub(super) struct Place {
    brought: Arc<Brought>,
    since: Instant,
}

impl Sources {
    /// Opens packs that stay in the registry.
    pub(super) async fn distant(
        &self,
        registry: &Registry,
        app: &AppName,
        repository: &Repository,
        packs: Vec<Kept>,
    ) -> Result<Distant, SourcesError> {
        let brought = self.brought(app, repository).await?;
        let fetched = packs.iter().map(|kept| index(registry, app, kept, &brought));
        let distant: Vec<DistantPack> =
            futures::stream::iter(fetched.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        let source = source(registry, app, repository, packs)?;
        blocking(move || Ok(Distant::open(distant, brought, source)?)).await
    }

    async fn brought(&self, app: &AppName, repository: &Repository) -> Result<Arc<Brought>, SourcesError> {
        let known = lock(&self.brought).get(app).map(|place| Arc::clone(&place.brought));
        if let Some(known) = known.filter(|known| known.path().exists()) {
            return Ok(known);
        }
        let repository = repository.clone();
        let brought = Arc::new(blocking(move || Ok(repository.brought()?)).await?);
        let place = Place { brought: Arc::clone(&brought), since: Instant::now() };
        lock(&self.brought).insert(app.clone(), place);
        Ok(brought)
    }

    /// Lets go of what was brought, for the repository is here whole. It goes with whoever reads it now.
    pub(super) fn let_go(&self, app: &AppName) {
        let place = lock(&self.brought).remove(app);
        remove_behind(place);
    }

    /// Lets go of what was brought long ago: nobody knows any more what of it is needed.
    pub fn let_go_of_old(&self) {
        let old = |_: &AppName, place: &mut Place| place.since.elapsed() >= BROUGHT_AGE;
        let places: Vec<_> = lock(&self.brought).extract_if(old).collect();
        remove_behind(places);
    }
}

/// Drops what was brought where nobody waits for it: there may be very many files.
fn remove_behind(places: impl Send + 'static) {
    tokio::task::spawn_blocking(move || drop(places));
}

/// The index of a pack, fetched if it is not here.
async fn index(
    registry: &Registry,
    app: &AppName,
    kept: &Kept,
    brought: &Brought,
) -> Result<DistantPack, SourcesError> {
    let path = brought.path().join(format!("{}.idx", kept.index.digest.hex()));
    if !tokio::fs::try_exists(&path).await.unwrap_or_default() {
        let failed = |source| SourcesError::File { doing: "write", path: path.clone(), source };
        let arriving = tempfile::Builder::new().prefix("index-").tempdir_in(brought.path());
        let arriving = arriving.map_err(failed)?;
        let whole = arriving.path().join("idx");
        registry.pull_blob(app, &kept.index, &whole).await?;
        tokio::fs::rename(&whole, &path).await.map_err(failed)?;
    }
    Ok(DistantPack { name: kept.name.clone(), bytes: kept.pack.size, index: path })
}

/// How parts of packs come from the registry, and whole ones.
fn source(
    registry: &Registry,
    app: &AppName,
    repository: &Repository,
    packs: Vec<Kept>,
) -> Result<PackSource, SourcesError> {
    let from = registry.repository(app)?;
    let packs: Arc<HashMap<String, Kept>> =
        Arc::new(packs.into_iter().map(|kept| (kept.name.clone(), kept)).collect());
    let (client, all) = (registry.client.clone(), Arc::clone(&packs));
    let part = move |name: &str, part: std::ops::Range<u64>| {
        let (client, from, kept) = (client.clone(), from.clone(), all.get(name).cloned());
        async move {
            let kept = kept.ok_or_else(unlisted)?;
            let part: PartFetched = client.blob_part(&from, &kept.pack, part).await.map_err(FetchError::from);
            part
        }
        .boxed()
    };
    let (registry, app, repository) = (registry.clone(), app.clone(), repository.clone());
    let whole = move |name: &str| {
        let (registry, app, repository) = (registry.clone(), app.clone(), repository.clone());
        let kept = packs.get(name).cloned();
        async move {
            let kept = kept.ok_or_else(unlisted)?;
            let place = repository.clone();
            let arrivals = blocking(move || Ok(place.arrivals()?)).await?;
            let pack = registry.pull(&app, &kept, arrivals.path()).await?;
            let taken = blocking(move || Ok(repository.take_in_more(&[pack])?)).await;
            taken.map_err(FetchError::from)
        }
        .boxed()
    };
    Ok(PackSource { part: Box::new(part), whole: Box::new(whole) })
}

fn unlisted() -> FetchError {
    "the pack is not in the list".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, MediaType};

    fn kept(name: &str, bytes: u64) -> Kept {
        let descriptor = |size| Descriptor { size, ..Descriptor::of(MediaType::Empty, name.as_bytes()) };
        Kept { name: name.to_owned(), again: 0, at: None, pack: descriptor(bytes), index: descriptor(10) }
    }

    #[test]
    fn the_smallest_packs_are_fetched_whole_as_long_as_they_are_few_bytes_together() {
        let listed = [kept("huge", 1 << 30), kept("b", 50), kept("c", 60), kept("a", 20)];
        let names = |max| near(&listed, max).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(89), ["a"]);
        assert_eq!(names(90), ["a", "b"]);
        assert_eq!(names(1000), ["a", "b", "c"]);
        assert_eq!(names(u64::MAX), ["a", "b", "c", "huge"]);
    }
}
