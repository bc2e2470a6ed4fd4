//! A JSON text into the encoding, by value.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{Error, SerializeMap, SerializeStruct};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::NUMBER_TOKEN;

/// A JSON text that is compared by value, and loses nothing: neither the digits of its numbers nor a key that stands
/// twice, as a `serde_json::Value` would.
///
/// Each level is read again for the level below it, so a text costs its length times its depth.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Json<'a>(#[serde(borrow)] &'a RawValue);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.0.get();
        match text.as_bytes().first() {
            Some(b'{') => {
                let Object(entries) = read(text)?;
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in &entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Some(b'[') => serializer.collect_seq(read::<Vec<Json<'_>>, _>(text)?),
            Some(b'"') => serializer.serialize_str(&read::<String, _>(text)?),
            Some(b't' | b'f') => serializer.serialize_bool(read(text)?),
            Some(b'n') => serializer.serialize_unit(),
            _ => {
                // As serde_json has it under `arbitrary_precision`.
                let mut number = serializer.serialize_struct(NUMBER_TOKEN, 1)?;
                number.serialize_field(NUMBER_TOKEN, text)?;
                number.end()
            }
        }
    }
}

fn read<'a, T: Deserialize<'a>, E: Error>(text: &'a str) -> Result<T, E> {
    serde_json::from_str(text).map_err(E::custom)
}

/// All entries, in their order.
struct Object<'a>(Vec<(String, Json<'a>)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
