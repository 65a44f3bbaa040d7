//! Steps down the gradient.

/// How parameters follow their gradients. With g the gradient, w the parameter and η the rate:
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// `v ← μ·v + g;  w ← w − η·(g + μ·v)`: Nesterov's momentum.
    Sgd {
        /// μ.
        momentum: f32,
    },
    /// `m ← β₁·m + (1−β₁)·g;  v ← β₂·v + (1−β₂)·g²;  w ← w − η·m̂/(√v̂ + ε)`, both without their bias
    /// (Kingma, Ba 2015); decay acts on the parameter itself (Loshchilov, Hutter 2019).
    AdamW {
        /// β₁ and β₂.
        betas: (f32, f32),
        /// ε.
        epsilon: f32,
    },
}

/// The method with what it remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    method: Method,
    weight_decay: f32,
    /// Momentum, or first moments.
    first: Vec<Vec<f32>>,
    /// Second moments.
    second: Vec<Vec<f32>>,
    n_steps: u64,
}

impl Optimizer {
    /// For parameters of these sizes.
    pub fn new(method: Method, weight_decay: f32, sizes: &[usize]) -> Self {
        let zeros = || sizes.iter().map(|&n| vec![0.0; n]).collect::<Vec<_>>();
        let second = if matches!(method, Method::AdamW { .. }) { zeros() } else { vec![] };
        Self { method, weight_decay, first: zeros(), second, n_steps: 0 }
    }

    /// One step. `decays` says of each parameter whether weight decay acts on it.
    pub fn step(&mut self, parameters: &mut [Vec<f32>], gradients: &[Vec<f32>], decays: &[bool], rate: f32) {
        self.n_steps += 1;
        let n = i32::try_from(self.n_steps).unwrap_or(i32::MAX);
        for (i, (w, g)) in parameters.iter_mut().zip(gradients).enumerate() {
            let decay = if decays.get(i) == Some(&true) { self.weight_decay } else { 0.0 };
            let Some(first) = self.first.get_mut(i) else { continue };
            match self.method {
                Method::Sgd { momentum } => {
                    for ((w, &g), v) in w.iter_mut().zip(g).zip(first) {
                        let g = g + decay * *w;
                        *v = momentum * *v + g;
                        *w -= rate * (g + momentum * *v);
                    }
                }
                Method::AdamW { betas: (b1, b2), epsilon } => {
                    let (c1, c2) = (1.0 - b1.powi(n), 1.0 - b2.powi(n));
                    let Some(second) = self.second.get_mut(i) else { continue };
                    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(first).zip(second) {
                        *m = b1 * *m + (1.0 - b1) * g;
                        *v = b2 * *v + (1.0 - b2) * g * g;
                        *w -= rate * (decay * *w + (*m / c1) / ((*v / c2).sqrt() + epsilon));
                    }
                }
            }
        }
    }

    /// Everything remembered, for a checkpoint: the number of steps, then all moments.
    pub fn state(&self) -> (u64, impl Iterator<Item = &Vec<f32>>) {
        (self.n_steps, self.first.iter().chain(&self.second))
    }

    /// Takes back what [`Optimizer::state`] gave; `false` if it does not fit.
    #[must_use]
    pub fn restore(&mut self, n_steps: u64, moments: Vec<Vec<f32>>) -> bool {
        let mine: Vec<usize> = self.first.iter().chain(&self.second).map(Vec::len).collect();
        if mine != moments.iter().map(Vec::len).collect::<Vec<_>>() {
            return false;
        }
        let mut moments = moments.into_iter();
        for slot in self.first.iter_mut().chain(&mut self.second) {
            *slot = moments.next().unwrap_or_default();
        }
        self.n_steps = n_steps;
        true
    }
}

/// Scales gradients down to a norm of at most `limit`; gives the norm they had.
pub fn clip(gradients: &mut [Vec<f32>], limit: f64) -> f64 {
    let norm = gradients.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    if norm > limit {
        #[allow(clippy::cast_possible_truncation, reason = "a factor below one")]
        let factor = (limit / norm) as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= factor);
    }
    norm
}

/// How the rate changes over a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// As it is.
    Constant,
    /// Half a cosine, down to zero.
    Cosine,
    /// Times 0.1 when these shares of the run are over.
    Steps(Vec<f64>),
}

impl Schedule {
    /// The rate at this share of the run, 0…1, relative to the peak. Over the first `warmup` of the run it rises
    /// from zero.
    pub fn rate(&self, progress: f64, warmup: f64) -> f64 {
        if progress < warmup {
            return progress / warmup;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => {
                let rest = ((progress - warmup) / (1.0 - warmup).max(f64::EPSILON)).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * rest).cos())
            }
            Self::Steps(at) => {
                0.1f64.powi(at.iter().filter(|&&a| progress >= a).count().try_into().unwrap_or(0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On ½w², of which the gradient is w, by hand.
    #[test]
    fn nesterov_momentum_by_hand() {
        let mut o = Optimizer::new(Method::Sgd { momentum: 0.5 }, 0.0, &[1]);
        let mut w = vec![vec![1.0]];
        for expected in [1.0 - 0.1 * (1.0 + 0.5), 0.85 - 0.1 * (0.85 + 0.5 * (0.5 + 0.85))] {
            let g = w.clone();
            o.step(&mut w, &g, &[true], 0.1);
            assert!((w[0][0] - expected).abs() < 1e-6f32, "{} {expected}", w[0][0]);
        }
    }

    /// The first step of Adam is the rate, whatever the size of the gradient; decay comes on top.
    #[test]
    fn adam_starts_with_the_sign_and_decays_apart() {
        let adam = Method::AdamW { betas: (0.9, 0.999), epsilon: 1e-12 };
        let mut o = Optimizer::new(adam, 0.1, &[2]);
        let mut w = vec![vec![1.0, 1.0]];
        o.step(&mut w, &[vec![1e-3, -1e3]], &[true], 0.01);
        assert!((w[0][0] - (1.0 - 0.01 - 0.001)).abs() < 1e-5);
        assert!((w[0][1] - (1.0 + 0.01 - 0.001)).abs() < 1e-5);
        let (n, state) = o.state();
        let state: Vec<Vec<f32>> = state.cloned().collect();
        let mut again = Optimizer::new(adam, 0.1, &[2]);
        assert!(again.restore(n, state) && again == o);
        assert!(!again.restore(n, vec![vec![0.0; 3]]));
    }

    #[test]
    fn schedules() {
        assert_eq!(Schedule::Cosine.rate(0.0, 0.0), 1.0);
        assert!((Schedule::Cosine.rate(0.5, 0.0) - 0.5).abs() < 1e-12);
        assert!(Schedule::Cosine.rate(1.0, 0.1).abs() < 1e-12);
        assert!((Schedule::Cosine.rate(0.05, 0.1) - 0.5).abs() < 1e-12);
        let steps = Schedule::Steps(vec![0.5, 0.75]);
        assert_eq!(steps.rate(0.4, 0.0), 1.0);
        assert!((steps.rate(0.6, 0.0) - 0.1).abs() < 1e-12);
        assert!((steps.rate(0.9, 0.0) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut g = vec![vec![3.0], vec![4.0]];
        assert_eq!(clip(&mut g, 10.0), 5.0);
        assert_eq!(g, [[3.0], [4.0]]);
        clip(&mut g, 1.0);
        assert!((g[0][0] - 0.6).abs() < 1e-6 && (g[1][0] - 0.8).abs() < 1e-6);
    }
}
