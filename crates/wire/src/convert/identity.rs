//! Conversions of identities, marks, asset scales and disagreements.

use identity::{AssetScales, Disagreement, Mark, Marks, ShardIdentity, shard::RoutingFacts};
use ledger::Position;
use shard_map::ClusterId;

use super::{BadMessage, bad};
use crate::generated as wire;

impl wire::IdentifyRequest {
    /// The part that every caller sends: the shard that it expects under the address, and its own routing facts.
    pub fn expecting(cluster: ClusterId, shard: &str, number: u16, caller: &str) -> Self {
        Self {
            cluster: cluster.as_bytes().to_vec().into(),
            shard: shard.to_owned(),
            shard_number: Some(number.into()),
            slots: RoutingFacts::OWN.slots,
            hash_seed: RoutingFacts::OWN.hash_seed,
            caller: caller.to_owned(),
            ..Self::default()
        }
    }
}

impl wire::IdentifyResponse {
    /// The answer of a node that is whichever shard the caller expects and works: of nodes that stand in for real ones
    /// in tests and measurements. `now_us`: their clock, in microseconds since the epoch.
    pub fn agreeing_with(request: wire::IdentifyRequest, now_us: i64) -> Self {
        let works = Some(wire::Readiness { works: true, cause: String::new() });
        Self {
            identity: Some(wire::ShardIdentity {
                cluster: request.cluster,
                shard: request.shard,
                number: request.shard_number.unwrap_or_default(),
                slots: request.slots,
                hash_seed: request.hash_seed,
            }),
            clock_us: now_us,
            steady_us: now_us,
            reads: works.clone(),
            writes: works,
            ..Self::default()
        }
    }
}

impl From<Mark> for wire::Mark {
    fn from(Mark { incarnation, timeline, position, began, earlier }: Mark) -> Self {
        Self { incarnation, timeline, position, began, earlier }
    }
}

impl From<wire::Mark> for Mark {
    fn from(wire::Mark { incarnation, timeline, position, began, earlier }: wire::Mark) -> Self {
        Self { incarnation, timeline, position, began, earlier }
    }
}

/// A shard's number and mark.
pub fn shard_mark_to_wire((number, mark): (u16, Mark)) -> wire::ShardMark {
    wire::ShardMark { shard_number: number.into(), mark: Some(mark.into()) }
}

pub fn shard_mark_from_wire(message: &wire::ShardMark) -> Result<(u16, Mark), BadMessage> {
    let number = u16::try_from(message.shard_number).map_err(|error| bad("shard_number", error))?;
    let mark: Mark = message.mark.ok_or(BadMessage::Missing("mark"))?.into();
    // INV-8: a position begins with the number of its shard. A node in front of a wrong database may report another
    // shard's position.
    if Position(mark.position).shard_number() != number {
        return Err(bad("mark", format!("position {} is not one of shard number {number}", mark.position)));
    }
    Ok((number, mark))
}

pub fn marks_to_wire(marks: &Marks) -> Vec<wire::ShardMark> {
    marks.iter().map(shard_mark_to_wire).collect()
}

pub fn marks_from_wire(messages: &[wire::ShardMark]) -> Result<Marks, BadMessage> {
    messages.iter().map(shard_mark_from_wire).collect()
}

impl From<Disagreement> for wire::Disagreement {
    fn from(Disagreement { fact, expected, found, remedy }: Disagreement) -> Self {
        Self { fact, expected, found, remedy }
    }
}

impl From<wire::Disagreement> for Disagreement {
    fn from(wire::Disagreement { fact, expected, found, remedy }: wire::Disagreement) -> Self {
        Self { fact, expected, found, remedy }
    }
}

impl From<&ShardIdentity> for wire::ShardIdentity {
    fn from(ShardIdentity { cluster, shard, number, routing }: &ShardIdentity) -> Self {
        Self {
            cluster: cluster.as_bytes().to_vec().into(),
            shard: shard.clone(),
            number: (*number).into(),
            slots: routing.slots,
            hash_seed: routing.hash_seed,
        }
    }
}

impl TryFrom<wire::ShardIdentity> for ShardIdentity {
    type Error = BadMessage;

    fn try_from(message: wire::ShardIdentity) -> Result<Self, BadMessage> {
        Ok(Self {
            cluster: ClusterId::try_from(message.cluster.as_ref()).map_err(|error| bad("cluster", error))?,
            shard: message.shard,
            number: u16::try_from(message.number).map_err(|error| bad("number", error))?,
            routing: RoutingFacts { slots: message.slots, hash_seed: message.hash_seed },
        })
    }
}

/// A router's assets, with the digest that its calls carry.
pub fn assets_to_wire(digest: u64, scales: &AssetScales) -> wire::DeclaredAssets {
    let scales = scales.iter().map(|(asset, scale)| wire::AssetScale { asset: asset.clone(), scale: *scale });
    wire::DeclaredAssets { digest, scales: scales.collect() }
}

pub fn assets_from_wire(message: wire::DeclaredAssets) -> (u64, AssetScales) {
    (message.digest, message.scales.into_iter().map(|pair| (pair.asset, pair.scale)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_with_another_shards_position_is_no_mark() {
        let mark = |position| Mark {
            incarnation: 1,
            timeline: 1,
            position,
            began: Position::first_of(3).0 + 4,
            ..Mark::default()
        };
        let good = (3, mark(Position::first_of(3).0 + 7));
        assert_eq!(shard_mark_from_wire(&shard_mark_to_wire(good)), Ok(good));
        let foreign = shard_mark_to_wire((3, mark(Position::first_of(4).0)));
        assert!(shard_mark_from_wire(&foreign).is_err());
    }
}
