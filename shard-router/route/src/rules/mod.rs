//! Reads the rules file: strictly, and to its end, so that one reading reports every mistake.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    Algorithm, BadName, GroupName, KeyType, RuleMistake, SLOTS, Scatter, ShardId, Slot, SlotRange,
    SourceId, SourceIndex,
    algorithm::BadFunction,
    limit::{GROUPS_MAX, MISTAKES_MAX, RULES_BYTES_MAX},
    topology::{DataSource, Group, Shard, Topology},
};

mod lookups;
mod moving;
mod place;

use place::{KEY_TYPES, SCATTERS};

type Table<'t> = DeTable<'t>;
type Value<'t> = Spanned<DeValue<'t>>;
/// A name that stands for something declared elsewhere in the file, with where it stands.
type Reference<N> = (N, Range<usize>);

/// Reads `text` as rules of epoch 1.
pub(crate) fn read(text: &str) -> Result<Topology, Vec<RuleMistake>> {
    if text.len() > RULES_BYTES_MAX {
        let cause = format!("the file has {} bytes, more than {RULES_BYTES_MAX}", text.len());
        let remedy = "Give neighboring slots as one range".to_owned();
        return Err(vec![RuleMistake { code: "HF3005", line: 1, column: 1, cause, remedy }]);
    }
    let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    let line_ends = ends.map(|(at, _)| at).collect();
    let mut reader = Reader { text: text.into(), line_ends, mistakes: Vec::new() };
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        reader.mistake(
            "HF3001",
            &error.span().unwrap_or(0..0),
            format!("not TOML: {}", error.message()),
            "Correct the syntax; each key may stand once",
        );
    }
    // What a broken file seems to mean is not worth judging: its mistakes would be echoes of the first.
    let topology = if syntax.is_empty() { reader.topology(document.get_ref()) } else { None };
    match topology {
        Some(topology) if reader.mistakes.is_empty() => Ok(topology),
        _ => Err(reader.into_mistakes()),
    }
}

/// The remedy for a name that is not among `known`: the one that was probably meant, or all of them.
pub(crate) fn suggest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let known: Vec<&str> = known.collect();
    let distance = |candidate: &str| strsim::damerau_levenshtein(name, candidate);
    // Beyond the longest name there is nothing to compare, and comparing costs by the product of the lengths.
    let near = known.iter().filter(|_| name.len() <= 64).map(|known| (distance(known), known));
    match near.min() {
        Some((distance, nearest)) if distance <= 1 + name.len() / 4 => {
            format!("Did you mean {nearest:?}?")
        }
        _ if known.is_empty() => "None is declared".to_owned(),
        _ if known.len() > 10 => {
            format!("There are {} to choose from: {}, ...", known.len(), known[..8].join(", "))
        }
        _ => format!("To choose from: {}", known.join(", ")),
    }
}

/// The source of each slot of each group.
fn homes(
    groups: &BTreeMap<GroupName, Group>,
    shards: &BTreeMap<ShardId, Shard>,
    sources: &BTreeMap<SourceId, DataSource>,
) -> BTreeMap<GroupName, Box<[SourceIndex]>> {
    let index: BTreeMap<&SourceId, u16> = sources.keys().zip(0_u16..).collect();
    let home = |shard: &ShardId| SourceIndex(index[&shards[shard].source]);
    groups
        .iter()
        .map(|(name, group)| (name.clone(), group.shards.iter().map(home).collect()))
        .collect()
}

struct Reader {
    text: Box<str>,
    /// Where each line ends, so that any place in the file is turned into its line quickly.
    line_ends: Vec<usize>,
    mistakes: Vec<RuleMistake>,
}

/// A group whose shards are not yet known to exist.
struct GroupDraft {
    name: GroupName,
    key: Arc<str>,
    function: Algorithm,
    key_type: KeyType,
    scatter: Scatter,
    slots: Vec<SlotsDraft>,
    place: Range<usize>,
}

struct SlotsDraft {
    first: Slot,
    last: Slot,
    shard: Reference<ShardId>,
    place: Range<usize>,
}

