//! The name that somebody probably meant.

use std::cmp::Reverse;

/// Of `known`, the name that takes the fewest edits from `given`; of several, the one that begins most like it.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> &'a str {
    let alike = |name: &str| given.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
    known.iter().copied().min_by_key(|name| (distance(given, name), Reverse(alike(name)))).unwrap_or_default()
}

/// Levenshtein's distance in characters; a name that begins like what was given counts as near.
fn distance(given: &str, name: &str) -> usize {
    let given: Vec<char> = given.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=given.len()).collect();
    let mut n_chars = 0;
    for c in name.chars() {
        n_chars += 1;
        let mut diagonal = std::mem::replace(&mut row[0], n_chars);
        for at in 0..given.len() {
            let changed = diagonal + usize::from(given[at] != c);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    let prefix: String = given.iter().collect();
    if !prefix.is_empty() && name.starts_with(&prefix) { 1 } else { row[given.len()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_edits_win_and_a_beginning_counts() {
        let known = ["size", "seed", "seconds", "num_inference_steps", "num_frames", "guidance_scale"];
        assert_eq!((nearest("sed", &known), nearest("sede", &known)), ("seed", "seed"));
        assert_eq!(nearest("num_steps", &known), "num_frames");
        assert_eq!(nearest("guidance", &known), "guidance_scale");
        assert_eq!(nearest("num_infrence_steps", &known), "num_inference_steps");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
