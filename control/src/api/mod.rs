//! The agent's HTTP socket, `RUN_DIR/api.sock`: JSON documents of
//! [`spinlane_api::view`] under `/v1/`, for root only.
//!
//! [`server`] answers in the agent, [`client`] asks from the command line.

pub mod client;
pub mod server;
#[cfg(test)]
mod tests;

/// Runs a blocking question about the switch off the async workers.
///
/// A panic of the question becomes `None`; the runtime's shutdown does too.
pub async fn blocking<T: Send + 'static>(
    question: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(question).await.ok()
}
