//! How the loop stands, for `shoal status` and the metrics.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use shoal_proto::signed::Labels;
use shoal_transfer::event::Goal;
use tokio::time::Instant;

use super::Shell;
use crate::{
    handle::{DownloadStatus, LoopStatus, PeerStatus},
    metrics::Metrics,
    peer::{Counters, Refused},
};

impl Shell {
    pub(super) fn status(&self) -> LoopStatus {
        let member = self.upstream.member();
        let member_until = member.borrow().as_ref().map_or(0, |member| member.membership.not_after);
        let peers = self.peers.connected().map(|(_, known, state)| PeerStatus {
            node: known.info.node.to_string(),
            address: state.remote.to_string(),
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
        });
        let fetching = self.blobs.arena.iter().filter(|(_, open)| open.goal != Goal::Serve && !open.blob.is_complete());
        let downloads = fetching.map(|(id, open)| {
            let told = self.peers.connected().filter(|(_, _, state)| state.told.contains(&id)).count();
            DownloadStatus {
                digest: open.blob.digest().to_string(),
                size: open.blob.layout().size(),
                pieces: open.blob.layout().pieces(),
                stored: open.blob.have().len(),
                peers: told,
            }
        });
        let counters = self.endpoint.counters();
        LoopStatus {
            node: self.me.to_string(),
            labels: spell(&self.labels),
            member_until,
            peers: peers.collect(),
            known: self.peers.known(),
            downloads: downloads.collect(),
            dht_nodes: self.discovery.dht_nodes,
            readers: self.readers.len(),
            bytes_from_peers: counters.received(),
            bytes_from_seeder: self.discovery.seeder_bytes,
            bytes_to_peers: counters.sent(),
            bad_pieces: self.discovery.bad_pieces,
            revoked: self.upstream.trust().revoked(),
            banned: self.peers.banned(Instant::now()).map(ToString::to_string).collect(),
        }
    }
}

fn spell(labels: &Labels) -> String {
    let parts = [&labels.region, &labels.zone, &labels.site];
    parts.into_iter().flatten().map(shoal_proto::signed::Label::as_str).collect::<Vec<_>>().join("/")
}

/// Exports what connections count.
#[derive(Debug)]
struct PeerMetrics(Arc<Counters>);

impl Collector for PeerMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = i64::try_from(self.0.connections_now()).unwrap_or(i64::MAX);
        let gauge = ConstGauge::new(now);
        gauge.encode(encoder.encode_descriptor("peers", "Connected peers", None, gauge.metric_type())?)?;
        let counter = ConstCounter::new(self.0.connections());
        let name = "peer_connections";
        counter.encode(encoder.encode_descriptor(name, "Peer connections made", None, counter.metric_type())?)?;
        let counter = ConstCounter::new(0u64);
        let help = "Peer connections refused or ended for cause";
        let mut family = encoder.encode_descriptor("peer_refused", help, None, counter.metric_type())?;
        for why in Refused::ALL {
            let counter = ConstCounter::new(self.0.refused(why));
            counter.encode(family.encode_family(&[("reason", why.as_str())])?)?;
        }
        Ok(())
    }
}

/// Makes the counters of connections part of the metrics.
pub(super) fn export(metrics: &Metrics, counters: &Arc<Counters>) {
    metrics.with_registry(|registry| registry.register_collector(Box::new(PeerMetrics(counters.clone()))));
}
