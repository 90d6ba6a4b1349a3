//! Files that a command writes: refused before anything is computed where they could not be written, and whole or not there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use evanesce_engine::{EngineError, Outputs};

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a path where no file can be written; `such_as` is a name that could.
///
/// # Errors
/// When it is a directory, a device or a pipe, or lies in no directory, or in one where no file can be made.
pub(crate) fn check(path: &Path, such_as: &str) -> Result<(), EngineError> {
    if path.is_dir() {
        return Err(EngineError::file(path, format!("is a directory; name a file, such as {such_as}")));
    }
    let place = Outputs::place(path)?;
    let directory = directory_of(&place);
    // Whether a file can be made there shows when one is; it goes at once.
    let made = tempfile::Builder::new().prefix(".evanesce-").tempfile_in(directory);
    made.map(drop).map_err(|error| {
        // Without the name of the file, which nobody asked for.
        let said = error.to_string();
        let reason = said.split(" at path ").next().unwrap_or_default();
        let message =
            format!("no file can be made in {} ({reason}): name another place", directory.display());
        EngineError::file(path, message)
    })
}

/// A file and the flag that names it, if it was given.
pub(crate) type Named<'a> = (&'a str, Option<&'a Path>);

/// Refuses files that are written of which one is another, or is read.
///
/// # Errors
/// When two are the same file.
pub(crate) fn check_distinct(written: &[Named<'_>], read: &[Named<'_>]) -> Result<(), EngineError> {
    // Links and other spellings of the directory are one place; a file that is there may be a link itself.
    let place = |path: &Path| -> PathBuf {
        let in_directory = || {
            let directory =
                directory_of(path).canonicalize().unwrap_or_else(|_| directory_of(path).to_owned());
            path.file_name().map_or_else(|| directory.clone(), |name| directory.join(name))
        };
        path.canonicalize().unwrap_or_else(|_| in_directory())
    };
    let places = |named: &[Named<'_>]| -> Vec<(String, PathBuf)> {
        named.iter().filter_map(|(flag, path)| Some(((*flag).to_owned(), place((*path)?)))).collect()
    };
    let (written, read) = (places(written), places(read));
    for (at, (flag, place)) in written.iter().chain(&read).enumerate() {
        let before = &written[..at.min(written.len())];
        if let Some((other, _)) = before.iter().find(|(_, earlier)| earlier == place) {
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
    let place = Outputs::place(path)?;
    let mut file = tempfile::Builder::new()
        .prefix(".evanesce-")
        .suffix(".part")
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(directory_of(&place))
        .with_context(cannot)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(cannot)?;
    file.persist(&place).with_context(cannot)?;
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
            let (a, b) = (at(a), at(b));
            let (first, second) = (("-o", Some(&*a)), ("--noise-in", Some(&*b)));
            let refused = [
                check_distinct(&[first, ("--nothing", None), second], &[]),
                check_distinct(&[first], &[("--nothing", None), second]),
            ]
            .map(|checked| checked.is_err());
            assert!(check_distinct(&[], &[first, second]).is_ok(), "what is only read may be one file");
            assert_eq!(refused[0], refused[1]);
            refused[0]
        };
        assert!(same("a", "a") && same("a", "inner/../a") && same("link", "a"));
        assert!(same("new", "inner/../new"), "neither is there yet");
        assert!(!same("a", "b") && !same("a", "inner/a"));
    }
}
