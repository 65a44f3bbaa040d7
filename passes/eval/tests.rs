//! Expected numbers by hand, or from NumPy where a comment says so.

use super::*;
use basisopt_ir::{Attr, Attrs, op};

fn f32s(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_f64s(DType::F32, shape.to_vec(), values).unwrap()
}

fn i64s(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_i64s(shape.to_vec(), values).unwrap()
}

fn iota(shape: &[usize]) -> Tensor {
    i64s(shape, &(0..n_elements(shape).unwrap() as i64).collect::<Vec<_>>())
}

fn run(op: impl Into<Op>, inputs: &[&Tensor]) -> Result<Tensor, EvalError> {
    let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|t| Some(*t)).collect();
    let setting = Setting { opset: 18, n_outputs: 1, max_bytes: 1 << 20 };
    evaluate(&op.into(), &inputs, &setting).map(|mut v| v.remove(0))
}

fn ints(t: &Tensor) -> Vec<i64> {
    t.to_i64s().unwrap()
}

#[test]
fn arithmetic_broadcasts_from_the_right() {
    let (column, row) = (f32s(&[2, 1], &[10.0, 20.0]), f32s(&[3], &[1.0, 2.0, 3.0]));
    let sum = run(op::Add::default(), &[&column, &row]).unwrap();
    assert_eq!(sum.shape(), [2, 3]);
    assert_eq!(sum.to_f64s().unwrap(), [11.0, 12.0, 13.0, 21.0, 22.0, 23.0]);
    let difference = run(op::Sub::default(), &[&row, &column]).unwrap();
    assert_eq!(difference.to_f64s().unwrap(), [-9.0, -8.0, -7.0, -19.0, -18.0, -17.0]);
    assert!(matches!(run(op::Mul::default(), &[&row, &iota(&[3])]), Err(EvalError::Malformed(_))));
    assert!(matches!(
        run(op::Mul::default(), &[&row, &f32s(&[2], &[1.0, 2.0])]),
        Err(EvalError::Malformed(_))
    ));
}

#[test]
fn floats_are_rounded_once_to_their_type() {
    // 1 + 2⁻²⁴ is a tie and goes to even; adding it once more in f32 would never move it.
    let (one, half_ulp) = (f32s(&[], &[1.0]), f32s(&[], &[2.0f64.powi(-24)]));
    assert_eq!(run(op::Add::default(), &[&one, &half_ulp]).unwrap().to_f64s().unwrap(), [1.0]);
    let third = run(op::Div::default(), &[&one, &f32s(&[], &[3.0])]).unwrap();
    assert_eq!(third.to_f32s().unwrap(), [1.0f32 / 3.0]);
    let product = Tensor::from_f64s(DType::F16, vec![1], &[1.0009765625]).unwrap();
    // (1 + 2⁻¹⁰)² = 1 + 2⁻⁹ + 2⁻²⁰, of which f16 keeps the first two terms.
    let square = run(op::Mul::default(), &[&product, &product]).unwrap();
    assert_eq!(square.to_f64s().unwrap(), [1.001953125]);
}

#[test]
fn integer_division_goes_towards_zero() {
    let (a, b) = (i64s(&[4], &[7, -7, 7, -7]), i64s(&[4], &[2, 2, -2, -2]));
    assert_eq!(ints(&run(op::Div::default(), &[&a, &b]).unwrap()), [3, -3, -3, 3]);
    let zero = i64s(&[], &[0]);
    assert_eq!(run(op::Div::default(), &[&a, &zero]), Err(EvalError::DivisionByZero));
    let infinite = run(op::Div::default(), &[&f32s(&[], &[1.0]), &f32s(&[], &[0.0])]).unwrap();
    assert_eq!(infinite.to_f64s().unwrap(), [f64::INFINITY]);
}

#[test]
fn integers_that_do_not_fit_are_not_wrapped() {
    let large = i64s(&[], &[i64::MAX]);
    let overflow = Err(EvalError::Overflow(DType::I64));
    assert_eq!(run(op::Add::default(), &[&large, &i64s(&[], &[1])]), overflow);
    assert_eq!(run(op::Neg::default(), &[&i64s(&[], &[i64::MIN])]), overflow);
    assert_eq!(run(op::Pow::default(), &[&i64s(&[], &[2]), &i64s(&[], &[63])]), overflow);
    let u8s = |v: &[f64]| Tensor::from_f64s(DType::U8, vec![v.len()], v).unwrap();
    let below_zero = run(op::Sub::default(), &[&u8s(&[1.0]), &u8s(&[2.0])]);
    assert_eq!(below_zero, Err(EvalError::Overflow(DType::U8)));
    let product = run(op::ReduceProd::default(), &[&i64s(&[3], &[1 << 31, 1 << 31, 2])]);
    assert_eq!(product, overflow);
}

