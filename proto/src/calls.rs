//! Calls as they lie in a message of a coordinator: written one by one, and read together.

use bytes::Bytes;
use prost::{DecodeError, Message as _};

use crate::v1::{Call, Calls};

impl Calls {
    /// As in [`crate::v1::coordinator_message::Message::Calls`].
    #[must_use]
    pub fn write(calls: Vec<Call>) -> Bytes {
        Self { calls }.encode_to_vec().into()
    }

    /// The calls in [`crate::v1::coordinator_message::Message::Calls`].
    /// # Errors
    /// The bytes are no calls.
    pub fn read(bytes: Bytes) -> Result<Vec<Call>, DecodeError> {
        Self::decode(bytes).map(|message| message.calls)
    }
}
