//! One flow.

/// Most links on a flow's way: access, rack or site, region pair, site or rack, access.
pub(crate) const LINKS_MAX: usize = 5;
/// No link.
pub(super) const NONE: u32 = u32::MAX;

/// What changes while a flow moves. Kept within a cache line, because neighbours' flows are looked at all the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    /// Bytes left at `since` until its owner hears of it; in a bucket, the virtual time of that.
    pub(super) left: f64,
    /// Bytes after that.
    pub(super) rest: f64,
    /// Bytes a second; in a bucket, what the neighbours were told last.
    pub(super) rate: f64,
    pub(super) cap: f64,
    pub(super) since: u64,
    /// The hot link in whose virtual time it progresses.
    pub(super) bucket: u32,
    /// The link that wakes the network when it is over.
    pub(super) timer: u32,
    /// Whether one of its links is hot.
    pub(super) warm: bool,
}

impl Flow {
    pub(super) const GONE: Self =
        Self { left: 0.0, rest: 0.0, rate: 0.0, cap: 0.0, since: 0, bucket: NONE, timer: NONE, warm: false };

    /// Bytes left at `now`, of one that is in no bucket.
    pub(super) fn left_at(&self, now: u64) -> f64 {
        self.left - self.rate * crate::num::span(now - self.since)
    }

    /// The same, taken over.
    pub(super) fn bring_up(&mut self, now: u64) {
        self.left = self.left_at(now);
        self.since = now;
    }
}

/// A flow's way. Read when it comes and goes, and where it crosses more than two links.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    links: [u32; LINKS_MAX],
    /// Where it stands in each link's list.
    pub(super) place: [u32; LINKS_MAX],
    len: u8,
}

impl Path {
    /// A way over no link.
    pub(super) const NONE: Self = Self { links: [NONE; LINKS_MAX], place: [0; LINKS_MAX], len: 0 };

    /// # Panics
    /// Over more than [`LINKS_MAX`] links, or none.
    pub(super) fn over(links: &[u32]) -> Self {
        assert!(!links.is_empty() && links.len() <= LINKS_MAX, "a flow passes 1 to {LINKS_MAX} links");
        let mut path = Self { len: u8::try_from(links.len()).expect("few links"), ..Self::NONE };
        path.links[..links.len()].copy_from_slice(links);
        path
    }

    pub(super) fn links(&self) -> &[u32] {
        &self.links[..usize::from(self.len)]
    }

    /// Of a way over two links, the other one.
    pub(super) fn other(&self, index: usize) -> u32 {
        if self.len == 2 { self.links[1 - index] } else { NONE }
    }
}
