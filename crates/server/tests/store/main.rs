//! Job stores: the one contract, and what is each one's own.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod contract;

use std::path::Path;

use evanesce_server::id::VideoId;
use evanesce_server::store::{JobStore, SqliteStore, StoreError};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Row, SqlitePool};

use contract::{created, new};

/// What a program wrote that knew the first schema only.
const FIRST_SCHEMA: &str = include_str!("../goldens/jobs-schema-1.sql");

fn in_runtime(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(&dir.join("jobs.sqlite")).await.unwrap()
}

async fn raw(dir: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(dir.join("jobs.sqlite")).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

mod sqlite {
    use super::{in_runtime, open};
    use evanesce_server::store::JobStore;

    fn with_store(part: impl AsyncFnOnce(&dyn JobStore)) {
        let dir = tempfile::tempdir().unwrap();
        in_runtime(async { part(&open(dir.path()).await).await });
    }

    super::contract::contract!(with_store);
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
        let pool = raw(dir.path()).await;
        sqlx::raw_sql("PRAGMA user_version = 999").execute(&pool).await.unwrap();
        pool.close().await;
        let refused = SqliteStore::open(&dir.path().join("jobs.sqlite")).await.unwrap_err();
        assert!(matches!(refused, StoreError::TooNew { found: 999, .. }), "{refused}");
    });
}

#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date_with_its_jobs() {
    let dir = tempfile::tempdir().unwrap();
    in_runtime(async {
        let pool = raw(dir.path()).await;
        sqlx::raw_sql(FIRST_SCHEMA).execute(&pool).await.unwrap();
        pool.close().await;
        let store = open(dir.path()).await;
        let id = VideoId::parse("video_000102030405060708090a0b0c0d0e0f").unwrap();
        let old = store.get("local", &id).await.unwrap().unwrap();
        assert_eq!((old.order.prompt.as_str(), old.webhook), ("a red ball", None));
        created(&store, new("local", 1, None)).await;
        assert_eq!(store.queued().await.unwrap().len(), 2);
        store.close().await;
        let pool = raw(dir.path()).await;
        let version: i64 = sqlx::query("PRAGMA user_version").fetch_one(&pool).await.unwrap().get(0);
        assert!(version > 1);
        pool.close().await;
    });
}
