//! Files, and what of them is safe.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Component, Path},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Step, trace::Event};

/// Bytes that a disk writes at once: a write that was not synced may be cut at any multiple.
const SECTOR_LEN: u64 = 512;

/// What survives of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivors {
    /// Nothing.
    None,
    /// Any part of the bytes, and of each directory's changes the first few: file systems log those in order.
    Some {
        /// What the choice is drawn from.
        seed: u64,
    },
}

/// A directory as a process sees it, and as it is on the disk.
#[derive(Debug)]
pub struct Disk {
    nodes: Vec<Node>,
    /// Syncs under way, by thread: the node, and how many of its changes will be safe.
    syncs: HashMap<u32, (usize, u64)>,
    obeys_syncs: bool,
}

#[derive(Debug)]
struct Node {
    kind: Kind,
    /// Changes that have become safe.
    safe_changes: u64,
}

#[derive(Debug)]
enum Kind {
    Directory { now: Names, safe: Names, since: Vec<(String, Option<usize>)> },
    File { now: Vec<u8>, safe: Vec<u8>, since: Vec<Change> },
}

type Names = BTreeMap<String, usize>;

#[derive(Debug, Clone)]
enum Change {
    Bytes(u64, Vec<u8>),
    Len(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Bytes(at, bytes) => {
                let at = usize::try_from(*at)?;
                let end = at + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[at..end].copy_from_slice(bytes);
            }
            Self::Len(len) => to.resize(usize::try_from(*len)?, 0),
        }
        Ok(())
    }

    /// What a disk that stopped in the midst of it may have.
    fn torn(&self, random: &mut Random) -> Self {
        match self {
            Self::Bytes(at, bytes) => {
                let sectors = bytes.len() as u64 / SECTOR_LEN + 1;
                let cut = usize::try_from(random.below(sectors) * SECTOR_LEN).unwrap_or(0);
                Self::Bytes(*at, bytes[..cut.min(bytes.len())].to_vec())
            }
            Self::Len(len) => Self::Len(*len),
        }
    }
}

fn rename(names: &mut Names, (name, node): &(String, Option<usize>)) {
    match node {
        Some(node) => names.insert(name.clone(), *node),
        None => names.remove(name),
    };
}

impl Node {
    const fn new(kind: Kind) -> Self {
        Self { kind, safe_changes: 0 }
    }

    const fn directory() -> Self {
        Self::new(Kind::Directory { now: Names::new(), safe: Names::new(), since: Vec::new() })
    }

    /// Changes until now.
    fn changes(&self) -> u64 {
        let since = match &self.kind {
            Kind::Directory { since, .. } => since.len(),
            Kind::File { since, .. } => since.len(),
        };
        self.safe_changes + since as u64
    }

    /// Makes the changes before the given one safe.
    fn sync(&mut self, before: u64) -> Result<()> {
        let count = usize::try_from(before.saturating_sub(self.safe_changes))?;
        match &mut self.kind {
            Kind::Directory { safe, since, .. } => since.drain(..count).for_each(|change| rename(safe, &change)),
            Kind::File { safe, since, .. } => {
                for change in since.drain(..count) {
                    change.apply(safe)?;
                }
            }
        }
        self.safe_changes += count as u64;
        Ok(())
    }
}

