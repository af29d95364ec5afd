//! The elements of an array, in its text form and in its binary form.

use std::borrow::Cow;

use super::value::{Format, Known, Parameter, of_bytes};
use crate::{KeyType, limit::KEYS_MAX};

/// The type of the elements of an array type that can hold keys.
fn element_of(oid: u32) -> Option<u32> {
    match oid {
        0 => Some(0),
        1005 => Some(21),
        1007 => Some(23),
        1016 => Some(20),
        1009 => Some(25),
        1014 => Some(1042),
        1015 => Some(1043),
        2951 => Some(2950),
        1182 => Some(1082),
        _ => None,
    }
}

pub(super) fn of_parameter<'v>(
    bytes: &'v [u8],
    parameter: &Parameter<'v>,
    key_type: KeyType,
) -> Result<Vec<Known<'v>>, &'static str> {
    let element = element_of(parameter.declared()).ok_or("it is no array of the key's type")?;
    match parameter.format {
        Format::Binary => of_binary(bytes, element, key_type),
        Format::Text => {
            let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
            elements(text)?
                .into_iter()
                .map(|text| Ok(owned(of_bytes(text.as_bytes(), Format::Text, element, key_type))))
                .collect()
        }
    }
}

/// The elements of `{1,2}`.
pub(super) fn of_text<'v>(text: &str, key_type: KeyType) -> Result<Vec<Known<'v>>, &'static str> {
    let known = |text: &String| owned(of_bytes(text.as_bytes(), Format::Text, 0, key_type));
    Ok(elements(text)?.iter().map(known).collect())
}

fn owned<'v>(known: Known<'_>) -> Known<'v> {
    match known {
        Known::Key(key) => Known::Key(Cow::Owned(key.into_owned())),
        Known::NoKey => Known::NoKey,
        Known::Null => Known::Null,
        Known::Unknown(why) => Known::Unknown(why),
    }
}

/// Divides a one-dimensional array. Elements that are NULL are left out.
fn elements(text: &str) -> Result<Vec<String>, &'static str> {
    let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    let mut rest = inner.ok_or("it is no array of one dimension")?.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        if found.len() >= KEYS_MAX {
            return Err("it has too many elements");
        }
        let (element, quoted, behind) = element(rest)?;
        if quoted || !element.eq_ignore_ascii_case("null") {
            found.push(element);
        }
        rest = match behind.trim_start() {
            "" => "",
            behind => {
                let next = behind.strip_prefix(',').ok_or("it is no array")?.trim_start();
                if next.is_empty() {
                    return Err("it is no array");
                }
                next
            }
        };
    }
    Ok(found)
}

/// The first element, whether it was quoted, and what stands behind it.
fn element(text: &str) -> Result<(String, bool, &str), &'static str> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let element = text[..end].trim();
        if element.is_empty() || element.contains(['{', '}', '"', '\\']) {
            return Err("it is no array of one dimension");
        }
        return Ok((element.to_owned(), false, &text[end..]));
    };
    let mut element = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((element, true, &inner[at + 1..])),
            '\\' => element.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => element.push(character),
        }
    }
    Err("it is no array")
}

fn of_binary(bytes: &[u8], wanted: u32, key_type: KeyType) -> Result<Vec<Known<'_>>, &'static str> {
    const BROKEN: &str = "it is no array in binary form";
    let word = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map(u32::from_be_bytes).ok_or(BROKEN)
    };
    match word(0)? {
        0 => return Ok(Vec::new()),
        1 => {}
        _ => return Err("it is no array of one dimension"),
    }
    let element = word(8)?;
    if wanted != 0 && element != wanted {
        return Err(BROKEN);
    }
    let count = word(12)? as usize;
    if count > KEYS_MAX {
        return Err("it has too many elements");
    }
    let mut at = 20;
    let mut found = Vec::new();
    for _ in 0..count {
        let length = word(at)?;
        at += 4;
        if length == u32::MAX {
            continue;
        }
        let end = at.checked_add(length as usize).ok_or(BROKEN)?;
        let value = bytes.get(at..end).ok_or(BROKEN)?;
        found.push(of_bytes(value, Format::Binary, element, key_type));
        at = end;
    }
    Ok(found)
}
