//! What single members of a body must be, each checked by its rule.

use std::collections::BTreeMap;

use ledger::{AccountId, AccountStatus, AssetCode, Metadata, TransferId};

use super::{Explanation, IdSource, Members, child, expected};
use crate::http::{
    parse::{
        rules::{self, LimitRule},
        tree::Node,
    },
    problem::Code,
};

impl Explanation<'_> {
    /// What a transfer and a hold have in common: under which id, who pays whom, and how much.
    pub fn terms(&mut self, members: Members<'_, '_>, source: IdSource) -> Option<TransferId> {
        let id = self.transfer_id(members, source);
        let debit = self.account_id(members, "debit");
        let credit = self.account_id(members, "credit");
        if debit.is_some() && debit == credit {
            self.add(Code::SameAccount, members.child("credit"), "debit and credit must be two accounts");
        }
        let scale = self.asset(members).map(|(_, scale)| scale);
        self.positive_amount(members, scale);
        id
    }

    pub fn account_id<'n>(&mut self, members: Members<'n, '_>, name: &str) -> Option<&'n str> {
        let text = self.required_text(members, name, Code::InvalidId)?;
        self.checked(members, name, Code::InvalidId, AccountId::client(text))?;
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
        rule: LimitRule,
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
