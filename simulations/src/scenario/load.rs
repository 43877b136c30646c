//! From text to a scenario: what ships, files, and `--set key=value`; errors name file, line and what is allowed.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize as _;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{Scenario, check};

/// The scenarios that ship, in the order in which they are listed.
pub(crate) const SHIPPED: [(&str, &str); 11] = [
    ("lab", include_str!("../../scenarios/lab.toml")),
    ("dc-1k", include_str!("../../scenarios/dc-1k.toml")),
    ("dc-10k", include_str!("../../scenarios/dc-10k.toml")),
    ("multi-region", include_str!("../../scenarios/multi-region.toml")),
    ("edge", include_str!("../../scenarios/edge.toml")),
    ("flash-100k", include_str!("../../scenarios/flash-100k.toml")),
    ("staged", include_str!("../../scenarios/staged.toml")),
    ("hub-limited", include_str!("../../scenarios/hub-limited.toml")),
    ("chaos", include_str!("../../scenarios/chaos.toml")),
    ("ephemeral", include_str!("../../scenarios/ephemeral.toml")),
    ("kraken-2600", include_str!("../../scenarios/kraken-2600.toml")),
];

/// A scenario's text and where it stands.
#[derive(Debug)]
pub(crate) struct Source {
    /// Shown in messages.
    pub(crate) place: String,
    /// Short name, for folders and headings.
    pub(crate) name: String,
    text: String,
}

impl Source {
    /// A file, or one of the scenarios that ship by its name.
    pub(crate) fn find(name: &str) -> Result<Self> {
        if let Some((name, text)) = SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            let place = format!("scenarios/{name}.toml");
            return Ok(Self { place, name: (*name).to_owned(), text: (*text).to_owned() });
        }
        let path = Path::new(name);
        if !path.exists() && path.extension().is_none() {
            let names: Vec<_> = SHIPPED.iter().map(|(name, _)| *name).collect();
            bail!("there is neither a file nor a scenario {name:?}; scenarios: {}", names.join(", "));
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the scenario {name}"))?;
        let stem = path.file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { place: name.to_owned(), name: stem, text })
    }

    /// A scenario from text.
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self { place: "test.toml".to_owned(), name: "test".to_owned(), text: text.to_owned() }
    }

    /// Reads it, with `settings` of the form `key=value` put over it and what `amend` knows besides.
    pub(crate) fn read(
        &self,
        settings: &[String],
        amend: impl FnOnce(&mut Scenario) -> Result<()>,
    ) -> Result<Scenario> {
        let mut scenario: Scenario =
            toml::from_str(&self.text).map_err(|error| self.located(error.span(), error.message()))?;
        if !settings.is_empty() {
            let mut table: Table = toml::from_str(&self.text).context("parsed before")?;
            for setting in settings {
                set(&mut table, setting)?;
            }
            scenario = Scenario::deserialize(table)
                .map_err(|error| anyhow!("--set {}: {}", settings.join(" --set "), error.message()))?;
        }
        amend(&mut scenario)?;
        if let Err(wrong) = check::scenario(&scenario) {
            if let Some(setting) = settings.iter().find(|setting| setting.starts_with(wrong.key.as_str())) {
                bail!("--set {setting}: {}", wrong.message);
            }
            return Err(self.located(self.find_key(&wrong.key), &format!("{}: {}", wrong.key, wrong.message)));
        }
        Ok(scenario)
    }

    fn located(&self, span: Option<core::ops::Range<usize>>, message: &str) -> anyhow::Error {
        let line = span.map_or(1, |span| self.text[..span.start.min(self.text.len())].matches('\n').count() + 1);
        anyhow!("{}:{line}: {}", self.place, message.trim().replace('\n', " "))
    }

    /// Where a key such as `regions.2.share` stands, or the nearest table around it.
    fn find_key(&self, key: &str) -> Option<core::ops::Range<usize>> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut table: Option<&DeTable<'_>> = Some(document.get_ref());
        let mut value: Option<&Spanned<DeValue<'_>>> = None;
        let mut span = None;
        for part in key.split('.') {
            let next = match (table, value.map(Spanned::get_ref)) {
                (Some(table), _) => table
                    .iter()
                    .find(|(name, _)| name.get_ref() == part)
                    .map(|(name, value)| (if value.get_ref().is_table() { value.span() } else { name.span() }, value)),
                (None, Some(DeValue::Array(array))) => {
                    part.parse::<usize>().ok().and_then(|index| array.get(index)).map(|value| (value.span(), value))
                }
                (None, _) => None,
            };
            let Some((at, found)) = next else { break };
            span = Some(at);
            table = found.get_ref().as_table();
            value = Some(found);
        }
        span
    }
}

/// Puts `key=value` into a table; the value is TOML, or text where it is none.
fn set(table: &mut Table, setting: &str) -> Result<()> {
    let (key, text) = setting.split_once('=').ok_or_else(|| anyhow!("--set {setting}: write it as key=value"))?;
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    let value =
        parsed.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut here = table;
    for (depth, part) in parts.iter().enumerate() {
        let entry = here.entry((*part).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Array(_) = entry {
            bail!("--set {setting}: {} is a list; edit a copy of the file instead", parts[..=depth].join("."));
        }
        here = entry.as_table_mut().ok_or_else(|| anyhow!("--set {setting}: {part} is no section"))?;
    }
    here.insert(last.to_owned(), value);
    Ok(())
}
