//! Reads from replicas, for a session that says how old rows may be: `SET holdfast.max_staleness = '500ms'`.
//!
//! Only what is known to read, outside of a transaction. A replica whose age is not known is too old; so is every one for a session that
//! says nothing. Then the primary is asked, as ever.

use std::{rc::Rc, time::Duration};

use holdfast_route::Access;

use super::{IDLE, Session, consume::Taken, expect::Expect};
use crate::{
    backend::{Pool, Settings},
    classify::Act,
    frame,
    meaning::Meaning,
    refusal::Refusal,
    worker::HOME,
};

/// The setting that says how old rows may be.
pub(super) const MAX_STALENESS: &str = "holdfast.max_staleness";
/// Replicas are looked at every 100 ms, and are as old as the look before; a bound beyond a day is a mistake.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What the setting says; `None`: rows are as new as the primary's.
/// # Errors
/// HF3217: the text is none of its values.
pub(super) fn parse(text: &str) -> Result<Option<Duration>, Refusal> {
    let text = text.trim();
    if matches!(text.to_ascii_lowercase().as_str(), "" | "off" | "0" | "none") {
        return Ok(None);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit.trim() {
        "" | "ms" => Some(1),
        "s" => Some(1_000),
        "min" => Some(60_000),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    let age = number.zip(unit_ms).and_then(|(number, ms)| number.checked_mul(ms));
    match age.map(Duration::from_millis).filter(|age| *age <= AGE_MAX) {
        Some(age) => Ok(Some(age).filter(|age| !age.is_zero())),
        None => {
            let shown: String = text.chars().take(40).collect();
            let cause = format!("{MAX_STALENESS} = {shown:?} is none of its values");
            let remedy = "Set it to off, or to a time such as 500ms, 2s or 1min, at most a day";
            Err(Refusal::new("HF3217", "22023", cause, remedy))
        }
    }
}

/// How old rows may be for a session with these settings.
pub(super) fn age_max(settings: Option<&Rc<Settings>>) -> Option<Duration> {
    let mut pairs = settings?.pairs.iter();
    let (_, value) = pairs.find(|(name, _)| name == MAX_STALENESS)?;
    parse(value).ok().flatten()
}

impl Session {
    /// Says which server a statement for `source` (`None`: any) is to be read from: [`Self::replica`]. `Some`: it must wait until the session has
    /// left the replica that it is at.
    pub(super) fn choose_replica(
        &mut self,
        meaning: &Meaning,
        sql: &str,
        source: Option<usize>,
        access: Access,
    ) -> Option<Taken> {
        let at = self.bound.as_ref().and_then(|bound| Some((bound.source, bound.pool.replica()?)));
        self.replica = None;
        if self.age_max.is_none() && at.is_none() {
            return None;
        }
        let source = source.unwrap_or(HOME);
        let alone = self.status == IDLE && self.deferred.is_empty() && self.pinned.is_none();
        let found = match (self.age_max, at) {
            (Some(age_max), None) if alone && self.bound.is_none() => {
                self.only_reads(meaning, sql, access).then(|| self.found(source, age_max)).flatten()
            }
            (Some(age_max), Some((here, replica))) if alone && here == source => {
                let age = self.worker.sources()[source].age(replica);
                let fresh = age.is_some_and(|age| age <= age_max);
                (fresh && self.only_reads(meaning, sql, access)).then_some(replica)
            }
            _ => None,
        };
        self.replica = found;
        match (at, found) {
            (Some(_), None) => self.leave_replica(),
            _ => None,
        }
    }

    fn found(&self, source: usize, age_max: Duration) -> Option<usize> {
        self.worker.sources()[source].replica_within(age_max)
    }

    /// A statement that the mind, or without rules its grammar, knows to write nothing, lock nothing and call nothing that may.
    fn only_reads(&self, meaning: &Meaning, sql: &str, access: Access) -> bool {
        if *meaning.act() != Act::Statement {
            return false;
        }
        match self.worker.passes_everything() {
            true => self.worker.meanings.borrow_mut().only_reads(sql),
            false => access == Access::Read,
        }
    }

    /// Frees the session of the replica, at once or when all is answered.
    fn leave_replica(&mut self) -> Option<Taken> {
        if self.batch_open {
            // What was read there is whole; the statement that follows begins elsewhere.
            frame::put_bare(&mut self.to_server, b'S');
            self.expected.push_back(Expect::HiddenBatch);
            (self.batch_open, self.batch_ran) = (false, false);
        }
        if self.expected.is_empty() && self.to_server.is_empty() {
            self.release();
            return None;
        }
        Some(Taken::Later)
    }

    /// The pool for a statement that is for `source`: the replica's that was chosen, or the primary's.
    pub(super) fn pool_to_use(&mut self, source: usize) -> Rc<Pool> {
        match self.replica {
            Some(replica) => self.worker.reading_pool(source, replica, &self.identity),
            None => self.pool(source),
        }
    }

    /// The pool for one part of a statement over several sources, outside of a transaction.
    pub(super) fn pool_for_part(&mut self, source: usize, access: Access) -> Rc<Pool> {
        let reads = access == Access::Read && self.status == IDLE;
        let replica = self.age_max.filter(|_| reads).and_then(|max| self.found(source, max));
        match replica {
            Some(replica) => self.worker.reading_pool(source, replica, &self.identity),
            None => self.pool(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_time_of_at_most_a_day() {
        let ms = |ms| Ok(Some(Duration::from_millis(ms)));
        for (text, wanted) in [
            ("500ms", ms(500)),
            ("500", ms(500)),
            (" 2 s ", ms(2_000)),
            ("1min", ms(60_000)),
            ("1440min", ms(86_400_000)),
            ("off", Ok(None)),
            ("", Ok(None)),
            ("0", Ok(None)),
            ("0s", Ok(None)),
        ] {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
        for text in ["1441min", "soon", "-5ms", "5 hours", "ms", "99999999999999999999", "1.5s"] {
            assert_eq!(parse(text).map_err(|refused| refused.code), Err("HF3217"), "{text:?}");
        }
    }
}
