//! Questions that the router answers after it has asked others. `SHOW HOLDFAST IN_DOUBT`: what is prepared on every source, since when, what the
//! coordinator says of it, and who waits for it. `SELECT holdfast.locate('<lookup>', '<value>')`: whose the value is, and where that one lives.

use std::{collections::BTreeMap, rc::Rc};

use holdfast_route::MoveFate;

use super::{End, Session, global::within};
use crate::{
    admin,
    backend::literal,
    classify::Act,
    frame,
    meaning::Meaning,
    refusal::{self, Refusal},
};

/// Global transactions whose state is asked for in one look; the others have none.
const STATES_MAX: usize = 100;

/// What is asked.
#[derive(Debug)]
pub(super) enum Question {
    InDoubt,
    /// Whose the value of a lookup is: the lookup, the value.
    Owner(Box<str>, Box<str>),
}

impl Session {
    /// What the router must ask others before it answers this, if it must.
    pub(super) fn question(&self, meaning: &Meaning) -> Option<Question> {
        match meaning.act() {
            Act::Show(what) if what == admin::IN_DOUBT => Some(Question::InDoubt),
            Act::Locate(name, value) => {
                let meanings = self.worker.meanings.borrow();
                let is_lookup = meanings.rules()?.lookups().contains_key(name.as_str());
                is_lookup.then(|| Question::Owner(name.as_str().into(), value.as_str().into()))
            }
            _ => None,
        }
    }

    /// Whether what is asked for lies in a slot that is on its way to another source.
    pub(super) fn awaits_answer(&self, question: &Question) -> bool {
        match question {
            Question::InDoubt => false,
            Question::Owner(name, value) => self.worker.meanings.borrow().awaits_entry(name, value),
        }
    }

    /// Asks, and answers; `simple`: it came as a simple query.
    pub(super) async fn ask(&mut self, question: Question, simple: bool) -> Result<(), End> {
        let (name, value) = match question {
            Question::InDoubt => return self.ask_in_doubt(simple).await,
            Question::Owner(name, value) => (name, value),
        };
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        match self.owner(&name, &value).await {
            Err(refusal) if simple => self.refuse_query(&refusal),
            Err(refusal) => self.refuse_batch(&refusal),
            Ok(row) => {
                let columns = admin::columns(&Act::Locate(String::new(), String::new()));
                let count = usize::from(row.is_some());
                self.say(|out| {
                    if simple {
                        frame::put_columns(out, columns);
                    }
                    if let Some(row) = row {
                        frame::put_row(out, &row.map(Some));
                    }
                });
                self.say_complete(&format!("SELECT {count}"));
                if simple {
                    self.say_ready();
                }
            }
        }
        Ok(())
    }

    /// The owner's key and place; `None` if nobody owns the value. Asked on a connection of its own, outside of any transaction.
    async fn owner(&mut self, name: &str, value: &str) -> Result<Option<[String; 6]>, Refusal> {
        let _planned = self.worker.plan();
        if self.worker.meanings.borrow().awaits_entry(name, value) {
            // It did not when the question was taken.
            let cause = format!("the entry of the value in lookup {name} is being moved");
            return Err(Refusal::new("HF3228", "40001", cause, "Nothing was done: try again"));
        }
        let home = self.worker.meanings.borrow().entry_home(name, value)?;
        let pool = self.worker.joining_pool(home, &self.identity);
        let mut server = pool.take().await?;
        let sql = format!(
            "SELECT owner FROM holdfast.lookup WHERE name = {} AND value = {}",
            literal(name),
            literal(value)
        );
        let limit = self.worker.limits().commit_timeout;
        let told = within(limit, &mut server, &[sql]).await;
        let source = pool.source.name().to_owned();
        pool.give_back(server);
        let broken = |why: String| {
            let cause = format!("source {source} could not say whose the value is: {why}");
            let remedy = "Check the source, and that the lookups are installed there (holdfast rules lookups)";
            Refusal::new("HF3205", "08001", cause, remedy)
        };
        let reply = told.map_err(broken)?;
        if reply.error.is_some() {
            return Err(broken(reply.words()));
        }
        let Some(owner) = reply.rows.into_iter().next().and_then(|row| row.into_iter().next()?)
        else {
            return Ok(None);
        };
        let meanings = self.worker.meanings.borrow();
        let rules = meanings.rules().ok_or_else(|| broken("there are no rules".to_owned()))?;
        let lookup = rules.lookups().get(name);
        let lookup = lookup.ok_or_else(|| broken("it is no lookup any more".to_owned()))?;
        admin::place(rules, lookup.group().as_str(), &owner).map(Some)
    }

    async fn ask_in_doubt(&mut self, simple: bool) -> Result<(), End> {
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
        let transactions = || {
            let each = found.iter().map(|(source, here)| (source, &here.transactions));
            each.flat_map(|(source, all)| all.iter().map(move |one| (source, one)))
        };
        let gids: BTreeMap<&str, ()> =
            transactions().take(STATES_MAX).map(|(_, one)| (one.gid.as_str(), ())).collect();
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
        for (source, one) in transactions() {
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
        let moves =
            found.iter().flat_map(|(source, here)| here.moves.iter().map(move |one| (source, one)));
        for (source, one) in moves {
            let state = match worker.shared().move_fate(&one.id).await {
                MoveFate::Commit => "move: committed",
                MoveFate::RollBack => "move: thawed",
                MoveFate::Leave => "move: frozen",
                MoveFate::Unknown => "move: unknown",
            };
            let row = [
                one.name.clone(),
                String::new(),
                source.clone(),
                admin::shards_of(&worker, source),
                one.age_ms.to_string(),
                state.to_owned(),
                one.blocked.join(","),
            ];
            frame::put_row(&mut out, &row.map(Some));
        }
        self.say(|words| words.extend_from_slice(&out));
        self.say_complete("SHOW");
        if simple {
            self.say_ready();
        }
        Ok(())
    }
}
