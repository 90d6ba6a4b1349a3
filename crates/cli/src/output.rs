//! Files that a command writes: refused before anything is computed where they could not be written, and whole or not there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use evanesce_engine::EngineError;

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a path where no file can be written; `such_as` is a name that could.
///
/// # Errors
/// When it is a directory, or lies in none.
pub(crate) fn check(path: &Path, such_as: &str) -> Result<(), EngineError> {
    let directory = directory_of(path);
    if path.is_dir() {
        return Err(EngineError::file(path, format!("is a directory; name a file, such as {such_as}")));
    }
    if !directory.is_dir() {
        let message = format!("there is no directory {}: create it first", directory.display());
        return Err(EngineError::file(path, message));
    }
    Ok(())
}

/// Refuses files of which one would be written over another; each comes with the flag that names it.
///
/// # Errors
/// When two are the same file.
pub(crate) fn check_distinct(named: &[(&str, Option<&Path>)]) -> Result<(), EngineError> {
    // Links and other spellings of the directory are one place; a file that is there may be a link itself.
    let place = |path: &Path| -> PathBuf {
        let in_directory = || {
            let directory =
                directory_of(path).canonicalize().unwrap_or_else(|_| directory_of(path).to_owned());
            path.file_name().map_or_else(|| directory.clone(), |name| directory.join(name))
        };
        path.canonicalize().unwrap_or_else(|_| in_directory())
    };
    let places: Vec<_> = named.iter().filter_map(|(flag, path)| Some((*flag, place((*path)?)))).collect();
    for (at, (flag, place)) in places.iter().enumerate() {
        if let Some((other, _)) = places[..at].iter().find(|(_, earlier)| earlier == place) {
            let message = format!("is named by both {other} and {flag}: name two files");
            return Err(EngineError::file(place, message));
        }
    }
    Ok(())
}

/// Writes a text file, whole or not at all, readable for whoever the process lets read its files.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".evanesce-")
        .suffix(".part")
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(directory_of(path))
        .with_context(cannot)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_under_two_names_is_one_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("inner")).expect("a directory");
        std::os::unix::fs::symlink(at("a"), at("link")).expect("a link");
        std::fs::write(at("a"), "").expect("a file");
        let same = |a: &str, b: &str| {
            check_distinct(&[("-o", Some(&at(a))), ("--nothing", None), ("--report", Some(&at(b)))]).is_err()
        };
        assert!(same("a", "a") && same("a", "inner/../a") && same("link", "a"));
        assert!(same("new", "inner/../new"), "neither is there yet");
        assert!(!same("a", "b") && !same("a", "inner/a"));
    }
}
