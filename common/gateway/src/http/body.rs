//! A request's body: whole if it is small, else its beginning and the rest piece by piece.

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use hop3_common::codes::{Code, Problem};
use http_body_util::BodyExt as _;

/// Largest piece of a streamed body.
pub(super) const PIECE_BYTES_MAX: usize = 64 << 10;

/// What has not been read of a body.
pub(super) struct Rest {
    left: Bytes,
    body: Body,
}

/// The client's side of a body broke off.
#[derive(Debug)]
pub(super) struct Broken;

/// Reads a body of at most `max` bytes; of a larger one the first `max` bytes, and the rest.
pub(super) async fn read(mut body: Body, max: usize) -> Result<(Bytes, Option<Rest>), Problem> {
    if body.is_end_stream() {
        return Ok((Bytes::new(), None));
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(data) = next(&mut body).await.map_err(|Broken| broken())? {
        if first.is_empty() && all.is_empty() && data.len() <= max {
            // Most bodies come in one piece: it is not copied.
            first = data;
            if body.is_end_stream() {
                return Ok((first, None));
            }
            continue;
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        let room = max - all.len();
        if data.len() > room {
            all.extend_from_slice(&data[..room]);
            let left = data.slice(room..);
            return Ok((all.freeze(), Some(Rest { left, body })));
        }
        all.extend_from_slice(&data);
    }
    let whole = if all.is_empty() { first } else { all.freeze() };
    Ok((whole, None))
}

async fn next(body: &mut Body) -> Result<Option<Bytes>, Broken> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(Broken),
            Some(Ok(frame)) => {
                // Trailers are not passed on.
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn broken() -> Problem {
    Problem::new(Code::InvalidBody, "the request's body broke off")
}

impl Rest {
    /// The next piece, not larger than [`PIECE_BYTES_MAX`]; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.left.is_empty() {
            match next(&mut self.body).await? {
                Some(data) => self.left = data,
                None => return Ok(None),
            }
        }
        let len = self.left.len().min(PIECE_BYTES_MAX);
        Ok(Some(self.left.split_to(len)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use futures_util::{FutureExt as _, stream};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a body is cut, what is read is what was sent.
        #[test]
        fn nothing_is_lost_or_too_large(
            pieces in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..2_000), 0..8),
            max in 0usize..6_000,
        ) {
            let sent: Vec<u8> = pieces.concat();
            let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
            let body = Body::from_stream(stream::iter(frames));
            let (begun, rest) = read(body, max).now_or_never().unwrap().unwrap();
            prop_assert_eq!(rest.is_some(), sent.len() > max);
            prop_assert!(begun.len() <= max);
            let mut all = begun.to_vec();
            if let Some(mut rest) = rest {
                while let Some(piece) = rest.next().now_or_never().unwrap().unwrap() {
                    prop_assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES_MAX);
                    all.extend_from_slice(&piece);
                }
            }
            prop_assert_eq!(all, sent);
        }
    }
}
