//! Checkpoints: the state of a run as bytes, with the run's name and a checksum.

use crate::fit::State;

/// What a checkpoint starts with, and the version of what follows.
const MAGIC: &[u8; 12] = b"basisopt-ck\x02";

/// Why a checkpoint cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Not a checkpoint, or of another version of the program.
    #[error("this is no checkpoint, or one of another version of basisopt")]
    Version,
    /// Cut off, or changed.
    #[error("the checkpoint is damaged")]
    Damaged,
    /// Of another run.
    #[error(
        "the checkpoint is of another network, other data or other options; resume with what it was started with"
    )]
    Other,
}

/// What several checkpoints in one start with.
const JOINED: &[u8; 12] = b"basisopt-cs\x01";

/// The checkpoints of several runs, one after the other, as one.
///
/// # Errors
/// If they cannot be encoded.
pub fn join(runs: &[Vec<u8>]) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = JOINED.to_vec();
    bytes.extend(postcard::to_stdvec(runs).map_err(|_| CheckpointError::Damaged)?);
    Ok(bytes)
}

/// Takes apart what [`join`] made. Each part has a checksum of its own.
///
/// # Errors
/// If it is not such a file, or was cut off.
pub fn split(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CheckpointError> {
    let body = bytes.strip_prefix(JOINED).ok_or(CheckpointError::Version)?;
    postcard::from_bytes(body).map_err(|_| CheckpointError::Damaged)
}

/// The bytes of a state, with the one that it goes back to should it diverge. `key` names the run.
pub(crate) fn write(state: &State, good: &State, key: &str) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(postcard::to_stdvec(&(key, state, good)).map_err(|_| CheckpointError::Damaged)?);
    let sum = crc32fast::hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    Ok(bytes)
}

/// The states that were written.
pub(crate) fn read(bytes: &[u8], key: &str) -> Result<(State, State), CheckpointError> {
    if !bytes.starts_with(MAGIC) {
        return Err(CheckpointError::Version);
    }
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or(CheckpointError::Damaged)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err(CheckpointError::Damaged);
    }
    let body = body.get(MAGIC.len()..).ok_or(CheckpointError::Damaged)?;
    let (found, state, good): (String, State, State) =
        postcard::from_bytes(body).map_err(|_| CheckpointError::Damaged)?;
    if found != key { Err(CheckpointError::Other) } else { Ok((state, good)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Score;

    fn state() -> State {
        State {
            step: 7,
            n_steps: 9,
            rate_scale: 0.5,
            n_recoveries: 1,
            values: vec![vec![1.0, f32::MIN_POSITIVE], vec![]],
            optimizer_steps: 7,
            moments: vec![vec![-0.0; 2], vec![]],
            best: vec![vec![3.0, 4.0], vec![]],
            best_score: Score { accuracy: Some(0.5), loss: 0.1 },
            since_best: 0,
            loss: 1.25,
            n_images: 3,
            n_hits: 2,
            n_labelled: 3,
            history: vec![],
            first_loss: Some(2.5),
            recent_loss: 1.5,
        }
    }

    fn good() -> State {
        State { step: 3, ..state() }
    }

    #[test]
    fn a_state_comes_back_to_the_bit() {
        let bytes = write(&state(), &good(), "run").unwrap();
        let back = read(&bytes, "run").unwrap();
        assert_eq!(back, (state(), good()));
        assert_eq!(write(&back.0, &back.1, "run").unwrap(), bytes);
    }

    #[test]
    fn several_runs_are_one_file() {
        let runs = vec![write(&state(), &good(), "one").unwrap(), vec![], vec![7; 300]];
        let joined = join(&runs).unwrap();
        assert_eq!(split(&joined).unwrap(), runs);
        assert_eq!(split(&joined[..joined.len() - 1]), Err(CheckpointError::Damaged));
        assert_eq!(split(&runs[0]), Err(CheckpointError::Version));
    }

    #[test]
    fn what_is_not_this_runs_is_refused() {
        let bytes = write(&state(), &good(), "run").unwrap();
        assert_eq!(read(&bytes, "another"), Err(CheckpointError::Other));
        assert_eq!(read(b"PNG", "run"), Err(CheckpointError::Version));
        for cut in [13, 20, bytes.len() - 1] {
            assert_eq!(read(&bytes[..cut], "run"), Err(CheckpointError::Damaged));
        }
        for at in [13, 40, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert_eq!(read(&bad, "run"), Err(CheckpointError::Damaged));
        }
    }
}
