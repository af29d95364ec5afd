//! Takes values field by field from flag, environment and file, in this order, and collects every mistake on the way.
//!
//! A method that finds a mistake notes it and returns `None`; the caller goes on with the next field. So a configuration exists
//! only if every field was `Some`, and one run tells everything that is wrong.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive};

use super::{
    Inputs, Override,
    mistake::{Mistake, Report},
    origin::{Origin, Secret, Shown},
    schema::{Asked, Kind},
    source::{self, Node, Table, Value},
    strangers::{self, halves, hint, nearest, variable_of},
    words::{Showable, address_remedy, listed, quoted, unindexed},
};

/// A value and who said it.
#[derive(Clone, Debug)]
pub(crate) struct Field<T> {
    /// `section.key`, or `cluster.member[0].id`.
    pub(crate) key: String,
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// What to do about a key that nobody set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need<T> {
    /// Say that it is missing.
    Required,
    /// Take this.
    Or(T),
}

/// One element of a list of tables.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    label: String,
    origin: Origin,
    table: Table,
}

/// A value as it was given: in a file with its type, or as bare words.
enum Given {
    Toml(Node),
    Words { text: String, origin: Origin },
}

impl Given {
    fn origin(&self) -> Origin {
        match self {
            Self::Toml(node) => node.origin.clone(),
            Self::Words { origin, .. } => origin.clone(),
        }
    }
}

/// Reads one role's configuration.
#[derive(Debug)]
pub(crate) struct Reader {
    subject: String,
    file: Table,
    environment: BTreeMap<String, String>,
    overrides: Vec<Override>,
    known: Vec<&'static str>,
    mistakes: Vec<Mistake>,
    shown: Vec<Shown>,
    asked: Vec<Asked>,
}

impl Reader {
    /// Opens what `inputs` name.
    /// # Errors
    /// The file cannot be read or is no TOML: nothing else can be said then.
    pub(crate) fn open(inputs: &Inputs) -> Result<Self, Report> {
        let (subject, file) = match &inputs.file {
            Some(path) => {
                let name = path.display().to_string();
                let parsed = source::read_text(path)
                    .map_err(|mistake| vec![mistake])
                    .and_then(|text| source::parse(&name, &text));
                (name.clone(), parsed.map_err(|mistakes| Report::new(name, mistakes))?)
            }
            None => ("configuration without a file".to_owned(), Table { entries: Vec::new() }),
        };
        Ok(Self {
            subject,
            file,
            environment: inputs.environment.clone(),
            overrides: inputs.overrides.clone(),
            known: Vec::new(),
            mistakes: Vec::new(),
            shown: Vec::new(),
            asked: Vec::new(),
        })
    }

    /// Reads `text` alone, without environment and flags.
    /// # Errors
    /// It is no TOML.
    pub(crate) fn of_text(name: &str, text: &str) -> Result<Self, Report> {
        let mut reader = Self::open(&Inputs::default())?;
        let parsed = source::parse(name, text);
        reader.file = parsed.map_err(|mistakes| Report::new(name.to_owned(), mistakes))?;
        Ok(reader)
    }

    /// Every key that was asked for so far, in that order.
    pub(crate) fn asked(self) -> Vec<Asked> {
        self.asked
    }

    fn note<T: Showable>(&mut self, key: &str, kind: Kind, need: Option<&Need<T>>) {
        let default = match need {
            Some(Need::Or(value)) => Some(value.shown()),
            Some(Need::Required) | None => None,
        };
        self.asked.push(Asked { key: unindexed(key), kind, default });
    }

    /// Notes a mistake that the caller found.
    pub(crate) fn mistake(&mut self, code: &'static str, origin: Origin, text: impl Into<String>) {
        self.mistakes.push(Mistake::new(code, origin, text));
    }

    /// The place of what is missing: the file, or what stands in for it.
    pub(crate) fn whole(&self) -> Origin {
        Origin::WholeFile(self.subject.clone())
    }

