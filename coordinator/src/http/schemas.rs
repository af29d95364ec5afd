//! Makes the schemas of the OpenAPI document from the structs that are read and written.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The makers of schemas: what is read may leave out what has a default; what is written may not.
pub(super) struct Generators {
    pub(super) read: SchemaGenerator,
    pub(super) written: SchemaGenerator,
}

impl Generators {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        Self {
            read: settings.clone().for_deserialize().into_generator(),
            written: settings.for_serialize().into_generator(),
        }
    }

    /// Every named schema. What is both read and written is described as it is read, which says less and is true of both.
    pub(super) fn definitions(mut self) -> Map<String, Value> {
        let mut all = self.written.take_definitions(true);
        all.extend(self.read.take_definitions(true));
        all
    }
}
