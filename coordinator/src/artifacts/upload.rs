//! Uploads: bytes stream to a temporary blob; at the end they are checked, then recorded.

use std::sync::Arc;

use bytes::Bytes;
use hop3_common::{
    api::{ArtifactKind, ArtifactView},
    chunks::BlobWriter,
    codes::{Code, Problem},
    id::{Digest, UnixMs},
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    add,
    blobs::{blocking, problem},
    check_name,
    onnx::Probe,
    wasm,
};
use crate::Core;

/// Uploads at a time: each may hold a module of [`wasm::MODULE_BYTES_MAX`] in memory for its check.
pub(super) const UPLOADS_MAX: usize = 8;

/// An upload under way. Dropping it leaves nothing.
pub struct ArtifactUpload {
    core: Arc<Core>,
    expected: Digest,
    name: Option<String>,
    writer: Option<BlobWriter>,
    check: Check,
    received: u64,
    bytes_max: u64,
    _permit: OwnedSemaphorePermit,
}

/// What is looked at while the bytes pass.
enum Check {
    Data,
    /// The whole module: validation needs it.
    Wasm(Vec<u8>),
    /// The outline only.
    Onnx(Probe),
}

pub(crate) async fn begin(
    core: &Core,
    expected: Digest,
    kind: ArtifactKind,
    name: Option<String>,
    size: Option<u64>,
) -> Result<ArtifactUpload, Problem> {
    if let Some(name) = &name {
        check_name(name)?;
    }
    let (check, bytes_max) = match kind {
        ArtifactKind::Data => (Check::Data, core.settings.artifact_bytes_max),
        ArtifactKind::Onnx => (
            Check::Onnx(Probe::default()),
            core.settings.artifact_bytes_max,
        ),
        ArtifactKind::Wasm => {
            let max = wasm::MODULE_BYTES_MAX.min(core.settings.artifact_bytes_max);
            (Check::Wasm(Vec::new()), max)
        }
    };
    if size.is_some_and(|size| size > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let permit = core
        .artifacts
        .uploads
        .clone()
        .try_acquire_owned()
        .map_err(|_| {
            Problem::new(
                Code::Busy,
                format!("{UPLOADS_MAX} uploads are under way: try again"),
            )
        })?;
    let core = core
        .this
        .upgrade()
        .ok_or_else(|| Problem::new(Code::Unavailable, "the coordinator goes down"))?;
    let blobs = core.blobs.clone();
    let open = move || {
        blobs
            .writer(Some(expected), size, bytes_max)
            .map_err(|e| problem(&e))
    };
    let writer = Some(blocking(open).await?);
    Ok(ArtifactUpload {
        core,
        expected,
        name,
        writer,
        check,
        received: 0,
        bytes_max,
        _permit: permit,
    })
}

fn too_large(bytes_max: u64) -> Problem {
    Problem::new(
        Code::TooLarge,
        format!("an artifact of this kind has at most {bytes_max} bytes"),
    )
}

impl ArtifactUpload {
    /// Takes the next bytes. After an error the upload is over.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Problem> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > self.bytes_max {
            self.writer = None;
            return Err(too_large(self.bytes_max));
        }
        match &mut self.check {
            Check::Data => {}
            Check::Wasm(module) => module.extend_from_slice(&bytes),
            Check::Onnx(probe) => probe.feed(&bytes)?,
        }
        let mut writer = self.writer.take().ok_or_else(over)?;
        let append = move || {
            writer
                .append(&bytes)
                .map(|()| writer)
                .map_err(|e| problem(&e))
        };
        self.writer = Some(blocking(append).await?);
        Ok(())
    }

    /// Checks what came and records it: durable when it returns.
    pub async fn finish(mut self) -> Result<ArtifactView, Problem> {
        let writer = self.writer.take().ok_or_else(over)?;
        let (check, expected) = (self.check, self.expected);
        let finish = move || {
            let kind = match check {
                Check::Data => ArtifactKind::Data,
                // The digest first: damage on the way is no fault of the module.
                Check::Wasm(module) if Digest::of(&module) != expected => {
                    let message = format!("the bytes received are not {expected}");
                    return Err(Problem::new(Code::DigestMismatch, message));
                }
                Check::Wasm(module) => {
                    wasm::check(&module)?;
                    ArtifactKind::Wasm
                }
                Check::Onnx(probe) => {
                    probe.finish()?;
                    ArtifactKind::Onnx
                }
            };
            writer.commit().map_err(|e| problem(&e))?;
            Ok(kind)
        };
        let kind = blocking(finish).await?;
        let now = UnixMs::now();
        add(
            &self.core,
            self.expected,
            kind,
            self.name.take(),
            self.received,
            now,
        )
        .await
    }
}

fn over() -> Problem {
    Problem::new(Code::Conflict, "this upload failed before: begin a new one")
}
