//! The in-transit accounts of all shards.

use std::collections::BTreeMap;

use super::{invariant::Invariant, report::Findings};

/// Minor units in transit, by asset.
pub type Sums = BTreeMap<String, i128>;

/// Checks that the shards' in-transit accounts cancel out. This holds if no saga is in progress and none moved while
/// the positions were fixed.
pub fn check_quiet(sums: &Sums) -> Findings {
    let mut findings = Findings::default();
    for (asset, sum) in sums.iter().filter(|(_, sum)| **sum != 0) {
        findings.add(
            Invariant::SagasUnderWay,
            asset,
            format!("no saga is in progress, yet {sum} minor units are in transit"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_in_transit_is_named_by_asset() {
        let sums = Sums::from([("CZK".to_owned(), 0), ("USD".to_owned(), -5)]);
        let mut expected = Findings::default();
        expected.add(Invariant::SagasUnderWay, "USD", "no saga is in progress, yet -5 minor units are in transit");
        assert_eq!(check_quiet(&sums), expected);
    }
}
