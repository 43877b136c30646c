//! A copy of the commit, in which checks can be switched off.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use shoal_tests::clone;

use super::{SWITCH, table::Check};

/// The copy.
#[derive(Debug)]
pub(crate) struct Scratch {
    tree: PathBuf,
    target: PathBuf,
    /// The same before it goes to `tree`: there only what has changed is written, so that only that is built anew.
    draft: tempfile::TempDir,
}

impl Scratch {
    /// Copies this clone's commit. What is not committed is not in it.
    pub(crate) fn make(directory: &Path) -> Result<Self> {
        let (tree, target) = (directory.join("tree"), directory.join("target"));
        std::fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
        let draft = tempfile::tempdir_in(directory).context("make a directory")?;
        let mut git = Command::new("git")
            .args(["archive", "--format=tar", "HEAD"])
            .current_dir(clone::root()?)
            .stdout(Stdio::piped())
            .spawn()
            .context("start git")?;
        let archive = git.stdout.take().context("its output is a pipe")?;
        let tar = Command::new("tar").arg("-x").arg("-C").arg(draft.path()).stdin(archive).status();
        ensure!(tar.context("start tar")?.success() && git.wait()?.success(), "the commit cannot be copied");
        Ok(Self { tree, target, draft })
    }

    pub(crate) fn tree(&self) -> &Path {
        &self.tree
    }

    /// Where it is built.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Builds a check's switch in.
    pub(crate) fn edit(&self, check: &Check) -> Result<()> {
        // As a block it does in crates that use no `std` as well.
        let asked = format!("std::env::var_os({SWITCH:?}).is_some_and(|off| off == {:?})", check.name);
        let off = format!("({{ extern crate std; {asked} }})");
        for edit in &check.edit {
            let path = self.draft.path().join(&edit.file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let count = text.matches(&edit.find).count();
            ensure!(count == 1, "{} holds {count} times, not once:\n{}", edit.file, edit.find);
            let put = edit.put.replace("OFF", &off);
            ensure!(put.contains(&off), "the edit of {} does not ask whether the check is off", edit.file);
            std::fs::write(&path, text.replace(&edit.find, &put))?;
        }
        Ok(())
    }

    /// Takes what was copied and edited over into the tree.
    pub(crate) fn settle(&self) -> Result<()> {
        let (new, old) = (files(self.draft.path())?, files(&self.tree)?);
        for file in &new {
            let (from, to) = (self.draft.path().join(file), self.tree.join(file));
            let bytes = std::fs::read(&from).with_context(|| format!("read {}", from.display()))?;
            if std::fs::read(&to).is_ok_and(|known| known == bytes) {
                continue;
            }
            std::fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
            std::fs::copy(&from, &to).with_context(|| format!("write {}", to.display()))?;
        }
        for gone in old.difference(&new) {
            std::fs::remove_file(self.tree.join(gone))?;
        }
        Ok(())
    }
}

/// All files below a directory.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(root).context("it lies below")?.to_owned());
            }
        }
    }
    Ok(found)
}