#[test]
fn wide_integers_are_not_squeezed_through_floats() {
    let odd = i64s(&[1], &[(1 << 53) + 1]);
    let sum = run(op::Add::default(), &[&odd, &i64s(&[], &[2])]).unwrap();
    assert_eq!(ints(&sum), [(1 << 53) + 3]);
    let top = Tensor::from_bytes(DType::U64, vec![1], vec![0xff; 8].into()).unwrap();
    let one = Tensor::full(DType::U64, vec![], 1.0).unwrap();
    let below = run(op::Sub::default(), &[&top, &one]).unwrap();
    assert_eq!(below.to_bytes().unwrap()[0], 0xfe);
}

#[test]
fn a_nan_is_the_minimum_and_the_maximum() {
    let (a, b) = (f32s(&[2], &[f64::NAN, 1.0]), f32s(&[2], &[0.0, f64::NAN]));
    let max = run(op::Max {}, &[&a, &b]).unwrap().to_f64s().unwrap();
    assert!(max.iter().all(|v| v.is_nan()));
    let op = op::ReduceMin { keepdims: 0, ..op::ReduceMin::default() };
    assert!(run(op, &[&a]).unwrap().to_f64s().unwrap()[0].is_nan());
}

#[test]
fn casts_truncate_wrap_or_refuse_as_onnx_defines() {
    let to = |t: &Tensor, to| run(op::Cast { to, ..op::Cast::default() }, &[t]);
    assert_eq!(ints(&to(&f32s(&[3], &[-1.7, 2.5, 0.9]), DType::I32).unwrap()), [-1, 2, 0]);
    assert_eq!(to(&f32s(&[1], &[300.0]), DType::U8), Err(EvalError::Overflow(DType::U8)));
    assert_eq!(to(&f32s(&[1], &[f64::NAN]), DType::I64), Err(EvalError::Overflow(DType::I64)));
    assert_eq!(ints(&to(&f32s(&[3], &[f64::NAN, 0.0, -0.5]), DType::Bool).unwrap()), [1, 0, 1]);
    assert_eq!(ints(&to(&i64s(&[2], &[300, -1]), DType::U8).unwrap()), [44, 255]);
    assert_eq!(to(&i64s(&[1], &[7]), DType::F16).unwrap().to_f64s().unwrap(), [7.0]);
}

#[test]
fn slices_follow_the_rules_for_negative_steps() {
    let x = iota(&[5]);
    let slice = |start: i64, end: i64, step: i64| {
        let [start, end, axis, step] = [start, end, 0, step].map(|v| i64s(&[1], &[v]));
        ints(&run(op::Slice::default(), &[&x, &start, &end, &axis, &step]).unwrap())
    };
    assert_eq!(slice(-3, i64::MAX, 1), [2, 3, 4]);
    assert_eq!(slice(1, -1, 2), [1, 3]);
    assert_eq!(slice(-1, i64::MIN, -1), [4, 3, 2, 1, 0]);
    assert_eq!(slice(-1, -5, -2), [4, 2]);
    assert!(slice(3, 1, 1).is_empty());
    assert_eq!(slice(9, 1, -2), [4, 2]);
    assert_eq!(slice(0, 5, i64::MAX), [0]);
    // x[1:, ::-1] of a 2×3 matrix.
    let two = |a: i64, b: i64| i64s(&[2], &[a, b]);
    let reversed =
        run(op::Slice::default(), &[&iota(&[2, 3]), &two(1, -1), &two(2, i64::MIN), &two(0, 1), &two(1, -1)]);
    assert_eq!(ints(&reversed.unwrap()), [5, 4, 3]);
}

