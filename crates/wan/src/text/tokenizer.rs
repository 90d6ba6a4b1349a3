//! From text to token ids, by the `tokenizer.json` of the checkpoint.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{TruncationParams, TruncationStrategy};

use crate::error::{Result, WanError};

use super::{charsmap, clean_prompt};

/// Most tokens of a prompt, the end mark among them; what goes beyond is cut off.
pub const TOKENS_MAX: usize = 512;

/// Largest `tokenizer.json` that is read. UMT5's, with a quarter of a million pieces, takes 17 MB.
pub const TOKENIZER_BYTES_MAX: usize = 64 << 20;

/// A tokenizer as the checkpoint defines it, except that it truncates to [`TOKENS_MAX`] and never pads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`WanError::Io`] when it cannot be read, [`WanError::Checkpoint`] when it is no tokenizer or larger than
    /// [`TOKENIZER_BYTES_MAX`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| WanError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(TOKENIZER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads the bytes of a `tokenizer.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`WanError::Checkpoint`] when it is no tokenizer or larger than [`TOKENIZER_BYTES_MAX`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() > TOKENIZER_BYTES_MAX {
            let message = format!("expected a `tokenizer.json` of at most {TOKENIZER_BYTES_MAX} bytes");
            return Err(WanError::checkpoint(path, message));
        }
        let inner = read(bytes);
        let inner = inner.map_err(|error| WanError::checkpoint(path, format!("not a tokenizer: {error}")))?;
        Ok(Self { inner })
    }

    /// How many ids there are; the encoder's table needs at least as many rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Cleans a prompt and turns it into ids, ended as the tokenizer ends a text. An empty prompt is just the end mark.
    ///
    /// # Errors
    /// [`WanError::Request`] when the prompt is too long or the tokenizer has no ids for it.
    pub fn prompt_ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let text = clean_prompt(prompt)?;
        let encoding = unless_it_panics(|| self.inner.encode(text, true));
        let encoding =
            encoding.map_err(|error| WanError::Request(format!("prompt cannot be tokenized: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The parts of the file that the library reads less carefully than the rest. That they are JSON at all is checked by
/// parsing them here: a decoder with a syntax error would make the library panic.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default, rename = "decoder")]
    _decoder: Value,
}

fn read(bytes: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
    let parts: Parts = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    charsmap::check(&parts.normalizer)?;
    if !templates_are_whole(&parts.post_processor) {
        return Err("post_processor names a special token that it does not define".to_owned());
    }
    let mut tokenizer = unless_it_panics(|| tokenizers::Tokenizer::from_bytes(bytes))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams {
        max_length: TOKENS_MAX,
        strategy: TruncationStrategy::LongestFirst,
        ..TruncationParams::default()
    };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

/// Whether the templates of a `TemplateProcessing` use only what they have, which the library takes for granted: special
/// tokens of their own table, and no second text where there is one.
fn templates_are_whole(post_processor: &Value) -> bool {
    let list = |name| post_processor.get(name).and_then(Value::as_array).into_iter().flatten();
    let id = |piece: &Value, kind| piece.get(kind)?.get("id")?.as_str().map(str::to_owned);
    let defined = |token: String| post_processor["special_tokens"].get(token).is_some();
    list("single").chain(list("pair")).all(|piece| id(piece, "SpecialToken").is_none_or(defined))
        && list("single").all(|piece| id(piece, "Sequence").as_deref() != Some("B"))
        && list("processors").all(templates_are_whole)
}

/// The library trusts its file in places; a file that breaks that trust is an error like any other.
fn unless_it_panics<T, E: fmt::Display>(
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its parts contradict each other".to_owned()),
    }
}