impl Reader {
    fn topology(&mut self, document: &Table<'_>) -> Option<Topology> {
        self.only(
            "the rules",
            document,
            &["group", "table", "lookup", "shard", "source", "router", "moving"],
        );
        let sources = self.sources(document);
        let shards = self.shards(document);
        let groups = self.groups(document);
        let tables = self.tables(document);

        // Judged by what the file declares, rightly or wrongly: a reference to a wrong declaration is no second mistake.
        let declared = declared(document, "source");
        for (name, (source, place)) in &shards {
            let subject = format!("shard {name} is on source");
            self.known(&subject, source.as_str(), place, &declared);
        }
        for (name, draft) in &tables {
            self.known_placement(name, draft, document);
        }
        let declared = self::declared(document, "shard");
        let groups: BTreeMap<GroupName, Group> =
            groups.into_iter().filter_map(|draft| self.assign(draft, &declared)).collect();
        let lookups = self.lookups(document);
        let collation_is_c = self.collation(document);
        let moving = self.moving(document, &groups, &shards);
        if !self.mistakes.is_empty() {
            return None;
        }
        let shards: BTreeMap<ShardId, Shard> =
            shards.into_iter().map(|(name, (source, _))| (name, Shard { source })).collect();
        let homes = homes(&groups, &shards, &sources);
        let tables = tables.into_iter().map(|(name, draft)| (name, draft.placed(&groups)));
        let tables = tables.collect();
        let lookups = lookups.into_iter().filter_map(|(name, draft)| {
            let lookup = self.owned(&name, draft, &tables, &groups)?;
            Some((name, lookup))
        });
        let lookups = lookups.collect();
        let awaited = moving.iter().cloned().map(Arc::new).collect();
        Some(Topology {
            epoch: 1,
            tables,
            groups,
            shards,
            sources,
            collation_is_c,
            lookups,
            homes,
            moving,
            awaited,
        })
    }

    fn sources(&mut self, document: &Table<'_>) -> BTreeMap<SourceId, DataSource> {
        let mut sources = BTreeMap::new();
        let mut taken: BTreeMap<String, SourceId> = BTreeMap::new();
        for (key, table, place) in self.named(document, "source") {
            let name = self.name(SourceId::parse(key), &place);
            let subject = format!("[source.{key}]");
            self.only(&subject, table, &["address"]);
            let address = self.string(&subject, table, "address", &place);
            let (Some(name), Some((address, place))) = (name, address) else { continue };
            let Some(address) = self.address(address, &place) else { continue };
            if let Some(other) = taken.insert(address.clone(), name.clone()) {
                self.mistake(
                    "HF3010",
                    &place,
                    format!("sources {other} and {name} have the same address, {address}"),
                    "Keep one of them and let the shards of both name it; rows would be counted twice otherwise",
                );
            }
            sources.insert(name, DataSource { address: address.into() });
        }
        sources
    }

    fn shards(&mut self, document: &Table<'_>) -> BTreeMap<ShardId, Reference<SourceId>> {
        let mut shards = BTreeMap::new();
        for (key, table, place) in self.named(document, "shard") {
            let name = self.name(ShardId::parse(key), &place);
            let subject = format!("[shard.{key}]");
            self.only(&subject, table, &["source"]);
            let source = self.reference(&subject, table, "source", &place, SourceId::parse);
            if let (Some(name), Some(source)) = (name, source) {
                shards.insert(name, source);
            }
        }
        shards
    }

    fn groups(&mut self, document: &Table<'_>) -> Vec<GroupDraft> {
        let mut drafts = Vec::new();
        let groups = self.named(document, "group");
        if let Some((_, _, place)) = groups.get(GROUPS_MAX) {
            let cause = format!("{} data groups, more than {GROUPS_MAX}", groups.len());
            self.mistake("HF3005", place, cause, "Let more tables join the groups there are");
            return drafts;
        }
        for (key, table, place) in groups {
            let name = self.name(GroupName::parse(key), &place);
            let subject = format!("[group.{key}]");
            self.only(&subject, table, &["key", "type", "function", "scatter", "slots"]);
            let column = self.string(&subject, table, "key", &place);
            let function = self.function(&subject, table, &place);
            let key_type = self.choice(&subject, table, "type", &KEY_TYPES).flatten();
            let scatter = self.choice(&subject, table, "scatter", &SCATTERS).flatten();
            let slots = self.slots(key, table, &place);
            if let Some((column, place)) = &column
                && (column.is_empty() || column.len() > 63)
            {
                let cause = format!("key in {subject} has {} bytes", column.len());
                self.mistake("HF3005", place, cause, "Name one column, in 1 to 63 bytes");
            }
            let (Some(name), Some((column, _)), Some(function), Some(slots)) =
                (name, column, function, slots)
            else {
                continue;
            };
            let draft = GroupDraft {
                name,
                key: column.into(),
                key_type: key_type.unwrap_or(function.key_type()),
                function,
                scatter: scatter.unwrap_or_default(),
                slots,
                place,
            };
            self.fitting(&subject, &draft);
            drafts.push(draft);
        }
        drafts
    }