    /// A whole number within `range`.
    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        need: Need<u64>,
    ) -> Option<Field<u64>> {
        self.note(key, Kind::Whole(range.clone()), Some(&need));
        let Some(given) = self.find(key) else { return self.absent(key, need) };
        let field = self.take_integer(key.to_owned(), given, range)?;
        self.show(&field.key, field.value.to_string(), &field.origin);
        Some(field)
    }

    /// A text that `check` accepts; `check` says in words what is wrong, with the remedy.
    pub(crate) fn text(
        &mut self,
        key: &'static str,
        need: Need<&str>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Field<String>> {
        let need = match need {
            Need::Required => Need::Required,
            Need::Or(value) => Need::Or(value.to_owned()),
        };
        self.note(key, Kind::Text, Some(&need));
        let Some(given) = self.find(key) else { return self.absent(key, need) };
        let field = self.take_text(key.to_owned(), given)?;
        if let Err(wrong) = check(&field.value) {
            self.mistake("HF1017", field.origin, format!("{key} = {:?} {wrong}", field.value));
            return None;
        }
        self.show(key, quoted(&field.value), &field.origin);
        Some(field)
    }

    /// Takes note of a key that counts in another mode only, so that it is no stranger.
    pub(crate) fn know(&mut self, key: &'static str) {
        self.note::<String>(key, Kind::Elsewhere, None);
        self.known.push(key);
    }

    /// Whether anybody set `key`.
    pub(crate) fn is_given(&mut self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// The text of `key` as it stands, without a judgement.
    pub(crate) fn peek(&self, key: &str) -> Option<String> {
        if let Some(set) = self.overrides.iter().rev().find(|set| set.key == key) {
            return Some(set.value.clone());
        }
        if let Some(text) = self.environment.get(&variable_of(key)) {
            return Some(text.clone());
        }
        let (section, name) = halves(key);
        match &self.file.get(section)?.node.value {
            Value::Table(table) => match &table.get(name)?.node.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// A required text that may hold a secret: `check` answers the form in which it may be shown, or a code and what is wrong in words
    /// that repeat no secret.
    pub(crate) fn guarded(
        &mut self,
        key: &'static str,
        check: impl Fn(&str) -> Result<String, (&'static str, String)>,
    ) -> Option<Field<String>> {
        self.note::<String>(key, Kind::Secret, None);
        let Some(given) = self.find(key) else { return self.absent(key, Need::Required) };
        let field = self.take_text(key.to_owned(), given)?;
        match check(&field.value) {
            Ok(masked) => {
                self.show_masked(key, &masked, &field);
                Some(field)
            }
            Err((code, wrong)) => {
                self.mistake(code, field.origin, format!("{key} {wrong}"));
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn truth(&mut self, key: &'static str, default: bool) -> Option<Field<bool>> {
        self.note(key, Kind::Truth, Some(&Need::Or(default)));
        let Some(given) = self.find(key) else { return self.absent(key, Need::Or(default)) };
        let origin = given.origin();
        let value = match given {
            Given::Toml(Node { value: Value::Truth(value), .. }) => Some(value),
            Given::Words { ref text, .. } => text.trim().parse().ok(),
            Given::Toml(_) => None,
        };
        let Some(value) = value else {
            let text = format!("{key} must be true or false, without quotes.");
            self.mistake("HF1006", origin, text);
            return None;
        };
        self.show(key, value.to_string(), &origin);
        Some(Field { key: key.to_owned(), value, origin })
    }

    /// One of `choices`.
    pub(crate) fn choice(
        &mut self,
        key: &'static str,
        choices: &[&str],
        default: &str,
    ) -> Option<Field<String>> {
        let words = choices.iter().map(|choice| (*choice).to_owned()).collect();
        self.note(key, Kind::Choice(words), Some(&Need::Or(default.to_owned())));
        let field = self.text(key, Need::Or(default), |text| {
            if choices.contains(&text) {
                return Ok(());
            }
            let hint = nearest(text, choices.iter().copied());
            let hint = hint.map(|near| format!(" Did you mean {near:?}?")).unwrap_or_default();
            Err(format!("is none of {}.{hint}", listed(choices.iter().copied())))
        })?;
        Some(field)
    }

    /// An IP address with port.
    pub(crate) fn address(
        &mut self,
        key: &'static str,
        need: Need<SocketAddr>,
    ) -> Option<Field<SocketAddr>> {
        self.note(key, Kind::Address, Some(&need));
        let Some(given) = self.find(key) else { return self.absent(key, need) };
        let field = self.take_address(key.to_owned(), given)?;
        self.show(key, quoted(&field.value.to_string()), &field.origin);
        Some(field)
    }

    /// One to `count_max` IP addresses with ports; `None` for one that is none, so that the others can still be judged. By
    /// environment or flag: separated by commas.
    pub(crate) fn addresses(
        &mut self,
        key: &'static str,
        count_max: usize,
    ) -> Option<Field<Vec<Option<Field<SocketAddr>>>>> {
        self.note::<String>(key, Kind::Addresses(count_max), None);
        let Some(given) = self.find(key) else { return self.absent(key, Need::Required) };
        let origin = given.origin();
        let items: Vec<Given> = match given {
            Given::Toml(Node { value: Value::List(items), .. }) => {
                items.into_iter().map(Given::Toml).collect()
            }
            Given::Toml(node) => {
                let kind = node.value.kind();
                self.wrong_kind(key, &origin, "a list of addresses", kind);
                return None;
            }
            Given::Words { text, origin } => text
                .trim_matches(['[', ']'])
                .split(',')
                .map(|one| one.trim().trim_matches('"').to_owned())
                .filter(|one| !one.is_empty())
                .map(|text| Given::Words { text, origin: origin.clone() })
                .collect(),
        };
        let count = items.len();
        if count == 0 || count > count_max {
            let text = format!("{key} has {count} addresses; 1 to {count_max} are allowed.");
            self.mistake("HF1007", origin, text);
            return None;
        }
        let read: Vec<Option<Field<SocketAddr>>> = items
            .into_iter()
            .enumerate()
            .map(|(n, one)| self.take_address(format!("{key}[{n}]"), one))
            .collect();
        let words: Vec<String> =
            read.iter().flatten().map(|one| quoted(&one.value.to_string())).collect();
        self.show(key, format!("[{}]", words.join(", ")), &origin);
        Some(Field { key: key.to_owned(), value: read, origin })
    }

    /// The elements of a list of tables, 1 to `count_max`. By environment or flag: as TOML, `[{ id = 1, ... }, ...]`.
    pub(crate) fn items(
        &mut self,
        key: &'static str,
        count_max: usize,
    ) -> Option<Field<Vec<Item>>> {
        self.note::<String>(key, Kind::Tables(count_max), None);
        let node = match self.find(key) {
            None => return self.absent(key, Need::Required),
            Some(Given::Toml(node)) => node,
            Some(Given::Words { text, origin }) => match source::parse_inline(&origin, &text) {
                Ok(node) => node,
                Err(mistake) => {
                    self.mistakes.push(mistake);
                    return None;
                }
            },
        };
        let Value::List(nodes) = node.value else {
            let (section, last) = halves(key);
            let wanted = format!("a list of tables, each opened by [[{section}.{last}]]");
            let kind = node.value.kind();
            self.wrong_kind(key, &node.origin, &wanted, kind);
            return None;
        };
        if nodes.is_empty() || nodes.len() > count_max {
            let text = format!("{key} has {} elements; 1 to {count_max} are allowed.", nodes.len());
            self.mistake("HF1007", node.origin, text);
            return None;
        }
        let mut items = Vec::with_capacity(nodes.len());
        for (n, node) in nodes.into_iter().enumerate() {
            let label = format!("{key}[{n}]");
            if let Value::Table(table) = node.value {
                items.push(Item { label, origin: node.origin, table });
            } else {
                let kind = node.value.kind();
                self.wrong_kind(&label, &node.origin, "a table", kind);
                return None;
            }
        }
        Some(Field { key: key.to_owned(), value: items, origin: node.origin })
    }

    /// A required whole number of an element.
    pub(crate) fn item_integer(
        &mut self,
        item: &Item,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Option<Field<u64>> {
        let key = format!("{}.{name}", item.label);
        self.note::<u64>(&key, Kind::Whole(range.clone()), None);
        let given = self.item_find(item, name)?;
        let field = self.take_integer(format!("{}.{name}", item.label), given, range)?;
        self.show(&field.key, field.value.to_string(), &field.origin);
        Some(field)
    }

    /// A required address of an element.
    pub(crate) fn item_address(&mut self, item: &Item, name: &str) -> Option<Field<SocketAddr>> {
        self.note::<u64>(&format!("{}.{name}", item.label), Kind::Address, None);
        let given = self.item_find(item, name)?;
        let field = self.take_address(format!("{}.{name}", item.label), given)?;
        self.show(&field.key, quoted(&field.value.to_string()), &field.origin);
        Some(field)
    }

    /// A text of an element; `None` for one that is missing or empty where `required` is false. `check` answers the form in which it may
    /// be shown, or what is wrong in words that repeat no secret.
    pub(crate) fn item_text(
        &mut self,
        item: &Item,
        name: &str,
        required: bool,
        check: impl Fn(&str) -> Result<String, (&'static str, String)>,
    ) -> Option<Field<String>> {
        self.note::<u64>(&format!("{}.{name}", item.label), Kind::Text, None);
        if !required && item.table.get(name).is_none() {
            let key = format!("{}.{name}", item.label);
            return Some(Field { key, value: String::new(), origin: item.origin.clone() });
        }
        let given = self.item_find(item, name)?;
        let field = self.take_text(format!("{}.{name}", item.label), given)?;
        match check(&field.value) {
            Ok(masked) => {
                self.show_masked(&field.key, &masked, &field);
                Some(field)
            }
            Err((code, wrong)) => {
                self.mistake(code, field.origin, format!("{} {wrong}", field.key));
                None
            }
        }
    }

    /// Notes every key of an element that is none of `names`.
    pub(crate) fn item_only(&mut self, item: &Item, names: &[&str]) {
        for entry in &item.table.entries {
            if !names.contains(&entry.key.as_str()) {
                let hint = hint(nearest(&entry.key, names.iter().copied()), names.iter().copied());
                let text =
                    format!("[[{}]] has no key {:?}.{hint}", unindexed(&item.label), entry.key);
                self.mistakes.push(Mistake::new("HF1005", entry.origin.clone(), text));
            }
        }
    }

    /// Ends the reading: notes every unknown key.
    /// # Errors
    /// All mistakes, if there is one.
    pub(crate) fn finish<T>(mut self, built: Option<T>) -> Result<(T, Vec<Shown>), Report> {
        let strangers =
            strangers::find(&self.file, &self.known, &self.overrides, &self.environment);
        self.mistakes.extend(strangers);
        match built {
            Some(value) if self.mistakes.is_empty() => Ok((value, self.shown)),
            _ => Err(Report::new(self.subject, self.mistakes)),
        }
    }

    fn find(&mut self, key: &'static str) -> Option<Given> {
        self.known.push(key);
        if let Some(set) = self.overrides.iter().rev().find(|set| set.key == key) {
            let origin = Origin::Flag(set.flag.clone());
            return Some(Given::Words { text: set.value.clone(), origin });
        }
        let variable = variable_of(key);
        if let Some(text) = self.environment.get(&variable) {
            return Some(Given::Words {
                text: text.clone(),
                origin: Origin::Environment(variable),
            });
        }
        let (section, name) = halves(key);
        match &self.file.get(section)?.node.value {
            Value::Table(table) => Some(Given::Toml(table.get(name)?.node.clone())),
            _ => None,
        }
    }

    fn item_find(&mut self, item: &Item, name: &str) -> Option<Given> {
        let found = item.table.get(name).map(|entry| Given::Toml(entry.node.clone()));
        if found.is_none() {
            let text = format!("{}.{name} is missing. Add it to this table.", item.label);
            self.mistake("HF1008", item.origin.clone(), text);
        }
        found
    }

    fn absent<T: Showable>(&mut self, key: &'static str, need: Need<T>) -> Option<Field<T>> {
        match need {
            Need::Or(value) => {
                self.show(key, value.shown(), &Origin::Default);
                Some(Field { key: key.to_owned(), value, origin: Origin::Default })
            }
            Need::Required => {
                let (section, name) = halves(key);
                let origin = match self.file.get(section) {
                    Some(entry) => entry.origin.clone(),
                    None => self.whole(),
                };
                let text = format!(
                    "{key} is missing. Set {name} in [{section}], or {}, or --set {key}=...",
                    variable_of(key)
                );
                self.mistake("HF1008", origin, text);
                None
            }
        }
    }

    fn show(&mut self, key: &str, value: String, origin: &Origin) {
        let (key, origin) = (key.to_owned(), origin.clone());
        self.shown.push(Shown { key, value, secret: None, origin });
    }

    fn show_masked(&mut self, key: &str, masked: &str, field: &Field<String>) {
        let secret = Secret::behind(masked, &field.value);
        let (key, value, origin) = (key.to_owned(), quoted(masked), field.origin.clone());
        self.shown.push(Shown { key, value, secret, origin });
    }

    fn wrong_kind(&mut self, key: &str, origin: &Origin, wanted: &str, given: &str) {
        self.mistake("HF1006", origin.clone(), format!("{key} takes {wanted}; this is {given}."));
    }

    fn take_integer(
        &mut self,
        key: String,
        given: Given,
        range: RangeInclusive<u64>,
    ) -> Option<Field<u64>> {
        let origin = given.origin();
        let number = match given {
            Given::Toml(Node { value: Value::Integer(number), .. }) => number,
            Given::Toml(node) => {
                self.wrong_kind(&key, &origin, "a whole number", node.value.kind());
                return None;
            }
            Given::Words { text, .. } => match text.trim().replace('_', "").parse::<i128>() {
                Ok(number) => Some(number),
                Err(_) => {
                    self.wrong_kind(&key, &origin, "a whole number", &format!("{text:?}"));
                    return None;
                }
            },
        };
        let (low, high) = (*range.start(), *range.end());
        match number.and_then(|number| u64::try_from(number).ok()) {
            Some(value) if range.contains(&value) => Some(Field { key, value, origin }),
            _ => {
                let given =
                    number.map_or_else(|| "too long a number".to_owned(), |n| n.to_string());
                let bound = match number {
                    Some(number) if number < i128::from(low) => {
                        format!("Raise it to {low} or more.")
                    }
                    _ => format!("Lower it to {high} or less."),
                };
                let text = format!("{key} = {given} is outside {low} to {high}. {bound}");
                self.mistake("HF1007", origin, text);
                None
            }
        }
    }

    fn take_text(&mut self, key: String, given: Given) -> Option<Field<String>> {
        let origin = given.origin();
        let value = match given {
            Given::Toml(Node { value: Value::Text(text), .. }) | Given::Words { text, .. } => text,
            Given::Toml(node) => {
                self.wrong_kind(&key, &origin, "a text in quotes", node.value.kind());
                return None;
            }
        };
        Some(Field { key, value, origin })
    }

    fn take_address(&mut self, key: String, given: Given) -> Option<Field<SocketAddr>> {
        let Field { key, value, origin } = self.take_text(key, given)?;
        match value.parse::<SocketAddr>() {
            Ok(value) => Some(Field { key, value, origin }),
            Err(_) => {
                let text = format!(
                    "{key} = {value:?} is no IP address with port. {}",
                    address_remedy(&value)
                );
                self.mistake("HF1009", origin, text);
                None
            }
        }
    }
}
