//! The gRPC doors, a file per service.

pub mod participants;
