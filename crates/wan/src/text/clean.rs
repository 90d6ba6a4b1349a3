//! What diffusers does to a prompt before tokenizing it: `prompt_clean` of its Wan pipeline.
//!
//! That is `ftfy.fix_text`, `html.unescape` twice, and runs of whitespace made one space. `plsfix` is a port of ftfy; where
//! the two differ, so do we (`tests/text_clean.rs` lists what is known).

use std::borrow::Cow;

use crate::error::{Result, WanError};

use super::entities::unescape;

/// Longest prompt, in characters. The encoder reads 512 tokens at most, which no language needs this many for.
pub const PROMPT_CHARS_MAX: usize = 10_000;

/// Cleans a prompt as the reference does. A prompt of whitespace alone becomes empty, which is a valid prompt here.
///
/// # Errors
/// [`WanError::Request`] when the prompt is longer than [`PROMPT_CHARS_MAX`].
pub fn clean_prompt(prompt: &str) -> Result<String> {
    let chars = prompt.chars().count();
    if chars > PROMPT_CHARS_MAX {
        return Err(WanError::Request(format!(
            "prompt: got {chars} characters, expected at most {PROMPT_CHARS_MAX}"
        )));
    }
    let fixed = plsfix::fix_text(&without_terminal_escapes(prompt), None);
    let text = unescape(&unescape(&fixed)).into_owned();
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Drops colour codes and the like, which ftfy does and plsfix, for an escape that it spells wrongly, does not.
fn without_terminal_escapes(text: &str) -> Cow<'_, str> {
    const START: &str = "\u{1b}[";
    if !text.contains(START) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        kept.push_str(&rest[..at]);
        let code = &rest[at + START.len()..];
        let end = code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        if end.starts_with(|c: char| c.is_ascii_alphabetic()) {
            rest = &end[1..];
        } else {
            kept.push_str(START);
            rest = code;
        }
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}
