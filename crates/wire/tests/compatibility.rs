//! The protocol of this version against that of the version before (`docs/operations/upgrade.md`). The file of the version before is
//! `version_before/shardledger.proto`; replace it with the present file when a version is released.
//!
//! Messages are compared as they travel: by the numbers and types of their fields, from the methods on. A message may have another name if
//! it has every field of the former one. Messages with the newest fields are exchanged with that version, which lacks them.

use std::{collections::BTreeSet, path::Path};

use identity::Mark;
use prost::Message;
use protox::prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
        descriptor_proto::ReservedRange,
        field_descriptor_proto::{Label, Type},
    },
};

/// The protocol in a folder of this crate.
fn protocol(folder: &str) -> FileDescriptorSet {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    protox::compile([folder.join("shardledger.proto")], [folder]).expect("the protocol compiles")
}

/// What one of the two versions would misread of the other.
fn breaks(before: &FileDescriptorSet, now: &FileDescriptorSet) -> Vec<String> {
    let pool = |set: &FileDescriptorSet| {
        DescriptorPool::from_file_descriptor_set(set.clone()).expect("what protox compiles is consistent")
    };
    let (before, now) = (pool(before), pool(now));
    let mut comparison = Comparison::default();
    for service in before.services() {
        let Some(same) = now.get_service_by_name(service.full_name()) else {
            comparison.found.push(format!("the service {} is gone", service.full_name()));
            continue;
        };
        for method in service.methods() {
            match same.methods().find(|other| other.name() == method.name()) {
                Some(other) => comparison.methods(&method, &other),
                None => comparison.found.push(format!("the method {} is gone", method.full_name())),
            }
        }
    }
    comparison.found
}

#[derive(Default)]
struct Comparison {
    found: Vec<String>,
    /// Pairs of messages that are compared already.
    compared: BTreeSet<(String, String)>,
}

impl Comparison {
    fn methods(&mut self, before: &MethodDescriptor, now: &MethodDescriptor) {
        let streams = |method: &MethodDescriptor| (method.is_client_streaming(), method.is_server_streaming());
        if streams(before) != streams(now) {
            self.found.push(format!("{} streams otherwise", before.full_name()));
        }
        self.messages(&before.input(), &now.input());
        self.messages(&before.output(), &now.output());
    }

    fn messages(&mut self, before: &MessageDescriptor, now: &MessageDescriptor) {
        if !self.compared.insert((before.full_name().to_owned(), now.full_name().to_owned())) {
            return;
        }
        for field in before.fields() {
            let place = format!("{} = {}", field.full_name(), field.number());
            match now.get_field(field.number()) {
                Some(same) => self.fields(&place, &field, &same),
                None if now.reserved_ranges().any(|range| range.contains(&field.number())) => {}
                None => self.found.push(format!("{place} is gone, and its number is not reserved")),
            }
            if let Some(namesake) = now.get_field_by_name(field.name())
                && namesake.number() != field.number()
            {
                self.found.push(format!("{place} has the number {} now", namesake.number()));
            }
        }
    }

    fn fields(&mut self, place: &str, before: &FieldDescriptor, now: &FieldDescriptor) {
        if before.name() != now.name() {
            self.found.push(format!("{place} is called {} now", now.name()));
        }
        if before.cardinality() != now.cardinality() {
            self.found.push(format!("{place} was {:?} and is {:?}", before.cardinality(), now.cardinality()));
        }
        let choice = |field: &FieldDescriptor| field.containing_oneof().map(|oneof| oneof.name().to_owned());
        if choice(before) != choice(now) {
            self.found.push(format!("{place} was in the oneof {:?} and is in {:?}", choice(before), choice(now)));
        }
        match (before.kind(), now.kind()) {
            (Kind::Message(before), Kind::Message(now)) => self.messages(&before, &now),
            (Kind::Enum(before), Kind::Enum(now)) => self.enums(&before, &now),
            (before, now) if before != now => {
                self.found.push(format!("{place} had the type {before:?} and has {now:?}"))
            }
            _ => {}
        }
    }

    fn enums(&mut self, before: &EnumDescriptor, now: &EnumDescriptor) {
        for value in before.values() {
            let same = now.get_value(value.number());
            let is_reserved = now.reserved_ranges().any(|range| range.contains(&value.number()));
            if same.is_none_or(|same| same.name() != value.name()) && !is_reserved {
                self.found.push(format!("{} = {} is gone or has another name", value.full_name(), value.number()));
            }
        }
    }
}

