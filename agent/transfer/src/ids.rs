//! Small dense generational ids, and the arena that hands them out.
//!
//! An id is a slot and a generation: when a slot is used again its generation has grown, so a late answer to an old
//! request misses instead of hitting the new one.

use alloc::vec::Vec;
use core::{fmt, hash::Hash};

use serde::{Deserialize, Serialize};

/// What all id types have in common.
pub trait Id: Copy + Eq + Ord + Hash + fmt::Debug {
    /// The id of that slot and generation.
    fn new(slot: u32, generation: u32) -> Self;
    /// Its slot, small and dense.
    fn slot(self) -> usize;
    /// Its generation.
    fn generation(self) -> u32;
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $letter:literal),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name { slot: u32, generation: u32 }

        impl Id for $name {
            #[inline]
            fn new(slot: u32, generation: u32) -> Self {
                Self { slot, generation }
            }

            #[inline]
            fn slot(self) -> usize {
                self.slot as usize
            }

            #[inline]
            fn generation(self) -> u32 {
                self.generation
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}.{}"), self.slot, self.generation)
            }
        }
    )*};
}

ids! {
    /// A blob that the node fetches or serves. Given by the caller.
    BlobId "b",
    /// A peer that the node knows, connected or not. Given by the caller.
    PeerId "p",
    /// A client that reads a blob. Given by the caller.
    ReaderId "r",
    /// A request to a peer or to the seeder. Given by the core.
    RequestId "q",
    /// A piece that a peer asked this node for. Given by the caller.
    UploadId "u",
}

/// Values by id: an arena that hands ids out, or one that is filled under ids of another's choice.
#[derive(Debug, Clone)]
pub struct Arena<I, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
    id: core::marker::PhantomData<I>,
}

#[derive(Debug, Clone)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<I: Id, T> Default for Arena<I, T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len: 0, id: core::marker::PhantomData }
    }
}

impl<I: Id, T> Arena<I, T> {
    /// How many values it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores `value` under a new id. Not to be mixed with [`Arena::place`] on one arena.
    ///
    /// # Panics
    /// At 2^32 values.
    pub fn insert(&mut self, value: T) -> I {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 values")
        });
        let entry = &mut self.slots[slot as usize];
        entry.value = Some(value);
        self.len += 1;
        I::new(slot, entry.generation)
    }

    /// Stores `value` under an id that the caller chose, in place of what may stand there.
    pub fn place(&mut self, id: I, value: T) {
        while self.slots.len() <= id.slot() {
            self.slots.push(Slot { generation: 0, value: None });
        }
        let entry = &mut self.slots[id.slot()];
        entry.generation = id.generation();
        self.len += usize::from(entry.value.replace(value).is_none());
    }

    /// The value of `id`, if it is still there.
    #[must_use]
    pub fn get(&self, id: I) -> Option<&T> {
        self.slots.get(id.slot()).filter(|slot| slot.generation == id.generation())?.value.as_ref()
    }

    /// The value of `id`, if it is still there.
    #[must_use]
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.slots.get_mut(id.slot()).filter(|slot| slot.generation == id.generation())?.value.as_mut()
    }

    /// The id that now stands at the slot of `id`, whatever its generation.
    #[must_use]
    pub fn occupant(&self, id: I) -> Option<I> {
        let slot = self.slots.get(id.slot()).filter(|slot| slot.value.is_some())?;
        Some(I::new(u32::try_from(id.slot()).expect("slots are counted in u32"), slot.generation))
    }

    /// Takes the value of `id` out; the id misses from then on.
    pub fn remove(&mut self, id: I) -> Option<T> {
        let slot = self.slots.get_mut(id.slot()).filter(|slot| slot.generation == id.generation())?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u32::try_from(id.slot()).expect("slots are counted in u32"));
        self.len -= 1;
        Some(value)
    }

    /// All values, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| {
            let value = slot.value.as_ref()?;
            Some((I::new(u32::try_from(at).expect("slots are counted in u32"), slot.generation), value))
        })
    }

    /// All values, by slot.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (I, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(at, slot)| {
            let generation = slot.generation;
            let value = slot.value.as_mut()?;
            Some((I::new(u32::try_from(at).expect("slots are counted in u32"), generation), value))
        })
    }
}
