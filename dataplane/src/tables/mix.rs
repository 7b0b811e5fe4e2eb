//! The hash of the tables of connections and paths.

/// Multiplies and folds word by word, with an odd constant between, as
/// foldhash and wyhash do.
#[inline]
pub(super) fn mix(words: &[u64], seed: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product >> 64) as u64 ^ product as u64
    };
    let state = words.iter().fold(seed ^ ODD, |state, &word| {
        fold(state ^ word, ODD ^ seed.rotate_left(23)).wrapping_add(word.rotate_left(32))
    });
    fold(state, ODD)
}
