//! What the clients of a run will ask for: transfers of every style, drawn from the seed before anything happens.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_ledger::AccountId;
use holdfast_route::{SLOTS, Topology};
use holdfast_txn::{
    BranchId, BranchSpec, Captures, Command, Gid, Labels, Mode, Op, Options, Order, Participant,
    Recovery, RetryPolicy, TriedBy,
};

use crate::{chance::Chance, settings::Settings};

/// Where every account lives, by the real router's rules.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) accounts: Vec<(AccountId, usize)>,
}

impl Places {
    pub(crate) fn of(settings: &Settings) -> Self {
        let topology = Topology::parse(&rules_of(settings.shards)).expect("the rules fit together");
        let mut accounts = Vec::new();
        let mut on_shard = vec![0_usize; settings.shards];
        // The same number on every shard, so that each style of transfer is possible.
        for number in 0_u32.. {
            if accounts.len() == settings.accounts {
                break;
            }
            let id = format!("acct-{number}");
            let located = topology.locate("account", &id).expect("crc32c takes every key");
            let shard = shard_number(located.shard.as_str());
            if on_shard[shard] < settings.accounts / settings.shards {
                on_shard[shard] += 1;
                accounts.push((AccountId::parse(&id).expect("it is short and plain"), shard));
            }
        }
        Self { accounts }
    }

    pub(crate) fn shard_of(&self, account: &str) -> usize {
        let found = self.accounts.iter().find(|(id, _)| id.as_str() == account);
        found.expect("the workload names accounts that are there").1
    }
}

fn shard_number(name: &str) -> usize {
    let digits = name.strip_prefix("shard-").and_then(|digits| digits.parse().ok());
    digits.expect("the rules name shards so")
}

/// The participant that serves a shard.
pub(crate) fn participant(shard: usize) -> Participant {
    Participant::parse(&format!("deposit@shard-{shard}")).expect("it is short and plain")
}

/// The shard that a participant serves, or beside which its source lies.
pub(crate) fn shard_of_participant(participant: &Participant) -> usize {
    let (_, name) = participant.as_str().split_once('@').expect("it names its shard");
    shard_number(name)
}

/// The rules of the beginning: as many slots on each shard.
pub(crate) fn rules_of(shards: usize) -> String {
    rules(shards, &(0..SLOTS).map(|slot| usize::from(slot) * shards / 1_024).collect::<Vec<_>>())
}

/// Other rules, by which the accounts of this run lie where they did: some slots that hold none of them go elsewhere.
pub(crate) fn other_rules(places: &Places, shards: usize, chance: &mut Chance) -> String {
    let topology = Topology::parse(&rules_of(shards)).expect("the rules fit together");
    let taken: BTreeSet<u16> = places
        .accounts
        .iter()
        .map(|(account, _)| topology.locate("account", account.as_str()).expect("any text"))
        .map(|located| located.slot.number())
        .collect();
    let mut shard_of: Vec<usize> =
        (0..SLOTS).map(|slot| usize::from(slot) * shards / 1_024).collect();
    let first = chance.index(900);
    let other = chance.index(shards);
    for (slot, shard) in (0..SLOTS).zip(&mut shard_of).skip(first).take(100) {
        if !taken.contains(&slot) {
            *shard = other;
        }
    }
    rules(shards, &shard_of)
}

fn rules(shards: usize, shard_of: &[usize]) -> String {
    let mut text = "[group.account]\nkey = \"account\"\nfunction = \"crc32c\"\n".to_owned();
    let mut first = 0;
    for slots in shard_of.chunk_by(|one, next| one == next) {
        let (last, shard) = (first + slots.len() - 1, slots[0]);
        text += &format!(
            "[[group.account.slots]]\nfirst = {first}\nlast = {last}\nshard = \"shard-{shard}\"\n"
        );
        first = last + 1;
    }
    for shard in 0..shards {
        text += &format!("[shard.shard-{shard}]\nsource = \"pg-{shard}\"\n");
        text += &format!("[source.pg-{shard}]\naddress = \"127.0.0.1:{}\"\n", 5_431 + shard);
    }
    text
}

