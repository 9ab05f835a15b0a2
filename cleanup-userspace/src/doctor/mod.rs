//! `compose-cleanup doctor`: will it work here? One file for each group of
//! checks; a check looks and changes nothing.
//!
//! A new check is a function that returns a [`Check`], called by its group; a new
//! group is a file here that returns a list of them, and a line in the command.

mod elf;
pub mod host;
pub mod load;
pub mod module;
mod probe;

use std::fmt;

use serde::Serialize;

/// What a check came to, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It will work, with less; or it could not be told.
    Warning,
    /// It will not work.
    Refused,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Refused => "refused",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A word or two, the same in every run.
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; never with [`Verdict::Ok`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warning,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn refused(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Refused,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict of all.
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.checks.iter().map(|check| check.verdict);
        verdicts.max().unwrap_or(Verdict::Ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.checks.iter().map(|check| check.name.len());
        let width = names.max().unwrap_or(0);
        for Check {
            name,
            verdict,
            detail,
            remedy,
        } in &self.checks
        {
            writeln!(f, "{:<7}  {name:<width$}  {detail}", verdict.as_str())?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:<7}  {:<width$}  -> {remedy}", "", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_as_bad_as_its_worst_check() {
        let mut report = Report::default();
        assert_eq!(report.verdict(), Verdict::Ok);
        report
            .checks
            .push(Check::refused("b", "is not there", "make one"));
        report.checks.push(Check::ok("longer", "is there"));
        assert_eq!(report.verdict(), Verdict::Refused);
        assert_eq!(
            report.to_string(),
            "refused  b       is not there\n                 -> make one\nok       longer  is there\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][0]["remedy"], "make one");
        assert_eq!(json["checks"][1]["verdict"], "ok");
    }
}
