//! Names of videos: drawn, never chosen by a client, and safe as names of files.

use std::fmt;

const PREFIX: &str = "video_";
const HEX_DIGITS: usize = 32;

/// `video_` and 32 lower-case hexadecimal digits. Nothing else parses, so a name can never lead out of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VideoId(String);

impl VideoId {
    /// A name that nobody has and nobody can guess.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self(format!("{PREFIX}{}", random_hex::<{ HEX_DIGITS / 2 }>()?)))
    }

    /// The name, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let is_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (digits.len() == HEX_DIGITS && is_hex).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VideoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `N` random bytes in hexadecimal.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_hex<const N: usize>() -> Result<String, getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drawn_names_parse() {
        let id = VideoId::draw().unwrap();
        assert_eq!(VideoId::parse(id.as_str()), Some(id.clone()));
        assert_ne!(VideoId::draw().unwrap(), id);
        let upper = id.as_str().to_uppercase();
        let long = format!("{id}0");
        for wrong in ["", "video_", "../../etc/passwd", "video_../../x", &upper, &long, &id.as_str()[1..]] {
            assert_eq!(VideoId::parse(wrong), None, "{wrong}");
        }
    }
}
