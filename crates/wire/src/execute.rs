//! The Execute call from the caller's side, without generated messages in between: the request is written from the
//! ledger's operations, and each result of the answer becomes a [`Reply`] as it is read. A call carries thousands of
//! operations; as generated messages they would be built, measured and written one after the other.

use identity::Mark;
use ledger::{
    KeyName, TransferId,
    operation::{Decide, Operation, Purpose, Settle, Transfer},
    outcome::Reply,
};
use prost::{
    Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encoded_len_varint, skip_field},
};
use tonic::{
    GrpcMethod, Request, Response, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Body as HttpBody, StdError, http::uri::PathAndQuery},
};

use crate::{
    convert::{BadMessage, operation_to_wire, purpose_to_wire, refused_to_wire, shard_mark_to_wire, verdict_to_wire},
    generated as wire,
};

const SERVICE: &str = "shardledger.v1.ShardNode";
const METHOD: &str = "Execute";
const PATH: &str = "/shardledger.v1.ShardNode/Execute";

/// Numbers of fields in `ExecuteRequest` and `Operation`.
mod tag {
    pub const OPERATIONS: u32 = 1;
    pub const TRACES: u32 = 2;
    pub const ASSETS_DIGEST: u32 = 3;
    pub const SENT_AT_US: u32 = 4;

    pub const TIMEOUT_MS: u32 = 1;
    pub const ORDER_GROUP: u32 = 2;
    pub const PEER: u32 = 4;
    pub const TRANSFER: u32 = 12;
    pub const DECIDE: u32 = 14;
    pub const SETTLE: u32 = 15;

    /// In `ExecuteResponse`.
    pub const RESULTS: u32 = 1;
    pub const MARK: u32 = 2;
    pub const AFTER_DOUBT: u32 = 3;
}

/// A posted transfer's result, rounded down: by it the replies are reserved.
const USUAL_RESULT_BYTES: usize = 32;

/// An encoded `ExecuteRequest`.
#[derive(Debug)]
pub struct ExecuteCall(Vec<u8>);

/// The answer to an Execute call.
#[derive(Debug)]
pub struct Executed {
    /// One for each operation, in order.
    pub replies: Vec<Result<Reply, BadMessage>>,
    pub mark: Option<Mark>,
    /// The COMMIT of an earlier attempt of this call was not answered. A replay among the results may be the effect of that attempt.
    pub after_doubt: bool,
}

impl ExecuteCall {
    /// A call without operations, with room for as many bytes. `sent_at_us` is the present by the node's steady clock, in microseconds,
    /// if the caller knows it.
    pub fn new(assets_digest: u64, sent_at_us: Option<i64>, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        Field::Number(tag::ASSETS_DIGEST, assets_digest).write(&mut bytes);
        let sent_at_us = sent_at_us.and_then(|us| u64::try_from(us).ok()).unwrap_or(0);
        Field::Number(tag::SENT_AT_US, sent_at_us).write(&mut bytes);
        Self(bytes)
    }

    /// Names the trace context of `count` operations from `first` on.
    pub fn trace(&mut self, traceparent: &str, first: usize, count: usize) {
        let number = |number: usize| u64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let trace = [
            Field::Bytes(1, traceparent.as_bytes()),
            Field::Number(2, number(first)),
            Field::Number(3, number(count)),
        ];
        write_key(&mut self.0, tag::TRACES, WireType::LengthDelimited);
        write_varint(&mut self.0, total(&trace) as u64);
        write_all(&mut self.0, &trace);
    }

