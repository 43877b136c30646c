//! The localhost port when systemd holds it: there from the boot on, whether or not the agent is, and nobody else's.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use shoal_tests::{
    cluster::{Binaries, Cluster},
    http::Client,
    image::Image,
    pull, push,
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/port";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// Starts an agent with this on standard input, which is to listen at `listen` otherwise.
fn start(cluster: &Cluster, input: Stdio, listen: &str, data: &Path) -> Result<Child> {
    let any = "127.0.0.1:0";
    let seeder = format!("http://{}", cluster.seeder.addresses().registry);
    let log = std::fs::File::options().create(true).append(true).open(data.with_extension("log"))?;
    Command::new(Binaries::find()?.agent)
        .args(["agent", "--insecure-open", "--seeder", &seeder, "--listen", listen, "--status", any])
        .args(["--libp2p-listen", any, "--peer-listen", any, "--data-dir"])
        .arg(data)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start the agent")
}

async fn stop(mut agent: Child) -> Result<()> {
    let pid = agent.id().and_then(|id| Pid::from_raw(id.cast_signed())).context("it has ended")?;
    kill_process(pid, Signal::TERM)?;
    let status = tokio::time::timeout(LONG, agent.wait()).await??;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_systemd_holds_is_nobody_elses_before_between_and_after_runs_of_the_agent() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let image = Image::synthetic(141, &[MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    // What systemd does at boot, long before the agent.
    let held = TcpListener::bind("127.0.0.1:0")?;
    let address: SocketAddr = held.local_addr()?;
    let data = cluster.path().join("activated");
    // Another process has the configured port: it must not be asked for.
    let taken = cluster.seeder.addresses().registry.to_string();
    for run in 0..2 {
        ensure!(TcpListener::bind(address).is_err(), "an impostor has the port before run {run}");
        // A client that comes before the agent waits for it, and for nobody else.
        let client = Client::new(address.to_string());
        let mut early = JoinSet::new();
        early.spawn(async move { pull::image(&client, REPOSITORY, "1", &pull::Options::default()).await });
        let agent = start(&cluster, OwnedFd::from(held.try_clone()?).into(), &taken, &data)?;
        let report = tokio::time::timeout(LONG, early.join_next()).await?.context("a pull")???;
        ensure!(report.manifest == image.manifest.digest, "{report:?}");
        stop(agent).await?;
    }
    ensure!(TcpListener::bind(address).is_err(), "an impostor has the port after the agent");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_listening_port_on_standard_input_is_left_alone() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let taken = cluster.seeder.addresses().registry.to_string();
    let (unix, _other) = std::os::unix::net::UnixStream::pair()?;
    let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for (number, input) in
        [Stdio::null(), OwnedFd::from(unix).into(), OwnedFd::from(udp).into()].into_iter().enumerate()
    {
        let data = cluster.path().join(format!("own{number}"));
        let mut agent = start(&cluster, input, &taken, &data)?;
        let status = tokio::time::timeout(LONG, agent.wait()).await??;
        let said = std::fs::read_to_string(data.with_extension("log"))?;
        ensure!(status.code() == Some(1) && said.contains("cannot bind the registry port"), "{status}: {said}");
    }
    cluster.finish().await
}

/// What both units must say, so that whoever takes a program over has little of the machine.
const HARDENED: [&str; 16] = [
    "User=shoal",
    "UMask=0077",
    "StateDirectoryMode=0700",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectProc=invisible",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged",
];

#[test]
fn the_units_run_both_programs_without_capabilities_and_pass_the_port() -> Result<()> {
    let unit = |name: &str| {
        std::fs::read_to_string(shoal_tests::clone::root()?.join("packaging/systemd").join(name))
            .context(name.to_owned())
    };
    for name in ["shoal-agent.service", "shoal-seeder.service"] {
        let text = unit(name)?;
        for line in HARDENED {
            ensure!(text.lines().any(|found| found == line), "{name} lacks {line}");
        }
        let command = text.lines().find(|line| line.starts_with("ExecStart=")).context("no command")?;
        ensure!(
            !command.contains("--join-token ") && !text.contains("Environment="),
            "{name} shows a secret: {command}"
        );
    }
    let socket = unit("shoal-agent.socket")?;
    ensure!(socket.contains("\nListenStream=127.0.0.1:5050\n"), "{socket}");
    let agent = unit("shoal-agent.service")?;
    for line in ["Requires=shoal-agent.socket", "StandardInput=socket"] {
        ensure!(agent.lines().any(|found| found == line), "the agent binds the port itself: {line}");
    }
    Ok(())
}
