//! Draws what is about values of a lookup: owners that come, change and go, and who owns what.

use rand::Rng as _;

use super::{
    ask::{Answer, Failed},
    statement::Pen,
    world::{OWNER, World},
};

/// Values that occur.
const VALUES: u32 = 40;

impl Pen<'_, '_> {
    /// A value as a literal, or NULL.
    pub(super) fn owned_value(&mut self) -> String {
        let number = self.rng.random_range(0..VALUES);
        match number % 10 {
            0 => "NULL".to_owned(),
            1 => format!("'it''s {number}'"),
            2 => format!("'z\u{fc}r \\{number}'"),
            _ => format!("'+49-{number}'"),
        }
    }

    pub(super) fn owner_insert(&mut self) -> String {
        let table = OWNER.0;
        let one = |pen: &mut Self| {
            let n = pen.rng.random_range(0..30);
            format!("({}, {n}, {})", pen.key(), pen.owned_value())
        };
        let rows: Vec<String> = (0..self.rng.random_range(1..4)).map(|_| one(self)).collect();
        let conflict = self.any(&[
            "",
            "",
            " ON CONFLICT (k, n) DO NOTHING",
            " ON CONFLICT (k, n) DO UPDATE SET p = excluded.p",
            " ON CONFLICT (p) DO NOTHING",
        ]);
        let returning = if self.rng.random_bool(0.3) { " RETURNING n, p" } else { "" };
        format!("INSERT INTO {table} (k, n, p) VALUES {}{conflict}{returning}", rows.join(", "))
    }

    pub(super) fn owner_update(&mut self) -> String {
        let table = OWNER.0;
        let condition = self.about("x", "k", 1);
        let (value, other) = (self.owned_value(), self.owned_value());
        match self.rng.random_range(0..5) {
            // What two owners exchange is taken by none in between.
            0 => format!(
                "UPDATE {table} x SET p = CASE p WHEN {value} THEN {other} ELSE {value} END WHERE p IN ({value}, {other})"
            ),
            1 => format!("UPDATE {table} x SET p = p || 'x', a = 1 WHERE {condition} RETURNING p"),
            2 => format!("UPDATE {table} x SET p = NULL WHERE {condition}"),
            _ => {
                let n = self.rng.random_range(0..30);
                format!("UPDATE {table} x SET p = {value} WHERE {condition} AND x.n = {n}")
            }
        }
    }

    pub(super) fn owner_delete(&mut self) -> String {
        let table = OWNER.0;
        let value = self.owned_value();
        match self.rng.random_bool(0.5) {
            true => format!("DELETE FROM {table} WHERE p = {value} RETURNING n"),
            false => format!("DELETE FROM {table} x WHERE {} AND x.n > 9", self.about("x", "k", 0)),
        }
    }

    pub(super) fn owner_select(&mut self) -> String {
        let (value, other) = (self.owned_value(), self.owned_value());
        match self.rng.random_range(0..3) {
            0 => format!("SELECT x.k, x.p FROM {} x WHERE x.p IN ({value}, {other})", OWNER.0),
            1 => format!("SELECT count(*), max(p) FROM {} x WHERE p <> {value}", OWNER.0),
            _ => format!("SELECT * FROM {} WHERE p = {value}", OWNER.0),
        }
    }

    pub(super) fn owner_locate(&mut self) -> String {
        let (table, lookup) = OWNER;
        self.simple = true;
        let value = loop {
            match self.owned_value() {
                null if null == "NULL" => {}
                value => break value,
            }
        };
        // As the entry has it, whatever the session's settings are.
        self.at_one =
            Some(format!("SELECT to_jsonb(x)->>'k' AS key FROM {table} x WHERE x.p = {value}"));
        format!("SELECT holdfast.locate('{lookup}', {value})")
    }
}

/// Of an owner's place, the key: what the single database knows as well. The place must be the one that the rules say.
pub(super) fn key_of(answer: Answer, world: &World) -> Result<Answer, Failed> {
    let names: Vec<&str> = answer.columns.iter().map(|(name, _)| name.as_str()).collect();
    let place = |name: &str| names.iter().position(|known| *known == name);
    let nonsense = |message: String| Failed { sqlstate: "no answer".to_owned(), message };
    let (Some(key), Some(shard)) = (place("key"), place("shard")) else {
        return Err(nonsense(format!("an answer of {names:?}")));
    };
    for row in &answer.rows {
        let text = |at: usize| row[at].as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let meant = world.rules.locate("g", text(key).trim_end_matches(' '));
        if meant.as_ref().map(|place| place.shard.as_str()).ok() != Some(&*text(shard)) {
            return Err(nonsense(format!("{:?} is said to live on {}", text(key), text(shard))));
        }
    }
    Ok(Answer {
        columns: vec![answer.columns[key].clone()],
        rows: answer.rows.into_iter().map(|mut row| vec![row.swap_remove(key)]).collect(),
        affected: answer.affected,
    })
}
