//! The `evanesce` command.

mod args;
mod bench;
mod calibrate;
mod clip;
mod compare;
mod generate;
mod inspect;
mod keep;
mod machine;
mod output;
mod plan;
mod progress;
mod quantity;
mod report;
mod serve;
mod summary;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use evanesce_engine::{EngineError, Fault};

use crate::args::{Cli, Command};

const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    // The only variable that is read, and here only: which instruction set arithmetic uses.
    let isa = std::env::var_os("EVANESCE_ISA").map(|name| name.to_string_lossy().into_owned());
    if let Err(error) = evanesce_engine::use_isa(isa.as_deref()) {
        return exit_code(Err(anyhow::Error::new(error).context("EVANESCE_ISA")));
    }
    match cli.command {
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Serve(args) => serve::run(args),
    }
}

/// How a command went: 0 done, 2 bad input with one sentence on standard error, 1 anything else.
fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    progress::say(&format!("error: {error:#}"));
    let fault = error.downcast_ref::<EngineError>().map_or(Fault::Internal, EngineError::fault);
    ExitCode::from(if fault == Fault::Input { BAD_INPUT } else { 1 })
}

/// Help goes to standard output; a mistake gets its first sentence on standard error, without the page of usage.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        drop(error.print());
        return if is_help { ExitCode::SUCCESS } else { ExitCode::from(BAD_INPUT) };
    }
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or(&text);
    let sentence: Vec<&str> = sentence.split_whitespace().collect();
    progress::say(&sentence.join(" "));
    ExitCode::from(BAD_INPUT)
}
