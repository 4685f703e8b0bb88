//! Live events as server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, StreamExt as _};
use hop3_common::api::EventView;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::Shared;

/// Keeps proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Changes of nodes, tasks and models as they happen. A client that is too slow is told how many
/// it missed, and lists again.
#[utoipa::path(get, path = "/v1/events", tag = "mesh",
    responses((status = 200, body = EventView, content_type = "text/event-stream")))]
pub(super) async fn events(
    State(core): State<Shared>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let stream = BroadcastStream::new(core.subscribe()).map(|item| {
        let view =
            item.unwrap_or_else(
                |BroadcastStreamRecvError::Lagged(events)| EventView::Missed { events },
            );
        // Views always serialise: string keys, no foreign types.
        Ok(Event::default().json_data(&view).unwrap_or_default())
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
