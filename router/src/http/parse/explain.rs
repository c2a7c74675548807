//! The explaining reader: walks a [`Node`] tree and collects everything wrong with it.

use std::collections::{BTreeMap, HashSet};

use ledger::{AccountStatus, AssetCode, Limit, Metadata, TransferId};

use super::{
    MAX_BATCH_ITEMS, Rulebook, rules,
    tree::{self, Node, TreeError},
};
use crate::http::problem::{Code, FieldError, Place, Problem};

/// Errors listed in one answer. A batch can hold a hundred thousand of them.
const MAX_ERRORS: usize = 100;

/// Collects errors in document order.
pub struct Explanation<'r> {
    pub rulebook: &'r Rulebook,
    errors: Vec<FieldError>,
    /// The first error of each code beyond [`MAX_ERRORS`] matters for the precedence, so those are still kept.
    seen: HashSet<&'static str>,
}

/// Where the id of a transfer or hold may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdSource {
    /// The body only: an item of a batch.
    Body,
    /// The body, else the `Idempotency-Key` header, which is there or not.
    BodyOrKey { key_given: bool },
}

/// The members of an object under examination.
#[derive(Clone, Copy)]
pub struct Members<'n, 'a> {
    members: &'n [(std::borrow::Cow<'a, str>, Node<'a>)],
    pointer: &'n str,
}

/// Reads the tree, or says why there is none. `pointer` is where the text stands in the whole body.
pub fn read_tree<'a>(text: &'a str, pointer: &str) -> Result<Node<'a>, Problem> {
    tree::read(text).map_err(|reason| match reason {
        TreeError::Syntax(detail) => Problem::malformed(vec![FieldError {
            code: Code::InvalidJson,
            place: Place::Pointer(pointer.to_owned()),
            detail,
        }]),
        TreeError::TooManyValues => batch_too_large(),
    })
}

pub fn batch_too_large() -> Problem {
    Problem::new(Code::BatchTooLarge, format!("a batch has at most {MAX_BATCH_ITEMS} items"))
}

impl<'r> Explanation<'r> {
    pub fn new(rulebook: &'r Rulebook) -> Self {
        Self { rulebook, errors: Vec::new(), seen: HashSet::new() }
    }

    pub fn add(&mut self, code: Code, pointer: String, detail: impl Into<String>) {
        let new_code = self.seen.insert(code.as_str());
        if self.errors.len() < MAX_ERRORS || new_code {
            self.errors.push(FieldError { code, place: Place::Pointer(pointer), detail: detail.into() });
        }
    }

    pub fn into_problem(self) -> Problem {
        Problem::malformed(self.errors)
    }

    /// Takes over the errors of a part whose tree could not be read.
    pub fn absorb(&mut self, problem: &Problem, pointer: &str) {
        self.add(problem.code(), pointer.to_owned(), problem.detail().to_owned());
    }

    /// The members of an object: each known, none twice.
    pub fn object<'n, 'a>(
        &mut self,
        node: &'n Node<'a>,
        pointer: &'n str,
        known: &[&str],
    ) -> Option<Members<'n, 'a>> {
        let Node::Object(members) = node else {
            self.add(Code::InvalidJson, pointer.to_owned(), format!("expected an object, not {}", node.kind()));
            return None;
        };
        self.duplicate_keys(members, pointer);
        for (key, _) in members {
            if !known.contains(&key.as_ref()) {
                self.add(Code::UnknownField, child(pointer, key), format!("known here: {}", known.join(", ")));
            }
        }
        Some(Members { members, pointer })
    }

    fn duplicate_keys(&mut self, members: &[(std::borrow::Cow<'_, str>, Node<'_>)], pointer: &str) {
        let mut keys = HashSet::with_capacity(members.len());
        for (key, _) in members {
            if !keys.insert(key.as_ref()) {
                self.add(Code::InvalidJson, child(pointer, key), "the key is there twice");
            }
        }
    }