/// One step of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Propose, and go on as soon as it is applied.
    Propose(Command),
    /// Propose, and wait for the decision.
    Await(Command),
    /// Ask what is there.
    Look(Gid),
    /// Call the participant of this branch for its try.
    Try(BranchId),
}

/// One transaction that somebody wants.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) gid: Gid,
    pub(crate) mode: Mode,
    pub(crate) options: Options,
    pub(crate) branches: Vec<BranchSpec>,
    pub(crate) enlisted: bool,
    /// A branch that moves money within one shard.
    pub(crate) one_shard: bool,
    /// What the confirms of its branches carry in place of what was tried: less.
    pub(crate) captures: Captures,
}

impl Plan {
    pub(crate) fn begin(&self) -> Command {
        Command::Begin {
            gid: self.gid.clone(),
            mode: self.mode,
            options: self.options.clone(),
            branches: if self.enlisted { Vec::new() } else { self.branches.clone() },
            enlisted: self.enlisted,
            content: None,
        }
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        if !self.enlisted {
            return vec![Step::Await(self.begin())];
        }
        let mut steps = vec![Step::Propose(self.begin())];
        for (branch, spec) in (1..).map(BranchId).zip(&self.branches) {
            let gid = self.gid.clone();
            steps.push(Step::Propose(Command::AddBranch { gid, branch, spec: spec.clone() }));
            if self.options.tried_by == TriedBy::Caller {
                steps.push(Step::Try(branch));
            }
        }
        steps.push(Step::Await(Command::Submit {
            gid: self.gid.clone(),
            captures: self.captures.clone(),
        }));
        steps
    }

    /// What a participant nests in its first branch: a credit, while the branch is called.
    pub(crate) fn nested(&self, places: &Places, chance: &mut Chance) -> Command {
        let account = chance.pick(&places.accounts).0;
        let branch = BranchId(u32::try_from(self.branches.len() + 1).expect("few branches"));
        let spec = leg(places, &format!("credit {account} {}", chance.between(1, 20)));
        Command::Nest { gid: self.gid.clone(), parent: BranchId(1), branch, spec }
    }

    /// The same gid with other content.
    pub(crate) fn rival(&self) -> Self {
        let mut rival = self.clone();
        rival.options.tags.insert(VARIANT, "rival");
        rival
    }

    /// A transfer of `minor` as a declared TCC transaction without haste.
    pub(crate) fn plain(gid: &str, places: &Places, from: &str, to: &str, minor: u64) -> Self {
        let mut options = Options::of(Mode::Tcc);
        options.timeout_ms = 10_000;
        options.call_timeout_ms = 1_000;
        Self {
            gid: Gid::parse(gid).expect("a short gid"),
            mode: Mode::Tcc,
            options,
            branches: vec![
                leg(places, &format!("debit {from} {minor}")),
                leg(places, &format!("credit {to} {minor}")),
            ],
            enlisted: false,
            one_shard: false,
            captures: Captures::default(),
        }
    }

    /// Money from outside, so that a compensation that lacks it can go through.
    pub(crate) fn top_up(gid: &str, places: &Places, account: &str, minor: u64) -> Self {
        let mut plan = Self::plain(gid, places, account, account, minor);
        plan.mode = Mode::Saga;
        plan.options.order = Order::Sequential;
        plan.branches.remove(0);
        plan
    }
}

/// The tag that tells contents of one gid apart.
pub(crate) const VARIANT: &str = "variant";

fn leg(places: &Places, payload: &str) -> BranchSpec {
    let account = payload.split(' ').nth(1).expect("an instruction names an account");
    BranchSpec {
        participant: participant(places.shard_of(account)),
        payload: Bytes::from(payload.to_owned()),
        after: None,
        pivot: false,
    }
}

