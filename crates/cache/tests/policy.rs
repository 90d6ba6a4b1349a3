//! Decisions on views made by hand.

use evanesce_cache::policy::{Action, Candidate, EntryId, GroupId, NextUse, Shortfall, View, choose};
use evanesce_cache::{PerTier, Recover, Tier};

fn candidate(id: u64, tier: Tier, bytes: u64, recover: Recover, next_use: NextUse) -> Candidate {
    let id = EntryId::new(id);
    Candidate {
        id,
        group: None,
        tier,
        bytes,
        disk_bytes: bytes.next_multiple_of(100),
        next_use,
        shared: false,
        recover,
        cost_per_kib: 1,
    }
}

fn device(id: u64, bytes: u64, recover: Recover, ticks: u64) -> Candidate {
    candidate(id, Tier::Device, bytes, recover, NextUse::In(ticks))
}

fn view(device_room: u64, host_room: u64, candidates: &[Candidate]) -> View {
    with_disk(device_room, host_room, 0, candidates)
}

fn with_disk(device_room: u64, host_room: u64, disk_room: u64, candidates: &[Candidate]) -> View {
    let room = PerTier::from_fn(|tier| match tier {
        Tier::Device => device_room,
        Tier::Host => host_room,
        Tier::Disk => disk_room,
    });
    View { room, candidates: candidates.to_vec() }
}

fn need(device_bytes: u64) -> PerTier<u64> {
    PerTier::only(Tier::Device, device_bytes)
}

fn drops(ids: &[u64]) -> Result<Vec<Action>, Shortfall> {
    Ok(ids.iter().map(|id| Action::Drop(EntryId::new(*id))).collect())
}

fn demote(id: u64) -> Action {
    Action::Demote { id: EntryId::new(id), to: Tier::Host }
}

#[test]
fn room_that_is_there_costs_nothing() {
    let view = view(100, 0, &[device(1, 100, Recover::Reload, 1)]);
    assert_eq!(choose(&view, need(100)), drops(&[]));
}

#[test]
fn what_is_never_read_again_goes_before_shared_entries_and_those_before_announced_ones() {
    let unknown =
        |id, last_use| candidate(id, Tier::Device, 64, Recover::Reload, NextUse::Unknown { last_use });
    let shared = |id, last_use| Candidate { shared: true, ..unknown(id, last_use) };
    let all = [
        device(1, 64, Recover::Reload, 9),
        shared(2, 50),
        shared(3, 40),
        unknown(4, 99),
        device(5, 64, Recover::Reload, 8),
    ];
    let order = [4, 3, 2, 1, 5];
    for count in 1..=5 {
        let mut expected = order[..count].to_vec();
        expected.sort_unstable();
        assert_eq!(choose(&view(0, 0, &all), need(64 * count as u64)), drops(&expected));
    }
}

#[test]
fn among_equally_far_entries_the_cheapest_to_bring_back_goes_first() {
    let dear = Candidate { cost_per_kib: 5, ..device(1, 64, Recover::Reload, 3) };
    let large = device(2, 128, Recover::Reload, 3);
    let small = device(3, 64, Recover::Reload, 3);
    assert_eq!(choose(&view(0, 0, &[dear, large, small]), need(64)), drops(&[3]));
    assert_eq!(choose(&view(0, 0, &[dear, large]), need(64)), drops(&[2]));
}

#[test]
fn picks_that_a_larger_one_makes_needless_stay() {
    let all = [
        device(1, 64, Recover::Reload, 30),
        device(2, 128, Recover::Reload, 20),
        device(3, 640, Recover::Reload, 10),
    ];
    assert_eq!(choose(&view(0, 0, &all), need(640)), drops(&[3]));
    assert_eq!(choose(&view(0, 0, &all), need(704)), drops(&[1, 3]));
}

#[test]
fn what_exists_nowhere_else_is_demoted_and_the_host_drops_for_it() {
    let never = device(1, 64, Recover::Never, 30);
    assert_eq!(choose(&view(0, 64, &[never]), need(64)), Ok(vec![demote(1)]));
    let short = Shortfall { tier: Tier::Device, missing_bytes: 64 };
    assert_eq!(choose(&view(0, 0, &[never]), need(64)), Err(short));
    let host = |id, recover| candidate(id, Tier::Host, 64, recover, NextUse::In(id));
    assert_eq!(choose(&view(0, 0, &[never, host(2, Recover::Never)]), need(64)), Err(short));
    let both = [never, host(2, Recover::Recompute), host(3, Recover::Reload)];
    assert_eq!(choose(&view(0, 0, &both), need(64)), Ok(vec![Action::Drop(EntryId::new(3)), demote(1)]));
}

#[test]
fn what_can_be_computed_again_is_demoted_only_for_a_known_read_and_into_free_room() {
    let known = device(1, 64, Recover::Recompute, 30);
    assert_eq!(choose(&view(0, 64, &[known]), need(64)), Ok(vec![demote(1)]));
    assert_eq!(choose(&view(0, 63, &[known]), need(64)), drops(&[1]));
    let unknown = candidate(1, Tier::Device, 64, Recover::Recompute, NextUse::Unknown { last_use: 1 });
    assert_eq!(choose(&view(0, 64, &[unknown]), need(64)), drops(&[1]));
    assert_eq!(choose(&view(0, 64, &[device(1, 64, Recover::Reload, 30)]), need(64)), drops(&[1]));
}

