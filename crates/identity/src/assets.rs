//! The scales of assets. A scale is the number of decimal digits in the minor unit.

use std::collections::BTreeMap;

use crate::disagreement::Disagreement;

/// The prefix of the fact's name in every disagreement about a scale.
pub const FACT: &str = "scale of ";

/// Asset code to scale.
pub type AssetScales = BTreeMap<String, u32>;

/// Compares the scales that a program declares with those in use on shard `shard`. An asset that only one side knows
/// is no disagreement.
pub fn compare(declared: &AssetScales, in_use: &AssetScales, shard: &str) -> Vec<Disagreement> {
    let differing = in_use.iter().filter_map(|(asset, in_use)| {
        let declared = declared.get(asset).filter(|declared| *declared != in_use)?;
        let remedy = format!(
            "accounts of {asset} on shard {shard} have scale {in_use}: declare {asset} = {in_use} under [assets]"
        );
        Some(Disagreement::new(format!("{FACT}{asset}"), in_use, declared, remedy))
    });
    differing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_assets_known_to_both_sides_can_disagree() {
        let scales =
            |pairs: &[(&str, u32)]| pairs.iter().map(|(a, s)| ((*a).to_owned(), *s)).collect::<AssetScales>();
        let in_use = scales(&[("BTC", 8), ("USD", 2), ("OLD", 3)]);
        assert_eq!(compare(&scales(&[("BTC", 8), ("NEW", 1)]), &in_use, "s0"), []);
        let named = compare(&scales(&[("BTC", 6), ("USD", 2)]), &in_use, "s0");
        assert_eq!(named.len(), 1);
        assert_eq!(
            (named[0].fact.as_str(), named[0].expected.as_str(), named[0].found.as_str()),
            ("scale of BTC", "8", "6")
        );
        assert!(named[0].remedy.contains("BTC = 8"), "{named:?}");
    }
}
