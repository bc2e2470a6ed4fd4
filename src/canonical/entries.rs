//! The entries of a map, which are written as they come and then put in order.

use super::{Encoder, Error};

/// Where an entry of a map lies while the map is being written. It ends where the next one begins.
pub(super) struct Entry {
    /// See [`rank`].
    rank: u64,
    key: usize,
    value: usize,
    end: usize,
}

/// The entries of one map, in the encoder.
pub(crate) struct Entries {
    /// Where the first one begins.
    start: usize,
    /// How many there are of the maps around this one.
    outer: usize,
}

impl Entries {
    pub(super) fn begin(encoder: &mut Encoder) -> Result<Self, Error> {
        encoder.enter(b'm')?;
        Ok(Self { start: encoder.out.len(), outer: encoder.entries.len() })
    }

    /// A key that is a name, in one step.
    pub(super) fn field(&self, encoder: &mut Encoder, name: &str) {
        let key = encoder.out.len();
        encoder.string(name);
        let rank = rank(b's', name.as_bytes());
        encoder.entries.push(Entry { rank, key, value: encoder.out.len(), end: 0 });
    }

    pub(super) fn key(&self, encoder: &mut Encoder) {
        let here = encoder.out.len();
        encoder.entries.push(Entry { rank: 0, key: here, value: here, end: 0 });
    }

    pub(super) fn value(&self, encoder: &mut Encoder) {
        if let Some(entry) = encoder.entries.last_mut() {
            entry.value = encoder.out.len();
            entry.rank = match encoder.out[entry.key..].split_first() {
                Some((b's', rest)) => rank(b's', &rest[8..]),
                Some((tag, _)) => rank(*tag, b""),
                None => 0,
            };
        }
    }

    pub(super) fn end(self, encoder: &mut Encoder) {
        let Encoder { out, entries, .. } = encoder;
        let this = &mut entries[self.outer..];
        let mut end = out.len();
        for entry in this.iter_mut().rev() {
            entry.end = end;
            end = entry.key;
        }
        let order = |a: &Entry, b: &Entry| {
            a.rank.cmp(&b.rank).then_with(|| out[a.key..a.value].cmp(&out[b.key..b.value]))
        };
        if !this.is_sorted_by(|a, b| order(a, b).is_le()) {
            // Stable, so that equal keys keep their order.
            this.sort_by(order);
            let end = out.len();
            out.reserve(end - self.start);
            for entry in this {
                out.extend_from_within(entry.key..entry.end);
            }
            out.copy_within(end.., self.start);
            out.truncate(end);
        }
        entries.truncate(self.outer);
        encoder.leave();
    }
}

/// A number for a key which never contradicts the order of the encoded keys: its tag, and of a text the length and the first
/// bytes. Where equal numbers leave it open, the keys themselves decide.
fn rank(tag: u8, text: &[u8]) -> u64 {
    const LONG: usize = 255;
    let tag = u64::from(tag) << 56;
    if text.len() >= LONG {
        return tag | (LONG as u64) << 48;
    }
    let first = match text.first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight) >> 16,
        None => {
            let first = &text[..text.len().min(6)];
            first.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)) << (8 * (6 - first.len()))
        }
    };
    tag | (text.len() as u64) << 48 | first
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    fn encoded(key: &impl Serialize) -> Vec<u8> {
        let mut encoder = Encoder::default();
        key.serialize(&mut encoder).unwrap();
        encoder.as_bytes().to_owned()
    }

    #[test]
    fn the_rank_never_contradicts_the_order_of_the_keys() {
        let beginnings = ["", "\0", "a", "a\0", "abcdef", "abcdeg", "abcdefg", "abcdefgh", "é", "\u{10ffff}"];
        let lengths = [0, 1, 2, 6, 7, 8, 9, 253, 254, 255, 256, 257, 511, 512, 70_000];
        let texts = beginnings.iter().flat_map(|text| lengths.map(|len| text.to_string() + &"a".repeat(len)));
        let mut keys: Vec<_> = texts.map(|text| (rank(b's', text.as_bytes()), encoded(&text))).collect();
        let others = [encoded(&-1), encoded(&7), encoded(&u128::MAX), encoded(&true), encoded(&None::<u8>)];
        keys.extend(others.map(|key| (rank(key[0], b""), key)));
        for (a_rank, a) in &keys {
            for (b_rank, b) in &keys {
                assert!(a_rank == b_rank || a_rank.cmp(b_rank) == a.cmp(b), "{a:?} {b:?}");
            }
        }
    }
}