#[test]
fn old_operator_sets_have_attributes_instead_of_inputs() {
    let old = op::Slice { starts: Some(vec![1]), ends: Some(vec![3]), axes: Some(vec![1]) };
    assert_eq!(ints(&run(old, &[&iota(&[2, 3])]).unwrap()), [1, 2, 4, 5]);
    let squeeze = op::Squeeze { axes: Some(vec![-1]) };
    assert_eq!(run(squeeze, &[&iota(&[1, 3, 1])]).unwrap().shape(), [1, 3]);
    let axes = i64s(&[2], &[0, -1]);
    assert_eq!(run(op::Unsqueeze::default(), &[&iota(&[3]), &axes]).unwrap().shape(), [1, 3, 1]);
    let broadcasting = op::Add { broadcast: Some(1), axis: Some(0) };
    let error = run(broadcasting, &[&iota(&[2, 3]), &iota(&[2, 1])]);
    assert!(matches!(error, Err(EvalError::Unsupported(_))));
}

#[test]
fn movement_keeps_every_element() {
    let x = iota(&[2, 3]);
    assert_eq!(ints(&run(op::Transpose::default(), &[&x]).unwrap()), [0, 3, 1, 4, 2, 5]);
    // numpy.transpose(arange(24).reshape(2, 3, 4), (2, 0, 1))[1]
    let op = op::Transpose { perm: Some(vec![2, 0, 1]) };
    assert_eq!(ints(&run(op, &[&iota(&[2, 3, 4])]).unwrap())[6..12], [1, 5, 9, 13, 17, 21]);
    let joined = run(op::Concat { axis: -1 }, &[&x, &iota(&[2, 1])]).unwrap();
    assert_eq!(ints(&joined), [0, 1, 2, 0, 3, 4, 5, 1]);
    let picked = run(op::Gather { axis: 1 }, &[&x, &i64s(&[2], &[-1, 0])]).unwrap();
    assert_eq!(ints(&picked), [2, 0, 5, 3]);
    assert_eq!(run(op::Gather { axis: 0 }, &[&x, &i64s(&[], &[1])]).unwrap().shape(), [3]);
    assert!(matches!(run(op::Gather { axis: 0 }, &[&x, &i64s(&[], &[2])]), Err(EvalError::Malformed(_))));
    let tiled = run(op::Tile {}, &[&x, &i64s(&[2], &[1, 2])]).unwrap();
    assert_eq!(ints(&tiled), [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
    let expanded = run(op::Expand {}, &[&i64s(&[2, 1], &[7, 8]), &i64s(&[1], &[3])]).unwrap();
    assert_eq!(ints(&expanded), [7, 7, 7, 8, 8, 8]);
    let halves = Tensor::from_f64s(DType::F16, vec![2], &[0.5, -1.5]).unwrap();
    let column = run(op::Reshape::default(), &[&halves, &i64s(&[2], &[-1, 1])]).unwrap();
    assert_eq!((column.shape(), column.dtype()), ([2, 1].as_slice(), DType::F16));
}

#[test]
fn reshape_copies_and_completes() {
    let x = iota(&[2, 3, 4]);
    let to = |shape: &[i64]| run(op::Reshape::default(), &[&x, &i64s(&[shape.len()], shape)]);
    assert_eq!(to(&[0, -1]).unwrap().shape(), [2, 12]);
    assert_eq!(to(&[-1]).unwrap().shape(), [24]);
    for bad in [&[5, -1][..], &[-1, -1], &[2, 3, 4, 0], &[7]] {
        assert!(to(bad).is_err(), "{bad:?}");
    }
    assert_eq!(run(op::Flatten { axis: -1 }, &[&x]).unwrap().shape(), [6, 4]);
    assert_eq!(run(op::Flatten { axis: 0 }, &[&x]).unwrap().shape(), [1, 24]);
}

#[test]
fn pads_fill_and_cut() {
    let pads = i64s(&[4], &[0, 1, 1, -1]);
    let fill = i64s(&[], &[9]);
    let padded = run(op::Pad::default(), &[&iota(&[2, 3]), &pads, &fill]).unwrap();
    assert_eq!(padded.shape(), [3, 3]);
    assert_eq!(ints(&padded), [9, 0, 1, 9, 3, 4, 9, 9, 9]);
}

#[test]
fn reductions_follow_their_axes() {
    let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let mean = run(op::ReduceMean::default(), &[&x, &i64s(&[1], &[1])]).unwrap();
    assert_eq!((mean.shape(), mean.to_f64s().unwrap()), ([2, 1].as_slice(), vec![2.0, 5.0]));
    let op = op::ReduceSum { keepdims: 0, ..op::ReduceSum::default() };
    let sum = run(op, &[&x, &i64s(&[1], &[-2])]).unwrap();
    assert_eq!((sum.shape(), sum.to_f64s().unwrap()), ([3].as_slice(), vec![5.0, 7.0, 9.0]));
    let op = op::ReduceProd { keepdims: 0, ..op::ReduceProd::default() };
    assert_eq!(ints(&run(op, &[&i64s(&[3], &[2, 3, 4])]).unwrap()), [24]);
    let op = op::ReduceL2 { keepdims: 0, ..op::ReduceL2::default() };
    assert_eq!(run(op, &[&f32s(&[2], &[3.0, 4.0])]).unwrap().to_f64s().unwrap(), [5.0]);
    let op = op::ReduceSum { noop_with_empty_axes: 1, ..op::ReduceSum::default() };
    assert_eq!(run(op, &[&x]).unwrap(), x);
}

#[test]
fn comparisons_choose() {
    let (a, b) = (i64s(&[3], &[1, 5, 3]), i64s(&[], &[3]));
    let less = run(op::Less::default(), &[&a, &b]).unwrap();
    assert_eq!((less.dtype(), ints(&less)), (DType::Bool, vec![1, 0, 0]));
    let chosen = run(op::Where {}, &[&less, &i64s(&[], &[-1]), &a]).unwrap();
    assert_eq!(ints(&chosen), [-1, 5, 3]);
}

#[test]
fn splits_are_as_even_as_they_can_be() {
    let setting = Setting { opset: 18, n_outputs: 2, max_bytes: 1 << 20 };
    let parts = |op: op::Split| evaluate(&op.into(), &[Some(&iota(&[5]))], &setting);
    let even = parts(op::Split { num_outputs: Some(2), ..op::Split::default() }).unwrap();
    assert_eq!(even.iter().map(ints).collect::<Vec<_>>(), [vec![0, 1, 2], vec![3, 4]]);
    let given = parts(op::Split { split: Some(vec![1, 4]), ..op::Split::default() }).unwrap();
    assert_eq!(given.iter().map(ints).collect::<Vec<_>>(), [vec![0], vec![1, 2, 3, 4]]);
    assert!(parts(op::Split { split: Some(vec![1, 1]), ..op::Split::default() }).is_err());
}

#[test]
fn nothing_is_made_that_is_too_large() {
    let huge = i64s(&[2], &[1 << 31, 1 << 31]);
    let error = run(op::ConstantOfShape::default(), &[&huge]).unwrap_err();
    assert!(matches!(error, EvalError::TooLarge { .. }));
    let claim = Tensor::full(DType::F32, vec![1 << 20, 1 << 20], 1.0).unwrap();
    assert!(matches!(run(op::Neg::default(), &[&claim]), Err(EvalError::TooLarge { .. })));
    // No element, and more rows than can be counted.
    let empty = i64s(&[1 << 40, 1 << 40, 0], &[]);
    assert!(run(op::Concat { axis: 2 }, &[&empty, &empty]).unwrap().is_empty());
    let empty = i64s(&[3, 0, 1 << 40, 1 << 40], &[]);
    let bounds = [2, i64::MAX, 2, 1 << 39].map(|v| i64s(&[1], &[v]));
    let [start, end, axis, step] = &bounds;
    assert!(run(op::Slice::default(), &[&empty, start, end, axis, step]).unwrap().is_empty());
    let pads = i64s(&[8], &[-1, 0, -5, 7, 0, 0, 0, 0]);
    assert!(run(op::Pad::default(), &[&empty, &pads]).unwrap().is_empty());
}

#[test]
fn what_has_no_evaluator_says_so() {
    let attrs = Attrs::from_iter([("kernel_shape".to_owned(), Attr::Ints(vec![3]))]);
    let conv = Op::from_attrs("Conv", attrs);
    assert!(matches!(run(conv, &[&f32s(&[1], &[1.0])]), Err(EvalError::Unsupported(_))));
    let mean = run(op::ReduceMean::default(), &[&i64s(&[2], &[1, 2])]);
    assert!(matches!(mean, Err(EvalError::Unsupported(_))));
}