impl Disk {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self { nodes: vec![Node::directory()], syncs: HashMap::new(), obeys_syncs: true }
    }

    /// An empty directory on a disk on which syncs do nothing: a test that cannot fail shows itself here.
    #[must_use]
    pub fn forgetful() -> Self {
        Self { obeys_syncs: false, ..Self::new() }
    }

    /// Does what happened.
    ///
    /// # Errors
    /// It cannot happen: the trace does not begin with an empty directory, or is not whole.
    pub fn apply(&mut self, step: &Step) -> Result<()> {
        match &step.event {
            Event::Start => self.syncs.clear(),
            Event::Said(_) => {}
            Event::Open { path, create, truncate } => {
                let found = self.find(path)?;
                if found.is_none() && *create {
                    let file = Kind::File { now: Vec::new(), safe: Vec::new(), since: Vec::new() };
                    self.add(path, file)?;
                } else if *truncate {
                    self.change(found.context("no such file")?, Change::Len(0))?;
                }
            }
            Event::Write { path, at, bytes } => {
                let node = self.known(path)?;
                let end = match &self.nodes[node].kind {
                    Kind::File { now, .. } => now.len() as u64,
                    Kind::Directory { .. } => bail!("{} is a directory", path.display()),
                };
                self.change(node, Change::Bytes(at.unwrap_or(end), bytes.clone()))?;
            }
            Event::Truncate { path, len } => self.change(self.known(path)?, Change::Len(*len))?,
            Event::SyncBegin { thread, path } => {
                let node = self.known(path)?;
                self.syncs.insert(*thread, (node, self.nodes[node].changes()));
            }
            Event::SyncEnd { thread } => {
                let (node, before) = self.syncs.remove(thread).context("a sync ends that did not begin")?;
                if self.obeys_syncs {
                    self.nodes[node].sync(before)?;
                }
            }
            Event::Rename { from, to } => {
                let node = self.known(from)?;
                self.name(from, None)?;
                self.name(to, Some(node))?;
            }
            Event::Remove { path } => {
                // A socket, which `bind` made, has nothing to lose.
                if self.find(path)?.is_some() {
                    self.name(path, None)?;
                }
            }
            Event::MakeDir { path } if path.as_os_str().is_empty() => {}
            Event::MakeDir { path } => self.add(path, Node::directory().kind)?,
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Result<Option<usize>> {
        let mut node = 0;
        for part in path.components() {
            let Component::Normal(name) = part else { bail!("{} is no plain path", path.display()) };
            let Kind::Directory { now, .. } = &self.nodes[node].kind else { return Ok(None) };
            let Some(&next) = now.get(name.to_str().context("names are text")?) else { return Ok(None) };
            node = next;
        }
        Ok(Some(node))
    }

    fn known(&self, path: &Path) -> Result<usize> {
        self.find(path)?.with_context(|| format!("{} is not there", path.display()))
    }

    fn add(&mut self, path: &Path, kind: Kind) -> Result<()> {
        self.nodes.push(Node::new(kind));
        self.name(path, Some(self.nodes.len() - 1))
    }

    /// Gives a node a name, or takes the name away.
    fn name(&mut self, path: &Path, node: Option<usize>) -> Result<()> {
        let parent = self.known(path.parent().context("the directory itself has no name")?)?;
        let name = path.file_name().and_then(|name| name.to_str()).context("names are text")?;
        let Kind::Directory { now, since, .. } = &mut self.nodes[parent].kind else { bail!("no directory") };
        let change = (name.to_owned(), node);
        rename(now, &change);
        since.push(change);
        Ok(())
    }

    fn change(&mut self, node: usize, change: Change) -> Result<()> {
        let Kind::File { now, since, .. } = &mut self.nodes[node].kind else { bail!("a directory has no bytes") };
        change.apply(now)?;
        since.push(change);
        Ok(())
    }

    /// Compares what the process sees with a directory: whether the replay is right.
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, directory: &Path) -> Result<()> {
        self.check_node(0, directory)
    }

    fn check_node(&self, node: usize, path: &Path) -> Result<()> {
        match &self.nodes[node].kind {
            Kind::File { now, .. } => ensure!(fs::read(path)? == *now, "{} has other bytes", path.display()),
            Kind::Directory { now, .. } => {
                let mut names = Vec::new();
                for entry in fs::read_dir(path).with_context(|| format!("list {}", path.display()))? {
                    let entry = entry?;
                    if !entry.file_type()?.is_socket() {
                        names.push(entry.file_name().into_string().ok().context("names are text")?);
                    }
                }
                names.sort();
                ensure!(names.iter().eq(now.keys()), "{}: {names:?} in place of {:?}", path.display(), now.keys());
                now.iter().try_for_each(|(name, node)| self.check_node(*node, &path.join(name)))?;
            }
        }
        Ok(())
    }

    /// Writes what the disk holds after a power loss now into a directory, which is made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: &Path, survivors: Survivors) -> Result<()> {
        let mut random = match survivors {
            Survivors::None => None,
            Survivors::Some { seed } => Some(Random(seed)),
        };
        self.write_node(0, to, &mut random)
    }

    fn write_node(&self, node: usize, to: &Path, random: &mut Option<Random>) -> Result<()> {
        match &self.nodes[node].kind {
            Kind::File { safe, since, .. } => {
                let mut bytes = safe.clone();
                if let Some(random) = random {
                    for change in since {
                        match random.below(3) {
                            0 => change.apply(&mut bytes)?,
                            1 => change.torn(random).apply(&mut bytes)?,
                            _ => {}
                        }
                    }
                }
                fs::write(to, bytes)?;
            }
            Kind::Directory { safe, since, .. } => {
                let mut names = safe.clone();
                let kept = random.as_mut().map_or(0, |random| random.below(since.len() as u64 + 1));
                since.iter().take(usize::try_from(kept)?).for_each(|change| rename(&mut names, change));
                fs::create_dir_all(to)?;
                for (name, node) in names {
                    self.write_node(node, &to.join(name), random)?;
                }
            }
        }
        Ok(())
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
