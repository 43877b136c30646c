//! `shoal agent`: runs until a signal or a failure.

use std::{io::IsTerminal, sync::Once};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::out::{Out, Usage};
use crate::{
    Agent,
    config::{AgentArgs, Config},
    sockets,
};

/// Threads for calls that block (the store's, name look-ups). They come and go; this many never wait for one another in
/// practice, and their stacks stay a small part of the memory budget.
const BLOCKING_THREADS_MAX: usize = 32;

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the threads of the runtime")
}

pub(super) fn run(args: &AgentArgs, out: &mut Out) -> Result<()> {
    let config = Config::load(args)?;
    let filter = filter(&config.log)?;
    if args.check_config {
        out.line("the configuration is good");
        return Ok(());
    }
    log_to_stderr(filter);
    runtime()?.block_on(async {
        // Before anything else: a signal during the start must not be lost.
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut running = tokio::select! {
            started = Agent::start_on(config, sockets::inherited()) => started?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let failed = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            error = running.failed() => Some(error),
        };
        let stopped = running.shutdown().await;
        match failed {
            Some(error) => Err(error),
            None => stopped,
        }
    })
}

fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text).map_err(|error| Usage(format!("log: {error}")).into())
}

/// Once a process: tests start several.
pub(super) fn log_to_stderr(filter: EnvFilter) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let colours = std::io::stderr().is_terminal();
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).finish();
        // Another subscriber is there already where the library is embedded; it keeps its place.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
}