    fn function(
        &mut self,
        subject: &str,
        table: &Table<'_>,
        at: &Range<usize>,
    ) -> Option<Algorithm> {
        let (name, place) = self.string(subject, table, "function", at)?;
        self.function_named(name, &place)
    }

    fn function_named(&mut self, name: &str, place: &Range<usize>) -> Option<Algorithm> {
        match Algorithm::parse(name) {
            Ok(function) => Some(function),
            Err(BadFunction::Arguments(why)) => {
                let cause = format!("function {:?}: {why}", excerpt(name));
                self.mistake("HF3005", place, cause, "Correct what stands in its parentheses");
                None
            }
            Err(BadFunction::Unknown) => {
                let all = Algorithm::all();
                let cause = format!("no slot function is called {:?}", excerpt(name));
                let word = name.split('(').next().unwrap_or_default();
                let remedy = suggest(word, all.iter().map(Algorithm::name));
                self.mistake("HF3006", place, cause, &remedy);
                None
            }
        }
    }

    /// Refuses a slot function that cannot tell the slots of keys of this type.
    fn fitting(&mut self, subject: &str, draft: &GroupDraft) {
        if let Some(why) = draft.function.unfit(draft.key_type) {
            let cause = format!(
                "{subject} has type {}, and its function {} {why}",
                draft.key_type.name(),
                draft.function.shown()
            );
            self.mistake("HF3005", &draft.place, cause, "Change type or function");
        }
    }

    /// The slots of one group as they are written. `None` if there were mistakes, for then a missing slot would be an echo.
    fn slots(
        &mut self,
        group: &str,
        table: &Table<'_>,
        at: &Range<usize>,
    ) -> Option<Vec<SlotsDraft>> {
        let subject = format!("[[group.{group}.slots]]");
        let Some(value) = table.get("slots") else {
            self.missing(&format!("[group.{group}]"), "slots", at);
            return None;
        };
        let DeValue::Array(entries) = value.get_ref() else {
            self.wrong("slots", "an array of tables", value);
            return None;
        };
        let before = self.mistakes.len();
        let mut drafts = Vec::new();
        for entry in entries.iter() {
            let DeValue::Table(table) = entry.get_ref() else {
                self.wrong(&format!("an entry of {subject}"), "a table", entry);
                continue;
            };
            let place = table.values().next().map_or(entry.span(), Spanned::span);
            self.only(&subject, table, &["first", "last", "shard"]);
            let first = self.slot(&subject, table, "first", &place);
            let last = self.slot(&subject, table, "last", &place);
            let shard = self.reference(&subject, table, "shard", &place, ShardId::parse);
            let (Some((first, place)), Some((last, _)), Some(shard)) = (first, last, shard) else {
                continue;
            };
            if first > last {
                let cause = format!("first = {first} is above last = {last}");
                self.mistake("HF3005", &place, cause, "Exchange the two");
                continue;
            }
            drafts.push(SlotsDraft { first, last, shard, place });
        }
        (self.mistakes.len() == before).then_some(drafts)
    }

