//! The HTTP/JSON door.
