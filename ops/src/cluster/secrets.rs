//! Passwords, made where they are needed and written to one file each.

use std::{fs::File, io::Read};

use anyhow::Context;

/// Letters and digits only, so that a password stands in a URL and in SQL as it is.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// 62^32 is a little more than 2^190.
const LENGTH: usize = 32;

/// A new password from the kernel's random numbers.
pub fn new_password() -> anyhow::Result<String> {
    let mut source = File::open("/dev/urandom").context("no source of random numbers")?;
    let mut password = String::with_capacity(LENGTH);
    let mut byte = [0_u8];
    while password.len() < LENGTH {
        source.read_exact(&mut byte)?;
        // 256 is no multiple of 62: taking the remainder of all bytes would favour the first letters.
        if let Some(letter) = ALPHABET.get(usize::from(byte[0] >> 2)) {
            password.push(char::from(*letter));
        }
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_plain_and_new() {
        let (first, second) = (new_password().unwrap(), new_password().unwrap());
        assert_eq!(first.len(), LENGTH);
        assert!(first.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(first, second);
    }
}
