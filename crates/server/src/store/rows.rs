//! Rows of the database as jobs.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::StoreError;
use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::{Failure, Job, Status, Webhook};

/// The columns that [`job`] reads.
pub(super) const COLUMNS: &str = "seq, id, tenant, request, status, created_ms, started_ms, ended_ms, \
                                  expires_ms, epoch, failure_code, failure_message, memory, degradations, webhook_url, webhook_id, webhook_attempts, \
                                  webhook_due_ms, webhook_delivered_ms, webhook_said";

/// The job that a row holds.
pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let id: &str = row.try_get("id")?;
    let unreadable = |reason: String| StoreError::Unreadable { what: format!("job {id}"), reason };
    let status: &str = row.try_get("status")?;
    let moment = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(UnixMs));
    let memory: Option<&str> = row.try_get("memory")?;
    let degradations: Option<&str> = row.try_get("degradations")?;
    let code: Option<String> = row.try_get("failure_code")?;
    let message: Option<String> = row.try_get("failure_message")?;
    let webhook = match row.try_get::<Option<String>, _>("webhook_url")? {
        None => None,
        Some(url) => Some(Webhook {
            url,
            message_id: row.try_get::<Option<String>, _>("webhook_id")?.unwrap_or_default(),
            attempts: row.try_get("webhook_attempts")?,
            due: moment("webhook_due_ms")?,
            delivered: moment("webhook_delivered_ms")?,
            said: row.try_get("webhook_said")?,
        }),
    };
    Ok(Job {
        seq: row.try_get("seq")?,
        id: VideoId::parse(id).ok_or_else(|| unreadable("it has no name of a video".to_owned()))?,
        tenant: row.try_get("tenant")?,
        order: serde_json::from_str(row.try_get("request")?)
            .map_err(|error| unreadable(error.to_string()))?,
        status: Status::from_name(status).ok_or_else(|| unreadable(format!("{status:?} is not a status")))?,
        created: UnixMs(row.try_get("created_ms")?),
        started: moment("started_ms")?,
        ended: moment("ended_ms")?,
        expires: moment("expires_ms")?,
        epoch: row.try_get("epoch")?,
        failure: code.map(|code| Failure { code, message: message.unwrap_or_default() }),
        memory: memory
            .map(serde_json::from_str)
            .transpose()
            .map_err(|error| unreadable(error.to_string()))?,
        degradations: degradations
            .map_or_else(|| Ok(Vec::new()), serde_json::from_str)
            .map_err(|error| unreadable(error.to_string()))?,
        webhook,
    })
}

pub(super) fn jobs(rows: &[SqliteRow]) -> Result<Vec<Job>, StoreError> {
    rows.iter().map(job).collect()
}
