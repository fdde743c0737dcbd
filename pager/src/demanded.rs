//! Chunks that threads wait for and some handler brings: what another handler reads of faults in the same chunk is left to it, so that
//! none is asked for twice.
//!
//! Whoever begins a chunk ends it: it gets the faults that others have left, with its own.

use crate::space::Space;
use pages::PageAddr;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A thread that waits for a page.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Whose.
    pub(crate) space: Arc<Space>,
    /// Where it waits.
    pub(crate) page: PageAddr,
    /// Since when, as far as we know.
    pub(crate) since: Instant,
}

/// All that are on their way, by their number.
#[derive(Debug, Default)]
pub(crate) struct Demanded(Mutex<HashMap<u32, Vec<Fault>>>);

impl Demanded {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Vec<Fault>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // every change of it is one step
    }

    /// These wait for a chunk: they are the caller's to answer, or were left to whoever brings it.
    pub(crate) fn begin(&self, chunk: u32, faults: Vec<Fault>) -> Option<Vec<Fault>> {
        let mut demanded = self.lock();
        match demanded.entry(chunk) {
            Entry::Occupied(mut left) => {
                left.get_mut().extend(faults);
                None
            }
            Entry::Vacant(place) => {
                place.insert(Vec::new());
                Some(faults)
            }
        }
    }

    /// The caller brings a chunk no more, one way or the other: what others have left to it.
    pub(crate) fn end(&self, chunk: u32) -> Vec<Fault> {
        self.lock().remove(&chunk).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::Residency;
    use kernel::lazy_memory::LazyMemory;
    use kernel::uffd::Uffd;

    #[test]
    fn who_comes_later_leaves_its_faults_to_who_came_first() {
        let (_memory, uffd) = LazyMemory::map(1).expect("memory");
        let space = Arc::new(Space::new(Uffd::adopt(uffd), Residency::default()));
        let fault = |page| vec![Fault { space: space.clone(), page: PageAddr::from_number(page), since: Instant::now() }];
        let pages = |faults: Vec<Fault>| faults.iter().map(|fault| fault.page.number()).collect::<Vec<_>>();
        let demanded = Demanded::default();
        assert_eq!(demanded.begin(7, fault(28)).map(pages), Some(vec![28]));
        assert!(demanded.begin(7, fault(29)).is_none());
        assert!(demanded.begin(7, fault(28)).is_none());
        assert_eq!(demanded.begin(8, fault(32)).map(pages), Some(vec![32]));
        assert_eq!(pages(demanded.end(7)), [29, 28]);
        assert_eq!(pages(demanded.end(7)), [0; 0]);
        assert_eq!(demanded.begin(7, fault(30)).map(pages), Some(vec![30]), "it begins anew");
    }
}
