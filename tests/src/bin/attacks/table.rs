//! The table: which edit switches a check off, and which tests notice.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) check: Vec<Check>,
}

/// A check of the product.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    pub(crate) name: String,
    /// What it keeps from succeeding.
    pub(crate) attack: String,
    pub(crate) edit: Vec<Edit>,
    /// The tests that turn red without it, and no others do: `target::path::of::test`.
    pub(crate) red: Vec<String>,
}

/// A change of the code that leaves the check out where `OFF` is true.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    pub(crate) file: String,
    /// Stands there exactly once.
    pub(crate) find: String,
    pub(crate) put: String,
}

impl Table {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let table: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let names: BTreeSet<&str> = table.check.iter().map(|check| check.name.as_str()).collect();
        ensure!(names.len() == table.check.len(), "two checks have the same name");
        let idle = table.check.iter().find(|check| check.red.is_empty() || check.edit.is_empty());
        ensure!(idle.is_none(), "{idle:?} says nothing");
        Ok(table)
    }

    /// Every test that guards something.
    pub(crate) fn tests(&self) -> BTreeSet<String> {
        self.check.iter().flat_map(|check| check.red.iter().cloned()).collect()
    }
}
