//! Where a row that is there belongs, and which foreign keys hold where rows are spread: what is asked before rows move and behind it.

use std::collections::BTreeSet;

use crate::{Key, KeyColumn, Placement, Sharded, Slot, SourceId, Topology, plan};

/// Where a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home<'t> {
    /// On every source.
    Everywhere,
    /// On this source; a row that is spread by its slot.
    On(&'t SourceId, Option<Slot>),
    /// On none: its columns have no slot, or do not agree on one. No statement by its key finds it for certain.
    Nowhere,
}

impl KeyColumn {
    /// The slot of a value, as PostgreSQL writes it; `None` if there is none.
    #[must_use]
    pub fn slot(&self, value: &str) -> Option<Slot> {
        let key = plan::of_text(value, self.key_type).ok()?;
        self.function.slot(Key::parse(&key).ok()?).ok()
    }
}

impl Sharded {
    /// The slot of a row by the values of `columns`, in their order. NULL says nothing, unless all are.
    fn slot<'v>(&self, values: impl IntoIterator<Item = Option<&'v str>>) -> Option<Slot> {
        let known = self.columns.iter().zip(values);
        let mut slots = known.filter_map(|(column, value)| Some(column.slot(value?)));
        let first = slots.next()??;
        slots.all(|slot| slot == Some(first)).then_some(first)
    }
}

