//! Reads OpenMetrics text as strictly as its specification has it, and one thing
//! more: every family has a help text.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Names and values.
pub type Labels = BTreeMap<String, String>;

/// One exposition.
#[derive(Debug, Clone, Default)]
pub struct Exposition {
    /// By name, as the `# TYPE` line has it.
    pub families: BTreeMap<String, Family>,
}

#[derive(Debug, Clone, Default)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`, `info`, …
    pub kind: String,
    pub help: Option<String>,
    pub unit: Option<String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

impl Exposition {
    pub fn parse(text: &str) -> Result<Self> {
        let body = text
            .strip_suffix("# EOF\n")
            .context("it does not end with `# EOF` and a line feed")?;
        ensure!(
            body.is_empty() || body.ends_with('\n'),
            "`# EOF` is not on a line of its own"
        );
        let mut found = Self::default();
        let mut current = None;
        for (at, line) in body.lines().enumerate() {
            found
                .take(line, &mut current)
                .with_context(|| format!("line {}: {line}", at + 1))?;
        }
        for (name, family) in &found.families {
            family.check(name).with_context(|| name.clone())?;
        }
        Ok(found)
    }

    fn take(&mut self, line: &str, current: &mut Option<String>) -> Result<()> {
        let Some(comment) = line.strip_prefix('#') else {
            let sample = Sample::parse(line)?;
            let name = current.as_ref().context("a sample before any family")?;
            let family = self.families.entry(name.clone()).or_default();
            let suffix = sample.name.strip_prefix(name.as_str());
            let suffix = suffix.with_context(|| format!("a sample of another family in {name}"))?;
            ensure!(
                suffixes(&family.kind)?.contains(&suffix),
                "no suffix of a {}",
                family.kind
            );
            family.samples.push(sample);
            return Ok(());
        };
        let mut parts = comment.splitn(4, ' ');
        let (Some(""), Some(what), Some(name), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("not `# WHAT name text`");
        };
        ensure!(is_name(name), "not a name");
        if current.as_deref() != Some(name) {
            ensure!(
                !self.families.contains_key(name),
                "the family is in two places"
            );
            *current = Some(name.to_owned());
        }
        let family = self.families.entry(name.to_owned()).or_default();
        ensure!(family.samples.is_empty(), "after the samples");
        let place = match what {
            "TYPE" => {
                ensure!(family.kind.is_empty(), "twice");
                family.kind = text.to_owned();
                return suffixes(text).map(|_| ());
            }
            "HELP" => &mut family.help,
            "UNIT" => &mut family.unit,
            _ => bail!("an unknown comment"),
        };
        ensure!(place.replace(text.to_owned()).is_none(), "twice");
        Ok(())
    }

    /// The family of a sample's name.
    pub fn family(&self, sample: &str) -> Option<(&str, &Family)> {
        let mut families = self.families.iter();
        let is_of = |name: &str, family: &Family| {
            let suffix = sample.strip_prefix(name);
            suffix.is_some_and(|suffix| {
                suffixes(&family.kind).is_ok_and(|known| known.contains(&suffix))
            })
        };
        let found = families.find(|(name, family)| is_of(name, family));
        found.map(|(name, family)| (name.as_str(), family))
    }

    /// The value of one series; labels that are not named may have any value, and
    /// what fits is summed up.
    pub fn sum(&self, sample: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let (_, family) = self
            .family(sample)
            .with_context(|| format!("{sample} is not exported"))?;
        let fits = |known: &&Sample| {
            let mut wanted = labels.iter();
            known.name == sample
                && wanted.all(|(name, value)| known.labels.get(*name).is_some_and(|is| is == value))
        };
        let mut found = family.samples.iter().filter(fits).peekable();
        ensure!(
            found.peek().is_some(),
            "{sample} has no series with {labels:?}"
        );
        Ok(found.map(|sample| sample.value).sum())
    }

    /// Every series by name and labels.
    pub fn series(&self) -> BTreeSet<(String, Labels)> {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples
            .map(|sample| (sample.name.clone(), sample.labels.clone()))
            .collect()
    }
}

impl Family {
    /// How PromQL knows it: with `_total` or `_info`, and a histogram by its name.
    pub fn queried_as(&self, name: &str) -> String {
        match self.kind.as_str() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        }
    }

    /// The values of each label, but for the bounds of buckets.
    pub fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let labels = self.samples.iter().flat_map(|sample| &sample.labels);
        for (name, value) in labels.filter(|(name, _)| *name != "le") {
            found.entry(name).or_default().insert(value);
        }
        found
    }

    fn check(&self, name: &str) -> Result<()> {
        ensure!(!self.kind.is_empty(), "no type");
        ensure!(
            self.help.as_ref().is_some_and(|help| !help.is_empty()),
            "no help"
        );
        ensure!(!self.samples.is_empty(), "no sample");
        if let Some(unit) = &self.unit {
            ensure!(name.ends_with(&format!("_{unit}")), "no suffix _{unit}");
        }
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            let series = (&sample.name, &sample.labels);
            ensure!(seen.insert(series), "twice: {sample:?}");
            let counts = sample.name.ends_with("_total") || self.kind == "histogram";
            ensure!(!counts || sample.value >= 0.0, "negative: {sample:?}");
        }
        if self.kind == "histogram" {
            self.check_buckets(name)?;
        }
        Ok(())
    }

    /// Bounds that rise, counts that do not fall, and the last is the count.
    fn check_buckets(&self, name: &str) -> Result<()> {
        let mut histograms: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for sample in &self.samples {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le");
            ensure!(
                bound.is_some() == sample.name.ends_with("_bucket"),
                "`le` is a bucket's: {sample:?}"
            );
            let buckets = histograms.entry(labels).or_default();
            if let Some(bound) = bound {
                buckets.push((number(&bound)?, sample.value));
            }
        }
        for (labels, buckets) in histograms {
            let rises = buckets
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            ensure!(rises, "{labels:?}: {buckets:?}");
            let last = buckets.last().context("no bucket")?;
            ensure!(last.0 == f64::INFINITY, "no bucket for all: {labels:?}");
            for suffix in ["_count", "_sum"] {
                let mut samples = self.samples.iter();
                let found = samples.find(|sample| {
                    sample.labels == labels && sample.name == format!("{name}{suffix}")
                });
                let value = found.with_context(|| format!("no {suffix}"))?.value;
                ensure!(
                    suffix == "_sum" || value == last.1,
                    "{value} is not {}",
                    last.1
                );
            }
        }
        Ok(())
    }
}

