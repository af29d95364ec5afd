//! Ends a role in good order: the first Ctrl-C or SIGTERM (or the end of its parent) asks it to drain, and a deadline or a second signal ends it anyway.

use std::{
    fmt,
    future::{self, Future},
    io,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

/// For draining, once asked.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `serve` until it ends by itself or a signal asks it to stop through the token it was given.
/// # Errors
/// What `serve` says; or HF1021 when it did not stop in time, or was told twice.
pub(crate) async fn until_signal<T, E, F>(
    serve: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<T>
where
    E: Into<anyhow::Error>,
    F: Future<Output = Result<T, E>>,
{
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let serve = serve(token.clone());
    tokio::pin!(serve);
    tokio::select! {
        ended = &mut serve => return ended.map_err(Into::into),
        _ = terminate.recv() => tracing::info!("SIGTERM: draining, at most {} s", DEADLINE.as_secs()),
        _ = interrupt.recv() => tracing::info!("Ctrl-C: draining, at most {} s; again to stop at once", DEADLINE.as_secs()),
        () = parent_gone() => tracing::info!("the program that started this one is gone: draining, at most {} s", DEADLINE.as_secs()),
    }
    token.cancel();
    let why = tokio::select! {
        ended = &mut serve => return ended.map_err(Into::into),
        _ = terminate.recv() => Abandoned::Told,
        _ = interrupt.recv() => Abandoned::Told,
        () = tokio::time::sleep(DEADLINE) => Abandoned::Late,
    };
    Err(why.into())
}

/// Waits until a signal asks this process to end.
/// # Errors
/// Signals cannot be listened for.
pub(crate) async fn asked() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Waits for the end of standard input where `HOLDFAST_EXIT_WITH_PARENT=1` says that it is a pipe from the program that started
/// this one, so that nothing is left running when that program is killed; otherwise for ever.
async fn parent_gone() {
    if std::env::var_os("HOLDFAST_EXIT_WITH_PARENT").is_none_or(|value| value != "1") {
        return future::pending().await;
    }
    let (gone, told) = oneshot::channel();
    // A thread of its own: a read from standard input cannot be given up, and must not keep the runtime.
    std::thread::spawn(move || {
        let ended = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = gone.send(ended);
    });
    let _ = told.await;
}

/// Stopped before the drain was over.
#[derive(Debug)]
enum Abandoned {
    Told,
    Late,
}

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = match self {
            Self::Told => "a second signal came".to_owned(),
            Self::Late => format!("{} s were over", DEADLINE.as_secs()),
        };
        write!(
            f,
            "HF1021 stopped before the drain was over: {cause}. Nothing acknowledged is lost; whoever still waited asks again with the same gid."
        )
    }
}

impl std::error::Error for Abandoned {}
