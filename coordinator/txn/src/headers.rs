//! What a transaction has each of its calls carry: names and values, and the trace that it is part of.

use std::fmt;

use crate::Labels;

/// A `traceparent` in its usual form, as 25 bytes: version 00, lower-case digits, any flags (W3C Trace Context, level 1, section 3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace: [u8; 16],
    /// The span of whoever sent it.
    pub span: [u8; 8],
    /// Bit 0: the trace is sampled.
    pub flags: u8,
}

/// Bytes of a [`Traceparent`], and of its text.
const BYTES: usize = 25;
const TEXT_BYTES: usize = 55;

impl Traceparent {
    /// The name of its header.
    pub const HEADER: &str = "traceparent";

    /// `None`: it is no context, or one of another form. What is read is written back as it was.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; TEXT_BYTES] = text.try_into().ok()?;
        if &text[..3] != b"00-" || text[35] != b'-' || text[52] != b'-' {
            return None;
        }
        let [flags] = digits(&text[53..])?;
        Some(Self { trace: digits(&text[3..35])?, span: digits(&text[36..52])?, flags })
    }

    /// The trace, the span, the flags.
    #[must_use]
    pub fn bytes(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes[24] = self.flags;
        bytes
    }

    /// What [`Self::bytes`] wrote. `None`: they are not so many.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, rest) = rest.split_first_chunk()?;
        let &[flags] = rest else { return None };
        Some(Self { trace: *trace, span: *span, flags })
    }

    /// As it is sent.
    #[must_use]
    pub fn text(&self) -> TraceparentText {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_digits(&self.trace, &mut text[3..35]);
        put_digits(&self.span, &mut text[36..52]);
        put_digits(&[self.flags], &mut text[53..]);
        TraceparentText(text)
    }
}

/// What a [`Traceparent`] is as a header's value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceparentText([u8; TEXT_BYTES]);

impl AsRef<str> for TraceparentText {
    fn as_ref(&self) -> &str {
        str::from_utf8(&self.0).expect("digits and hyphens")
    }
}

/// What each character is as a digit of a base of 16, in lower case; what is none has bits above those of a digit.
const DIGITS: [u8; 256] = {
    let mut digits = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        digits[CHARACTERS[digit] as usize] = digit as u8;
        digit += 1;
    }
    digits
};
const CHARACTERS: &[u8; 16] = b"0123456789abcdef";

/// Two digits a byte. Every transaction of a trace comes by here, so no digit is looked at by itself.
fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let (mut bytes, mut all) = ([0; N], 0);
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        *byte = high << 4 | low;
        all |= high | low;
    }
    (all < 16).then_some(bytes)
}

fn put_digits(bytes: &[u8], to: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(to.chunks_exact_mut(2)) {
        pair[0] = CHARACTERS[usize::from(byte >> 4)];
        pair[1] = CHARACTERS[usize::from(byte & 0xf)];
    }
}

/// The headers of a transaction: names, each once and in order, with a value each.
///
/// Nearly every transaction of a bank is part of a trace of its own, and has the same few other headers as those before it. So the context
/// of the trace lies here, where the transaction is, and the others can be shared. What is read, written and hashed are
/// headers nevertheless.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Holds no `traceparent` in its usual form.
    others: Labels,
    traceparent: Option<Traceparent>,
}

impl Headers {
    /// None at all.
    pub const EMPTY: Self = Self { others: Labels::EMPTY, traceparent: None };

    /// Both together. `others` hold no header of the name [`Traceparent::HEADER`] beside a `traceparent`, and none that [`Traceparent::parse`]
    /// reads without one: whoever has a list of headers collects it.
    #[must_use]
    pub fn new(others: Labels, traceparent: Option<Traceparent>) -> Self {
        debug_assert!(
            others.get(Traceparent::HEADER).is_none_or(|value| {
                traceparent.is_none() && Traceparent::parse(value.as_bytes()).is_none()
            }),
            "a trace's context is given once"
        );
        Self { others, traceparent }
    }

    /// All but the context of the trace in its usual form.
    #[must_use]
    pub fn others(&self) -> &Labels {
        &self.others
    }

    /// The context of the trace, if it is given in its usual form.
    #[must_use]
    pub fn traceparent(&self) -> Option<&Traceparent> {
        self.traceparent.as_ref()
    }

