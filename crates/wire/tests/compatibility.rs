//! The protocol of this version against that of the version before (`docs/operations/upgrade.md`). The file of the version before is
//! `version_before/shardledger.proto`; replace it with the present file when a version is released.
//!
//! Messages are compared as they travel: by the numbers and types of their fields, from the methods on. A message may have another name if
//! it has every field of the former one.

use std::{collections::BTreeSet, path::Path};

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
