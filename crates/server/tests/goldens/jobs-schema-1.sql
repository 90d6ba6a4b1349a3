-- A database as the first version wrote it: its schema, and one job that waits.
CREATE TABLE jobs (
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
CREATE INDEX jobs_expiring ON jobs (expires_ms) WHERE expires_ms IS NOT NULL;
PRAGMA user_version = 1;
INSERT INTO jobs (id, tenant, request, status, created_ms) VALUES ('video_000102030405060708090a0b0c0d0e0f', 'local',
    '{"model": "m", "prompt": "a red ball", "negative_prompt": "", "width": 32, "height": 32, "frames": 5, "fps": 16, "seconds": "0.31", "steps": 2, "guidance_high": 1.0, "guidance_low": 1.0, "boundary": 0.875, "shift": 3.0, "seed": 1, "class": "standard", "quality": "balanced", "deadline_s": null, "device_bytes": 1}', 'queued', 1000);
