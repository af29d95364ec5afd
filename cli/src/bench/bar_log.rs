//! Bar (a): three log stores at once, each alone in its process: what the disk and the writer give without consensus.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use bytes::Bytes;
use futures::future::try_join_all;
use holdfast_raft::bench::BareStore;

use super::{
    load::{self, Sample, Shape},
    worker::{Worker, obey},
};

/// As large as those of the shipped configuration.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// As many as there are replicas, for they share the disk too.
const LOGS: usize = 3;

/// One log store, told on standard input what to append.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// A fresh folder
    #[arg(long, value_name = "DIRECTORY")]
    dir: PathBuf,
}

/// Serves until standard input ends.
/// # Errors
/// The store cannot be opened, or written.
pub(crate) async fn serve(args: LogArgs) -> anyhow::Result<ExitCode> {
    let store =
        tokio::task::spawn_blocking(move || BareStore::open(args.dir, SEGMENT_BYTES)).await??;
    obey(async |line| {
        let (shape, bytes) = Shape::from_line(line).context("not an order")?;
        let (store, record) = (store.clone(), Bytes::from(vec![0x5a; bytes]));
        let append = move |_| {
            let (store, record) = (store.clone(), record.clone());
            async move { store.append(record).await.is_ok() }
        };
        Ok(load::run(shape, load::without_meters, append).await?.0)
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// The three.
#[derive(Debug)]
pub(crate) struct Logs(Vec<Worker>);

impl Logs {
    /// Opens them below `folder`.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let workers = (1..=LOGS).map(|number| {
            let name = format!("log-{number}");
            let dir = folder.join(&name).to_string_lossy().into_owned();
            Worker::start(&name, &["log".to_owned(), "--dir".to_owned(), dir], folder)
        });
        Ok(Self(workers.collect::<anyhow::Result<_>>()?))
    }

    /// All at once; the mean of the three.
    pub(crate) async fn run(&mut self, shape: Shape, bytes: usize) -> anyhow::Result<Sample> {
        let line = shape.to_line(bytes);
        let samples: Vec<Sample> =
            try_join_all(self.0.iter_mut().map(|worker| worker.ask(&line))).await?;
        let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / LOGS as f64;
        Ok(Sample {
            per_s: mean(|sample| sample.per_s),
            p50_us: mean(|sample| sample.p50_us),
            p99_us: mean(|sample| sample.p99_us),
            p999_us: mean(|sample| sample.p999_us),
            failed: samples.iter().map(|sample| sample.failed).sum(),
            between_readings: mean(|sample| sample.between_readings),
        })
    }
}
