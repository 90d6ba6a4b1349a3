//! The job store of one node: an SQLite database with a write-ahead log, synced at every commit.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Transaction};

use super::rows::{COLUMNS, job, jobs};
use super::schema::migrate;
use super::{
    Abandoned, Answer, Attempt, Cancelled, Direction, Ending, Fenced, Inserted, JobStore, Lease, Listing,
    NewJob, Page, QueueLimits, Requeued, StoreError,
};
use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::{Failure, Job, Order};

/// Connections that read; one more writes, so that writers wait in line instead of failing.
const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Jobs in one SQLite database.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl SqliteStore {
    /// Opens the database in `path`, or makes it, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be opened, is no database, or is newer than this program.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // Every commit is on disk before it is reported: a job survives a power cut, too.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        migrate(&mut *writer.acquire().await?).await?;
        let readers =
            SqlitePoolOptions::new().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { readers, writer })
    }

    /// Writes everything out and closes the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    async fn insert_job(&self, new: NewJob, limits: QueueLimits) -> Result<Inserted, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some((key, digest)) = &new.idempotency
            && let Some(before) = repeated(&mut transaction, &new.tenant, key, digest).await?
        {
            return Ok(before);
        }
        if let Some(full) = full(&mut transaction, &new.tenant, limits).await? {
            return Ok(full);
        }
        let request = serde_json::to_string(&new.order).map_err(|error| StoreError::Unreadable {
            what: format!("job {}", new.id),
            reason: error.to_string(),
        })?;
        let (key, digest) = new.idempotency.unzip();
        let sql = format!(
            "INSERT INTO jobs (id, tenant, request, status, created_ms, idempotency_key, idempotency_digest,
                 webhook_url, webhook_id, webhook_due_ms)
             VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?) RETURNING {COLUMNS}"
        );
        let query = sqlx::query(&sql).bind(new.id.as_str()).bind(&new.tenant).bind(request);
        let query = query.bind(new.created.0).bind(key).bind(digest.map(Vec::from));
        let webhook = new.webhook.as_ref();
        let due = webhook.and_then(|webhook| webhook.due).map(|at| at.0);
        let query =
            query.bind(webhook.map(|webhook| &webhook.url)).bind(webhook.map(|webhook| &webhook.message_id));
        let query = query.bind(due);
        let created = job(&query.fetch_one(&mut *transaction).await?)?;
        transaction.commit().await?;
        Ok(Inserted::Created(Box::new(created)))
    }

    async fn list_jobs(&self, tenant: &str, page: &Page) -> Result<Option<Listing>, StoreError> {
        let (beyond, order) = match page.direction {
            Direction::Ascending => (">", "ASC"),
            Direction::Descending => ("<", "DESC"),
        };
        let from = match &page.after {
            None => None,
            Some(after) => {
                let query = sqlx::query("SELECT seq FROM jobs WHERE tenant = ? AND id = ?");
                let found = query.bind(tenant).bind(after.as_str()).fetch_optional(&self.readers).await?;
                let Some(row) = found else { return Ok(None) };
                Some(row.try_get::<i64, _>(0)?)
            }
        };
        let after = if from.is_some() { format!("AND seq {beyond} ?") } else { String::new() };
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE tenant = ? {after} ORDER BY seq {order} LIMIT ?");
        let mut query = sqlx::query(&sql).bind(tenant);
        if let Some(seq) = from {
            query = query.bind(seq);
        }
        let rows = query.bind(i64::from(page.limit) + 1).fetch_all(&self.readers).await?;
        let has_more = rows.len() > page.limit as usize;
        let mut listed = jobs(&rows)?;
        listed.truncate(page.limit as usize);
        Ok(Some(Listing { jobs: listed, has_more }))
    }

    /// Runs one statement with a job as its result.
    async fn change(&self, sql: &str, values: Vec<Value<'_>>) -> Result<Option<Job>, StoreError> {
        let mut transaction = self.begin().await?;
        let changed = change(&mut transaction, sql, values).await?;
        transaction.commit().await?;
        Ok(changed)
    }

    async fn cancel_job(
        &self,
        tenant: &str,
        id: &VideoId,
        (now, expires): (UnixMs, UnixMs),
    ) -> Result<Cancelled, StoreError> {
        let mut transaction = self.begin().await?;
        let failure = Failure::cancelled();
        // The epoch goes up, so whoever works on it can no longer write.
        let sql = format!(
            "UPDATE jobs SET status = 'failed', epoch = epoch + 1, worker = NULL, lease_until_ms = NULL,
                 ended_ms = ?, expires_ms = ?, failure_code = ?, failure_message = ?
             WHERE tenant = ? AND id = ? AND status IN ('queued', 'in_progress') RETURNING {COLUMNS}"
        );
        let values = vec![
            Value::Integer(now.0),
            Value::Integer(expires.0),
            Value::Text(&failure.code),
            Value::Text(&failure.message),
            Value::Text(tenant),
            Value::Text(id.as_str()),
        ];
        let ended = change(&mut transaction, &sql, values).await?;
        let answer = match ended {
            Some(job) => Cancelled::Now(Box::new(job)),
            None => match find(&mut transaction, tenant, id).await? {
                Some(job) => Cancelled::Before(Box::new(job)),
                None => Cancelled::Unknown,
            },
        };
        transaction.commit().await?;
        Ok(answer)
    }

    async fn requeue_jobs(
        &self,
        abandoned: Abandoned,
        starts_max: i64,
        (now, expires): (UnixMs, UnixMs),
    ) -> Result<Requeued, StoreError> {
        let until = match abandoned {
            Abandoned::All => i64::MAX,
            Abandoned::EndedBy(moment) => moment.0,
        };
        let mut transaction = self.begin().await?;
        let failure = Failure::new(
            "crashed",
            format!("the service ended {starts_max} times while it worked on this job"),
        );
        let sql = format!(
            "UPDATE jobs SET status = 'failed', epoch = epoch + 1, worker = NULL, lease_until_ms = NULL,
                 ended_ms = ?, expires_ms = ?, failure_code = ?, failure_message = ?
             WHERE status = 'in_progress' AND lease_until_ms <= ? AND starts >= ? RETURNING {COLUMNS}"
        );
        let query = sqlx::query(&sql).bind(now.0).bind(expires.0).bind(&failure.code).bind(&failure.message);
        let failed = query.bind(until).bind(starts_max).fetch_all(&mut *transaction).await?;
        let sql = format!(
            "UPDATE jobs SET status = 'queued', epoch = epoch + 1, worker = NULL, lease_until_ms = NULL
             WHERE status = 'in_progress' AND lease_until_ms <= ? RETURNING {COLUMNS}"
        );
        let queued = sqlx::query(&sql).bind(until).fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Requeued { queued: jobs(&queued)?, failed: jobs(&failed)? })
    }
}

