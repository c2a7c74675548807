//! The reader of JSON bodies.
//!
//! A body is read into a tree that keeps what typed reading loses: keys that occur twice, and values of a wrong type with their place. Each
//! resource takes the members of its body from the tree, one by one; [`values`] has the rules for single values. The [`Reader`] collects
//! everything that is wrong with the body, each error with its code and its JSON pointer, so that one answer names all of it.
//!
//! serde_json bounds the depth of a body (128 levels), [`MAX_VALUES`] the number of its values.

pub mod values;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, cell::Cell, collections::HashSet, fmt};

use ledger::AssetRegistry;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::problem::{Code, FieldError, MAX_ERRORS, Place, Problem};

/// Items in one batch.
pub const MAX_BATCH_ITEMS: usize = 10_000;
/// More values than the largest legal batch has (10,000 transfers of 7 values and 16 metadata keys).
const MAX_VALUES: usize = 400_000;
/// Objects with more members are searched for equal keys by hash.
const FEW_MEMBERS: usize = 32;

/// Reads a body with `read`, which returns `None` where it has reported an error to the reader.
///
/// # Errors
/// Everything that is wrong with the body.
pub fn read_body<T>(
    text: &str,
    assets: &AssetRegistry,
    read: impl FnOnce(&mut Reader<'_>, &Node<'_>) -> Option<T>,
) -> Result<T, Problem> {
    let node = read_tree(text).map_err(|error| match error {
        TreeError::Syntax(detail) => Problem::body(Code::InvalidJson, "", detail),
        TreeError::TooManyValues => batch_too_large(),
    })?;
    let mut reader = Reader::new(assets);
    let value = read(&mut reader, &node);
    reader.finish(value)
}

pub fn batch_too_large() -> Problem {
    Problem::new(Code::BatchTooLarge, format!("a batch has at most {MAX_BATCH_ITEMS} items"))
}

/// Collects the errors of a body in document order.
pub struct Reader<'r> {
    assets: &'r AssetRegistry,
    errors: Vec<FieldError>,
    /// The codes of `errors`. The first error of each code is kept beyond [`MAX_ERRORS`], because the code of the answer depends on it.
    seen: HashSet<&'static str>,
    /// A batch with more items than allowed is answered so, whatever else is wrong with it.
    too_large: bool,
}

/// A place in a body.
#[derive(Debug, Clone, Copy)]
pub enum Pointer<'p> {
    Root,
    Member(&'p Self, &'p str),
    Item(&'p Self, usize),
}

/// The members of an object, and its place.
#[derive(Clone, Copy)]
pub struct Object<'n, 'a> {
    members: &'n [(Cow<'a, str>, Node<'a>)],
    place: Pointer<'n>,
}

impl<'r> Reader<'r> {
    pub fn new(assets: &'r AssetRegistry) -> Self {
        Self { assets, errors: Vec::new(), seen: HashSet::new(), too_large: false }
    }

