//! libtorrent, the strongest general swarm engine, through its Python binding: one process a peer.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use rustix::process::Pid;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{accounting, content::Content, host::Host};

/// Debian's interpreter: the binding is a package of the distribution.
const PYTHON: &str = "/usr/bin/python3";
const SCRIPT: &str = include_str!("../../bench/libtorrent_peer.py");
/// How long making a torrent file or starting a peer may take.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// The file that is shared.
const FILE: &str = "blob";

/// How libtorrent is run.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Bytes of a piece.
    pub piece_len: u32,
    /// The seed gives each piece away once before it gives any twice.
    pub super_seeding: bool,
    /// Peers that the seed uploads to at once; none: as many as want.
    pub seed_slots: Option<u32>,
}

impl Tuning {
    /// Best found where the CPU is the limit.
    pub const LOOPBACK: Self = Self { piece_len: 1 << 20, super_seeding: false, seed_slots: None };
    /// Best found where links are.
    pub const LINKS: Self = Self { piece_len: 256 << 10, super_seeding: true, seed_slots: Some(4) };
}

/// Whether the binding is there.
pub async fn available() -> bool {
    let import = Command::new(PYTHON).args(["-c", "import libtorrent"]).stderr(Stdio::null()).status();
    import.await.is_ok_and(|status| status.success())
}

/// One seed with all of the content and some leechers without any of it.
#[derive(Debug)]
pub struct Swarm {
    /// The first is the seed.
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
    host: Arc<Host>,
    address: SocketAddr,
    folder: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// From the start until each leecher had written and hashed everything; none: it was killed.
    pub each: Vec<Option<Duration>>,
    /// CPU seconds of the seed and of the leechers.
    pub cpu: (f64, f64),
}

impl Swarm {
    /// Starts a seed on the first host and a leecher on each other.
    ///
    /// # Errors
    /// libtorrent is not there, or does not start.
    pub async fn start(hosts: &[Arc<Host>], directory: &Path, content: &Content, tuning: Tuning) -> Result<Self> {
        let seed = directory.join("seed");
        std::fs::create_dir_all(&seed)?;
        let (file, torrent) = (seed.join(FILE), directory.join("torrent"));
        content.write(&file)?;
        let (file, torrent) = (file.display().to_string(), torrent.display().to_string());
        let make = ["-c", SCRIPT, "make", &file, &tuning.piece_len.to_string(), &torrent];
        crate::process::run(PYTHON, make, &[], START_TIME_MAX).await?.success("making the torrent file")?;
        let starts = hosts.iter().enumerate().map(|(n, host)| {
            let mut arguments = vec!["-c".to_owned(), SCRIPT.to_owned(), "peer".to_owned(), torrent.clone()];
            let folder = if n == 0 { seed.clone() } else { directory.join(format!("leecher{n}")) };
            arguments.extend([folder.display().to_string(), host.ip().to_string()]);
            if n == 0 {
                arguments.push("--seed".to_owned());
                arguments.extend(tuning.super_seeding.then(|| "--super-seed".to_owned()));
                arguments.extend(
                    tuning
                        .seed_slots
                        .iter()
                        .flat_map(|slots| ["--set".to_owned(), format!("unchoke_slots_limit={slots}")]),
                );
            }
            Peer::start(Arc::clone(host), arguments, folder)
        });
        Ok(Self { peers: try_join_all(starts).await? })
    }

    /// Lets all leechers start at once, each knowing every other, and waits for them. Those in `victims` (counted from
    /// 0 among the leechers) are killed after `kill_after`.
    ///
    /// # Errors
    /// One fails, or takes longer than `limit`.
    pub async fn run(&mut self, limit: Duration, victims: &[usize], kill_after: Duration) -> Result<Outcome> {
        let before = self.cpu()?;
        let known: Vec<String> = self.peers.iter().map(|peer| peer.address.to_string()).collect();
        let begun = Instant::now();
        let runs = self.peers.iter_mut().enumerate().skip(1).map(|(n, peer)| {
            let known = known[..n].join(" ");
            let life = victims.contains(&(n - 1)).then_some(kill_after);
            async move {
                let ends = peer.leech(&known, limit);
                let Some(life) = life else { return ends.await.map(|end| Some(end - begun)) };
                // Within its life it may finish, which changes nothing: it is gone then.
                if let Ok(result) = timeout(life, ends).await {
                    result?;
                }
                peer.child.kill().await?;
                Ok(None)
            }
        });
        let each = try_join_all(runs).await?;
        let after = self.cpu()?;
        Ok(Outcome { each, cpu: (after.0 - before.0, after.1 - before.1) })
    }

    fn cpu(&self) -> Result<(f64, f64)> {
        let mut all = self.peers.iter().filter_map(Peer::pid).map(accounting::cpu_of);
        Ok((all.next().context("a seed")??, all.sum::<Result<f64>>()?))
    }

    /// Holds what the leechers have against the original.
    ///
    /// # Errors
    /// It is another.
    pub fn check(&self, content: &Content) -> Result<()> {
        let mut alive = self.peers[1..].iter().filter(|peer| peer.pid().is_some());
        alive.try_for_each(|peer| content.check(&peer.folder.join(FILE)))
    }

    /// The highest memory peak of a leecher, in bytes.
    #[must_use]
    pub fn rss_peak(&self) -> u64 {
        let peaks = self.peers[1..].iter().filter_map(|peer| accounting::rss_peak(peer.pid()?).ok());
        peaks.max().unwrap_or(0)
    }
}

impl Peer {
    async fn start(host: Arc<Host>, arguments: Vec<String>, folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let launch = async move {
            let mut child = Command::new(PYTHON)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .context("start a libtorrent peer")?;
            let (input, output) = (child.stdin.take(), child.stdout.take().context("its output is a pipe")?);
            let mut output = BufReader::new(output).lines();
            let line =
                timeout(START_TIME_MAX, output.next_line()).await.context("a libtorrent peer says nothing")??;
            let line = line.context("a libtorrent peer ended at once; is python3-libtorrent there?")?;
            let port: u16 = line.strip_prefix("listening ").context(line.clone())?.parse()?;
            Ok((child, input, output, port))
        };
        let (child, input, output, port) = host.run(launch).await?;
        let address = SocketAddr::from((host.ip(), port));
        Ok(Self { child, input, output: Some(output), host, address, folder })
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()?).ok()?)
    }

    /// Starts, and gives the moment when it is done.
    async fn leech(&mut self, known: &str, limit: Duration) -> Result<Instant> {
        let mut input = self.input.take().context("a peer starts once")?;
        let mut output = self.output.take().context("a peer starts once")?;
        let command = format!("start {known}\n");
        // Pipes belong to the runtime of the thread that made them.
        let work = async move {
            input.write_all(command.as_bytes()).await?;
            let line = timeout(limit, output.next_line()).await;
            let now = Instant::now();
            let line = line.with_context(|| format!("not done after {limit:?}"))??;
            ensure!(line.as_deref() == Some("done"), "libtorrent said {line:?}");
            Ok((now, input))
        };
        let (now, input) = self.host.run(work).await.with_context(|| format!("leecher {}", self.address))?;
        // Its end would end the peer, which others still draw from.
        self.input = Some(input);
        Ok(now)
    }
}
