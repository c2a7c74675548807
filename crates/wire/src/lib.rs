//! The internal RPC: generated messages and services of `proto/shardledger.proto`, [`convert`] between them and the words
//! of the ledger, and [`execute`], which does both for the call that carries the load. No policy lives here.

pub mod convert;
pub mod execute;

/// What `proto/shardledger.proto` generates.
#[allow(clippy::all, clippy::pedantic, missing_docs, clippy::unwrap_used)]
mod generated {
    tonic::include_proto!("shardledger.v1");
}

pub use generated::*;

/// Header of a read: the highest mark of the shard that the caller was told, as `incarnation/timeline/position`. A
/// shard that is behind the mark refuses the read.
pub const AT_LEAST: &str = "shardledger-at-least";

/// The value of [`AT_LEAST`].
pub fn at_least_to_header(mark: identity::Mark) -> String {
    format!("{}/{}/{}", mark.incarnation, mark.timeline, mark.position)
}

/// The mark in [`AT_LEAST`]; `None` if the header is missing or malformed.
pub fn at_least(metadata: &tonic::metadata::MetadataMap) -> Option<identity::Mark> {
    let text = metadata.get(AT_LEAST)?.to_str().ok()?;
    let mut parts = text.split('/').map(str::parse);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Ok(incarnation)), Some(Ok(timeline)), Some(Ok(position)), None) => {
            Some(identity::Mark { incarnation, timeline, position, ..identity::Mark::default() })
        }
        _ => None,
    }
}

/// Largest message either side accepts, in bytes: a full lane batch with the largest metadata fits several times over.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_a_read_survives_its_header() {
        let mark = identity::Mark { incarnation: 2, timeline: 3, position: i64::MAX, ..identity::Mark::default() };
        let mut metadata = tonic::metadata::MetadataMap::new();
        assert_eq!(at_least(&metadata), None);
        metadata.insert(AT_LEAST, at_least_to_header(mark).parse().unwrap());
        assert_eq!(at_least(&metadata), Some(mark));
    }
}
