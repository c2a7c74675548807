//! Messages between this version and the version before it, which lacks the newest fields (`docs/operations/upgrade.md`). Raise this file with
//! each field that is added to a message that routers and nodes exchange in normal operation.

use identity::Mark;
use prost::Message;

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
