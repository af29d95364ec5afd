//! Agent sessions.
