//! Inputs and actions as text, for traces that are recorded in one run and replayed in another.
//!
//! The wire types have no serde of their own; these modules give it to them here.

macro_rules! mirror {
    ($module:ident, $type:path, { $($variant:ident),* }) => {
        pub(crate) mod $module {
            use alloc::string::String;
            use serde::{Deserialize, Deserializer, Serializer, de::Error};
            use $type as Mirrored;

            pub(crate) fn serialize<S: Serializer>(value: &Mirrored, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match value { $(Mirrored::$variant => stringify!($variant)),* })
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mirrored, D::Error> {
                match String::deserialize(deserializer)?.as_str() {
                    $(stringify!($variant) => Ok(Mirrored::$variant),)*
                    other => Err(D::Error::unknown_variant(other, &[$(stringify!($variant)),*])),
                }
            }
        }
    };
}

mirror!(scope, shoal_proto::signed::Scope, { Site, Zone, Region, Fleet });
mirror!(priority, shoal_proto::message::Priority, { Reader, Normal, Background });
mirror!(refuse, shoal_proto::message::RefuseReason, { NotHeld, Busy, Failed });

pub(crate) mod have {
    use alloc::vec::Vec;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use shoal_proto::have::Have;

    #[derive(Serialize, Deserialize)]
    enum Mirror {
        All,
        Set(Vec<u8>),
        Added(Vec<u32>),
        Gone,
    }

    pub(crate) fn serialize<S: Serializer>(value: &Have, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Have::All => Mirror::All,
            Have::Set(bytes) => Mirror::Set(bytes.clone()),
            Have::Added(pieces) => Mirror::Added(pieces.clone()),
            Have::Gone => Mirror::Gone,
        }
        .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Have, D::Error> {
        Ok(match Mirror::deserialize(deserializer)? {
            Mirror::All => Have::All,
            Mirror::Set(bytes) => Have::Set(bytes),
            Mirror::Added(pieces) => Have::Added(pieces),
            Mirror::Gone => Have::Gone,
        })
    }
}
