//! The documentation is executed: text blocks parse, passes do what their section shows, and what
//! exists is documented.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod common;

use basisopt::ir::{parse, print, verify};
use basisopt::{Manager, NoObserver, Pipeline, Registry};

/// The fenced blocks of one language, with the heading of the section they stand in.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(&'a str, String)> {
    let (mut heading, mut open, mut found) = ("", false, Vec::<(&str, String)>::new());
    let mut wanted = false;
    for line in text.lines() {
        if let Some(info) = line.strip_prefix("```") {
            open = !open;
            wanted = open && info == language;
            if wanted {
                found.push((heading, String::new()));
            }
        } else if wanted {
            if let Some((_, block)) = found.last_mut() {
                *block += line;
                *block += "\n";
            }
        } else if !open && let Some(title) = line.strip_prefix("## ") {
            heading = title;
        }
    }
    found
}

fn read(path: &str) -> String {
    std::fs::read_to_string(common::root().join(path)).unwrap()
}

#[test]
fn every_text_block_is_a_network() {
    let mut n = 0;
    for entry in std::fs::read_dir(common::root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for (heading, block) in blocks(&text, "bir") {
            let at = format!("{}: {heading}", path.display());
            let graph = parse::parse(&block).unwrap_or_else(|e| panic!("{at}:\n{e}"));
            verify(&graph).unwrap_or_else(|v| panic!("{at}: {v}"));
            n += 1;
        }
    }
    assert!(n >= 6, "{n} blocks");
}

#[test]
fn every_pass_has_a_section_that_shows_what_it_does() {
    let text = read("docs/passes.md");
    let registry = Registry::builtin();
    for info in registry.passes() {
        let section = text.split(&format!("\n## {}\n", info.name)).nth(1);
        let section = section.unwrap_or_else(|| panic!("docs/passes.md has no section {}", info.name));
        let section = section.split("\n## ").next().unwrap_or_default();
        // The linear passes refer to factorize-conv for their options.
        for option in info.options {
            let documented = if info.name == "factorize-linear" { &text } else { section };
            assert!(
                documented.contains(option.name),
                "{}: option {} is not documented",
                info.name,
                option.name
            );
        }
        let shown = blocks(&text, "bir");
        let mut shown = shown.iter().filter(|(heading, _)| *heading == info.name).map(|(_, block)| block);
        let Some(before) = shown.next() else { continue };
        let mut graph = parse::parse(before).unwrap();
        let pipeline = Pipeline::parse(info.name, &registry).unwrap();
        let report = Manager::default().run(&mut graph, &pipeline, &mut NoObserver).unwrap();
        assert!(report.n_rewrites() > 0, "{}: nothing happens in\n{before}", info.name);
        if let Some(after) = shown.next() {
            // Types are left out in the documentation, and the name of the graph differs.
            let mut expected = parse::parse(after).unwrap();
            basisopt::ir::infer::infer(&mut expected).unwrap();
            expected.name.clone_from(&graph.name);
            assert_eq!(print::print(&graph), print::print(&expected), "{}", info.name);
        }
    }
}

/// `docs/cli.md` ends with what `--help` says; `UPDATE_DOCS=1 cargo test --test docs` writes it.
#[test]
fn the_command_line_is_documented_as_it_is() {
    let help = |arguments: &[&str]| {
        let mut command = common::program::basisopt();
        let output = command.args(arguments).env_remove("COLUMNS").output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|l| l.trim_end().to_owned() + "\n").collect::<String>()
    };
    // Names of the commands in a help text: none, where it has no such section.
    let commands = |help: &str| -> Vec<String> {
        let section =
            help.split("Commands:\n").nth(1).and_then(|s| s.split("\n\n").next()).unwrap_or_default();
        // A command stands two columns in; what goes on from its line stands further in.
        let names = section.lines().filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
        let names = names.filter_map(|l| l.split_whitespace().next());
        names.filter(|n| *n != "help").map(str::to_owned).collect()
    };
    let overview = help(&["--help"]);
    let names = commands(&overview);
    assert!(names.len() >= 11, "{names:?}");

    let marker = "<!-- What follows is printed by the program: UPDATE_DOCS=1 cargo test --test docs -->\n";
    let text = read("docs/cli.md");
    let (written, found) = text.split_once(marker).expect("docs/cli.md has the marker");
    let mut expected = format!("\n## basisopt\n\n```text\n{overview}```\n");
    for name in names {
        let text = help(&[&name, "--help"]);
        expected += &format!("\n## {name}\n\n```text\n{text}```\n");
        for inner in commands(&text) {
            let text = help(&[&name, &inner, "--help"]);
            expected += &format!("\n### {name} {inner}\n\n```text\n{text}```\n");
        }
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let path = common::root().join("docs/cli.md");
        std::fs::write(path, format!("{written}{marker}{expected}")).unwrap();
    } else {
        assert_eq!(found, expected, "run UPDATE_DOCS=1 cargo test --test docs");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for file in ["README.md", "CONTRIBUTING.md"] {
        let text = read(file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.starts_with("http") {
                assert!(common::root().join(target).exists(), "{file} links to {target}, which is not there");
            }
        }
    }
}
