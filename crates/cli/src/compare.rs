//! `evanesce compare`: how far two videos are from each other.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use evanesce_engine::fidelity::{self, Part};
use serde_json::{Value, json};

use crate::args::Compare;

/// Runs the command and says how it went, as `generate` does.
pub(crate) fn run(args: &Compare) -> ExitCode {
    crate::exit_code(compare(args))
}

fn compare(args: &Compare) -> anyhow::Result<()> {
    let parts = fidelity::compare(&args.a, &args.b, usize::from(args.block_frames), args.fps.map(f64::from))?;
    let text = if args.json { format!("{}\n", as_json(&parts)) } else { as_table(&parts) };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// One object; a PSNR of equal frames is `null`, since JSON knows no infinity.
fn as_json(parts: &[Part]) -> Value {
    parts
        .iter()
        .map(|part| {
            let measured = json!({
                "frames": [part.frames.start, part.frames.end],
                "psnr_db": part.psnr_db,
                "psnr_least_db": part.psnr_least_db,
                "ssim": part.ssim,
            });
            (part.name.to_owned(), measured)
        })
        .collect()
}

fn as_table(parts: &[Part]) -> String {
    let mut table =
        format!("{:<16} {:>12} {:>12} {:>12} {:>8}\n", "part", "frames", "PSNR", "worst frame", "SSIM");
    let decibels = |db: f64| if db.is_infinite() { "equal".to_owned() } else { format!("{db:.2} dB") };
    for part in parts {
        let name = part
            .name
            .replace('_', " ")
            .replace("seconds 0 to 2", "0 to 2 s")
            .replace("seconds 2 to 5", "2 to 5 s");
        let frames = format!("{} to {}", part.frames.start, part.frames.end - 1);
        let (whole, worst) = (decibels(part.psnr_db), decibels(part.psnr_least_db));
        table += &format!("{name:<16} {frames:>12} {whole:>12} {worst:>12} {:>8.4}\n", part.ssim);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal_and_json_has_no_infinity() {
        let part = |name, psnr_db| Part { name, frames: 0..9, psnr_db, ssim: 0.987_65, psnr_least_db: 21.25 };
        let parts = [part("first_block", f64::INFINITY), part("seconds_0_to_2", 30.0), part("whole", 99.987)];
        let table = as_table(&parts);
        assert!(table.lines().all(|line| line.len() <= 80), "{table}");
        assert!(table.contains("first block") && table.contains("equal") && table.contains("0 to 2 s"));
        assert!(table.contains("99.99 dB") && table.contains("0.9877") && table.contains("0 to 8"));
        let json = as_json(&parts);
        assert!(json["first_block"]["psnr_db"].is_null());
        assert_eq!(json["whole"]["psnr_least_db"], 21.25);
        assert_eq!(json["whole"]["frames"], json!([0, 9]));
    }
}
