//! Which room may use which: the arrows of ARCHITECTURE.md, proved by `cargo tree`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A room, the rooms that it may depend on directly, and crates that must appear nowhere below it.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room { name: "cache", may_use: &[], never: &["candle-core", "tokio", "axum", "rayon", "serde_json"] },
    Room { name: "kernels", may_use: &[], never: &["candle-core", "tokio", "axum", "serde_json"] },
    Room { name: "wan", may_use: &["kernels"], never: &["tokio", "axum", "clap"] },
    Room { name: "engine", may_use: &["cache", "wan"], never: &["tokio", "axum", "clap"] },
    Room { name: "server", may_use: &["engine"], never: &["clap"] },
    Room { name: "cli", may_use: &["engine", "server"], never: &[] },
    Room { name: "py", may_use: &["cache", "kernels"], never: &["candle-core", "tokio", "axum", "clap"] },
];

/// One sentence for each arrow that should not be there.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for room in ROOMS {
        let direct = packages(root, room.name, "1")?;
        let rooms = direct.iter().filter_map(|package| package.strip_prefix("evanesce-"));
        for used in rooms.filter(|used| *used != room.name && !room.may_use.contains(used)) {
            found
                .push(format!("crates/{}: depends on room `{used}`; allowed: {:?}", room.name, room.may_use));
        }
        let all = packages(root, room.name, "255")?;
        for never in room.never.iter().filter(|never| all.iter().any(|package| package == *never)) {
            found.push(format!("crates/{}: `{never}` is somewhere below it, and must not be", room.name));
        }
    }
    Ok(found)
}

fn packages(root: &Path, room: &str, depth: &str) -> Result<Vec<String>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["tree", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--depth", depth]);
    // By its own manifest: one of them is a workspace of its own.
    cargo.arg("--manifest-path").arg(format!("crates/{room}/Cargo.toml"));
    cargo.arg("--package").arg(format!("evanesce-{room}")).current_dir(root);
    let output = cargo.output().context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("cargo tree printed something that is not UTF-8")?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}
