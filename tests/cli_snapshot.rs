//! `basisopt snapshot`, as a user runs it, and the snapshots of this repository's own networks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::snapshot::{RunOptions, Spec, Status, Suite};
use basisopt::{Registry, snapshot};
use common::program::{program, run};
use std::path::Path;
use tempfile::TempDir;

const NETWORK: &str = "graph @small(%x: f32[N,8,9,9]) -> (%y) {
  %w = f32[16,8,3,3] randn(seed=1)
  %c = Conv@conv1<pads=[1,1,1,1]>(%x, %w)
  %y = Relu(%c)
}
";

const LIST: &str = "[pipelines]
import = \"\"
small = \"@fold,factorize-conv:rank=2\"

[[case]]
model = \"models/*\"
";

/// A folder with two models and a list.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(bench.dir.path().join("models")).unwrap();
        let glyphnet = common::root().join("fixtures/models/glyphnet.onnx");
        std::fs::copy(glyphnet, bench.dir.path().join("models/glyphnet.onnx")).unwrap();
        bench.write("models/tiny.bir", NETWORK);
        bench.write("basisopt-snapshots.toml", LIST);
        bench
    }

    fn accepted() -> Self {
        let bench = Self::new();
        bench.run(0, &["accept"]);
        bench
    }

    fn run(&self, code: i32, args: &[&str]) -> (String, String) {
        run(self.dir.path(), code, &[&["snapshot"], args].concat())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{from:?} is not in\n{text}");
        self.write(name, &text.replace(from, to));
    }

    /// All files below the folder of snapshots, with what is in them.
    fn snapshots(&self) -> Vec<(String, String)> {
        fn collect(at: &Path, into: &mut Vec<(String, String)>) {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, into);
                } else {
                    into.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let (folder, mut found) = (self.dir.path().join("snapshots"), vec![]);
        collect(&folder, &mut found);
        let prefix = format!("{}/", folder.display());
        found.iter_mut().for_each(|(name, _)| *name = name.replace(&prefix, ""));
        found.sort();
        found
    }
}

/// The norm of the named constant, as it is printed.
fn norm<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|l| l.trim_start().starts_with(&format!("%{name} = "))).unwrap();
    line.split(" norm ").nth(1).unwrap()
}

/// The number with its last printed digit, the fourth, one up.
fn next(norm: &str) -> String {
    let value: f64 = norm.parse().unwrap();
    let unit = 10f64.powi(value.log10().floor() as i32 - 3);
    format!("{:?}", format!("{:.3e}", value + unit).parse::<f64>().unwrap())
}

#[test]
fn a_suite_is_begun_accepted_and_checked() {
    let bench = Bench::new();
    let (out, _) = bench.run(1, &["check"]);
    assert!(
        out.contains("missing    glyphnet/import: there is no ./snapshots/glyphnet/import.snap\n"),
        "{out}"
    );
    assert!(
        out.ends_with(
            "4 cases: 0 equal, 4 missing\nIf this is as it should be: basisopt snapshot accept .\n"
        ),
        "{out}"
    );
    assert!(!bench.dir.path().join("snapshots").exists(), "checking wrote something");

    let (out, _) = bench.run(0, &["accept"]);
    assert!(
        out.contains("wrote ./snapshots/tiny/small.snap\n")
            && out.ends_with("4 cases: 4 written, 0 removed\n"),
        "{out}"
    );
    let names: Vec<String> = bench.snapshots().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["glyphnet/import.snap", "glyphnet/small.snap", "tiny/import.snap", "tiny/small.snap"]);
    assert_eq!(bench.run(0, &["check"]).0, "4 cases: 4 equal\n");
    assert_eq!(bench.run(0, &["accept"]).0, "4 cases: 0 written, 0 removed\n");

    let text = bench.read("snapshots/tiny/small.snap");
    // 16·72 weights at 81 places; 2·(72 + 16) afterwards.
    assert!(text.contains("//   conv1: 93312 -> 14256 multiply-adds, 1152 -> 176 parameters\n"), "{text}");
    basisopt::ir::parse::parse(&text).unwrap();
}