    /// Gives every slot its one shard.
    fn assign(&mut self, draft: GroupDraft, declared: &[&str]) -> Option<(GroupName, Group)> {
        let mut owners: Vec<Option<usize>> = vec![None; usize::from(SLOTS)];
        for (index, entry) in draft.slots.iter().enumerate() {
            let (shard, place) = &entry.shard;
            let subject = format!("slots of group {} are on shard", draft.name);
            self.known(&subject, shard.as_str(), place, declared);
            let mut doubled: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
            for slot in Slot::all().filter(|slot| *slot >= entry.first && *slot <= entry.last) {
                match &mut owners[usize::from(slot.number())] {
                    Some(other) => doubled.entry(*other).or_default().push(slot),
                    free => *free = Some(index),
                }
            }
            for (other, slots) in doubled {
                let other = &draft.slots[other];
                let cause = format!(
                    "group {}: {} already on {} (line {})",
                    draft.name,
                    are(slots),
                    other.shard.0,
                    self.line(&other.place)
                );
                self.mistake("HF3009", &entry.place, cause, "Give each slot to exactly one shard");
            }
        }
        let missing: Vec<Slot> =
            Slot::all().filter(|slot| owners[usize::from(slot.number())].is_none()).collect();
        if !missing.is_empty() {
            let cause = format!("group {}: {} on no shard", draft.name, are(missing));
            let remedy = format!("Add [[group.{}.slots]] for them", draft.name);
            self.mistake("HF3008", &draft.place, cause, &remedy);
            return None;
        }
        let shards = owners
            .into_iter()
            .flatten()
            .map(|index| draft.slots[index].shard.0.clone())
            .collect::<Box<[_]>>();
        let group = Group {
            key: draft.key,
            function: draft.function,
            key_type: draft.key_type,
            scatter: draft.scatter,
            shards,
        };
        Some((draft.name, group))
    }

    // === Values ===

