//! Faults, checkers and end-to-end stories over real processes.
