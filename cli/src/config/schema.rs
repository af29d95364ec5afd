//! The JSON Schema of each role's file: what its reader asks for, as it asks for it. So it never says something else than the reader.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde_json::{Map, Value, json};

use super::{
    AgentConfig, BankConfig, CoordinatorConfig, Role, RouterRole, reader::Reader, strangers::halves,
};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What a key takes.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A whole number.
    Whole(RangeInclusive<u64>),
    /// A text.
    Text,
    /// A text that is never shown as it is.
    Secret,
    /// `true` or `false`.
    Truth,
    /// One of these texts.
    Choice(Vec<String>),
    /// An IP address with port.
    Address,
    /// A list of those, at most so many.
    Addresses(usize),
    /// A list of tables, at most so many.
    Tables(usize),
    /// What counts in another mode only; its kind is not asked for here.
    Elsewhere,
}

/// A key that a reader asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// `section.key`, or `section.key.name` for a key of an element.
    pub(crate) key: String,
    pub(crate) kind: Kind,
    /// As TOML writes it; `None`: there is none, or the key is required.
    pub(crate) default: Option<String>,
}

/// The schema of a role: `coordinator`, `agent`, `bank` or `router`; `None` for any other.
pub(crate) fn of(role: &str) -> Option<Value> {
    let asked = match role {
        "coordinator" => {
            asked::<CoordinatorConfig>(include_str!("../../../config/coordinator.toml"))
        }
        "agent" => asked::<AgentConfig>(include_str!("../../../config/agent.toml")),
        "bank" => asked::<BankConfig>(include_str!("../../../config/bank.toml")),
        "router" => asked::<RouterRole>(include_str!("../../../config/router.toml")),
        _ => return None,
    };
    Some(document(role, &asked))
}

/// What the role asks for when it reads its shipped file, which has an element in every list.
fn asked<T: Role>(shipped: &str) -> Vec<Asked> {
    let mut reader = Reader::of_text("shipped", shipped).expect("what is shipped is TOML");
    let _read = T::read(&mut reader);
    reader.asked()
}

fn document(role: &str, asked: &[Asked]) -> Value {
    let mut sections: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for one in asked {
        let (section, name) = halves(&one.key);
        let keys = sections.entry(section).or_default();
        match name.split_once('.') {
            None => {
                keys.entry(name).or_insert_with(|| schema_of(one));
            }
            Some((list, field)) => {
                let fields = keys
                    .get_mut(list)
                    .and_then(|list| list.get_mut("items")?.get_mut("properties")?.as_object_mut());
                if let Some(fields) = fields {
                    fields.insert(field.to_owned(), schema_of(one));
                }
            }
        }
    }
    let sections: Map<String, Value> = sections
        .into_iter()
        .map(|(section, keys)| {
            let table =
                json!({ "type": "object", "additionalProperties": false, "properties": keys });
            (section.to_owned(), table)
        })
        .collect();
    json!({
        "$schema": DIALECT,
        "title": format!("holdfast {role}"),
        "description": "Values may also come from the environment and from flags, so no key is required in the file.",
        "type": "object",
        "additionalProperties": false,
        "properties": sections,
    })
}

fn schema_of(asked: &Asked) -> Value {
    let address = json!({ "type": "string", "description": "an IP address with port" });
    let mut schema = match &asked.kind {
        // TOML's whole numbers end there.
        Kind::Whole(range) => json!({
            "type": "integer", "minimum": range.start(), "maximum": (*range.end()).min(i64::MAX as u64),
        }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Secret => json!({ "type": "string", "writeOnly": true }),
        Kind::Truth => json!({ "type": "boolean" }),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::Address => address,
        Kind::Addresses(most) => {
            json!({ "type": "array", "items": address, "minItems": 1, "maxItems": most })
        }
        Kind::Tables(most) => json!({
            "type": "array",
            "items": { "type": "object", "additionalProperties": false, "properties": {} },
            "minItems": 1,
            "maxItems": most,
        }),
        Kind::Elsewhere => json!({ "type": ["string", "array"] }),
    };
    let default = asked.default.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let (Some(default), Some(object)) = (default, schema.as_object_mut()) {
        object.insert("default".to_owned(), default);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_schema_and_nothing_else_has() {
        for role in ["coordinator", "agent", "bank", "router"] {
            let schema = of(role).unwrap();
            let level = &schema["properties"]["telemetry"]["properties"]["level"];
            assert_eq!(
                (&level["enum"][2], &level["default"]),
                (&json!("info"), &json!("info")),
                "{role}"
            );
        }
        assert!(of("shards").is_none());
        let coordinator = of("coordinator").unwrap();
        let member = &coordinator["properties"]["cluster"]["properties"]["member"];
        assert_eq!(member["items"]["properties"]["id"]["minimum"], 1, "{member}");
        let batch = &coordinator["properties"]["limits"]["properties"]["batch_max"];
        assert_eq!((&batch["maximum"], &batch["default"]), (&json!(16_384), &json!(1_024)));
    }

    #[test]
    fn every_key_that_is_shipped_is_in_the_schema() {
        let shipped = [
            ("coordinator", include_str!("../../../config/coordinator.toml")),
            ("agent", include_str!("../../../config/agent.toml")),
            ("bank", include_str!("../../../config/bank.toml")),
            ("router", include_str!("../../../config/router.toml")),
        ];
        for (role, text) in shipped {
            let schema = of(role).unwrap();
            let table: toml::Table = text.parse().unwrap();
            for (section, keys) in &table {
                for key in keys.as_table().unwrap().keys() {
                    let known = &schema["properties"][section]["properties"][key];
                    assert!(known.is_object(), "{role}: {section}.{key} is not in the schema");
                }
            }
        }
    }
}
