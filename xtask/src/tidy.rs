//! House rules that no lint knows: arrows, sizes, stray paths, where `unsafe` may stand.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{arrows, outline};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const EXCEPTIONS: &str = "xtask/tidy-exceptions.txt";

/// The files that may hold `unsafe`: the kernels, the one function that maps a file, and Python's buffer protocol.
const UNSAFE_PREFIXES: &[&str] =
    &["crates/kernels/", "crates/wan/src/checkpoint/mapping.rs", "crates/py/src/buffers.rs"];

/// One sentence for each broken rule.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let files = tracked_files(root)?;
    let mut found = arrows::problems(root)?;
    found.extend(size_problems(root, &files)?);
    for file in &files {
        // Binary files have no lines to check.
        if let Ok(text) = std::fs::read_to_string(root.join(file)) {
            found.extend(stray_paths(file, &text));
            found.extend(stray_unsafe(file, &text));
        }
    }
    Ok(found)
}

fn tracked_files(root: &Path) -> Result<Vec<String>> {
    let output =
        Command::new("git").args(["ls-files"]).current_dir(root).output().context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("a tracked file's name is not UTF-8")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Sizes over a limit, keyed by `file` or `file::function`.
fn oversized(root: &Path, files: &[String]) -> Result<BTreeMap<String, usize>> {
    let mut over = BTreeMap::new();
    let product =
        |file: &&String| file.ends_with(".rs") && !file.contains("/tests/") && !file.contains("/benches/");
    for file in files.iter().filter(product) {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
        let source = outline::without_tests(&text);
        let n_lines = source.lines().count();
        if n_lines > MAX_FILE_LINES {
            over.insert(file.clone(), n_lines);
        }
        for function in outline::functions(source).into_iter().filter(|f| f.n_lines > MAX_FUNCTION_LINES) {
            over.insert(format!("{file}::{}", function.name), function.n_lines);
        }
    }
    Ok(over)
}

/// Compares with the listed exceptions: a ratchet, so a listed size may only shrink.
fn size_problems(root: &Path, files: &[String]) -> Result<Vec<String>> {
    let over = oversized(root, files)?;
    let listed = exceptions(root)?;
    let mut found = Vec::new();
    for (what, n_lines) in &over {
        match listed.get(what) {
            None => found.push(format!(
                "{what}: {n_lines} lines; the limit is {MAX_FILE_LINES} a file, {MAX_FUNCTION_LINES} a function"
            )),
            Some(max) if n_lines > max => found.push(format!("{what}: grew from {max} to {n_lines} lines")),
            Some(_) => {}
        }
    }
    let mended = listed.keys().filter(|what| !over.contains_key(*what));
    found.extend(
        mended.map(|what| format!("{EXCEPTIONS}: {what} is within the limit now; take it off the list")),
    );
    Ok(found)
}

fn exceptions(root: &Path) -> Result<BTreeMap<String, usize>> {
    let text = std::fs::read_to_string(root.join(EXCEPTIONS))
        .with_context(|| format!("cannot read {EXCEPTIONS}"))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|line| parse_exception(line).with_context(|| format!("{EXCEPTIONS}: {line:?}"))).collect()
}

fn parse_exception(line: &str) -> Result<(String, usize)> {
    let mut words = line.splitn(3, ' ');
    let (Some(n_lines), Some(what), Some(_reason)) = (words.next(), words.next(), words.next()) else {
        bail!("an exception is: lines, file or file::function, reason");
    };
    Ok((what.to_owned(), n_lines.parse().context("the first word is a number of lines")?))
}

/// Paths of somebody's machine do not belong in a repository.
fn stray_paths(file: &str, text: &str) -> Vec<String> {
    let roots = ["home", "root", "work", "Users"].map(|name| format!("/{name}/"));
    let starts = |line: &str, root: &str| {
        line.match_indices(root).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | ')'))
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| roots.iter().any(|root| starts(line, root)));
    lines.map(|(index, _)| format!("{file}:{}: a path of one machine; make it relative", index + 1)).collect()
}

fn stray_unsafe(file: &str, text: &str) -> Option<String> {
    let opts_out = text.contains(&["(unsafe", "_code"].concat());
    let allowed = UNSAFE_PREFIXES.iter().any(|prefix| file.starts_with(prefix));
    (file.ends_with(".rs") && opts_out && !allowed)
        .then(|| format!("{file}: opts out of the lint against unsafe code; only {UNSAFE_PREFIXES:?} may"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_path_is_found_and_a_relative_one_is_not() {
        let machine = ["see /", "home/someone/x"].concat();
        assert_eq!(stray_paths("a.md", &machine).len(), 1);
        assert!(stray_paths("a.md", "see crates/home/x and ../home/y").is_empty());
    }

    #[test]
    fn unsafe_is_kept_to_its_rooms() {
        let text = ["#![expect(unsafe", "_code)]"].concat();
        assert!(stray_unsafe("crates/cache/src/lib.rs", &text).is_some());
        assert!(stray_unsafe("crates/kernels/src/lib.rs", &text).is_none());
    }
}
