//! The text of `/metrics`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use http::Method;
use testkit::client::Client;

/// What one process serves.
#[derive(Debug, Default)]
pub struct Exposition {
    pub text: String,
    pub families: BTreeMap<String, Family>,
    samples: Vec<Sample>,
}

/// What is known of one metric.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// The names of the labels, apart from `le`.
    pub labels: BTreeSet<String>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Exposition {
    pub async fn fetch(admin_url: &str) -> anyhow::Result<Self> {
        let url = format!("{admin_url}/metrics");
        let answer = Client::new(Vec::new()).request(Method::GET, &url, None).await?;
        ensure!(answer.status == 200, "{url}: {}", answer.text());
        Self::parse(&answer.text())
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut read = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').context("a metric without a description")?;
                read.families.entry(name.to_owned()).or_default().help = help.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a metric without a type")?;
                read.families.entry(name.to_owned()).or_default().kind = kind.to_owned();
            } else {
                read.sample(line).with_context(|| format!("cannot read {line:?}"))?;
            }
        }
        Ok(read)
    }

    fn sample(&mut self, line: &str) -> anyhow::Result<()> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let mut found = BTreeMap::new();
        // No label of this product has a comma or a quote in its value.
        for pair in labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
            let (label, value) = pair.split_once('=').context("no label")?;
            found.insert(label.to_owned(), value.trim_matches('"').to_owned());
        }
        let parts = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let family = parts.filter(|of| self.families.contains_key(*of)).unwrap_or(name);
        let family = self.families.get_mut(family).context("no type")?;
        family.labels.extend(found.keys().filter(|label| *label != "le").cloned());
        self.samples.push(Sample { name: name.to_owned(), labels: found, value: value.parse()? });
        Ok(())
    }

    /// The value of the one series that has these labels, among others.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        };
        let found: Vec<_> = self.samples.iter().filter(has).collect();
        ensure!(found.len() == 1, "{} series {name} with {labels:?}", found.len());
        Ok(found[0].value)
    }

    pub fn series(&self) -> usize {
        self.samples.len()
    }
}
