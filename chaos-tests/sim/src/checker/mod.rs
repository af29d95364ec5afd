//! Checkers of histories: what was asked and told, held against the log that was written meanwhile. They serve every harness that
//! has both: the simulator at the end of each run, and clusters of real processes whose logs are read from their disks.

pub mod linear;
pub mod replay;