#[test]
fn nothing_of_the_version_before_is_removed_renumbered_or_retyped() {
    let found = breaks(&protocol("tests/version_before"), &protocol("proto"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

// === the comparison itself ===

/// A change, and what the comparison says of it.
type Change = (&'static str, fn(&mut FileDescriptorProto));

fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut DescriptorProto {
    file.message_type.iter_mut().find(|message| message.name() == name).expect("a message of the protocol")
}

fn field<'a>(file: &'a mut FileDescriptorProto, of: &str, name: &str) -> &'a mut FieldDescriptorProto {
    message(file, of).field.iter_mut().find(|field| field.name() == name).expect("a field of the message")
}

fn remove_time_limit(file: &mut FileDescriptorProto) {
    message(file, "Operation").field.retain(|field| field.name() != "timeout_ms");
}

fn after(change: fn(&mut FileDescriptorProto)) -> Vec<String> {
    let before = protocol("proto");
    let mut now = before.clone();
    now.file.iter_mut().for_each(change);
    breaks(&before, &now)
}

#[test]
fn each_kind_of_break_is_found() {
    let changes: [Change; 8] = [
        ("Operation.timeout_ms = 1 is gone", remove_time_limit),
        ("Operation.timeout_ms = 1 has the number 90", |file| {
            field(file, "Operation", "timeout_ms").number = Some(90)
        }),
        ("Operation.timeout_ms = 1 is called patience_ms", |file| {
            let field = field(file, "Operation", "timeout_ms");
            field.name = Some("patience_ms".to_owned());
            field.json_name = Some("patienceMs".to_owned());
        }),
        ("Operation.timeout_ms = 1 had the type uint32", |file| {
            field(file, "Operation", "timeout_ms").set_type(Type::Int64);
        }),
        ("Operation.timeout_ms = 1 was Optional", |file| {
            field(file, "Operation", "timeout_ms").set_label(Label::Repeated);
        }),
        ("Operation.place_hold = 16 was in the oneof", |file| {
            field(file, "Operation", "place_hold").oneof_index = None
        }),
        ("the method shardledger.v1.ShardNode.Identify is gone", |file| {
            file.service[0].method.retain(|method| method.name() != "Identify");
        }),
        ("ExecuteResponse.results = 1 is gone", |file| {
            let execute = file.service[0].method.iter_mut().find(|method| method.name() == "Execute").unwrap();
            execute.output_type = Some(".shardledger.v1.NotFound".to_owned());
        }),
    ];
    for (words, change) in changes {
        let found = after(change);
        assert!(found.iter().any(|found| found.contains(words)), "{words}: {found:?}");
    }
}

#[test]
fn a_field_may_go_when_its_number_is_reserved_and_may_be_added() {
    let found = after(|file| {
        remove_time_limit(file);
        let operation = message(file, "Operation");
        operation.reserved_range.push(ReservedRange { start: Some(1), end: Some(2) });
        let mut added = operation.field[0].clone();
        added.name = Some("added".to_owned());
        added.json_name = Some("added".to_owned());
        added.number = Some(90);
        operation.field.push(added);
    });
    assert!(found.is_empty(), "{found:?}");
}

// === messages exchanged with the version before; raise these with each field that is added to a message of normal operation ===

/// `Mark` of the version before.
#[derive(Clone, PartialEq, Message)]
struct MarkBefore {
    #[prost(int64, tag = "1")]
    incarnation: i64,
    #[prost(int64, tag = "2")]
    timeline: i64,
    #[prost(int64, tag = "3")]
    position: i64,
}

/// `Operation` of the version before, without its kinds.
#[derive(Clone, PartialEq, Message)]
struct OperationBefore {
    #[prost(uint32, tag = "1")]
    timeout_ms: u32,
    #[prost(uint32, tag = "2")]
    order_group: u32,
    #[prost(bool, tag = "3")]
    dry_run: bool,
}

#[test]
fn the_version_before_reads_a_mark_without_the_beginning_of_its_timeline() {
    let mark = Mark { incarnation: 1, timeline: 2, position: 300, began: 100, earlier: 90 };
    let read = MarkBefore::decode(wire::Mark::from(mark).encode_to_vec().as_slice()).unwrap();
    assert_eq!(read, MarkBefore { incarnation: 1, timeline: 2, position: 300 });
}

#[test]
fn a_mark_of_the_version_before_knows_no_beginning_and_is_no_loss() {
    let before = MarkBefore { incarnation: 1, timeline: 1, position: 200 };
    let read: Mark = wire::Mark::decode(before.encode_to_vec().as_slice()).unwrap().into();
    assert_eq!(read, Mark { incarnation: 1, timeline: 1, position: 200, ..Mark::default() });
    let unknown_beginning = Mark { incarnation: 1, timeline: 2, position: 300, ..Mark::default() };
    assert!(!unknown_beginning.is_behind(read), "a node of the version before does not say where its timeline began");
    assert!(Mark { began: 100, ..unknown_beginning }.is_behind(read), "its marks are evidence for this version");
}

#[test]
fn an_operation_of_the_version_before_stores_its_refusals() {
    let before = OperationBefore { timeout_ms: 5, order_group: 6, dry_run: false };
    let read = wire::Operation::decode(before.encode_to_vec().as_slice()).unwrap();
    assert_eq!((read.timeout_ms, read.order_group, read.or_nothing), (5, 6, false));
    let sent = wire::Operation { or_nothing: true, ..read };
    assert_eq!(OperationBefore::decode(sent.encode_to_vec().as_slice()).unwrap(), before);
}