    /// The tables below `[kind.*]`, in the order of the file.
    fn named<'v, 'i>(
        &mut self,
        document: &'v Table<'i>,
        kind: &'static str,
    ) -> Vec<(&'v str, &'v Table<'i>, Range<usize>)> {
        let Some(value) = document.get(kind) else {
            let cause = format!("no {kind} is declared");
            self.mistake("HF3003", &(0..0), cause, &format!("Add [{kind}.<name>]"));
            return Vec::new();
        };
        let DeValue::Table(tables) = value.get_ref() else {
            self.wrong(kind, "a table of tables", value);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (key, value) in tables {
            match value.get_ref() {
                DeValue::Table(table) => found.push((&**key.get_ref(), table, key.span())),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => {
                    self.wrong(&format!("{kind}.{}", excerpt(key.get_ref())), "a table", value);
                }
            }
        }
        if found.is_empty() && tables.is_empty() {
            let cause = format!("no {kind} is declared");
            self.mistake("HF3003", &value.span(), cause, &format!("Add [{kind}.<name>]"));
        }
        found
    }

    fn only(&mut self, subject: &str, table: &Table<'_>, allowed: &[&str]) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !allowed.contains(&name) {
                let cause = format!("unknown key {:?} in {subject}", excerpt(name));
                let remedy = suggest(name, allowed.iter().copied());
                self.mistake("HF3002", &key.span(), cause, &remedy);
            }
        }
    }

    fn string<'v>(
        &mut self,
        subject: &str,
        table: &'v Table<'_>,
        key: &str,
        at: &Range<usize>,
    ) -> Option<(&'v str, Range<usize>)> {
        let Some(value) = table.get(key) else {
            self.missing(subject, key, at);
            return None;
        };
        let DeValue::String(text) = value.get_ref() else {
            self.wrong(&format!("{key} in {subject}"), "a string", value);
            return None;
        };
        Some((text, value.span()))
    }

    fn reference<N>(
        &mut self,
        subject: &str,
        table: &Table<'_>,
        key: &str,
        at: &Range<usize>,
        parse: fn(&str) -> Result<N, BadName>,
    ) -> Option<Reference<N>> {
        let (text, place) = self.string(subject, table, key, at)?;
        let name = self.name(parse(text), &place)?;
        Some((name, place))
    }

    fn slot(
        &mut self,
        subject: &str,
        table: &Table<'_>,
        key: &str,
        at: &Range<usize>,
    ) -> Option<(Slot, Range<usize>)> {
        let Some(value) = table.get(key) else {
            self.missing(subject, key, at);
            return None;
        };
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong(&format!("{key} in {subject}"), "an integer", value);
            return None;
        };
        let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
        let slot = number.and_then(Slot::new);
        if slot.is_none() {
            let cause = format!("{key} = {} in {subject} is no slot", excerpt(integer.as_str()));
            let remedy = format!("Slots are 0 to {}", SLOTS - 1);
            self.mistake("HF3005", &value.span(), cause, &remedy);
        }
        slot.map(|slot| (slot, value.span()))
    }

    fn address(&mut self, text: &str, place: &Range<usize>) -> Option<String> {
        let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
            let host_char = |c: char| c.is_ascii_alphanumeric() || "_.-:[]".contains(c);
            !host.is_empty()
                && host.len() <= 253
                && host.chars().all(host_char)
                && port.bytes().all(|digit| digit.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !well_formed {
            let cause = format!("address {:?} is not host:port", excerpt(text));
            self.mistake("HF3005", place, cause, "Write, for example, \"10.0.0.7:5432\"");
        }
        well_formed.then(|| text.to_ascii_lowercase())
    }

    // === Mistakes ===

    fn name<N>(&mut self, parsed: Result<N, BadName>, place: &Range<usize>) -> Option<N> {
        parsed
            .map_err(|bad| self.mistake("HF3005", place, bad.to_string(), "Choose another name"))
            .ok()
    }

    fn known(&mut self, subject: &str, name: &str, place: &Range<usize>, declared: &[&str]) {
        if !declared.contains(&name) {
            let cause = format!("{subject} {name:?}, which is not declared");
            self.mistake("HF3007", place, cause, &suggest(name, declared.iter().copied()));
        }
    }

    fn missing(&mut self, subject: &str, key: &str, place: &Range<usize>) {
        let cause = format!("{subject} has no {key:?}");
        self.mistake("HF3003", place, cause, &format!("Add {key} = ..."));
    }

    fn wrong(&mut self, subject: &str, wanted: &str, value: &Value<'_>) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let cause = format!("{subject} is {found}");
        self.mistake("HF3004", &value.span(), cause, &format!("Write {wanted}"));
    }

    fn mistake(&mut self, code: &'static str, place: &Range<usize>, cause: String, remedy: &str) {
        let (line, column) = (self.line(place), self.column(place));
        let remedy = remedy.to_owned();
        self.mistakes.push(RuleMistake { code, line, column, cause, remedy });
    }

    fn column(&self, place: &Range<usize>) -> usize {
        let before = self.line_ends.partition_point(|end| *end < place.start).checked_sub(1);
        let begin = before.map_or(0, |line| self.line_ends[line] + 1);
        1 + self.text.get(begin..place.start).map_or(0, |before| before.chars().count())
    }

    fn line(&self, place: &Range<usize>) -> usize {
        1 + self.line_ends.partition_point(|end| *end < place.start)
    }

    fn into_mistakes(mut self) -> Vec<RuleMistake> {
        self.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        if self.mistakes.len() > MISTAKES_MAX {
            let more = self.mistakes.len() - (MISTAKES_MAX - 1);
            self.mistakes.truncate(MISTAKES_MAX - 1);
            let last = self.mistakes.last();
            let (line, column) = last.map_or((1, 1), |mistake| (mistake.line, mistake.column));
            self.mistakes.push(RuleMistake {
                code: "HF3011",
                line,
                column,
                cause: format!("{more} more mistakes follow"),
                remedy: "Correct those above first".to_owned(),
            });
        }
        self.mistakes
    }
}

/// The names below `[kind.*]`, sorted.
fn declared<'v>(document: &'v Table<'_>, kind: &str) -> Vec<&'v str> {
    let Some(DeValue::Table(tables)) = document.get(kind).map(Spanned::get_ref) else {
        return Vec::new();
    };
    let mut names: Vec<&str> = tables.keys().map(|key| &**key.get_ref()).collect();
    names.sort_unstable();
    names
}

/// `slots 0 to 9 and 12 are`, as few words as possible.
fn are(slots: Vec<Slot>) -> String {
    let many = slots.len() > 1;
    let ranges = SlotRange::gather(slots);
    let shown: Vec<String> = ranges.iter().take(8).map(ToString::to_string).collect();
    let rest = ranges.len() - shown.len();
    let rest = if rest > 0 { format!(" and {rest} further ranges") } else { String::new() };
    let (noun, verb) = if many { ("slots", "are") } else { ("slot", "is") };
    format!("{noun} {}{rest} {verb}", shown.join(", "))
}

/// At most 64 characters of what somebody wrote.
fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}
