//! `evanesce inspect`: what a directory of ours holds, read through and verified.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use evanesce_engine::snapshot::{Contents, SnapshotDirectory, inspect};
use evanesce_engine::{DiskRemains, Embeddings, EngineError, ModelContents};
use serde_json::{Value, json};

use crate::args::Inspect;

/// Runs the command and says how it went, as `generate` does.
pub(crate) fn run(args: &Inspect) -> ExitCode {
    crate::exit_code(look(args))
}

fn look(args: &Inspect) -> anyhow::Result<()> {
    let directory = &args.directory;
    let snapshots = snapshots(directory)?;
    let read = |error| EngineError::file(directory, error);
    let remains = DiskRemains::read(directory).map_err(read)?;
    let embeddings = Embeddings::read(directory).map_err(read)?;
    let (json, text) = if remains.files > 0 {
        (remains_json(&remains), remains_text(&remains))
    } else if embeddings != Embeddings::default() {
        let Embeddings { whole, bytes, damaged } = embeddings;
        let text = format!("embeddings: {whole}, {bytes} bytes, every checksum matches; {damaged} damaged\n");
        (json!({"embeddings": {"whole": whole, "bytes": bytes, "damaged": damaged}}), text)
    } else if snapshots.is_empty() {
        let parts = ModelContents::read(directory)?;
        (checkpoint_json(&parts), checkpoint_text(&parts))
    } else {
        let mut looked = Vec::new();
        for path in snapshots {
            let contents =
                inspect(&SnapshotDirectory::new(&path)).map_err(|error| EngineError::file(&path, error))?;
            looked.extend(contents.map(|contents| (path, contents)));
        }
        (snapshots_json(&looked), snapshots_text(&looked))
    };
    let out = if args.json { format!("{json}\n") } else { text };
    std::io::stdout().write_all(out.as_bytes()).context("cannot write to standard output")
}

/// The directory itself if it is a snapshot, else those in it.
fn snapshots(directory: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let is_snapshot = |path: &Path| path.join("manifest").is_file();
    if is_snapshot(directory) {
        return Ok(vec![directory.to_path_buf()]);
    }
    let entries = std::fs::read_dir(directory).map_err(|error| EngineError::file(directory, error))?;
    let mut found: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_snapshot(path)).collect();
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

fn snapshots_json(looked: &[(PathBuf, Contents)]) -> Value {
    let one = |(path, contents): &(PathBuf, Contents)| {
        let kinds: serde_json::Map<_, _> = contents
            .kinds
            .iter()
            .map(|(kind, held)| (kind.clone(), json!({"entries": held.entries, "bytes": held.bytes})))
            .collect();
        json!({"name": name(path), "sequence": contents.sequence, "next": contents.next, "kinds": kinds,
            "video_bytes": contents.video_bytes, "held_bytes": contents.held_bytes, "verified": true})
    };
    json!({"snapshots": looked.iter().map(one).collect::<Vec<_>>()})
}

fn snapshots_text(looked: &[(PathBuf, Contents)]) -> String {
    let mut text = String::new();
    for (path, contents) in looked {
        // Writing to a string cannot fail.
        _ = writeln!(text, "{}: snapshot {}, next {}", name(path), contents.sequence, contents.next);
        for (kind, held) in &contents.kinds {
            _ = writeln!(text, "  {kind:<16} {:>8} entries {:>14} bytes", held.entries, held.bytes);
        }
        _ = writeln!(text, "  {:<16} {:>16} {:>14} bytes", "video", "", contents.video_bytes);
        _ = writeln!(
            text,
            "  {:<16} {:>16} {:>14} bytes, every checksum matches",
            "all", "", contents.held_bytes
        );
    }
    text
}

fn remains_json(remains: &DiskRemains) -> Value {
    let DiskRemains { files, file_bytes, records, payload_bytes, verified, damaged, spread } = remains;
    json!({"disk_cache": {"files": files, "file_bytes": file_bytes, "records": records, "payload_bytes": payload_bytes,
        "verified": verified, "damaged": damaged, "spread": spread}})
}

fn remains_text(remains: &DiskRemains) -> String {
    let DiskRemains { files, file_bytes, records, payload_bytes, verified, damaged, spread } = remains;
    format!(
        "disk tier: {files} files of {file_bytes} bytes, {records} records of {payload_bytes} bytes: {verified} verified, {damaged} damaged, \
         {spread} spread over several extents, which only the process that wrote them can read\n"
    )
}

fn checkpoint_json(parts: &ModelContents) -> Value {
    let one = |part: &evanesce_engine::PartContents| json!({"name": part.name, "groups": part.groups, "bytes": part.bytes, "fingerprint": part.fingerprint});
    json!({"checkpoint": parts.parts.iter().map(one).collect::<Vec<_>>()})
}

fn checkpoint_text(parts: &ModelContents) -> String {
    let mut text = String::new();
    for part in &parts.parts {
        _ = writeln!(
            text,
            "{:<14} {:>5} groups {:>14} bytes  {}",
            part.name, part.groups, part.bytes, part.fingerprint
        );
    }
    text
}
