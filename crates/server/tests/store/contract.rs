//! The contract of a job store; whatever implements it must pass all of it, each part on a store of its own that is empty.

use evanesce_engine::page_codecs::{KvOverrides, PageStorage};
use evanesce_engine::{HeldWeights, KvCodec};
use evanesce_server::clock::UnixMs;
use evanesce_server::id::VideoId;
use evanesce_server::job::{Class, Failure, Job, JobMemory, Order, OrderPages, Quality, Status, Webhook};
use evanesce_server::store::{
    Abandoned, Attempt, Cancelled, Direction, Ending, Fenced, Inserted, JobStore, Lease, NewJob, Page,
    QueueLimits,
};

const WIDE: QueueLimits = QueueLimits { total: 1000, per_tenant: 1000 };
pub(crate) const MOMENTS: (UnixMs, UnixMs) = (UnixMs(5_000), UnixMs(9_000));

fn storage() -> PageStorage {
    let mut overrides = KvOverrides::default();
    overrides.sink = Some(KvCodec::default());
    PageStorage { codec: KvCodec::from_name("k8v4").unwrap(), overrides }
}

pub(crate) fn order(seed: u64) -> Order {
    Order {
        model: "shapes".to_owned(),
        prompt: "a \"quoted\" ball \u{1f534}".to_owned(),
        negative_prompt: String::new(),
        width: 64,
        height: 32,
        frames: 5,
        fps: 16,
        seconds: "0.31".to_owned(),
        steps: 2,
        guidance_high: 1.1,
        guidance_low: 0.1 + 0.2,
        boundary: 0.875,
        shift: 3.0,
        pages: Some(OrderPages { storage: storage(), window: 6, sink: 3 }),
        weights: Some(HeldWeights::Bf16),
        seed,
        class: Class::Interactive,
        quality: Quality::Draft,
        deadline_s: Some(1.5),
        device_bytes: u64::from(u32::MAX) + 1,
    }
}

pub(crate) fn new(tenant: &str, seed: u64, key: Option<&str>) -> NewJob {
    NewJob {
        id: VideoId::draw().unwrap(),
        tenant: tenant.to_owned(),
        order: order(seed),
        created: UnixMs(1_000),
        idempotency: key.map(|key| (key.to_owned(), [u8::try_from(seed % 251).unwrap(); 32])),
        webhook: None,
    }
}

fn lease(worker: &str, until: i64) -> Lease {
    Lease { worker: worker.to_owned(), until: UnixMs(until) }
}