/// A value of a statement.
enum Value<'a> {
    Text(&'a str),
    Integer(i64),
}

async fn change(
    connection: &mut SqliteConnection,
    sql: &str,
    values: Vec<Value<'_>>,
) -> Result<Option<Job>, StoreError> {
    let bound = values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Text(text) => query.bind(text.to_owned()),
        Value::Integer(number) => query.bind(number),
    });
    bound.fetch_optional(connection).await?.as_ref().map(job).transpose()
}

async fn find(
    connection: &mut SqliteConnection,
    tenant: &str,
    id: &VideoId,
) -> Result<Option<Job>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE tenant = ? AND id = ?");
    change(connection, &sql, vec![Value::Text(tenant), Value::Text(id.as_str())]).await
}

/// What a request gets whose key has been used before.
async fn repeated(
    connection: &mut SqliteConnection,
    tenant: &str,
    key: &str,
    digest: &[u8; 32],
) -> Result<Option<Inserted>, StoreError> {
    let sql =
        format!("SELECT {COLUMNS}, idempotency_digest FROM jobs WHERE tenant = ? AND idempotency_key = ?");
    let found = sqlx::query(&sql).bind(tenant).bind(key).fetch_optional(connection).await?;
    let Some(row) = found else { return Ok(None) };
    let before: Vec<u8> = row.try_get("idempotency_digest")?;
    Ok(Some(if before == digest { Inserted::Repeated(Box::new(job(&row)?)) } else { Inserted::KeyReused }))
}

/// Whether the queue has no room for one more job of this tenant.
async fn full(
    connection: &mut SqliteConnection,
    tenant: &str,
    limits: QueueLimits,
) -> Result<Option<Inserted>, StoreError> {
    let sql = "SELECT count(*), count(*) FILTER (WHERE tenant = ?) FROM jobs WHERE status IN ('queued', 'in_progress')";
    let row = sqlx::query(sql).bind(tenant).fetch_one(connection).await?;
    let (total, own): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if own >= limits.per_tenant {
        Some(Inserted::Full { waiting: own, own_limit: true })
    } else if total >= limits.total {
        Some(Inserted::Full { waiting: total, own_limit: false })
    } else {
        None
    })
}

