//! A JSON text into the encoding, by value.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Encoder, Error, MAX_DEPTH};

/// A JSON text that is compared by value, and loses nothing: neither the digits of its numbers nor a key that stands
/// twice, as a `serde_json::Value` would.
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    /// In the order of the encoding, so that it need not be sorted there, where each level would copy those below it.
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        // serde_json's own message may repeat the data.
        let valid: &RawValue = serde_json::from_slice(text)
            .map_err(|error| format!("no JSON: line {} column {}", error.line(), error.column()))?;
        Reader { text: valid.get(), at: 0, depth: 0 }.value()
    }

    pub(crate) fn encode(&self, encoder: &mut Encoder) -> Result<(), Error> {
        match self {
            Self::Null => encoder.null(),
            Self::Bool(value) => encoder.bool(*value),
            Self::Number(text) => encoder.number(text)?,
            Self::String(text) => encoder.string(text),
            Self::Array(elements) => {
                encoder.enter(b'a')?;
                elements.iter().try_for_each(|element| element.encode(encoder))?;
                encoder.leave();
            }
            Self::Object(entries) => {
                encoder.enter(b'm')?;
                for (key, value) in entries {
                    encoder.string(key);
                    value.encode(encoder)?;
                }
                encoder.leave();
            }
        }
        Ok(())
    }
}

/// Walks once through a text that is known to be JSON. (serde_json itself would round the numbers.)
struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Result<Json<'a>, String> {
        match self.peek() {
            Some(b'{') => {
                let mut entries = Vec::new();
                self.each(b'}', |reader| {
                    let key = reader.string()?;
                    reader.peek();
                    reader.at += 1; // the colon
                    entries.push((key, reader.value()?));
                    Ok(())
                })?;
                // Stable, so that equal keys keep their order.
                entries.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
                Ok(Json::Object(entries))
            }
            Some(b'[') => {
                let mut elements = Vec::new();
                self.each(b']', |reader| {
                    elements.push(reader.value()?);
                    Ok(())
                })?;
                Ok(Json::Array(elements))
            }
            Some(b'"') => Ok(Json::String(self.string()?)),
            _ => Ok(match self.word() {
                "null" => Json::Null,
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                number => Json::Number(number),
            }),
        }
    }

    /// Reads what stands between the brackets, one after another.
    fn each(
        &mut self,
        close: u8,
        mut read: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        self.depth += 1;
        self.at += 1;
        while self.peek() != Some(close) {
            read(self)?;
            if self.peek() == Some(b',') {
                self.at += 1;
            }
        }
        self.at += 1;
        self.depth -= 1;
        Ok(())
    }

    fn string(&mut self) -> Result<Cow<'a, str>, String> {
        self.peek();
        let rest = &self.text[self.at..];
        let mut escaped = false;
        let mut bytes = rest.bytes().enumerate().skip(1);
        let end = loop {
            match bytes.next() {
                Some((_, b'\\')) => {
                    escaped = true;
                    bytes.next();
                }
                Some((at, b'"')) => break at,
                Some(_) => {}
                None => return Err("a string does not end".into()),
            }
        };
        self.at += end + 1;
        if !escaped {
            return Ok(Cow::Borrowed(&rest[1..end]));
        }
        let text: String = serde_json::from_str(&rest[..=end])
            .map_err(|_| "a string in it is no Unicode (half of a surrogate pair)".to_owned())?;
        Ok(Cow::Owned(text))
    }

    /// Up to the next delimiter.
    fn word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find([',', ']', '}', ' ', '\n', '\r', '\t']).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += blank;
        rest.get(blank).copied()
    }
}

#[cfg(test)]
mod tests;