    /// Returns the value that was read, unless something is wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            _ if self.too_large => Err(batch_too_large()),
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(Problem::malformed(self.errors)),
        }
    }

    /// Reports an error.
    pub fn add(&mut self, code: Code, place: Pointer<'_>, detail: impl Into<String>) {
        let is_new_code = self.seen.insert(code.as_str());
        if self.errors.len() < MAX_ERRORS || is_new_code {
            self.errors.push(FieldError { code, place: Place::Pointer(place.to_string()), detail: detail.into() });
        }
    }

    /// Reads the tree of one line of a body.
    pub fn line<'a>(&mut self, text: &'a str, place: Pointer<'_>) -> Option<Node<'a>> {
        match read_tree(text) {
            Ok(node) => return Some(node),
            Err(TreeError::Syntax(detail)) => self.add(Code::InvalidJson, place, detail),
            Err(TreeError::TooManyValues) => self.add(Code::BatchTooLarge, place, batch_too_large().detail()),
        }
        None
    }

    /// The members of an object. Unknown keys and keys that occur twice are errors.
    pub fn object<'n, 'a>(
        &mut self,
        node: &'n Node<'a>,
        place: Pointer<'n>,
        known: &[&str],
    ) -> Option<Object<'n, 'a>> {
        let Node::Object(members) = node else {
            self.add(Code::InvalidJson, place, format!("expected an object, not {}", node.kind()));
            return None;
        };
        self.keys_differ(members, place);
        for (key, _) in members {
            if !known.contains(&key.as_ref()) {
                self.add(
                    Code::UnknownField,
                    Pointer::Member(&place, key),
                    format!("known here: {}", known.join(", ")),
                );
            }
        }
        Some(Object { members, place })
    }

    /// Whether no key occurs twice.
    fn keys_differ(&mut self, members: &[(Cow<'_, str>, Node<'_>)], place: Pointer<'_>) -> bool {
        let mut hashed = HashSet::new();
        let mut differ = true;
        for (index, (key, _)) in members.iter().enumerate() {
            let is_new = match members.len() {
                ..=FEW_MEMBERS => members[..index].iter().all(|(before, _)| before != key),
                _ => hashed.insert(key.as_ref()),
            };
            if !is_new {
                differ = false;
                self.add(Code::InvalidJson, Pointer::Member(&place, key), "the key is there twice");
            }
        }
        differ
    }

    /// The items of a batch. A batch with more items than allowed has none, because examining them serves no purpose.
    pub fn items<'n, 'a>(&mut self, object: Object<'n, 'a>, name: &str) -> &'n [Node<'a>] {
        match object.get(name) {
            Some(Node::Array(items)) if items.len() > MAX_BATCH_ITEMS => {
                self.too_large = true;
                &[]
            }
            Some(Node::Array(items)) => {
                if items.is_empty() {
                    self.add(Code::InvalidJson, object.place_of(name), "a batch has at least one item");
                }
                items
            }
            other => {
                self.add(Code::InvalidJson, object.place_of(name), expected("an array", other));
                &[]
            }
        }
    }
}

impl<'n, 'a> Object<'n, 'a> {
    pub fn get(&self, name: &str) -> Option<&'n Node<'a>> {
        self.members.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn place_of<'p>(&'p self, name: &'p str) -> Pointer<'p> {
        Pointer::Member(&self.place, name)
    }
}

fn expected(what: &str, found: Option<&Node<'_>>) -> String {
    match found {
        None => format!("required: {what}"),
        Some(node) => format!("expected {what}, not {}", node.kind()),
    }
}

/// As a JSON pointer (RFC 6901).
impl fmt::Display for Pointer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, name) => write!(f, "{parent}/{}", name.replace('~', "~0").replace('/', "~1")),
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

// === the tree ===

/// One JSON value.
#[derive(Debug)]
pub enum Node<'a> {
    Null,
    Bool(bool),
    /// The value of a number that is whole and not negative; the API takes no others.
    Number(Option<u64>),
    String(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    /// In document order, with keys that occur twice.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// Why a text has no tree.
#[derive(Debug)]
enum TreeError {
    Syntax(String),
    TooManyValues,
}

/// Reads one JSON document and nothing after it.
fn read_tree(text: &str) -> Result<Node<'_>, TreeError> {
    let budget = Cell::new(MAX_VALUES);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let node = Seed(&budget).deserialize(&mut deserializer).and_then(|node| deserializer.end().map(|()| node));
    node.map_err(|reason| match budget.get() {
        0 => TreeError::TooManyValues,
        _ => TreeError::Syntax(reason.to_string()),
    })
}

impl Node<'_> {
    /// The kind of value, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Reads a value, with a budget for the number of values in the body.
#[derive(Clone, Copy)]
struct Seed<'b>(&'b Cell<usize>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        let left = self.0.get().saturating_sub(1);
        self.0.set(left);
        if left == 0 {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(u64::try_from(value).ok()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(Some(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Number(values::whole(value)))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::String(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::String(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node::Array(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node<'de>, A::Error> {
        let mut nodes = Vec::new();
        while let Some(key) = members.next_key_seed(Key)? {
            nodes.push((key, members.next_value_seed(self)?));
        }
        Ok(Node::Object(nodes))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}