impl JobStore for SqliteStore {
    fn insert(&self, new: NewJob, limits: QueueLimits) -> Answer<'_, Inserted> {
        Box::pin(self.insert_job(new, limits))
    }

    fn repeated<'a>(
        &'a self,
        tenant: &'a str,
        key: &'a str,
        digest: &'a [u8; 32],
    ) -> Answer<'a, Option<Inserted>> {
        Box::pin(async move { repeated(&mut *self.readers.acquire().await?, tenant, key, digest).await })
    }

    fn get<'a>(&'a self, tenant: &'a str, id: &'a VideoId) -> Answer<'a, Option<Job>> {
        Box::pin(async move { find(&mut *self.readers.acquire().await?, tenant, id).await })
    }

    fn list<'a>(&'a self, tenant: &'a str, page: &'a Page) -> Answer<'a, Option<Listing>> {
        Box::pin(self.list_jobs(tenant, page))
    }

    fn queued(&self) -> Answer<'_, Vec<Job>> {
        Box::pin(async move {
            let sql = format!("SELECT {COLUMNS} FROM jobs WHERE status = 'queued' ORDER BY seq");
            jobs(&sqlx::query(&sql).fetch_all(&self.readers).await?)
        })
    }

    fn claim<'a>(&'a self, id: &'a VideoId, lease: &'a Lease, now: UnixMs) -> Answer<'a, Option<Job>> {
        Box::pin(async move {
            let sql = format!(
                "UPDATE jobs SET status = 'in_progress', epoch = epoch + 1, starts = starts + 1, worker = ?,
                     lease_until_ms = ?, started_ms = ?
                 WHERE id = ? AND status = 'queued' RETURNING {COLUMNS}"
            );
            let (until, now) = (Value::Integer(lease.until.0), Value::Integer(now.0));
            self.change(&sql, vec![Value::Text(&lease.worker), until, now, Value::Text(id.as_str())]).await
        })
    }

    fn renew<'a>(&'a self, lease: &'a Lease) -> Answer<'a, u64> {
        Box::pin(async move {
            let sql = "UPDATE jobs SET lease_until_ms = ? WHERE status = 'in_progress' AND worker = ?";
            let renewed =
                sqlx::query(sql).bind(lease.until.0).bind(&lease.worker).execute(&self.writer).await?;
            Ok(renewed.rows_affected())
        })
    }

    fn finish<'a>(
        &'a self,
        id: &'a VideoId,
        epoch: i64,
        ending: &'a Ending,
        (now, expires): (UnixMs, UnixMs),
    ) -> Answer<'a, Fenced> {
        Box::pin(async move {
            let (status, failure, memory) = match ending {
                Ending::Completed(memory) => ("completed", None, serde_json::to_string(memory).ok()),
                Ending::Failed(failure) => ("failed", Some(failure), None),
            };
            let sql = "UPDATE jobs SET status = ?, worker = NULL, lease_until_ms = NULL, ended_ms = ?,
                           expires_ms = ?, failure_code = ?, failure_message = ?, memory = ?
                       WHERE id = ? AND epoch = ? AND status = 'in_progress'";
            let query = sqlx::query(sql).bind(status).bind(now.0).bind(expires.0);
            let query = query.bind(failure.map(|f| &f.code)).bind(failure.map(|f| &f.message)).bind(memory);
            let done = query.bind(id.as_str()).bind(epoch).execute(&self.writer).await?;
            Ok(if done.rows_affected() == 1 { Fenced::No } else { Fenced::Yes })
        })
    }

    fn progressed<'a>(&'a self, id: &'a VideoId, epoch: i64) -> Answer<'a, Fenced> {
        Box::pin(async move {
            let sql = "UPDATE jobs SET starts = 1 WHERE id = ? AND epoch = ? AND status = 'in_progress'";
            let done = sqlx::query(sql).bind(id.as_str()).bind(epoch).execute(&self.writer).await?;
            Ok(if done.rows_affected() == 1 { Fenced::No } else { Fenced::Yes })
        })
    }

    fn amend<'a>(
        &'a self,
        id: &'a VideoId,
        epoch: i64,
        order: &'a Order,
        degradations: &'a [String],
    ) -> Answer<'a, Fenced> {
        Box::pin(async move {
            let json = |error: serde_json::Error| StoreError::Unreadable {
                what: format!("job {id}"),
                reason: error.to_string(),
            };
            let request = serde_json::to_string(order).map_err(json)?;
            let degradations = serde_json::to_string(degradations).map_err(json)?;
            let sql = "UPDATE jobs SET request = ?, degradations = ?
                       WHERE id = ? AND epoch = ? AND status = 'in_progress'";
            let query = sqlx::query(sql).bind(request).bind(degradations);
            let done = query.bind(id.as_str()).bind(epoch).execute(&self.writer).await?;
            Ok(if done.rows_affected() == 1 { Fenced::No } else { Fenced::Yes })
        })
    }

    fn release<'a>(&'a self, id: &'a VideoId, epoch: i64) -> Answer<'a, Fenced> {
        Box::pin(async move {
            let sql = format!(
                "UPDATE jobs SET status = 'queued', epoch = epoch + 1, starts = starts - 1, worker = NULL,
                     lease_until_ms = NULL
                 WHERE id = ? AND epoch = ? AND status = 'in_progress' RETURNING {COLUMNS}"
            );
            let released = self.change(&sql, vec![Value::Text(id.as_str()), Value::Integer(epoch)]).await?;
            Ok(if released.is_some() { Fenced::No } else { Fenced::Yes })
        })
    }

    fn cancel<'a>(
        &'a self,
        tenant: &'a str,
        id: &'a VideoId,
        moments: (UnixMs, UnixMs),
    ) -> Answer<'a, Cancelled> {
        Box::pin(self.cancel_job(tenant, id, moments))
    }

    fn delete<'a>(&'a self, tenant: &'a str, id: &'a VideoId) -> Answer<'a, Option<Job>> {
        Box::pin(async move {
            let sql = format!("DELETE FROM jobs WHERE tenant = ? AND id = ? RETURNING {COLUMNS}");
            self.change(&sql, vec![Value::Text(tenant), Value::Text(id.as_str())]).await
        })
    }

    fn requeue(
        &self,
        abandoned: Abandoned,
        starts_max: i64,
        moments: (UnixMs, UnixMs),
    ) -> Answer<'_, Requeued> {
        Box::pin(self.requeue_jobs(abandoned, starts_max, moments))
    }

    fn expire(&self, now: UnixMs, limit: u32) -> Answer<'_, Vec<Job>> {
        Box::pin(async move {
            let sql = format!(
                "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE expires_ms <= ? LIMIT ?) RETURNING {COLUMNS}"
            );
            jobs(&sqlx::query(&sql).bind(now.0).bind(limit).fetch_all(&self.writer).await?)
        })
    }

    fn webhooks_due(&self, now: UnixMs, after: Option<(UnixMs, i64)>, limit: u32) -> Answer<'_, Vec<Job>> {
        Box::pin(async move {
            let sql = format!(
                "SELECT {COLUMNS} FROM jobs WHERE webhook_due_ms <= ? AND (webhook_due_ms, seq) > (?, ?) AND status IN ('completed', 'failed')
                 ORDER BY webhook_due_ms, seq LIMIT ?"
            );
            let (due, seq) = after.map_or((i64::MIN, i64::MIN), |(due, seq)| (due.0, seq));
            jobs(
                &sqlx::query(&sql)
                    .bind(now.0)
                    .bind(due)
                    .bind(seq)
                    .bind(limit)
                    .fetch_all(&self.readers)
                    .await?,
            )
        })
    }

    fn note_webhook<'a>(&'a self, id: &'a VideoId, attempt: &'a Attempt) -> Answer<'a, ()> {
        Box::pin(async move {
            let sql = "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_said = ?,
                           webhook_delivered_ms = ?, webhook_due_ms = ? WHERE id = ?";
            let query = sqlx::query(sql).bind(&attempt.said).bind(attempt.delivered.map(|at| at.0));
            query.bind(attempt.due.map(|at| at.0)).bind(id.as_str()).execute(&self.writer).await?;
            Ok(())
        })
    }

    fn has_video<'a>(&'a self, id: &'a VideoId) -> Answer<'a, bool> {
        Box::pin(async move {
            let query = sqlx::query("SELECT 1 FROM jobs WHERE id = ? AND status = 'completed'");
            Ok(query.bind(id.as_str()).fetch_optional(&self.readers).await?.is_some())
        })
    }
}
