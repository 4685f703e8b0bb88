//! Live events for whoever watches. Nobody is waited for: a slow subscriber loses the oldest.

use hop3_common::api::EventView;
use tokio::sync::broadcast;

/// Events kept for the slowest subscriber, about 2 KiB each.
const EVENTS_MAX: usize = 1024;

pub(crate) struct Events(broadcast::Sender<EventView>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(EVENTS_MAX).0)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<EventView> {
        self.0.subscribe()
    }

    /// Tells `event` to those who watch; it is not even made when nobody does.
    pub(crate) fn tell(&self, event: impl FnOnce() -> EventView) {
        if self.0.receiver_count() > 0 {
            // Fails only when the last subscriber left meanwhile.
            let _ = self.0.send(event());
        }
    }
}
