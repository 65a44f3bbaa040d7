//! Small networks, to be timed.

use anyhow::Context as _;
use basisopt_ir::parse::parse;
use basisopt_onnx::export_new;
use basisopt_passes::device::Work;
use basisopt_runtime::Source;

/// A network that does these works one after another, and nothing else.
///
/// # Errors
/// If it cannot be encoded, which is a bug.
pub(super) fn network(works: &[Work]) -> anyhow::Result<Source> {
    let text = text(works).context("work of a kind that this version cannot measure")?;
    let graph = parse(&text)?;
    Ok(Source::from_bytes(format!("{works:?}"), export_new(&graph)?, None))
}

/// The graph as text.
fn text(works: &[Work]) -> Option<String> {
    let shapes = works.first().map_or_else(Vec::new, inputs);
    let inputs: Vec<String> = shapes.iter().enumerate().map(|(i, s)| format!("%x{i}: {s}")).collect();
    let mut from = "x0".to_owned();
    let mut nodes = String::new();
    for (i, work) in works.iter().enumerate() {
        let to = format!("y{i}");
        nodes.push_str(&node(work, &from, &to)?);
        from = to;
    }
    Some(format!("graph @probe({}) -> (%{from}) {{\n{nodes}}}\n", inputs.join(", ")))
}

/// The types of what the first work reads.
fn inputs(work: &Work) -> Vec<String> {
    let vector = |n: usize| format!("f32[1,{n}]");
    match *work {
        Work::Conv { kernel, strides, n_in, output, .. }
        | Work::Pair { kernel, strides, n_in, output, .. } => {
            vec![image(n_in, kernel, strides, output)]
        }
        Work::Depthwise { kernel, strides, n_channels, output }
        | Work::Pool { kernel, strides, n_channels, output } => {
            vec![image(n_channels, kernel, strides, output)]
        }
        Work::Lrn { n_channels, output, .. } | Work::Scale { n_channels, output } => {
            vec![image(n_channels, [1, 1], [1, 1], output)]
        }
        Work::Linear { n_in, n_rows, .. } => vec![format!("f32[1,{n_rows},{n_in}]")],
        Work::Map { n_elements, n_operands } => vec![vector(n_elements); n_operands],
        Work::Exp { n_elements } => vec![vector(n_elements)],
        Work::Copy { n_elements } => vec![vector(n_elements.div_ceil(2)), vector((n_elements / 2).max(1))],
        _ => vec![vector(1)],
    }
}

/// The nodes of a work. Layers come with bias and ReLU, as they do in networks.
fn node(work: &Work, from: &str, to: &str) -> Option<String> {
    let one = |op: &str| format!("  %{to} = {op}(%{from})\n");
    Some(match *work {
        Work::Conv { kernel, strides, n_in, n_out, output: _ } => {
            layer(from, to, &[n_out, n_in], 1, kernel, strides)
        }
        Work::Pair { kernel, strides, n_in, rank, n_out, output: _ } => {
            let basis = format!(
                "  %{to}_q = f32[{rank},{n_in},{},{}] randn(seed=3)\n  %{to}_z = Conv<{}>(%{from}, %{to}_q)\n",
                kernel[0],
                kernel[1],
                window(kernel, strides)
            );
            basis + &layer(&format!("{to}_z"), to, &[n_out, rank], 1, [1, 1], [1, 1])
        }
        Work::Depthwise { kernel, strides, n_channels, output: _ } => {
            layer(from, to, &[n_channels, 1], n_channels, kernel, strides)
        }
        Work::Linear { n_in, n_out, .. } => format!(
            "  %{to}_w = f32[{n_in},{n_out}] randn(seed=1)\n  %{to}_b = f32[{n_out}] randn(seed=2)\n  %{to}_a = MatMul(%{from}, %{to}_w)\n  %{to} = Add(%{to}_a, %{to}_b)\n"
        ),
        Work::Pool { kernel, strides, .. } => {
            let [height, width] = kernel;
            one(&format!("MaxPool<kernel_shape=[{height},{width}], {}>", window(kernel, strides)))
        }
        Work::Map { n_operands: 1, .. } => one("Relu"),
        Work::Map { .. } => format!("  %{to} = Add(%x0, %x1)\n"),
        Work::Scale { n_channels, .. } => {
            let constants: String = ["s", "b", "m", "v"]
                .iter()
                .enumerate()
                .map(|(seed, name)| {
                    format!("  %{to}_{name} = f32[{n_channels}] uniform(0.5, 1.5, seed={seed})\n")
                })
                .collect();
            format!("{constants}  %{to} = BatchNormalization(%{from}, %{to}_s, %{to}_b, %{to}_m, %{to}_v)\n")
        }
        Work::Exp { .. } => one("Sigmoid"),
        Work::Lrn { size, .. } => one(&format!("LRN<size={size}>")),
        Work::Copy { .. } => format!("  %{to} = Concat<axis=1>(%x0, %x1)\n"),
        _ => return None,
    })
}

/// The input that gives this output.
fn image(n_channels: usize, kernel: [usize; 2], strides: [usize; 2], output: [usize; 2]) -> String {
    let size = |axis: usize| {
        let padding = (kernel[axis] - 1) / 2 + kernel[axis] / 2;
        ((output[axis] - 1) * strides[axis] + kernel[axis]).saturating_sub(padding).max(1)
    };
    format!("f32[1,{n_channels},{},{}]", size(0), size(1))
}

/// Half the kernel is padding on either side, as nearly everywhere.
fn window(kernel: [usize; 2], strides: [usize; 2]) -> String {
    let [top, left] = kernel.map(|k| (k - 1) / 2);
    let [bottom, right] = kernel.map(|k| k / 2);
    format!("pads=[{top},{left},{bottom},{right}], strides=[{},{}]", strides[0], strides[1])
}

/// A convolution with bias and ReLU; `channels` are those of its weight.
fn layer(
    from: &str,
    to: &str,
    channels: &[usize; 2],
    groups: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
) -> String {
    let ([n_out, n_in], [height, width]) = (channels, kernel);
    format!(
        "  %{to}_w = f32[{n_out},{n_in},{height},{width}] randn(seed=1)\n  %{to}_b = f32[{n_out}] randn(seed=2)\n  %{to}_a = Conv<group={groups}, {}>(%{from}, %{to}_w, %{to}_b)\n  %{to} = Relu(%{to}_a)\n",
        window(kernel, strides)
    )
}

#[cfg(test)]
mod tests {
    use super::super::design::{chain, work};
    use super::*;
    use basisopt_ir::infer::infer;
    use basisopt_passes::device;

    /// A network of some works is taken for just these when its time is predicted.
    #[test]
    fn a_probe_is_what_it_says() {
        let single = (0..400).map(|i| vec![work(i, true)]);
        for works in single.chain((0..40).map(|i| chain(i, true))) {
            let mut graph = parse(&text(&works).unwrap()).unwrap();
            infer(&mut graph).unwrap();
            let found = |pairs| -> Vec<Work> {
                device::works(&graph, pairs).unwrap().into_iter().map(|(_, work)| work).collect()
            };
            assert_eq!(found(true), works);
            let n_pairs = works.iter().filter(|w| matches!(w, Work::Pair { .. })).count();
            assert_eq!(found(false).len(), works.len() + n_pairs);
        }
    }
}
