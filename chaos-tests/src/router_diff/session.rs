//! A session: a connection to the router beside one to the single database. Both are said the same.

use holdfast_route::{Format, Parameter, RefusalClass, Shape, Template, Values};
use tokio_postgres::Client;

use super::{
    Difference,
    ask::{self, Answer, Failed, differs},
    copy::Copied,
    owner,
    stage::{Running, Stage},
    statement::Drawn,
    turn::{Step, Turn},
    value::Bound,
    world::World,
};

/// Two connections.
pub(super) struct Session<'s> {
    stage: &'s Stage,
    running: &'s Running,
    name: usize,
    router: Client,
    one: Client,
}

/// What came of a turn.
#[derive(Debug)]
pub(super) enum Turned {
    Same,
    /// In words.
    Differs(String),
}

/// What came of one statement.
enum Came {
    Same,
    BothFailed,
    /// The class, and the router's words.
    Refused(String, String),
    Differs(String),
}

impl<'s> Session<'s> {
    pub(super) async fn open(
        stage: &'s Stage,
        running: &'s Running,
        name: usize,
    ) -> anyhow::Result<Self> {
        let (router, one) = (running.connect().await?, stage.connect().await?);
        Ok(Self { stage, running, name, router, one })
    }

    /// Begins again on both sides. The driver takes the next answer for another's where a COPY from the client did not come to its end.
    async fn reconnect(&mut self) -> anyhow::Result<()> {
        *self = Self::open(self.stage, self.running, self.name).await?;
        self.stage.quiet().await
    }

    /// Says everything of a turn, until something differs. `said` is what repeats it.
    pub(super) async fn take(
        &mut self,
        world: &World,
        turn: Turn,
        said: &mut Vec<String>,
        found: &mut Difference,
    ) -> anyhow::Result<Turned> {
        let open = turn.is_transaction();
        for step in turn.steps {
            let came = match step {
                Step::Control(sql) => {
                    said.push(format!("-- session {}\n{sql}", self.name));
                    self.control(&sql).await
                }
                Step::Statement(drawn) => {
                    said.push(format!("-- session {}{}", self.name, drawn.shown()));
                    found.in_transactions += u64::from(open);
                    let came = self.statement(world, &drawn, open, found).await;
                    let ended = !drawn.gives_up() && matches!(came, Came::Same);
                    if matches!(drawn.copied, Some(Copied::In { .. })) && !ended {
                        said.push(format!("-- session {} begins again", self.name));
                        self.reconnect().await?;
                    }
                    came
                }
            };
            if let Came::Differs(how) = came {
                found.differences += 1;
                return Ok(Turned::Differs(how));
            }
        }
        Ok(Turned::Same)
    }

    /// `BEGIN`, `SAVEPOINT`, `SET` and their like: not counted, and never refused.
    async fn control(&self, sql: &str) -> Came {
        let router = ask::simple(&self.router, sql).await;
        let one = ask::simple(&self.one, sql).await;
        match (&router, &one) {
            (Ok(_), Ok(_)) => Came::Same,
            (Err(router), Err(one)) if router.is_like(one) => Came::BothFailed,
            _ => Came::Differs(format!("one says {one:?}, the router {router:?}")),
        }
    }

    async fn statement(
        &self,
        world: &World,
        drawn: &Drawn,
        open: bool,
        found: &mut Difference,
    ) -> Came {
        if let Some(copied) = &drawn.copied {
            let router = ask::copy(&self.router, &drawn.sql, copied).await;
            let one = ask::copy(&self.one, &drawn.sql, copied);
            let came = self.compare(router, drawn, open, one).await;
            return count(found, world, drawn, &[], came);
        }
        if let Some(at_one) = &drawn.at_one {
            let router = ask::simple(&self.router, &drawn.sql).await;
            let router = router.and_then(|answer| owner::key_of(answer, world));
            let came = self.compare(router, drawn, open, ask::simple(&self.one, at_one)).await;
            return count(found, world, drawn, &[], came);
        }
        if drawn.simple {
            let router = ask::simple(&self.router, &drawn.sql).await;
            let came = self.compare(router, drawn, open, ask::simple(&self.one, &drawn.sql)).await;
            return count(found, world, drawn, &[], came);
        }
        let first = &drawn.runs[0];
        let router = ask::prepare(&self.router, &drawn.sql, first).await;
        let router = match router {
            Ok(router) => router,
            Err(failed) => {
                let one = async {
                    ask::prepare(&self.one, &drawn.sql, first).await.map(|_| Answer::default())
                };
                let came = self.compare(Err(failed), drawn, open, one).await;
                return count(found, world, drawn, first, came);
            }
        };
        let one = match ask::prepare(&self.one, &drawn.sql, first).await {
            Ok(one) => one,
            Err(failed) => {
                // The router may take a statement that it knows without asking a server; its error comes when it is executed.
                let answer = ask::execute(&self.router, &router, first).await;
                let came = self.compare(answer, drawn, open, async { Err(failed) }).await;
                return count(found, world, drawn, first, came);
            }
        };
        let types = |of: &tokio_postgres::Statement| -> Vec<u32> {
            of.params().iter().map(tokio_postgres::types::Type::oid).collect()
        };
        if types(&one) != types(&router) {
            let came = Came::Differs(format!(
                "one has parameters {:?}, the router {:?}",
                types(&one),
                types(&router)
            ));
            return count(found, world, drawn, first, came);
        }
        let mut came = Came::Same;
        for (at, run) in drawn.runs.iter().enumerate() {
            found.repeated += u64::from(at > 0);
            let answer = ask::execute(&self.router, &router, run).await;
            let here = self.compare(answer, drawn, open, ask::execute(&self.one, &one, run)).await;
            came = count(found, world, drawn, run, here);
            if matches!(came, Came::Differs(_)) {
                break;
            }
        }
        came
    }