#[test]
fn what_changes_is_shown_and_noise_is_not() {
    let bench = Bench::accepted();
    let file = "snapshots/tiny/small.snap";
    let original = bench.read(file);
    let stored = norm(&original, "w.coefficients").to_owned();

    // One in the last digit is another machine's rounding, and is left as it is.
    let noisy = original.replace(&format!("norm {stored}"), &format!("norm {}", next(&stored)));
    assert_ne!(noisy, original);
    bench.write(file, &noisy);
    bench.run(0, &["check"]);
    bench.run(0, &["accept"]);
    assert_eq!(bench.read(file), noisy);

    // A rank is not, and the noise beside it is neither shown nor written.
    bench.edit(file, "rank 2 of 16", "rank 3 of 16");
    let (out, _) = bench.run(1, &["check"]);
    assert!(out.starts_with("different  tiny/small\n--- ./snapshots/tiny/small.snap\n+++ now\n"), "{out}");
    assert!(out.contains("\n-//   + factorize-conv: conv1: rank 3 of 16: "), "{out}");
    assert!(out.contains("\n+//   + factorize-conv: conv1: rank 2 of 16: "), "{out}");
    assert!(!out.contains("norm "), "{out}");
    assert_eq!(bench.run(0, &["accept"]).0.lines().next(), Some("wrote ./snapshots/tiny/small.snap"));
    assert_eq!(bench.read(file), noisy);

    // One percent of a norm is a difference.
    let other = format!("{:?}", stored.parse::<f64>().unwrap() * 1.01);
    bench.write(file, &original.replace(&format!("norm {stored}"), &format!("norm {other}")));
    let (out, _) = bench.run(1, &["check", "-U", "0"]);
    assert_eq!(out.lines().filter(|l| l.starts_with("-  ") || l.starts_with("+  ")).count(), 2, "{out}");
    bench.run(1, &["check", "--filter", "tiny/*"]);
    bench.run(0, &["check", "--filter", "glyphnet/*|*/import"]);
}

#[test]
fn ci_gets_xml_and_json() {
    let bench = Bench::accepted();
    bench.edit("snapshots/tiny/small.snap", "-> 14256", "-> 14257");
    std::fs::remove_file(bench.dir.path().join("snapshots/tiny/import.snap")).unwrap();
    let (out, _) = bench.run(1, &["check", "--junit", "out.xml", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let counts =
        ["equal", "different", "missing", "failed"].map(|key| report["counts"][key].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 1, 0]);
    assert_eq!(report["cases"][3]["status"], "different");
    assert!(report["cases"][3]["diff"].as_str().unwrap().contains("-> 14257"), "{out}");

    let xml = bench.read("out.xml");
    let document = roxmltree::Document::parse(&xml).unwrap();
    let suite = document.descendants().find(|n| n.has_tag_name("testsuite")).unwrap();
    let number = |key: &str| suite.attribute(key).unwrap().to_owned();
    assert_eq!((number("tests"), number("failures"), number("errors")), ("4".into(), "2".into(), "0".into()));
    let failures: Vec<_> = document.descendants().filter(|n| n.has_tag_name("failure")).collect();
    let of = |i: usize| {
        (failures[i].attribute("type").unwrap(), failures[i].parent().unwrap().attribute("name").unwrap())
    };
    assert_eq!((of(0), of(1)), (("missing", "import"), ("different", "small")));
    assert!(failures[1].text().unwrap().contains("-> 14257"));

    let refused = bench.run(1, &["check", "--junit", "basisopt-snapshots.toml"]).1;
    assert!(refused.contains("refusing to write basisopt-snapshots.toml"), "{refused}");
    assert_eq!(bench.read("basisopt-snapshots.toml"), LIST);
}

#[test]
fn orphans_are_told_and_go_only_if_asked() {
    let bench = Bench::accepted();
    std::fs::remove_file(bench.dir.path().join("models/tiny.bir")).unwrap();
    // Another tool's snapshots in the same place are not ours to delete.
    bench.write("snapshots/other.snap", "---\nsource: tests/x.rs\n---\n");
    let (out, _) = bench.run(1, &["check"]);
    assert!(out.contains("orphaned   ./snapshots/tiny/small.snap: no case has it\n"), "{out}");
    assert!(out.contains("2 cases: 2 equal; 2 snapshots orphaned\n"), "{out}");
    let (out, _) = bench.run(0, &["accept"]);
    assert!(out.contains("orphaned ./snapshots/tiny/import.snap: no case has it; --remove-orphans"), "{out}");
    assert_eq!(bench.snapshots().len(), 5);
    let (out, _) = bench.run(0, &["accept", "--remove-orphans"]);
    assert!(
        out.contains("removed ./snapshots/tiny/small.snap\n") && out.contains("0 written, 2 removed"),
        "{out}"
    );
    let left: Vec<String> = bench.snapshots().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["glyphnet/import.snap", "glyphnet/small.snap", "other.snap"]);
    assert!(!bench.dir.path().join("snapshots/tiny").exists());
    bench.run(0, &["check"]);
}

