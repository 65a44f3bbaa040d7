//! Ranks for all layers at once under a budget: a multiple-choice knapsack, solved by its Lagrangian.
//!
//! Each layer offers choices with a cost and a loss: every rank below break-even, and staying whole at no
//! loss. For a price λ of cost each layer takes the choice with the least `loss + λ·cost`; the smallest price
//! at which all choices together keep to the budget is found by bisection (Everett 1963). What then is left
//! of the budget, because a Lagrangian reaches corners of the lower hull only, is spent on the steps that
//! gain most for what they cost. Where there are not too many choices, dynamic programming over a rounded budget
//! looks for something better.

/// One thing that can be done with a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// The rank; `None` to leave the layer whole.
    pub rank: Option<usize>,
    pub cost: f64,
    pub loss: f64,
}

/// For each layer the index of its choice, such that the costs together are at most `budget`; `None` if
/// even the cheapest choices cost more. Choices must not be empty.
pub(crate) fn allocate(layers: &[Vec<Choice>], budget: f64) -> Option<Vec<usize>> {
    let total = |chosen: &[usize]| chosen.iter().zip(layers).map(|(&i, l)| l[i].cost).sum::<f64>();
    let fits = |chosen: &[usize]| total(chosen) <= budget * (1.0 + 1e-12);
    let best: Vec<usize> = layers.iter().map(|l| least(l, |c| (c.loss, c.cost))).collect();
    if fits(&best) {
        return Some(best);
    }
    let cheapest: Vec<usize> = layers.iter().map(|l| least(l, |c| (c.cost, c.loss))).collect();
    if !fits(&cheapest) {
        return None;
    }
    let at = |price: f64| -> Vec<usize> {
        layers.iter().map(|l| least(l, |c| (c.loss + price * c.cost, c.cost))).collect()
    };
    // Prices are positive and of any size: their logarithms are halved.
    let (mut low, mut high) = (-80.0f64, 80.0f64);
    let mut chosen = cheapest;
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        let found = at(middle.exp2());
        if fits(&found) {
            (high, chosen) = (middle, found);
        } else {
            low = middle;
        }
    }
    spend(layers, &mut chosen, budget);
    let loss = |chosen: &[usize]| chosen.iter().zip(layers).map(|(&i, l)| l[i].loss).sum::<f64>();
    // Rounded up, costs always fit; rounded to the nearest, they may fit and waste less.
    for round in [f64::ceil, f64::round] {
        if let Some(mut other) = by_buckets(layers, budget, round).filter(|c| fits(c)) {
            spend(layers, &mut other, budget);
            if loss(&other) < loss(&chosen) {
                chosen = other;
            }
        }
    }
    Some(chosen)
}

/// The index of the least choice, the first of equals.
fn least(choices: &[Choice], key: impl Fn(&Choice) -> (f64, f64)) -> usize {
    let compare = |a: &&Choice, b: &&Choice| {
        let ((a, a2), (b, b2)) = (key(a), key(b));
        a.total_cmp(&b).then(a2.total_cmp(&b2))
    };
    let best = choices.iter().min_by(compare);
    best.and_then(|b| choices.iter().position(|c| std::ptr::eq(b, c))).unwrap_or(0)
}

/// Steps that the budget is cut into.
const BUCKETS: usize = 4096;
/// Additions that are worth waiting for: some tenths of a second.
const MAX_WORK: usize = 1 << 28;

/// Spends what is left on the steps that lower the loss most for what they cost, as long as one fits.
fn spend(layers: &[Vec<Choice>], chosen: &mut [usize], budget: f64) {
    let mut left = budget - chosen.iter().zip(layers).map(|(&i, l)| l[i].cost).sum::<f64>();
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (l, choices) in layers.iter().enumerate() {
            let now = choices[chosen[l]];
            for (i, choice) in choices.iter().enumerate() {
                let (more, gain) = (choice.cost - now.cost, now.loss - choice.loss);
                if gain <= 0.0 || more > left {
                    continue;
                }
                let worth = if more > 0.0 { gain / more } else { f64::INFINITY };
                if best.is_none_or(|(w, _, _)| worth > w) {
                    best = Some((worth, l, i));
                }
            }
        }
        let Some((_, l, i)) = best else { break };
        left -= layers[l][i].cost - layers[l][chosen[l]].cost;
        chosen[l] = i;
    }
}