    /// Asks the single database too, unless the router refused; then its transaction, if there is one, must fail as well.
    async fn compare(
        &self,
        router: Result<Answer, Failed>,
        drawn: &Drawn,
        open: bool,
        one: impl Future<Output = Result<Answer, Failed>>,
    ) -> Came {
        if let Err(failed) = &router
            && let Some(code) = failed.refused()
        {
            if open {
                let _failed_as_it_must = self.one.batch_execute("this is no SQL").await;
            }
            return match class_of(code) {
                Some(class) => Came::Refused(class, failed.message.clone()),
                None => Came::Differs(format!("the router says {failed:?}")),
            };
        }
        match (one.await, router) {
            (Ok(one), Ok(router)) => match differs(&one, &router, drawn.ordered) {
                None => Came::Same,
                Some(how) => Came::Differs(how),
            },
            (Err(one), Err(router)) if one.is_like(&router) => Came::BothFailed,
            (one, router) => Came::Differs(format!("one says {one:?}, the router {router:?}")),
        }
    }
}

fn count(found: &mut Difference, world: &World, drawn: &Drawn, run: &[Bound], came: Came) -> Came {
    found.statements += 1;
    let kind = found.by_kind.entry(drawn.kind).or_default();
    kind.0 += 1;
    match &came {
        Came::Same => found.scattered += u64::from(is_scattered(world, drawn, run)),
        Came::BothFailed => found.errors += 1,
        Came::Refused(class, words) => {
            kind.1 += 1;
            found.refused += 1;
            let example = (class.clone(), drawn.kind);
            found
                .refused_examples
                .entry(example)
                .or_insert_with(|| format!("{}\n  {words}", drawn.shown()));
            *found.refused_by_class.entry(class.clone()).or_default() += 1;
        }
        Came::Differs(_) => {}
    }
    came
}

/// The class of a refusal of a statement; none for codes that mean that the router or a server is not well.
fn class_of(code: &str) -> Option<String> {
    let of_mind = RefusalClass::ALL.into_iter().find(|class| class.code() == code);
    match code {
        "HF3210" => Some("several_sources".to_owned()),
        "HF3211" => Some("not_routed".to_owned()),
        _ => of_mind.map(|class| class.name().to_owned()),
    }
}

/// Whether the mind sends it to more than one source. Counted only, never judged by.
fn is_scattered(world: &World, drawn: &Drawn, run: &[Bound]) -> bool {
    let Ok(template) = Template::of(&drawn.sql) else { return false };
    let Ok(shape) = Shape::read(template.text(), &world.rules) else { return false };
    let parameter = |value: &Bound| {
        let oid = if value.declared { value.oid } else { 0 };
        let format = if value.as_text { Format::Text } else { Format::Binary };
        (oid, format, value.bytes.clone())
    };
    let owned: Vec<_> = run.iter().map(parameter).collect();
    let parameters: Vec<Parameter<'_>> = owned
        .iter()
        .map(|(oid, format, value)| Parameter {
            oid: *oid,
            format: *format,
            value: value.as_deref(),
        })
        .collect();
    let values = Values { sql: &drawn.sql, literals: template.literals(), parameters: &parameters };
    shape.plan(&world.rules, &values).is_ok_and(|plan| plan.is_scattered())
}
