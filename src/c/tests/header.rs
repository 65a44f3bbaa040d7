//! `include/basisopt.h` is what cbindgen makes of the source, and says all that the source exports.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;

/// In the order in which a reader of the header needs them.
const SOURCES: [&str; 6] = ["status.rs", "options.rs", "data.rs", "recipe.rs", "run.rs", "result.rs"];

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = SOURCES.iter().fold(builder, |builder, file| builder.with_src(folder().join(file)));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_that_of_the_source() {
    let (path, wanted) = (folder().join("include/basisopt.h"), header());
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "the header is out of date: UPDATE_HEADER=1 cargo test -p basisopt-c --test header"
    );
}

#[test]
fn whatever_is_exported_is_declared() {
    let header = header();
    let mut n = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        for exported in source.split("#[unsafe(no_mangle)]").skip(1) {
            let name = exported.split("extern \"C\" fn ").nth(1).unwrap().split('(').next().unwrap();
            assert!(
                header.contains(&format!("{name}(")),
                "{name} of {} is not in the header",
                path.display()
            );
            n += 1;
        }
    }
    assert_eq!(
        n,
        header.matches(" basisopt_").count() + header.matches("*basisopt_").count() - mentions(&header)
    );
}

/// Names of functions in comments.
fn mentions(header: &str) -> usize {
    let comments = header.split("/*").skip(1).filter_map(|c| c.split("*/").next());
    comments.map(|c| c.matches(" basisopt_").count() + c.matches("*basisopt_").count()).sum()
}