#[test]
fn errors_of_models_and_passes_are_snapshots_and_those_of_the_list_are_not() {
    let bench = Bench::new();
    bench.write("models/bad.onnx", "no model");
    bench.write("models/open.bir", &NETWORK.replace("9,9]", "H,W]"));
    bench.edit("basisopt-snapshots.toml", "@fold,factorize-conv:rank=2", "allocate-ranks:target=macs:0.5");
    bench.run(0, &["accept"]);
    bench.run(0, &["check"]);
    let error = |name: &str| {
        let text = bench.read(name);
        text.lines().find_map(|l| l.strip_prefix("// error: ")).unwrap().to_owned()
    };
    assert!(
        error("snapshots/bad/import.snap")
            .starts_with("models/bad.onnx: not an ONNX model: it is a text file")
    );
    assert!(error("snapshots/open/small.snap").starts_with("allocate-ranks: "));

    // With sizes, in a case of its own, the pass has what it asks for.
    let case = "[[case]]\nmodel = \"models/open.bir\"\ndims = { H = 9, W = 9 }\n";
    bench.write("basisopt-snapshots.toml", &(bench.read("basisopt-snapshots.toml") + case));
    let (out, _) = bench.run(1, &["check"]);
    assert!(out.contains("-// error: allocate-ranks: ") && out.contains("[allotted]"), "{out}");

    let usage = |from: &str, to: &str| {
        let bench = Bench::new();
        bench.edit("basisopt-snapshots.toml", from, to);
        bench.run(2, &["check"]).1
    };
    assert!(usage("model = ", "modle = ").contains("did you mean \"model\"?"));
    assert!(usage("factorize-conv", "factorise-conv").contains("did you mean \"factorize-conv\"?"));
    assert!(usage("models/*", "nets/a.onnx").contains("model \"nets/a.onnx\" is not there"));
    assert!(
        Bench::new().run(2, &["check", "--filter", "glyphnet"]).1.contains("the first is glyphnet/import")
    );
}

#[test]
fn a_list_is_begun_with_init() {
    let bench = Bench::new();
    std::fs::remove_file(bench.dir.path().join("basisopt-snapshots.toml")).unwrap();
    let (_, err) = bench.run(2, &["check"]);
    assert!(
        err.contains("there is no ./basisopt-snapshots.toml; `basisopt snapshot init` writes one"),
        "{err}"
    );
    bench.run(0, &["init"]);
    assert!(bench.run(0, &["accept"]).0.contains("wrote ./snapshots/models/glyphnet/small.snap\n"));
    bench.run(0, &["check"]);
    assert!(bench.run(1, &["init"]).1.contains("it is there already"));
}

#[test]
fn the_outcome_does_not_depend_on_threads() {
    let bench = Bench::new();
    let accept = |threads: &str| {
        let mut command = program(bench.dir.path(), &["snapshot", "accept"]);
        assert!(command.env("RAYON_NUM_THREADS", threads).output().unwrap().status.success());
        let found = bench.snapshots();
        std::fs::remove_dir_all(bench.dir.path().join("snapshots")).unwrap();
        found
    };
    let one = accept("1");
    assert_eq!(one.len(), 4);
    assert_eq!(one, accept("5"));
}

/// What users do with their models, done with ours; it runs wherever the tests do, on other processors too.
#[test]
fn the_fixture_networks_are_as_they_were() {
    let spec = Spec::load(common::root().join("fixtures/snapshots")).unwrap();
    let suite = Suite::new(spec, Registry::builtin()).unwrap();
    assert!(suite.cases().len() >= 3);
    let report = suite.check(&RunOptions::default(), &mut |_, _, _| {}).unwrap();
    for outcome in &report.outcomes {
        match &outcome.status {
            Status::Equal => {}
            Status::Different(found) => panic!("{}", found.diff(&outcome.case.name, "now", 3)),
            other => panic!("{}: {other:?}", outcome.case.name),
        }
    }
    assert_eq!(report.orphans, Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_panicking_pass_fails_its_case_and_no_other() {
    use basisopt::ir::Graph;
    use basisopt::passes::{Fidelity, Outcome, Pass, PassContext, PassError, PassInfo};

    #[derive(Debug)]
    struct Bad;
    static BAD: PassInfo = PassInfo {
        name: "bad",
        summary: "panic",
        fidelity: Fidelity::Exact,
        options: &[],
        build: |_| Ok(Box::new(Bad)),
    };
    impl Pass for Bad {
        fn info(&self) -> &'static PassInfo {
            &BAD
        }
        fn run(&self, _: &mut Graph, _: &mut PassContext<'_>) -> Result<Outcome, PassError> {
            panic!("no such luck")
        }
    }
    let bench = Bench::accepted();
    bench.write("basisopt-snapshots.toml", &LIST.replace("import = \"\"", "bad = \"bad\""));
    let spec = Spec::load(bench.dir.path()).unwrap();
    let suite = Suite::new(spec, Registry::builtin().with(&BAD)).unwrap();
    let report = suite.check(&RunOptions { jobs: 3, ..RunOptions::default() }, &mut |_, _, _| {}).unwrap();
    let failed = Status::Failed("bad panicked: no such luck (this is a bug in the pass)".to_owned());
    let found: Vec<&Status> = report.outcomes.iter().map(|o| &o.status).collect();
    assert_eq!(found, [&failed, &Status::Equal, &failed, &Status::Equal]);
    // Nothing is stored for what failed.
    assert_eq!(suite.accept(&report, false).unwrap(), snapshot::Accepted::default());
}
