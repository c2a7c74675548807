//! Findings, each of which is one compared fact, and a summary for each place.

use std::fmt;

use identity::Disagreement;
use serde::Serialize;

/// Later variants are more severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingVerdict {
    Agrees,
    Warning,
    Disagrees,
}

/// A compared fact at a place. The fields are named as in `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A node, a shard, a router, or `cluster`.
    pub place: String,
    pub fact: String,
    pub verdict: FindingVerdict,
    pub expected: String,
    pub found: String,
    pub remedy: String,
}

impl Finding {
    pub fn new(place: &str, verdict: FindingVerdict, fact: Disagreement) -> Self {
        let Disagreement { fact, expected, found, remedy } = fact;
        Self { place: place.to_owned(), fact, verdict, expected, found, remedy }
    }

    pub fn agrees(place: &str, fact: &str, value: impl fmt::Display) -> Self {
        Self::new(place, FindingVerdict::Agrees, Disagreement::new(fact, &value, &value, ""))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, fact, verdict, expected, found, remedy } = self;
        match verdict {
            // The value is empty, for example, for a setting that this version of PostgreSQL does not have.
            FindingVerdict::Agrees if found.is_empty() => write!(f, "{place}: {fact} agrees: nothing"),
            FindingVerdict::Agrees => write!(f, "{place}: {fact} agrees: {found}"),
            FindingVerdict::Warning => {
                write!(f, "{place}: WARNING {fact}: expected {expected}, found {found}. {remedy}")
            }
            FindingVerdict::Disagrees => {
                write!(f, "{place}: DISAGREES {fact}: expected {expected}, found {found}. {remedy}")
            }
        }
    }
}

/// Findings in display order; each fact of a place appears once.
#[derive(Debug, Default)]
pub struct FindingList(Vec<Finding>);

impl FindingList {
    /// Adds a finding. Of two findings about one fact of a place, the more severe one is kept, because the comparisons of the node and of the
    /// doctor may differ.
    pub fn add(&mut self, finding: Finding) {
        match self.0.iter_mut().find(|known| known.place == finding.place && known.fact == finding.fact) {
            Some(known) if known.verdict >= finding.verdict => {}
            Some(known) => *known = finding,
            None => self.0.push(finding),
        }
    }

    /// Adds every disagreement, and an agreement for each of `facts` without one.
    pub fn compared(&mut self, place: &str, facts: &[(&str, String)], disagreements: Vec<Disagreement>) {
        for (fact, value) in facts {
            if !disagreements.iter().any(|disagreement| disagreement.fact == *fact) {
                self.add(Finding::agrees(place, fact, value));
            }
        }
        for disagreement in disagreements {
            self.add(Finding::new(place, FindingVerdict::Disagrees, disagreement));
        }
    }

    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// The findings, grouped by place.
    pub fn into_list(self) -> Vec<Finding> {
        let order: Vec<String> = places(&self.0).into_iter().map(str::to_owned).collect();
        let mut list = self.0;
        list.sort_by_key(|finding| order.iter().position(|place| *place == finding.place));
        list
    }
}

/// One line for each place, in order of first appearance.
pub fn summary(findings: &[Finding]) -> Vec<String> {
    let line = |place: &str| {
        let count = |wanted: Option<FindingVerdict>| {
            let here = findings.iter().filter(|finding| finding.place == place);
            here.filter(|finding| wanted.is_none_or(|wanted| finding.verdict == wanted)).count()
        };
        let facts = crate::output::count(count(None), "fact");
        let (disagree, warn) = (count(Some(FindingVerdict::Disagrees)), count(Some(FindingVerdict::Warning)));
        match (disagree, warn) {
            (0, 0) => format!("{place}: {facts} compared, no disagreement"),
            (0, warn) => format!("{place}: {facts} compared, {}", crate::output::count(warn, "warning")),
            (disagree, 0) => format!("{place}: {facts} compared, {}", crate::output::count(disagree, "disagreement")),
            (disagree, warn) => {
                let [disagree, warn] = [(disagree, "disagreement"), (warn, "warning")]
                    .map(|(number, noun)| crate::output::count(number, noun));
                format!("{place}: {facts} compared, {disagree}, {warn}")
            }
        }
    };
    places(findings).into_iter().map(line).collect()
}

/// The distinct places, in order of first appearance.
fn places(findings: &[Finding]) -> Vec<&str> {
    let mut places: Vec<&str> = Vec::new();
    for finding in findings {
        if !places.contains(&finding.place.as_str()) {
            places.push(&finding.place);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_severe_finding_is_kept_and_each_place_is_summarised() {
        let finding =
            |place: &str, fact: &str, verdict| Finding::new(place, verdict, Disagreement::new(fact, 1, 2, "r"));
        let mut findings = FindingList::default();
        findings.add(Finding::agrees("a", "cluster", 1));
        findings.add(finding("b", "cluster", FindingVerdict::Warning));
        findings.add(finding("a", "cluster", FindingVerdict::Disagrees));
        findings.add(Finding::agrees("a", "cluster", 1));
        findings.compared(
            "a",
            &[("shard", "s0".to_owned()), ("number", "0".to_owned())],
            vec![Disagreement::new("number", 0, 1, "r")],
        );
        let list = findings.into_list();
        let verdicts: Vec<_> = list.iter().map(|f| (f.place.as_str(), f.fact.as_str(), f.verdict)).collect();
        assert_eq!(
            verdicts,
            [
                ("a", "cluster", FindingVerdict::Disagrees),
                ("a", "shard", FindingVerdict::Agrees),
                ("a", "number", FindingVerdict::Disagrees),
                ("b", "cluster", FindingVerdict::Warning),
            ]
        );
        assert_eq!(summary(&list), ["a: 3 facts compared, 2 disagreements", "b: 1 fact compared, 1 warning"]);
    }
}
