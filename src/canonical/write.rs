//! Any `Serialize` into the encoding.

use serde::ser::{self, Serialize, Serializer};

use super::entries::Entries;
use super::{Encoder, Error, NUMBER_TOKEN, RAW_TOKEN};

impl<'e> Serializer for &'e mut Encoder {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Sequence<'e>;
    type SerializeTuple = Sequence<'e>;
    type SerializeTupleStruct = Sequence<'e>;
    type SerializeTupleVariant = Sequence<'e>;
    type SerializeMap = Map<'e>;
    type SerializeStruct = Map<'e>;
    type SerializeStructVariant = Map<'e>;

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.bool(value);
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Error> {
        self.integer(value);
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.serialize_i128(value.into())
    }

    fn serialize_u128(self, value: u128) -> Result<(), Error> {
        match i128::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => self.fixed(b'u', value.to_be_bytes()),
        }
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.float(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.float(value)
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.string(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.string(value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.bytes(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.null();
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let mut map = Map::begin(self, None)?;
        ser::SerializeStruct::serialize_field(&mut map, variant, value)?;
        ser::SerializeStruct::end(map)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence<'e>, Error> {
        Sequence::begin(self, None)
    }

    fn serialize_tuple(self, _: usize) -> Result<Sequence<'e>, Error> {
        Sequence::begin(self, None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Sequence<'e>, Error> {
        Sequence::begin(self, None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Sequence<'e>, Error> {
        Sequence::begin(self, Some(variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Map<'e>, Error> {
        Map::begin(self, None)
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Map<'e>, Error> {
        match name {
            NUMBER_TOKEN | RAW_TOKEN => Ok(Map::Hidden(self)),
            _ => Map::begin(self, None),
        }
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Map<'e>, Error> {
        Map::begin(self, Some(variant))
    }
}

/// Opens `{variant: `, as serde's external tagging has it. One entry, so there is nothing to sort.
fn open_variant(encoder: &mut Encoder, variant: Option<&'static str>) -> Result<bool, Error> {
    if let Some(variant) = variant {
        encoder.enter(b'm')?;
        encoder.string(variant);
    }
    Ok(variant.is_some())
}

/// An array, inside of an enum variant or not.
pub(crate) struct Sequence<'e> {
    encoder: &'e mut Encoder,
    in_variant: bool,
}

impl<'e> Sequence<'e> {
    fn begin(encoder: &'e mut Encoder, variant: Option<&'static str>) -> Result<Self, Error> {
        let in_variant = open_variant(encoder, variant)?;
        encoder.enter(b'a')?;
        Ok(Self { encoder, in_variant })
    }
}

impl ser::SerializeSeq for Sequence<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.encoder)
    }

    fn end(self) -> Result<(), Error> {
        self.encoder.leave();
        if self.in_variant {
            self.encoder.leave();
        }
        Ok(())
    }
}

/// The other traits of serde that say the same as `SerializeSeq`.
macro_rules! like_seq {
    ($($trait:ident::$method:ident),*) => {$(
        impl ser::$trait for Sequence<'_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                ser::SerializeSeq::serialize_element(self, value)
            }

            fn end(self) -> Result<(), Error> {
                ser::SerializeSeq::end(self)
            }
        }
    )*};
}

like_seq!(
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

/// A map or a struct, inside of an enum variant or not, or one of serde_json's disguises.
pub(crate) enum Map<'e> {
    Open { encoder: &'e mut Encoder, entries: Entries, in_variant: bool },
    Hidden(&'e mut Encoder),
}

impl<'e> Map<'e> {
    fn begin(encoder: &'e mut Encoder, variant: Option<&'static str>) -> Result<Self, Error> {
        let in_variant = open_variant(encoder, variant)?;
        let entries = Entries::begin(encoder)?;
        Ok(Self::Open { encoder, entries, in_variant })
    }
}

impl ser::SerializeMap for Map<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        if let Self::Open { encoder, entries, .. } = self {
            entries.key(encoder);
            key.serialize(&mut **encoder)?;
        }
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if let Self::Open { encoder, entries, .. } = self {
            entries.value(encoder);
            value.serialize(&mut **encoder)?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        if let Self::Open { encoder, entries, in_variant } = self {
            entries.end(encoder);
            if in_variant {
                encoder.leave();
            }
        }
        Ok(())
    }
}

impl ser::SerializeStruct for Map<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        let encoder = match self {
            Self::Open { encoder, entries, .. } => {
                entries.field(encoder, name);
                return value.serialize(&mut **encoder);
            }
            Self::Hidden(encoder) => encoder,
        };
        // The only field is a string: the number's digits, or the raw JSON text.
        let serde_json::Value::String(text) = serde_json::to_value(value).map_err(ser::Error::custom)? else {
            return Err(Error(format!("{name} does not hold a text").into()));
        };
        match name {
            NUMBER_TOKEN => encoder.number(&text),
            _ => {
                encoder.text(b'r', text.as_bytes());
                Ok(())
            }
        }
    }

    fn end(self) -> Result<(), Error> {
        ser::SerializeMap::end(self)
    }
}

impl ser::SerializeStructVariant for Map<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        ser::SerializeStruct::serialize_field(self, name, value)
    }

    fn end(self) -> Result<(), Error> {
        ser::SerializeMap::end(self)
    }
}
