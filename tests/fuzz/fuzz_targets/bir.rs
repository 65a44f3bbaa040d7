//! Any text: an error or a graph, and what is a graph prints to text that parses to the same text.
#![no_main]

use basisopt_ir::{parse::parse, print::print, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(graph) = parse(text) else { return };
    let _ = verify(&graph);
    let printed = print(&graph);
    let again = parse(&printed).expect("what was printed parses");
    assert_eq!(print(&again), printed);
});
