//! `shoal-seeder`: parses, starts, waits, exits.

mod fleet_cli;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use shoal_seeder::{
    Config, Seeder, StartError,
    admin::{self, AskError, Report, Scrub},
    quota::Usage,
    store::local::backup::Backup,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Exit: usage or configuration.
const EXIT_USAGE: u8 = 64;
/// Exit: it failed while running.
const EXIT_FAILED: u8 = 1;
/// Threads for disk and database. More only makes them wait for one another.
const BLOCKING_THREADS: usize = 32;

/// The Shoal seeder: a private OCI registry that feeds a swarm.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the registry.
    Serve(Serve),
    /// Tell how the seeder of a data directory is.
    Status(StatusArgs),
    /// Run one pass of the collector now. What it condemns, a later pass deletes.
    Gc(Common),
    /// Copy all that is stored into a directory that is not there yet, while serving.
    Backup(BackupArgs),
    /// Put a backup into an empty data directory.
    Restore(BackupArgs),
    /// Hash all that is stored once more; exit 1 if something is damaged.
    Scrub(Common),
    /// The fleet's keys.
    #[command(subcommand)]
    Key(fleet_cli::KeyCommand),
    /// Tokens by which nodes join the fleet.
    #[command(subcommand)]
    JoinToken(fleet_cli::TokenCommand),
    /// The fleet's members.
    #[command(subcommand)]
    Member(fleet_cli::MemberCommand),
    /// Who may read, write and delete which repositories, where `access_rules` is set.
    #[command(subcommand)]
    User(fleet_cli::UserCommand),
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration file [default: /etc/shoal/seeder.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    common: Common,
    /// Where the registry listens; may be given several times.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where health and metrics are served.
    #[arg(long, value_name = "ADDR:PORT")]
    status: Option<SocketAddr>,
    /// Let anybody who reaches the port push, pull and join.
    #[arg(long)]
    insecure_open: bool,
    /// The registry's certificate, and after it those of the authorities between it and a root (PEM).
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authorities of which clients must have a certificate (PEM).
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Check the configuration, its TLS files too, and exit.
    #[arg(long)]
    check_config: bool,
}

impl Serve {
    /// What was given by flag goes before what the file says.
    fn apply(&self, config: &mut Config) {
        if !self.listen.is_empty() {
            config.listen.clone_from(&self.listen);
        }
        config.status = self.status.unwrap_or(config.status);
        config.insecure_open |= self.insecure_open;
        for (key, flag) in [
            (&mut config.tls.certificate, &self.tls_certificate),
            (&mut config.tls.key, &self.tls_key),
            (&mut config.tls.client_ca, &self.tls_client_ca),
        ] {
            if flag.is_some() {
                key.clone_from(flag);
            }
        }
    }
}

#[derive(Debug, Args)]
struct BackupArgs {
    #[command(flatten)]
    common: Common,
    /// The backup's directory.
    #[arg(value_name = "BACKUP")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    common: Common,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _closed = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.downcast_ref::<shoal_seeder::config::ConfigError>().is_some()
                || matches!(
                    error.downcast_ref::<StartError>(),
                    Some(StartError::Config(_) | StartError::Tls(_) | StartError::Clusters(_))
                );
            say(&mut std::io::stderr(), &format!("shoal-seeder: {error:#}"));
            ExitCode::from(if usage { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}

/// The one writer of what the program says. A reader that has left does not matter.
fn say(out: &mut impl std::io::Write, text: &str) {
    let _closed = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start threads")?;
    match cli.command {
        Command::Serve(args) => {
            let config = config(&args.common, |config| args.apply(config))?;
            if args.check_config {
                shoal_seeder::load_tls(&config)?;
                shoal_seeder::kubernetes::Clusters::load(&config.join.kubernetes).map_err(StartError::from)?;
                say(&mut std::io::stdout(), "the configuration is good");
                return Ok(());
            }
            log_to_stderr();
            raise_file_limit();
            runtime.block_on(serve(config))
        }
        Command::Gc(args) => {
            let config = config(&args, |_| {})?;
            let done = match runtime.block_on(admin::collect(&config.data_dir)) {
                Err(AskError::NotRunning) => {
                    anyhow::bail!("no seeder serves {}; the collector runs with it", config.data_dir.display())
                }
                done => done?,
            };
            say(&mut std::io::stdout(), &serde_json::to_string(&done)?);
            Ok(())
        }
        Command::Backup(args) => {
            let config = config(&args.common, |_| {})?;
            let to = std::path::absolute(&args.dir).context("cannot make the path absolute")?;
            let done = runtime.block_on(backup(&config, &to))?;
            say(&mut std::io::stdout(), &serde_json::to_string(&done)?);
            Ok(())
        }
        Command::Restore(args) => {
            let config = config(&args.common, |_| {})?;
            let done = runtime.block_on(Seeder::restore(&config, &args.dir))?;
            say(&mut std::io::stdout(), &serde_json::to_string(&done)?);
            Ok(())
        }
        Command::Scrub(args) => {
            let config = config(&args, |_| {})?;
            let found = runtime.block_on(scrub(&config))?;
            say(&mut std::io::stdout(), &serde_json::to_string(&found)?);
            anyhow::ensure!(found.damaged.is_empty(), "{} blobs are damaged; push them again", found.damaged.len());
            Ok(())
        }
        Command::Key(command) => runtime.block_on(fleet_cli::keys(command)),
        Command::JoinToken(command) => runtime.block_on(fleet_cli::tokens(command)),
        Command::Member(command) => runtime.block_on(fleet_cli::members(command)),
        Command::User(command) => runtime.block_on(fleet_cli::users(command)),
        Command::Status(args) => {
            let config = config(&args.common, |_| {})?;
            let report = runtime.block_on(status(&config))?;
            let text = if args.json { serde_json::to_string(&report)? } else { table(&report) };
            say(&mut std::io::stdout(), &text);
            Ok(())
        }
    }
}

fn config(common: &Common, override_with: impl FnOnce(&mut Config)) -> anyhow::Result<Config> {
    let mut config = Config::read(common.config.as_deref())?;
    if let Some(dir) = &common.data_dir {
        config.data_dir.clone_from(dir);
    }
    override_with(&mut config);
    config.check()?;
    Ok(config)
}

fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Whoever read the log may leave: that must not stop the seeder, as a complaint about it on stderr would.
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
}

/// Each connection and each blob being read is an open file.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it was");
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let running = Seeder::start(config).await?;
    running
        .until(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
        })
        .await;
    Ok(())
}

