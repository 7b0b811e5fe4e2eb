//! The system's allocator, with a count of what it gave each thread: what
//! draws a progress bar or reads a peer's log allocates at any time.
#![allow(unsafe_code)] // an allocator is unsafe by its interface

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Made at compile time and without a destructor, so reaching it neither
    /// allocates nor comes too late.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn add_one() {
    COUNT.with(|count| count.set(count.get() + 1));
}

/// Counts allocations; the binary makes it the global allocator.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps alloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps alloc_zeroed's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add_one();
        // SAFETY: the caller keeps realloc's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps dealloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allocations of the calling thread so far; 0 for ever when [`Counting`] is not
/// the allocator.
#[must_use]
pub fn count() -> u64 {
    COUNT.with(Cell::get)
}
