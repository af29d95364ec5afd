//! `SHOW HOLDFAST IN_DOUBT`: what is prepared on every source, since when, what the coordinator says of it, and who waits for it.

use std::{collections::BTreeMap, rc::Rc};

use super::{End, Session};
use crate::{
    admin,
    classify::Act,
    frame,
    meaning::Meaning,
    refusal::{self, Refusal},
};

/// Global transactions whose state is asked for in one look; the others have none.
const STATES_MAX: usize = 100;

/// Whether the router must ask others before it answers this.
pub(super) fn waits_for_others(meaning: &Meaning) -> bool {
    matches!(meaning.act(), Act::Show(what) if what == admin::IN_DOUBT)
}

impl Session {
    /// Answers; `simple`: it came as a simple query.
    pub(super) async fn ask_in_doubt(&mut self, simple: bool) -> Result<(), End> {
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        let worker = Rc::clone(&self.worker);
        let (found, silent) = worker.in_doubt.look(worker.shared()).await;
        if found.is_empty() && silent.len() == worker.sources().len() {
            let why = silent.iter().map(|(source, why)| format!("{source}: {why}"));
            let cause = format!("no source could be asked: {}", why.collect::<Vec<_>>().join("; "));
            let refusal = Refusal::new("HF3205", "08001", cause, "Check the sources");
            if simple {
                self.refuse_query(&refusal);
            } else {
                self.refuse_batch(&refusal);
            }
            return Ok(());
        }
        let gids: BTreeMap<&str, ()> =
            found.iter().take(STATES_MAX).map(|(_, one)| (one.gid.as_str(), ())).collect();
        let asked = gids.into_keys().map(async |gid| {
            let state = match worker.decider() {
                Some(decider) => decider.state(gid).await,
                None => "no coordinator".to_owned(),
            };
            (gid, state)
        });
        let states: BTreeMap<&str, String> =
            futures::future::join_all(asked).await.into_iter().collect();
        let mut out = Vec::new();
        for (source, why) in &silent {
            let words = format!("source {source} could not be asked: {why}");
            refusal::put_warning(&mut out, "01000", &words);
        }
        if simple {
            frame::put_columns(&mut out, admin::columns(&Act::Show(admin::IN_DOUBT.to_owned())));
        }
        for (source, one) in &found {
            let state = states.get(one.gid.as_str()).map_or("not asked", String::as_str);
            let row = [
                one.gid.clone(),
                one.branch.to_string(),
                source.clone(),
                admin::shards_of(&worker, source),
                one.age_ms.to_string(),
                state.to_owned(),
                one.blocked.join(","),
            ];
            frame::put_row(&mut out, &row.map(Some));
        }
        frame::put_complete(&mut out, "SHOW");
        let status = self.status;
        self.say(|words| {
            words.extend_from_slice(&out);
            if simple {
                frame::put_ready(words, status);
            }
        });
        Ok(())
    }
}