/// The best choices with costs rounded to a 4,096th of the budget: exact up to that, and free of the gaps
/// that a Lagrangian leaves where the hull has long edges, as between a layer's last rank and the whole layer.
fn by_buckets(layers: &[Vec<Choice>], budget: f64, round: fn(f64) -> f64) -> Option<Vec<usize>> {
    let n_choices: usize = layers.iter().map(Vec::len).sum();
    if budget.is_nan() || budget <= 0.0 || n_choices * BUCKETS > MAX_WORK {
        return None;
    }
    let buckets = |cost: f64| round(cost / budget * BUCKETS as f64) as usize;
    // The least loss of the layers so far within so many buckets, and what the last of them took.
    let mut least = vec![0.0f64; BUCKETS + 1];
    let mut taken: Vec<Vec<u32>> = Vec::new();
    for choices in layers {
        let mut next = vec![f64::INFINITY; BUCKETS + 1];
        let mut took = vec![u32::MAX; BUCKETS + 1];
        for (i, choice) in choices.iter().enumerate() {
            let cost = buckets(choice.cost);
            for used in cost..=BUCKETS {
                let loss = least[used - cost] + choice.loss;
                if loss < next[used] {
                    (next[used], took[used]) = (loss, i as u32);
                }
            }
        }
        least = next;
        taken.push(took);
    }
    let mut left = BUCKETS;
    let mut chosen = vec![0; layers.len()];
    for (l, took) in taken.iter().enumerate().rev() {
        let i = usize::try_from(took[left]).ok().filter(|&i| i < layers[l].len())?;
        chosen[l] = i;
        left -= buckets(layers[l][i].cost);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(full: usize, per_rank: f64, whole: f64, decay: f64, weight: f64) -> Vec<Choice> {
        let mut choices: Vec<Choice> = (1..full)
            .map(|r| Choice { rank: Some(r), cost: per_rank * r as f64, loss: weight * decay.powi(r as i32) })
            .filter(|c| c.cost < whole)
            .collect();
        choices.push(Choice { rank: None, cost: whole, loss: 0.0 });
        choices
    }

    fn cost(layers: &[Vec<Choice>], chosen: &[usize]) -> (f64, f64) {
        let picked = || chosen.iter().zip(layers).map(|(&i, l)| l[i]);
        (picked().map(|c| c.cost).sum(), picked().map(|c| c.loss).sum())
    }

    /// Against every combination of choices.
    #[test]
    fn nearly_as_good_as_trying_everything_and_never_over_budget() {
        let layers =
            [layer(9, 3.0, 25.0, 0.6, 1.0), layer(7, 5.0, 30.0, 0.8, 0.5), layer(12, 1.0, 10.5, 0.5, 2.0)];
        for budget in [12.0, 20.0, 33.0, 47.0, 60.0] {
            let chosen = allocate(&layers, budget).unwrap();
            let (spent, loss) = cost(&layers, &chosen);
            assert!(spent <= budget);
            let mut best = f64::INFINITY;
            for a in 0..layers[0].len() {
                for b in 0..layers[1].len() {
                    for c in 0..layers[2].len() {
                        let (spent, loss) = cost(&layers, &[a, b, c]);
                        if spent <= budget {
                            best = best.min(loss);
                        }
                    }
                }
            }
            assert!(loss <= 1.001 * best + 1e-12, "budget {budget}: {loss} against {best}");
        }
    }

    #[test]
    fn with_room_for_all_nothing_is_factored_and_without_any_nothing_is_found() {
        let layers = [layer(9, 3.0, 25.0, 0.6, 1.0), layer(7, 5.0, 30.0, 0.8, 0.5)];
        let whole = allocate(&layers, 55.0).unwrap();
        assert!(whole.iter().zip(&layers).all(|(&i, l)| l[i].rank.is_none()));
        assert_eq!(allocate(&layers, 7.9), None);
        assert_eq!(cost(&layers, &allocate(&layers, 8.0).unwrap()).0, 8.0);
    }
}
