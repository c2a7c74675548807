//! The schemas of single values in the description of the API: what an id, an amount or a status looks like, defined once and referred to by
//! every body. Most are types without values, for `#[schema(value_type = …)]` on the fields of bodies and views.

use ledger::{
    AccountId as LedgerAccountId, AccountStatus as LedgerAccountStatus, AssetCode, KeyName as LedgerKeyName,
    Metadata as LedgerMetadata,
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type, schema::AdditionalProperties},
};

/// What `overdraft` and `available` say for "no limit".
pub const UNLIMITED: &str = "unlimited";
/// The items of a page, unless the request says how many.
pub const DEFAULT_PAGE_SIZE: u32 = 50;
pub const MAX_PAGE_SIZE: u32 = 500;

macro_rules! values {
    ($($(#[doc = $doc:literal])+ $name:ident = $shape:expr;)+) => {$(
        $(#[doc = $doc])+
        pub enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let description = concat!($($doc),+).trim_start();
                $shape.description(Some(description)).into()
            }
        }

        impl ToSchema for $name {}
    )+};
}

values! {
    /// 1 to 128 characters of `A-Z a-z 0-9 . _ : - { } @`, not beginning with `@`, and neither `.` nor `..`.
    AccountId = text()
        .pattern(Some(r"^([A-Za-z0-9_:{}-][A-Za-z0-9._:{}@-]*|\.([A-Za-z0-9_:{}@-][A-Za-z0-9._:{}@-]*|\.[A-Za-z0-9._:{}@-]+))$"))
        .min_length(Some(1))
        .max_length(Some(LedgerAccountId::MAX_LEN))
        .examples(["alice"]);

    /// A UUID with its hyphens, chosen by the client (version 7 is advised). The nil UUID is none.
    TransferId = text()
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)))
        .min_length(Some(36))
        .max_length(Some(36))
        .examples(["01890a5d-ac96-774b-bcce-b302099a8057"]);

    /// The name of an API key: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    KeyName = text()
        .pattern(Some("^[A-Za-z0-9._-]+$"))
        .min_length(Some(1))
        .max_length(Some(LedgerKeyName::MAX_LEN))
        .examples(["shop42-gateway"]);

    /// An ISO 4217 code, or one that the router's configuration declares.
    Asset = text()
        .pattern(Some("^[A-Z][A-Z0-9]*$"))
        .min_length(Some(1))
        .max_length(Some(AssetCode::MAX_LEN))
        .examples(["USD"]);

    /// A decimal in the full scale of the asset; may be negative.
    Amount = text().pattern(Some(r"^-?[0-9]+(\.[0-9]+)?$")).examples(["12.34"]);

    /// A decimal greater than zero, with at most as many places as the asset has.
    PositiveAmount = text()
        .pattern(Some(r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.0*[1-9][0-9]*)$"))
        .examples(["12.34"]);

    /// A decimal, with at most as many places as the asset has.
    Ceiling = text().pattern(Some(r"^[0-9]+(\.[0-9]+)?$")).examples(["1000.00"]);

    /// How far below zero debits may go: a decimal, or `unlimited`.
    Overdraft = text().pattern(Some(format!(r"^([0-9]+(\.[0-9]+)?|{UNLIMITED})$"))).examples(["0.00"]);

    /// What debits may still take: a decimal, or `unlimited`.
    Available = text().pattern(Some(format!(r"^(-?[0-9]+(\.[0-9]+)?|{UNLIMITED})$"))).examples(["85.00"]);

    /// At most 16 keys; keys and values are 4 KiB together, and without NUL.
    Metadata = ObjectBuilder::new()
        .schema_type(Type::Object)
        .max_properties(Some(LedgerMetadata::MAX_KEYS))
        .property_names(Some(metadata_text()))
        .additional_properties(Some(AdditionalProperties::RefOr(RefOr::T(metadata_text().into()))))
        .examples([serde_json::json!({"invoice": "2026-117"})]);

    /// `frozen` refuses debits, `closed` refuses both ways.
    AccountStatus = one_of(LedgerAccountStatus::ALL.map(LedgerAccountStatus::as_str));

    /// RFC 3339, with the offset.
    Time = text()
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples(["2026-01-31T12:00:00.000000Z"]);

    /// Decimal digits. A string, because its 63 bits do not fit the numbers of JavaScript.
    Position = text().pattern(Some("^[0-9]+$")).min_length(Some(1)).examples(["42"]);

    /// How much of a list to answer at once.
    PageSize = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(MAX_PAGE_SIZE))
        .default(Some(DEFAULT_PAGE_SIZE.into()));

    /// How the ids of accounts begin; the empty one is how all of them do.
    AccountPrefix = text()
        .pattern(Some("^[A-Za-z0-9._:{}@-]*$"))
        .max_length(Some(LedgerAccountId::MAX_LEN))
        .examples(["customer:4711"]);

    /// Opaque: `next_cursor` of the page before.
    PageCursor = text().min_length(Some(1));

    /// `desc` is newest first.
    PageOrder = one_of(["desc", "asc"]).default(Some("desc".into()));

    /// What an answer has in addition.
    Include = one_of(["metadata"]);

    /// A name of metadata, or a name and its value, with `=` between them.
    MetadataFilter = text().pattern(Some(r"^[^\u0000=]+(=[^\u0000]*)?$")).examples(["invoice=2026-117"]);

    /// As in a transfer, without what only dry runs have.
    ListedTransferStatus = one_of(["pending", "posted", "rejected", "reversed"]);

    /// As in a hold. Rejected ones are in no list.
    ListedHoldStatus = one_of(["held", "captured", "released", "expired"]);

    /// `pending` while it is under way between two shards, `reversed` once all of it is. `would_post` is a dry run's.
    TransferStatus = one_of(["pending", "posted", "rejected", "reversed", "would_post"]);

    /// `captured` once a final capture, or all of it, is captured. `would_post` is a dry run's.
    HoldStatus = one_of(["held", "captured", "released", "expired", "rejected", "would_post"]);

    /// `local` where both accounts live on one shard.
    Scope = one_of(["local", "cross_shard"]);

    /// Which of the two accounts it is about.
    Side = one_of([ledger::Side::Debit, ledger::Side::Credit].map(ledger::Side::as_str));

    /// `reserve` (payer to in-transit), `decide` (the verdict at the payee's shard), then `settle` or `compensate`. A transfer
    /// that cannot be posted whatever the payee's shard says reserves nothing: it has `decide` and `settle` only.
    StepName = one_of(["reserve", "decide", "settle", "compensate"]);

    /// What an entry records.
    EntryKind = one_of(ledger::EntryKind::ALL.map(ledger::EntryKind::as_str));

    /// `posted`, `pending` and `rejected` are stored under the id and answered again; `failed` had no effect and stored
    /// nothing; `unknown` may have taken effect, which the same id sent again tells.
    TransferResultStatus = one_of(["posted", "pending", "rejected", "failed", "unknown"]);

    /// `created` (now or before), `failed` (nothing stored) or `unknown`.
    AccountResultStatus = one_of(["created", "failed", "unknown"]);
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn one_of<const N: usize>(words: [&'static str; N]) -> ObjectBuilder {
    text().enum_values(Some(words))
}

/// PostgreSQL's text cannot hold NUL.
fn metadata_text() -> ObjectBuilder {
    text().pattern(Some(r"^[^\u0000]*$")).max_length(Some(LedgerMetadata::MAX_BYTES))
}
