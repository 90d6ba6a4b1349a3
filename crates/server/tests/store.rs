//! The contract of a job store; whatever implements it must pass all of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::path::Path;

use evanesce_server::clock::UnixMs;
use evanesce_server::id::VideoId;
use evanesce_server::job::{Class, Failure, Job, JobMemory, Order, Quality, Status};
use evanesce_server::store::{
    Abandoned, Cancelled, Direction, Ending, Fenced, Inserted, JobStore, Lease, NewJob, Page, QueueLimits,
    SqliteStore, StoreError,
};

const WIDE: QueueLimits = QueueLimits { total: 1000, per_tenant: 1000 };
const MOMENTS: (UnixMs, UnixMs) = (UnixMs(5_000), UnixMs(9_000));

fn order(seed: u64) -> Order {
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
        seed,
        class: Class::Interactive,
        quality: Quality::Draft,
        deadline_s: Some(1.5),
        device_bytes: u64::from(u32::MAX) + 1,
    }
}

fn new(tenant: &str, seed: u64, key: Option<&str>) -> NewJob {
    NewJob {
        id: VideoId::draw().unwrap(),
        tenant: tenant.to_owned(),
        order: order(seed),
        created: UnixMs(1_000),
        idempotency: key.map(|key| (key.to_owned(), [u8::try_from(seed % 251).unwrap(); 32])),
    }
}

fn lease(worker: &str, until: i64) -> Lease {
    Lease { worker: worker.to_owned(), until: UnixMs(until) }
}

async fn created(store: &dyn JobStore, new: NewJob) -> Job {
    match store.insert(new, WIDE).await.unwrap() {
        Inserted::Created(job) => *job,
        other => panic!("{other:?}"),
    }
}

/// Runs one part of the contract on a store of its own.
fn with_store<F: Future<Output = ()>>(part: impl FnOnce(SqliteStore) -> F) {
    let dir = tempfile::tempdir().unwrap();
    in_runtime(async { part(open(dir.path()).await).await });
}

fn in_runtime(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("jobs.sqlite")).await.unwrap()
}

#[test]
fn what_is_written_is_read_back_by_its_tenant_and_by_nobody_else() {
    with_store(|store| async move {
        let asked = new("a", u64::MAX, None);
        let job = created(&store, asked.clone()).await;
        assert_eq!(
            (&job.id, &job.order, job.status, job.created),
            (&asked.id, &asked.order, Status::Queued, asked.created)
        );
        assert_eq!(store.get("a", &job.id).await.unwrap(), Some(job.clone()));
        assert_eq!(store.get("b", &job.id).await.unwrap(), None);
        assert_eq!(store.cancel("b", &job.id, MOMENTS).await.unwrap(), Cancelled::Unknown);
        assert_eq!(store.delete("b", &job.id).await.unwrap(), None);
        assert_eq!(store.queued().await.unwrap(), [job]);
    });
}

#[test]
fn a_key_gives_its_first_job_again_and_never_serves_another_request() {
    with_store(|store| async move {
        let first = created(&store, new("a", 1, Some("k"))).await;
        let again = store.insert(new("a", 1, Some("k")), WIDE).await.unwrap();
        assert_eq!(again, Inserted::Repeated(Box::new(first.clone())));
        assert_eq!(store.insert(new("a", 2, Some("k")), WIDE).await.unwrap(), Inserted::KeyReused);
        // Keys are a tenant's own, and go with the job.
        created(&store, new("b", 2, Some("k"))).await;
        store.delete("a", &first.id).await.unwrap().unwrap();
        created(&store, new("a", 2, Some("k"))).await;
        assert_eq!(store.queued().await.unwrap().len(), 2);
    });
}

#[test]
fn a_full_queue_takes_nobody_until_a_job_is_over() {
    with_store(|store| async move {
        let limits = QueueLimits { total: 2, per_tenant: 1 };
        let Inserted::Created(job) = store.insert(new("a", 1, None), limits).await.unwrap() else { panic!() };
        let refused = store.insert(new("a", 2, None), limits).await.unwrap();
        assert_eq!(refused, Inserted::Full { waiting: 1, own_limit: true });
        assert!(matches!(store.insert(new("b", 2, None), limits).await.unwrap(), Inserted::Created(_)));
        let refused = store.insert(new("c", 2, None), limits).await.unwrap();
        assert_eq!(refused, Inserted::Full { waiting: 2, own_limit: false });
        store.cancel("a", &job.id, MOMENTS).await.unwrap();
        assert!(matches!(store.insert(new("c", 2, None), limits).await.unwrap(), Inserted::Created(_)));
    });
}