pub(crate) async fn created(store: &dyn JobStore, new: NewJob) -> Job {
    match store.insert(new, WIDE).await.unwrap() {
        Inserted::Created(job) => *job,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn what_is_written_is_read_back_by_its_tenant_and_by_nobody_else(store: &dyn JobStore) {
    let asked = new("a", u64::MAX, None);
    let job = created(store, asked.clone()).await;
    assert_eq!(
        (&job.id, &job.order, job.status, job.created),
        (&asked.id, &asked.order, Status::Queued, asked.created)
    );
    assert_eq!(store.get("a", &job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(store.get("b", &job.id).await.unwrap(), None);
    assert_eq!(store.cancel("b", &job.id, MOMENTS).await.unwrap(), Cancelled::Unknown);
    assert_eq!(store.delete("b", &job.id).await.unwrap(), None);
    assert_eq!(store.queued().await.unwrap(), [job]);
}

pub(crate) async fn a_key_gives_its_first_job_again_and_never_serves_another_request(store: &dyn JobStore) {
    let first = created(store, new("a", 1, Some("k"))).await;
    let again = store.insert(new("a", 1, Some("k")), WIDE).await.unwrap();
    assert_eq!(again, Inserted::Repeated(Box::new(first.clone())));
    assert_eq!(store.insert(new("a", 2, Some("k")), WIDE).await.unwrap(), Inserted::KeyReused);
    // Keys are a tenant's own, and go with the job.
    created(store, new("b", 2, Some("k"))).await;
    store.delete("a", &first.id).await.unwrap().unwrap();
    created(store, new("a", 2, Some("k"))).await;
    assert_eq!(store.queued().await.unwrap().len(), 2);
}

pub(crate) async fn a_key_is_known_as_long_as_its_job_is_there(store: &dyn JobStore) {
    let (same, other) = ([1; 32], [2; 32]);
    assert_eq!(store.repeated("a", "k", &same).await.unwrap(), None);
    let first = created(store, new("a", 1, Some("k"))).await;
    let again = store.repeated("a", "k", &same).await.unwrap();
    assert_eq!(again, Some(Inserted::Repeated(Box::new(first.clone()))));
    assert_eq!(store.repeated("a", "k", &other).await.unwrap(), Some(Inserted::KeyReused));
    for (tenant, key) in [("b", "k"), ("a", "K"), ("a", "")] {
        assert_eq!(store.repeated(tenant, key, &same).await.unwrap(), None, "{key} of {tenant}");
    }
    // The job is given as it is by now.
    let Cancelled::Now(over) = store.cancel("a", &first.id, MOMENTS).await.unwrap() else { panic!() };
    assert_eq!(store.repeated("a", "k", &same).await.unwrap(), Some(Inserted::Repeated(over)));
    assert_eq!(store.expire(MOMENTS.1, 10).await.unwrap().len(), 1);
    assert_eq!(store.repeated("a", "k", &same).await.unwrap(), None);
    created(store, new("a", 2, Some("k"))).await;
    assert_eq!(store.repeated("a", "k", &same).await.unwrap(), Some(Inserted::KeyReused));
}

pub(crate) async fn a_full_queue_takes_nobody_until_a_job_is_over(store: &dyn JobStore) {
    let limits = QueueLimits { total: 2, per_tenant: 1 };
    let Inserted::Created(job) = store.insert(new("a", 1, None), limits).await.unwrap() else { panic!() };
    let refused = store.insert(new("a", 2, None), limits).await.unwrap();
    assert_eq!(refused, Inserted::Full { waiting: 1, own_limit: true });
    assert!(matches!(store.insert(new("b", 2, None), limits).await.unwrap(), Inserted::Created(_)));
    let refused = store.insert(new("c", 2, None), limits).await.unwrap();
    assert_eq!(refused, Inserted::Full { waiting: 2, own_limit: false });
    store.cancel("a", &job.id, MOMENTS).await.unwrap();
    assert!(matches!(store.insert(new("c", 2, None), limits).await.unwrap(), Inserted::Created(_)));
}

pub(crate) async fn a_job_is_claimed_once_and_a_fenced_worker_writes_nothing(store: &dyn JobStore) {
    let job = created(store, new("a", 1, None)).await;
    let old = store.claim(&job.id, &lease("old", 100), UnixMs(50)).await.unwrap().unwrap();
    assert_eq!((old.status, old.started), (Status::InProgress, Some(UnixMs(50))));
    assert_eq!(store.claim(&job.id, &lease("new", 100), UnixMs(50)).await.unwrap(), None);
    // A lease that is renewed is not given up; one that has ended is.
    assert_eq!(store.renew(&lease("old", 200)).await.unwrap(), 1);
    assert!(store.requeue(Abandoned::EndedBy(UnixMs(150)), 9, MOMENTS).await.unwrap().queued.is_empty());
    assert_eq!(store.requeue(Abandoned::EndedBy(UnixMs(200)), 9, MOMENTS).await.unwrap().queued.len(), 1);
    let new = store.claim(&job.id, &lease("new", 300), UnixMs(210)).await.unwrap().unwrap();
    assert!(new.epoch > old.epoch);
    let completed = Ending::Completed(JobMemory::default());
    assert_eq!(store.finish(&job.id, old.epoch, &completed, MOMENTS).await.unwrap(), Fenced::Yes);
    assert_eq!(store.release(&job.id, old.epoch).await.unwrap(), Fenced::Yes);
    assert!(!store.has_video(&job.id).await.unwrap());
    assert_eq!(store.finish(&job.id, new.epoch, &completed, MOMENTS).await.unwrap(), Fenced::No);
    assert!(store.has_video(&job.id).await.unwrap());
    let done = store.get("a", &job.id).await.unwrap().unwrap();
    assert_eq!(
        (done.status, done.ended, done.expires),
        (Status::Completed, Some(MOMENTS.0), Some(MOMENTS.1))
    );
    assert_eq!(done.memory, Some(JobMemory::default()));
    // It ended once: a second acknowledgement changes nothing.
    let failed = Ending::Failed(Failure::cancelled());
    assert_eq!(store.finish(&job.id, new.epoch, &failed, MOMENTS).await.unwrap(), Fenced::Yes);
}

pub(crate) async fn cancelling_and_deleting_fence_whoever_works_on_the_job(store: &dyn JobStore) {
    let [cancelled, deleted] =
        [created(store, new("a", 1, None)).await, created(store, new("a", 2, None)).await];
    let mut epochs = Vec::new();
    for job in [&cancelled, &deleted] {
        epochs.push(store.claim(&job.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap().epoch);
    }
    let Cancelled::Now(over) = store.cancel("a", &cancelled.id, MOMENTS).await.unwrap() else { panic!() };
    assert_eq!((over.status, over.failure.unwrap().code.as_str()), (Status::Failed, "cancelled"));
    assert!(matches!(store.cancel("a", &cancelled.id, MOMENTS).await.unwrap(), Cancelled::Before(_)));
    assert_eq!(store.delete("a", &deleted.id).await.unwrap().unwrap().status, Status::InProgress);
    for (job, epoch) in [&cancelled, &deleted].into_iter().zip(epochs) {
        let completed = Ending::Completed(JobMemory::default());
        assert_eq!(store.finish(&job.id, epoch, &completed, MOMENTS).await.unwrap(), Fenced::Yes);
    }
    assert_eq!(store.get("a", &deleted.id).await.unwrap(), None);
}

pub(crate) async fn a_job_that_is_started_again_and_again_without_an_end_fails(store: &dyn JobStore) {
    let job = created(store, new("a", 1, None)).await;
    for start in 0..3 {
        let claimed = store.claim(&job.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap();
        // Giving it back in good order does not count.
        assert_eq!(store.release(&job.id, claimed.epoch).await.unwrap(), Fenced::No);
        store.claim(&job.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap();
        let requeued = store.requeue(Abandoned::All, 3, MOMENTS).await.unwrap();
        assert_eq!((requeued.queued.len(), requeued.failed.len()), if start < 2 { (1, 0) } else { (0, 1) });
    }
    assert_eq!(store.get("a", &job.id).await.unwrap().unwrap().failure.unwrap().code, "crashed");
}

pub(crate) async fn a_job_that_gets_on_is_never_one_that_never_ends(store: &dyn JobStore) {
    let job = created(store, new("a", 1, None)).await;
    for _ in 0..10 {
        let claimed = store.claim(&job.id, &lease("w", 1), UnixMs(2_000)).await.unwrap().unwrap();
        assert_eq!(store.progressed(&job.id, claimed.epoch).await.unwrap(), Fenced::No);
        assert_eq!(store.progressed(&job.id, claimed.epoch - 1).await.unwrap(), Fenced::Yes);
        let requeued = store.requeue(Abandoned::All, 3, MOMENTS).await.unwrap();
        assert_eq!((requeued.queued.len(), requeued.failed.len()), (1, 0));
    }
}

pub(crate) async fn what_gave_way_is_written_by_whoever_has_the_job_and_by_nobody_else(store: &dyn JobStore) {
    let job = created(store, new("a", 1, None)).await;
    assert_eq!(job.degradations, [""; 0]);
    let claimed = store.claim(&job.id, &lease("w", 1), UnixMs(2_000)).await.unwrap().unwrap();
    let smaller = Order { width: 48, ..claimed.order.clone() };
    let gave_way = ["parked".to_owned(), "smaller_size".to_owned()];
    assert_eq!(store.amend(&job.id, claimed.epoch, &smaller, &gave_way).await.unwrap(), Fenced::No);
    assert_eq!(store.amend(&job.id, claimed.epoch + 1, &job.order, &[]).await.unwrap(), Fenced::Yes);
    let read = store.get("a", &job.id).await.unwrap().unwrap();
    assert_eq!((read.order.width, &read.degradations[..]), (48, &gave_way[..]));
    assert_eq!(store.release(&job.id, claimed.epoch).await.unwrap(), Fenced::No);
    assert_eq!(store.queued().await.unwrap()[0].degradations, gave_way);
}

pub(crate) async fn pages_hold_every_job_once_in_both_directions(store: &dyn JobStore) {
    let mut ids = Vec::new();
    for seed in 0..7 {
        ids.push(created(store, new("a", seed, None)).await.id);
        created(store, new("b", seed, None)).await;
    }
    for direction in [Direction::Ascending, Direction::Descending] {
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = Page { after, limit: 3, direction };
            let listing = store.list("a", &page).await.unwrap().unwrap();
            listed.extend(listing.jobs.into_iter().map(|job| job.id));
            after = listed.last().cloned();
            if !listing.has_more {
                break;
            }
        }
        if direction == Direction::Descending {
            listed.reverse();
        }
        assert_eq!(listed, ids);
    }
    let empty = Page { after: None, limit: 0, direction: Direction::Ascending };
    let listing = store.list("a", &empty).await.unwrap().unwrap();
    assert!(listing.jobs.is_empty() && listing.has_more);
    let foreign = Page { after: Some(ids[0].clone()), limit: 3, direction: Direction::Ascending };
    assert_eq!(store.list("b", &foreign).await.unwrap(), None);
}

pub(crate) async fn what_has_expired_is_removed_and_nothing_else(store: &dyn JobStore) {
    let [over, waits] = [created(store, new("a", 1, None)).await, created(store, new("a", 2, None)).await];
    store.cancel("a", &over.id, MOMENTS).await.unwrap();
    assert!(store.expire(UnixMs(MOMENTS.1.0 - 1), 10).await.unwrap().is_empty());
    let expired = store.expire(MOMENTS.1, 10).await.unwrap();
    assert_eq!(expired.iter().map(|job| &job.id).collect::<Vec<_>>(), [&over.id]);
    assert!(store.get("a", &waits.id).await.unwrap().is_some());
}

pub(crate) async fn a_webhook_is_due_when_its_job_has_ended_until_it_arrives_or_is_given_up(
    store: &dyn JobStore,
) {
    let asking = |seed| NewJob {
        webhook: Some(Webhook::new(format!("http://example.org/{seed}"), format!("evt_{seed}"))),
        ..new("a", seed, None)
    };
    let [first, second] = [created(store, asking(1)).await, created(store, asking(2)).await];
    created(store, new("a", 3, None)).await;
    assert_eq!(first.webhook, Some(Webhook::new("http://example.org/1".to_owned(), "evt_1".to_owned())));
    let due = async |now: i64, limit| -> Vec<VideoId> {
        store.webhooks_due(UnixMs(now), None, limit).await.unwrap().into_iter().map(|job| job.id).collect()
    };
    // Nothing is due before the end, however it comes.
    assert_eq!(due(i64::MAX, 9).await, vec![]);
    let claimed = store.claim(&first.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap();
    let completed = Ending::Completed(JobMemory::default());
    assert_eq!(store.finish(&first.id, claimed.epoch, &completed, MOMENTS).await.unwrap(), Fenced::No);
    assert_eq!(due(1, 9).await, std::slice::from_ref(&first.id));
    store.cancel("a", &second.id, MOMENTS).await.unwrap();
    assert_eq!((due(1, 9).await.len(), due(1, 1).await.len()), (2, 1));
    let again = Attempt { said: "answered 500".to_owned(), delivered: None, due: Some(UnixMs(700)) };
    store.note_webhook(&first.id, &again).await.unwrap();
    store.note_webhook(&second.id, &Attempt { due: Some(UnixMs(600)), ..again.clone() }).await.unwrap();
    assert_eq!(due(599, 9).await, vec![]);
    assert_eq!(due(700, 9).await, [second.id.clone(), first.id.clone()]);
    // Page by page.
    let behind = Some((UnixMs(600), second.seq));
    let page = store.webhooks_due(UnixMs(700), behind, 9).await.unwrap();
    assert_eq!(page.iter().map(|job| &job.id).collect::<Vec<_>>(), [&first.id]);
    let behind = Some((UnixMs(700), first.seq));
    assert!(store.webhooks_due(UnixMs(700), behind, 9).await.unwrap().is_empty());
    let arrived = Attempt { said: "answered 200".to_owned(), delivered: Some(UnixMs(650)), due: None };
    store.note_webhook(&second.id, &arrived).await.unwrap();
    store.note_webhook(&first.id, &Attempt { due: None, ..again }).await.unwrap();
    assert_eq!(due(i64::MAX, 9).await, vec![]);
    let shown = store.get("a", &second.id).await.unwrap().unwrap().webhook.unwrap();
    assert_eq!(
        (shown.attempts, shown.delivered, shown.said.as_deref()),
        (2, Some(UnixMs(650)), Some("answered 200"))
    );
    // A job that is gone has nobody to tell.
    store.delete("a", &second.id).await.unwrap().unwrap();
    store.note_webhook(&second.id, &arrived).await.unwrap();
}

/// Every part of the contract as a test; `$with` runs a part on a fresh store.
macro_rules! contract {
    ($with:path) => {
        $crate::contract::contract! { @each $with,
            what_is_written_is_read_back_by_its_tenant_and_by_nobody_else,
            a_key_gives_its_first_job_again_and_never_serves_another_request,
            a_key_is_known_as_long_as_its_job_is_there,
            a_full_queue_takes_nobody_until_a_job_is_over,
            a_job_is_claimed_once_and_a_fenced_worker_writes_nothing,
            cancelling_and_deleting_fence_whoever_works_on_the_job,
            a_job_that_is_started_again_and_again_without_an_end_fails,
            a_job_that_gets_on_is_never_one_that_never_ends,
            what_gave_way_is_written_by_whoever_has_the_job_and_by_nobody_else,
            pages_hold_every_job_once_in_both_directions,
            what_has_expired_is_removed_and_nothing_else,
            a_webhook_is_due_when_its_job_has_ended_until_it_arrives_or_is_given_up
        }
    };
    (@each $with:path, $($part:ident),+) => {
        $(
            #[test]
            fn $part() {
                $with(async |store| $crate::contract::$part(store).await);
            }
        )+
    };
}
pub(crate) use contract;
