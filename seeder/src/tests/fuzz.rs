//! Bytes of strangers at the registry: manifests, and what administrators' programs send.

use std::path::Path;

use crate::{
    manifest::Parsed,
    members::order::{LabelTexts, Order},
    mutate::fuzz,
};

#[test]
fn fuzz_manifest() {
    fuzz("manifest", Path::new("fuzz/corpus/manifest"), &[], |data| {
        for kind in [None, Some("application/vnd.oci.image.manifest.v1+json"), Some("x")] {
            if let Ok(manifest) = Parsed::read(kind, data) {
                let _ = manifest.is_index();
            }
        }
    });
}

#[test]
fn fuzz_order() {
    fuzz("order", Path::new("fuzz/corpus/order"), &[], |data| {
        if let Ok(order) = serde_json::from_slice::<Order>(data) {
            let again = serde_json::to_vec(&order).expect("an order is written");
            assert_eq!(serde_json::from_slice::<Order>(&again).expect("what was written is read"), order);
        }
        if let Ok(text) = std::str::from_utf8(data) {
            let _ = text.parse::<LabelTexts>();
        }
    });
}
