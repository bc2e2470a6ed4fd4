//! JSON text into the encoding, without a tree in between.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Encoder, Entries, Error, NUMBER_TOKEN};

impl Encoder {
    /// The encoding of the value that the text denotes.
    pub(crate) fn json(&mut self, text: &[u8]) -> Result<(), Error> {
        let mut json = serde_json::Deserializer::from_slice(text);
        Json(self).deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
            // serde_json's own message may repeat the data.
            Error(format!(
                "it is not JSON that can be compared ({:?} error at line {} column {})",
                error.classify(),
                error.line(),
                error.column()
            ))
        })
    }
}

struct Json<'e>(&'e mut Encoder);

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.null();
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.bool(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.integer(value.into());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.integer(value.into());
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.0.float(value).map_err(E::custom)
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.string(value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.enter(b'a').map_err(de::Error::custom)?;
        while seq.next_element_seed(Json(self.0))?.is_some() {}
        self.0.leave();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let encoder = self.0;
        let Some(first) = map.next_key::<Cow<'_, str>>()? else {
            return Entries::begin(encoder).map_err(de::Error::custom).map(|map| map.end(encoder));
        };
        if first == NUMBER_TOKEN {
            let text = map.next_value::<String>()?;
            return encoder.number(&text).map_err(de::Error::custom);
        }
        let mut entries = Entries::begin(encoder).map_err(de::Error::custom)?;
        let mut next = Some(first);
        while let Some(key) = next {
            entries.key(encoder);
            encoder.string(&key);
            entries.value(encoder);
            map.next_value_seed(Json(encoder))?;
            entries.value_done(encoder);
            next = map.next_key()?;
        }
        entries.end(encoder);
        Ok(())
    }
}
