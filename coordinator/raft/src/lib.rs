//! A replicated log of opaque entries: the only crate that knows openraft and the log store.
