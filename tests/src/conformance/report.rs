//! What a run found, for people, for programs, and for a test that knows what to expect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Result, ensure};
use serde::Serialize;

/// How a rule ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The registry does as the rule says.
    Pass,
    /// It does not.
    Fail,
    /// The rule says nothing about this registry.
    Skip,
}

/// What became of a rule.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its name.
    pub rule: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not pass.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How long it took.
    pub seconds: f64,
    /// What was asked and answered; of failures only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exchanges: Vec<String>,
}

/// What a run found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where the registry is.
    pub registry: String,
    /// How long the run took.
    pub seconds: f64,
    /// One for each rule, in the order of the tables.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// How many rules ended so.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.of(verdict).count()
    }

    /// The rules that ended so.
    pub fn of(&self, verdict: Verdict) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.verdict == verdict)
    }

    /// All in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let [pass, fail, skip] = [Verdict::Pass, Verdict::Fail, Verdict::Skip].map(|verdict| self.count(verdict));
        let all = self.outcomes.len();
        format!("{}: {all} rules, {pass} pass, {fail} fail, {skip} skip, {:.1} s", self.registry, self.seconds)
    }

    /// What failed and what was skipped, with the reasons, and the counts of each group of rules.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for outcome in self.outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Pass) {
            let verdict = if outcome.verdict == Verdict::Fail { "FAIL" } else { "skip" };
            let _infallible = writeln!(text, "{verdict} {}: {}", outcome.rule, outcome.reason);
        }
        let mut groups: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for outcome in &self.outcomes {
            let group = outcome.rule.split('/').next().unwrap_or_default();
            groups.entry(group).or_default()[outcome.verdict as usize] += 1;
        }
        for (group, [pass, fail, skip]) in groups {
            let _infallible = writeln!(text, "{group:<12} {pass:>5} pass {fail:>4} fail {skip:>4} skip");
        }
        text + &self.summary()
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        let report = serde_json::json!({
            "registry": self.registry,
            "seconds": self.seconds,
            "rules": self.outcomes.len(),
            "pass": self.count(Verdict::Pass),
            "fail": self.count(Verdict::Fail),
            "skip": self.count(Verdict::Skip),
            "outcomes": self.outcomes,
        });
        format!("{report:#}\n")
    }
}

/// Whether exactly the rules fail that `list` names: one a line; lines that begin with `#` are comments.
///
/// # Errors
/// Others fail, or some of them do not.
pub fn expect_failures(report: &Report, list: &str) -> Result<()> {
    let expected: BTreeSet<&str> =
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let found: BTreeMap<&str, &Outcome> =
        report.of(Verdict::Fail).map(|outcome| (outcome.rule.as_str(), outcome)).collect();
    let mut wrong = String::new();
    for (rule, outcome) in &found {
        if !expected.contains(rule) {
            let _infallible = writeln!(wrong, "fails, which nobody expected: {rule}: {}", outcome.reason);
        }
    }
    for rule in expected.iter().filter(|rule| !found.contains_key(**rule)) {
        let now = report.outcomes.iter().find(|outcome| outcome.rule == *rule).map(|outcome| outcome.verdict);
        let _infallible = writeln!(wrong, "expected to fail: {rule}: {now:?}");
    }
    ensure!(wrong.is_empty(), "{wrong}{}", report.summary());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failing: &[&str]) -> Report {
        let outcome = |rule: &str| Outcome {
            rule: rule.to_owned(),
            verdict: if failing.contains(&rule) { Verdict::Fail } else { Verdict::Pass },
            reason: String::new(),
            seconds: 0.0,
            exchanges: Vec::new(),
        };
        Report { registry: "here".to_owned(), seconds: 0.0, outcomes: ["a/1", "a/2", "b/1"].map(outcome).into() }
    }

    #[test]
    fn a_list_of_expected_failures_is_exact() {
        let list = "# known\na/1\n\nb/1\n";
        assert!(expect_failures(&report(&["a/1", "b/1"]), list).is_ok());
        let more = expect_failures(&report(&["a/1", "a/2", "b/1"]), list).unwrap_err().to_string();
        assert!(more.contains("nobody expected: a/2"), "{more}");
        let less = expect_failures(&report(&["a/1"]), list).unwrap_err().to_string();
        assert!(less.contains("expected to fail: b/1: Some(Pass)"), "{less}");
        let unknown = expect_failures(&report(&[]), "gone").unwrap_err().to_string();
        assert!(unknown.contains("gone: None"), "{unknown}");
    }

    #[test]
    fn the_report_counts() {
        let report = report(&["a/2"]);
        assert!(report.summary().contains("3 rules, 2 pass, 1 fail, 0 skip"), "{}", report.summary());
        assert!(report.text().contains("FAIL a/2"), "{}", report.text());
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["fail"], &json["outcomes"][1]["verdict"]), (&1.into(), &"fail".into()));
    }
}
