//! Ranks and outputs of ONNX files by the passes of the command line, and by the transform inside tract.
//!
//! `cargo run -p basisopt-tract --example agree -- [ENERGY] [FILE…]`
#![allow(clippy::print_stdout, reason = "an example")]

#[path = "../tests/common/agree.rs"]
mod agree;

use std::collections::BTreeMap;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let energy = match arguments.first().and_then(|a| a.parse().ok()) {
        Some(energy) => {
            arguments.remove(0);
            energy
        }
        None => 0.9,
    };
    if arguments.is_empty() {
        arguments.push("fixtures/models/glyphnet.onnx".to_owned());
    }
    for path in arguments.iter().map(Path::new) {
        println!("{}, energy {energy}", path.display());
        let passes = agree::by_passes(path, energy)?;
        let moved = agree::difference(&agree::whole(path)?, &passes.outputs)?;
        println!("  passes: {} layers factorised, outputs moved by {moved:.3e}", passes.ranks.len());
        for declutter in [false, true] {
            let (transform, report) = agree::by_transform(path, energy, declutter)?;
            // Rank by the passes, rank by the transform.
            let mut both: BTreeMap<&str, [Option<usize>; 2]> = BTreeMap::new();
            for (i, ranks) in [&passes.ranks, &transform.ranks].into_iter().enumerate() {
                ranks.iter().for_each(|(name, rank)| both.entry(name).or_default()[i] = Some(*rank));
            }
            let n_same = both.values().filter(|[a, b]| a == b).count();
            let difference = agree::difference(&passes.outputs, &transform.outputs)?;
            let state = if declutter { "decluttered" } else { "as loaded" };
            println!(
                "  transform, {state}: {} layers factorised, {n_same} of {} with the same rank, outputs differ by {difference:.3e}",
                transform.ranks.len(),
                both.len(),
            );
            for (name, [a, b]) in both.iter().filter(|(_, [a, b])| a != b || both.len() < 10) {
                let show = |rank: &Option<usize>| rank.map_or("whole".to_owned(), |r| r.to_string());
                println!("    {name}: {} by the passes, {} by the transform", show(a), show(b));
                for remark in report.remarks.iter().filter(|r| r.node == *name && b.is_none()) {
                    println!("      {remark}");
                }
            }
        }
    }
    Ok(())
}