    /// Adds an operation. `peer` is the mark of the shard at the other end of a saga.
    pub fn push(&mut self, operation: &Operation, order_group: u32, timeout_ms: u32, peer: Option<(u16, Mark)>) {
        let peer = peer.map(|peer| shard_mark_to_wire(peer).encode_to_vec());
        let head = [
            Field::Number(tag::TIMEOUT_MS, timeout_ms.into()),
            Field::Number(tag::ORDER_GROUP, order_group.into()),
            Field::Message(tag::PEER, peer.as_deref()),
        ];
        match operation {
            Operation::Transfer(transfer) => {
                let purpose = purpose(transfer.purpose);
                self.write(&head, tag::TRANSFER, &transfer_fields(transfer, purpose.as_deref()));
            }
            Operation::Decide(decide) => {
                let purpose = purpose(decide.purpose);
                self.write(&head, tag::DECIDE, &decide_fields(decide, purpose.as_deref()));
            }
            Operation::Settle(settle) => {
                let purpose = purpose(settle.purpose);
                self.write(&head, tag::SETTLE, &settle_fields(settle, purpose.as_deref()));
            }
            // Seldom many in one call.
            Operation::CreateAccount(_)
            | Operation::UpdateAccount(_)
            | Operation::AtomicTransfers(_)
            | Operation::PlaceHold(_)
            | Operation::ReleaseHold(_)
            | Operation::ExpireHold(_)
            | Operation::EraseMetadata(_)
            | Operation::DryRun(_)
            | Operation::OrNothing(_) => {
                let message = operation_to_wire(operation, order_group, timeout_ms);
                let message = message.encode_to_vec();
                let peer = Field::Message(tag::PEER, peer.as_deref());
                write_key(&mut self.0, tag::OPERATIONS, WireType::LengthDelimited);
                write_varint(&mut self.0, (message.len() + peer.len()) as u64);
                self.0.put_slice(&message);
                peer.write(&mut self.0);
            }
        }
    }

    /// Writes an operation whose kind is the message of `fields`.
    fn write(&mut self, head: &[Field<'_>], kind: u32, fields: &[Field<'_>]) {
        let kind_len = total(fields);
        let len = total(head) + delimited_len(kind, kind_len);
        write_key(&mut self.0, tag::OPERATIONS, WireType::LengthDelimited);
        write_varint(&mut self.0, len as u64);
        write_all(&mut self.0, head);
        write_key(&mut self.0, kind, WireType::LengthDelimited);
        write_varint(&mut self.0, kind_len as u64);
        write_all(&mut self.0, fields);
    }
}

/// Makes the call.
pub async fn execute<T>(client: &mut Grpc<T>, call: ExecuteCall) -> Result<Response<Executed>, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: HttpBody<Data = prost::bytes::Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
{
    client.ready().await.map_err(|error| Status::unknown(format!("Service was not ready: {}", error.into())))?;
    let mut request = Request::new(call);
    request.extensions_mut().insert(GrpcMethod::new(SERVICE, METHOD));
    client.unary(request, PathAndQuery::from_static(PATH), ExecuteCodec).await
}

fn purpose(purpose: Purpose) -> Option<Vec<u8>> {
    purpose_to_wire(purpose).map(|message| message.encode_to_vec())
}

fn transfer_fields<'a>(transfer: &'a Transfer, purpose: Option<&'a [u8]>) -> [Field<'a>; 11] {
    [
        Field::id(1, &transfer.id),
        Field::Bytes(2, transfer.debit.as_str().as_bytes()),
        Field::Bytes(3, transfer.credit.as_str().as_bytes()),
        Field::Bytes(4, transfer.asset.as_str().as_bytes()),
        Field::signed(5, transfer.amount),
        Field::Bytes(6, transfer.metadata.as_str().as_bytes()),
        Field::Number(7, transfer.cross_shard.into()),
        Field::Number(8, transfer.defer_insufficient.into()),
        Field::Message(9, purpose),
        Field::Number(10, transfer.defer_limited.into()),
        Field::name(11, transfer.ordered_by.as_ref()),
    ]
}

fn decide_fields<'a>(decide: &'a Decide, purpose: Option<&'a [u8]>) -> [Field<'a>; 11] {
    let (refusal, side) = decide.presumed.map_or((0, 0), refused_to_wire);
    [
        Field::id(1, &decide.id),
        Field::Bytes(2, decide.debit.as_str().as_bytes()),
        Field::Bytes(3, decide.credit.as_str().as_bytes()),
        Field::Bytes(4, decide.asset.as_str().as_bytes()),
        Field::signed(5, decide.amount),
        Field::Message(6, purpose),
        Field::Number(7, refusal.into()),
        Field::Number(8, side.into()),
        Field::Number(9, decide.defer_limited.into()),
        Field::Number(10, decide.patient.into()),
        Field::name(11, decide.ordered_by.as_ref()),
    ]
}

