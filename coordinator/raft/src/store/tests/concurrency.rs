//! Many at once: writes share syncs, and are acknowledged only behind them.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::*;

/// A disk with slow syncs, that counts what it has made durable.
struct SlowDisk {
    written: u64,
    durable: Arc<AtomicU64>,
}

impl Disk for SlowDisk {
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.written += bytes.len() as u64;
        RealDisk.write(file, bytes, offset)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(2));
        RealDisk.sync(file)?;
        self.durable.store(self.written, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn appends_that_wait_together_share_one_sync() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let durable = Arc::new(AtomicU64::new(0));
    let mut log = open_on(SlowDisk { written: 0, durable: Arc::clone(&durable) }, dir.path())?;
    let mut waiting = Vec::new();
    for index in 0..1000 {
        let (done, told) = Consensus::oneshot();
        log.append([entry(1, index, 100)], IOFlushed::signal(done)).await?;
        waiting.push(told);
    }
    for (index, told) in waiting.into_iter().enumerate() {
        told.await??;
        // An acknowledged entry lies within what was synced: each takes more than 100 bytes.
        assert!(durable.load(Ordering::SeqCst) >= (index as u64 + 1) * 100);
    }
    let fsyncs = log.shared().fsyncs.load(Ordering::Relaxed);
    assert!(fsyncs < 200, "{fsyncs} syncs for 1000 entries");
    assert_eq!(entries(&mut log).await?.len(), 1000);
    log.close().await;
    Ok(())
}

/// A disk on which a sync, once it began, waits until it is let through.
struct HeldDisk {
    began: mpsc::Sender<()>,
    through: mpsc::Receiver<()>,
}

impl Disk for HeldDisk {
    fn write(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        RealDisk.write(file, bytes, offset)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        // Once the test is over, every sync goes through.
        if self.began.send(()).is_ok() {
            let _ended = self.through.recv();
        }
        RealDisk.sync(file)
    }
}

#[tokio::test]
async fn what_all_groups_queue_during_one_sync_is_made_durable_by_the_next() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let ((began, begins), (let_through, through)) = (mpsc::channel(), mpsc::channel());
    let options = Options { groups: 4, ..options(dir.path()) };
    let mut logs = LogStore::open_all(HeldDisk { began, through }, &options)?;
    let before = logs[0].shared().fsyncs.load(Ordering::Relaxed);
    let wait = Duration::from_secs(30);

    let (done, first) = Consensus::oneshot();
    logs[0].append([entry(1, 0, 100)], IOFlushed::signal(done)).await?;
    begins.recv_timeout(wait)?;
    let mut waiting = vec![first];
    for index in 1..=10 {
        for (group, log) in logs.iter_mut().enumerate() {
            let index = if group == 0 { index } else { index - 1 };
            let (done, told) = Consensus::oneshot();
            log.append([entry(1, index, 100)], IOFlushed::signal(done)).await?;
            waiting.push(told);
        }
    }
    let_through.send(())?;
    begins.recv_timeout(wait)?;
    let_through.send(())?;
    for told in waiting {
        tokio::time::timeout(wait, told).await???;
    }
    assert_eq!(logs[0].shared().fsyncs.load(Ordering::Relaxed) - before, 2);
    drop((begins, let_through));
    logs[0].close().await;
    Ok(())
}

#[tokio::test]
async fn an_entry_is_readable_before_it_is_durable() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let durable = Arc::new(AtomicU64::new(0));
    let mut log = open_on(SlowDisk { written: 0, durable }, dir.path())?;
    for index in 0..50 {
        let (done, _told) = Consensus::oneshot();
        log.append([entry(1, index, 100)], IOFlushed::signal(done)).await?;
        assert_eq!(log.try_get_log_entries(index..=index).await?, [entry(1, index, 100)]);
    }
    log.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_sees_an_unbroken_log_while_it_grows_and_is_purged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    let mut reader = log.get_log_reader().await;
    let stop = Arc::new(AtomicU64::new(0));
    let stopped = Arc::clone(&stop);
    let reading = tokio::spawn(async move {
        let mut reads = 0u64;
        while stopped.load(Ordering::Acquire) == 0 {
            let found = reader.limited_get_log_entries(0, u64::MAX).await?;
            for pair in found.windows(2) {
                assert_eq!(pair[1].log_id.index, pair[0].log_id.index + 1);
            }
            for one in &found {
                assert_eq!(*one, entry(1, one.log_id.index, 600));
            }
            reads += 1;
        }
        anyhow::Ok(reads)
    });
    for index in 0..2000 {
        append(&mut log, vec![entry(1, index, 600)]).await?;
        if index % 10 == 0 && index >= 40 {
            log.purge(log_id(1, index - 40)).await?;
        }
    }
    stop.store(1, Ordering::Release);
    let reads = reading.await??;
    assert!(reads > 100, "{reads} reads");
    log.close().await;
    Ok(())
}
