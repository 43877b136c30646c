//! The task that owns the swarm.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    connection_limits::{self, ConnectionLimits},
    core::Endpoint,
    core::transport::ListenerId,
    identify,
    identity::Keypair,
    kad::{
        self, GetClosestPeersError, GetProvidersOk, Mode, ProviderRecord, QueryId, QueryResult, RecordKey,
        StoreInserts, store::RecordStore,
    },
    noise, ping,
    request_response::{self, Message, OutboundRequestId},
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use shoal_proto::{
    message::PeerInfo,
    signed::{DiscoveryKey, NodeId},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};

use super::{
    BATCHES_MAX, CONNECTIONS_MAX, Command, Door, FINDS_MAX, FINDS_WAITING_MAX, IDLE_TIMEOUT, KAD_PROTOCOL, NetConfig,
    NetError, NetEvent, PENDING_INCOMING_MAX, PROVIDES_MAX, QUERY_TIMEOUT, RECORD_TTL, REPLICATION,
    announce::{Announcements, Batch},
    batch::{self, Announcement},
    contact, door,
    gate::{Gate, Gated},
    libp2p_address, node_id, peer_address, peer_id,
    records::{ADDRESSES_MAX, Records},
};

/// How often announcements that are due are looked for.
const TICK: Duration = Duration::from_millis(250);
/// How often expired records are dropped and the size of the table is told.
const SWEEP: Duration = Duration::from_secs(60);
/// How often the table is refreshed by a look-up of this node itself.
const BOOTSTRAP: Duration = Duration::from_secs(600);
/// Addresses of one node that are put into the table.
const TABLE_ADDRESSES_MAX: usize = 4;
/// Nodes that a bucket of the routing table holds: a quarter more than are asked for, so that one which is gone is not missed.
/// The table has room for all of them in each of its 256 buckets from the start: 20, the usual number, take 1.6 MiB.
const BUCKET_LEN: NonZeroUsize = NonZeroUsize::new(10).expect("10 is not 0");

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    kad: kad::Behaviour<Records>,
    batch: batch::Behaviour,
}

enum Query {
    /// For those who are to keep a key.
    Keepers(DiscoveryKey),
    Find(DiscoveryKey),
}

pub(super) struct Worker {
    swarm: Swarm<Behaviour>,
    gate: Arc<dyn Gate>,
    config: NetConfig,
    /// What each listener was asked to listen on, and its port once it has one.
    listeners: BTreeMap<SocketAddr, (ListenerId, Option<u16>)>,
    events: mpsc::Sender<NetEvent>,
    queries: HashMap<QueryId, Query>,
    announcements: Announcements,
    /// Look-ups for keepers.
    looking: usize,
    /// The messages under way.
    batches: HashMap<OutboundRequestId, Batch>,
    finding: BTreeSet<DiscoveryKey>,
    waiting: VecDeque<DiscoveryKey>,
    swept: Instant,
    bootstrapped: Instant,
}

