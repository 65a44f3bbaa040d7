//! The outcome as JUnit XML, which CI servers show as a list of tests.
//!
//! A case is a test `PIPELINE` of the class `MODEL`. Snapshots that are missing, differ or have no case are failures,
//! a case that could not be run is an error. The format is the common part of what Jenkins, GitLab, Azure and Gradle
//! read.

use crate::suite::{Report, Status};
use std::fmt::Write as _;

/// Lines around what changed.
const CONTEXT: usize = 3;

/// What came of one test.
enum Result<'a> {
    Passed,
    Failure(&'static str, String),
    Error(&'a str),
}

/// The report as XML; `suite` is the name that the list goes by.
pub fn xml(report: &Report, suite: &str) -> String {
    let mut tests = String::new();
    let (mut failures, mut errors, mut seconds) = (0, 0, 0.0);
    for outcome in &report.outcomes {
        let case = &outcome.case;
        let result = match &outcome.status {
            Status::Equal => Result::Passed,
            Status::Missing(_) => Result::Failure(
                "missing",
                "there is no snapshot; `basisopt snapshot accept` writes it".to_owned(),
            ),
            Status::Different(found) => {
                Result::Failure("different", found.diff(&case.file.display().to_string(), "now", CONTEXT))
            }
            Status::Failed(reason) => Result::Error(reason),
        };
        failures += usize::from(matches!(result, Result::Failure(..)));
        errors += usize::from(matches!(result, Result::Error(_)));
        let time = outcome.time.as_secs_f64();
        seconds += time;
        let (class, name) = case.name.rsplit_once('/').unwrap_or(("", &case.name));
        test(&mut tests, class, name, time, &result);
    }
    for orphan in &report.orphans {
        failures += 1;
        let text = "no case has this snapshot; `basisopt snapshot accept --remove-orphans` removes it";
        test(
            &mut tests,
            "orphans",
            &orphan.display().to_string(),
            0.0,
            &Result::Failure("orphaned", text.to_owned()),
        );
    }
    let n = report.outcomes.len() + report.orphans.len();
    let counts = format!("tests=\"{n}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{seconds:.3}\"");
    let name = escape(suite);
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{name}\" {counts}>\n  \
         <testsuite name=\"{name}\" skipped=\"0\" {counts}>\n{tests}  </testsuite>\n</testsuites>\n"
    )
}

fn test(out: &mut String, class: &str, name: &str, seconds: f64, result: &Result<'_>) {
    let (class, name) = (escape(class), escape(name));
    let head = format!("    <testcase classname=\"{class}\" name=\"{name}\" time=\"{seconds:.3}\"");
    let _ = match result {
        Result::Passed => writeln!(out, "{head}/>"),
        Result::Failure(kind, text) => {
            let text = escape(text);
            writeln!(
                out,
                "{head}>\n      <failure type=\"{kind}\" message=\"snapshot {kind}\">{text}</failure>\n    </testcase>"
            )
        }
        Result::Error(reason) => {
            let reason = escape(reason);
            writeln!(
                out,
                "{head}>\n      <error type=\"failed\" message=\"no snapshot could be taken\">{reason}</error>\n    </testcase>"
            )
        }
    };
}

/// Text for XML 1.0, which has no way to write most control characters: they are replaced by U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' => out.push(c),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare;
    use crate::spec::Case;
    use crate::suite::Outcome;
    use std::time::Duration;

    #[test]
    fn every_outcome_is_a_test_and_any_text_is_xml() {
        let outcome = |name: &str, status| Outcome {
            case: Case {
                name: name.to_owned(),
                model: "m.onnx".to_owned(),
                path: "m.onnx".into(),
                pipeline: String::new(),
                dims: vec![],
                file: "snapshots/a.snap".into(),
            },
            status,
            time: Duration::from_millis(1500),
        };
        let report = Report {
            outcomes: vec![
                outcome("x/a/fold", Status::Equal),
                outcome("a/<&\">", Status::Different(compare("]]>\n", "\u{1b}[0m & \u{0}\n"))),
                outcome("a/new", Status::Missing(String::new())),
                outcome("a/bad", Status::Failed("cannot read".to_owned())),
            ],
            orphans: vec!["snapshots/old.snap".into()],
        };
        let text = xml(&report, "list & more");
        let document = roxmltree::Document::parse(&text).unwrap();
        let suite = document.root_element().first_element_child().unwrap();
        let counts = ["tests", "failures", "errors", "time", "name"].map(|key| suite.attribute(key).unwrap());
        assert_eq!(counts, ["5", "3", "1", "6.000", "list & more"]);
        let tests: Vec<_> = suite.children().filter(|n| n.has_tag_name("testcase")).collect();
        let named =
            |i: usize| (tests[i].attribute("classname").unwrap(), tests[i].attribute("name").unwrap());
        assert_eq!((tests.len(), named(0), named(1)), (5, ("x/a", "fold"), ("a", "<&\">")));
        let inside = |i: usize| {
            tests[i].first_element_child().map(|n| (n.tag_name().name(), n.attribute("type").unwrap()))
        };
        assert_eq!(inside(0), None);
        assert_eq!(
            [1, 2, 3, 4].map(|i| inside(i).unwrap()),
            [("failure", "different"), ("failure", "missing"), ("error", "failed"), ("failure", "orphaned")]
        );
        let diff = tests[1].first_element_child().unwrap().text().unwrap();
        assert!(diff.contains("-]]>\n+\u{fffd}[0m & \u{fffd}\n"), "{diff}");
    }
}
