//! An instance made ready before it comes: module compiled, state read, guest in that state.
//!
//! While the source of a move still serves, the target brings itself to the checkpoint that went
//! ahead. When the instance comes, only what changed since is read and written.

use std::time::Duration;

use hop3_common::{
    codes::Problem,
    id::InstanceId,
    wire::{CHECKPOINT_PARTS_MAX, Output, ServiceWork},
};
use hop3_runtime::service::{Image, Instance};
use tokio::task::spawn_blocking;

use super::{
    Services, lock,
    recover::read_parts,
    storage::{panicked, storage},
};

/// Time that an instance which did not come is kept ready; its memory is better used then.
const KEPT: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Ahead {
    pub(super) parts: Vec<Output>,
    pub(super) base: (Output, Image),
    pub(super) image: Image,
    pub(super) guest: Option<Ready>,
}

/// A guest in the state of an image.
pub(super) struct Ready {
    work: ServiceWork,
    instance: Instance,
}

impl Ready {
    /// The guest, if it was made for that work.
    pub(super) fn take(self, work: &ServiceWork) -> Option<Instance> {
        (self.work == timeless(work)).then_some(self.instance)
    }
}

/// The work without what changes between the checkpoint ahead and the last one.
fn timeless(work: &ServiceWork) -> ServiceWork {
    ServiceWork {
        restore: None,
        ..work.clone()
    }
}

impl Services {
    /// Makes ready what can be.
    pub(super) async fn make_ahead(
        &self,
        instance: &InstanceId,
        work: &ServiceWork,
    ) -> Result<(), Problem> {
        let module = self.module(work.module, work.module_bytes).await?;
        let Some(restore) = &work.restore else {
            return Ok(());
        };
        let mut pins = Vec::new();
        for part in restore.parts.iter().take(CHECKPOINT_PARTS_MAX) {
            pins.push(self.0.blobs.fetch(part.digest, part.bytes).await?);
        }
        let (blobs, parts) = (self.0.blobs.clone(), restore.parts.clone());
        let read = spawn_blocking(move || read_parts(&blobs, &parts, None));
        let (base, image) = read.await.map_err(panicked)?.map_err(storage)?;
        drop(pins);
        // The state of another build goes through an upgrade, which must not be done ahead.
        let guest = if *image.module() == work.module.0 {
            let setup = self.setup(instance, work)?;
            let made = self.restored(&module.module, setup, image.clone()).await;
            made.map(|(instance, _)| Ready {
                work: timeless(work),
                instance,
            })
        } else {
            Err(storage("its state is of another build"))
        };
        let guest = guest.inspect_err(|problem| {
            tracing::info!(%instance, %problem, "its guest is not made ahead");
        });
        let parts = restore.parts.clone();
        *lock(&self.0.shelf.ahead) = Some(Ahead {
            parts: parts.clone(),
            base,
            image,
            guest: guest.ok(),
        });
        let shelf = self.0.shelf.clone();
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            drop(lock(&shelf.ahead).take_if(|ahead| ahead.parts == parts));
        });
        Ok(())
    }
}
