//! Signatures of Standard Webhooks (standardwebhooks.com, version 1): HMAC-SHA256 over `id.timestamp.body`.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

const PREFIX: &str = "whsec_";
const BLOCK_BYTES: usize = 64;
/// The standard asks for 24 to 64 bytes.
const BYTES_MIN: usize = 24;
const BYTES_MAX: usize = 64;
const DRAWN_BYTES: usize = 32;
const FILE: &str = "webhook.secret";

/// What both sides know.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Reads `whsec_` and base64.
    ///
    /// # Errors
    /// One sentence that says what a secret is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(|digits| base64::decode(digits).ok());
        bytes
            .filter(|bytes| (BYTES_MIN..=BYTES_MAX).contains(&bytes.len()))
            .map(Self)
            .ok_or_else(|| format!("a secret is {PREFIX} and {BYTES_MIN} to {BYTES_MAX} bytes in base64"))
    }

    /// A secret that nobody has.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut bytes = vec![0; DRAWN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// As [`Self::parse`] reads it.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", base64::encode(&self.0))
    }

    /// The secret that a data directory keeps; the first time one is drawn.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub(crate) fn kept(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return Self::parse(&text)
                    .map_err(|sentence| io::Error::other(format!("{FILE}: {sentence}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let drawn = Self::draw().map_err(io::Error::other)?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        writeln!(file, "{}", drawn.text())?;
        file.sync_all()?;
        Ok(drawn)
    }

    /// The value of `webhook-signature` for a message, its moment in seconds since 1970 and its body.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &str) -> String {
        let digest = hmac_sha256(&self.0, format!("{id}.{timestamp_s}.{body}").as_bytes());
        format!("v1,{}", base64::encode(digest))
    }
}

/// HMAC (RFC 2104) with SHA-256, for keys of at most one block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; BLOCK_BYTES];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_standards() {
        // RFC 4231, test cases 1 and 2.
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(hmac_sha256(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            hex(hmac_sha256(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        // The example of the Standard Webhooks libraries.
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_are_checked_drawn_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let drawn = Secret::kept(dir.path()).unwrap();
        assert_eq!(Secret::kept(dir.path()).unwrap(), drawn);
        assert_eq!(Secret::parse(&drawn.text()).unwrap(), drawn);
        assert!(!format!("{drawn:?}").contains(&drawn.text()[6..]));
        for wrong in ["", "whsec_", "whsec_AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "whsec_!"] {
            assert!(Secret::parse(wrong).unwrap_err().contains("base64"), "{wrong}");
        }
        std::fs::write(dir.path().join(FILE), "spoilt").unwrap();
        assert!(Secret::kept(dir.path()).is_err());
    }
}
