//! Records of the fleet: small, few, changed together or not at all.

use super::{Inner, tables::Table};
use crate::store::{FleetRecord, Page, StoreError, Swap};

impl Inner {
    /// Makes all changes if every record is as its change expects; false, and no change, otherwise.
    pub(super) fn swap_fleet(&self, swaps: &[Swap]) -> Result<bool, StoreError> {
        let _guard = self.fleet.lock().expect("nobody panics while changing records of the fleet");
        let mut batch = self.tables.batch();
        for Swap { key, old, new } in swaps {
            if self.tables.get(Table::Fleet, key)? != *old {
                return Ok(false);
            }
            match new {
                Some(value) => batch.put(Table::Fleet, key, value),
                None => batch.delete(Table::Fleet, key),
            }
        }
        batch.commit()?;
        Ok(true)
    }

    /// Up to `n` records whose keys begin with `prefix`, after `after`.
    pub(super) fn list_fleet(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        n: usize,
    ) -> Result<Page<FleetRecord>, StoreError> {
        let mut items = Vec::new();
        for item in self.tables.scan(Table::Fleet, prefix, after.unwrap_or(prefix)) {
            let (key, value) = item?;
            if after == Some(&*key) {
                continue;
            }
            if items.len() == n {
                return Ok(Page { items, more: true });
            }
            items.push((key.into_vec(), value.into_vec()));
        }
        Ok(Page { items, more: false })
    }
}
