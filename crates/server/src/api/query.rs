//! What stands behind the `?` of a path. As with fields, what is not known is refused: a misspelt parameter must not be ignored.

use super::error::ApiError;
use crate::nearest::nearest;

/// The parameters of a query, in its order: names that `known` has, and their values.
pub(super) fn parameters<'a>(
    query: Option<&'a str>,
    what: &str,
    known: &[&str],
) -> Result<Vec<(&'a str, &'a str)>, ApiError> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pairs: Vec<_> = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    if let Some((unknown, _)) = pairs.iter().find(|(name, _)| !known.contains(name)) {
        let sentence = if known.is_empty() {
            format!("{what} has no parameters; send its fields in the body")
        } else {
            format!("{what} has no such parameter; the nearest is {}", nearest(unknown, known))
        };
        let shown: String = unknown.chars().take(64).collect();
        return Err(ApiError::field(shown, sentence).with_code("unknown_parameter"));
    }
    Ok(pairs)
}