impl Worker {
    pub(super) fn new(
        secret: [u8; 32],
        config: &NetConfig,
        gate: Arc<dyn Gate>,
        events: mpsc::Sender<NetEvent>,
    ) -> Result<Self, NetError> {
        let setup = |error: &dyn std::fmt::Display| NetError::Setup(error.to_string());
        let keys = Keypair::ed25519_from_bytes(secret).map_err(|error| setup(&error))?;
        let guard = Arc::clone(&gate);
        let security = move |keys: &Keypair| noise::Config::new(keys).map(|noise| Gated::new(noise, guard));
        let swarm = SwarmBuilder::with_existing_identity(keys)
            .with_tokio()
            .with_tcp(tcp::Config::new().nodelay(true), security, yamux::Config::default)
            .map_err(|error| setup(&error))?
            .with_behaviour(behaviour)
            .map_err(|error| setup(&error))?
            .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(IDLE_TIMEOUT))
            .build();
        let now = Instant::now();
        let mut worker = Self {
            swarm,
            gate,
            config: config.clone(),
            listeners: BTreeMap::new(),
            events,
            queries: HashMap::new(),
            announcements: Announcements::default(),
            looking: 0,
            batches: HashMap::new(),
            finding: BTreeSet::new(),
            waiting: VecDeque::new(),
            swept: now,
            bootstrapped: now,
        };
        worker.swarm.behaviour_mut().kad.set_mode(Some(Mode::Server));
        for address in &config.listen {
            let listener = worker.swarm.listen_on(libp2p_address(*address));
            let listener =
                listener.map_err(|error| NetError::Listen { address: *address, error: error.to_string() })?;
            worker.listeners.insert(*address, (listener, None));
        }
        Ok(worker)
    }

    /// Waits until every listener has an address, and says which.
    pub(super) async fn listen(&mut self) -> Result<Vec<SocketAddr>, NetError> {
        while self.listeners.values().any(|(_, port)| port.is_none()) {
            let event = self.swarm.select_next_some().await;
            if let SwarmEvent::ListenerClosed { listener_id, reason, .. } = &event {
                let closed = self.listeners.iter().find(|(_, (id, _))| id == listener_id);
                if let Some((address, _)) = closed {
                    return Err(NetError::Listen { address: *address, error: format!("{reason:?}") });
                }
            }
            self.on_event(event).await;
        }
        let bound = |(asked, (_, port)): (&SocketAddr, &(ListenerId, Option<u16>))| {
            SocketAddr::new(asked.ip(), port.unwrap_or(asked.port()))
        };
        Ok(self.listeners.iter().map(bound).collect())
    }

    /// A listener has an address: under an unspecified one each interface tells its own. Others are told those that they
    /// can reach, or the advertised ones instead.
    fn listening(&mut self, listener: ListenerId, at: SocketAddr) {
        let Some((asked, (_, port))) = self.listeners.iter_mut().find(|(_, (id, _))| *id == listener) else { return };
        *port = Some(at.port());
        let advertised = self.config.advertise.clone();
        if !advertised.is_empty() {
            advertised.into_iter().for_each(|ip| self.reachable_at(ip, at.port()));
        } else if !asked.ip().is_unspecified() || is_routable(at.ip()) {
            self.reachable_at(at.ip(), at.port());
        }
    }

    fn reachable_at(&mut self, ip: IpAddr, libp2p_port: u16) {
        let mut addresses = vec![libp2p_address(SocketAddr::new(ip, libp2p_port))];
        let fits =
            |peer: &&SocketAddr| peer.ip() == ip || peer.ip().is_unspecified() || !self.config.advertise.is_empty();
        let doors = self.config.peer.iter().filter(fits);
        addresses.extend(doors.map(|peer| peer_address(SocketAddr::new(ip, peer.port()))));
        for address in addresses {
            self.swarm.add_external_address(address);
        }
        let all = self.swarm.external_addresses().cloned().collect();
        self.swarm.behaviour_mut().kad.store_mut().set_my_addresses(all);
    }

    /// Runs until nobody listens.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event).await,
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                _ = tick.tick() => self.on_tick(),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Announce(keys) => {
                let now = Instant::now();
                let me = *self.swarm.local_peer_id();
                for key in keys.into_iter().filter(|key| self.announcements.add(*key, now)) {
                    // Of its own it keeps as many as it announces. Those never expire.
                    let record = ProviderRecord::new(key.to_vec(), me, Vec::new());
                    let _ = self.swarm.behaviour_mut().kad.store_mut().add_provider(record);
                }
                self.announce_due(now);
            }
            Command::Withdraw(keys) => {
                let me = *self.swarm.local_peer_id();
                for key in keys {
                    self.announcements.remove(&key);
                    self.swarm.behaviour_mut().kad.store_mut().remove_provider(&RecordKey::new(&key), &me);
                }
            }
            Command::Find(keys) => {
                for key in keys {
                    if !self.finding.contains(&key) && !self.waiting.contains(&key) {
                        if self.waiting.len() == FINDS_WAITING_MAX {
                            self.waiting.pop_front();
                        }
                        self.waiting.push_back(key);
                    }
                }
                self.find_waiting();
            }
            Command::Recheck => {
                let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
                for peer in connected {
                    if !node_id(&peer).is_some_and(|node| self.gate.may_stay(&node)) {
                        self.swarm.behaviour_mut().kad.remove_peer(&peer);
                        // Gone already, if that fails.
                        let _ = self.swarm.disconnect_peer_id(peer);
                    }
                }
            }
            Command::Know(node, addresses) => {
                if let Some(peer) = peer_id(&node) {
                    for address in addresses.into_iter().take(TABLE_ADDRESSES_MAX) {
                        self.swarm.behaviour_mut().kad.add_address(&peer, libp2p_address(address));
                    }
                }
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.announce_due(now);
        // Not sooner: what is found within a tick goes together.
        self.send_batches(now);
        if now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.swarm.behaviour_mut().kad.store_mut().sweep(now);
        }
        let nodes = self.nodes();
        if nodes > 0 && now.duration_since(self.bootstrapped) >= BOOTSTRAP {
            self.bootstrapped = now;
            // Fails only without a known node, and there is one.
            let _ = self.swarm.behaviour_mut().kad.bootstrap();
        }
        // A loop that is behind need not hear this.
        let _ = self.events.try_send(NetEvent::Table(nodes));
    }

    fn nodes(&mut self) -> usize {
        self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    /// Starts what is due of announcements, while there is room and anybody to announce to.
    fn announce_due(&mut self, now: Instant) {
        let table = self.nodes();
        if table == 0 {
            return;
        }
        for key in self.announcements.look_ups(PROVIDES_MAX.saturating_sub(self.looking), table, now) {
            let id = self.swarm.behaviour_mut().kad.get_n_closest_peers(key.to_vec(), REPLICATION);
            self.queries.insert(id, Query::Keepers(key));
            self.looking += 1;
        }
    }

    /// Sends the announcements that wait, a batch to a node.
    fn send_batches(&mut self, now: Instant) {
        let room = BATCHES_MAX.saturating_sub(self.batches.len());
        let addresses: Vec<Multiaddr> = self.swarm.external_addresses().take(ADDRESSES_MAX).cloned().collect();
        for batch in self.announcements.batches(room, now) {
            let announcement = Announcement { addresses: addresses.clone(), keys: batch.keys.clone() };
            let sender = &mut self.swarm.behaviour_mut().batch;
            let id = sender.send_request_with_addresses(&batch.to, announcement, batch.addresses.clone());
            self.batches.insert(id, batch);
        }
    }

    fn find_waiting(&mut self) {
        while self.finding.len() < FINDS_MAX {
            let Some(key) = self.waiting.pop_front() else { return };
            let id = self.swarm.behaviour_mut().kad.get_providers(RecordKey::new(&key));
            self.queries.insert(id, Query::Find(key));
            self.finding.insert(key);
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p reports much that is of no use here")]
    async fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                self.identified(peer_id, &info);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event).await,
            SwarmEvent::Behaviour(BehaviourEvent::Batch(event)) => self.on_batch(event),
            SwarmEvent::NewListenAddr { listener_id, address } => {
                if let Some(Door::Libp2p(at)) = door(&address) {
                    self.listening(listener_id, at);
                }
            }
            SwarmEvent::IncomingConnectionError { error, .. } => {
                tracing::debug!(%error, "a libp2p connection was not made")
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "libp2p's listener failed"),
            _ => {}
        }
    }

    /// A node of the DHT has told where it listens.
    fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        if !info.protocols.iter().any(|protocol| protocol.as_ref() == KAD_PROTOCOL) {
            return;
        }
        let kad = &mut self.swarm.behaviour_mut().kad;
        let dialable = info.listen_addrs.iter().filter(|address| matches!(door(address), Some(Door::Libp2p(_))));
        for address in dialable.take(TABLE_ADDRESSES_MAX) {
            kad.add_address(&peer, address.clone());
        }
        self.announce_due(Instant::now());
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p reports much that is of no use here")]
    async fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { key, providers })) => {
                self.found(&key, providers.into_iter().collect()).await;
            }
            QueryResult::GetClosestPeers(result) => {
                let peers = match result {
                    Ok(closest) => closest.peers,
                    // Whoever has answered by then will do.
                    Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                self.keepers_found(id, peers);
            }
            _ => {}
        }
        if step.last {
            self.finished(id).await;
        }
    }

    /// A look-up has found who is to keep a key.
    fn keepers_found(&mut self, id: QueryId, peers: Vec<kad::PeerInfo>) {
        let Some(Query::Keepers(key)) = self.queries.get(&id) else { return };
        let me = *self.swarm.local_peer_id();
        let others = peers.into_iter().filter(|peer| peer.peer_id != me);
        self.announcements.found(key, others.map(|peer| (peer.peer_id, peer.addrs)).collect(), Instant::now());
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p reports much that is of no use here")]
    fn on_batch(&mut self, event: request_response::Event<Announcement, u32>) {
        match event {
            request_response::Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                let kept = self.keep(peer, request);
                // Fails only if the asker has gone.
                let _ = self.swarm.behaviour_mut().batch.send_response(channel, kept);
            }
            request_response::Event::Message { message: Message::Response { request_id, response }, .. } => {
                let Some(batch) = self.batches.remove(&request_id) else { return };
                if (response as usize) < batch.keys.len() {
                    tracing::debug!(keeper = %batch.to, kept = response, told = batch.keys.len(), "a full keeper");
                }
                self.announcements.delivered(&batch.to, &batch.keys);
            }
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                let Some(batch) = self.batches.remove(&request_id) else { return };
                tracing::debug!(keeper = %batch.to, %error, "not announced");
                self.announcements.failed(&batch.to, Instant::now());
            }
            _ => {}
        }
    }

    /// Keeps records of `peer`, as many as there is room for, and says how many.
    fn keep(&mut self, peer: PeerId, announcement: Announcement) -> u32 {
        let expires = Instant::now() + RECORD_TTL;
        let store = self.swarm.behaviour_mut().kad.store_mut();
        let record = |key: DiscoveryKey| ProviderRecord {
            key: RecordKey::new(&key),
            provider: peer,
            expires: Some(expires),
            addresses: announcement.addresses.clone(),
        };
        let kept = announcement.keys.iter().filter(|key| store.add_provider(record(**key)).is_ok()).count();
        u32::try_from(kept).unwrap_or(u32::MAX)
    }

    async fn found(&mut self, key: &RecordKey, providers: Vec<PeerId>) {
        let Ok(key) = DiscoveryKey::try_from(key.as_ref()) else { return };
        let contacts: Vec<PeerInfo> = providers.iter().filter_map(|peer| self.contact(&key, peer)).collect();
        if !contacts.is_empty() {
            let _ = self.events.send(NetEvent::Found { key, contacts }).await;
        }
    }

    /// Where a provider can be reached, by our own records and by what the running queries have heard. Kademlia tells
    /// the latter to whoever is about to dial, so it is asked as if we were.
    fn contact(&mut self, key: &DiscoveryKey, peer: &PeerId) -> Option<PeerInfo> {
        if peer == self.swarm.local_peer_id() {
            return None;
        }
        let node: NodeId = node_id(peer)?;
        let kad = &mut self.swarm.behaviour_mut().kad;
        let records = kad.store_mut().providers(&RecordKey::new(key));
        let stored = records.into_iter().filter(|record| record.provider == *peer).flat_map(|record| record.addresses);
        let mut addresses: Vec<Multiaddr> = stored.collect();
        let dial = ConnectionId::new_unchecked(0);
        let heard = kad.handle_pending_outbound_connection(dial, Some(*peer), &[], Endpoint::Dialer);
        addresses.extend(heard.unwrap_or_default());
        contact(node, &addresses)
    }

    async fn finished(&mut self, id: QueryId) {
        match self.queries.remove(&id) {
            Some(Query::Keepers(_)) => {
                self.looking -= 1;
                self.announce_due(Instant::now());
            }
            Some(Query::Find(key)) => {
                self.finding.remove(&key);
                self.find_waiting();
                let _ = self.events.send(NetEvent::Done { key }).await;
            }
            None => {}
        }
    }
}

fn behaviour(keys: &Keypair) -> Behaviour {
    let me = keys.public().to_peer_id();
    let limits = ConnectionLimits::default()
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(2))
        .with_max_pending_incoming(Some(PENDING_INCOMING_MAX));
    let mut config = kad::Config::new(StreamProtocol::new(KAD_PROTOCOL));
    config
        .set_query_timeout(QUERY_TIMEOUT)
        .set_replication_factor(REPLICATION)
        .set_kbucket_size(BUCKET_LEN)
        .set_record_ttl(Some(RECORD_TTL))
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(Some(RECORD_TTL))
        .set_provider_publication_interval(None)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_caching(kad::Caching::Disabled)
        .set_periodic_bootstrap_interval(None);
    // Only addresses that others can reach are told.
    let identify = identify::Config::new("/shoal/1".into(), keys.public())
        .with_agent_version(concat!("shoal/", env!("CARGO_PKG_VERSION")).into())
        .with_hide_listen_addrs(true);
    Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        kad: kad::Behaviour::with_config(me, Records::new(me), config),
        batch: batch::behaviour(),
    }
}

/// Whether an interface's address is of use to other machines.
fn is_routable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}
