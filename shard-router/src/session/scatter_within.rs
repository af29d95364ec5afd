//! A statement over several sources that writes, or that is part of a transaction: it runs on the servers of that transaction, all at once.
//!
//! Outside of a transaction it has one of its own, which ends with it: the client hears that the statement is complete when it is decided
//! that every source keeps it.

use holdfast_route::{
    Access, Copy, Tag, Target,
    merge::{Merger, Outcome},
};
use tokio::time::timeout;

use super::{
    Bound, FAILED, IDLE, Session, Stopped,
    global::{Member, lost_within},
    scatter::{LOST, Part, Scatter, WRITE_AT},
};
use crate::{frame, refusal::Refusal};

impl Session {
    /// Runs it and says its rows and its tag. `described`: its columns are said as well; `rows_max` 0 means all.
    pub(super) async fn run_within(
        &mut self,
        scatter: &Scatter,
        described: bool,
        rows_max: u64,
    ) -> Result<(), Stopped> {
        let own = self.begin_within();
        let ran = match self.members_of(scatter, usize::MAX).await {
            Ok((mut slots, places)) => {
                let how = How { execute: true, described, rows_max };
                let noted = match scatter.plan.lookups {
                    true => self.note_values(&mut slots, &places).await,
                    false => Ok(()),
                };
                let ran = self.run_on(scatter, slots, &places, &how).await;
                noted.and(ran)
            }
            Err(refusal) => Err(refusal.into()),
        };
        let ran = match ran {
            Ok(tag) if scatter.plan.lookups => self.carry_values(scatter).await.map(|()| tag),
            ran => ran,
        };
        match ran {
            Ok(tag) => {
                if own {
                    self.commit().await?;
                }
                self.say_complete(&tag);
                Ok(())
            }
            Err(stopped) => {
                self.end_failed(own).await;
                Err(stopped)
            }
        }
    }

