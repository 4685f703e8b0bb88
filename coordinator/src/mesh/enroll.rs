//! Enrolment: one request and one reply on one stream of a `hop3-enroll/1` connection.
//!
//! The peer is a stranger: it gets little time, one small frame, and a typed refusal for whatever
//! is wrong with it. Which tokens and keys are good is the brain's to say.

use std::time::Duration;

use hop3_common::{
    codes::{Code, Problem},
    identity::{
        enroll::{EnrollReply, EnrollRequest},
        renew::{EXPORTER_BYTES, EXPORTER_LABEL},
    },
    wire::{ENROLL_FRAME_MAX, close, io},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::{endpoint::Shared, peer::finish_and_wait, session::negotiate};

/// Longest wait for the whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one enrolment connection to its end.
pub(super) async fn serve(shared: &Shared, connection: Connection) {
    let outcome = timeout(REQUEST_TIMEOUT, request(&connection)).await;
    let (mut send, asked) = match outcome {
        Ok(Some((send, asked))) => (send, asked),
        // It asked nothing: there is nobody to answer.
        Ok(None) | Err(_) => {
            return connection.close(VarInt::from_u32(close::PROTOCOL), b"no request");
        }
    };
    let (reply, code) = match asked {
        Ok(request) => (answer(shared, &connection, request).await, close::DONE),
        Err(problem) => {
            shared.breaches.note(None, &connection, &problem.message);
            (EnrollReply::Refused(problem), close::PROTOCOL)
        }
    };
    shared.counters.enrolments.one();
    // Closing at once would overtake the reply.
    if io::write(&mut send, &reply, ENROLL_FRAME_MAX).await.is_ok() {
        finish_and_wait(&mut send).await;
    }
    connection.close(VarInt::from_u32(code), b"");
}

/// Reads the request. `None` when the peer is gone before it said anything.
async fn request(connection: &Connection) -> Option<(SendStream, Result<EnrollRequest, Problem>)> {
    let (send, mut recv) = connection.accept_bi().await.ok()?;
    let request = read(&mut recv).await;
    // Nothing may follow; what does is not read.
    let _ = recv.stop(VarInt::from_u32(close::DONE));
    Some((send, request))
}

async fn read(recv: &mut RecvStream) -> Result<EnrollRequest, Problem> {
    let refuse = |why: &str| Problem::new(Code::Protocol, format!("enrolment request: {why}"));
    let request = match io::read::<EnrollRequest>(recv, ENROLL_FRAME_MAX).await {
        Ok(Some(request)) => request,
        Ok(None) => return Err(refuse("there is none on the stream")),
        Err(error) => return Err(refuse(&error.to_string())),
    };
    request.check()?;
    Ok(request)
}

async fn answer(shared: &Shared, connection: &Connection, request: EnrollRequest) -> EnrollReply {
    if let Err(problem) = negotiate(request.protocol()) {
        return EnrollReply::Refused(problem);
    }
    let mut exporter = [0; EXPORTER_BYTES];
    if connection
        .export_keying_material(&mut exporter, EXPORTER_LABEL, &[])
        .is_err()
    {
        let message = "the TLS session has no exporter: connect again";
        return EnrollReply::Refused(Problem::new(Code::Internal, message));
    }
    shared
        .brain
        .enroll(request, exporter, connection.remote_address())
        .await
}
