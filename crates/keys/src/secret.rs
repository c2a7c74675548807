//! The secret of a key, and its digest.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// What every secret begins with, so that scanners of repositories and logs find one.
const BEGINNING: &str = "slk_";
const BYTES: usize = 32;

/// 256 random bits as a client sends them: `slk_` and 64 hexadecimal digits. Its `Debug` does not show it.
pub struct Secret(String);

/// The SHA-256 of a secret's text.
#[derive(Debug, Clone, Copy)]
pub struct Digest([u8; BYTES]);

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not the SHA-256 of a key: 64 hexadecimal digits")]
pub struct InvalidDigest;

impl Secret {
    /// A new one, from the system's source of randomness.
    ///
    /// # Errors
    /// The system has none.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{BEGINNING}{}", hexadecimal(&bytes))))
    }

    /// The text to hand to the client, once.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Digest {
    /// Of what a client sent, which may be any text.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Finds candidates. A digest is no secret, and neither is a part of it.
    pub(crate) fn beginning(&self) -> [u8; 8] {
        let mut beginning = [0; 8];
        beginning.copy_from_slice(&self.0[..8]);
        beginning
    }

    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != BYTES || !rest.is_empty() {
            return Err(InvalidDigest);
        }
        let mut digest = [0; BYTES];
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low).ok_or(InvalidDigest)?;
        }
        Ok(Self(digest))
    }
}

/// In constant time.
impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_random_and_not_shown_by_accident() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert!(one.text().len() == 68 && one.text().starts_with(BEGINNING) && one.text() != other.text());
        assert_eq!(format!("{one:?}"), "Secret");
    }

    #[test]
    fn a_digest_is_that_of_sha_256_and_comes_back_from_its_text() {
        let digest = Digest::of("abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        assert_ne!(digest, Digest::of("abd"));
        for bad in ["", "ba", &"z".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(Digest::parse(bad), Err(InvalidDigest), "{bad}");
        }
    }
}
