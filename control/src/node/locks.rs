//! One lock for each attachment: calls about one attachment follow each
//! other, calls about others overlap.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use spinlane_api::cni::Attachment;

/// The attachments that somebody works on.
#[derive(Debug, Default)]
pub struct Locks {
    held: Mutex<HashSet<Attachment>>,
    released: Condvar,
}

impl Locks {
    /// Waits until nobody works on the attachment.
    pub fn lock(&self, attachment: &Attachment) -> Held<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while !held.insert(attachment.clone()) {
            held = self
                .released
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Held {
            locks: self,
            attachment: attachment.clone(),
        }
    }
}

/// Ends the exclusion when dropped.
#[derive(Debug)]
pub struct Held<'a> {
    locks: &'a Locks,
    attachment: Attachment,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self
            .locks
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.attachment);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_at_a_time_for_one_attachment() {
        let locks = Locks::default();
        let inside = AtomicUsize::new(0);
        let attachment = Attachment {
            network: "n".into(),
            container_id: "c".into(),
            ifname: "eth0".into(),
        };
        let mut other = attachment.clone();
        other.ifname = "eth1".into();
        let _other = locks.lock(&other);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _held = locks.lock(&attachment);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
