//! Entries of lookups, written with the rows that own their values: in the same transaction, wherever the entry lies.
//!
//! A trigger at the source notes what a statement did to values; it does so for the router alone and refuses everybody else. Behind the
//! statement the router takes the notes and writes the entries on the sources that have their slots. A value that is taken is PostgreSQL's own
//! 23505, since the entry's primary key says so.

use std::collections::BTreeMap;

use futures::future::join_all;
use holdfast_route::Target;

use super::{
    FAILED, IDLE, Session, Stopped,
    global::{Member, lost_within, within},
    scatter::Scatter,
};
use crate::{
    backend::{Row, literal},
    refusal::Refusal,
};

/// Values that one statement may change on one source.
const NOTES_MAX: usize = 5_000;
/// Has the triggers note.
const CARRY: &str = "SET LOCAL holdfast.carries_lookups = 'on'";
/// What was noted, and no further notes.
fn take() -> [String; 2] {
    let notes = format!(
        "WITH taken AS (DELETE FROM holdfast.lookup_note WHERE xact = pg_catalog.pg_current_xact_id() \
         RETURNING name, value, owner, added) SELECT * FROM taken LIMIT {}",
        NOTES_MAX + 1
    );
    [notes, "SET LOCAL holdfast.carries_lookups = 'off'".to_owned()]
}

/// What became of a value.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    name: String,
    value: String,
    owner: String,
    added: bool,
}

impl Note {
    fn read(row: Row) -> Option<Self> {
        let [name, value, owner, added] = <[_; 4]>::try_from(row).ok()?;
        Some(Self { name: name?, value: value?, owner: owner?, added: added? == "t" })
    }
}

/// The statements that write the entries of one source. What is given up goes first, so that two owners may exchange values.
fn entries(notes: &[Note]) -> Vec<String> {
    let of = |added| notes.iter().filter(move |note| note.added == added);
    let gone = of(false).map(|Note { name, value, owner, .. }| {
        let [name, value, owner] = [name, value, owner].map(|text| literal(text));
        format!(
            "DELETE FROM holdfast.lookup WHERE name = {name} AND value = {value} AND owner = {owner}"
        )
    });
    let new = of(true).map(|Note { name, value, owner, .. }| {
        let [name, value, owner] = [name, value, owner].map(|text| literal(text));
        format!(
            "INSERT INTO holdfast.lookup (name, value, owner) VALUES ({name}, {value}, {owner})"
        )
    });
    gone.chain(new).collect()
}

impl Session {
    /// Has the servers at `places` note what becomes of values.
    pub(super) async fn note_values(
        &self,
        slots: &mut [Option<Member>],
        places: &[usize],
    ) -> Result<(), Stopped> {
        let limit = self.worker.limits().commit_timeout;
        let told = slots.iter_mut().enumerate().filter(|(at, _)| places.contains(at));
        let told = told.filter_map(|(_, slot)| slot.as_mut());
        let told = told.map(async |member| {
            let told = within(limit, &mut member.bound.server, &[CARRY]).await;
            (member.bound.pool.source.name().to_owned(), told)
        });
        for (source, told) in join_all(told).await {
            let reply = told.map_err(|why| lost_within(&source, &why))?;
            if let Some(error) = reply.error {
                return Err(Stopped::told(&error));
            }
        }
        Ok(())
    }

    /// Writes the entries of the values that the statement has changed.
    pub(super) async fn carry_values(&mut self, scatter: &Scatter) -> Result<(), Stopped> {
        let mut members = self.take_members();
        let carried = self.carry_among(&mut members, scatter).await;
        if members.iter().any(|member| member.bound.server.broken) {
            self.close_members(members);
            if self.status != IDLE {
                self.status = FAILED;
            }
        } else {
            let last = members.len() - 1;
            self.put_members(members, last);
        }
        match carried {
            Err(Stopped::Told(error)) => match self.as_victim(&error[crate::frame::HEADER..]) {
                Some(refusal) => Err(refusal.into()),
                None => Err(Stopped::Told(error)),
            },
            other => other,
        }
    }

