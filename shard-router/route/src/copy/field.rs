//! One field out of a row of COPY, as PostgreSQL reads it.

use super::Form;

/// What stands in a field.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// A value, now in the scratch.
    Value,
    /// NULL, or the column's default, or what may be either by the options.
    NoValue(&'static str),
    /// The row has fewer fields.
    Missing,
}

/// Reads the field at `place` (from 0) of `line`, which is without its end. Its value is left in `value`.
/// # Errors
/// A quote is not closed.
pub(super) fn read(
    form: &Form,
    line: &[u8],
    place: usize,
    value: &mut Vec<u8>,
) -> Result<Field, &'static str> {
    let mut at = 0;
    for field in 0..=place {
        value.clear();
        let start = at;
        let (end, quoted) = match form.csv {
            true => csv(form, line, at, value)?,
            false => (text(form, line, at, value), false),
        };
        if field == place {
            return Ok(judge(form, &line[start..end], quoted));
        }
        if end == line.len() {
            return Ok(Field::Missing);
        }
        at = end + 1;
    }
    Ok(Field::Missing)
}

fn judge(form: &Form, raw: &[u8], quoted: bool) -> Field {
    if raw == form.null.as_slice() && (!quoted || form.forces_null) {
        return Field::NoValue("NULL");
    }
    // With FORCE_NULL quotes make no difference.
    let unquoted = raw.strip_prefix(&[form.quote]).and_then(|raw| raw.strip_suffix(&[form.quote]));
    if quoted && form.forces_null && unquoted == Some(form.null.as_slice()) {
        return Field::NoValue("NULL");
    }
    match &form.default {
        Some(default) if !quoted && raw == default.as_slice() => {
            Field::NoValue("left to the column's default")
        }
        _ => Field::Value,
    }
}

/// From `at` to the delimiter or the line's end.
fn text(form: &Form, line: &[u8], mut at: usize, value: &mut Vec<u8>) -> usize {
    while let Some(&byte) = line.get(at) {
        if byte == form.delimiter {
            break;
        }
        at += 1;
        if byte != b'\\' {
            value.push(byte);
            continue;
        }
        let Some(&escaped) = line.get(at) else { break };
        at += 1;
        let digits = |at: usize, base: u32, most: usize| {
            let digits = line[at..].iter().take(most).map(|byte| char::from(*byte).to_digit(base));
            digits.map_while(|digit| digit).collect::<Vec<u32>>()
        };
        value.push(match escaped {
            b'0'..=b'7' => {
                let more = digits(at, 8, 2);
                at += more.len();
                let first = u32::from(escaped - b'0');
                low_byte(more.iter().fold(first, |number, digit| number * 8 + digit))
            }
            b'x' => {
                let found = digits(at, 16, 2);
                at += found.len();
                match found.is_empty() {
                    true => b'x',
                    false => low_byte(found.iter().fold(0, |number, digit| number * 16 + digit)),
                }
            }
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            other => other,
        });
    }
    at
}

fn low_byte(number: u32) -> u8 {
    u8::try_from(number & 0xff).expect("it was cut to eight bits")
}

/// From `at` to the delimiter or the line's end, and whether any of it is in quotes.
fn csv(
    form: &Form,
    line: &[u8],
    mut at: usize,
    value: &mut Vec<u8>,
) -> Result<(usize, bool), &'static str> {
    let mut saw_quote = false;
    while let Some(&byte) = line.get(at) {
        if byte == form.delimiter {
            break;
        }
        at += 1;
        if byte != form.quote {
            value.push(byte);
            continue;
        }
        saw_quote = true;
        loop {
            let Some(&byte) = line.get(at) else { return Err("a quote that is not closed") };
            at += 1;
            if byte == form.escape
                && let Some(&next) = line.get(at)
                && (next == form.escape || next == form.quote)
            {
                value.push(next);
                at += 1;
                continue;
            }
            if byte == form.quote {
                break;
            }
            value.push(byte);
        }
    }
    Ok((at, saw_quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(csv: bool) -> Form {
        Form {
            csv,
            delimiter: if csv { b',' } else { b'\t' },
            quote: b'"',
            escape: b'"',
            null: if csv { Vec::new() } else { b"\\N".to_vec() },
            default: Some(b"dflt".to_vec()),
            header: false,
            forces_null: false,
            quoted: crate::copy::Quoted::None,
        }
    }

    fn value(form: &Form, line: &str, place: usize) -> Result<String, Field> {
        let mut value = Vec::new();
        match read(form, line.as_bytes(), place, &mut value).expect("it is whole") {
            Field::Value => Ok(String::from_utf8_lossy(&value).into_owned()),
            other @ (Field::NoValue(_) | Field::Missing) => Err(other),
        }
    }

    #[test]
    fn text_is_read_with_every_escape() {
        let form = form(false);
        let line = "a\\tb\\\tc\t\\N\t\\\\N\t\\101\\x42\\x4\\xg\t\t\\q\\.\\\tdflt";
        let null = Err(Field::NoValue("NULL"));
        assert_eq!(value(&form, line, 0), Ok("a\tb\tc".into()));
        assert_eq!(value(&form, line, 1), null);
        assert_eq!(value(&form, line, 2), Ok("\\N".into()));
        assert_eq!(value(&form, line, 3), Ok("AB\x04xg".into()));
        assert_eq!(value(&form, line, 4), Ok(String::new()));
        assert_eq!(value(&form, line, 5), Ok("q.\tdflt".into()));
        assert_eq!(value(&form, line, 6), Err(Field::Missing));
        assert_eq!(value(&form, "dflt", 0), Err(Field::NoValue("left to the column's default")));
        assert_eq!(value(&form, "x\\", 0), Ok("x".into()));
        assert_eq!(value(&form, "", 0), Ok(String::new()));
    }

    #[test]
    fn csv_is_read_with_quotes_and_escapes() {
        let mut form = form(true);
        let line = "a\"b,\"\"c,\",\"\",, x ,dflt,\"dflt\"";
        assert_eq!(value(&form, line, 0), Ok("ab,\"c,".into()));
        assert_eq!(value(&form, line, 1), Ok(String::new()), "quoted, so it is no NULL");
        assert_eq!(value(&form, line, 2), Err(Field::NoValue("NULL")));
        assert_eq!(value(&form, line, 3), Ok(" x ".into()));
        assert_eq!(value(&form, line, 4), Err(Field::NoValue("left to the column's default")));
        assert_eq!(value(&form, line, 5), Ok("dflt".into()));
        assert_eq!(value(&form, line, 6), Err(Field::Missing));
        form.forces_null = true;
        assert_eq!(value(&form, line, 1), Err(Field::NoValue("NULL")), "quotes mean nothing");
        form.escape = b'\\';
        assert_eq!(value(&form, "\"a\\\"b\\\\c\\d\"", 0), Ok("a\"b\\c\\d".into()));
        assert!(read(&form, b"\"open", 0, &mut Vec::new()).is_err());
    }
}
