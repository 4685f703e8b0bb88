//! A disk that is full, and damage.
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hop3_common::{
    codes::Code,
    store::disk::{Disk, DiskFile, OsDisk},
    wire::Event,
};

use super::rig::{Rig, token, until};

/// A disk that can be full, and one whose sync can fail.
#[derive(Debug, Default, Clone)]
struct Faulty {
    full: Arc<AtomicBool>,
    unsynced: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FaultyFile(Box<dyn DiskFile>, Faulty);

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile(OsDisk.create(path)?, self.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FaultyFile(OsDisk.open(path)?, self.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }
}

impl DiskFile for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.1.full.load(Ordering::SeqCst) {
            // Half of it arrives.
            self.0.write_all_at(&buf[..buf.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_all_at(buf, offset)
    }
    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn sync(&mut self) -> io::Result<()> {
        if self.1.unsynced.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("the test's"));
        }
        self.0.sync()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let mut rig = Rig::new();
    let disk = Faulty::default();
    rig.disk = Arc::new(disk.clone());
    let run = rig.run(1).await;
    assert_eq!(run.number("/inc").await, 1);
    disk.full.store(true, Ordering::SeqCst);
    let mut waits = run.ask("/inc", None);
    until(|| run.actor.is_blocked()).await;
    let refused = run.ask("/inc", None).await.unwrap().unwrap_err();
    assert_eq!(refused.code, Code::Storage);
    assert!(
        waits.try_recv().is_err(),
        "not acknowledged while it is not durable"
    );
    disk.full.store(false, Ordering::SeqCst);
    waits.await.unwrap().unwrap();
    assert_eq!(run.number("/inc").await, 3);
    run.drop_everything();
    assert_eq!(rig.run(2).await.number("/").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_a_new_log_carries_on() {
    let mut rig = Rig::new();
    let disk = Faulty::default();
    rig.disk = Arc::new(disk.clone());
    let run = rig.run(1).await;
    disk.unsynced.store(true, Ordering::SeqCst);
    assert_eq!(run.number("/inc").await, 1);
    assert_eq!(run.number("/inc").await, 2);
    run.drop_everything();
    assert_eq!(rig.run(2).await.number("/").await, 2);
}

fn log_file(rig: &Rig) -> PathBuf {
    let mut files = fs::read_dir(rig.dir().join("services")).unwrap();
    files.next().unwrap().unwrap().path()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_fails_the_instance_and_says_what_is_affected() {
    let rig = Rig::new();
    let run = rig.run(1).await;
    for _ in 0..3 {
        run.number("/inc").await;
    }
    assert!(matches!(run.stop().await, Event::Stopped));
    let path = log_file(&rig);
    let whole = fs::read(&path).unwrap();
    let mut altered = whole.clone();
    // In the first change: others follow.
    altered[whole.len() / 2] ^= 1;
    fs::write(&path, &altered).unwrap();
    let start = |n| {
        let services = rig.services();
        let rig = &rig;
        async move { rig.start(&services, "service/s/0", token(1, n)).await }
    };
    let Err(Event::Failed(problem)) = start(2).await else {
        panic!("it started from what is damaged");
    };
    assert_eq!(problem.code, Code::Storage);
    assert!(problem.message.contains("damaged at byte"), "{problem}");
    fs::write(&path, &whole).unwrap();
    let run = start(3).await.ok().unwrap();
    assert_eq!(run.number("/").await, 3);
    assert!(matches!(run.stop().await, Event::Stopped));
    let base = *rig.services().references().first().unwrap();
    rig.blobs.store().remove(&base).unwrap();
    let Err(Event::Failed(problem)) = start(4).await else {
        panic!("it started without its base");
    };
    assert!(problem.message.contains("cannot be read"), "{problem}");
}