#[test]
fn a_job_is_claimed_once_and_a_fenced_worker_writes_nothing() {
    with_store(|store| async move {
        let job = created(&store, new("a", 1, None)).await;
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
    });
}

#[test]
fn cancelling_and_deleting_fence_whoever_works_on_the_job() {
    with_store(|store| async move {
        let [cancelled, deleted] =
            [created(&store, new("a", 1, None)).await, created(&store, new("a", 2, None)).await];
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
    });
}

#[test]
fn a_job_that_is_started_again_and_again_without_an_end_fails() {
    with_store(|store| async move {
        let job = created(&store, new("a", 1, None)).await;
        for start in 0..3 {
            let claimed = store.claim(&job.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap();
            // Giving it back in good order does not count.
            assert_eq!(store.release(&job.id, claimed.epoch).await.unwrap(), Fenced::No);
            store.claim(&job.id, &lease("w", 100), UnixMs(0)).await.unwrap().unwrap();
            let requeued = store.requeue(Abandoned::All, 3, MOMENTS).await.unwrap();
            assert_eq!(
                (requeued.queued.len(), requeued.failed.len()),
                if start < 2 { (1, 0) } else { (0, 1) }
            );
        }
        assert_eq!(store.get("a", &job.id).await.unwrap().unwrap().failure.unwrap().code, "crashed");
    });
}

#[test]
fn pages_hold_every_job_once_in_both_directions() {
    with_store(|store| async move {
        let mut ids = Vec::new();
        for seed in 0..7 {
            ids.push(created(&store, new("a", seed, None)).await.id);
            created(&store, new("b", seed, None)).await;
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
    });
}

#[test]
fn what_has_expired_is_removed_and_nothing_else() {
    with_store(|store| async move {
        let [over, waits] =
            [created(&store, new("a", 1, None)).await, created(&store, new("a", 2, None)).await];
        store.cancel("a", &over.id, MOMENTS).await.unwrap();
        assert!(store.expire(UnixMs(MOMENTS.1.0 - 1), 10).await.unwrap().is_empty());
        let expired = store.expire(MOMENTS.1, 10).await.unwrap();
        assert_eq!(expired.iter().map(|job| &job.id).collect::<Vec<_>>(), [&over.id]);
        assert!(store.get("a", &waits.id).await.unwrap().is_some());
    });
}

#[test]
fn jobs_are_there_after_opening_again_and_a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    in_runtime(async {
        let store = open(dir.path()).await;
        let job = created(&store, new("a", 1, None)).await;
        // Not closed: what was answered is on disk already.
        let again = open(dir.path()).await;
        assert_eq!(again.get("a", &job.id).await.unwrap(), Some(job));
        store.close().await;
        again.close().await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("jobs.sqlite"));
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 999").execute(&pool).await.unwrap();
        pool.close().await;
        let refused = SqliteStore::open(&dir.path().join("jobs.sqlite")).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooNew { found: 999, .. }), "{refused}");
    });
}

#[test]
fn a_job_that_gets_on_is_never_one_that_never_ends() {
    with_store(|store| async move {
        let job = created(&store, new("a", 1, None)).await;
        for _ in 0..10 {
            let claimed = store.claim(&job.id, &lease("w", 1), UnixMs(2_000)).await.unwrap().unwrap();
            assert_eq!(store.progressed(&job.id, claimed.epoch).await.unwrap(), Fenced::No);
            assert_eq!(store.progressed(&job.id, claimed.epoch - 1).await.unwrap(), Fenced::Yes);
            let requeued = store.requeue(Abandoned::All, 3, MOMENTS).await.unwrap();
            assert_eq!((requeued.queued.len(), requeued.failed.len()), (1, 0));
        }
    });
}

#[test]
fn what_gave_way_is_written_by_whoever_has_the_job_and_by_nobody_else() {
    with_store(|store| async move {
        let job = created(&store, new("a", 1, None)).await;
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
    });
}