async fn status(config: &Config) -> anyhow::Result<Report> {
    match admin::ask(&config.data_dir).await {
        Ok(report) => Ok(report),
        Err(AskError::NotRunning) => {
            anyhow::ensure!(config.data_dir.join("db").is_dir(), "there is no seeder in {}", config.data_dir.display());
            Ok(Seeder::inspect(config).await?)
        }
        Err(error) => Err(error.into()),
    }
}

async fn backup(config: &Config, to: &std::path::Path) -> anyhow::Result<Backup> {
    match admin::backup(&config.data_dir, to).await {
        Err(AskError::NotRunning) => Ok(Seeder::backup(config, to).await?),
        done => Ok(done?),
    }
}

async fn scrub(config: &Config) -> anyhow::Result<Scrub> {
    match admin::scrub_running(&config.data_dir).await {
        Err(AskError::NotRunning) => Ok(Seeder::scrub(config).await?),
        found => Ok(found?),
    }
}

fn table(report: &Report) -> String {
    let listen: Vec<_> = report.listen.iter().map(ToString::to_string).collect();
    let state = if report.running {
        format!("running for {} s on {}", report.uptime_s, listen.join(", "))
    } else {
        "not running".to_owned()
    };
    let of = |used: u64, limit: Option<u64>, what: &str| limit.map(|limit| format!("  {used} of {limit} {what}"));
    let quota = |Usage { quota, used_bytes, used_tags }: &Usage| {
        let parts = [of(*used_bytes, quota.bytes, "bytes"), of(*used_tags, quota.tags, "tags")];
        format!("\nquota {}{}", quota.repositories, parts.into_iter().flatten().collect::<String>())
    };
    let quotas: String = report.quotas.iter().map(quota).collect();
    format!(
        "{state}\nversion       {}\nroot key      {}\nrepositories  ~{}\nblobs         ~{}\nuploads       ~{}\npayload bytes {}{quotas}",
        report.version, report.root, report.repositories, report.blobs, report.uploads, report.payload_bytes
    )
}