impl Sample {
    fn parse(line: &str) -> Result<Self> {
        let end = line
            .find(['{', ' '])
            .context("neither labels nor a value")?;
        let (name, rest) = line.split_at(end);
        ensure!(is_name(name), "not a name");
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = rest
            .strip_prefix(' ')
            .context("no space before the value")?;
        Ok(Self {
            name: name.to_owned(),
            labels,
            value: number(value)?,
        })
    }
}

/// Labels up to the closing brace, and what is after it.
fn labels(mut rest: &str) -> Result<(Labels, &str)> {
    let mut found = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").context("a label without a value")?;
        ensure!(
            is_name(name) && !name.contains(':'),
            "not a label: {name:?}"
        );
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().context("a value without an end")? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next().map(|(_, escaped)| escaped) {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => bail!("not an escape: {other:?}"),
                }),
                (_, other) => value.push(other),
            }
        };
        ensure!(
            found.insert(name.to_owned(), value).is_none(),
            "{name} is there twice"
        );
        rest = &after[end..];
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((found, after));
        }
        rest = rest.strip_prefix(',').context("neither `,` nor `}`")?;
    }
}

/// What a sample's name may have after its family's.
fn suffixes(kind: &str) -> Result<&'static [&'static str]> {
    Ok(match kind {
        "counter" => &["_total", "_created"],
        "gauge" | "unknown" => &[""],
        "histogram" => &["_bucket", "_count", "_sum", "_created"],
        "info" => &["_info"],
        other => bail!("{other:?} is not a type that is used here"),
    })
}

fn is_name(text: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || byte == b':';
    text.bytes().next().is_some_and(first)
        && text
            .bytes()
            .all(|byte| first(byte) || byte.is_ascii_digit())
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => return Ok(f64::INFINITY),
        "-Inf" => return Ok(f64::NEG_INFINITY),
        "NaN" => return Ok(f64::NAN),
        _ => {}
    }
    let plain = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    ensure!(text.bytes().all(plain), "not a number: {text:?}");
    text.parse()
        .with_context(|| format!("not a number: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: &str = "# HELP a A.\n# TYPE a counter\na_total{x=\"1\",y=\"q\\\"\\\\\"} 1\na_total{x=\"2\",y=\"q\"} 2\n\
        # HELP b_seconds B.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
        b_seconds_sum 0.5\nb_seconds_count 2\nb_seconds_bucket{le=\"1.0\"} 1\nb_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";

    #[test]
    fn what_is_right_is_read() -> Result<()> {
        let found = Exposition::parse(WELL)?;
        assert_eq!(found.sum("a_total", &[])?, 3.0);
        assert_eq!(found.sum("a_total", &[("x", "2")])?, 2.0);
        assert_eq!(found.sum("b_seconds_count", &[])?, 2.0);
        assert!(found.sum("a_total", &[("x", "3")]).is_err() && found.sum("a", &[]).is_err());
        assert_eq!(found.series().len(), 6);
        assert_eq!(found.families["a"].queried_as("a"), "a_total");
        assert!(found.families["a"].labels()["y"].contains("q\"\\"));
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (from, to) in [
            ("# EOF\n", "# EOF"),
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\n\n"),
            ("a_total{x=\"1\"", "a{x=\"1\""),
            ("a_total{x=\"1\"", "c_total{x=\"1\""),
            ("x=\"2\",y=\"q\"", "x=\"1\",y=\"q\\\"\\\\\""),
            ("x=\"2\"", "x=\"2"),
            ("x=\"2\"", "x=\"2\",x=\"3\""),
            ("x=\"2\"", "1x=\"2\""),
            ("} 1\n", "} one\n"),
            ("} 1\n", "}1\n"),
            ("} 1\n", "} -1\n"),
            ("# HELP a A.\n", ""),
            ("# TYPE a counter\n", ""),
            ("# TYPE a counter\n", "# TYPE a counter\n# TYPE a counter\n"),
            ("# UNIT b_seconds seconds\n", "# UNIT b_seconds bytes\n"),
            ("b_seconds_sum 0.5\n", ""),
            ("b_seconds_count 2\n", "b_seconds_count 3\n"),
            ("le=\"1.0\"} 1\n", "le=\"1.0\"} 5\n"),
            ("le=\"+Inf\"", "le=\"2.0\""),
            ("b_seconds_count 2\n", "a_total{x=\"3\",y=\"\"} 1\n"),
        ] {
            assert!(WELL.contains(from), "{from}");
            let text = WELL.replacen(from, to, 1);
            assert!(Exposition::parse(&text).is_err(), "{text}");
        }
    }
}
