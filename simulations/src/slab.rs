//! Things that live for a while, under handles that miss once they are gone.

use crate::num::{at, small};

/// A slot and its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Values under handles that it gives.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn insert(&mut self, value: T) -> Handle {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            small(self.slots.len() - 1)
        });
        let entry = &mut self.slots[at(slot)];
        entry.1 = Some(value);
        Handle { slot, generation: entry.0 }
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        self.slots.get(at(handle.slot)).filter(|slot| slot.0 == handle.generation)?.1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.slots.get_mut(at(handle.slot)).filter(|slot| slot.0 == handle.generation)?.1.as_mut()
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        let entry = self.slots.get_mut(at(handle.slot)).filter(|slot| slot.0 == handle.generation)?;
        let value = entry.1.take()?;
        entry.0 = entry.0.wrapping_add(1);
        self.free.push(handle.slot);
        Some(value)
    }

    /// How many values it holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_misses_once_its_value_is_gone() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!((first.slot, slab.len()), (second.slot, 1));
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'b')));
        assert_eq!((slab.remove(first), slab.get_mut(second)), (None, Some(&mut 'b')));
    }
}