    /// Says its columns, without executing it.
    pub(super) async fn describe_within(&mut self, scatter: &Scatter) -> Result<(), Stopped> {
        let own = self.begin_within();
        let how = How { execute: false, described: true, rows_max: 0 };
        let ran = match self.members_of(scatter, 1).await {
            Ok((slots, places)) => self.run_on(scatter, slots, &places, &how).await,
            Err(refusal) => Err(refusal.into()),
        };
        match ran {
            Ok(_) if own => {
                self.roll_back().await;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(stopped) => {
                self.end_failed(own).await;
                Err(stopped)
            }
        }
    }

    /// Sees to it that there is a transaction to run in. Whether it is one of the statement's own.
    fn begin_within(&mut self) -> bool {
        if self.is_visiting() || self.status == IDLE {
            self.release();
        }
        if self.status == IDLE {
            self.opening.begin(vec!["BEGIN".into()]);
            self.wrote = false;
            return true;
        }
        if !self.deferred.is_empty() {
            self.deferred_bytes = 0;
            self.opening.begin(std::mem::take(&mut self.deferred));
        }
        false
    }

    async fn end_failed(&mut self, own: bool) {
        if own {
            self.roll_back().await;
        } else {
            self.fail_members().await;
        }
    }

    /// The servers of the transaction, those of the first `count` targets among them, and the places of these.
    async fn members_of(
        &mut self,
        scatter: &Scatter,
        count: usize,
    ) -> Result<(Vec<Option<Member>>, Vec<usize>), Refusal> {
        let Target::Several(targets) = &scatter.plan.target else {
            unreachable!("a plan over several sources has several parts")
        };
        let mut members = self.take_members();
        let sources = targets.iter().take(count).map(|target| usize::from(target.source.0));
        let places = match self.admit_all(&mut members, sources).await {
            Ok(places) => places,
            Err(refusal) => {
                let last = members.len().saturating_sub(1);
                self.put_members(members, last);
                return Err(refusal);
            }
        };
        Ok((members.into_iter().map(Some).collect(), places))
    }

    /// Runs it on the servers at `places`, and puts all servers back.
    async fn run_on(
        &mut self,
        scatter: &Scatter,
        mut slots: Vec<Option<Member>>,
        places: &[usize],
        how: &How,
    ) -> Result<String, Stopped> {
        let limit = self.worker.limits().commit_timeout;
        let mut parts = Vec::with_capacity(places.len());
        let mut homes = Vec::with_capacity(places.len());
        for place in places {
            let member = slots[*place].take().expect("each source takes part once");
            let wrote = member.wrote | (how.execute && scatter.plan.access != Access::Read);
            homes.push((*place, member.bound.source, member.bound.tagged, wrote));
            // Nothing was asked of it yet.
            let mut part = Part::new(member.bound.server, member.bound.pool);
            part.ended = true;
            parts.push(part);
        }
        self.ticket.points_to_all(parts.iter().filter_map(|part| part.server.as_deref()));
        let mut ran = match &scatter.plan.copy {
            Some(copy) => self.run_copy(scatter, copy, &mut parts).await,
            None => self.run_parts(scatter, &mut parts, how).await,
        };
        let mut lost = None;
        for (part, (place, source, tagged, wrote)) in parts.iter_mut().zip(homes) {
            let _first_error = timeout(limit, part.hear_out()).await;
            let mut server = part.server.take().expect("nobody took it");
            server.unnamed = None;
            if !part.ended {
                server.broken = true;
                lost.get_or_insert_with(|| part.pool.source.name().to_owned());
            }
            let pool = std::rc::Rc::clone(&part.pool);
            let bound = Bound { server, pool, source, tagged };
            slots[place] = Some(Member { bound, wrote });
        }
        let members: Vec<Member> = slots.into_iter().flatten().collect();
        if let Some(source) = lost {
            self.close_members(members);
            if self.status != IDLE {
                self.status = FAILED;
            }
            return Err(match ran {
                // It said so itself.
                Err(Stopped::Refused(refusal)) if refusal.code == LOST => {
                    let cause = format!(
                        "{}. The transaction is rolled back on every source",
                        refusal.cause
                    );
                    let remedy = "ROLLBACK, then begin it again";
                    Refusal::new("HF3206", "08006", cause, remedy).into()
                }
                Err(stopped) => stopped,
                Ok(_) => lost_within(&source, "its answer did not come to an end").into(),
            });
        }
        let last = members.len() - 1;
        self.put_members(members, last);
        if let Err(Stopped::Told(error)) = &ran
            && let Some(refusal) = self.as_victim(&error[frame::HEADER..])
        {
            ran = Err(refusal.into());
        }
        ran
    }

    /// Sends it to all servers at once, and merges what they say.
    pub(super) async fn run_parts(
        &mut self,
        scatter: &Scatter,
        parts: &mut [Part],
        how: &How,
    ) -> Result<String, Stopped> {
        let Target::Several(targets) = &scatter.plan.target else {
            unreachable!("a plan over several sources has several parts")
        };
        if !scatter.formats_fit() {
            let cause = "columns in mixed formats over several sources";
            let remedy = "Ask for all columns as text, or all in binary";
            return Err(Refusal::new("HF3211", "0A000", cause, remedy).into());
        }
        let written = match &scatter.plan.copy {
            Some(Copy::Written(written)) => {
                self.reads_plainly(&mut parts[0]).await?;
                Some(written)
            }
            _ => None,
        };
        self.worker.shared().counts.scattered.increment(1);
        for (part, target) in parts.iter_mut().zip(targets) {
            let mut out = Vec::new();
            if scatter.put_for(target.rewritten.as_ref(), how.execute, &mut out).is_none() {
                let cause = "a bind message has fewer parameters than its statement";
                return Err(Refusal::new("HF3209", "08P01", cause, "Mend the driver").into());
            }
            part.ended = false;
            let server = part.server.as_mut().expect("it was just put there");
            let written = server.wire.write_all(&out).await;
            written.map_err(|error| lost_within(part.pool.source.name(), &error.to_string()))?;
        }
        let same = scatter.plan.tag == Tag::Same;
        let mut merger: Option<Merger> = None;
        let count = parts.len();
        for part in parts.iter_mut() {
            let fields = part.columns().await?;
            match &merger {
                Some(merger) => merger.agrees(&fields)?,
                None => {
                    let bytes_max = self.worker.limits().merge_bytes_max;
                    let merge = scatter.plan.merge.clone();
                    merger = Some(Merger::new(merge, fields, count, bytes_max)?);
                }
            }
        }
        let mut merger = merger.expect("a plan over several sources has parts");
        let fields = merger.fields();
        match written {
            Some(written) => self.begin_written(written, &fields),
            None if !how.described => {}
            None => match fields.0.is_empty() {
                true if how.execute => {}
                true => self.say(|out| frame::put_bare(out, b'n')),
                false => self.say(|out| {
                    frame::put(out, b'T', |out| out.extend_from_slice(&fields.encode()));
                }),
            },
        }
        if !how.execute {
            return Ok(String::new());
        }
        let mut said = 0;
        loop {
            match merger.next()? {
                Outcome::Row(_) if how.rows_max > 0 && said == how.rows_max => {
                    let cause = format!(
                        "a portal of more than {said} rows over several sources, asked for in portions within a transaction"
                    );
                    let remedy = "Ask for all rows at once (a fetch size of 0)";
                    return Err(Refusal::new("HF3211", "0A000", cause, remedy).into());
                }
                Outcome::Row(row) => {
                    let (tag, row) = match written {
                        Some(written) => (b'd', written.row(&row)?),
                        None => (b'D', row),
                    };
                    self.say(|out| frame::put(out, tag, |out| out.extend_from_slice(&row)));
                    said += 1;
                    if self.to_client.len() > WRITE_AT {
                        self.flush_client().await.map_err(Stopped::End)?;
                    }
                }
                Outcome::Wants(at) => match parts[at].row().await? {
                    // Every copy gives the same rows.
                    Some(_) if same && at > 0 => {}
                    Some(row) => merger.push(at, &row)?,
                    None => merger.end(at),
                },
                Outcome::Done => break,
            }
        }
        for part in parts.iter_mut() {
            part.hear_out().await?;
        }
        if written.is_some() {
            self.say(|out| frame::put_bare(out, b'c'));
            return Ok(format!("COPY {said}"));
        }
        let tags: Vec<&str> = parts.iter().map(|part| part.tag.as_str()).collect();
        match same {
            false => Ok(sum(&tags, said)),
            true if tags.windows(2).all(|pair| pair[0] == pair[1]) => Ok(tags[0].to_owned()),
            true => {
                let cause = format!("the copies of a reference table differ: {}", tags.join(", "));
                let remedy = "Make them equal; nothing was changed";
                Err(Refusal::new("HF3113", "XX001", cause, remedy).into())
            }
        }
    }
}

/// How far a statement is carried out.
pub(super) struct How {
    /// Otherwise it is only described.
    pub(super) execute: bool,
    /// The columns are said.
    pub(super) described: bool,
    pub(super) rows_max: u64,
}

impl Part {
    /// Reads up to the end of the answer, whatever comes before it.
    /// # Errors
    /// The first error that comes.
    pub(super) async fn hear_out(&mut self) -> Result<(), Stopped> {
        let mut first = Ok(());
        while !self.ended {
            match self.message().await {
                Ok((b'Z', _)) => self.ended = true,
                Ok((b'C', body)) => self.tag = crate::backend::tag_of(&body),
                Ok(_) => {}
                Err(Stopped::Told(error)) => {
                    if first.is_ok() {
                        first = Err(Stopped::Told(error));
                    }
                }
                Err(stopped) => return Err(stopped),
            }
        }
        first
    }
}

/// One tag out of those of several sources: the same words, and the sum of their last numbers.
pub(super) fn sum(tags: &[&str], said: u64) -> String {
    let first = tags.first().copied().unwrap_or_default();
    let counted = first.rsplit_once(' ').filter(|(_, last)| last.parse::<u64>().is_ok());
    let Some((words, _)) = counted else { return first.to_owned() };
    if words == "SELECT" {
        return format!("SELECT {said}");
    }
    let numbers = tags.iter().filter_map(|tag| tag.rsplit(' ').next()?.parse::<u64>().ok());
    format!("{words} {}", numbers.sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_several_sources_become_one() {
        assert_eq!(sum(&["INSERT 0 3", "INSERT 0 4"], 0), "INSERT 0 7");
        assert_eq!(sum(&["UPDATE 1", "UPDATE 0"], 9), "UPDATE 1");
        assert_eq!(sum(&["SELECT 5", "SELECT 5"], 3), "SELECT 3");
        assert_eq!(sum(&["TRUNCATE TABLE"], 0), "TRUNCATE TABLE");
    }
}
