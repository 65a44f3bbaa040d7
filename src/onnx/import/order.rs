//! The order of the nodes, where there is one.

use super::{Def, Importer};
use crate::error::Problem;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

impl Importer<'_> {
    /// Nodes in topological order, ties in file order.
    pub(super) fn order(&self) -> Result<Vec<usize>, Problem> {
        let n = self.nodes.len();
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); n];
        let mut waiting = vec![0usize; n];
        for (i, node) in self.nodes.iter().enumerate() {
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                match self.defined.get(name) {
                    Some(Def::Node(producer, _)) => {
                        readers[*producer].push(i);
                        waiting[i] += 1;
                    }
                    Some(_) => {}
                    None => {
                        return Err(Problem::Dangling { place: node.place.clone(), name: name.clone() });
                    }
                }
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..n).filter(|&i| waiting[i] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(n);
        while let Some(Reverse(i)) = ready.pop() {
            order.push(i);
            for &reader in &readers[i] {
                waiting[reader] -= 1;
                if waiting[reader] == 0 {
                    ready.push(Reverse(reader));
                }
            }
        }
        match (0..n).find(|&i| waiting[i] > 0) {
            Some(start) => Err(self.cycle(start, &waiting)),
            None => Ok(order),
        }
    }

    /// Walks back from a node that never became ready until a node repeats: that one is on a cycle.
    fn cycle(&self, start: usize, waiting: &[usize]) -> Problem {
        let mut seen = BTreeSet::new();
        let (mut at, mut through) = (start, "");
        while seen.insert(at) {
            let back = self.nodes[at].inputs.iter().find_map(|name| match self.defined.get(name) {
                Some(&Def::Node(producer, _)) if waiting[producer] > 0 => Some((producer, name.as_str())),
                _ => None,
            });
            if let Some((producer, name)) = back {
                (at, through) = (producer, name);
            }
        }
        // `through` led into `at`; the input by which `at` itself waits is the one to name.
        let name = self.nodes[at]
            .inputs
            .iter()
            .find(|name| matches!(self.defined.get(*name), Some(&Def::Node(p, _)) if waiting[p] > 0));
        let name = name.map_or(through, String::as_str).to_owned();
        Problem::Cycle { place: self.nodes[at].place.clone(), name }
    }
}
