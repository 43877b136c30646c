//! Where processes of the bench run and sockets are opened: on this machine as it is, or in a network namespace.
//!
//! A namespace has a thread with a runtime of its own that has moved into it. Whatever that thread opens belongs to the
//! namespace, and so does each process that it starts. Files are the same everywhere.

use std::{
    fs::File,
    io::Write,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::sync_channel,
    thread::JoinHandle,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Names of namespaces are this, the id of the process that made them, and what they are for.
const PREFIX: &str = "shoal-bench";
/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";

/// A place with an address.
#[derive(Debug)]
pub struct Host {
    name: String,
    ip: Ipv4Addr,
    namespace: Option<Namespace>,
}

impl Host {
    /// This machine, under one of its loopback addresses.
    #[must_use]
    pub fn here(name: impl Into<String>, ip: Ipv4Addr) -> Self {
        Self { name: name.into(), ip, namespace: None }
    }

    /// A namespace with an address.
    #[must_use]
    pub fn apart(name: impl Into<String>, ip: Ipv4Addr, namespace: Namespace) -> Self {
        Self { name: name.into(), ip, namespace: Some(namespace) }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub const fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Whether its ports are its own.
    #[must_use]
    pub const fn is_apart(&self) -> bool {
        self.namespace.is_some()
    }

    /// The namespace, if it is one.
    #[must_use]
    pub const fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Does something there.
    ///
    /// # Errors
    /// Those of `work`; or it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.run(work).await,
            None => work.await,
        }
    }
}

/// A network namespace; gone when dropped. Processes in it must have ended by then, or they keep it alive unnamed.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    runtime: Handle,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes one. Only root may.
    ///
    /// # Errors
    /// The kernel refuses, or `ip` is not there.
    pub fn create(label: &str) -> Result<Self> {
        let name = format!("{PREFIX}-{}-{label}", std::process::id());
        ip(&["netns", "add", &name])?;
        let stop = CancellationToken::new();
        let thread = Self::inhabit(&name, stop.clone());
        let (thread, runtime) = match thread {
            Ok(parts) => parts,
            Err(error) => {
                let _ = ip(&["netns", "del", &name]);
                return Err(error);
            }
        };
        Ok(Self { name, runtime, stop, thread: Some(thread) })
    }

    fn inhabit(name: &str, stop: CancellationToken) -> Result<(JoinHandle<()>, Handle)> {
        let path = Path::new(NAMES).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let (sender, receiver) = sync_channel(1);
        let live = move || {
            let enter = || -> Result<_> {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("enter it")?;
                Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
            };
            let runtime = enter();
            // Nobody listens only if this thread's maker has panicked.
            match runtime {
                Ok(runtime) => {
                    let _ = sender.send(Ok(runtime.handle().clone()));
                    runtime.block_on(stop.cancelled_owned());
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(live).context("start a thread")?;
        let runtime = receiver.recv().context("the namespace's thread has died")?;
        Ok((thread, runtime.with_context(|| format!("network namespace {name}"))?))
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something in it.
    ///
    /// # Errors
    /// Those of `work`; or it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        // A set, so that the task ends with whoever waits for it.
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, &self.runtime);
        tasks.join_next().await.context("one task was spawned")?.with_context(|| format!("in {}", self.name))?
    }

    /// Runs lines of `ip -batch` in it.
    ///
    /// # Errors
    /// One fails.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        batch("ip", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// Runs lines of `tc -batch` in it.
    ///
    /// # Errors
    /// One fails.
    pub fn tc(&self, lines: &[String]) -> Result<()> {
        batch("tc", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// Sets kernel parameters below `/proc/sys/net`, each as path and value.
    ///
    /// # Errors
    /// One cannot be set.
    pub async fn set(&self, parameters: &[(&'static str, &'static str)]) -> Result<()> {
        let parameters = parameters.to_owned();
        let write = async move {
            for (path, value) in parameters {
                let path = format!("/proc/sys/net/{path}");
                std::fs::write(&path, value).with_context(|| format!("write {path}"))?;
            }
            Ok(())
        };
        self.run(write).await
    }

    /// Counters of a device in it.
    ///
    /// # Errors
    /// There is no such device.
    pub fn traffic(&self, device: &str) -> Result<Traffic> {
        let text = ip(&["-n", &self.name, "-s", "-j", "link", "show", "dev", device])?;
        let value: serde_json::Value = serde_json::from_str(&text).context("what `ip -j` says")?;
        let stats = &value[0]["stats64"];
        let count = |way: &str, what: &str| stats[way][what].as_u64().context("a counter of `ip -s`");
        Ok(Traffic {
            received: Count { bytes: count("rx", "bytes")?, packets: count("rx", "packets")? },
            sent: Count { bytes: count("tx", "bytes")?, packets: count("tx", "packets")? },
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // A panic in it was told where its work was awaited.
            let _ = thread.join();
        }
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            crate::report::note(&format!("{error:#}"));
        }
    }
}

/// Bytes on the wire, as the sender hands them to the device: a packet that the device would cut counts once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// With Ethernet, IP and TCP headers.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// Bytes of headers in a TCP packet: Ethernet 14, IPv4 20, TCP with time stamps 32.
const HEADERS_LEN: u64 = 66;

impl Count {
    /// What TCP carried, repeats included.
    #[must_use]
    pub const fn payload(&self) -> u64 {
        self.bytes.saturating_sub(self.packets * HEADERS_LEN)
    }

    /// What has come since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self { bytes: self.bytes - earlier.bytes, packets: self.packets - earlier.packets }
    }
}

/// Counters of a device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Came in.
    pub received: Count,
    /// Went out.
    pub sent: Count,
}

/// Whether namespaces can be made here; why not, else.
#[must_use]
pub fn cannot() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can make network namespaces");
    }
    ["ip", "tc"].iter().any(|tool| !crate::daemons::on_path(tool)).then_some("ip and tc (iproute2) are missing")
}

/// Removes the namespaces of benches that were killed.
///
/// # Errors
/// They cannot be listed or removed.
pub fn sweep() -> Result<()> {
    let Ok(names) = std::fs::read_dir(NAMES) else { return Ok(()) };
    for name in names {
        let name = name?.file_name().to_string_lossy().into_owned();
        let maker = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')?.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            ip(&["netns", "del", &name])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("start ip (iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn batch(program: &str, arguments: &[&str], lines: &[String]) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program} (iproute2)"))?;
    let text = lines.join("\n") + "\n";
    // What is wrong with a line is said on stderr, which a broken pipe here would only hide.
    let written = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || !matches!(written, Some(Ok(()))) {
        bail!("{program} {}: {}\nof:\n{text}", arguments.join(" "), said.trim());
    }
    Ok(())
}
