//! The log store under crashes and damage.
