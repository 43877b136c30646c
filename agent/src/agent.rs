//! The loop: one owner for all that moves pieces, around [`shoal_transfer::Node`].
//!
//! ```text
//! commands (http) ─┐
//! peers ───────────┤   select() ─► one Turn ─► apply() ─► Inputs ─► Node ─► Actions ─► perform()
//! DHT ─────────────┤   (async, cancel-safe)    (synchronous: state changes and hand-overs only)
//! own tasks, time ─┘
//! ```
//!
//! **Why one owner.** Who asks whom for what, who may read what, which id means what: all of it changes with every
//! event, and a lock for each would have to be taken in the same order everywhere. Here nothing is shared. The price:
//! nothing in `apply` may wait. What takes time (the seeder, the disk, DNS) is a task of its own, bounded in number, and
//! reports back as a `Done`; what goes to peers is pushed into their bounded queues, and a peer whose queue is full is
//! dropped. Only small reads of the store that hit memory as a rule are done in place.
//!
//! **Ids.** The core knows blobs, peers, readers and uploads by dense ids that this loop gives, and requests by ids of
//! its own. Each map from id to thing lives in one file: `blobs`, `peers`, `serve`, `fetch`. A late word about something
//! that is over finds no entry and is dropped.
//!
//! **Order of inputs.** Performing an action may bring about inputs (a dial that cannot be made has failed); they queue
//! up behind what is being handled, so the core is never entered twice.

mod answers;
mod blobs;
mod bundle;
mod discovery;
mod fetch;
mod fleet;
mod images;
mod known;
mod links;
mod peers;
mod perform;
mod readers;
pub mod rights;
mod seeder;
mod serve;
mod start;
mod status;
#[cfg(test)]
mod tests;
mod trace;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use shoal_dht::{Net, NetEvent};
use shoal_proto::{
    message::PeerInfo,
    signed::{Labels, NodeId, UnixSeconds},
};
use shoal_transfer::{Node, event::Input, time::Time};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, Interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    answers::Asks, blobs::Blobs, bundle::Bundles, discovery::Discovery, fetch::Fetches, fleet::SeederFleet,
    images::Images, peers::Peers, readers::Readers, seeder::SeederNews, serve::Uploads, trace::Trace,
};
use crate::{
    Config,
    handle::{Command, Commands},
    history::History,
    metrics::Metrics,
    peer::{self, Endpoint},
    rate::Rate,
    store::Store,
    upstream::Upstream,
};

pub use self::start::start;

/// What has no event of its own is looked after this often.
const TICK: Duration = Duration::from_millis(250);
/// Reports of tasks that may wait. Tasks are bounded, and each waits for its report to be taken.
const DONE_MAX: usize = 256;
/// How long goodbyes may take when the agent stops.
const GOODBYE_MAX: Duration = Duration::from_secs(3);

/// The loop as others see it.
#[derive(Debug)]
pub struct Loop {
    /// Where libp2p listens.
    pub libp2p: Vec<SocketAddr>,
    /// Where the peer protocol listens.
    pub peer: Vec<SocketAddr>,
    task: JoinSet<anyhow::Result<()>>,
}

impl Loop {
    /// Ends when the loop has: after `shutdown`, or because it failed. Cancel-safe.
    ///
    /// # Errors
    /// The loop has panicked, or does not stop.
    pub async fn wait(&mut self) -> anyhow::Result<()> {
        match self.task.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(anyhow::Error::new(error).context("the loop has panicked")),
            None => Ok(()),
        }
    }
}

/// What a task of the loop reports.
#[derive(Debug)]
enum Done {
    /// A wanted blob can be read, or cannot be had.
    Opened(Box<blobs::Opened>),
    /// News of a request to the seeder.
    Seeder(SeederNews),
    /// A static peer's name was looked up.
    Resolved { node: NodeId, addresses: Vec<SocketAddr> },
    /// A stored blob was hashed again.
    Verified { digest: shoal_proto::Digest, bad: usize },
    /// The seeder has named others of the fleet.
    Met(Vec<PeerInfo>),
}

/// What the loop waits for.
#[derive(Debug)]
enum Turn {
    Command(Command),
    Peer(peer::Event),
    Net(NetEvent),
    Done(Done),
    /// The moment that the core has named.
    Timeout,
    Tick,
    Evicted,
    UnknownKey,
    /// A newer key set or revocation list.
    News,
    Stop,
}

/// Where turns come from; apart from the state, so that waiting borrows none of it.
struct Sources {
    commands: Commands,
    /// Whether the other side of `commands` lives.
    commanded: bool,
    peers: mpsc::Receiver<peer::Event>,
    net: mpsc::Receiver<NetEvent>,
    done: mpsc::Receiver<Done>,
    store: Store,
    fleet: Arc<SeederFleet>,
    tick: Interval,
    stop: CancellationToken,
}

impl Sources {
    /// Waits for the next turn. Every branch is cancel-safe: queues and notifications keep what was not taken, the timer
    /// is computed anew.
    async fn select(&mut self, wake: Option<Instant>) -> Turn {
        let timeout = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Turn::Stop,
            command = self.commands.recv(), if self.commanded => match command {
                Some(command) => Turn::Command(command),
                None => {
                    self.commanded = false;
                    Turn::Tick
                }
            },
            Some(event) = self.peers.recv() => Turn::Peer(event),
            Some(event) = self.net.recv() => Turn::Net(event),
            Some(done) = self.done.recv() => Turn::Done(done),
            () = self.store.evicted() => Turn::Evicted,
            () = self.fleet.wanted() => Turn::UnknownKey,
            () = self.fleet.news() => Turn::News,
            _ = self.tick.tick() => Turn::Tick,
            () = timeout => Turn::Timeout,
        }
    }
}

