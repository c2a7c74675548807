//! What account ids begin with.

use crate::id::{AccountId, InvalidAccountId};

/// The beginning of account ids: 0 to 128 of their characters. The empty one is the beginning of every id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountPrefix(String);

impl AccountPrefix {
    /// Some text that account ids may begin with. Whatever is not empty and begins an id is one itself.
    pub fn new(text: &str) -> Result<Self, InvalidAccountId> {
        if !text.is_empty() {
            AccountId::any(text)?;
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn begins(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }

    /// The first text after every id that begins so, in the order of bytes: ids that begin so are a range.
    pub fn end(&self) -> String {
        // The characters of ids are ASCII and none is the last of it, so that each has a successor; that of all ids together
        // is the character beyond theirs.
        let mut end = self.0.clone();
        let last = end.pop().map_or(Self::BEYOND, |last| char::from_u32(u32::from(last) + 1).unwrap_or(Self::BEYOND));
        end.push(last);
        end
    }

    /// After each character of an id.
    const BEYOND: char = '\u{7f}';
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_of_the_characters_of_ids() {
        for good in ["", "a", "{user42}:", "@", "Z._:-{}@", &"a".repeat(128)] {
            assert_eq!(AccountPrefix::new(good).unwrap().as_str(), good);
        }
        for bad in [" ", "a b", "a%", "á", "a\0", &"a".repeat(129)] {
            assert!(AccountPrefix::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_begins_so_is_a_range() {
        let ids = ["-", "0", "@x", "A", "Z", "a", "aZ", "a{", "a}", "a}}", "b", "zz", "{", "{t}:1", "}", "}}}"];
        for prefix in ["", "a", "a}", "}", "{t}:", "z", "nothing"] {
            let prefix = AccountPrefix::new(prefix).unwrap();
            for id in ids {
                let within = id >= prefix.as_str() && id < prefix.end().as_str();
                assert_eq!(within, prefix.begins(id), "{id} and {prefix:?}");
            }
        }
    }
}
