//! What greetings must know of the fleet, as the seeder's client has it.

use std::{sync::Arc, time::Duration};

use shoal_proto::{envelope::Envelope, message::PeerInfo, signed::KeySet};
use tokio::{sync::Notify, time::Instant};

use super::{Done, Shell};
use crate::{
    peer::Fleet,
    upstream::{Upstream, trust::REFRESH_MIN},
};

/// The fleet by the seeder's word.
#[derive(Debug)]
pub(super) struct SeederFleet {
    upstream: Upstream,
    unknown: Notify,
}

impl SeederFleet {
    pub(super) fn new(upstream: Upstream) -> Self {
        Self { upstream, unknown: Notify::new() }
    }

    /// Waits until somebody showed a key that is not known. Cancel-safe.
    pub(super) async fn wanted(&self) {
        self.unknown.notified().await;
    }
}

impl Fleet for SeederFleet {
    fn keys(&self) -> Arc<KeySet> {
        self.upstream.trust().keys()
    }

    fn membership(&self) -> Option<Envelope> {
        self.upstream.member().borrow().as_ref().map(|member| member.envelope.clone())
    }

    fn is_revoked(&self, serial: u64) -> bool {
        let member = self.upstream.member();
        let member = member.borrow().clone();
        let list = member.as_ref().and_then(|member| member.revocations.as_ref());
        list.is_some_and(|(_, list)| list.serials.binary_search(&serial).is_ok())
    }

    fn unknown_key(&self) {
        self.unknown.notify_one();
    }
}

/// First pause before the seeder is asked again to introduce this node; it doubles up to the other.
const MEET_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a seeder that comes back is not run over by its fleet.
const MEET_PAUSE_MAX: Duration = Duration::from_secs(60);

impl Shell {
    /// A renewed membership may place this node elsewhere, and the first one may come late.
    pub(super) fn tick_labels(&mut self) {
        let member = self.upstream.member();
        let labels = member.borrow().as_ref().map(|member| member.membership.labels.clone());
        if let Some(labels) = labels.filter(|labels| *labels != self.labels) {
            self.labels = labels;
            let me = PeerInfo { labels: self.labels.clone(), ..self.endpoint.me() };
            self.endpoint.set_self(me.clone());
            self.upstream.set_self(me);
        }
    }

    /// Meets the fleet as soon as the node is a member and the seeder can be reached: should the seeder go before this node
    /// has pulled anything, it knows others whom it can ask.
    pub(super) fn meet(&self) {
        let (upstream, stop, done) = (self.upstream.clone(), self.stop.clone(), self.done.clone());
        let mut member = upstream.member();
        self.tasks.spawn(async move {
            let met = async {
                let mut pause = MEET_PAUSE;
                loop {
                    if member.wait_for(Option::is_some).await.is_err() {
                        return;
                    }
                    match upstream.meet().await {
                        Ok(introductions) => return drop(done.send(Done::Met(introductions)).await),
                        Err(error) => tracing::debug!(%error, "the seeder does not introduce this node yet"),
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MEET_PAUSE_MAX);
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = met => {}
            }
        });
    }

    pub(super) fn on_met(&mut self, introductions: Vec<PeerInfo>) {
        for info in introductions {
            self.know(info, false);
        }
    }

    /// Asks the seeder for a newer key set, not more than once in [`REFRESH_MIN`].
    pub(super) fn refresh_keys(&mut self) {
        let now = Instant::now();
        if self.keys_asked.is_some_and(|asked| now.duration_since(asked) < REFRESH_MIN) {
            return;
        }
        self.keys_asked = Some(now);
        let (upstream, stop) = (self.upstream.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let info = tokio::select! {
                () = stop.cancelled() => return,
                info = upstream.info() => info,
            };
            // Out of reach, it is asked again when the next unknown key comes by.
            if let Ok(info) = info
                && let Err(error) = upstream.trust().accept(&info)
            {
                tracing::error!(%error, "the seeder's keys are not taken");
            }
        });
    }
}
