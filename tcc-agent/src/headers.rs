//! What every call of a global transaction carries: names and values, which most who carry a call out never look at.

use std::{borrow::Cow, fmt};

use holdfast_proto::{Pairs, TRACE_CONTEXT_BYTES};
use holdfast_trace::{Context, HEADER, header_of};

/// Headers of a call.
///
/// The context of a trace is one of them, `traceparent` (W3C Trace Context, level 1, section 3.2). It mostly comes as bytes, and is a text
/// for whoever asks for it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Beside a context there is no `traceparent` among them.
    others: Pairs,
    context: Option<[u8; TRACE_CONTEXT_BYTES]>,
}

impl Headers {
    pub(crate) fn new(others: Pairs, context: Option<[u8; TRACE_CONTEXT_BYTES]>) -> Self {
        Self { others, context }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.others.len() + usize::from(self.context.is_some())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value under that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        match &self.context {
            Some(context) if name == HEADER => Some(Cow::Owned(header_of(context))),
            _ => self.others.get(name).map(Cow::Borrowed),
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let context = self.context.iter().map(|context| (HEADER, Cow::Owned(header_of(context))));
        self.others.iter().map(|(name, value)| (name, Cow::Borrowed(value))).chain(context)
    }

    /// The context of the trace, if that is sampled.
    pub(crate) fn traced(&self) -> Option<Context> {
        match &self.context {
            Some(context) => Context::of_bytes(context),
            None => self.others.get_in_any_case(HEADER).and_then(Context::parse),
        }
    }

    /// Has them say that context, in place of any.
    pub(crate) fn trace(&mut self, context: &Context) {
        if self.others.get_in_any_case(HEADER).is_some() {
            self.others.retain(|name| !name.eq_ignore_ascii_case(HEADER));
        }
        self.context = Some(context.bytes());
    }
}

/// Names are different ones.
impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        Self::new(headers.into_iter().collect(), None)
    }
}

/// Leaves them out: they may hold what must not stand in a log.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} headers", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_a_header_like_any_other_whether_it_came_as_bytes_or_as_text() {
        let context = Context::parse(SAMPLED).unwrap();
        let tenant = || [("tenant", "retail")].into_iter().collect();
        let mut headers = Headers::new(tenant(), Some(context.bytes()));
        let text: Headers = [("tenant", "retail"), ("TraceParent", SAMPLED)].into_iter().collect();
        assert_eq!(headers.get(HEADER).as_deref(), Some(SAMPLED));
        assert_eq!(headers.get("tenant").as_deref(), Some("retail"));
        assert_eq!((headers.len(), text.len()), (2, 2));
        assert_eq!((headers.traced(), text.traced()), (Some(context), Some(context)));
        let mut unsampled = context.bytes();
        unsampled[24] = 0;
        let unsampled = Headers::new(tenant(), Some(unsampled));
        assert_eq!(unsampled.get(HEADER).as_deref(), Some(&*SAMPLED.replace("-01", "-00")));
        assert_eq!(unsampled.traced(), None);
        // What lies within has another span.
        let within = context.within(&[b"x"]);
        for mut traced in [headers.clone(), text, unsampled] {
            traced.trace(&within);
            assert_eq!((traced.len(), traced.traced()), (2, Some(within)));
            let all: Vec<_> =
                traced.iter().map(|(name, value)| (name, value.into_owned())).collect();
            assert_eq!(all, [("tenant", "retail".to_owned()), (HEADER, within.header())]);
        }
        headers.trace(&context);
        assert_eq!(headers, Headers::new(tenant(), Some(context.bytes())));
        assert!(Headers::default().is_empty() && !headers.is_empty());
        assert_eq!(format!("{headers:?}"), "2 headers");
    }
}
