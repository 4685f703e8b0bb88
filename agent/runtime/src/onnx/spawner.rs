//! Starts children from one thread that never ends.
//!
//! A child asks the kernel to die with its parent, and for the kernel the parent is the *thread*
//! that started it. Callers' threads come and go (pools shrink when idle), so none of them may.

use std::{
    io,
    process::{Child, Command},
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

/// Starts waiting to be served: more callers wait in `send`.
const QUEUE_MAX: usize = 8;

type Start = (Command, SyncSender<io::Result<Child>>);

/// Starts `command` as a child of the process, whatever becomes of the calling thread.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<io::Result<SyncSender<Start>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (starts, queue) = sync_channel::<Start>(QUEUE_MAX);
        thread::Builder::new()
            .name("hop3-spawn".into())
            .spawn(move || {
                for (mut command, answer) in queue {
                    // A caller that is gone would leave the child unowned: end it.
                    if let Err(unheard) = answer.send(command.spawn())
                        && let Ok(mut child) = unheard.0
                    {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                }
            })?;
        Ok(starts)
    });
    let gone = || io::Error::other("the thread that starts model processes is gone");
    let spawner = spawner
        .as_ref()
        .map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
    let (answer, answered) = sync_channel(1);
    spawner.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
