//! Messages read field by field, where a generated one would be made of memory that is thrown away.

use prost::encoding::{WireType, decode_key, decode_varint};

/// The fields of the message that the bytes are, in their order; `None` for one that is not understood, which is the last.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

/// What a field holds, of the two kinds that are in use here.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A number: a bool, an enum, one without sign.
    Number(u64),
    /// Bytes, a text, a message.
    Bytes(&'a [u8]),
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let (field, kind) = decode_key(&mut self.0).ok()?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut self.0).ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut self.0).ok()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((field, value))
    }
}

/// Puts `value` where nothing is yet. `None` where something is: of two fields the last counts, or parts of both.
pub fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}
