//! What people and CI run: `cargo run --release -p xtask -- tidy`.

mod arrows;
mod outline;
mod tidy;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let root = std::env::current_dir().context("no current directory")?;
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => report(&tidy::problems(&root)?),
        Some(other) => bail!("unknown task {other:?}; the tasks are: tidy"),
        None => bail!("name a task; the tasks are: tidy"),
    }
}

#[expect(clippy::print_stderr, reason = "a command-line tool reports here")]
fn report(problems: &[String]) -> Result<()> {
    for problem in problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        n => bail!("tidy found {n} problems"),
    }
}