fn settle_fields<'a>(settle: &'a Settle, purpose: Option<&'a [u8]>) -> [Field<'a>; 10] {
    let (credited, refusal, side) = verdict_to_wire(settle.verdict);
    [
        Field::id(1, &settle.id),
        Field::Bytes(2, settle.debit.as_str().as_bytes()),
        Field::Bytes(3, settle.credit.as_str().as_bytes()),
        Field::Bytes(4, settle.asset.as_str().as_bytes()),
        Field::signed(5, settle.amount),
        Field::Number(6, credited.into()),
        Field::Number(7, refusal.into()),
        Field::Number(8, side.into()),
        Field::Message(9, purpose),
        Field::Number(10, settle.reserved.into()),
    ]
}

// === writing fields ===

/// A field of a message: its number and value. As proto3 prescribes, empty and zero values are left out.
#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Bytes(u32, &'a [u8]),
    Number(u32, u64),
    /// An encoded message, which may be empty.
    Message(u32, Option<&'a [u8]>),
}

impl<'a> Field<'a> {
    fn id(tag: u32, id: &'a TransferId) -> Self {
        Self::Bytes(tag, id.0.as_bytes())
    }

    fn name(tag: u32, name: Option<&'a KeyName>) -> Self {
        Self::Bytes(tag, name.map_or(&[], |name| name.as_str().as_bytes()))
    }

    /// The encoding of `int64` is that of the number in two's complement.
    fn signed(tag: u32, value: i64) -> Self {
        Self::Number(tag, value.cast_unsigned())
    }

    #[inline]
    fn len(self) -> usize {
        match self {
            Self::Bytes(_, []) | Self::Number(_, 0) | Self::Message(_, None) => 0,
            Self::Bytes(tag, bytes) | Self::Message(tag, Some(bytes)) => delimited_len(tag, bytes.len()),
            Self::Number(tag, value) => varint_len(key(tag, WireType::Varint)) + varint_len(value),
        }
    }

    #[inline]
    fn write(self, buffer: &mut Vec<u8>) {
        match self {
            Self::Bytes(_, []) | Self::Number(_, 0) | Self::Message(_, None) => {}
            Self::Bytes(tag, bytes) | Self::Message(tag, Some(bytes)) => {
                write_key(buffer, tag, WireType::LengthDelimited);
                write_varint(buffer, bytes.len() as u64);
                buffer.extend_from_slice(bytes);
            }
            Self::Number(tag, value) => {
                write_key(buffer, tag, WireType::Varint);
                write_varint(buffer, value);
            }
        }
    }
}

