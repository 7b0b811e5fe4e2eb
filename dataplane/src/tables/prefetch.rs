//! Asks the processor for memory ahead of its use.
//!
//! The flow table is larger than the caches. Looking up a batch in three
//! passes (ask for tags, ask for entries, compare) lets the misses overlap;
//! without the prefetch a lookup among 100 000 flows costs twice as much.
#![allow(unsafe_code)] // the prefetch instruction has no safe form

/// Asks for every cache line of `slice[index]`, which begins at one or fits
/// into one. Out of range is harmless.
#[inline(always)]
pub(super) fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let address = slice.as_ptr().wrapping_add(index).cast::<i8>();
        for line in (0..size_of::<T>()).step_by(LINE) {
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}