    async fn carry_among(
        &mut self,
        members: &mut Vec<Member>,
        scatter: &Scatter,
    ) -> Result<(), Stopped> {
        let notes = self.take_notes(members, scatter).await?;
        let mut homes: BTreeMap<usize, Vec<Note>> = BTreeMap::new();
        for note in notes {
            let home = self.worker.meanings.borrow().entry_home(&note.name, &note.value)?;
            homes.entry(home).or_default().push(note);
        }
        for place in self.admit_all(members, homes.keys().copied()).await? {
            members[place].wrote = true;
        }
        let limit = self.worker.limits().commit_timeout;
        let written = members.iter_mut().filter_map(|member| {
            let notes = homes.get(&member.bound.source)?;
            Some(async move {
                let told =
                    within(limit, &mut member.bound.server, &[entries(notes).join("; ")]).await;
                (member.bound.pool.source.name().to_owned(), told)
            })
        });
        for (source, told) in join_all(written).await {
            let reply = told.map_err(|why| lost_within(&source, &why))?;
            if let Some(error) = reply.error {
                return Err(Stopped::told(&error));
            }
        }
        Ok(())
    }

    /// What was noted at the sources of the statement.
    async fn take_notes(
        &self,
        members: &mut [Member],
        scatter: &Scatter,
    ) -> Result<Vec<Note>, Stopped> {
        let Target::Several(parts) = &scatter.plan.target else {
            unreachable!("a statement that runs within a transaction has parts")
        };
        let limit = self.worker.limits().commit_timeout;
        let took = |source: usize| parts.iter().any(|part| usize::from(part.source.0) == source);
        let asked = members.iter_mut().filter(|member| took(member.bound.source));
        let asked = asked.map(async |member| {
            let told = within(limit, &mut member.bound.server, &take()).await;
            (member.bound.pool.source.name().to_owned(), told)
        });
        let mut notes = Vec::new();
        for (source, told) in join_all(asked).await {
            let reply = told.map_err(|why| lost_within(&source, &why))?;
            if let Some(error) = reply.error {
                return Err(Stopped::told(&error));
            }
            if let Some(refusal) = too_many(reply.rows.len(), &source) {
                return Err(refusal.into());
            }
            notes.extend(reply.rows.into_iter().filter_map(Note::read));
        }
        Ok(notes)
    }
}

/// What a statement is told that noted more than is taken up.
fn too_many(notes: usize, source: &str) -> Option<Refusal> {
    let cause =
        format!("one statement changes more than {NOTES_MAX} values of lookups on source {source}");
    let refusal = Refusal::new("HF3225", "54000", cause, "Do it in portions");
    (notes > NOTES_MAX).then_some(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_changes_as_many_values_as_the_limit_and_not_one_more() {
        assert_eq!(too_many(NOTES_MAX, "pg-1"), None);
        assert_eq!(too_many(NOTES_MAX + 1, "pg-1").map(|refusal| refusal.code), Some("HF3225"));
        let limit = format!("LIMIT {}", NOTES_MAX + 1);
        assert!(take()[0].ends_with(&limit), "one more is asked for, so that it is seen");
    }

    #[test]
    fn values_are_given_up_before_they_are_taken() {
        let note = |value: &str, owner: &str, added: &str| {
            let row = ["phone", value, owner, added].map(|text| Some(text.to_owned()));
            Note::read(row.to_vec()).expect("whole")
        };
        let notes = [note("1", "a", "t"), note("1", "b", "f"), note("it's", "b", "t")];
        let sql = entries(&notes);
        assert!(sql[0].starts_with("DELETE") && sql[0].contains("owner = 'b'"), "{sql:?}");
        assert!(sql[1].starts_with("INSERT") && sql[1].contains("('phone', '1', 'a')"), "{sql:?}");
        assert!(sql[2].contains("'it''s'"), "{sql:?}");
        assert_eq!(Note::read(vec![None]), None);
    }
}