    /// The items of a batch. More than allowed is an answer of its own: there is no sense in examining them.
    pub fn items<'n, 'a>(&mut self, members: Members<'n, 'a>, name: &str) -> Result<&'n [Node<'a>], Problem> {
        let pointer = child(members.pointer, name);
        match members.get(name) {
            Some(Node::Array(items)) if items.len() > MAX_BATCH_ITEMS => Err(batch_too_large()),
            Some(Node::Array(items)) => {
                if items.is_empty() {
                    self.add(Code::InvalidJson, pointer, "a batch has at least one item");
                }
                Ok(items)
            }
            other => {
                self.add(Code::InvalidJson, pointer, expected("an array", other));
                Ok(&[])
            }
        }
    }

    pub fn account_id<'n>(&mut self, members: Members<'n, '_>, name: &str) -> Option<&'n str> {
        let text = self.required_text(members, name, Code::InvalidId)?;
        self.checked(members, name, Code::InvalidId, ledger::AccountId::client(text))?;
        Some(text)
    }

    pub fn transfer_id(&mut self, members: Members<'_, '_>, source: IdSource) -> Option<TransferId> {
        match members.get("id") {
            None | Some(Node::Null) => {
                let detail = match source {
                    IdSource::BodyOrKey { key_given: true } => return None,
                    IdSource::BodyOrKey { key_given: false } => "give an id, or the header Idempotency-Key",
                    IdSource::Body => "each item of a batch needs its own id",
                };
                self.add(Code::IdempotencyRequired, members.child("id"), detail);
                None
            }
            Some(Node::String(text)) => self.checked(members, "id", Code::InvalidId, rules::transfer_id(text)),
            other => {
                self.add(Code::InvalidId, members.child("id"), expected("a string", other));
                None
            }
        }
    }

    pub fn asset(&mut self, members: Members<'_, '_>) -> Option<(AssetCode, u32)> {
        let text = self.required_text(members, "asset", Code::InvalidAsset)?;
        self.checked(members, "asset", Code::InvalidAsset, rules::asset(text, &self.rulebook.assets))
    }

    pub fn positive_amount(&mut self, members: Members<'_, '_>, scale: Option<u32>) {
        if let Some(text) = self.required_text(members, "amount", Code::InvalidAmount) {
            self.checked(
                members,
                "amount",
                Code::InvalidAmount,
                rules::positive_amount(text, scale.unwrap_or_else(|| rules::written_scale(text))),
            );
        }
    }

    /// An amount that may be left out, of something whose asset is not known yet.
    pub fn optional_amount(&mut self, members: Members<'_, '_>) {
        if !matches!(members.get("amount"), None | Some(Node::Null)) {
            self.positive_amount(members, None);
        }
    }

    pub fn expires_in_s(&mut self, members: Members<'_, '_>) {
        match members.get("expires_in_s") {
            None | Some(Node::Null) => {}
            Some(Node::Number(Some(seconds))) => {
                self.checked(members, "expires_in_s", Code::InvalidExpiry, rules::expires_in_s(*seconds));
            }
            other => {
                let detail = expected("a whole number of seconds", other);
                self.add(Code::InvalidExpiry, members.child("expires_in_s"), detail);
            }
        }
    }

    /// An optional limit in the account's asset.
    pub fn limit(
        &mut self,
        members: Members<'_, '_>,
        name: &str,
        scale: Option<u32>,
        rule: fn(&str, u32) -> Result<Limit, String>,
        null_allowed: bool,
    ) {
        match members.get(name) {
            None => {}
            Some(Node::Null) if null_allowed => {}
            Some(Node::String(text)) => {
                self.checked(
                    members,
                    name,
                    Code::InvalidAmount,
                    rule(text, scale.unwrap_or_else(|| rules::written_scale(text))),
                );
            }
            other => self.add(Code::InvalidAmount, members.child(name), expected("a decimal string", other)),
        }
    }

    pub fn metadata(&mut self, members: Members<'_, '_>) {
        let pointer = members.child("metadata");
        let entries = match members.get("metadata") {
            None | Some(Node::Null) => return,
            Some(Node::Object(entries)) => entries,
            other => return self.add(Code::InvalidMetadata, pointer, expected("an object of strings", other)),
        };
        self.duplicate_keys(entries, &pointer);
        if entries.len() > Metadata::MAX_KEYS {
            return self.add(
                Code::InvalidMetadata,
                pointer,
                format!("metadata has at most {} keys", Metadata::MAX_KEYS),
            );
        }
        let mut map = BTreeMap::new();
        for (key, value) in entries {
            match value {
                Node::String(text) => {
                    map.insert(key.clone().into_owned(), text.clone().into_owned());
                }
                other => {
                    self.add(Code::InvalidMetadata, child(&pointer, key), expected("a string", Some(other)));
                }
            }
        }
        self.checked(members, "metadata", Code::InvalidMetadata, rules::metadata(&map));
    }

    pub fn status(&mut self, members: Members<'_, '_>) {
        match members.get("status") {
            None => {}
            Some(Node::String(text)) if AccountStatus::parse(text).is_some() => {}
            _ => self.add(Code::InvalidStatus, members.child("status"), "a status is open, frozen or closed"),
        }
    }

    pub fn boolean(&mut self, members: Members<'_, '_>, name: &str) {
        if let Some(node) = members.get(name)
            && !matches!(node, Node::Bool)
        {
            self.add(Code::InvalidJson, members.child(name), expected("true or false", Some(node)));
        }
    }

    fn required_text<'n>(&mut self, members: Members<'n, '_>, name: &str, code: Code) -> Option<&'n str> {
        match members.get(name) {
            Some(Node::String(text)) => Some(text),
            other => {
                self.add(code, members.child(name), expected("a string", other));
                None
            }
        }
    }

    fn checked<T, E: ToString>(
        &mut self,
        members: Members<'_, '_>,
        name: &str,
        code: Code,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.add(code, members.child(name), reason.to_string())).ok()
    }
}

impl<'n, 'a> Members<'n, 'a> {
    pub fn get(self, name: &str) -> Option<&'n Node<'a>> {
        self.members.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    pub fn is_empty(self) -> bool {
        self.members.is_empty()
    }

    pub fn child(self, name: &str) -> String {
        child(self.pointer, name)
    }
}

fn expected(what: &str, found: Option<&Node<'_>>) -> String {
    match found {
        None => format!("required: {what}"),
        Some(node) => format!("expected {what}, not {}", node.kind()),
    }
}

/// A JSON pointer (RFC 6901) one level down.
pub fn child(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}
