//! The explaining reader: walks a [`Node`] tree and collects everything wrong with it. What single members must be is in
//! [`values`].

mod values;

use std::{borrow::Cow, collections::HashSet};

use super::{
    MAX_BATCH_ITEMS, Rulebook,
    tree::{self, Node, TreeError},
};
use crate::http::problem::{Code, FieldError, Place, Problem};

/// Errors listed in one answer. A batch can hold a hundred thousand of them.
const MAX_ERRORS: usize = 100;

/// Collects errors in document order.
pub struct Explanation<'r> {
    rulebook: &'r Rulebook,
    errors: Vec<FieldError>,
    /// The first error of each code beyond [`MAX_ERRORS`] matters for the precedence, so those are still kept.
    seen: HashSet<&'static str>,
    /// More items than allowed are an answer of their own, whatever else is wrong.
    too_large: bool,
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
    members: &'n [(Cow<'a, str>, Node<'a>)],
    pointer: &'n str,
}

/// What is wrong with a body, as `examine` finds it.
pub fn explain(text: &str, rulebook: &Rulebook, examine: impl FnOnce(&mut Explanation<'_>, &Node<'_>)) -> Problem {
    match read_tree(text, "") {
        Ok(node) => {
            let mut explanation = Explanation::new(rulebook);
            examine(&mut explanation, &node);
            explanation.into_problem()
        }
        Err(problem) => problem,
    }
}

/// Reads the tree, or says why there is none. `pointer` is where the text stands in the whole body.
pub fn read_tree<'a>(text: &'a str, pointer: &str) -> Result<Node<'a>, Problem> {
    tree::read(text).map_err(|reason| match reason {
        TreeError::Syntax(detail) => Problem::body(Code::InvalidJson, pointer, detail),
        TreeError::TooManyValues => batch_too_large(),
    })
}

pub fn batch_too_large() -> Problem {
    Problem::new(Code::BatchTooLarge, format!("a batch has at most {MAX_BATCH_ITEMS} items"))
}

impl IdSource {
    /// Of a request about one thing.
    pub fn body_or(key: Option<&str>) -> Self {
        Self::BodyOrKey { key_given: key.is_some() }
    }
}

impl<'r> Explanation<'r> {
    pub fn new(rulebook: &'r Rulebook) -> Self {
        Self { rulebook, errors: Vec::new(), seen: HashSet::new(), too_large: false }
    }

    pub fn add(&mut self, code: Code, pointer: String, detail: impl Into<String>) {
        let new_code = self.seen.insert(code.as_str());
        if self.errors.len() < MAX_ERRORS || new_code {
            self.errors.push(FieldError { code, place: Place::Pointer(pointer), detail: detail.into() });
        }
    }

    pub fn into_problem(self) -> Problem {
        if self.too_large { batch_too_large() } else { Problem::malformed(self.errors) }
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

    fn duplicate_keys(&mut self, members: &[(Cow<'_, str>, Node<'_>)], pointer: &str) {
        let mut keys = HashSet::with_capacity(members.len());
        for (key, _) in members {
            if !keys.insert(key.as_ref()) {
                self.add(Code::InvalidJson, child(pointer, key), "the key is there twice");
            }
        }
    }

    /// The items of a batch; none where there are more than allowed, since there is no sense in examining them.
    pub fn items<'n, 'a>(&mut self, members: Members<'n, 'a>, name: &str) -> &'n [Node<'a>] {
        match members.get(name) {
            Some(Node::Array(items)) if items.len() > MAX_BATCH_ITEMS => {
                self.too_large = true;
                &[]
            }
            Some(Node::Array(items)) => {
                if items.is_empty() {
                    self.add(Code::InvalidJson, members.child(name), "a batch has at least one item");
                }
                items
            }
            other => {
                self.add(Code::InvalidJson, members.child(name), expected("an array", other));
                &[]
            }
        }
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
