//! Outputs that look like class scores, and the winners in them.

/// The number of classes, if a tensor of this shape holds one row of scores per image: `[N, C]`,
/// `[N, C, 1, 1]` or `[N, 1, 1, C]` with C > 1.
pub(crate) fn n_classes(shape: &[usize]) -> Option<usize> {
    let (_, rest) = shape.split_first()?;
    let mut wide = rest.iter().copied().filter(|&d| d != 1);
    match (wide.next(), wide.next()) {
        (Some(n), None) if n > 1 => Some(n),
        _ => None,
    }
}

/// The index of the largest score, the first one among equals. NaN never wins; a row of nothing else
/// has no winner.
pub(crate) fn top1(row: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, &score) in row.iter().enumerate() {
        if !score.is_nan() && best.is_none_or(|(_, b)| score > b) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

/// How many classes beat class `class`: 0 for the winner. Of equal scores the earlier class is ahead,
/// as in [`top1`]. `None` if the score of the class itself is NaN.
pub(crate) fn rank_of(row: &[f64], class: usize) -> Option<usize> {
    let own = *row.get(class)?;
    if own.is_nan() {
        return None;
    }
    Some(row.iter().enumerate().filter(|&(i, &s)| s > own || (s == own && i < class)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_axis_may_hold_the_classes() {
        assert_eq!(n_classes(&[4, 10]), Some(10));
        assert_eq!(n_classes(&[4, 1000, 1, 1]), Some(1000));
        assert_eq!(n_classes(&[1, 1, 1, 7]), Some(7));
        for shape in [&[4][..], &[4, 1], &[4, 10, 2], &[4, 0], &[]] {
            assert_eq!(n_classes(shape), None, "{shape:?}");
        }
    }

    #[test]
    fn ties_go_to_the_earlier_class_and_nan_never_wins() {
        let row = [1.0, 3.0, f64::NAN, 3.0];
        assert_eq!(top1(&row), Some(1));
        assert_eq!(rank_of(&row, 1), Some(0));
        assert_eq!(rank_of(&row, 3), Some(1));
        assert_eq!(rank_of(&row, 0), Some(2));
        assert_eq!(rank_of(&row, 2), None);
        assert_eq!(top1(&[f64::NAN]), None);
    }
}
