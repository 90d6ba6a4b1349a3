//! The schema, as steps from nothing to today's. `PRAGMA user_version` counts the steps that a database has taken.

use sqlx::{Connection, Row, SqliteConnection};

use super::StoreError;

/// Each step is one transaction. A step that has been released never changes; what comes later is another step.
const STEPS: &[&str] = &[JOBS, DEGRADATIONS, WEBHOOKS];

const JOBS: &str = "CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        request TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('queued', 'in_progress', 'completed', 'failed')),
        created_ms INTEGER NOT NULL,
        started_ms INTEGER,
        ended_ms INTEGER,
        expires_ms INTEGER,
        epoch INTEGER NOT NULL DEFAULT 0,
        starts INTEGER NOT NULL DEFAULT 0,
        worker TEXT,
        lease_until_ms INTEGER,
        failure_code TEXT,
        failure_message TEXT,
        memory TEXT,
        idempotency_key TEXT,
        idempotency_digest BLOB,
        CHECK ((status = 'in_progress') = (worker IS NOT NULL)),
        CHECK ((status IN ('completed', 'failed')) = (ended_ms IS NOT NULL)),
        CHECK ((status = 'failed') = (failure_code IS NOT NULL))
    ) STRICT;
    CREATE UNIQUE INDEX jobs_by_key ON jobs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
    CREATE INDEX jobs_by_tenant ON jobs (tenant, seq);
    CREATE INDEX jobs_active ON jobs (status, seq) WHERE status IN ('queued', 'in_progress');
    CREATE INDEX jobs_expiring ON jobs (expires_ms) WHERE expires_ms IS NOT NULL;";

const DEGRADATIONS: &str = "ALTER TABLE jobs ADD COLUMN degradations TEXT;";

const WEBHOOKS: &str = "ALTER TABLE jobs ADD COLUMN webhook_url TEXT;
    ALTER TABLE jobs ADD COLUMN webhook_id TEXT;
    ALTER TABLE jobs ADD COLUMN webhook_attempts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN webhook_due_ms INTEGER;
    ALTER TABLE jobs ADD COLUMN webhook_delivered_ms INTEGER;
    ALTER TABLE jobs ADD COLUMN webhook_said TEXT;
    CREATE INDEX jobs_with_webhook_due ON jobs (webhook_due_ms) WHERE webhook_due_ms IS NOT NULL;";

/// Takes the steps that the database has not taken yet.
pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let row = sqlx::query("PRAGMA user_version").fetch_one(&mut *connection).await?;
    let found: i64 = row.try_get(0)?;
    let known = STEPS.len() as i64;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (at, step) in (1_i64..).zip(STEPS).skip(usize::try_from(found).unwrap_or(0)) {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(step).execute(&mut *transaction).await?;
        sqlx::raw_sql(&format!("PRAGMA user_version = {at}")).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(())
}
