//! Every tunable of the policy: its unit in its name, its default with the reason.

use serde::{Deserialize, Serialize};

use crate::time::Span;

/// The policy's tunables. Shared by agent and simulator; the defaults are what ships.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node's own number for rendezvous hashing ([`Input::PeerKnown`](crate::event::Input::PeerKnown)).
    pub rank: u64,
    /// Connections that the node dials towards for a blob that it fetches. Twenty neighbours are within 15 % of the
    /// optimum at any size of swarm, and cost little to keep informed.
    pub degree: u32,
    /// Connections in all; beyond it new dials wait. Bounds sockets and per-peer state.
    pub connections_max: u32,
    /// Fresh dials under way at once: enough that some dead peers cost one round, not one each.
    pub dials_max: u32,
    /// A dial that has not been answered for so long, while a later one was, is no longer fresh: it goes on, and another is
    /// made beside it. Who lives answers sooner, even across the world; who does not costs this and not the time that TCP
    /// takes to give up.
    pub dial_hedge: Span,
    /// The same where no dial was answered: either all of them are dead, or this node and its network are too busy to
    /// answer sooner, and more dials would only make that worse.
    pub dial_hedge_max: Span,
    /// Nodes that the core remembers, connected or not.
    pub known_peers_max: u32,
    /// Pieces asked for at once in all, before measured rates allow more: enough that an uploader's queue is seldom
    /// empty. Uploaders keep their queues short, so that rare pieces do not wait in them.
    pub requests_base: u32,
    /// Pieces asked for at once beyond that while nobody is busy: one more with each piece that comes, half as many when
    /// one is refused. In the middle of a rollout uplinks are what is short, and more requests would only wait; towards
    /// its end there is room, and whoever is late may take it.
    pub requests_spare_max: u32,
    /// Pieces asked for at once in all, whatever the rates.
    pub requests_max: u32,
    /// Pieces asked for at once across boundaries, before the time that they take allows more. All who bring pieces in share
    /// the link between, and what waits in it for too long is asked for twice.
    pub cross_requests_base: u32,
    /// More are asked for across boundaries while a piece takes less than half of this, and fewer while one takes longer.
    pub cross_time: Span,
    /// Pieces asked of one peer at once, before its rate allows more: one in transmission, one queued behind it.
    pub pipeline_base: u32,
    /// Pieces asked of one peer at once, whatever its rate.
    pub pipeline_max: u32,
    /// How far ahead the pipelines reach at the measured rate: covers a round trip and the core's own latency.
    pub pipeline_ahead: Span,
    /// A piece of at most so many bytes is sent at once and takes no slot: an image's config costs little more than a
    /// refusal, and who waits for it can do nothing without it.
    pub upload_small_bytes: u64,
    /// Pieces in transmission to peers at once, at least. Few, so that each is soon whole and can be passed on: an upload
    /// ends when the kernel has taken all of it, so the next one is ready before the link runs dry, and one whose receiver
    /// is slow soon holds no slot.
    pub upload_slots: u32,
    /// So many more where one alone does not fill the uplink, because others send to the same receivers.
    pub upload_spread_max: u32,
    /// While less than this is in transmission another may begin, up to
    /// [`upload_slots_max`](Self::upload_slots_max): a connection has hardly come to its full speed with so little. In
    /// swarms of 32 over equal links, pieces of 256 KiB, one at a time takes a quarter longer than four.
    pub upload_bytes: u64,
    /// Uploads that wait, at most; more are refused with `Busy`.
    pub upload_queue_max: u32,
    /// Uploads that may wait however slow the uplink is, and before its pace is known: it must not run dry between two
    /// requests.
    pub upload_queue_base: u32,
    /// Longest wait that an upload is queued for, by the measured pace: who would wait longer is refused, and asks one
    /// that is idle. What waits is promised on old news: the piece may be rare no more when its turn comes, and another
    /// could have sent it meanwhile. In simulated swarms of equal links queues of this cost a twentieth less time than
    /// queues of three times as long.
    pub upload_queue_ahead: Span,
    /// An upload that has waited for so long goes before pieces that were served less often.
    pub upload_wait: Span,
    /// Uploads that wait for one peer.
    pub upload_queue_per_peer_max: u32,
    /// Pieces in transmission at once where a piece takes less than `pipeline_ahead`: there the time between one piece
    /// and the next counts for more than the time that a piece takes.
    pub upload_slots_max: u32,
    /// An upload that takes this many times as long as the fastest of late no longer holds a slot: its receiver is the
    /// bottleneck, not this node's uplink.
    pub upload_slow_factor: u32,
    /// An upload holds its slot for at least this: below it, chance decides how long a piece takes.
    pub upload_slot_min: Span,
    /// An upload in transmission for longer than this holds no slot, whatever others take.
    pub upload_slot_max: Span,
    /// Pieces in transmission for each slot, with those that hold none any more: what they share may be this node's own
    /// uplink after all, and of too many none would come to its end.
    pub upload_sending_factor: u32,
    /// Requests to the seeder under way at once for a blob of which no peer holds or wants anything; one where some do.
    pub seeder_requests_max: u32,
    /// Pieces asked of the seeder in one request.
    pub seeder_batch: u16,
    /// A blob whose image came with introductions waits so long for their first words before the seeder is asked: most
    /// of what it needs may be near.
    pub introduction_grace: Span,
    /// A client that waits for the first byte of a blob is let through for so long: until its piece has come, no more than
    /// three sixteenths of the blob are asked for. Only links that bring so much within this notice.
    pub first_byte_hold: Span,
    /// Longest wait before the seeder is asked again after it gave nothing.
    pub seeder_retry_max: Span,
    /// No piece for so long: cross boundaries that others should cross, tell the seeder so. Plus up to as much again,
    /// drawn at random, so that not all cross at once.
    pub progress_timeout: Span,
    /// A request without a byte for so long is taken back and asked of another.
    pub request_timeout: Span,
    /// A request to the seeder may wait so long for its turn there, and for its bytes: in a crowd everybody waits, and a
    /// narrow link between brings many pieces at once slowly. What is taken back has crossed that link in vain.
    pub seeder_patience: Span,
    /// A request that has taken this many times its peer's usual time per piece is taken back if another can serve it.
    pub slow_factor: u32,
    /// News of gained pieces wait for more at most this long, so that they go out in batches: of those between 10 and
    /// 100 ms all give the same times to complete, and each message costs its receiver as much as a decision.
    pub have_interval: Span,
    /// A peer that is busy is asked again after this and up to as much again, drawn at random; each time that it is busy
    /// again, after twice as long.
    pub busy_rest_min: Span,
    /// A busy peer is asked again after this at the latest: by then half of its queue is done even where pieces are slow.
    pub busy_rest_max: Span,
    /// A peer that was busy so often in a row, for [`busy_in_vain`](Self::busy_in_vain), and never served anything, counts
    /// for one that holds nothing.
    pub busy_often: u32,
    /// See [`busy_often`](Self::busy_often).
    pub busy_in_vain: Span,
    /// Pause for a peer that was busy in vain.
    pub busy_often_max: Span,
    /// First pause after a failed dial or a failure of a peer; doubles up to `backoff_max`.
    pub backoff_base: Span,
    /// Longest pause after failures. What is remembered of them halves with each such span that passes without one.
    pub backoff_max: Span,
    /// Longest time for which a seeder that asks to be left alone is left alone.
    pub seeder_busy_max: Span,
    /// First ban for a bad piece; doubles with each, halves with each span that passes without one.
    pub ban_base: Span,
    /// Longest ban.
    pub ban_max: Span,
    /// Pause between looks into the DHT for a blob that lacks peers.
    pub find_interval: Span,
    /// No source for so long: say that the blob is stalled.
    pub stalled_after: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rank: 0,
            degree: 10,
            connections_max: 200,
            dials_max: 8,
            dial_hedge: Span::from_millis(250),
            dial_hedge_max: Span::from_millis(750),
            known_peers_max: 1024,
            requests_base: 8,
            requests_spare_max: 16,
            requests_max: 64,
            cross_requests_base: 2,
            cross_time: Span::from_secs(1),
            pipeline_base: 2,
            pipeline_max: 8,
            pipeline_ahead: Span::from_millis(20),
            upload_small_bytes: 16 << 10,
            upload_slots: 1,
            upload_spread_max: 2,
            upload_bytes: 1 << 20,
            upload_queue_max: 256,
            upload_queue_base: 1,
            upload_queue_ahead: Span::from_millis(100),
            upload_wait: Span::from_secs(1),
            upload_queue_per_peer_max: 16,
            upload_slots_max: 8,
            upload_slow_factor: 2,
            upload_slot_min: Span::from_millis(20),
            upload_slot_max: Span::from_secs(5),
            upload_sending_factor: 6,
            seeder_requests_max: 2,
            seeder_batch: 1,
            introduction_grace: Span::from_millis(300),
            first_byte_hold: Span::from_secs(2),
            seeder_retry_max: Span::from_secs(2),
            progress_timeout: Span::from_secs(3),
            request_timeout: Span::from_secs(5),
            seeder_patience: Span::from_secs(20),
            slow_factor: 4,
            have_interval: Span::from_millis(100),
            busy_rest_min: Span::from_millis(20),
            busy_rest_max: Span::from_millis(250),
            busy_often: 32,
            busy_in_vain: Span::from_secs(10),
            busy_often_max: Span::from_secs(2),
            backoff_base: Span::from_millis(250),
            backoff_max: Span::from_secs(60),
            seeder_busy_max: Span::from_secs(60),
            ban_base: Span::from_secs(120),
            ban_max: Span::from_secs(3600),
            find_interval: Span::from_secs(5),
            stalled_after: Span::from_secs(30),
        }
    }
}

impl Config {
    /// Peers that are too few for a blob: below that, others are looked for.
    pub(crate) const fn few(&self) -> usize {
        self.degree as usize / 2
    }
}
