//! Random sequences of everything a caller can do, against a reference that keeps one `Vec` of entries and recomputes
//! everything from it. Whom eviction picks is left to the cache (`policy.rs` and `belady.rs` check that); the reference
//! checks that every pick was allowed and needed.

mod reference;
#[path = "../seeded/mod.rs"]
mod seeded;
mod world;

use evanesce_cache::{Fill, Kind, Lifetime, Recover, Tier};
use proptest::prelude::*;

use crate::world::World;

/// One call. Small numbers choose among what exists at that moment, modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put { job: usize, key: usize, spec: Spec, then: Then },
    PutGroup { job: usize, members: Vec<(usize, Spec)>, commit: bool },
    SharedPut { content: usize, spec: Spec, then: Then },
    PutReserved { reservation: usize, key: usize, spec: Spec },
    CommitWriter(usize),
    DropWriter(usize),
    Get { job: usize, key: usize, hold: bool },
    SharedGet { job: usize, content: usize, hold: bool },
    DropLease(usize),
    BeginFlight(usize),
    EndFlight { flight: usize, landed: bool },
    Remove { job: usize, key: usize },
    SharedRemove(usize),
    PruneOld { job: usize, key: usize, keep: u32 },
    Step(usize),
    OpenStage(usize),
    EndStage(usize),
    EndJob(usize),
    Reserve { job: usize, tier: Tier, lines: u64 },
    SplitReservation { reservation: usize, lines: u64 },
    DropReservation(usize),
    Announce { job: usize, key: usize, period: u64, count: u64 },
    Tick { job: usize, now: u64 },
    Sweep(u64),
    Trim,
    Workspace { job: usize, tier: Tier, len_bytes: usize },
    DropWorkspace(usize),
    Demote { job: usize, key: usize },
    SetBudget { tier: Tier, lines: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) tier: Tier,
    pub(crate) lifetime: Lifetime,
    pub(crate) len_bytes: usize,
    pub(crate) recover: Recover,
    pub(crate) fill: Fill,
}

/// What becomes of a writer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Commit,
    CommitAndHold,
    Abandon,
    Keep,
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![3 => Just(Tier::Device), 1 => Just(Tier::Host)]
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        (1..4u32).prop_map(Lifetime::Steps),
        (0..2u32, 0..3u32).prop_map(|(sink, recent)| Lifetime::Window { sink, recent }),
        Just(Lifetime::Stage),
        Just(Lifetime::Job),
        Just(Lifetime::Steps(0)),
        Just(Lifetime::Persistent),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let recover = prop_oneof![Just(Recover::Reload), Just(Recover::Recompute), Just(Recover::Never)];
    let fill = prop_oneof![Just(Fill::Zeros), Just(Fill::Any)];
    (tier(), lifetime(), 0..300usize, recover, fill).prop_map(|(tier, lifetime, len_bytes, recover, fill)| {
        Spec { tier, lifetime, len_bytes, recover, fill }
    })
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![4 => Just(Then::Commit), 2 => Just(Then::CommitAndHold), 1 => Just(Then::Abandon), 1 => Just(Then::Keep)]
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..64usize;
    prop_oneof![
        12 => (n.clone(), n.clone(), spec(), then()).prop_map(|(job, key, spec, then)| Op::Put { job, key, spec, then }),
        4 => (n.clone(), prop::collection::vec((n.clone(), spec()), 0..4), any::<bool>())
            .prop_map(|(job, members, commit)| Op::PutGroup { job, members, commit }),
        3 => (n.clone(), spec(), then()).prop_map(|(content, spec, then)| Op::SharedPut { content, spec, then }),
        2 => (n.clone(), n.clone(), spec())
            .prop_map(|(reservation, key, spec)| Op::PutReserved { reservation, key, spec }),
        2 => n.clone().prop_map(Op::CommitWriter),
        1 => n.clone().prop_map(Op::DropWriter),
        8 => (n.clone(), n.clone(), any::<bool>()).prop_map(|(job, key, hold)| Op::Get { job, key, hold }),
        3 => (n.clone(), n.clone(), any::<bool>()).prop_map(|(job, content, hold)| Op::SharedGet { job, content, hold }),
        6 => n.clone().prop_map(Op::DropLease),
        1 => n.clone().prop_map(Op::BeginFlight),
        2 => (n.clone(), prop::bool::weighted(0.8)).prop_map(|(flight, landed)| Op::EndFlight { flight, landed }),
        2 => (n.clone(), n.clone()).prop_map(|(job, key)| Op::Remove { job, key }),
        1 => n.clone().prop_map(Op::SharedRemove),
        2 => (n.clone(), n.clone(), 0..3u32).prop_map(|(job, key, keep)| Op::PruneOld { job, key, keep }),
        4 => n.clone().prop_map(Op::Step),
        2 => n.clone().prop_map(Op::OpenStage),
        2 => n.clone().prop_map(Op::EndStage),
        1 => n.clone().prop_map(Op::EndJob),
        2 => (n.clone(), tier(), 0..8u64).prop_map(|(job, tier, lines)| Op::Reserve { job, tier, lines }),
        1 => (n.clone(), 0..4u64).prop_map(|(reservation, lines)| Op::SplitReservation { reservation, lines }),
        2 => n.clone().prop_map(Op::DropReservation),
        2 => (n.clone(), n.clone(), 0..5u64, 0..4u64)
            .prop_map(|(job, key, period, count)| Op::Announce { job, key, period, count }),
        1 => (n.clone(), 0..12u64).prop_map(|(job, now)| Op::Tick { job, now }),
        1 => (0..2u64).prop_map(Op::Sweep),
        1 => Just(Op::Trim),
        2 => (n.clone(), tier(), prop_oneof![1 => Just(0), 4 => 0..300usize])
            .prop_map(|(job, tier, len_bytes)| Op::Workspace { job, tier, len_bytes }),
        2 => n.clone().prop_map(Op::DropWorkspace),
        3 => (n.clone(), n.clone()).prop_map(|(job, key)| Op::Demote { job, key }),
        2 => (tier(), prop_oneof![2 => 12..24u64, 1 => 0..12u64])
            .prop_map(|(tier, lines)| Op::SetBudget { tier, lines }),
    ]
}

/// Enough sequences to meet every rule.
fn config() -> ProptestConfig {
    let mut config = seeded::config();
    config.cases = config.cases.max(768);
    config
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Latent, Kind::SelfKv, Kind::TextEmbedding];

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_cache_agrees_with_a_list_of_entries_after_every_call(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        for (at, op) in ops.iter().enumerate() {
            world.apply(op);
            if let Err(what) = world.check() {
                panic!("after call {at}, {op:?}: {what}");
            }
        }
        world.end();
    }
}