#[test]
fn an_irreplaceable_entry_without_room_below_is_passed_over() {
    let all = [
        device(1, 128, Recover::Never, 30),
        device(2, 64, Recover::Never, 20),
        device(3, 64, Recover::Reload, 10),
    ];
    assert_eq!(choose(&view(0, 64, &all), need(64)), Ok(vec![demote(2)]));
    assert_eq!(choose(&view(0, 0, &all), need(64)), drops(&[3]));
}

#[test]
fn a_group_is_read_when_its_soonest_member_is_and_leaves_whole() {
    let group =
        |id, ticks| Candidate { group: Some(GroupId::new(1)), ..device(id, 64, Recover::Reload, ticks) };
    let all = [group(1, 100), device(2, 64, Recover::Reload, 50), group(3, 10)];
    assert_eq!(choose(&view(0, 0, &all), need(64)), drops(&[2]));
    assert_eq!(choose(&view(0, 0, &all), need(128)), drops(&[1, 3]));
    let strict = Candidate { recover: Recover::Never, ..group(3, 10) };
    assert_eq!(choose(&view(0, 128, &[group(1, 100), strict]), need(64)), Ok(vec![demote(1), demote(3)]));
}

#[test]
fn a_group_in_two_tiers_frees_both_when_it_drops() {
    let group = Some(GroupId::new(1));
    let above = Candidate { group, ..device(1, 64, Recover::Reload, 30) };
    let below = Candidate { group, tier: Tier::Host, ..device(2, 64, Recover::Reload, 30) };
    let never = device(3, 64, Recover::Never, 20);
    // Dropping the group frees the host room into which the irreplaceable entry is demoted.
    let actions = choose(&view(0, 0, &[above, below, never]), need(128));
    assert_eq!(actions, Ok(vec![Action::Drop(EntryId::new(1)), Action::Drop(EntryId::new(2)), demote(3)]));
}

#[test]
fn what_cannot_be_met_chooses_nothing_and_says_how_much_is_missing() {
    let all = [device(1, 64, Recover::Reload, 30)];
    assert_eq!(
        choose(&view(10, 0, &all), need(100)),
        Err(Shortfall { tier: Tier::Device, missing_bytes: 26 })
    );
    let host = PerTier::only(Tier::Host, 100);
    assert_eq!(choose(&view(10, 40, &all), host), Err(Shortfall { tier: Tier::Host, missing_bytes: 60 }));
    assert!(choose(&view(10, 40, &all), need(u64::MAX)).is_err());
}

#[test]
fn what_the_device_sends_down_pushes_what_is_read_later_to_the_disk() {
    let never = device(1, 64, Recover::Never, 30);
    let host = |id, ticks| candidate(id, Tier::Host, 64, Recover::Never, NextUse::In(ticks));
    let below = |id| Action::Demote { id: EntryId::new(id), to: Tier::Disk };
    let all = [never, host(2, 50), host(3, 90)];
    assert_eq!(choose(&with_disk(0, 0, 100, &all), need(64)), Ok(vec![below(3), demote(1)]));
    // A record takes more on disk than in memory: 99 bytes are too few for one.
    let short = Shortfall { tier: Tier::Device, missing_bytes: 64 };
    assert_eq!(choose(&with_disk(0, 0, 99, &all), need(64)), Err(short));
    // What may be dropped on disk makes room there too.
    let old = candidate(4, Tier::Disk, 100, Recover::Recompute, NextUse::In(5));
    let all = [never, host(2, 50), old];
    let expected = Ok(vec![Action::Drop(EntryId::new(4)), below(2), demote(1)]);
    assert_eq!(choose(&with_disk(0, 0, 0, &all), need(64)), expected);
}

#[test]
fn what_can_be_computed_again_sinks_to_disk_only_for_a_known_read_and_into_free_room() {
    let host = |next_use| candidate(1, Tier::Host, 64, Recover::Recompute, next_use);
    let host_need = PerTier::only(Tier::Host, 64);
    let sinks = Ok(vec![Action::Demote { id: EntryId::new(1), to: Tier::Disk }]);
    assert_eq!(choose(&with_disk(0, 0, 100, &[host(NextUse::In(9))]), host_need), sinks);
    assert_eq!(choose(&with_disk(0, 0, 99, &[host(NextUse::In(9))]), host_need), drops(&[1]));
    let unknown = host(NextUse::Unknown { last_use: 3 });
    assert_eq!(choose(&with_disk(0, 0, 100, &[unknown]), host_need), drops(&[1]));
}

#[test]
fn what_the_host_cannot_take_even_in_passing_goes_to_the_disk_at_once() {
    let all = [device(1, 64, Recover::Never, 30), device(2, 64, Recover::Never, 20)];
    let deep = |id| Action::Demote { id: EntryId::new(id), to: Tier::Disk };
    assert_eq!(choose(&with_disk(0, 64, 100, &all), need(128)), Ok(vec![deep(2), demote(1)]));
    assert_eq!(choose(&with_disk(0, 0, 200, &all), need(128)), Ok(vec![deep(1), deep(2)]));
    let short = Shortfall { tier: Tier::Device, missing_bytes: 64 };
    assert_eq!(choose(&with_disk(0, 64, 99, &all), need(128)), Err(short));
}