#[inline]
fn total(fields: &[Field<'_>]) -> usize {
    fields.iter().map(|field| field.len()).sum()
}

#[inline]
fn write_all(buffer: &mut Vec<u8>, fields: &[Field<'_>]) {
    for field in fields {
        field.write(buffer);
    }
}

/// What a field of so many bytes takes, with its key and length.
fn delimited_len(tag: u32, len: usize) -> usize {
    varint_len(key(tag, WireType::LengthDelimited)) + varint_len(len as u64) + len
}

fn key(tag: u32, wire_type: WireType) -> u64 {
    u64::from(tag) << 3 | wire_type as u64
}

fn varint_len(value: u64) -> usize {
    encoded_len_varint(value)
}

fn write_key(buffer: &mut Vec<u8>, tag: u32, wire_type: WireType) {
    write_varint(buffer, key(tag, wire_type));
}

#[inline]
fn write_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

// === the codec ===

#[derive(Debug, Clone, Copy, Default)]
struct ExecuteCodec;

impl Codec for ExecuteCodec {
    type Encode = ExecuteCall;
    type Decode = Executed;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for ExecuteCodec {
    type Item = ExecuteCall;
    type Error = Status;

    fn encode(&mut self, ExecuteCall(bytes): ExecuteCall, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for ExecuteCodec {
    type Item = Executed;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Executed>, Status> {
        let len = buffer.remaining();
        // The whole message is in one piece; `copy_to_bytes` is for the case that it is not.
        let executed = if buffer.chunk().len() == len {
            let executed = Executed::decode(buffer.chunk());
            buffer.advance(len);
            executed
        } else {
            Executed::decode(&buffer.copy_to_bytes(len))
        };
        executed.map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Executed {
    fn decode(mut bytes: &[u8]) -> Result<Self, Status> {
        let mut executed =
            Self { replies: Vec::with_capacity(bytes.len() / USUAL_RESULT_BYTES), mark: None, after_doubt: false };
        while !bytes.is_empty() {
            let (field, wire_type) = decode_key(&mut bytes).map_err(unreadable)?;
            match field {
                tag::RESULTS => {
                    let result = message::<wire::OperationResult>(wire_type, &mut bytes)?;
                    executed.replies.push(Reply::try_from(result));
                }
                tag::AFTER_DOUBT => {
                    check_wire_type(WireType::Varint, wire_type).map_err(unreadable)?;
                    executed.after_doubt = decode_varint(&mut bytes).map_err(unreadable)? != 0;
                }
                tag::MARK => executed.mark = Some(message::<wire::Mark>(wire_type, &mut bytes)?.into()),
                _ => skip_field(wire_type, field, &mut bytes, DecodeContext::default()).map_err(unreadable)?,
            }
        }
        Ok(executed)
    }
}

/// Takes a nested message off the front.
fn message<M: Message + Default>(wire_type: WireType, bytes: &mut &[u8]) -> Result<M, Status> {
    check_wire_type(WireType::LengthDelimited, wire_type).map_err(unreadable)?;
    let len = usize::try_from(decode_varint(bytes).map_err(unreadable)?).map_err(unreadable)?;
    let (message, rest) = bytes.split_at_checked(len).ok_or_else(|| unreadable("a message is cut off"))?;
    *bytes = rest;
    M::decode(message).map_err(unreadable)
}

/// As tonic reports a message that cannot be decoded.
fn unreadable(reason: impl ToString) -> Status {
    Status::internal(reason.to_string())
}

#[cfg(test)]
mod tests {
    use ledger::{
        AccountId, AssetCode, HoldKey, Limit, Metadata, Position, Refusal, Refused,
        operation::{CreateAccount, EraseMetadata, Erased, ReleaseHold, Verdict},
    };
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> TransferId {
        TransferId(Uuid::from_u128(number))
    }

    fn account(text: &str) -> AccountId {
        AccountId::client(text).unwrap()
    }

    fn key_name() -> Option<KeyName> {
        Some(KeyName::new("shop42-gateway").unwrap())
    }

    /// A payment that no key ordered, or another transfer that one did.
    fn transfer(purpose: Purpose, metadata: &[(&str, &str)]) -> Transfer {
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Transfer {
            ordered_by: key_name().filter(|_| purpose != Purpose::Payment),
            id: id(7),
            debit: account("alice"),
            credit: account(&"b".repeat(128)),
            asset: AssetCode::new("USD").unwrap(),
            amount: 1234,
            metadata: Metadata::from_map(&metadata).unwrap(),
            purpose,
            cross_shard: false,
            defer_insufficient: false,
            defer_limited: false,
        }
    }

    /// Operations with every field set, and with as few as possible.
    fn operations() -> Vec<Operation> {
        let capture = Purpose::Capture { hold: id(8), whole: true, finalize: true };
        let reversal = Purpose::Reversal { of: id(9), whole: false };
        let usd = AssetCode::new("USD").unwrap();
        let payment = transfer(Purpose::Payment, &[]);
        let reserve = Transfer {
            cross_shard: true,
            defer_insufficient: true,
            defer_limited: true,
            amount: i64::MAX,
            ..transfer(capture, &[("invoice", "2026-117")])
        };
        let decide = |purpose, presumed, defer_limited| Decide {
            ordered_by: key_name(),
            id: id(1),
            debit: account("alice"),
            credit: account("bob"),
            asset: usd,
            amount: 5,
            purpose,
            presumed,
            defer_limited,
            patient: defer_limited,
        };
        let settle = |purpose, reserved, verdict| Settle {
            id: id(1),
            debit: account("alice"),
            credit: account("bob"),
            asset: usd,
            amount: i64::from(reserved),
            purpose,
            reserved,
            verdict,
        };
        let refused = Refused::credit(Refusal::LimitExceeded);
        vec![
            Operation::Transfer(payment.clone()),
            Operation::Transfer(reserve.clone()),
            Operation::Decide(decide(Purpose::Payment, None, false)),
            Operation::Decide(decide(reversal, Some(refused), true)),
            Operation::Settle(settle(Purpose::Payment, true, Verdict::Credited)),
            Operation::Settle(settle(capture, false, Verdict::Refused(refused))),
            Operation::AtomicTransfers(vec![payment.clone(), payment.clone()]),
            Operation::DryRun(Box::new(Operation::Transfer(payment.clone()))),
            Operation::OrNothing(Box::new(Operation::Transfer(payment))),
            Operation::ReleaseHold(ReleaseHold {
                key: HoldKey { id: id(3), debit: account("alice") },
                ordered_by: key_name(),
            }),
            Operation::EraseMetadata(EraseMetadata {
                of: Erased::Hold,
                id: id(3),
                debit: account("alice"),
                at: account("bob"),
                credit: Some(account("bob")),
                ordered_by: key_name(),
            }),
            Operation::CreateAccount(CreateAccount {
                ordered_by: key_name(),
                id: account("alice"),
                asset: usd,
                overdraft: Limit::Unlimited,
                max_balance: Limit::AtMost(5),
                metadata: Metadata::empty(),
            }),
        ]
    }

    #[test]
    fn a_call_reads_as_the_generated_message() {
        let mark = Mark { incarnation: 1, timeline: 2, position: Position::first_of(3).0 + 6, ..Mark::default() };
        let operations = operations();
        for (order_group, timeout_ms, peer) in [(0, 1, None), (300, 5_000, Some((3, mark)))] {
            let mut call = ExecuteCall::new(u64::MAX, Some(7), 0);
            call.trace("00-ab", 0, 300);
            for operation in &operations {
                call.push(operation, order_group, timeout_ms, peer);
            }
            let expected = wire::ExecuteRequest {
                operations: operations
                    .iter()
                    .map(|operation| wire::Operation {
                        peer: peer.map(shard_mark_to_wire),
                        ..operation_to_wire(operation, order_group, timeout_ms)
                    })
                    .collect(),
                traces: vec![wire::Trace { traceparent: "00-ab".to_owned(), first: 0, count: 300 }],
                assets_digest: u64::MAX,
                sent_at_us: 7,
            };
            assert_eq!(wire::ExecuteRequest::decode(call.0.as_slice()).unwrap(), expected);
        }
    }

    #[test]
    fn an_answer_becomes_replies() {
        use wire::{not_executed::Reason, operation_result::Outcome};
        let result = |outcome| wire::OperationResult { outcome: Some(outcome) };
        let debit_after =
            wire::DebitAfter { posted: -5, held: 1, overdraft: Some(Limit::Unlimited.into()), version: 3 };
        let posted = wire::TransferOutcome {
            status: 2,
            debit_after: Some(debit_after),
            created_at_us: 1,
            finished_at_us: 2,
            stored: true,
            amount: 7,
            ..Default::default()
        };
        let late = wire::NotExecuted { reason: Reason::Deadline.into(), detail: "late".to_owned() };
        let results = vec![
            result(Outcome::Transfer(posted)),
            result(Outcome::NotExecuted(late)),
            result(Outcome::Deferred(wire::Deferred {})),
            result(Outcome::Undetermined(wire::Undetermined { credits: vec!["bob".to_owned()] })),
            wire::OperationResult { outcome: None },
        ];
        let mark = Mark { incarnation: 1, timeline: 2, position: 3, ..Mark::default() };
        let response = wire::ExecuteResponse { results: results.clone(), mark: Some(mark.into()), after_doubt: true };
        let bytes = response.encode_to_vec();
        let executed = Executed::decode(&bytes).unwrap();
        let expected: Vec<_> = results.into_iter().map(Reply::try_from).collect();
        assert_eq!((executed.replies, executed.mark, executed.after_doubt), (expected, Some(mark), true));
        for len in 1..bytes.len() {
            // A cut between two fields leaves fewer results, any other is an error.
            let Ok(executed) = Executed::decode(&bytes[..len]) else { continue };
            let is_whole =
                executed.replies.len() == response.results.len() && executed.mark.is_some() && executed.after_doubt;
            assert!(!is_whole, "cut at {len}");
        }
    }
}
