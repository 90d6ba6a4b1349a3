//! Tokenizing against transformers, as stored by `xtask/goldens/text.py` and `unigram.py`, and what the loader makes of broken files.

use std::path::Path;

use evanesce_wan::WanError;
use evanesce_wan::text::{PROMPT_CHARS_MAX, TOKENIZER_BYTES_MAX, TOKENS_MAX, Tokenizer};
use serde::Deserialize;

static TOKENIZER: &[u8] = include_bytes!("goldens/text/tokenizer.json");

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn load(bytes: &[u8]) -> Result<Tokenizer, WanError> {
    Tokenizer::from_bytes(bytes, Path::new("tokenizer/tokenizer.json"))
}

#[test]
fn prompts_get_the_ids_of_the_reference() {
    let tokenizer = load(TOKENIZER).unwrap();
    let cases: Vec<Case> = serde_json::from_str(include_str!("goldens/text/tokens.json")).unwrap();
    assert!(cases.iter().any(|case| case.ids.len() == TOKENS_MAX), "truncation is among the goldens");
    for Case { text, ids } in &cases {
        assert_eq!(tokenizer.prompt_ids(text).unwrap(), *ids, "for {text:?}");
    }
}

/// UMT5's tokenizer is of this kind: unigrams under `nmt_nfkc`, which folds widths, ligatures, circled numbers and squared words.
#[test]
fn the_character_map_that_sentencepiece_compiles_is_accepted_and_gives_the_ids_of_the_reference() {
    let file = include_bytes!("goldens/text/unigram.json");
    let tokenizer = load(file).unwrap();
    let cases: Vec<Case> = serde_json::from_str(include_str!("goldens/text/unigram_tokens.json")).unwrap();
    for Case { text, ids } in &cases {
        assert_eq!(tokenizer.prompt_ids(text).unwrap(), *ids, "for {text:?}");
    }
    // The map is what folds: without it these are other tokens.
    let mut json: serde_json::Value = serde_json::from_slice(file).unwrap();
    json["normalizer"] = serde_json::Value::Null;
    let plain = load(&serde_json::to_vec(&json).unwrap()).unwrap();
    let folded = "① ㎏ ㍿";
    assert_eq!(tokenizer.prompt_ids(folded).unwrap(), tokenizer.prompt_ids("1 kg 株式会社").unwrap());
    assert_ne!(plain.prompt_ids(folded).unwrap(), tokenizer.prompt_ids(folded).unwrap());
}

#[test]
fn an_empty_prompt_is_the_end_mark_alone() {
    assert_eq!(load(TOKENIZER).unwrap().prompt_ids(" \n ").unwrap(), [1]);
}

#[test]
fn padding_and_truncation_asked_for_by_the_file_are_ignored() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
    });
    json["truncation"] =
        serde_json::json!({"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    let tokenizer = load(&serde_json::to_vec(&json).unwrap()).unwrap();
    let prompt = "a red circle moves over a blue background";
    assert_eq!(tokenizer.prompt_ids(prompt).unwrap(), load(TOKENIZER).unwrap().prompt_ids(prompt).unwrap());
}

#[test]
fn a_prompt_that_is_too_long_is_refused() {
    let result = load(TOKENIZER).unwrap().prompt_ids(&"a".repeat(PROMPT_CHARS_MAX + 1));
    assert!(matches!(result, Err(WanError::Request(_))));
}

#[test]
fn files_that_are_no_tokenizer_are_refused_with_their_path() {
    let oversized = vec![b' '; TOKENIZER_BYTES_MAX + 1];
    let files: [&[u8]; 6] =
        [b"", b"{}", b"[1, 2]", b"\xff\xfe", &TOKENIZER[..TOKENIZER.len() / 2], &oversized];
    for bytes in files {
        let error = load(bytes).unwrap_err();
        assert!(matches!(error, WanError::Checkpoint { .. }), "{error}");
        assert!(error.to_string().starts_with("tokenizer/tokenizer.json: "), "{error}");
    }
    let missing = Tokenizer::open(Path::new("no/such/tokenizer.json")).unwrap_err();
    assert!(matches!(missing, WanError::Io { .. }), "{missing}");
}

#[test]
fn files_whose_parts_contradict_each_other_are_refused() {
    let broken = |edit: fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
        edit(&mut json);
        matches!(load(&serde_json::to_vec(&json).unwrap()), Err(WanError::Checkpoint { .. }))
    };
    assert!(!broken(|_| ()));
    assert!(broken(|json| json["post_processor"]["special_tokens"] = serde_json::json!({})));
    assert!(broken(|json| json["post_processor"]["single"][0]["Sequence"]["id"] = "B".into()));
    assert!(broken(|json| json["model"]["unk_id"] = 100_000.into()));
    assert!(broken(|json| {
        json["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
    }));
}

#[test]
fn a_damaged_file_is_refused_or_works_but_never_panics() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut works = 0;
    for _ in 0..5000 {
        let mut bytes = TOKENIZER.to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = b"0123456789-{}[]\",:aeflnrstu"[random(27)],
                1 => drop(bytes.drain(at..(at + 1 + random(20)).min(bytes.len()))),
                _ => {
                    let from = random(bytes.len());
                    let piece = bytes[from..(from + 1 + random(30)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        if let Ok(tokenizer) = load(&bytes) {
            works += usize::from(tokenizer.prompt_ids("a red 猫 🐶 </s> moves").is_ok());
        }
    }
    assert!(works > 0, "some damage is harmless");
}
