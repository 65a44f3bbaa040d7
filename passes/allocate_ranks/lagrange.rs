//! Ranks for all layers at once under a budget: a multiple-choice knapsack, solved by its Lagrangian.
//!
//! Each layer offers choices with a cost and a loss: every rank below break-even, and staying whole at no
//! loss. For a price λ of cost each layer takes the choice with the least `loss + λ·cost`; the smallest price
//! at which all choices together keep to the budget is found by bisection (Everett 1963). What then is left
//! of the budget, because a Lagrangian reaches corners of the lower hull only, is spent on the steps that
//! gain most for what they cost.

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

/// Two steps at once: the layers and their new choices.
struct Exchange {
    gain: f64,
    more: f64,
    steps: [(usize, usize); 2],
}

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
    // Then on a step up paid for by a step down elsewhere, as long as both together lower the loss.
    let step = |l: usize, from: usize, up: bool| {
        let now = layers[l][from].cost;
        let better = |c: &&Choice| if up { c.cost > now } else { c.cost < now };
        let nearest = layers[l]
            .iter()
            .filter(better)
            .min_by(|a, b| (a.cost - now).abs().total_cmp(&(b.cost - now).abs()));
        nearest.and_then(|n| layers[l].iter().position(|c| std::ptr::eq(c, n)))
    };
    for _ in 0..layers.len() {
        let mut best: Option<Exchange> = None;
        for up in 0..layers.len() {
            let Some(to) = step(up, chosen[up], true) else { continue };
            let (now, then) = (layers[up][chosen[up]], layers[up][to]);
            for down in (0..layers.len()).filter(|&d| d != up) {
                let Some(low) = step(down, chosen[down], false) else { continue };
                let (was, less) = (layers[down][chosen[down]], layers[down][low]);
                let more = then.cost - now.cost + less.cost - was.cost;
                let gain = now.loss - then.loss + was.loss - less.loss;
                if gain > 0.0 && more <= left && best.as_ref().is_none_or(|b| gain > b.gain) {
                    best = Some(Exchange { gain, more, steps: [(up, to), (down, low)] });
                }
            }
        }
        let Some(best) = best else { return };
        left -= best.more;
        best.steps.into_iter().for_each(|(l, i)| chosen[l] = i);
    }
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
            assert!(loss <= 1.15 * best + 1e-12, "budget {budget}: {loss} against {best}");
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
