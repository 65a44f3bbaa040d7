//! Matrix products of which neither side is a weight, and those that the convolution kernels do not fit.

use crate::exec::kernel::{Arg, Kernel, Spec, Unsupported};
use basisopt_ir::op::Op;
use basisopt_kernels::{LANES, Real};

/// `y = alpha · a·b + beta · c` for each pair of matrices.
#[derive(Debug)]
struct Product {
    /// Element offsets of a, b for each product.
    pairs: Vec<(usize, usize)>,
    m: usize,
    n: usize,
    k: usize,
    /// Steps along rows and columns of a and of b.
    a: (usize, usize),
    b: (usize, usize),
    alpha: f64,
    /// Factor on c, and its elements by those of y; empty where they are the same.
    c: Option<(f64, Vec<u32>)>,
}

impl<T: Real> Kernel<T> for Product {
    fn run(&self, inputs: &[Arg<'_, T>], outputs: &mut [&mut [T]], lanes: usize) {
        let ([a, b, rest @ ..], Some(y)) = (inputs, outputs.first_mut()) else { return };
        let alpha = T::from_f64(self.alpha);
        let get =
            |arg: &Arg<'_, T>, e: usize, l: usize| arg.data[if arg.batched { e * LANES + l } else { e }];
        for (p, &(a0, b0)) in self.pairs.iter().enumerate() {
            for i in 0..self.m {
                for j in 0..self.n {
                    let e = (p * self.m + i) * self.n + j;
                    let out = &mut y[e * lanes..(e + 1) * lanes];
                    out.fill(T::ZERO);
                    for k in 0..self.k {
                        let (ai, bi) = (a0 + i * self.a.0 + k * self.a.1, b0 + k * self.b.0 + j * self.b.1);
                        for (l, out) in out.iter_mut().enumerate() {
                            *out += get(a, ai, l) * get(b, bi, l);
                        }
                    }
                    for (l, out) in out.iter_mut().enumerate() {
                        *out *= alpha;
                        if let (Some((beta, table)), Some(c)) = (&self.c, rest.first()) {
                            let at = table.get(e).map_or(e, |&t| t as usize);
                            *out += T::from_f64(*beta) * get(c, at, l);
                        }
                    }
                }
            }
        }
    }
}

/// The kernel of a matrix product; `None` for other operators.
pub(super) fn lower<T: Real>(op: &Op, spec: &Spec) -> Option<Result<Box<dyn Kernel<T>>, Unsupported>> {
    let shape = |i: usize| spec.inputs.get(i).and_then(Option::as_ref).map(|o| o.shape.clone());
    let (a, b, y) = match op {
        Op::Gemm(_) | Op::MatMul(_) => (shape(0)?, shape(1)?, spec.outputs.first()?.clone()),
        _ => return None,
    };
    let product = match op {
        Op::Gemm(op) => {
            let (&[ar, ac], &[br, bc]) = (&a[..], &b[..]) else { return Some(Err(ranks())) };
            let c = shape(2)
                .map(|c| (f64::from(op.beta), super::pointwise::broadcast(&c, &y).unwrap_or_default()));
            Product {
                pairs: vec![(0, 0)],
                m: if op.transA == 1 { ac } else { ar },
                k: if op.transA == 1 { ar } else { ac },
                n: if op.transB == 1 { br } else { bc },
                a: if op.transA == 1 { (1, ac) } else { (ac, 1) },
                b: if op.transB == 1 { (1, bc) } else { (bc, 1) },
                alpha: f64::from(op.alpha),
                c,
            }
        }
        _ => {
            // Vectors are rows or columns.
            let a = if a.len() == 1 { vec![1, a[0]] } else { a };
            let b = if b.len() == 1 { vec![b[0], 1] } else { b };
            let (Some((&[m, k], a_batch)), Some((&[_, n], b_batch))) = (
                a.split_last_chunk::<2>().map(|(x, y)| (y, x)),
                b.split_last_chunk::<2>().map(|(x, y)| (y, x)),
            ) else {
                return Some(Err(ranks()));
            };
            let rank = a_batch.len().max(b_batch.len());
            let widened = |s: &[usize]| [vec![1; rank - s.len()], s.to_vec()].concat();
            let (wa, wb) = (widened(a_batch), widened(b_batch));
            let batch: Vec<usize> = wa.iter().zip(&wb).map(|(&a, &b)| a.max(b)).collect();
            let offsets = |from: &[usize], size: usize| -> Vec<usize> {
                let n: usize = batch.iter().product();
                match super::pointwise::broadcast(from, &batch) {
                    None => (0..n).map(|i| i * size).collect(),
                    Some(table) => table.iter().map(|&i| i as usize * size).collect(),
                }
            };
            let pairs = offsets(&wa, m * k).into_iter().zip(offsets(&wb, k * n)).collect();
            Product { pairs, m, n, k, a: (k, 1), b: (n, 1), alpha: 1.0, c: None }
        }
    };
    Some(Ok(Box::new(product)))
}

fn ranks() -> Unsupported {
    Unsupported("operands that are no matrices".to_owned())
}
