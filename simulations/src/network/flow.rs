//! One flow.

/// Most links on a flow's way: access, rack or site, region pair, site or rack, access.
pub(crate) const LINKS_MAX: usize = 5;
/// No link.
pub(super) const NONE: u32 = u32::MAX;

/// A flow's state. Kept in one array and small, because neighbours' flows are looked at all the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) links: [u32; LINKS_MAX],
    /// Where it stands in each link's list.
    pub(super) place: [u32; LINKS_MAX],
    len: u8,
    pub(super) touched: bool,
    pub(super) generation: u32,
    /// The hot link in whose virtual time it progresses.
    pub(super) bucket: u32,
    /// Bytes left at `since` until its owner hears of it; in a bucket, the virtual time of that.
    pub(super) left: f64,
    /// Bytes after that.
    pub(super) rest: f64,
    /// Bytes a second; in a bucket, what the neighbours were told last.
    pub(super) rate: f64,
    pub(super) cap: f64,
    pub(super) since: u64,
    /// When its alarm goes off.
    pub(super) due: u64,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            links: [NONE; LINKS_MAX],
            place: [0; LINKS_MAX],
            len: 0,
            touched: false,
            generation: 0,
            bucket: NONE,
            left: 0.0,
            rest: 0.0,
            rate: 0.0,
            cap: 0.0,
            since: 0,
            due: u64::MAX,
        }
    }
}

impl Flow {
    pub(super) fn links(&self) -> &[u32] {
        &self.links[..usize::from(self.len)]
    }

    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn begin(&mut self, links: &[u32], bytes: f64, cap: f64, now: u64) {
        let (generation, touched) = (self.generation, self.touched);
        *self = Self { generation, touched, left: bytes, cap, since: now, ..Self::default() };
        self.links[..links.len()].copy_from_slice(links);
        self.len = u8::try_from(links.len()).expect("few links");
    }

    pub(super) const fn end(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.len = 0;
        self.rate = 0.0;
        self.bucket = NONE;
        self.due = u64::MAX;
    }
}
