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
use crate::quantity::plural;

/// A file that is in every data directory of a service.
const JOBS: &str = "jobs.sqlite";

/// Runs the command and says how it went, as `generate` does.
pub(crate) fn run(args: &Inspect) -> ExitCode {
    crate::exit_code(look(args))
}

fn look(args: &Inspect) -> anyhow::Result<()> {
    let Found { json, text, damaged } = find(&args.directory)?;
    let out = if args.json { format!("{json}\n") } else { text };
    std::io::stdout().write_all(out.as_bytes()).context("cannot write to standard output")?;
    // All of it was looked at and told first.
    damaged.map_or(Ok(()), |damaged| Err(EngineError::file(&args.directory, damaged).into()))
}

/// What a directory holds, and what of it is damaged.
struct Found {
    json: Value,
    text: String,
    damaged: Option<String>,
}

fn find(directory: &Path) -> Result<Found, EngineError> {
    let snapshots = snapshots(directory)?;
    let read = |error| EngineError::file(directory, error);
    let remains = DiskRemains::read(directory).map_err(read)?;
    let embeddings = Embeddings::read(directory).map_err(read)?;
    if remains.files > 0 {
        let damaged = (remains.damaged > 0).then(|| format!("{} records are damaged", remains.damaged));
        Ok(Found { json: remains_json(&remains), text: remains_text(&remains), damaged })
    } else if embeddings != Embeddings::default() || is_of_service(directory, "embeddings") {
        let Embeddings { whole, bytes, damaged } = embeddings;
        let text = format!("embeddings: {whole} whole, {bytes} bytes; {damaged} damaged\n");
        let json = json!({"embeddings": {"whole": whole, "bytes": bytes, "damaged": damaged}});
        let damaged = (damaged > 0).then(|| format!("{damaged} embeddings are damaged"));
        Ok(Found { json, text, damaged })
    } else if !snapshots.is_empty() || is_of_service(directory, "snapshots") {
        Ok(look_into(snapshots))
    } else if directory.join(JOBS).is_file() {
        let sentence =
            "this is the data directory of a service; inspect the directory snapshots or embeddings in it";
        Err(EngineError::file(directory, sentence))
    } else {
        let parts = ModelContents::read(directory)?;
        Ok(Found { json: checkpoint_json(&parts), text: checkpoint_text(&parts), damaged: None })
    }
}

/// Whether a directory is one that a service has of this name. Then it may be that there is nothing in it to know it by.
fn is_of_service(directory: &Path, name: &str) -> bool {
    let Ok(directory) = directory.canonicalize() else { return false };
    let is_in_data = || directory.parent().is_some_and(|data| data.join(JOBS).is_file());
    let is_empty = || std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none());
    directory.file_name().is_some_and(|own| own == name) && (is_in_data() || is_empty())
}

fn look_into(snapshots: Vec<PathBuf>) -> Found {
    let mut looked = Vec::new();
    for path in snapshots {
        // One that is gone by now was given up by its service.
        let found = inspect(&SnapshotDirectory::new(&path)).map_err(|error| error.to_string()).transpose();
        looked.extend(found.map(|found| (path, found)));
    }
    let damaged = looked
        .iter()
        .find_map(|(path, found)| Some(format!("snapshot {}: {}", name(path), found.as_ref().err()?)));
    Found { json: snapshots_json(&looked), text: snapshots_text(&looked), damaged }
}

type Looked = (PathBuf, Result<Contents, String>);

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

fn snapshots_json(looked: &[Looked]) -> Value {
    let one = |(path, found): &Looked| {
        let contents = match found {
            Ok(contents) => contents,
            Err(why) => return json!({"name": name(path), "verified": false, "why": why}),
        };
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

fn snapshots_text(looked: &[Looked]) -> String {
    if looked.is_empty() {
        return "no snapshots: no job is under way that has been kept yet\n".to_owned();
    }
    let mut text = String::new();
    for (path, found) in looked {
        let contents = match found {
            Ok(contents) => contents,
            Err(why) => {
                // Writing to a string cannot fail.
                _ = writeln!(text, "{}: {why}", name(path));
                continue;
            }
        };
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
    let (files, records) = (plural(*files, "file"), plural(*records, "record"));
    format!(
        "disk tier: {files} of {file_bytes} bytes, {records} of {payload_bytes} bytes: {verified} verified, {damaged} damaged, \
         {spread} spread over several extents, which only the process that wrote them can read\n"
    )
}

fn checkpoint_json(parts: &ModelContents) -> Value {
    let one = |part: &evanesce_engine::PartContents| {
        json!({"name": part.name, "groups": part.groups, "bytes": part.bytes, "bf16_bytes": part.bf16_bytes,
            "fingerprint": part.fingerprint})
    };
    json!({"checkpoint": parts.parts.iter().map(one).collect::<Vec<_>>()})
}

fn checkpoint_text(parts: &ModelContents) -> String {
    let mut text = String::new();
    for part in &parts.parts {
        _ = writeln!(
            text,
            "{:<14} {:>5} groups {:>14} bytes, {:>14} in bf16  {}",
            part.name, part.groups, part.bytes, part.bf16_bytes, part.fingerprint
        );
    }
    text
}
