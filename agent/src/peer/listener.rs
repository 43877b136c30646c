//! Accepting connections: bounded in all and by address, so that a flood on the port costs little and no peer its place.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoal_proto::message::CloseReason;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{Endpoint, GreetError, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_PER_IP_MAX, Refused, greeting};

/// Pause after the kernel refused to hand out a connection: it is out of descriptors or memory, and only time helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Handshakes under way by address. Bounded by [`HANDSHAKES_MAX`].
type PerIp = Arc<Mutex<HashMap<IpAddr, usize>>>;

impl Endpoint {
    /// Takes connections on `listener` until the endpoint stops.
    pub fn listen(&self, listener: TcpListener) {
        let endpoint = self.clone();
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = endpoint.accept_all(listener) => {}
            }
        });
    }

    async fn accept_all(&self, listener: TcpListener) {
        let (handshakes, per_ip) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), PerIp::default());
        loop {
            let (tcp, remote) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the peer port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let ip = remote.ip().to_canonical();
            let place = Place::take(&per_ip, ip).zip(handshakes.clone().try_acquire_owned().ok());
            let Some(place) = place else {
                self.shared.counters.count(Refused::Limit);
                continue;
            };
            let endpoint = self.clone();
            let stop = self.shared.stop.clone();
            self.shared.tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = endpoint.accept(tcp, place) => {}
                }
            });
        }
    }

    async fn accept<P>(&self, tcp: TcpStream, place: P) {
        let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, greeting::greet(&self.shared, tcp, None)).await;
        let greeted = match greeted.unwrap_or(Err(GreetError::Timeout)) {
            Ok(greeted) => greeted,
            Err(error) => {
                self.shared.counters.failed(&error);
                return tracing::debug!(%error, "turned a connection away");
            }
        };
        match self.shared.incoming.clone().try_acquire_owned() {
            Ok(connection) => {
                drop(place);
                self.up(greeted, None, Some(connection)).await;
            }
            // A member is told why: it will ask others. The handshake's place is held until then.
            Err(_) => {
                self.shared.counters.count(Refused::Limit);
                greeted.turn_away(CloseReason::Limit).await;
                drop(place);
            }
        }
    }
}

/// A handshake's place among those of its address.
struct Place {
    per_ip: PerIp,
    ip: IpAddr,
}

impl Place {
    fn take(per_ip: &PerIp, ip: IpAddr) -> Option<Self> {
        let mut table = per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(ip).or_default();
        if *count >= HANDSHAKES_PER_IP_MAX {
            return None;
        }
        *count += 1;
        Some(Self { per_ip: per_ip.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.ip);
            }
        }
    }
}