/// The owner of it all.
struct Shell {
    core: Node,
    /// The core's time zero.
    epoch: Instant,
    /// What the core is still to be told.
    inputs: VecDeque<Input<'static>>,
    trace: Option<Trace>,

    me: NodeId,
    labels: Labels,
    config: Arc<Config>,
    store: Store,
    upstream: Upstream,
    metrics: Metrics,
    endpoint: Endpoint,
    net: Net,
    tasks: TaskTracker,
    stop: CancellationToken,
    done: mpsc::Sender<Done>,

    blobs: Blobs,
    images: Images,
    peers: Peers,
    readers: Readers,
    fetches: Fetches,
    uploads: Uploads,
    asks: Asks,
    bundles: Bundles,
    discovery: Discovery,
    history: History,
    ticks: u64,
    /// The disk was full; it is tried again then.
    disk_full_until: Option<Instant>,
    /// When the seeder was last asked for newer keys.
    keys_asked: Option<Instant>,
    /// The cap on what the seeder sends us.
    seeder_rate: Arc<Rate>,
}

impl Shell {
    async fn run(mut self, mut sources: Sources) -> anyhow::Result<()> {
        self.settle();
        loop {
            let wake = self.core.poll_timeout().map(|at| self.epoch + Duration::from_nanos(at.as_nanos()));
            let turn = sources.select(wake).await;
            if matches!(turn, Turn::Stop) {
                break;
            }
            self.apply(turn);
            self.settle();
        }
        self.goodbye(sources).await
    }

    fn apply(&mut self, turn: Turn) {
        match turn {
            Turn::Command(command) => self.on_command(command),
            Turn::Peer(event) => self.on_peer(event),
            Turn::Net(event) => self.on_net(event),
            Turn::Done(done) => self.on_done(done),
            Turn::Timeout => self.feed(Input::Timeout),
            Turn::Tick => self.on_tick(),
            Turn::Evicted => self.on_evicted(),
            Turn::UnknownKey => self.refresh_keys(),
            Turn::News => self.on_news(),
            Turn::Stop => {}
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Image(context) => self.on_image(*context),
            Command::Want(want) => self.on_want(*want),
            Command::ReaderOpened { digest, reader, range } => self.reader_opened(&digest, reader, &range),
            Command::ReaderMoved { digest, reader, position } => self.reader_moved(&digest, reader, position),
            Command::ReaderClosed { reader, .. } => self.reader_closed(reader),
            Command::Bundle { key, reply } => self.on_bundle_wanted(key, reply),
            Command::Pulls { reply } => {
                let _ = reply.send(self.history.report(Instant::now()));
            }
            Command::Status { reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.status());
            }
            Command::Forget { digest } => self.close_blob(&digest),
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Opened(opened) => self.on_opened(*opened),
            Done::Seeder(news) => self.on_seeder(news),
            Done::Resolved { node, addresses } => self.on_resolved(node, &addresses),
            Done::Verified { digest, bad } => self.on_verified(&digest, bad),
            Done::Met(introductions) => self.on_met(introductions),
        }
    }

    fn on_tick(&mut self) {
        self.ticks += 1;
        let now = Instant::now();
        if self.disk_full_until.is_some_and(|until| until <= now) {
            self.disk_full_until = None;
            self.feed(Input::Disk { writable: true });
        }
        self.tick_asks(now);
        self.tick_bundles(now);
        self.tick_openings(now);
        self.tick_orphans(now);
        if self.every(Duration::from_secs(1)) {
            self.tick_exchange();
            self.tick_announce(now);
        }
        if self.every(Duration::from_secs(5)) {
            self.tick_idle(now);
            self.close_outsiders();
            self.tick_static();
            self.tick_labels();
            if let Some(trace) = &mut self.trace {
                trace.flush();
            }
        }
        if self.every(Duration::from_secs(60)) {
            self.save_known();
        }
    }

    /// Whether this tick is one of those that come every `span`.
    fn every(&self, span: Duration) -> bool {
        let ticks = span.as_millis() / TICK.as_millis();
        u128::from(self.ticks).is_multiple_of(ticks)
    }

    /// Queues an input for the core.
    fn feed(&mut self, input: Input<'static>) {
        self.inputs.push_back(input);
    }

    /// Tells the core what has happened and does what it says, until nothing is left of either.
    fn settle(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = self.now();
            tracing::trace!(?input);
            if let Some(trace) = &mut self.trace {
                trace.input(&input, now);
            }
            self.core.handle(input, now);
            while let Some(action) = self.core.poll_action() {
                tracing::trace!(?action);
                if let Some(trace) = &mut self.trace {
                    trace.action(&action);
                }
                self.perform(action);
            }
        }
    }

    fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Takes leave of all peers, and ends what runs for the loop.
    async fn goodbye(mut self, mut sources: Sources) -> anyhow::Result<()> {
        self.save_known();
        self.cancel_seeder_tasks();
        self.peers.close_all();
        if let Some(trace) = &mut self.trace {
            trace.flush();
        }
        let said =
            async { while self.endpoint.counters().connections_now() > 0 && sources.peers.recv().await.is_some() {} };
        // A peer that does not listen does not hold up the stop.
        let _ = tokio::time::timeout(GOODBYE_MAX, said).await;
        self.stop.cancel();
        drop(sources);
        self.tasks.close();
        let tasks = self.tasks.clone();
        drop(self);
        match tokio::time::timeout(GOODBYE_MAX, tasks.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => anyhow::bail!("{} tasks of the loop do not end", tasks.len()),
        }
    }
}

fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