    /// Whether there is one of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let own = name == Traceparent::HEADER && self.traceparent.is_some();
        own || self.others.get(name).is_some()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.others.len() + usize::from(self.traceparent.is_some())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && self.traceparent.is_none()
    }

    /// Bytes of all names and values, and a few more.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let own = |_| Traceparent::HEADER.len() + TEXT_BYTES;
        self.others.bytes() + self.traceparent.map_or(0, own)
    }

    /// Names and values in the order of the names, by bytes.
    pub fn for_each(&self, mut header: impl FnMut(&str, &str)) {
        let mut left = self.traceparent.as_ref();
        for (name, value) in self.others.iter() {
            if name > Traceparent::HEADER
                && let Some(own) = left.take()
            {
                header(Traceparent::HEADER, own.text().as_ref());
            }
            header(name, value);
        }
        if let Some(own) = left {
            header(Traceparent::HEADER, own.text().as_ref());
        }
    }

    /// Copies of all, in the order of the names.
    #[must_use]
    pub fn owned(&self) -> Vec<(String, String)> {
        let mut all = Vec::with_capacity(self.len());
        self.for_each(|name, value| all.push((name.to_owned(), value.to_owned())));
        all
    }

    /// Adds one, or gives it another value. Copies the others: many are collected.
    pub fn insert(&mut self, name: &str, value: &str) {
        let mut all = self.owned();
        all.push((name.to_owned(), value.to_owned()));
        *self = all.into_iter().collect();
    }
}

/// Of those with the same name the last one counts.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        let mut traceparent = None;
        let is_other = |(name, value): &(N, V)| {
            if name.as_ref() != Traceparent::HEADER {
                return true;
            }
            traceparent = Traceparent::parse(value.as_ref().as_bytes());
            traceparent.is_none()
        };
        let mut others: Labels = headers.into_iter().filter(is_other).collect();
        if traceparent.is_some() && others.get(Traceparent::HEADER).is_some() {
            others = others.iter().filter(|(name, _)| *name != Traceparent::HEADER).collect();
        }
        Self { others, traceparent }
    }
}

impl fmt::Debug for TraceparentText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_ref())
    }
}

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().fmt(f)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        self.for_each(|name, value| {
            map.entry(&name, &value);
        });
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const USUAL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// One character may be another.
    fn nearly_usual() -> impl Strategy<Value = String> {
        (0..USUAL.len(), prop::option::of("[0-9a-fA-F-]")).prop_map(|(at, other)| {
            let mut text = USUAL.to_owned();
            if let Some(other) = other {
                text.replace_range(at..=at, &other);
            }
            text
        })
    }

    proptest! {
        #[test]
        fn headers_are_a_map_in_the_order_of_names(
            pairs in prop::collection::vec(("traceparent|[s-u]{0,2}", prop_oneof![".{0,3}", nearly_usual()]), 0..8),
        ) {
            let map: BTreeMap<String, String> = pairs.iter().cloned().collect();
            let headers: Headers = pairs.into_iter().collect();
            prop_assert_eq!(headers.owned(), map.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!((headers.len(), headers.is_empty()), (map.len(), map.is_empty()));
            prop_assert!(map.keys().all(|name| headers.has(name)) && !headers.has("other"));
            let bytes: usize = map.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(headers.bytes() >= bytes, "{} and {bytes}", headers.bytes());
            let same = Headers::new(headers.others().clone(), headers.traceparent().copied());
            prop_assert_eq!(&same, &headers);
            let (mut more, mut many) = (headers, map);
            for value in ["x", USUAL, "x"] {
                more.insert(Traceparent::HEADER, value);
                many.insert(Traceparent::HEADER.to_owned(), value.to_owned());
                prop_assert_eq!(&more, &many.iter().collect::<Headers>());
                prop_assert_eq!(more.traceparent().is_some(), value == USUAL);
            }
        }

        #[test]
        fn what_is_read_as_a_context_is_written_as_it_was(text in nearly_usual()) {
            if let Some(context) = Traceparent::parse(text.as_bytes()) {
                let written = context.text();
                prop_assert_eq!(written.as_ref(), text);
                prop_assert_eq!(Traceparent::of_bytes(&context.bytes()), Some(context));
            }
        }
    }

    #[test]
    fn the_usual_form_and_no_other_is_read() {
        let context = Traceparent::parse(USUAL.as_bytes()).unwrap();
        assert_eq!((context.trace[0], context.span[7], context.flags), (0x4b, 0xb7, 1));
        for bytes in [0, BYTES - 1, BYTES + 1] {
            assert_eq!(Traceparent::of_bytes(&vec![1; bytes]), None);
        }
        for other in [
            "",
            &USUAL[..54],
            &format!("{USUAL}-"),
            &USUAL.to_uppercase(),
            &USUAL.replace("00-4", "01-4"),
            &USUAL.replace('-', "_"),
            &USUAL.replace("b7", "bg"),
        ] {
            assert_eq!(Traceparent::parse(other.as_bytes()), None, "{other}");
        }
    }
}
