//! Atomics and cells of what threads share: the standard library's, or those
//! of loom when it goes through every order of a test's steps (`make loom`).

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The standard cell, used as loom's is.
#[cfg(not(loom))]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// Hands the value's address to a reader.
    #[inline]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Hands the value's address to a writer.
    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Spins of a waiter before it lets another thread have the CPU.
#[cfg(not(loom))]
const SPINS: u32 = 128;

/// Waits a moment for another thread, the `turn`th time in a row.
#[cfg(not(loom))]
#[inline]
pub(crate) fn relax(turn: u32) {
    match turn < SPINS {
        true => std::hint::spin_loop(),
        false => std::thread::yield_now(),
    }
}

/// Lets loom go on with another thread.
#[cfg(loom)]
pub(crate) fn relax(_turn: u32) {
    loom::thread::yield_now();
}
