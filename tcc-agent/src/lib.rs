//! Lives beside a participant, as library or sidecar, and makes every branch operation take effect once.
