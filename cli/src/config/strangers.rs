//! Keys that nobody asked for, in file, flags and environment, each with the word that was probably meant.

use std::collections::BTreeMap;

use super::{
    Override,
    mistake::Mistake,
    origin::Origin,
    source::{Table, Value},
};

/// What stands in the environment before `SECTION_KEY`.
const ENVIRONMENT_PREFIX: &str = "HOLDFAST_";

/// Every key that is none of `known` (`section.key` each).
pub(crate) fn find(
    file: &Table,
    known: &[&'static str],
    overrides: &[Override],
    environment: &BTreeMap<String, String>,
) -> Vec<Mistake> {
    let mut found = in_file(file, known);
    for set in overrides.iter().filter(|set| !known.contains(&set.key.as_str())) {
        let near = nearest(&set.key, known.iter().copied());
        let hint = near.map(|near| format!(" Did you mean {near:?}?")).unwrap_or_default();
        let text = format!("there is no key {:?}.{hint} See docs/reference/config.md.", set.key);
        found.push(Mistake::new("HF1005", Origin::Flag(set.flag.clone()), text));
    }
    // The environment belongs to everybody: a variable of another role is none of our business, a misspelt one of ours is.
    let variables: Vec<String> = known.iter().map(|key| variable_of(key)).collect();
    for name in environment.keys().filter(|name| !variables.contains(name)) {
        let close = variables.iter().find(|v| strsim::damerau_levenshtein(v, name) <= 2);
        if let Some(close) = close {
            let text = format!("is not read. Did you mean {close}?");
            found.push(Mistake::new("HF1005", Origin::Environment(name.clone()), text));
        }
    }
    found
}

fn in_file(file: &Table, known: &[&'static str]) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut sections: Vec<&str> = Vec::new();
    for key in known {
        let section = halves(key).0;
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    for top in &file.entries {
        if !sections.contains(&top.key.as_str()) {
            let hint = match (&top.node.value, home_of(known, &top.key)) {
                (Value::Table(_), _) | (_, None) => {
                    hint(nearest(&top.key, sections.iter().copied()), sections.iter().copied())
                }
                (_, Some(section)) => format!(" It belongs in [{section}]."),
            };
            let text = format!("there is no section {:?}.{hint}", top.key);
            found.push(Mistake::new("HF1005", top.origin.clone(), text));
            continue;
        }
        let Value::Table(table) = &top.node.value else {
            let text = format!("[{}] is a section; this is {}.", top.key, top.node.value.kind());
            found.push(Mistake::new("HF1006", top.node.origin.clone(), text));
            continue;
        };
        for entry in &table.entries {
            if let Some(hint) = stranger(known, &top.key, &entry.key) {
                let text = format!("[{}] has no key {:?}.{hint}", top.key, entry.key);
                found.push(Mistake::new("HF1005", entry.origin.clone(), text));
            }
        }
    }
    found
}

/// The section that has a key of this name.
fn home_of(known: &[&'static str], name: &str) -> Option<&'static str> {
    known.iter().map(|key| halves(key)).find(|(_, n)| *n == name).map(|(section, _)| section)
}

/// `None`: the key is known. Otherwise the rest of the sentence.
fn stranger(known: &[&'static str], section: &str, name: &str) -> Option<String> {
    let siblings: Vec<&str> = known
        .iter()
        .map(|key| halves(key))
        .filter(|(s, _)| *s == section)
        .map(|(_, n)| n)
        .collect();
    if siblings.contains(&name) {
        return None;
    }
    match (nearest(name, siblings.iter().copied()), home_of(known, name)) {
        (None, Some(home)) => Some(format!(" It belongs in [{home}].")),
        (near, _) => Some(hint(near, siblings.into_iter())),
    }
}

/// `node.data_dir` in the environment: `HOLDFAST_NODE_DATA_DIR`.
pub(crate) fn variable_of(key: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Section and key.
pub(crate) fn halves(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or((key, ""))
}

/// The end of a sentence about an unknown name.
pub(crate) fn hint<'a>(near: Option<&str>, all: impl Iterator<Item = &'a str>) -> String {
    match near {
        Some(near) => format!(" Did you mean {near:?}?"),
        None => format!(" Known are {}.", all.collect::<Vec<_>>().join(", ")),
    }
}

/// The candidate that a slip of the hand would turn into `text`.
pub(crate) fn nearest<'a>(
    text: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let allowed = (text.chars().count() / 3).max(2);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(candidate, text), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