impl Topology {
    /// Where a row of a table that lies so belongs, by the values of the columns that lead to it, in their order.
    pub fn home<'t, 'v>(
        &'t self,
        placement: &'t Placement,
        values: impl IntoIterator<Item = Option<&'v str>>,
    ) -> Home<'t> {
        match placement {
            Placement::Reference => Home::Everywhere,
            Placement::Single(source) => Home::On(source, None),
            Placement::Sharded(sharded) => sharded.slot(values).map_or(Home::Nowhere, |slot| {
                Home::On(self.source_of(&self.groups[&sharded.group], slot), Some(slot))
            }),
        }
    }

    /// Where the entry of a value belongs; of a lookup that these rules do not have nobody asks.
    #[must_use]
    pub fn home_of_entry(&self, lookup: &str, value: &str) -> Home<'_> {
        if !self.lookups.contains_key(lookup) {
            return Home::Everywhere;
        }
        let place = self.entry_place(lookup, value);
        let at = place.and_then(|place| Some((self.source_at(place.source)?.0, place.slot)));
        at.map_or(Home::Nowhere, |(source, slot)| Home::On(source, Some(slot)))
    }

    /// The sources on which rows of a table that lies so may be.
    #[must_use]
    pub fn spread(&self, placement: &Placement) -> BTreeSet<&SourceId> {
        match placement {
            Placement::Reference => self.sources.keys().collect(),
            Placement::Single(source) => {
                self.sources.keys().filter(|known| *known == source).collect()
            }
            Placement::Sharded(sharded) => {
                let group = &self.groups[&sharded.group];
                Slot::all().map(|slot| self.source_of(group, slot)).collect()
            }
        }
    }

    /// Whether what a foreign key leads to is always on the source of the row that has it. `columns`: pairs of its columns, those of table
    /// `from` first.
    /// # Errors
    /// Why not, in words that follow the name of table `to`.
    pub fn leads_within_a_source(
        &self,
        from: &Placement,
        to: &Placement,
        columns: &[(String, String)],
    ) -> Result<(), String> {
        let mut sources = self.spread(from);
        sources.extend(self.spread(to));
        let (from, to) = match (from, to) {
            (_, Placement::Reference) => return Ok(()),
            _ if sources.len() <= 1 => return Ok(()),
            (_, Placement::Single(source)) => return Err(format!("which lies on {source} alone")),
            (Placement::Sharded(from), Placement::Sharded(to)) => (from, to),
            (Placement::Reference | Placement::Single(_), Placement::Sharded(_)) => {
                return Err("whose rows are spread".to_owned());
            }
        };
        if from.group != to.group {
            return Err(format!("whose rows are spread by another group, {}", to.group));
        }
        let named = |sharded: &Sharded, name: &str| {
            let column = sharded.columns.iter().find(|column| &*column.name == name)?;
            Some((column.function.clone(), column.key_type))
        };
        let leads = |(own, other): &(String, String)| {
            let way = named(from, own);
            way.is_some() && way == named(to, other)
        };
        if columns.iter().any(leads) {
            return Ok(());
        }
        let key = to.columns.first().map_or("", |column| &column.name);
        Err(format!("whose rows are spread by {key}, and it does not hold that"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = include_str!("../testscripts/rules/bank.toml");

    fn rules() -> Topology {
        Topology::parse(RULES).expect("good rules")
    }

    #[test]
    fn a_row_belongs_where_its_columns_lead_if_they_agree() {
        let rules = rules();
        let home = |table: &str, values: &[Option<&str>]| match rules
            .home(&rules.tables()[table], values.iter().copied())
        {
            Home::Everywhere => "everywhere".to_owned(),
            Home::On(source, None) => source.to_string(),
            Home::On(source, Some(slot)) => format!("{source} {slot}"),
            Home::Nowhere => "nowhere".to_owned(),
        };
        assert_eq!(home("card", &[Some("A-1")]), "pg-2 638");
        assert_eq!(home("account", &[Some("A-1"), Some("xx0638")]), "pg-2 638");
        assert_eq!(home("account", &[Some("A-1"), None]), "pg-2 638");
        assert_eq!(home("account", &[None, Some("xx0638")]), "pg-2 638");
        assert_eq!(home("account", &[Some("A-1"), Some("xx0639")]), "nowhere");
        assert_eq!(home("account", &[Some("A-1"), Some("none")]), "nowhere");
        assert_eq!(home("account", &[None, None]), "nowhere");
        assert_eq!(home("office", &[Some("7")]), "pg-1 7");
        assert_eq!(home("office", &[Some("-7")]), "nowhere");
        assert_eq!(home("audit", &[]), "pg-2");
        assert_eq!(home("country", &[]), "everywhere");
    }

    #[test]
    fn an_entry_of_a_lookup_belongs_where_its_value_leads() {
        let lookup = "[lookup.phone]\ntable = \"account\"\ncolumn = \"phone\"\n";
        let rules = Topology::parse(&format!("{RULES}\n{lookup}")).expect("good rules");
        let place = rules.entry_place("phone", "+49").expect("it has one");
        let (source, _) = rules.source_at(place.source).expect("it is there");
        assert_eq!(rules.home_of_entry("phone", "+49"), Home::On(source, Some(place.slot)));
        assert_eq!(rules.home_of_entry("phone", ""), Home::Nowhere);
        assert_eq!(rules.home_of_entry("fax", "+49"), Home::Everywhere);
    }

    /// What a foreign key leads to is on its row's own source: a copy, a row of the same slot, or there is one source only.
    #[test]
    fn a_foreign_key_leads_within_a_source_or_it_is_told_why_not() {
        let rules = rules();
        let told = |rules: &Topology, from: &str, to: &str, own: &str, other: &str| {
            let (from, to) = (&rules.tables()[from], &rules.tables()[to]);
            let columns = [("x".to_owned(), "y".to_owned()), (own.to_owned(), other.to_owned())];
            rules.leads_within_a_source(from, to, &columns).err().unwrap_or_default()
        };
        let check = |from, to, own, other| told(&rules, from, to, own, other);
        assert_eq!(check("account", "country", "land", "code"), "");
        assert_eq!(check("card", "account", "customer", "customer"), "");
        assert_eq!(check("desk", "office", "office_id", "id"), "");
        assert_eq!(
            check("card", "account", "account_no", "account_no"),
            "whose rows are spread by customer, and it does not hold that"
        );
        assert_eq!(
            check("account", "card", "account_no", "customer"),
            "whose rows are spread by customer, and it does not hold that"
        );
        assert_eq!(
            check("card", "office", "customer", "id"),
            "whose rows are spread by another group, strict"
        );
        assert_eq!(check("card", "audit", "customer", "id"), "which lies on pg-2 alone");
        assert_eq!(check("country", "card", "code", "customer"), "whose rows are spread");
        let together = Topology::parse(&RULES.replace("source = \"pg-1\"", "source = \"pg-2\""));
        assert_eq!(told(&together.expect("good rules"), "card", "office", "customer", "id"), "");
    }
}