/// Draws the plan of transaction `number`.
pub(crate) fn draw(number: usize, places: &Places, chance: &mut Chance) -> Plan {
    let one_shard = chance.permille(150);
    let mode = if one_shard || chance.permille(500) { Mode::Saga } else { Mode::Tcc };
    let options = draw_options(mode, chance);
    let minor = chance.between(1, 150);
    let mut plan = Plan {
        gid: Gid::parse(&format!("tx-{number}")).expect("a short gid"),
        mode,
        options,
        branches: Vec::new(),
        enlisted: chance.permille(300),
        one_shard,
        captures: Captures::default(),
    };
    let from = chance.pick(&places.accounts);
    let others = |same: bool| {
        let other = |(id, shard): &&(AccountId, usize)| *id != from.0 && (*shard == from.1) == same;
        places.accounts.iter().filter(other).cloned().collect::<Vec<_>>()
    };
    if one_shard {
        let to = chance.pick(&others(true)).0;
        plan.branches.push(leg(places, &format!("transfer {} {minor} {to}", from.0)));
        return plan;
    }
    let creditors = chance.pick(&[1, 1, 1, 2, 3]);
    let total = minor * creditors;
    let mut legs = vec![format!("debit {} {total}", from.0)];
    for _ in 0..creditors {
        legs.push(format!("credit {} {minor}", chance.pick(&others(false)).0));
    }
    if chance.permille(200) {
        legs.reverse();
    }
    plan.branches = legs.iter().map(|text| leg(places, text)).collect();
    if mode == Mode::Saga && chance.permille(350) {
        let pivot = chance.index(plan.branches.len());
        plan.branches[pivot].pivot = true;
    }
    if plan.branches.len() > 2 && chance.permille(350) {
        // The last two wait for the first alone, whatever the order says.
        let last = plan.branches.len() - 1;
        plan.branches[last - 1].after = Some(vec![BranchId(1)]);
        plan.branches[last].after = Some(vec![BranchId(1)]);
    }
    if mode == Mode::Tcc && plan.enlisted && chance.permille(400) {
        plan.options.tried_by = TriedBy::Caller;
    }
    if mode == Mode::Tcc && plan.enlisted && chance.permille(500) {
        plan.captures = captures(&plan.branches, creditors, chance.between(1, minor));
    }
    plan
}

/// Of each credit only `minor`, and of the debit what they take together.
fn captures(legs: &[BranchSpec], creditors: u64, minor: u64) -> Captures {
    let captured = |spec: &BranchSpec| match spec.payload.starts_with(b"debit") {
        true => Bytes::from(format!("{CAPTURE} {}", minor * creditors)),
        false => Bytes::from(format!("{CAPTURE} {minor}")),
    };
    let each: BTreeMap<BranchId, Bytes> =
        (1..).map(BranchId).zip(legs).map(|(branch, spec)| (branch, captured(spec))).collect();
    each.into()
}

/// What the payload of a confirm begins with that captures less than was tried; the amount follows, minor units.
pub(crate) const CAPTURE: &str = "capture";

fn draw_options(mode: Mode, chance: &mut Chance) -> Options {
    let mut options = Options::of(mode);
    options.timeout_ms = chance.pick(&[600, 1_500, 4_000, 10_000]);
    options.call_timeout_ms = chance.pick(&[80, 250, 600]);
    options.retry = RetryPolicy {
        first_ms: chance.pick(&[20, 60, 150]),
        ceiling_ms: chance.pick(&[300, 1_000]),
        attempts_max: chance.pick(&[0, 0, 0, 3, 5]),
    };
    if chance.permille(400) {
        options.order = chance.pick(&[Order::Sequential, Order::Concurrent]);
    }
    if mode == Mode::Saga && chance.permille(250) {
        options.recovery = Recovery::Forward;
    }
    options.tags = Labels::from_iter([(VARIANT, "first")]);
    options
}

/// The operations that move the money of a mode.
pub(crate) fn first_op(mode: Mode) -> Op {
    match mode {
        Mode::Tcc => Op::Try,
        Mode::Saga => Op::Action,
        Mode::Xa => Op::Prepare,
    }
}
