//! A conformance suite for OCI registries: point it at one, and each rule says pass, fail or skip, and why.
//!
//! The rules follow the OCI distribution-spec v1.1 with what its main branch adds, the habits of Docker's clients that
//! registries live with, and what published advisories about registries teach. They look at a registry from outside and
//! assume nothing of how it works; where the specification leaves a choice, each choice passes.
//!
//! **A rule** is a name and an async function that is given a [`Probe`]: a client that keeps a protocol of what was
//! asked and answered, and a repository of the rule's own. To add one, write the function and add a row to the table of
//! its module below [`rules`]:
//!
//! ```ignore
//! table.rule("get/404-unknown", unknown_blob);
//!
//! async fn unknown_blob(p: Probe) -> Result<()> {
//!     let none = p.noise("none", 10);
//!     p.get(p.at(format!("blobs/{}", none.digest))).await?.fails(404, &["BLOB_UNKNOWN"])
//! }
//! ```
//!
//! A row may also hold for each of many cases ([`Table::each`]): digest algorithms, ranges, malformed names, or whole
//! data sets ([`data`]) that are pushed once and pulled in every way.
//!
//! **Invariants.** Rules do not depend on one another's order, and run side by side. A rule that needs a data set that
//! the registry did not take is skipped: the rule that pushes the set has failed then.

pub mod data;
mod probe;
mod push;
mod report;
pub mod rules;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, future::BoxFuture, stream};

pub use probe::{Answer, Ask, Probe, Stock};
pub use report::{Outcome, Report, Verdict, expect_failures};

/// Rules that run at once: enough to hide that a registry waits for its disk.
const RULES_AT_ONCE: usize = 8;
/// How long a rule may take. The slowest moves a few megabytes.
const RULE_TIME_MAX: Duration = Duration::from_secs(30);

/// Ends a rule without a verdict on the registry.
#[derive(Debug)]
struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The end of a rule that cannot say anything about this registry.
#[must_use]
pub fn skip(why: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Skip(why.into()))
}

type Run = Arc<dyn Fn(Probe) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// What a registry shall do, and how to see whether it does.
#[derive(Clone)]
pub struct Rule {
    /// Its name: where it belongs, what it says, and for which case.
    pub name: String,
    run: Run,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Rule").field(&self.name).finish()
    }
}

/// One of the cases for which a rule holds.
pub trait Case: Clone + Send + Sync + 'static {
    /// The end of the rule's name.
    fn label(&self) -> String;
}

impl Case for &'static str {
    fn label(&self) -> String {
        (*self).to_owned()
    }
}

impl Case for usize {
    fn label(&self) -> String {
        self.to_string()
    }
}

impl<A: Case, B: Case> Case for (A, B) {
    fn label(&self) -> String {
        format!("{}/{}", self.0.label(), self.1.label())
    }
}

/// Each of `a` with each of `b`.
pub fn pairs<A: Case, B: Case>(a: impl IntoIterator<Item = A>, b: &[B]) -> Vec<(A, B)> {
    a.into_iter().flat_map(|a| b.iter().map(move |b| (a.clone(), b.clone()))).collect()
}

/// Rules that belong together.
#[derive(Debug)]
pub struct Table {
    prefix: &'static str,
    rules: Vec<Rule>,
}

impl Table {
    /// An empty table; `prefix` begins the names of its rules.
    #[must_use]
    pub const fn new(prefix: &'static str) -> Self {
        Self { prefix, rules: Vec::new() }
    }

    /// Adds a rule.
    pub fn rule<F, Fut>(&mut self, name: &str, run: F)
    where
        F: Fn(Probe) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.push(name.to_owned(), Arc::new(move |probe| Box::pin(run(probe))));
    }

    /// Adds a rule for each of `cases`.
    pub fn each<C, F, Fut>(&mut self, name: &str, cases: impl IntoIterator<Item = C>, run: F)
    where
        C: Case,
        F: Fn(Probe, C) -> Fut + Send + Sync + Copy + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        for case in cases {
            let label = format!("{name}/{}", case.label());
            self.push(label, Arc::new(move |probe| Box::pin(run(probe, case.clone()))));
        }
    }

    fn push(&mut self, name: String, run: Run) {
        // A name is one word, so that a list of them can be cut at blanks.
        self.rules.push(Rule { name: format!("{}/{name}", self.prefix).replace(' ', "_"), run });
    }
}

/// The rules that shall be run.
#[derive(Debug)]
pub struct Suite {
    rules: Vec<Rule>,
}

impl Suite {
    /// Every rule there is.
    #[must_use]
    pub fn all() -> Self {
        Self { rules: rules::tables().into_iter().flat_map(|table| table.rules).collect() }
    }

    /// Those whose names hold `text`.
    #[must_use]
    pub fn only(mut self, text: &str) -> Self {
        self.rules.retain(|rule| rule.name.contains(text));
        self
    }

    /// Those whose names begin with one of `prefixes`.
    #[must_use]
    pub fn starting_with(mut self, prefixes: &[&str]) -> Self {
        self.rules.retain(|rule| prefixes.iter().any(|prefix| rule.name.starts_with(prefix)));
        self
    }

    /// The rules, in the order of their tables.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Runs them against the registry at `authority` (`127.0.0.1:5000`), which may hold anything: every run uses
    /// repositories of its own.
    ///
    /// # Errors
    /// Nothing answers there.
    pub async fn run(&self, authority: &str) -> Result<Report> {
        let world = probe::World::new(authority);
        world.greet().await.with_context(|| format!("no registry answers at {authority}"))?;
        let started = Instant::now();
        let outcomes = stream::iter(self.rules.iter().enumerate())
            .map(|(number, rule)| judge(rule, Probe::new(&world, number, &rule.name)))
            .buffered(RULES_AT_ONCE)
            .collect()
            .await;
        Ok(Report { registry: authority.to_owned(), seconds: started.elapsed().as_secs_f64(), outcomes })
    }
}

async fn judge(rule: &Rule, probe: Probe) -> Outcome {
    let started = Instant::now();
    let ended = tokio::time::timeout(RULE_TIME_MAX, (rule.run)(probe.clone())).await;
    let (verdict, reason) = match ended {
        Err(_) => (Verdict::Fail, format!("not done after {RULE_TIME_MAX:?}")),
        Ok(Ok(())) => (Verdict::Pass, String::new()),
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(why) => (Verdict::Skip, why.to_string()),
            None => (Verdict::Fail, format!("{error:#}")),
        },
    };
    let exchanges = if verdict == Verdict::Fail { probe.exchanges() } else { Vec::new() };
    Outcome { rule: rule.name.clone(), verdict, reason, seconds: started.elapsed().as_secs_f64(), exchanges }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rule_has_a_name_of_its_own() {
        let suite = Suite::all();
        let names: BTreeSet<_> = suite.rules().iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names.len(), suite.rules().len());
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_graphic());
        let odd: Vec<_> = names.iter().filter(|name| !plain(name)).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }

    #[test]
    fn there_are_about_as_many_rules_as_the_official_suite_has() {
        let count = Suite::all().rules().len();
        assert!(count >= 850, "{count}");
    }

    #[test]
    fn a_filter_keeps_what_it_names() {
        let all = Suite::all().rules().len();
        let some = Suite::all().only("pull/blob/").rules().len();
        assert!(0 < some && some < all, "{some} of {all}");
    }
}
