//! What people and CI run: `cargo run --release -p xtask -- tidy`.

mod arrows;
mod outline;
mod tidy;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

#[expect(clippy::print_stderr, reason = "a command-line tool reports here")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root = std::env::current_dir().context("no current directory")?;
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => report(&tidy::problems(&root)?),
        Some(other) => bail!("unknown task {other:?}; the tasks are: tidy"),
        None => bail!("name a task; the tasks are: tidy"),
    }
}

fn report(problems: &[String]) -> Result<()> {
    match problems.len() {
        0 => Ok(()),
        n => bail!("{}\ntidy found {n} problems", problems.join("\n")),
    }
}
