//! Goes through a tree of directories on several threads, and gives what one would find, in its order.
//!
//! Half of the time of a build that has nothing to do is for asking what is in its context.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// With fewer directories left to look into, threads take longer to start than they save.
const WORTH_THREADS: usize = 16;

/// More threads than this wait for the same disk.
const MAX_THREADS: usize = 8;

/// Something in a directory.
pub(super) struct Entry<T, D> {
    /// What it is.
    pub(super) found: T,
    /// Kept only if something is kept below.
    pub(super) is_way: bool,
    /// If it is a directory, what to look into.
    pub(super) directory: Option<D>,
}

/// What `list` finds in `top` and in all directories below: each before what is in it, those of one directory in the order of
/// `list`. Of several errors one is given.
pub(super) fn walk<T: Send, D: Send, E: Send>(
    top: D,
    list: impl Fn(&D) -> Result<Vec<Entry<T, D>>, E> + Sync,
) -> Result<Vec<T>, E> {
    let (found, about) = (Vec::new(), Vec::new());
    let state = State {
        waiting: vec![(0, top)],
        found,
        about,
        listings: vec![Range::default()],
        at_work: 0,
        error: None,
    };
    let tree = Tree { state: Mutex::new(state), changed: Condvar::new(), list };
    tree.work(WORTH_THREADS);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let others = if tree.state().waiting.is_empty() { 0 } else { processors.min(MAX_THREADS) - 1 };
    std::thread::scope(|scope| {
        for _ in 0..others {
            // Where no more threads can be had, those that there are do it.
            drop(std::thread::Builder::new().spawn_scoped(scope, || tree.work(usize::MAX)));
        }
        tree.work(usize::MAX);
    });
    let state = tree.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None => Ok(state.in_order()),
    }
}

struct Tree<T, D, E, L> {
    state: Mutex<State<T, D, E>>,
    /// There is more to look into, or all is done.
    changed: Condvar,
    list: L,
}

struct State<T, D, E> {
    /// Directories to look into, and where what is found goes.
    waiting: Vec<(usize, D)>,
    /// What was found, those of one directory together. There is no second of this list: it is most of what a build holds.
    found: Vec<T>,
    about: Vec<About>,
    /// Where in these lists the contents of each directory are.
    listings: Vec<Range<usize>>,
    at_work: usize,
    error: Option<E>,
}

/// What is to be known of what was found.
struct About {
    is_way: bool,
    /// Of a directory: which listing is its.
    listing: Option<usize>,
}

impl<T, D, E, L: Fn(&D) -> Result<Vec<Entry<T, D>>, E>> Tree<T, D, E, L> {
    fn state(&self) -> MutexGuard<'_, State<T, D, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks into directories until none is left, or so many are.
    fn work(&self, until: usize) {
        let mut state = self.state();
        while state.error.is_none() && state.waiting.len() < until {
            let Some((place, directory)) = state.waiting.pop() else {
                if state.at_work == 0 {
                    break;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.at_work += 1;
            drop(state);
            let at_work = AtWork(self);
            let listed = (self.list)(&directory);
            self.state().take(place, listed);
            drop(at_work);
            state = self.state();
        }
    }
}

/// Whoever looks into a directory: the others wait for what it finds, also if it panics.
struct AtWork<'a, T, D, E, L: Fn(&D) -> Result<Vec<Entry<T, D>>, E>>(&'a Tree<T, D, E, L>);

impl<T, D, E, L: Fn(&D) -> Result<Vec<Entry<T, D>>, E>> Drop for AtWork<'_, T, D, E, L> {
    fn drop(&mut self) {
        self.0.state().at_work -= 1;
        self.0.changed.notify_all();
    }
}

impl<T, D, E> State<T, D, E> {
    fn take(&mut self, place: usize, listed: Result<Vec<Entry<T, D>>, E>) {
        let entries = match listed {
            Ok(entries) => entries,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        let first = self.found.len();
        for Entry { found, is_way, directory } in entries {
            let listing = directory.map(|directory| {
                self.listings.push(Range::default());
                self.waiting.push((self.listings.len() - 1, directory));
                self.listings.len() - 1
            });
            self.found.push(found);
            self.about.push(About { is_way, listing });
        }
        if let Some(place) = self.listings.get_mut(place) {
            *place = first..self.found.len();
        }
    }

    /// What was found, each directory before what is in it, without the ways that lead to nothing.
    fn in_order(mut self) -> Vec<T> {
        let mut order = Vec::with_capacity(self.found.len());
        self.follow(0, &mut order);
        let mut places = vec![None; self.found.len()];
        for (place, index) in order.iter().enumerate() {
            places[*index] = Some(place);
        }
        // What is left out goes behind.
        let mut behind = order.len()..;
        let mut places: Vec<usize> =
            places.into_iter().map(|place| place.or_else(|| behind.next()).unwrap_or_default()).collect();
        for index in 0..places.len() {
            while places[index] != index {
                let place = places[index];
                self.found.swap(index, place);
                places.swap(index, place);
            }
        }
        self.found.truncate(order.len());
        self.found
    }

    fn follow(&self, listing: usize, order: &mut Vec<usize>) {
        for index in self.listings[listing].clone() {
            let before = order.len();
            order.push(index);
            let About { is_way, listing } = self.about[index];
            if let Some(listing) = listing {
                self.follow(listing, order);
            }
            if is_way && order.len() == before + 1 {
                order.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of directories `width` wide and `depth` deep, each with a file; those that `is_way` says are only ways.
    fn list(directory: &str, (width, depth): (usize, usize), is_way: bool) -> Vec<Entry<String, String>> {
        let mut entries = Vec::new();
        if directory.matches('/').count() < depth {
            entries.extend((0..width).map(|number| {
                let path = format!("{directory}/{number}");
                Entry { found: path.clone(), is_way, directory: Some(path) }
            }));
        }
        entries.push(Entry { found: format!("{directory}/file"), is_way: false, directory: None });
        entries
    }

    fn in_order(directory: &str, shape: (usize, usize), all: &mut Vec<String>) {
        for entry in list(directory, shape, false) {
            all.push(entry.found);
            if let Some(below) = entry.directory {
                in_order(&below, shape, all);
            }
        }
    }

    #[test]
    fn many_threads_find_what_one_does_in_its_order() {
        for shape in [(0, 0), (3, 1), (40, 1), (6, 3), (1, 60)] {
            let mut expected = Vec::new();
            in_order("", shape, &mut expected);
            let found = walk(String::new(), |directory| Ok::<_, ()>(list(directory, shape, true)));
            assert_eq!(found.unwrap(), expected, "{shape:?}");
        }
    }

    #[test]
    fn a_way_to_nothing_is_left_out_with_the_ways_to_it() {
        let empty = |directory: &String| {
            let mut entries = list(directory, (20, 2), true);
            entries.retain(|entry| entry.directory.is_some() || directory == "/7/7");
            Ok::<_, ()>(entries)
        };
        assert_eq!(walk(String::new(), empty).unwrap(), ["/7", "/7/7", "/7/7/file"]);
    }

    #[test]
    fn an_error_ends_it_wherever_it_is() {
        for broken in ["", "/3", "/39/39"] {
            let list = |directory: &String| {
                if directory == broken { Err(broken) } else { Ok(list(directory, (40, 2), false)) }
            };
            assert_eq!(walk(String::new(), list), Err(broken));
        }
    }
}
