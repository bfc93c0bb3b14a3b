//! `Clone` that makes use of what the value it is assigned to has already allocated.
//!
//! A reset assigns the snapshot's [`crate::linux::Kernel`] to a VM's. The derived `clone_from` would make every list anew and free
//! the old one, and the next request would have to grow the new one, which is exactly as long as it was. A list that a run has made
//! much longer is made anew all the same: what one request wanted is not kept for ever.

use std::collections::VecDeque;

/// Implement [`Clone`] for a struct, field by field, `clone_from` included; `lists` are those that guests can make long. Not to
/// name a field is an error, so that none is left as it was.
macro_rules! clone_in_place {
    ($type:ident { $($field:ident),* $(,)? } $(lists { $($list:ident),* })?) => {
        impl Clone for $type {
            fn clone(&self) -> Self {
                let Self { $($field,)* $($($list),*)? } = self;
                Self { $($field: $field.clone(),)* $($($list: $list.clone()),*)? }
            }

            fn clone_from(&mut self, source: &Self) {
                let Self { $($field,)* $($($list),*)? } = source;
                $(self.$field.clone_from($field);)*
                $($(crate::clone_in_place::assign(&mut self.$list, $list);)*)?
            }
        }
    };
}

pub(crate) use clone_in_place;

/// Room that a list may keep beyond what it is assigned, elements.
const SPARE: usize = 512;

/// What has a capacity.
pub(crate) trait List: Clone {
    /// Elements it has, and for how many it has room.
    fn sizes(&self) -> (usize, usize);
}

impl<T: Clone> List for Vec<T> {
    fn sizes(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
}

impl<T: Clone> List for VecDeque<T> {
    fn sizes(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }
}

/// Make a list equal to another one, in its own memory unless that is far too much.
pub(crate) fn assign<L: List>(list: &mut L, source: &L) {
    if list.sizes().1 > source.sizes().0 + SPARE { *list = source.clone() } else { list.clone_from(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Both {
        number: u32,
        list: Vec<u32>,
        queue: VecDeque<Vec<u8>>,
    }

    clone_in_place!(Both { number } lists { list, queue });

    fn snapshot() -> Both {
        Both { number: 7, list: vec![1, 2, 3], queue: VecDeque::from([b"one".to_vec(), b"two".to_vec()]) }
    }

    #[test]
    fn every_field_is_assigned_and_memory_is_used_again() {
        let (snapshot, mut value) = (snapshot(), snapshot());
        value.number = 8;
        value.list.extend([4; 50]);
        value.list[0] = 9;
        value.queue.push_front(b"three".to_vec());
        let (address, capacity) = (value.list.as_ptr(), value.list.capacity());
        value.clone_from(&snapshot);
        assert_eq!(value, snapshot);
        assert_eq!((value.list.as_ptr(), value.list.capacity()), (address, capacity));
        value.list.clear();
        value.queue.clear();
        value.clone_from(&snapshot);
        assert_eq!(value, snapshot);
    }

    #[test]
    fn what_one_run_has_made_long_is_given_back() {
        let (snapshot, mut value) = (snapshot(), snapshot());
        value.list.extend([4; 100_000]);
        value.queue.extend(vec![Vec::new(); 100_000]);
        value.clone_from(&snapshot);
        assert_eq!(value, snapshot);
        assert!(value.list.capacity() <= 3 + SPARE && value.queue.capacity() <= 2 + SPARE);
    }
}
