//! Which pages stay mapped and are copied back at a reset, and which are dropped.
//!
//! In the first requests after a fork every written page is dropped at the reset, so that each request's set is its own;
//! pages that at least two of them wrote become *hot*, up to a limit. From then on hot pages are copied back (0.1 us each,
//! and the next request takes no fault) and all others dropped, so that one large request does not slow those behind it.
//! Every few thousand resets it learns again.

use std::collections::{HashMap, HashSet};

/// Requests that are learned from.
const LEARNING: u32 = 32;
/// Resets after which it learns again.
const RELEARN: u32 = 4096;

/// The hot set of one request VM.
#[derive(Debug, Default)]
pub(super) struct HotPages {
    hot: HashSet<u64>,
    /// How many of the requests learned from wrote a page.
    writers: HashMap<u64, u32>,
    resets: u32,
    limit: usize,
}

/// What to do at this reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Copy the hot pages back, drop the others.
    CopyHot,
    /// As `CopyHot`, and re-arm the dirty ring: learning begins anew.
    Relearn,
}

impl HotPages {
    /// At most `limit` hot pages.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Note what a request wrote; `keep` is false where it wrote so much that everything is to be dropped.
    pub(super) fn observe(&mut self, dirty: &[u32], keep: bool) -> Plan {
        self.resets += 1;
        if self.resets > RELEARN {
            self.resets = 1;
            self.hot.clear();
            self.writers.clear();
            return Plan::Relearn;
        }
        if self.resets <= LEARNING && keep {
            for &page in dirty {
                let page = u64::from(page);
                let writers = self.writers.entry(page).or_default();
                *writers += 1;
                if *writers >= 2 && self.hot.len() < self.limit {
                    self.hot.insert(page);
                }
            }
        } else if self.resets == LEARNING + 1 {
            self.writers = HashMap::new();
        }
        Plan::CopyHot
    }

    /// Whether this page is copied back.
    pub(super) fn is_hot(&self, page: u64) -> bool {
        self.hot.contains(&page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_two_requests_become_hot_up_to_the_limit() {
        let mut pages = HotPages::new(3);
        pages.observe(&[1, 2, 3, 4, 5], true);
        assert!(!pages.is_hot(1));
        pages.observe(&[2, 3, 4, 5], true);
        let hot = (0..10).filter(|&page| pages.is_hot(page)).count();
        assert_eq!(hot, 3);
        assert!(!pages.is_hot(1));
    }

    #[test]
    fn it_learns_again_after_a_while() {
        let mut pages = HotPages::new(10);
        for _ in 0..RELEARN {
            assert_eq!(pages.observe(&[7], true), Plan::CopyHot);
        }
        assert!(pages.is_hot(7));
        assert_eq!(pages.observe(&[8], true), Plan::Relearn);
        assert!(!pages.is_hot(7));
    }
}
