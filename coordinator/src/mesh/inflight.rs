//! The calls of one stream that wait for their replies. Pure.
//!
//! An id is a slot and the generation of its use, so that looking up is an index and a late reply
//! of a call that was given up is told from an invented one.

/// Most calls in flight on one stream. A waiting call costs about 200 bytes here.
pub(super) const IN_FLIGHT_MAX: usize = 1024;

/// Who waits, by call id.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    open: bool,
}

#[derive(Debug)]
struct Slot<T> {
    /// Uses so far; the current one's number if `waiting`.
    generation: u64,
    waiting: Option<T>,
}

/// What a reply's id names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<T> {
    /// The one who waits for it.
    For(T),
    /// A call that was given up.
    Late,
    /// No call that was ever made: the peer breaks the protocol.
    Unknown,
}

/// Why a call was not taken; gives it back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejected<T> {
    /// Too many in flight.
    Full(T),
    /// The stream is gone.
    Closed(T),
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            open: true,
        }
    }
}

impl<T> InFlight<T> {
    /// Calls that wait.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a waiter and names its call.
    pub(super) fn insert(&mut self, waiting: T) -> Result<u64, Rejected<T>> {
        if !self.open {
            return Err(Rejected::Closed(waiting));
        }
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None if self.slots.len() < IN_FLIGHT_MAX => {
                self.slots.push(Slot {
                    generation: 0,
                    waiting: None,
                });
                self.slots.len() - 1
            }
            None => return Err(Rejected::Full(waiting)),
        };
        let slot = &mut self.slots[index];
        debug_assert!(slot.waiting.is_none(), "a free slot has no waiter");
        slot.generation += 1;
        slot.waiting = Some(waiting);
        Ok(slot.generation * IN_FLIGHT_MAX as u64 + index as u64)
    }

    /// Takes the waiter of `id` out.
    pub(super) fn take(&mut self, id: u64) -> Reply<T> {
        let (generation, index) = (id / IN_FLIGHT_MAX as u64, id % IN_FLIGHT_MAX as u64);
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Reply::Unknown;
        };
        if generation == 0 || generation > slot.generation {
            return Reply::Unknown;
        }
        if generation < slot.generation {
            return Reply::Late;
        }
        match slot.waiting.take() {
            Some(waiting) => {
                self.free.push(index as u32);
                Reply::For(waiting)
            }
            None => Reply::Late,
        }
    }

    /// Takes no more, and gives up all that wait.
    pub(super) fn close(&mut self) -> Vec<T> {
        self.open = false;
        self.free.clear();
        self.slots
            .drain(..)
            .filter_map(|slot| slot.waiting)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_bounded_and_closes_for_good() {
        let mut table = InFlight::default();
        for i in 0..IN_FLIGHT_MAX {
            table.insert(i).unwrap();
        }
        assert_eq!(table.insert(9), Err(Rejected::Full(9)));
        assert_eq!(table.close().len(), IN_FLIGHT_MAX);
        assert_eq!(table.insert(9), Err(Rejected::Closed(9)));
        assert_eq!(table.len(), 0);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert,
        /// Take the n-th id ever made.
        Take(usize),
        Invent(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Insert),
            3 => (0usize..64).prop_map(Op::Take),
            1 => any::<u64>().prop_map(Op::Invent),
        ]
    }

    proptest! {
        /// Against a plain map: ids are unique, each waiter comes back once and to its own id,
        /// and invented ids find nobody.
        #[test]
        fn it_is_a_map(ops in prop::collection::vec(op(), 0..200)) {
            let mut table = InFlight::default();
            let (mut model, mut made) = (BTreeMap::new(), Vec::new());
            for (value, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert => {
                        let id = table.insert(value).unwrap();
                        prop_assert!(!made.contains(&id), "id {} twice", id);
                        made.push(id);
                        model.insert(id, value);
                    }
                    Op::Take(n) => if let Some(id) = made.get(n) {
                        let expected = model.remove(id).map_or(Reply::Late, Reply::For);
                        prop_assert_eq!(table.take(*id), expected);
                    },
                    Op::Invent(id) => if !made.contains(&id) {
                        prop_assert!(!matches!(table.take(id), Reply::For(_)));
                    },
                }
                prop_assert_eq!(table.len(), model.len());
            }
            let mut rest = table.close();
            rest.sort_unstable();
            let mut expected: Vec<_> = model.into_values().collect();
            expected.sort_unstable();
            prop_assert_eq!(rest, expected);
        }
    }
}
